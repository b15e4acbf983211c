"""PEM files of certificates and keys, taken apart by `cryptography`.

It is many times faster than OpenSSL 3.0, which takes more than a millisecond for a key.
Importing it takes 30 ms, so this module is imported only if it is needed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
    PublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

_PEM = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----(?P<body>[^-]*(?:-[^-]+)*)"
    rb"-----END (?P=label)-----"
)
"""A single ``-`` may stand in a header of an encrypted key."""
_CERTIFICATES = frozenset((b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"))
_KEY = b"PRIVATE KEY"
_RSASSA_PSS = bytes.fromhex("06092a864886f70d01010a")
"""The algorithm of RSA keys that may only sign by RSASSA-PSS (RFC 4055), in DER."""
_HEAD = 32
"""Octets of a key in PKCS#8 within which its algorithm begins."""


@dataclass(frozen=True, slots=True)
class Extract:
    """What of a file matters."""

    chain: tuple[bytes, ...] = field(default=(), repr=False)
    """Its certificates in DER, in their order."""
    keys: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Its keys: the public part, and the key itself."""
    locked: bool = False
    """It has a key that no password opens."""
    broken: bool = False
    """It has something that cannot be parsed."""


_NOTHING = Extract()


class Reader:
    """Takes files apart.

    Args:
      passwords: for encrypted keys, tried in turn.
    """

    def __init__(self, passwords: Sequence[bytes]) -> None:
        self._passwords = passwords
        self._known: dict[bytes, bytes] = {}
        """Certificates: those of CAs stand in many files."""

    def extract(self, content: bytes) -> Extract:
        """Return what a file has."""
        if b"-----BEGIN" not in content:
            return _NOTHING
        chain: list[bytes] = []
        keys: list[tuple[bytes, bytes]] = []
        blocks, locked, broken = 0, False, False
        for found in _PEM.finditer(content):
            label = found["label"]
            blocks += 1
            try:
                if label in _CERTIFICATES:
                    der = _certificate_der(label, found["body"])
                    chain.append(self._known.setdefault(der, der))
                elif label.endswith(_KEY):
                    key = self._key(found[0], label, found["body"])
                    locked = locked or key is None
                    keys += () if key is None else (key,)
            except (ValueError, TypeError, UnsupportedAlgorithm):
                broken = True  # TypeError: of `cryptography`, about passwords
        # A block that does not end is not found above.
        broken = broken or blocks != content.count(b"-----BEGIN ")
        return Extract(tuple(chain), tuple(keys), locked, broken)

    def _key(
        self, text: bytes, label: bytes, body: bytes
    ) -> tuple[bytes, bytes] | None:
        if label == b"ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in body:
            unlocked = self._unlock(text)
            if unlocked is None:
                return None
            return public_der(unlocked.public_key()), _key_der(unlocked)
        der = _decoded(body)
        key = serialization.load_der_private_key(
            der, None, unsafe_skip_rsa_key_validation=True
        )
        if _RSASSA_PSS not in der[:_HEAD]:  # which `cryptography` drops
            der = _key_der(key)
        return public_der(key.public_key()), der

    def _unlock(self, text: bytes) -> PrivateKeyTypes | None:
        for password in self._passwords:
            try:
                return serialization.load_pem_private_key(
                    text, password, unsafe_skip_rsa_key_validation=True
                )
            except (ValueError, TypeError):  # the wrong password, or an empty one
                continue
        return None


def _decoded(body: bytes) -> bytes:
    return base64.b64decode(b"".join(body.split()), validate=True)


def _certificate_der(label: bytes, body: bytes) -> bytes:
    der = _decoded(body)
    if label != b"TRUSTED CERTIFICATE":
        return der
    # OpenSSL's own form: what it is trusted for follows behind the certificate.
    if len(der) < 2 or der[1] <= 0x80:
        raise ValueError("not a certificate")
    width = der[1] & 0x7F
    return der[: 2 + width + int.from_bytes(der[2 : 2 + width])]


def public_der(key: PublicKeyTypes | CertificatePublicKeyTypes) -> bytes:
    """Return what two keys have in common that belong together."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _key_der(key: PrivateKeyTypes) -> bytes:
    """Return a key in the form that OpenSSL reads fastest; see `Pair.key`."""
    traditional = isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    form = PrivateFormat.TraditionalOpenSSL if traditional else PrivateFormat.PKCS8
    return key.private_bytes(Encoding.DER, form, NoEncryption())
