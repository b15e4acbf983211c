"""TLS directives with a Python that carries OpenSSL inside: what works, what is refused."""

from __future__ import annotations

import gc
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailproxy.conf.tree import ConfigError
from mailproxy.net import openssl
from mailproxy.net.openssl import library
from mailproxy.net.openssl.headers.prototype import Absent
from mailproxy.process.configuration import ConfigErrors, Configuration
from mailproxy.process.configuration import load as load_options
from mailproxy.process.options import Options
from tests.processes import openssl_inside
from tests.tls import HEADERS, Certificates, declared, shake_hands

PAIR = "starttls on; ssl_certificate ec.pem; ssl_certificate_key ec.key;"
REMEDY = "this Python carries OpenSSL inside; run mailproxy with the python3 of your distribution"

Load = Callable[..., Configuration]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("tls"))
    made.write("key", bytes(80))
    made.issue("other")
    return made


@pytest.fixture
def load(files: Certificates) -> Iterator[Load]:
    """Reads a configuration where OpenSSL's functions are hidden from the loader."""

    def read(*servers: str, main: str = "") -> Configuration:
        blocks = "\n".join(
            f"server {{ listen 127.0.0.1:{1000 + number}; protocol imap; {server} }}"
            for number, server in enumerate(servers)
        )
        text = f"{main}\nevents {{}}\nmail {{ auth_http 127.0.0.1:9;\n{blocks}\n}}\n"
        return load_options(Options(conf_file=files.write("main", text)))

    gc.collect()  # contexts of before are freed with the functions that they need
    with pytest.MonkeyPatch.context() as patch:
        for header in HEADERS:
            for name in declared(header):
                patch.setattr(header, name, Absent(name))
        library.unreachable.cache_clear()
        yield read
        gc.collect()
    library.unreachable.cache_clear()


def refusals(caught: pytest.ExceptionInfo[ConfigErrors]) -> list[ConfigError]:
    return [error for error in caught.value.messages if error.level != "warn"]


@pytest.mark.parametrize(
    "written",
    [
        "ssl_certificate_compression on",
        "ssl_conf_command Options PrioritizeChaCha",
        "ssl_ecdh_curve X25519:P-256",
        "ssl_session_cache off",
        "ssl_session_cache builtin:100",
        "ssl_session_cache shared:mail:1m",
        "ssl_session_ticket_key key",
        "ssl_session_timeout 1h",
        "ssl_verify_client optional_no_ca",
        "proxy_ssl_conf_command Options PrioritizeChaCha",
        "proxy_ssl_server_name off",
    ],
)
def test_what_only_openssl_can_do_is_refused_by_name(
    load: Load, files: Certificates, written: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(f"{PAIR}\n{written};")
    (error,) = refusals(caught)
    name = written.split()[0]
    needs = f'"{name}" needs a Python that shares the system\'s OpenSSL'
    assert str(error) == f"{needs} in {files.path('main')}:5"
    assert error.remedy == REMEDY
    assert any(each.startswith(name) for each in openssl.LACKING)


@pytest.mark.parametrize("source", ["engine:ours:key", "store:pkcs11:object=key"])
def test_keys_that_only_openssl_can_fetch_are_refused(load: Load, source: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(f"{PAIR} ssl_certificate other.pem; ssl_certificate_key {source};")
    (error,) = refusals(caught)
    assert str(error).startswith('"ssl_certificate_key" needs a Python that shares')


@pytest.mark.parametrize("source", ["engine:ours:key", "store:pkcs11:object=key"])
def test_keys_for_backends_too(load: Load, source: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(f"proxy_ssl_certificate ec.pem; proxy_ssl_certificate_key {source};")
    (error,) = refusals(caught)
    assert str(error).startswith('"proxy_ssl_certificate_key" needs a Python that')


def test_context_for_backends(load: Load) -> None:
    pair = "proxy_ssl_certificate ec.pem; proxy_ssl_certificate_key ec.key;"
    trust = "proxy_ssl_trusted_certificate ca.pem; proxy_ssl_alpn imap;"
    (server,) = load(f"proxy_ssl on; {pair} {trust}").servers
    context = server.proxy_ssl.context
    assert isinstance(context, openssl.PortableContext)
    assert context.depth == 3
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_an_engine_is_refused(load: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(main="ssl_engine ours;")
    (error,) = refusals(caught)
    assert str(error).startswith('"ssl_engine" needs a Python that shares')
    assert error.remedy == REMEDY


def test_what_servers_inherit_is_refused_once(load: Load) -> None:
    text = f"{PAIR} ssl_session_timeout 1h;"
    with pytest.raises(ConfigErrors) as caught:
        load(text, f"{text} protocol pop3;")
    assert len(refusals(caught)) == 1 + 1, "each of the two statements"


@pytest.mark.parametrize(
    "written",
    [
        "",
        "ssl_session_cache none; ssl_session_tickets off;",
        "ssl_session_cache builtin; ssl_session_timeout 5m;",
        "ssl_ecdh_curve P-256; ssl_prefer_server_ciphers on;",
        "ssl_certificate_compression off; ssl_ciphers ECDHE; ssl_protocols TLSv1.3;",
        "ssl_certificate other.pem; ssl_certificate_key other.key;",
        "ssl_verify_client optional; ssl_client_certificate ca.pem; ssl_verify_depth 2;",
    ],
)
def test_everything_else_works(load: Load, files: Certificates, written: str) -> None:
    (server,) = load(f"{PAIR} {written}").servers
    assert server.ssl.context is not None
    client = files.client(own="other")
    client.set_alpn_protocols(["imap"])
    done = shake_hands(server.ssl.context, client)
    assert done.client.selected_alpn_protocol() == "imap"
    shown = openssl.peer_certificate(done.server)
    assert (shown is not None) == ("ssl_verify_client" in written)
    assert openssl.verify_result(done.server) == (0, "ok")


def test_the_fault_of_a_certificate_has_its_place(
    load: Load, files: Certificates
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load("starttls on; ssl_certificate no.pem;\nssl_certificate_key ec.key;")
    (error,) = refusals(caught)
    name = files.path("no.pem")
    assert str(error) == (
        f'cannot load certificate "{name}": BIO_new_file() failed '
        "(SSL: error:80000002:system library::No such file or directory:"
        f"calling fopen({name}, r) error:10000080:BIO routines::no such file)"
    )
    assert error.cause is not None
    assert error.cause.line == 4


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The program with a Python that carries OpenSSL inside."""
    return subprocess.run(
        [sys.executable, "-m", "mailproxy", *words],
        env=openssl_inside(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_says_what_is_missing() -> None:
    lines = run("-V").stderr.splitlines()
    assert lines[-1] == (
        "not available, as this Python carries OpenSSL inside: "
        + "; ".join(openssl.LACKING)
    )
    assert library.unreachable() is None, "of this very process"


def test_the_demo_works() -> None:
    ran = run("demo", "--check")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(": ok") == 6


def test_a_bad_client_certificate_ends_the_handshake(
    load: Load, files: Certificates, tmp_path: Path
) -> None:
    """The client is told by an alert, the log by nginx's line for a failed handshake."""
    stranger = Certificates(tmp_path).path("ca.pem")
    text = f"{PAIR} ssl_verify_client on; ssl_trusted_certificate {stranger};"
    (server,) = load(text).servers
    assert server.ssl.context is not None
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        shake_hands(server.ssl.context, files.client(own="other"))
    assert openssl.error_text(caught.value).startswith(
        "error:0A000086:SSL routines::certificate verify failed"
    )
    assert openssl.is_peers_fault(caught.value)
