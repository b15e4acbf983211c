"""Which backends are believed: real handshakes, with good and bad certificates."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mailproxy.errors import BackendError
from mailproxy.log import SessionInfo
from mailproxy.mail.backend import Backend
from mailproxy.mail.backend_tls import BackendTls
from mailproxy.mail.candidates import Candidate
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.net import resumption
from mailproxy.net.network import Network
from mailproxy.net.openssl import clients, library
from mailproxy.net.openssl.portable_clients import PortableClientBuilder
from tests.play import load_server
from tests.tls import Certificates

NAME = "mail.test"
VERIFY_ERROR = "upstream SSL certificate verify error: (%s:%s)"
NO_MATCH = 'upstream SSL certificate does not match "%s"'
DAY = timedelta(days=1)
needs_openssl = pytest.mark.skipif(
    library.unreachable() is not None, reason="OpenSSL is inside Python"
)


@dataclass
class Site:
    """A CA, and a backend that greets in TLS.

    Attributes:
      names: that clients asked for by SNI.
      protocols: that were agreed by ALPN.
      resumed: whether sessions were resumed.
      own: the clients' certificates.
    """

    directory: Path
    network: Network
    ca: trustme.CA = field(default_factory=trustme.CA)
    names: list[str | None] = field(default_factory=list)
    protocols: list[str | None] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)
    own: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ca.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        self.address = ("127.0.0.1", 0)

    def settings(self, directives: str = "") -> ProxySslSettings:
        """Of a server that trusts the CA."""
        trust = (
            ""
            if "trusted" in directives
            else "proxy_ssl_trusted_certificate $d/ca.pem;"
        )
        text = f"protocol imap; proxy_ssl on; {trust} {directives}"
        return load_server(text.replace("$d", str(self.directory))).proxy_ssl

    def certified(
        self, *names: str, ca: trustme.CA | None = None, ends: datetime | None = None
    ) -> trustme.LeafCert:
        begins = None if ends is None else ends - DAY
        ca = ca or self.ca
        return ca.issue_cert(*(names or (NAME,)), not_after=ends, not_before=begins)

    def context(self, own: trustme.LeafCert) -> ssl.SSLContext:
        """Of a backend with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.configure_cert(context)
        return self.watched(context)

    def watched(self, context: ssl.SSLContext) -> ssl.SSLContext:
        def note(_socket: object, name: str | None, _context: object) -> None:
            self.names.append(name)

        context.set_servername_callback(note)
        return context

    async def _greet(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.do_handshake()
            self.protocols.append(tls.selected_alpn_protocol())
            self.resumed.append(tls.session_reused)
            self.own.append(tls.getpeercert(binary_form=True))
            await tls.send_all(b"* OK hi\r\n")
            await tls.receive_some()
        await stream.aclose()

    async def meet(
        self, context: ssl.SSLContext, settings: ProxySslSettings, host: str = NAME
    ) -> None:
        """Connect to a backend of this context, and read its greeting.

        Raises:
          BackendError: it is not believed.
        """
        listeners = await trio.open_tcp_listeners(self.address[1], host="127.0.0.1")
        async with trio.open_nursery() as nursery, listeners[0] as listener:
            self.address = listener.socket.getsockname()

            async def serve() -> None:
                with contextlib.suppress(trio.ClosedResourceError):
                    await self._greet(await listener.accept(), context)

            nursery.start_soon(serve)
            failure = await self._try(settings, host)
        if failure is not None:
            raise failure

    async def _try(self, settings: ProxySslSettings, host: str) -> BackendError | None:
        info = SessionInfo(1, "127.0.0.1")
        candidate = Candidate(socket.AF_INET, self.address, NAME)
        backend = Backend.connect(self.network, candidate, 4096, info)
        backend.tls = BackendTls(
            mode="on",
            settings=settings,
            name=settings.proxy_ssl_name or host,
            where=self.address[0],
            resumption=self.network.resumption,
        )
        try:
            await backend.start_tls()
            assert await backend.read_line() == b"* OK hi\r\n"
            backend.keep_session()
        except BackendError as raised:
            backend.close(notify=False)
            return raised
        backend.close()
        return None

    async def refusal(
        self, own: trustme.LeafCert, directives: str = "", host: str = NAME
    ) -> str:
        """What the log says of a backend that is not believed."""
        with pytest.raises(BackendError) as caught:
            await self.meet(self.context(own), self.settings(directives), host)
        error = caught.value
        assert error.level == "error"
        assert error.error is None
        return error.event % error.values


@pytest.fixture
async def site(network: Network, tmp_path: Path) -> Site:
    return Site(tmp_path, network)


def pin(own: trustme.LeafCert) -> str:
    """SHA-256 of its key, made by another library."""
    certificate = x509.load_pem_x509_certificate(own.cert_chain_pems[0].bytes())
    key = certificate.public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()


async def test_backend_that_is_believed(site: Site) -> None:
    await site.meet(site.context(site.certified()), site.settings())
    assert site.names == [NAME]
    assert site.protocols == [None]


@pytest.mark.proves("proxy_ssl_verify")
async def test_certificate_of_an_unknown_ca(site: Site) -> None:
    assert await site.refusal(trustme.CA().issue_cert(NAME)) == (
        "upstream SSL certificate verify error: "
        "(20:unable to get local issuer certificate)"
    )


async def test_certificate_that_is_expired(site: Site) -> None:
    own = site.certified(ends=datetime.now(UTC) - DAY)
    assert await site.refusal(own) == (
        "upstream SSL certificate verify error: (10:certificate has expired)"
    )


async def test_certificate_that_is_not_yet_valid(site: Site) -> None:
    own = site.certified(ends=datetime.now(UTC) + 3 * DAY)
    assert await site.refusal(own) == (
        "upstream SSL certificate verify error: (9:certificate is not yet valid)"
    )


@pytest.mark.parametrize(
    ("names", "host", "matches"),
    [
        (["mail.test"], "mail.test", True),
        (["mail.test"], "MAIL.Test", True),
        (["mail.test"], "mail.test.", True),
        (["other.test", "mail.test"], "mail.test", True),
        (["other.test"], "mail.test", False),
        (["mail.test.example"], "mail.test", False),
        (["*.mail.test"], "a.mail.test", True),
        (["*.mail.test"], "a.b.mail.test", False),
        (["*.mail.test"], "mail.test", False),
        (["*.test"], "mail.test", False),
        (["xn--bcher-kva.test"], "bücher.test", True),
        (["127.0.0.1"], "127.0.0.1", True),
        (["mail.test"], "127.0.0.1", False),
        (["127.0.0.2"], "127.0.0.1", False),
        (["127.0.0.1"], "mail.test", False),
        (["::1"], "::1", True),
        (["::1"], "0:0::1", True),
        (["mail.test"], "", False),
        (["mail.test"], "mail.test\0.example", False),
        (["mail.test"], ".mail.test", False),
    ],
)
async def test_names(site: Site, names: list[str], host: str, matches: bool) -> None:
    own = site.certified(*names)
    if matches:
        await site.meet(site.context(own), site.settings(), host)
    else:
        said = await site.refusal(own, host=host)
        assert said == f'upstream SSL certificate does not match "{host}"'


async def test_common_name_does_not_count(site: Site) -> None:
    own = site.ca.issue_cert("other.test", common_name=NAME)
    said = await site.refusal(own)
    assert said == f'upstream SSL certificate does not match "{NAME}"'


async def test_part_of_a_label_is_no_wildcard(site: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(site.ca.cert_pem.bytes()).subject
    signer = load_pem_private_key(site.ca.private_key_pem.bytes(), None)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            issuer, x509.Name([]), key.public_key(), 1, now - DAY, now + DAY
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("m*.mail.test")]), critical=False
        )
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type] # trustme's keys can sign
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = site.directory / "wild.pem"
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with pytest.raises(BackendError) as caught:
        await site.meet(context, site.settings(), "mx.mail.test")
    assert caught.value.values == ("mx.mail.test",)


