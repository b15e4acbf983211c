"""mailproxy before servers that want TLS: Dovecot, Postfix, and `openssl s_server`."""

from __future__ import annotations

import imaplib
import os
import poplib
import smtplib
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes import FakeAuth, Headers, Request, granted
from tests.peers import dovecot, postfix
from tests.peers.dovecot import PASSWORD, Dovecot
from tests.processes import (
    Process,
    free_port,
    load_modules,
    mailproxy_command,
    need,
    need_program,
    running,
    wait_for,
)
from tests.tls import Certificates

MODES = ("on", "starttls")


@pytest.fixture(scope="module")
def files(folder: Path) -> Certificates:
    """For localhost."""
    directory = folder / "backend-tls"
    directory.mkdir()
    return Certificates(directory)


@dataclass
class Proxy:
    """A running mailproxy, with a port for each server, by its name."""

    process: Process
    log: Path
    ports: dict[str, int]


@contextmanager
def proxied(
    directory: Path,
    files: Certificates,
    servers: Mapping[str, str],
    decide: Callable[[Request], Headers | bytes],
) -> Iterator[Proxy]:
    """mailproxy, in `directory`, which trusts the CA.

    Args:
      servers: directives, by name.
    """
    ports = {name: free_port() for name in servers}
    blocks = "\n".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; {directives} }}"
        for name, directives in servers.items()
    )
    with FakeAuth(decide) as auth:
        (directory / "nginx.conf").write_text(
            f"""
            {load_modules()}
            error_log {directory}/error.log info;
            pid {directory}/nginx.pid;
            events {{}}
            mail {{
                auth_http 127.0.0.1:{auth.port}/;
                proxy_smtp_auth on;
                proxy_ssl_trusted_certificate {files.path("ca.pem")};
                {blocks}
            }}
            """
        )
        command = mailproxy_command(directory)
        with running(command, directory, next(iter(ports.values()))) as process:
            yield Proxy(process, directory / "error.log", ports)


# Dovecot and Postfix


@dataclass(frozen=True)
class Wary:
    """Servers that let nobody log in without TLS: ports by protocol and mode."""

    store: Dovecot
    ports: dict[tuple[str, str], int]


@pytest.fixture(scope="module")
def wary(files: Certificates) -> Iterator[Wary]:
    directory = files.directory / "dovecot"
    directory.mkdir(mode=0o755)
    imaps, pop3s = free_port(), free_port()
    more = f"""
        ssl = required
        ssl_cert = <{files.path("ec.pem")}
        ssl_key = <{files.path("ec.key")}
        disable_plaintext_auth = yes
        service imap-login {{
          inet_listener imaps {{
            port = {imaps}
            ssl = yes
          }}
        }}
        service pop3-login {{
          inet_listener pop3s {{
            port = {pop3s}
            ssl = yes
          }}
        }}
        """
    with dovecot.start(need_program("dovecot"), directory, more) as store:
        store.process.wait_for_port(imaps)
        ports = {
            ("imap", "on"): imaps,
            ("imap", "starttls"): store.imap_port,
            ("pop3", "on"): pop3s,
            ("pop3", "starttls"): store.pop3_port,
        }
        yield Wary(store, ports)


@pytest.fixture(scope="module")
def submission(files: Certificates, wary: Wary) -> Iterator[dict[str, int]]:
    """Ports of a Postfix by mode."""
    need(os.getuid() == 0, "root, for Postfix")
    directory = files.directory / "postfix"
    directory.mkdir(mode=0o755)
    more = f"""
smtpd_tls_security_level = encrypt
smtpd_tls_auth_only = yes
smtpd_tls_cert_file = {files.path("ec.pem")}
smtpd_tls_key_file = {files.path("ec.key")}
"""
    wrapped = free_port()
    wary.store.maildir("ann")
    program = need_program("postfix")
    with postfix.start(program, directory, wary.store, ("ann",), more, wrapped) as port:
        yield {"on": wrapped, "starttls": port}


def server(protocol: str, mode: str, more: str = "") -> str:
    return (
        f"protocol {protocol}; xclient off; proxy_ssl {mode}; "
        f"proxy_ssl_name localhost; {more}"
    )


