"""Contexts as nginx makes them: every step of the builder changes handshakes."""

from __future__ import annotations

import _ssl  # which library it is
import contextlib
import ctypes
import gc
import hashlib
import os
import socket
import ssl
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID
from trustme import KeyType

from mailproxy import outside
from mailproxy.net import openssl
from mailproxy.net.openssl import (
    ContextBuilder,
    OpenSSLError,
    callbacks,
    certificates,
    library,
    peers,
)
from mailproxy.net.openssl.headers import pem_h, ssl_h, store_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.tls_sessions import SessionZone
from mailproxy.process.configuration import load
from mailproxy.process.options import Options
from tests.tls import Certificates, shake_hands

TLS1_2, TLS1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = ("TLSv1.2", "TLSv1.3")

FFDHE2048 = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("tls"))
    made.issue("rsa", KeyType.RSA)
    made.issue("other")
    made.write("bad", "nonsense\n")
    made.write("dh", FFDHE2048)
    return made


Make = Callable[..., ContextBuilder]


@pytest.fixture
def make(files: Certificates) -> Make:
    """A builder with what every server needs."""

    def build(
        protocols: tuple[str, ...] = BOTH,
        ciphers: str = "HIGH:!aNULL:!MD5",
        certificate: str = "ec",
        *,
        prefer_server: bool = False,
    ) -> ContextBuilder:
        builder = ContextBuilder(protocols)
        builder.ciphers(ciphers, prefer_server=prefer_server)
        builder.certificate(
            files.path(f"{certificate}.pem"), files.path(f"{certificate}.key")
        )
        return builder

    return build


def refused(server: ContextBuilder, client: ssl.SSLContext) -> ssl.SSLError:
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server.context, client)
    return caught.value


# -- the library -------------------------------------------------------------------


def test_this_python_is_supported() -> None:
    assert openssl.unsupported() is None
    assert openssl.unreachable() is None


def test_an_unknown_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    type_of_object = object.__basicsize__ - 8
    monkeypatch.setattr(library, "_CTX_FIELD", type_of_object)
    reason = library.unreachable.__wrapped__()
    assert reason is not None
    assert "layout" in reason
    monkeypatch.setattr("mailproxy.net.openssl.contexts.unreachable", lambda: reason)
    with pytest.raises(OpenSSLError, match="layout"):
        ContextBuilder(BOTH)


# -- versions, ciphers, groups -----------------------------------------------------


@pytest.mark.parametrize(
    ("protocols", "version", "answer"),
    [
        (BOTH, TLS1_2, "TLSv1.2"),
        (BOTH, TLS1_3, "TLSv1.3"),
        (("TLSv1.2",), TLS1_3, None),
        (("TLSv1.3",), TLS1_2, None),
        (("TLSv1", "TLSv1.3"), TLS1_2, None),
    ],
)
def test_only_the_protocols_that_are_named_are_spoken(
    make: Make,
    files: Certificates,
    protocols: tuple[str, ...],
    version: ssl.TLSVersion,
    answer: str | None,
) -> None:
    server, client = make(protocols), files.client(version=version)
    if answer is None:
        refused(server, client)
    else:
        assert shake_hands(server.context, client).server.version() == answer


@pytest.mark.proves("ssl_protocols", "TLSv1", "TLSv1.1")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["TLSv1", "TLSv1.1"])
def test_old_protocols_are_spoken_when_asked_for(
    make: Make, files: Certificates, name: str
) -> None:
    client = files.client()
    client.set_ciphers("ALL:@SECLEVEL=0")
    version = ssl.TLSVersion[name.replace(".", "_")]
    client.minimum_version = client.maximum_version = version
    server = make((name,), "ALL:@SECLEVEL=0")
    assert shake_hands(server.context, client).server.version() == name
    refused(make(BOTH, "ALL:@SECLEVEL=0"), client)


@pytest.mark.proves("ssl_protocols", "SSLv2", "SSLv3")
def test_the_oldest_protocols_are_none_that_anybody_speaks(
    make: Make, files: Certificates
) -> None:
    refused(make(("SSLv2", "SSLv3")), files.client())