@pytest.mark.proves("proxy_ssl_name")
async def test_name_that_is_configured(site: Site) -> None:
    settings = site.settings(f"proxy_ssl_name {NAME};")
    await site.meet(site.context(site.certified()), settings, "127.0.0.1")
    assert site.names == [NAME]
    said = await site.refusal(site.certified(), "proxy_ssl_name other.test;")
    assert said == 'upstream SSL certificate does not match "other.test"'


@pytest.mark.proves("proxy_ssl_server_name")
@pytest.mark.parametrize("verify", ["", "proxy_ssl_verify off;"])
async def test_name_is_sent_by_sni(site: Site, verify: str) -> None:
    context = site.context(site.certified(NAME, "127.0.0.1"))
    await site.meet(context, site.settings(verify))
    await site.meet(context, site.settings(verify), "127.0.0.1")
    assert site.names == [NAME, None]


@needs_openssl
@pytest.mark.proves("proxy_ssl_server_name")
@pytest.mark.parametrize("verify", ["", "proxy_ssl_verify off;"])
async def test_name_is_not_sent(site: Site, verify: str) -> None:
    settings = site.settings(f"proxy_ssl_server_name off; {verify}")
    await site.meet(site.context(site.certified()), settings)
    assert site.names == [None]


@needs_openssl
async def test_name_that_is_not_sent_is_verified(site: Site) -> None:
    said = await site.refusal(
        site.certified("other.test"), "proxy_ssl_server_name off;"
    )
    assert said == f'upstream SSL certificate does not match "{NAME}"'


