"""What `ssl` and `cryptography` do in OpenSSL's place, beside OpenSSL itself."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type  # without it, some names take ASCII only
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st
from trustme import KeyType

from mailproxy import outside
from mailproxy.net import openssl
from mailproxy.net.openssl import (
    ContextBuilder,
    OpenSSLError,
    certificates,
    peers,
    plain,
)
from mailproxy.net.openssl.portable import PortableBuilder
from tests.tls import Certificates, shake_hands

TLS1_2, TLS1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = ("TLSv1.2", "TLSv1.3")
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    made = Certificates(tmp_path_factory.mktemp("tls"))
    made.issue("rsa", KeyType.RSA)
    made.issue("other")
    made.write("bad", "nonsense\n")
    return made


@pytest.fixture(params=[TLS1_2, TLS1_3], ids=["TLSv1.2", "TLSv1.3"])
def client(request: pytest.FixtureRequest, files: Certificates) -> ssl.SSLContext:
    return files.client(version=request.param)


def server(files: Certificates, name: str = "ec") -> PortableBuilder:
    builder = PortableBuilder(BOTH)
    builder.ciphers("HIGH:!aNULL:!MD5")
    builder.certificate(files.path(f"{name}.pem"), files.path(f"{name}.key"))
    builder.curves("auto")
    builder.sessions(300)
    builder.tickets(enable=True)
    return builder


# -- the same as OpenSSL says ------------------------------------------------------


_OIDS = [
    NameOID.COMMON_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.EMAIL_ADDRESS,
    NameOID.DOMAIN_COMPONENT,
    NameOID.USER_ID,
    NameOID.SURNAME,
    NameOID.SERIAL_NUMBER,
    NameOID.JURISDICTION_LOCALITY_NAME,
    NameOID.INN,
    ObjectIdentifier("1.3.6.1.4.1.99999.1"),
]
_ATTRIBUTE = st.builds(
    x509.NameAttribute,
    st.sampled_from(_OIDS),
    st.text(
        st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20
    )
    | st.text(' #,+"\\<>;=\r\n\t', min_size=1, max_size=20),
    st.just(_ASN1Type.UTF8String),
)
_NAME = st.builds(
    x509.Name,
    st.lists(
        st.builds(
            x509.RelativeDistinguishedName,
            st.lists(_ATTRIBUTE, min_size=1, max_size=2, unique_by=lambda a: a.oid),
        ),
        min_size=1,
        max_size=4,
    ),
)


def issue(subject: x509.Name, issuer: x509.Name, serial: int) -> bytes:
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.DER)


@given(_NAME, _NAME, st.integers(1, 2**159 - 1))
def test_a_certificate_is_described_as_openssl_does(
    subject: x509.Name, issuer: x509.Name, serial: int
) -> None:
    der = issue(subject, issuer, serial)
    assert certificates.peer_certificate(der) == peers.describe(der)


@pytest.mark.parametrize("name", ["ec", "rsa"])
def test_the_server_s_certificate_is_described_as_openssl_does(
    files: Certificates, name: str
) -> None:
    other = ContextBuilder(BOTH)
    validity = other.certificate(files.path(f"{name}.pem"), files.path(f"{name}.key"))
    theirs = shake_hands(other.context, files.client())
    builder = PortableBuilder(BOTH)
    assert validity == builder.certificate(
        files.path(f"{name}.pem"), files.path(f"{name}.key")
    )
    ours = shake_hands(builder.context, files.client())
    shown = openssl.server_certificate(ours.server)
    assert shown is not None
    assert shown == openssl.server_certificate(theirs.server)
    builder.certificate(files.path("other.pem"), files.path("other.key"))
    two = shake_hands(builder.context, files.client())
    assert openssl.server_certificate(two.server) is None


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("none.pem", "ec.key"),
        ("ec.pem", "none.key"),
        ("bad", "ec.key"),
        ("ec.pem", "other.key"),
        ("ec.pem", "bad"),
    ],
)
def test_errors_of_certificates_read_as_those_of_openssl(
    files: Certificates, certificate: str, key: str
) -> None:
    texts = []
    for kind in (ContextBuilder, PortableBuilder):
        with pytest.raises(OpenSSLError) as caught:
            kind(BOTH).certificate(files.path(certificate), files.path(key))
        texts.append((type(caught.value), str(caught.value)))
    (their_type, theirs), (our_type, ours) = texts
    assert our_type is their_type
    assert ours.partition(" (SSL: ")[0] == theirs.partition(" (SSL: ")[0]
    if (certificate, key) != ("ec.pem", "bad"):  # `ssl` does not say what was wrong
        assert ours == theirs


@pytest.mark.parametrize(("certificate", "key"), [("ec", "rsa"), ("rsa", "ec")])
def test_a_key_of_another_kind_is_named(
    files: Certificates, certificate: str, key: str
) -> None:
    """OpenSSL takes it, and waits for the certificate; `ssl` does not."""
    name = files.path(f"{key}.key")
    with pytest.raises(openssl.PrivateKeyError) as caught:
        PortableBuilder(BOTH).certificate(files.path(f"{certificate}.pem"), name)
    assert str(caught.value) == (
        f'SSL_CTX_use_PrivateKey("{name}") failed '
        "(SSL: error:05800073:x509 certificate routines::key type mismatch)"
    )


def test_a_group_that_ssl_does_not_know_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by Pythons that know elliptic curves only."""

    def refuse(_context: ssl.SSLContext, name: str) -> None:
        raise ValueError(f"unknown elliptic curve name {name!r}")

    monkeypatch.setattr(plain.PortableContext, "set_ecdh_curve", refuse)
    for name in ("X25519", "X448", "ffdhe2048", "MLKEM768"):
        with pytest.raises(openssl.NeedsOpenSSLError, match="shares the system's"):
            PortableBuilder(BOTH).curves(name)
    with pytest.raises(OpenSSLError, match=r"curves_list\(\"flat\"\) failed") as caught:
        PortableBuilder(BOTH).curves("flat")
    assert not isinstance(caught.value, openssl.NeedsOpenSSLError)