def test_ciphers_are_those_of_the_list(make: Make, files: Certificates) -> None:
    server = make(ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    done = shake_hands(server.context, files.client(version=TLS1_2))
    assert done.cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("prefer", [False, True])
def test_whose_order_of_ciphers_counts(
    make: Make, files: Certificates, prefer: bool
) -> None:
    aes, chacha = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"
    client = files.client(version=TLS1_2)
    client.set_ciphers(f"{aes}:{chacha}")
    server = make(ciphers=f"{chacha}:{aes}", prefer_server=prefer)
    done = shake_hands(server.context, client)
    assert done.cipher == (chacha if prefer else aes)


def test_a_list_of_groups(make: Make, files: Certificates) -> None:
    client = files.client()
    client.set_ecdh_curve("prime256v1")
    server = make()
    server.curves("secp384r1")
    refused(server, client)
    server.curves("secp384r1:prime256v1")
    shake_hands(server.context, client)


def test_dhe_needs_parameters(make: Make, files: Certificates) -> None:
    client = files.client(version=TLS1_2)
    client.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
    server = make(certificate="rsa")
    refused(server, client)
    server.dh_parameters(files.path("dh"))
    done = shake_hands(server.context, client)
    assert done.cipher == "DHE-RSA-AES128-GCM-SHA256"


# -- certificates ------------------------------------------------------------------


def test_a_certificate_for_each_kind_of_key(make: Make, files: Certificates) -> None:
    server = make()
    server.certificate(files.path("rsa.pem"), files.path("rsa.key"))
    for kind, key in (("RSA", b"RSA2048"), ("ECDSA", b"EC256")):
        client = files.client(version=TLS1_2)
        client.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        done = shake_hands(server.context, client)
        assert kind in done.cipher
        shown = openssl.server_certificate(done.server)
        assert shown == openssl.ServerCertificate(b"ecdsa-with-SHA256", key)


def test_the_chain_is_sent(files: Certificates) -> None:
    child = files.ca.create_child_ca(key_type=KeyType.ECDSA)
    files.issue("child", ca=child)
    server = ContextBuilder(BOTH)
    server.certificate(files.path("child.pem"), files.path("child.key"))
    shake_hands(server.context, files.client())
    alone = files.text("child.pem").split("-----END CERTIFICATE-----\n")[0]
    files.write("alone.pem", alone + "-----END CERTIFICATE-----\n")
    server = ContextBuilder(BOTH)
    server.certificate(files.path("alone.pem"), files.path("child.key"))
    refused(server, files.client())


def test_certificates_written_in_the_configuration(files: Certificates) -> None:
    server = ContextBuilder(BOTH)
    server.certificate("data:" + files.text("ec.pem"), "data:" + files.text("ec.key"))
    shake_hands(server.context, files.client())


@pytest.mark.proves("ssl_certificate_key", "store:")
def test_a_key_behind_a_uri(files: Certificates) -> None:
    server = ContextBuilder(BOTH)
    server.certificate(files.path("ec.pem"), "store:file:" + files.path("ec.key"))
    shake_hands(server.context, files.client())


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "FILE://localhost{}"])
def test_a_key_behind_the_uri_of_a_fifo_is_read_once(
    files: Certificates, tmp_path: Path, form: str
) -> None:
    """A second process uses what the first one has read, and opens nothing."""
    path = tmp_path / "key.fifo"
    os.mkfifo(path)
    key = files.text("ec.key").encode()
    writing = threading.Thread(target=path.write_bytes, args=(key,), daemon=True)
    writing.start()
    uri = "store:" + form.format(path)
    with outside.recording() as findings:
        ContextBuilder(BOTH).certificate(files.path("ec.pem"), uri)
    writing.join()
    path.unlink()
    server = ContextBuilder(BOTH)
    with outside.replaying(findings):
        server.certificate(files.path("ec.pem"), uri)
    shake_hands(server.context, files.client())


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}"])
def test_a_uri_of_an_endless_file_is_refused(files: Certificates, form: str) -> None:
    with pytest.raises(
        openssl.PrivateKeyError, match=r"read\(\) failed \(27: File too"
    ):
        ContextBuilder(BOTH).certificate(
            files.path("ec.pem"), "store:" + form.format("/dev/zero")
        )


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://elsewhere{}"])
def test_a_uri_that_leads_nowhere_is_openssl_s_to_explain(
    files: Certificates, form: str
) -> None:
    uri = "store:" + form.format(files.path("missing"))
    with pytest.raises(openssl.PrivateKeyError, match=r"OSSL_STORE_open\(\) failed"):
        ContextBuilder(BOTH).certificate(files.path("ec.pem"), uri)


@pytest.fixture(scope="module")
def encrypted(files: Certificates) -> str:
    key = serialization.load_pem_private_key(files.text("ec.key").encode(), None)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    return files.write("encrypted.key", text)


@pytest.mark.parametrize("prefix", ["", "store:file:"])
def test_passwords_are_tried_in_turn(
    files: Certificates, encrypted: str, prefix: str
) -> None:
    passwords = [b"open sesame"] if prefix else [b"wrong", b"open sesame", b"other"]
    server = ContextBuilder(BOTH)
    server.certificate(files.path("ec.pem"), prefix + encrypted, passwords)
    shake_hands(server.context, files.client())


