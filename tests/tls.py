"""TLS handshakes in memory, and the certificates for them."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from trustme import KeyType

from mailproxy.net.openssl.headers import crypto_h, pem_h, ssl_h, store_h, x509_h
from mailproxy.net.openssl.headers.prototype import Absent

HEADERS = (crypto_h, pem_h, ssl_h, store_h, x509_h)


def declared(header: ModuleType) -> list[str]:
    """The functions of OpenSSL that a module of headers has prototypes of."""
    return [
        name
        for name, value in vars(header).items()
        if isinstance(value, Absent) or hasattr(value, "argtypes")
    ]


@dataclass
class Handshake:
    """Both ends of a connection, after the handshake."""

    server: ssl.SSLObject
    client: ssl.SSLObject

    @property
    def resumed(self) -> bool:
        """Whether an earlier session was used."""
        assert self.server.session_reused == self.client.session_reused
        return bool(self.server.session_reused)

    @property
    def session(self) -> ssl.SSLSession:
        """What the client needs to resume the session."""
        session = self.client.session
        assert session is not None
        return session

    @property
    def cipher(self) -> str:
        """The name of the cipher in use."""
        cipher = self.server.cipher()
        assert cipher is not None
        return cipher[0]


def shake_hands(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    session: ssl.SSLSession | None = None,
    *,
    name: str | None = "localhost",
) -> Handshake:
    """Do a handshake, let the client read its tickets, and say goodbye.

    Without a goodbye, OpenSSL would not let the session be resumed.

    Raises:
      ssl.SSLError: what the end that noticed first had to say.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = server.wrap_bio(up, down, server_side=True)
    there = client.wrap_bio(down, up, server_hostname=name, session=session)
    waiting = [there, here, there, here]
    while waiting:
        try:
            waiting[0].do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(waiting[0])
        del waiting[0]
        assert len(waiting) < 100
    here.write(b"x")
    assert there.read(1) == b"x"
    with contextlib.suppress(ssl.SSLWantReadError):
        here.unwrap()
    return Handshake(here, there)


class Certificates:
    """Certificates of one CA, and their keys, in files of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA(key_type=KeyType.ECDSA)
        self.ca.cert_pem.write_to_path(directory / "ca.pem")
        self.issue("ec", KeyType.ECDSA)

    def issue(
        self,
        name: str,
        kind: KeyType = KeyType.ECDSA,
        ca: trustme.CA | None = None,
        *,
        begins: datetime | None = None,
        ends: datetime | None = None,
    ) -> trustme.LeafCert:
        """Write NAME.pem, with its chain, and NAME.key."""
        made = (ca or self.ca).issue_cert(
            "localhost",
            common_name=name,
            key_type=kind,
            not_before=begins,
            not_after=ends,
        )
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        (self.directory / f"{name}.pem").write_bytes(chain)
        made.private_key_pem.write_to_path(self.directory / f"{name}.key")
        return made

    def revoke(self, *names: str) -> bytes:
        """The CA's list of the certificates that it has revoked, in PEM."""
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        now = datetime.now(UTC)
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(now - timedelta(days=1))
            .next_update(now + timedelta(days=1))
        )
        for name in names:
            wrong = x509.load_pem_x509_certificate(self.text(f"{name}.pem").encode())
            made = made.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(wrong.serial_number)
                .revocation_date(now)
                .build()
            )
        signed = made.sign(key, hashes.SHA256())  # type: ignore[arg-type] # trustme's keys can sign
        return signed.public_bytes(serialization.Encoding.PEM)

    def path(self, name: str) -> str:
        """The full name of a file."""
        return str(self.directory / name)

    def text(self, name: str) -> str:
        """What a file holds."""
        return (self.directory / name).read_text()

    def write(self, name: str, content: str | bytes) -> str:
        """Make a file; its full name."""
        octets = content.encode() if isinstance(content, str) else content
        (self.directory / name).write_bytes(octets)
        return self.path(name)

    def client(
        self, *, version: ssl.TLSVersion | None = None, own: str | None = None
    ) -> ssl.SSLContext:
        """A client that trusts the CA; one version only, with a certificate."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if own is not None:
            context.load_cert_chain(self.path(f"{own}.pem"), self.path(f"{own}.key"))
        return context