def test_errors_of_other_files_read_as_those_of_openssl(files: Certificates) -> None:
    for step, name in [
        ("trust", "none"),
        ("announce", "none"),
        ("revoke", "none"),
        ("revoke", "bad"),
        ("trust", "bad"),
        ("dh_parameters", "none"),
        ("dh_parameters", "bad"),
        ("ciphers", "NONE"),
        ("curves", "flat"),
    ]:
        texts = []
        for kind in (ContextBuilder, PortableBuilder):
            argument = name if step in {"ciphers", "curves"} else files.path(name)
            with pytest.raises(OpenSSLError) as caught:
                getattr(kind(BOTH), step)(argument)
            texts.append(str(caught.value).partition(" (SSL: ")[0])
        theirs, ours = texts
        assert ours == theirs.replace("X509_AUX", "X509")


# -- handshakes --------------------------------------------------------------------


def test_options_are_those_of_nginx(files: Certificates) -> None:
    ours, theirs = PortableBuilder(BOTH), ContextBuilder(BOTH)
    assert ours.context.options == theirs.context.options
    assert ours.context.minimum_version == theirs.context.minimum_version


@pytest.mark.parametrize(
    ("protocols", "version", "answer"),
    [
        (("TLSv1.2",), TLS1_3, None),
        (("TLSv1.3",), TLS1_2, None),
        (("TLSv1", "TLSv1.3"), TLS1_2, None),
        (("TLSv1", "TLSv1.3"), TLS1_3, "TLSv1.3"),
    ],
)
def test_only_the_protocols_that_are_named_are_spoken(
    files: Certificates,
    protocols: tuple[str, ...],
    version: ssl.TLSVersion,
    answer: str | None,
) -> None:
    builder = PortableBuilder(protocols)
    builder.ciphers("HIGH:!aNULL:!MD5", prefer_server=False)
    builder.certificate(files.path("ec.pem"), files.path("ec.key"))
    client = files.client(version=version)
    if answer is None:
        with pytest.raises(ssl.SSLError):
            shake_hands(builder.context, client)
    else:
        assert shake_hands(builder.context, client).server.version() == answer


@pytest.mark.parametrize("prefer", [False, True])
def test_whose_order_of_ciphers_counts(files: Certificates, prefer: bool) -> None:
    aes, chacha = "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"
    client = files.client(version=TLS1_2)
    client.set_ciphers(f"{aes}:{chacha}")
    builder = server(files)
    builder.ciphers(f"{chacha}:{aes}", prefer_server=prefer)
    assert shake_hands(builder.context, client).cipher == (chacha if prefer else aes)


@pytest.mark.parametrize("name", ["P-384", "secp384r1"])
def test_one_group_for_the_key_exchange(files: Certificates, name: str) -> None:
    client = files.client()
    client.set_ecdh_curve("prime256v1")
    builder = server(files)
    builder.curves(name)
    with pytest.raises(ssl.SSLError):
        shake_hands(builder.context, client)
    client.set_ecdh_curve("secp384r1")
    shake_hands(builder.context, client)