def test_without_the_password_the_key_is_not_read(
    files: Certificates, encrypted: str
) -> None:
    server = ContextBuilder(BOTH)
    with pytest.raises(OpenSSLError, match="bad decrypt") as caught:
        server.certificate(files.path("ec.pem"), encrypted, [b"wrong", b"secret"])
    assert "secret" not in str(caught.value)


def test_a_key_never_shows_in_a_message(files: Certificates) -> None:
    key = files.text("ec.key")
    server = ContextBuilder(BOTH)
    for certificate, wrong in (
        ("data:" + key, "data:" + key),
        (files.path("ec.pem"), "data:" + key[:150]),
        (files.path("other.pem"), "data:" + key),
    ):
        with pytest.raises(OpenSSLError) as caught:
            server.certificate(certificate, wrong)
        assert key[60:80] not in str(caught.value)


def test_an_engine_that_is_not_there(files: Certificates) -> None:
    missing = r"ENGINE_by_id\(.*\) failed \(SSL: "
    with pytest.raises(OpenSSLError, match=missing):
        openssl.use_engine("nothing")
    server, certificate = ContextBuilder(BOTH), files.path("ec.pem")
    with pytest.raises(OpenSSLError, match=missing):
        server.certificate(certificate, "engine:nothing:key")
    with pytest.raises(OpenSSLError, match='"engine:nothing": invalid syntax'):
        server.certificate(certificate, "engine:nothing")