@pytest.mark.proves("proxy_ssl_verify")
@pytest.mark.parametrize("host", [NAME, "127.0.0.1", ""])
async def test_any_certificate_is_good_if_none_is_verified(
    site: Site, host: str
) -> None:
    own = trustme.CA().issue_cert("other.test")
    await site.meet(site.context(own), site.settings("proxy_ssl_verify off;"), host)


@pytest.mark.proves("proxy_ssl_crl")
async def test_certificate_that_is_revoked(site: Site) -> None:
    certificates = Certificates(site.directory)
    site.ca = certificates.ca
    good, bad = site.certified(), site.certified()
    (site.directory / "bad.pem").write_bytes(bad.cert_chain_pems[0].bytes())
    certificates.write("ca.crl", certificates.revoke("bad"))
    crl = "proxy_ssl_crl $d/ca.crl;"
    await site.meet(site.context(good), site.settings(crl))
    said = await site.refusal(bad, crl)
    assert said == "upstream SSL certificate verify error: (23:certificate revoked)"


@pytest.mark.proves("proxy_ssl_verify_depth")
@pytest.mark.parametrize(("depth", "good"), [(1, False), (2, True), (None, True)])
async def test_length_of_a_chain(site: Site, depth: int | None, good: bool) -> None:
    own = site.certified(ca=site.ca.create_child_ca().create_child_ca())
    directive = "" if depth is None else f"proxy_ssl_verify_depth {depth};"
    if good:
        await site.meet(site.context(own), site.settings(directive))
    else:
        said = await site.refusal(own, directive)
        assert said.startswith("upstream SSL certificate verify error: (2")


# Pins


@pytest.mark.proves("proxy_ssl_pinned_sha256")
@pytest.mark.parametrize("kind", list(trustme.KeyType))
async def test_pin(site: Site, kind: trustme.KeyType) -> None:
    own = site.ca.issue_cert(NAME, key_type=kind)
    pins = f"proxy_ssl_pinned_sha256 {'0' * 64} {pin(own)};"
    await site.meet(site.context(own), site.settings(pins))


async def test_wrong_pin(site: Site) -> None:
    own = site.certified()
    said = await site.refusal(own, f"proxy_ssl_pinned_sha256 {'0' * 64};")
    assert said == (
        f"upstream SSL certificate does not match the pin, its key has {pin(own)}"
    )