def test_what_is_written_in_the_configuration_is_on_no_disk(
    files: Certificates,
) -> None:
    builder = PortableBuilder(BOTH)
    builder.certificate("data:" + files.text("ec.pem"), "data:" + files.text("ec.key"))
    shake_hands(builder.context, files.client())
    left = [
        os.readlink(entry)
        for entry in os.scandir("/proc/self/fd")
        if entry.is_symlink()
    ]
    assert not any("memfd:pem" in each for each in left)


def test_passwords_are_tried_in_turn(files: Certificates) -> None:
    key = serialization.load_pem_private_key(files.text("ec.key").encode(), None)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    pair = files.path("ec.pem"), files.write("encrypted.key", text)
    good = PortableBuilder(BOTH)
    good.certificate(*pair, [b"x" * 2000, b"wrong", b"open sesame", b"other"])
    shake_hands(good.context, files.client())
    for wrong in ([b"wrong", b"secret"], [b"x" * 2000]):
        with pytest.raises(
            openssl.PrivateKeyError, match=r"PrivateKey\(\) failed"
        ) as e:
            PortableBuilder(BOTH).certificate(*pair, wrong)
        assert "secret" not in str(e.value)


@pytest.mark.parametrize("tickets", [True, False])
@pytest.mark.parametrize("cache", [None, True])
def test_sessions_are_resumed_by_ticket_or_from_the_worker_s_cache(
    files: Certificates, tickets: bool, cache: bool | None
) -> None:
    client = files.client(version=TLS1_3)
    builder = server(files)
    builder.sessions(300, cache=cache, builtin=-1 if cache else None)
    builder.tickets(enable=tickets)
    first = shake_hands(builder.context, client)
    if tickets or cache:
        assert shake_hands(builder.context, client, first.session).resumed
    else:
        assert first.client.session is None or not first.session.has_ticket


def test_tickets_are_shared_by_workers(
    files: Certificates, client: ssl.SSLContext
) -> None:
    context = server(files).context
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        there.close()
        tls = context.wrap_socket(here, server_side=True)
        tls.send(b"x")
        tls.unwrap()
        os._exit(0)
    here.close()
    with client.wrap_socket(there, server_hostname="localhost") as tls:
        tls.recv(1)
        session = tls.session
        tls.unwrap()
    assert os.waitpid(child, 0)[1] == 0
    assert shake_hands(context, client, session).resumed


# -- client certificates -----------------------------------------------------------


def verifying(files: Certificates, depth: int = 1) -> PortableBuilder:
    builder = server(files)
    builder.verify_client(depth)
    builder.announce(files.path("ca.pem"))
    return builder


def test_a_good_client_certificate_is_known(
    files: Certificates, client: ssl.SSLContext
) -> None:
    builder = verifying(files)
    done = shake_hands(builder.context, client)
    assert openssl.peer_certificate(done.server) is None
    assert openssl.verify_result(done.server) == (0, "ok")
    client.load_cert_chain(files.path("other.pem"), files.path("other.key"))
    done = shake_hands(builder.context, client)
    assert openssl.verify_result(done.server) == (0, "ok")
    der = ssl.PEM_cert_to_DER_cert(files.text("other.pem"))
    assert openssl.peer_certificate(done.server) == peers.describe(der)


def test_a_revoked_client_certificate_ends_the_handshake(files: Certificates) -> None:
    client = files.client(version=TLS1_2, own="other")
    builder = verifying(files)
    builder.revoke(files.write("crl", files.revoke("ec")))
    shake_hands(builder.context, client)
    builder.revoke(files.write("crl", files.revoke("ec", "other")))
    builder = verifying(files)
    builder.revoke(files.path("crl"))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(builder.context, client)


def test_a_certificate_beside_crls_is_no_ca(files: Certificates) -> None:
    """As for OpenSSL, which reads only CRLs there: a client of that CA is refused."""
    other = trustme.CA(key_type=KeyType.ECDSA)
    files.issue("stranger", ca=other)
    both = files.write("both", other.cert_pem.bytes() + files.revoke() + _empty(other))
    builder = verifying(files)
    builder.revoke(both)
    shake_hands(builder.context, files.client(version=TLS1_2, own="other"))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(builder.context, files.client(version=TLS1_2, own="stranger"))