def with_engine(files: Certificates, work: Callable[[int], bool]) -> bool:
    """What `work` returns in a process that has an engine named "ours".

    It does RSA as OpenSSL does, and has the private key "ec". A process of its own,
    as there is no way back from an engine that is the default.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = not work(_make_engine(files.path("ec.key")))
        os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def _make_engine(key_file: str) -> int:
    lib = ctypes.PyDLL(getattr(_ssl, "__file__", None))
    pointer = ctypes.c_void_p
    lib.ENGINE_new.restype = lib.RSA_get_default_method.restype = pointer

    def load(engine: int, name: int, method: int, data: int) -> int | None:
        if ctypes.string_at(name) != b"ec":
            return None
        bio = pem_h.BIO_new_file(key_file.encode(), b"r")
        return pem_h.PEM_read_bio_PrivateKey(bio, None, None, None)

    engine = pointer(lib.ENGINE_new())
    lib.ENGINE_set_id(engine, b"ours")
    lib.ENGINE_set_name(engine, b"made for a test")
    lib.ENGINE_set_RSA(engine, pointer(lib.RSA_get_default_method()))
    kind = ctypes.CFUNCTYPE(pointer, pointer, pointer, pointer, pointer)
    _kept.append(kind(load))
    lib.ENGINE_set_load_privkey_function(engine, _kept[0])
    assert lib.ENGINE_add(engine) == 1
    return engine.value or 0


_kept: list[object] = []
needs_engines = pytest.mark.skipif(
    not has(store_h.ENGINE_by_id), reason="this OpenSSL has no engines"
)


@needs_engines
@pytest.mark.proves("ssl_engine")
def test_an_engine_is_used_for_all_it_can(files: Certificates) -> None:
    def work(engine: int) -> bool:
        default = ctypes.PyDLL(getattr(_ssl, "__file__", None)).ENGINE_get_default_RSA
        default.restype = ctypes.c_void_p
        before = default()
        path = files.write("main", "ssl_engine ours; events {}")
        assert load(Options(conf_file=path)).main.ssl_engine == "ours"
        return before is None and default() == engine

    assert with_engine(files, work)


@needs_engines
@pytest.mark.proves("ssl_certificate_key", "engine:")
def test_a_key_of_an_engine(files: Certificates) -> None:
    def work(engine: int) -> bool:
        # As for nginx, ssl_engine or openssl.cnf has to initialise it.
        text = """ssl_engine ours; events {} mail { auth_http 127.0.0.1; server {
            listen 127.0.0.1:143 ssl; ssl_certificate ec.pem;
            ssl_certificate_key engine:ours:ec; } }"""
        path = files.write("main", text)
        (server,) = load(Options(conf_file=path)).servers
        assert server.ssl.context is not None
        shake_hands(server.ssl.context, files.client())
        with pytest.raises(OpenSSLError, match="ENGINE_load_private_key"):
            ContextBuilder(BOTH).certificate(files.path("ec.pem"), "engine:ours:other")
        return True

    assert with_engine(files, work)


def test_compression_is_refused_where_openssl_has_none(make: Make) -> None:
    server = make()
    assert server.compress_certificates(enable=False)
    assert server.compress_certificates(enable=True) is has(
        ssl_h.SSL_CTX_compress_certs
    )


Signer = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey


Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | hashes.SHA3_256


def self_signed(key: Signer, digest: Digest) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(datetime(1951, 12, 31, 23, 59, 58, tzinfo=UTC))
    builder = builder.not_valid_after(datetime(2055, 1, 2, 3, 4, 5, tzinfo=UTC))
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("key", "digest", "signature", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), hashes.SHA384(), "RSA-SHA384", "RSA2048"),
        (ec.generate_private_key(ec.SECP384R1()), hashes.SHA512(), "ecdsa-with-SHA512", "EC384"),
        (ec.generate_private_key(ec.SECP256R1()), hashes.SHA3_256(), "id-ecdsa-with-sha3-256", "EC256"),
        (dsa.generate_private_key(2048), hashes.SHA256(), "dsa_with_SHA256", "DSA2048"),
    ],
    ids=["RSA", "EC", "SHA3", "DSA"],
)  # fmt: skip
def test_a_certificate_is_described_in_openssl_s_words(
    key: Signer, digest: Digest, signature: str, kind: str
) -> None:
    der = self_signed(key, digest)
    shown = certificates.server_certificate(der)
    assert shown == openssl.ServerCertificate(signature.encode(), kind.encode())
    ran = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-dates"],
        input=der,
        capture_output=True,
        check=True,
    )
    form = "not%s=%%b %%d %%H:%%M:%%S %%Y GMT"
    validity = certificates.leaf(der)
    assert validity.begins is not None
    assert validity.ends is not None
    assert ran.stdout.decode().replace("  ", " 0").splitlines() == [
        validity.begins.strftime(form % "Before"),
        validity.ends.strftime(form % "After"),
    ]


def test_what_cannot_be_read_of_a_certificate_limits_nothing() -> None:
    """OpenSSL accepts an unknown version of X.509, `cryptography` does not."""
    key = ec.generate_private_key(ec.SECP256R1())
    good = self_signed(key, hashes.SHA256())
    bad = good.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    assert peers.describe(bad).common_name == b"a"
    assert certificates.leaf(bad) == openssl.Leaf()
    assert certificates.server_certificate(bad) is None
    with pytest.raises(ValueError, match="version"):
        certificates.peer_certificate(bad)


# -- ALPN, SNI, renegotiation ------------------------------------------------------


@pytest.mark.parametrize("version", [TLS1_2, TLS1_3])
def test_alpn_takes_the_protocol_or_refuses(
    make: Make, files: Certificates, version: ssl.TLSVersion
) -> None:
    server = make()
    server.alpn(b"imap")
    client = files.client(version=version)
    assert shake_hands(server.context, client).server.selected_alpn_protocol() is None
    client.set_alpn_protocols(["pop3", "imap"])
    done = shake_hands(server.context, client)
    assert done.server.selected_alpn_protocol() == "imap"
    assert done.client.selected_alpn_protocol() == "imap"
    client.set_alpn_protocols(["h2", "imaps"])
    error = refused(server, client)
    assert (
        openssl.error_text(error)
        == "error:0A0000EB:SSL routines::no application protocol"
    )
    assert openssl.is_peers_fault(error)


def test_any_server_name_is_accepted_and_known(make: Make, files: Certificates) -> None:
    done = shake_hands(make().context, files.client())
    assert openssl.server_name(done.server) == b"localhost"


def test_a_connection_without_server_name(make: Make, files: Certificates) -> None:
    client = files.client()
    client.check_hostname = False
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make().context.wrap_bio(up, down, server_side=True)
    there = client.wrap_bio(down, up)
    for end in (there, server):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    assert openssl.server_name(server) is None


def test_nginx_options_are_set(make: Make) -> None:
    names = ["IGNORE_UNEXPECTED_EOF", "NO_COMPRESSION", "NO_RENEGOTIATION"]
    options = make().context.options
    for name in names:
        assert options & getattr(ssl, f"OP_{name}")
    assert not options & ssl.OP_CIPHER_SERVER_PREFERENCE


# -- sessions ----------------------------------------------------------------------


def resumable(
    server: ContextBuilder, client: ssl.SSLContext, again: ContextBuilder | None = None
) -> bool:
    """Whether a second handshake resumes the session of the first."""
    first = shake_hands(server.context, client)
    assert not first.resumed
    if not first.client.session:
        return False
    return shake_hands((again or server).context, client, first.session).resumed


@pytest.fixture(params=[TLS1_2, TLS1_3], ids=["TLSv1.2", "TLSv1.3"])
def client(request: pytest.FixtureRequest, files: Certificates) -> ssl.SSLContext:
    return files.client(version=request.param)


@pytest.mark.parametrize("tickets", [True, False])
@pytest.mark.parametrize(
    ("cache", "builtin", "shared", "kept"),
    [
        (False, None, False, False),
        (None, None, False, False),
        (True, -1, False, True),
        (True, 100, False, True),
        (True, None, True, True),
        (True, -1, True, True),
    ],
    ids=["off", "none", "builtin", "builtin:100", "shared", "builtin shared"],
)
def test_which_sessions_are_resumed(
    make: Make,
    client: ssl.SSLContext,
    cache: bool | None,
    builtin: int | None,
    shared: bool,
    kept: bool,
    tickets: bool,
) -> None:
    server = make()
    server.session_id_context(b"MAIL")
    zone = SessionZone(64 * 1024) if shared else None
    server.sessions(300, cache=cache, builtin=builtin, zone=zone)
    server.tickets(enable=tickets)
    assert resumable(server, client) == (tickets or kept)


def test_the_builtin_cache_is_bounded(make: Make, files: Certificates) -> None:
    server = make()
    server.session_id_context(b"MAIL")
    server.sessions(300, cache=True, builtin=5)
    server.tickets(enable=False)
    client = files.client(version=TLS1_2)
    for _ in range(20):
        shake_hands(server.context, client)
    assert 0 < server.context.session_stats()["number"] <= 5


def shared_server(make: Make, zone: SessionZone, *, tickets: bool) -> ContextBuilder:
    server = make()
    server.session_id_context(b"MAIL")
    server.sessions(300, cache=True, zone=zone)
    server.tickets(enable=tickets)
    return server


@pytest.mark.parametrize("tickets", [True, False])
def test_sessions_are_shared_by_contexts(
    make: Make, client: ssl.SSLContext, tickets: bool
) -> None:
    """What a reload has made knows the sessions of before."""
    zone = SessionZone(64 * 1024)
    before = shared_server(make, zone, tickets=tickets)
    after = shared_server(make, zone, tickets=tickets)
    assert resumable(before, client, after)


@pytest.mark.proves("ssl_session_cache", "shared:")
@pytest.mark.parametrize("tickets", [True, False])
def test_sessions_are_shared_by_workers(
    make: Make, client: ssl.SSLContext, tickets: bool
) -> None:
    server = shared_server(make, SessionZone(64 * 1024), tickets=tickets)
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        there.close()
        tls = server.context.wrap_socket(here, server_side=True)
        tls.send(b"x")
        tls.unwrap()
        os._exit(0)
    here.close()
    with client.wrap_socket(there, server_hostname="localhost") as tls:
        tls.recv(1)
        session = tls.session
        tls.unwrap()
    assert os.waitpid(child, 0)[1] == 0
    assert shake_hands(server.context, client, session).resumed


def test_a_removed_session_is_resumed_nowhere(
    make: Make, client: ssl.SSLContext
) -> None:
    zone = SessionZone(64 * 1024)
    server = shared_server(make, zone, tickets=False)
    first = shake_hands(server.context, client)
    openssl.remove_session(first.server)
    again = shared_server(make, zone, tickets=False)
    assert not shake_hands(again.context, client, first.session).resumed


def test_sessions_of_other_certificates_are_not_resumed(
    make: Make, client: ssl.SSLContext, files: Certificates
) -> None:
    zone = SessionZone(64 * 1024)
    server = shared_server(make, zone, tickets=True)
    other = make(certificate="other")
    other.session_id_context(b"MAIL")
    other.sessions(300, cache=True, zone=zone)
    other.tickets(enable=True)
    assert not resumable(server, client, other)


def test_tickets_of_other_certificates_are_not_taken(
    make: Make, client: ssl.SSLContext
) -> None:
    key = os.urandom(80)

    def server(certificate: str) -> ContextBuilder:
        builder = make(certificate=certificate)
        builder.session_id_context(b"MAIL")
        builder.tickets(enable=True, keys=[key])
        return builder

    assert resumable(server("ec"), client, server("ec"))
    assert not resumable(server("ec"), client, server("other"))


def test_the_key_of_tickets_changes_with_the_hour(
    make: Make, files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    server = shared_server(make, SessionZone(64 * 1024), tickets=True)
    client = files.client(version=TLS1_3)
    old = shake_hands(server.context, client).session
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert shake_hands(server.context, client, old).resumed, "the last of the old key"
    assert not shake_hands(server.context, client, old).resumed
    assert resumable(server, client)


@pytest.mark.parametrize("sizes", [(48,), (80,), (80, 48), (48, 80, 48)])
def test_ticket_keys(
    make: Make, client: ssl.SSLContext, sizes: tuple[int, ...]
) -> None:
    """The first key makes tickets; the others still open those of before."""
    keys = [os.urandom(size) for size in sizes]

    def server(*used: bytes) -> ContextBuilder:
        builder = make()
        builder.session_id_context(b"MAIL")
        builder.sessions(300)
        builder.tickets(enable=True, keys=used)
        return builder

    for key in keys:
        assert resumable(server(key), client, server(*keys))
    assert not resumable(server(keys[0]), client, server(os.urandom(80)))
    assert not resumable(
        server(keys[0]), client, server(os.urandom(48), os.urandom(80))
    )
    # A ticket of an old key is exchanged for one of the new key.
    first = shake_hands(server(keys[-1]).context, client)
    renewed = shake_hands(server(*keys).context, client, first.session)
    assert renewed.resumed
    assert shake_hands(server(keys[0]).context, client, renewed.session).resumed


def test_a_damaged_ticket_means_a_full_handshake(
    make: Make, files: Certificates
) -> None:
    """Two keys of the same name are as good as a damaged ticket."""
    name = os.urandom(16)

    def server() -> ContextBuilder:
        builder = make()
        builder.session_id_context(b"MAIL")
        builder.tickets(enable=True, keys=[name + os.urandom(32), os.urandom(80)])
        return builder

    client = files.client(version=TLS1_2)
    assert not resumable(server(), client, server())


@pytest.mark.proves("ssl_session_timeout")
def test_sessions_end_after_their_timeout(make: Make, files: Certificates) -> None:
    """Resumed again and again, a session with a client certificate lasts no longer."""
    client = files.client(version=TLS1_3)
    server = make()
    server.verify_client(1)
    server.session_id_context(b"MAIL")
    server.sessions(2)
    server.tickets(enable=True)
    last = shake_hands(server.context, client)
    started = time.monotonic()
    last = shake_hands(server.context, client, last.session)
    assert last.resumed
    while last.resumed:
        assert time.monotonic() - started < 20
        last = shake_hands(server.context, client, last.session)


# -- client certificates -----------------------------------------------------------


def verdict(server: ContextBuilder, client: ssl.SSLContext) -> int:
    return openssl.verify_result(shake_hands(server.context, client).server)[0]


@pytest.mark.proves("ssl_verify_client", "off")
def test_certificates_are_not_asked_for(make: Make, files: Certificates) -> None:
    done = shake_hands(make().context, files.client(own="ec"))
    assert openssl.peer_certificate(done.server) is None
    assert openssl.verify_result(done.server) == (0, "ok")


@pytest.mark.parametrize("announced", [True, False])
def test_the_handshake_succeeds_whatever_a_client_shows(
    make: Make, files: Certificates, announced: bool
) -> None:
    ca = files.path("ca.pem")
    server = make()
    server.verify_client(1)
    (server.announce if announced else server.trust)(ca)
    assert verdict(server, files.client()) == 0
    assert verdict(server, files.client(own="ec")) == 0
    stranger = files.client()
    trustme.CA(key_type=KeyType.ECDSA).issue_cert(
        "localhost", key_type=KeyType.ECDSA
    ).configure_cert(stranger)
    done = shake_hands(server.context, stranger)
    assert openssl.verify_result(done.server) == (
        21,
        "unable to verify the first certificate",
    )
    assert openssl.peer_certificate(done.server) is not None


def test_the_depth_of_chains_is_limited(make: Make, files: Certificates) -> None:
    child = files.ca.create_child_ca(key_type=KeyType.ECDSA)
    files.issue("deep", ca=child)
    for depth in (0, 1):
        server = make()
        server.verify_client(depth)
        server.announce(files.path("ca.pem"))
        assert bool(verdict(server, files.client(own="deep"))) == (depth == 0)


@pytest.mark.proves("ssl_crl")
def test_revoked_certificates(make: Make, files: Certificates, tmp_path: Path) -> None:
    crl = files.write("crl", files.revoke("ec"))
    server = make()
    server.verify_client(1)
    server.announce(files.path("ca.pem"))
    server.revoke(crl)
    assert verdict(server, files.client(own="ec")) == 23
    assert verdict(server, files.client(own="other")) == 0


# -- what is known of a certificate ------------------------------------------------


def odd_certificate(files: Certificates, serial: int) -> None:
    """odd.pem: a subject with all that needs escaping."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Ünï, Ltd")]
    names += [(NameOID.COMMON_NAME, 'a+b="c"\r\n#1 ')]
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    files.write("odd.pem", made.public_bytes(serialization.Encoding.PEM))
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files.write("odd.key", text)