@pytest.fixture(scope="module")
def proxy(files: Certificates, wary: Wary) -> Iterator[Proxy]:
    """mailproxy before Dovecot, with a server for each protocol and mode."""
    directory = files.directory / "proxy"
    directory.mkdir(mode=0o755)
    servers = {
        f"{protocol}-{mode}": server(protocol, mode)
        for protocol in ("imap", "pop3")
        for mode in MODES
    }
    by_name = {f"{protocol}-{mode}": at for (protocol, mode), at in wary.ports.items()}

    def decide(request: Request) -> Headers | bytes:
        name, _, user = request.headers["Auth-User"].partition("/")
        return granted(by_name[name], Auth_User=user)(request)

    with proxied(directory, files, servers, decide) as running:
        yield running


@pytest.mark.parametrize("mode", MODES)
def test_imap_in_tls(proxy: Proxy, wary: Wary, mode: str) -> None:
    wary.store.deliver("ann", b"Subject: hello\r\n\r\n" + b"x" * 100_000)
    name = f"imap-{mode}"
    for _ in range(3):
        with imaplib.IMAP4("127.0.0.1", proxy.ports[name], timeout=30) as client:
            assert client.login(f"{name}/ann", PASSWORD)[0] == "OK"
            assert client.select("INBOX")[0] == "OK"
            _, found = client.fetch("1", "(BODY[TEXT])")
            assert isinstance(found[0], tuple)
            assert found[0][1] == b"x" * 100_000


@pytest.mark.parametrize("mode", MODES)
def test_pop3_in_tls(proxy: Proxy, wary: Wary, mode: str) -> None:
    wary.store.deliver("bob", b"Subject: hello\r\n\r\nhi\r\n")
    name = f"pop3-{mode}"
    for _ in range(3):
        client = poplib.POP3("127.0.0.1", proxy.ports[name], timeout=30)
        client.user(f"{name}/bob")
        client.pass_(PASSWORD)
        assert client.stat()[0] == 1
        client.close()


def test_dovecot_was_spoken_to_in_tls(proxy: Proxy, wary: Wary) -> None:
    """And refuses logins in clear text, as its log says."""
    test_imap_in_tls(proxy, wary, "starttls")
    log = (wary.store.process.directory / "dovecot.log").read_text()
    logins = [line for line in log.splitlines() if "imap-login: Info: Login:" in line]
    assert logins
    assert all("TLS" in line for line in logins)


def test_nothing_went_wrong_with_dovecot(proxy: Proxy) -> None:
    text = proxy.log.read_text()
    for level in ("[error]", "[crit]", "[alert]", "[emerg]"):
        assert level not in text


@pytest.mark.parametrize("mode", MODES)
def test_postfix_in_tls(
    tmp_path: Path,
    files: Certificates,
    wary: Wary,
    submission: dict[str, int],
    mode: str,
) -> None:
    decide = granted(submission[mode])
    servers = {"smtp": server("smtp", mode)}
    with proxied(tmp_path, files, servers, decide) as proxy:
        with smtplib.SMTP("127.0.0.1", proxy.ports["smtp"], timeout=30) as client:
            client.login("ann", PASSWORD)
            client.sendmail("ann@example.test", ["ann@example.test"], "hello\r\n")
        assert "[error]" not in proxy.log.read_text()


# openssl s_server, with bad certificates


@contextmanager
def s_server(directory: Path) -> Iterator[int]:
    """OpenSSL's server, which shows own.pem and says nothing; the value is its port."""
    port = free_port()
    command = [need_program("openssl"), "s_server", "-quiet", "-accept", str(port)]
    command += ["-cert", f"{directory}/own.pem", "-key", f"{directory}/own.key"]
    with running(command, directory, port):
        yield port


def written(directory: Path, name: str, own: trustme.LeafCert) -> str:
    """Write a certificate and its key; returns the pin."""
    chain = b"".join(each.bytes() for each in own.cert_chain_pems)
    (directory / f"{name}.pem").write_bytes(chain)
    (directory / f"{name}.key").write_bytes(own.private_key_pem.bytes())
    certificate = x509.load_pem_x509_certificate(chain)
    digest = hashes.Hash(hashes.SHA256())
    info = certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    digest.update(info)
    return digest.finalize().hex()