async def test_pin_alone_is_enough_if_nothing_is_verified(site: Site) -> None:
    own = trustme.CA().issue_cert("other.test")
    pinned = f"proxy_ssl_verify off; proxy_ssl_pinned_sha256 {pin(own)};"
    await site.meet(site.context(own), site.settings(pinned))
    other = trustme.CA().issue_cert(NAME)
    assert "does not match the pin" in await site.refusal(other, pinned)


async def test_pin_is_not_enough_if_certificates_are_verified(site: Site) -> None:
    own = trustme.CA().issue_cert(NAME)
    said = await site.refusal(own, f"proxy_ssl_pinned_sha256 {pin(own)};")
    assert said.startswith("upstream SSL certificate verify error: (20:")


async def test_pin_of_the_ca_is_no_pin(site: Site) -> None:
    own = site.certified()
    certificate = x509.load_pem_x509_certificate(site.ca.cert_pem.bytes())
    key = certificate.public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(info).hexdigest()
    said = await site.refusal(own, f"proxy_ssl_pinned_sha256 {digest};")
    assert said.endswith(pin(own))


# What this proxy shows


@pytest.mark.proves("proxy_ssl_alpn")
async def test_protocols_are_offered(site: Site) -> None:
    context = site.context(site.certified())
    context.set_alpn_protocols(["imap"])
    await site.meet(context, site.settings("proxy_ssl_alpn x imap;"))
    await site.meet(context, site.settings())
    assert site.protocols == ["imap", None]


@pytest.fixture
def wary(site: Site) -> ssl.SSLContext:
    """Of a backend that wants a certificate."""
    context = site.context(site.certified())
    context.verify_mode = ssl.CERT_REQUIRED
    site.ca.configure_trust(context)
    own = site.ca.issue_cert("proxy.test")
    chain = b"".join(each.bytes() for each in own.cert_chain_pems)
    (site.directory / "own.pem").write_bytes(chain)
    (site.directory / "own.key").write_bytes(own.private_key_pem.bytes())
    return context


OWN = "proxy_ssl_certificate $d/own.pem; proxy_ssl_certificate_key $d/own.key;"


@pytest.mark.proves("proxy_ssl_certificate")
@pytest.mark.proves("proxy_ssl_certificate_key")
async def test_certificate_of_the_proxy(site: Site, wary: ssl.SSLContext) -> None:
    await site.meet(wary, site.settings(OWN))
    (own,) = site.own
    assert own is not None
    alternatives = x509.load_der_x509_certificate(own).extensions
    names = alternatives.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["proxy.test"]


@pytest.mark.proves("proxy_ssl_certificate", "data:")
@pytest.mark.proves("proxy_ssl_certificate_key", "data:")
async def test_certificate_that_is_written_out(
    site: Site, wary: ssl.SSLContext
) -> None:
    certificate = (site.directory / "own.pem").read_text()
    key = (site.directory / "own.key").read_text()
    await site.meet(
        wary,
        site.settings(
            f'proxy_ssl_certificate "data:{certificate}"; '
            f'proxy_ssl_certificate_key "data:{key}";'
        ),
    )


@pytest.mark.proves("proxy_ssl_password_file")
async def test_key_with_a_password(site: Site, wary: ssl.SSLContext) -> None:
    path = site.directory / "own.key"
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            Encoding.PEM,
            PrivateFormat.PKCS8,
            BestAvailableEncryption(b"sesame"),
        )
    )
    (site.directory / "passwords").write_text("wrong\nsesame\n")
    await site.meet(wary, site.settings(f"{OWN} proxy_ssl_password_file $d/passwords;"))


# TLS sessions


@needs_openssl
@pytest.mark.proves("proxy_ssl_session_reuse")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_session_is_resumed(site: Site, version: ssl.TLSVersion) -> None:
    context = site.context(site.certified())
    context.maximum_version = version
    settings = site.settings()
    for _ in range(4):
        await site.meet(context, settings)
    assert site.resumed == [False, True, True, True]
    assert len(site.network.resumption) == 1