def test_a_crl_beside_cas_revokes_nothing(files: Certificates) -> None:
    builder = server(files)
    builder.verify_client(1)
    builder.trust(files.write("mixed", files.text("ca.pem").encode() + files.revoke()))
    builder.context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(builder.context, files.client(version=TLS1_2, own="other"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda files: files.text("ca.pem"), "no start line:Expecting: X509 CRL"),
        (lambda files: "", "no start line:Expecting: X509 CRL"),
        (lambda files: files.revoke().decode()[:-40], "no start line"),
        (lambda files: files.revoke().decode() * 2 + "-----BEGIN X509 CRL-----", "bad"),
        (lambda files: files.revoke().decode().replace("M", "=", 1), "bad base64"),
        (lambda files: files.text("ca.pem").replace("CERTIFICATE", "X509 CRL"), ""),
    ],
    ids=["certificate", "empty", "cut", "begun", "no base64", "false label"],
)
def test_a_file_without_good_crls_is_refused(
    files: Certificates, content: Callable[[Certificates], str], why: str
) -> None:
    path = files.write("list", content(files))
    for kind in (ContextBuilder, PortableBuilder):
        builder = kind(BOTH)
        with pytest.raises(OpenSSLError) as caught:
            builder.revoke(path)
        text = f'cannot load CRL "{path}": PEM_read_bio_X509_CRL() failed (SSL: error:'
        assert str(caught.value).startswith(text)
    assert why in str(caught.value)
    assert builder.context.cert_store_stats() == {"x509": 0, "crl": 0, "x509_ca": 0}


# -- where files come from ---------------------------------------------------------


def test_files_are_read_once_and_may_be_fifos(files: Certificates) -> None:
    """What was written to a FIFO is not there when `ssl` looks."""
    names = ["ec.pem", "ec.key", "ca.pem", "crl"]
    files.write("crl", files.revoke())
    with ExitStack() as stack:
        fifos = {name: stack.enter_context(fifo(files, name)) for name in names}
        builder = PortableBuilder(BOTH)
        with outside.recording() as findings:
            builder.certificate(fifos["ec.pem"], fifos["ec.key"])
            builder.trust(fifos["ca.pem"])
            builder.revoke(fifos["crl"])
    shake_hands(builder.context, files.client())
    with outside.replaying(findings):
        again = PortableBuilder(BOTH)
        again.certificate(fifos["ec.pem"], fifos["ec.key"])
    shake_hands(again.context, files.client())


@pytest.mark.parametrize("step", ["trust", "announce", "revoke", "dh_parameters"])
def test_an_endless_file_is_refused(files: Certificates, step: str) -> None:
    with pytest.raises(OpenSSLError, match=r"read\(\) failed \(27: File too large\)"):
        getattr(PortableBuilder(BOTH), step)("/dev/zero")
    for pair in (
        ("/dev/zero", files.path("ec.key")),
        (files.path("ec.pem"), "/dev/zero"),
    ):
        with pytest.raises(OpenSSLError, match=r"read\(\) failed \(27: File too"):
            PortableBuilder(BOTH).certificate(*pair)


@contextmanager
def fifo(files: Certificates, name: str) -> Iterator[str]:
    """A FIFO that holds once what a file holds, and is gone at the end."""
    path = Path(files.path(f"{name}.fifo"))
    os.mkfifo(path)
    content = files.text(name).encode()
    writing = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writing.start()
    yield str(path)
    writing.join()
    path.unlink()


def _empty(ca: trustme.CA) -> bytes:
    """A CRL of another CA, without entries."""
    key = serialization.load_pem_private_key(ca.private_key_pem.bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_pem_x509_certificate(ca.cert_pem.bytes()).subject)
        .last_update(now - timedelta(days=1))
        .next_update(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def test_the_depth_of_chains_is_limited_also_when_a_session_is_resumed(
    files: Certificates, client: ssl.SSLContext
) -> None:
    """OpenSSL has found the chain good, and would resume the session."""
    files.issue("deep", ca=files.ca.create_child_ca(key_type=KeyType.ECDSA))
    client.load_cert_chain(files.path("deep.pem"), files.path("deep.key"))
    assert not openssl.verify_result(
        shake_hands(verifying(files, 1).context, client).server
    )[0]
    context = verifying(files, 0).context
    first = shake_hands(context, client)
    too_long = (22, "certificate chain too long")
    assert openssl.verify_result(first.server) == too_long
    openssl.remove_session(first.server)
    if first.client.session is not None:
        again = shake_hands(context, client, first.session)
        assert again.resumed == (client.maximum_version == TLS1_2)
        assert openssl.verify_result(again.server) == too_long


def test_the_memory_for_refused_sessions_is_bounded(
    files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.issue("deep", ca=files.ca.create_child_ca(key_type=KeyType.ECDSA))
    monkeypatch.setattr(plain, "_MAX_SESSIONS", 3)
    context = verifying(files, 0).context
    for _ in range(5):
        done = shake_hands(context, files.client(version=TLS1_2, own="deep"))
        assert openssl.verify_result(done.server)[0]
    assert len(context._too_deep) == 3  # noqa: SLF001 - the subject