CASES = {
    "self-signed": "upstream SSL certificate verify error: "
    "(18:self-signed certificate)",
    "unknown": "upstream SSL certificate verify error: "
    "(20:unable to get local issuer certificate)",
    "expired": "upstream SSL certificate verify error: (10:certificate has expired)",
    "other": 'upstream SSL certificate does not match "localhost"',
    "address": 'upstream SSL certificate does not match "127.0.0.1"',
    "revoked": "upstream SSL certificate verify error: (23:certificate revoked)",
    "pin": "upstream SSL certificate does not match the pin, its key has $pin",
}


@pytest.mark.parametrize("case", CASES)
def test_certificate_that_is_refused(
    tmp_path: Path, files: Certificates, case: str
) -> None:
    directives = "proxy_ssl_name localhost;"
    own = files.ca.issue_cert("localhost")
    match case:
        case "unknown":
            own = trustme.CA().issue_cert("localhost")
        case "expired":
            ends = datetime.now(UTC) - timedelta(days=1)
            begins = ends - timedelta(days=9)
            own = files.ca.issue_cert("localhost", not_before=begins, not_after=ends)
        case "other":
            own = files.ca.issue_cert("other.test")
        case "address":
            directives = ""
        case "pin":
            directives += f"proxy_ssl_pinned_sha256 {'0' * 64};"
    pin = written(tmp_path, "own", own)
    if case == "self-signed":
        make_self_signed(tmp_path)
    if case == "revoked":
        files.write("own.pem", (tmp_path / "own.pem").read_bytes())
        (tmp_path / "ca.crl").write_bytes(files.revoke("own"))
        directives += f"proxy_ssl_crl {tmp_path}/ca.crl;"
    servers = {"imap": f"protocol imap; proxy_ssl on; {directives}"}
    with (
        s_server(tmp_path) as port,
        proxied(tmp_path, files, servers, granted(port)) as proxy,
    ):
        client = imaplib.IMAP4("127.0.0.1", proxy.ports["imap"], timeout=30)
        with pytest.raises(imaplib.IMAP4.error):
            client.login("ann", PASSWORD)
        client.shutdown()
        line = f"{CASES[case].replace('$pin', pin)} while SSL handshaking to upstream"
        proxy.process.wait_for_text(proxy.log, f" {line}, client: 127.0.0.1")
        assert "[error]" in proxy.log.read_text()


def make_self_signed(directory: Path) -> None:
    command = [
        *(need_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", "own.key", "-out", "own.pem"),
    ]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


@pytest.mark.parametrize("mode", ["pin", "own"])
def test_certificate_that_is_accepted(
    tmp_path: Path, files: Certificates, mode: str
) -> None:
    """A right pin with `proxy_ssl_verify off`; and a certificate of the proxy's own."""
    made = trustme.CA() if mode == "pin" else files.ca
    pin = written(tmp_path, "own", made.issue_cert("localhost"))
    options: tuple[str, ...] = ()
    directives = f"proxy_ssl_verify off; proxy_ssl_pinned_sha256 {pin};"
    if mode == "own":
        options = ("-Verify", "1", "-verify_return_error")
        options += ("-CAfile", files.path("ca.pem"))
        directives = (
            "proxy_ssl_name localhost; "
            f"proxy_ssl_certificate {files.path('ec.pem')}; "
            f"proxy_ssl_certificate_key {files.path('ec.key')};"
        )
    servers = {"imap": f"protocol imap; proxy_ssl on; {directives}"}
    command = [need_program("openssl"), "s_server", "-quiet", *options]
    port = free_port()
    command += ["-accept", str(port), "-cert", "own.pem", "-key", "own.key"]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as backend,
        proxied(tmp_path, files, servers, granted(port)) as proxy,
        socket.create_connection(("127.0.0.1", proxy.ports["imap"])) as client,
    ):
        assert backend.stdin is not None
        assert backend.stdout is not None
        wait_for(lambda: listens(port), "s_server")
        client.settimeout(30)
        assert client.recv(100).startswith(b"* OK")
        backend.stdin.write(b"* OK hi\r\n")
        backend.stdin.flush()
        client.sendall(b"a LOGIN ann secret\r\n")
        assert backend.stdout.readline() == b'a LOGIN "ann" "secret"\r\n'
        backend.stdin.write(b"a OK in\r\n")
        backend.stdin.flush()
        assert client.recv(100) == b"a OK in\r\n"
        backend.terminate()


def listens(port: int) -> bool:
    """Whether somebody listens; a connection would be the one that counts."""
    lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return f":{port:04X} " in lines