def test_a_client_certificate_is_described_as_by_nginx(
    make: Make, files: Certificates
) -> None:
    odd_certificate(files, 0xABC12)
    server = make()
    server.verify_client(1)
    done = shake_hands(server.context, files.client(own="odd"))
    found = openssl.peer_certificate(done.server)
    assert found is not None
    assert found.subject == rb"CN=a\+b=\"c\"\0D\0A#1\ ,O=\C3\9Cn\C3\AF\, Ltd,C=DE"
    assert found.issuer == b"CN=issuer"
    assert found.common_name == b'a+b="c"\r\n#1 '
    assert found.serial == b"0ABC12"
    assert found.pem.decode() == files.text("odd.pem")
    der = ssl.PEM_cert_to_DER_cert(files.text("odd.pem"))
    assert found.fingerprint == hashlib.sha1(der).hexdigest().encode()


def test_a_long_serial_number_has_no_line_break(
    make: Make, files: Certificates
) -> None:
    odd_certificate(files, int("7F" * 20, 16))
    server = make()
    server.verify_client(1)
    # Certificates may have longer ones than they should.
    done = shake_hands(server.context, files.client(own="odd"))
    found = openssl.peer_certificate(done.server)
    assert found is not None
    assert found.serial == b"7F" * 20


def test_the_certificate_of_a_resumed_session_is_known(
    make: Make, client: ssl.SSLContext, files: Certificates
) -> None:
    client.load_cert_chain(files.path("other.pem"), files.path("other.key"))
    server = make()
    server.verify_client(1)
    server.announce(files.path("ca.pem"))
    server.session_id_context(b"MAIL")
    first = shake_hands(server.context, client)
    again = shake_hands(server.context, client, first.session)
    assert again.resumed
    shown = openssl.peer_certificate(again.server)
    assert shown is not None
    assert shown == openssl.peer_certificate(first.server)
    assert shown.pem.decode() == files.text("other.pem")
    assert openssl.verify_result(again.server) == (0, "ok")


