"""Contexts as nginx makes them: every step of the builder changes handshakes."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from trustme import KeyType

from mailproxy.net import openssl
from mailproxy.net.openssl import ContextBuilder, OpenSSLError, callbacks, library
from mailproxy.net.sessions import SessionZone
from tests.tls import Certificates, Handshake, shake_hands

TLS1_2, TLS1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = ("TLSv1.2", "TLSv1.3")
NO_TICKET = 0x4000

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


def test_an_unknown_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    type_of_object = object.__basicsize__ - 8
    monkeypatch.setattr(library, "_CTX_FIELD", type_of_object)
    reason = library.unsupported.__wrapped__()
    assert "layout" in reason
    monkeypatch.setattr("mailproxy.net.openssl.contexts.unsupported", lambda: reason)
    with pytest.raises(OpenSSLError, match="layout"):
        ContextBuilder(BOTH)


def test_a_function_that_openssl_lacks_is_an_error_when_called() -> None:
    with pytest.raises(OpenSSLError, match=r"SSL_nothing\(\) is not available in"):
        library.c.SSL_nothing()


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_protocols_are_spoken_when_asked_for(
    make: Make, files: Certificates
) -> None:
    client = files.client()
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1
    server = make(("TLSv1",), "ALL:@SECLEVEL=0")
    assert shake_hands(server.context, client).server.version() == "TLSv1"
    refused(make(BOTH, "ALL:@SECLEVEL=0"), client)


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


def test_a_key_behind_a_uri(files: Certificates) -> None:
    server = ContextBuilder(BOTH)
    server.certificate(files.path("ec.pem"), "store:file:" + files.path("ec.key"))
    shake_hands(server.context, files.client())


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


def test_compression_is_refused_where_openssl_has_none(make: Make) -> None:
    server = make()
    assert server.compress_certificates(enable=False)
    assert server.compress_certificates(enable=True) is library.c.has(
        "SSL_CTX_compress_certs"
    )


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
    assert openssl.error_level(error) == "info"


def test_any_server_name_is_accepted_and_known(
    make: Make, files: Certificates
) -> None:
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
    names = "IGNORE_UNEXPECTED_EOF NO_COMPRESSION NO_RENEGOTIATION".split()
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


def test_a_client_that_asks_for_any_session(make: Make, files: Certificates) -> None:
    """The ids that are looked up come from clients: zeros are what empty memory has."""
    zone = SessionZone(64 * 1024)
    assert zone.find(bytes(32)) is None
    started = time.process_time()
    for _ in range(1000):
        zone.find(bytes(32))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("sizes", [(48,), (80,), (80, 48), (48, 80, 48)])
def test_ticket_keys(make: Make, client: ssl.SSLContext, sizes: tuple[int, ...]) -> None:
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
    assert not resumable(server(keys[0]), client, server(os.urandom(48), os.urandom(80)))
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


def test_sessions_end_after_their_timeout(make: Make, client: ssl.SSLContext) -> None:
    """Resumed again and again, a session with a client certificate lasts no longer."""
    server = make()
    server.verify_client(1)
    server.session_id_context(b"MAIL")
    server.sessions(1)
    server.tickets(enable=True)
    last = shake_hands(server.context, client)
    started, rounds = time.monotonic(), 0
    while True:
        last = shake_hands(server.context, client, last.session)
        if not last.resumed:
            break
        rounds += 1
        assert time.monotonic() - started < 4
    assert rounds > 10


# -- client certificates -----------------------------------------------------------


def verdict(server: ContextBuilder, client: ssl.SSLContext) -> int:
    return openssl.verify_result(shake_hands(server.context, client).server)[0]


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
    server.verify_client(1, ca if announced else "", "" if announced else ca)
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
        server.verify_client(depth, files.path("ca.pem"))
        assert bool(verdict(server, files.client(own="deep"))) == (depth == 0)


def test_revoked_certificates(make: Make, files: Certificates, tmp_path: Path) -> None:
    crl = files.write("crl", revocation_list(files, "ec"))
    server = make()
    server.verify_client(1, files.path("ca.pem"), crl=crl)
    assert verdict(server, files.client(own="ec")) == 23
    assert verdict(server, files.client(own="other")) == 0


def revocation_list(files: Certificates, name: str) -> bytes:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = serialization.load_pem_private_key(
        files.ca.private_key_pem.bytes(), password=None
    )
    issuer = x509.load_pem_x509_certificate(files.ca.cert_pem.bytes())
    wrong = x509.load_pem_x509_certificate(files.text(f"{name}.pem").encode())
    now = datetime.datetime.now(datetime.UTC)
    revoked = (
        x509.RevokedCertificateBuilder()
        .serial_number(wrong.serial_number)
        .revocation_date(now)
        .build()
    )
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - datetime.timedelta(days=1))
        .next_update(now + datetime.timedelta(days=1))
        .add_revoked_certificate(revoked)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type] # trustme's keys can sign
        .public_bytes(serialization.Encoding.PEM)
    )