@needs_openssl
@pytest.mark.proves("proxy_ssl_session_reuse")
async def test_session_is_not_resumed(site: Site) -> None:
    context = site.context(site.certified())
    for _ in range(2):
        await site.meet(context, site.settings("proxy_ssl_session_reuse off;"))
    assert site.resumed == [False, False]
    assert len(site.network.resumption) == 0


@needs_openssl
async def test_session_is_that_of_a_name_and_a_context(site: Site) -> None:
    """What was verified for one name says nothing of another."""
    own = site.certified(NAME, "other.test")
    context = site.context(own)
    await site.meet(context, site.settings())
    await site.meet(context, site.settings(), "other.test")
    await site.meet(context, site.settings("proxy_ssl_verify off;"))
    await site.meet(context, site.settings(f"proxy_ssl_pinned_sha256 {pin(own)};"))
    assert site.resumed == [False] * 4
    await site.meet(context, site.settings(), "other.test")
    assert site.resumed[4]


@needs_openssl
async def test_session_with_an_unbelieved_backend_is_not_kept(site: Site) -> None:
    own = site.certified()
    await site.refusal(own, f"proxy_ssl_pinned_sha256 {'0' * 64};")
    await site.refusal(own, host="other.test")
    assert len(site.network.resumption) == 0


@needs_openssl
async def test_certificate_is_verified_anew_after_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each resumption gives a new ticket, which would do for ever."""
    now = 1000.0
    monkeypatch.setattr(clients, "monotonic", lambda: now)
    context, settings = site.context(site.certified()), site.settings()
    for passed in (0, clients.MAX_AGE - 10, 9, 1, 1):
        now += passed
        await site.meet(context, settings)
    assert site.resumed == [False, True, True, False, True]


@needs_openssl
async def test_session_that_the_backend_has_forgotten(site: Site) -> None:
    settings = site.settings()
    await site.meet(site.context(site.certified()), settings)
    await site.meet(site.context(site.certified()), settings)
    assert site.resumed == [False, False]


@needs_openssl
async def test_sessions_have_a_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was not used for the longest time goes first."""
    monkeypatch.setattr(resumption, "MAX_SESSIONS", 3)
    context, settings = site.context(site.certified(*"abcd")), site.settings()
    for host in "abcadab":
        await site.meet(context, settings, host)
    assert site.resumed == [False, False, False, True, False, True, False]
    assert len(site.network.resumption) == 3


# With a Python that carries OpenSSL inside


def portable(site: Site, depth: int = 3) -> ProxySslSettings:
    """Settings with a context that is made by `ssl` alone."""
    builder = PortableClientBuilder({"TLSv1.2", "TLSv1.3"})
    builder.verify_server(depth)
    builder.trust(str(site.directory / "ca.pem"))
    return ProxySslSettings(loaded=builder.context)


@pytest.mark.parametrize(
    ("kind", "event", "values"),
    [
        ("good", "", ()),
        ("unknown", VERIFY_ERROR, (20, "unable to get local issuer certificate")),
        ("other", NO_MATCH, (NAME,)),
        ("long", VERIFY_ERROR, (22, "certificate chain too long")),
    ],
)
async def test_certificates_without_openssl(
    site: Site, kind: str, event: str, values: tuple[object, ...]
) -> None:
    own = site.certified("other.test" if kind == "other" else NAME)
    if kind == "unknown":
        own = trustme.CA().issue_cert(NAME)
    if kind == "long":
        own = site.certified(ca=site.ca.create_child_ca())
    settings = portable(site, depth=0 if kind == "long" else 3)
    context = site.context(own)
    for _ in range(2):
        if event:
            with pytest.raises(BackendError) as caught:
                await site.meet(context, settings)
            assert (caught.value.event, caught.value.values) == (event, values)
        else:
            await site.meet(context, settings)
    assert not any(site.resumed)
    assert len(site.network.resumption) == 0