@pytest.mark.proves("ssl_client_certificate")
def test_names_of_cas_are_announced_once(make: Make, files: Certificates) -> None:
    twice = files.write("twice.pem", files.text("ca.pem") * 2)
    server = make()
    server.verify_client(1)
    server.announce(twice)
    server.trust(twice)
    assert len(announced(server.context)) == 1
    server = make()
    server.verify_client(1)
    server.trust(files.path("ca.pem"))
    assert not announced(server.context)


def announced(context: ssl.SSLContext) -> list[str]:
    """The CA names that `openssl s_client` is sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as client:
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) as tls:
                with contextlib.suppress(OSError):
                    tls.unwrap()
            output, _ = client.communicate(timeout=60)
    _, found, rest = output.partition("Acceptable client certificate CA names\n")
    return rest.partition("\nRequested")[0].split("\n") if found else []


# -- commands ----------------------------------------------------------------------


def commanded(make: Make, files: Certificates, *commands: str) -> ContextBuilder:
    server = make()
    server.session_id_context(b"MAIL")
    server.sessions(300)
    server.tickets(enable=False)
    pairs = [(name, value) for name, value in (c.split(" ", 1) for c in commands)]
    server.commands(pairs, files.path)
    return server


def test_commands_come_last(
    make: Make, client: ssl.SSLContext, files: Certificates
) -> None:
    assert not resumable(commanded(make, files), client)
    assert resumable(commanded(make, files, "Options SessionTicket"), client)


def test_commands_for_ciphers_of_tls_1_3(make: Make, files: Certificates) -> None:
    server = commanded(make, files, "Ciphersuites TLS_CHACHA20_POLY1305_SHA256")
    done = shake_hands(server.context, files.client(version=TLS1_3))
    assert done.cipher == "TLS_CHACHA20_POLY1305_SHA256"


def test_commands_replace_the_certificate(make: Make, files: Certificates) -> None:
    server = commanded(make, files, "Certificate other.pem", "PrivateKey other.key")
    done = shake_hands(server.context, files.client())
    certificate = done.client.getpeercert(binary_form=True)
    assert certificate == ssl.PEM_cert_to_DER_cert(files.text("other.pem"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "Foo bar",
            'SSL_CONF_cmd("Foo", "bar") failed (SSL: error:0A000182:SSL routines::'
            "unknown cmd name:cmd=Foo)",
        ),
        (
            "Options bar",
            'SSL_CONF_cmd("Options", "bar") failed (SSL: error:0A000180:SSL routines::'
            "bad value:cmd=Options, value=bar)",
        ),
        (
            "Ciphersuites foo",
            'SSL_CONF_cmd("Ciphersuites", "foo") failed (SSL: error:0A0000B9:'
            "SSL routines::no cipher match error:0A000180:SSL routines::"
            "bad value:cmd=Ciphersuites, value=foo)",
        ),
    ],
)
def test_wrong_commands(
    make: Make, files: Certificates, command: str, message: str
) -> None:
    with pytest.raises(OpenSSLError) as caught:
        commanded(make, files, command)
    assert str(caught.value) == message


# -- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "0A00009C:SSL routines::http request"),
        (b"a1 LOGIN x y\r\n", "0A00010B:SSL routines::wrong version number"),
        (
            b"\x15\x03\x01\x00\x02\x02\x28",
            "0A0000F4:SSL routines::unexpected message",
        ),
        (
            b"\x16\x03\x01\xff\xff",
            "0A0000C6:SSL routines::packet length too long",
        ),
    ],
)
def test_what_is_logged_of_a_client_that_speaks_no_tls(
    make: Make, sent: bytes, text: str
) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make().context.wrap_bio(up, down, server_side=True)
    up.write(sent)
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
    assert openssl.error_text(caught.value) == f"error:{text}"
    assert openssl.is_peers_fault(caught.value)


def test_what_is_logged_of_an_alert(make: Make) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make().context.wrap_bio(up, down, server_side=True)
    client = ssl.create_default_context().wrap_bio(
        down, up, server_hostname="localhost"
    )
    for end in (client, server):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()
    with pytest.raises(ssl.SSLError) as caught:
        server.do_handshake()
    assert openssl.error_text(caught.value) == (
        "error:0A000418:SSL routines::tlsv1 alert unknown ca:SSL alert number 48"
    )
    assert openssl.is_peers_fault(caught.value)


def test_a_client_that_leaves_during_the_handshake(make: Make) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make().context.wrap_bio(up, down, server_side=True)
    up.write(b"\x16\x03\x01")
    up.write_eof()
    with pytest.raises((ssl.SSLZeroReturnError, ssl.SSLEOFError)):
        server.do_handshake()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ssl.SSLError(1, "something (_ssl.c:1)"), "error:something"),
        (ssl.SSLError("odd"), "error:odd"),
        (ssl.SSLError(), "error:"),
    ],
)
def test_errors_without_a_code(error: ssl.SSLError, text: str) -> None:
    assert openssl.error_text(error) == text
    assert not openssl.is_peers_fault(error)


def test_a_whole_queue_of_errors_is_shown(files: Certificates) -> None:
    missing = files.path("missing.pem")
    server = ContextBuilder(BOTH)
    with pytest.raises(OpenSSLError) as caught:
        server.certificate(missing, missing)
    assert str(caught.value) == (
        f'cannot load certificate "{missing}": BIO_new_file() failed '
        "(SSL: error:80000002:system library::No such file or directory:"
        f"calling fopen({missing}, r) error:10000080:BIO routines::no such file)"
    )


# -- memory ------------------------------------------------------------------------


def test_contexts_are_freed(make: Make) -> None:
    gc.collect()
    before = len(callbacks._zones), len(callbacks._ticket_keys)  # noqa: SLF001 - the subject
    server = shared_server(make, SessionZone(64 * 1024), tickets=False)
    server.tickets(enable=True, keys=[os.urandom(48)])
    gone = weakref.ref(server.context)
    del server
    gc.collect()
    assert gone() is None
    assert before == (len(callbacks._zones), len(callbacks._ticket_keys))  # noqa: SLF001


def test_handshakes_leave_nothing_behind(make: Make, files: Certificates) -> None:
    """Everything that calls back, in every handshake; the whole is measured."""
    server = make()
    server.alpn(b"imap")
    server.verify_client(1)
    server.announce(files.path("ca.pem"))
    server.session_id_context(b"MAIL")
    server.sessions(300, cache=True, zone=SessionZone(64 * 1024))
    server.tickets(enable=True, keys=[os.urandom(48), os.urandom(80)])
    clients = [files.client(version=v, own="other") for v in (TLS1_2, TLS1_3)]
    for each in clients:
        each.set_alpn_protocols(["imap"])

    # Python's own SSLObject.session leaks in some versions: each is asked for once.
    sessions = [shake_hands(server.context, client).session for client in clients]

    def after(handshakes: int) -> int:
        for number in range(handshakes):
            client = clients[number % 2]
            session = sessions[number % 2] if number % 4 > 1 else None
            done = shake_hands(server.context, client, session)
            assert done.resumed == (session is not None)
            openssl.peer_certificate(done.server)
            openssl.remove_session(done.server)
        gc.collect()
        return resident()

    after(100)
    before = after(100)
    assert after(400) - before < 200


def test_contexts_leave_nothing_behind(make: Make, files: Certificates) -> None:
    def after(contexts: int) -> int:
        for _ in range(contexts):
            server = make()
            server.verify_client(1)
            server.announce(files.path("ca.pem"))
            server.dh_parameters(files.path("dh"))
            server.commands([("Options", "SessionTicket")], files.path)
        gc.collect()
        return resident()

    after(20)
    before = after(20)
    assert after(100) - before < 1024


def resident() -> int:
    """KiB of memory that the process has."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
