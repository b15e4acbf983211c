"""Certificates with their keys, as values: who they are for, and until when."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a server's certificate says of itself."""

    begins: datetime | None = None
    """When it becomes valid; None if that cannot be read, and does not limit it."""
    ends: datetime | None = None
    """The last second in which it is valid; None as above."""
    names: tuple[str, ...] = ()
    """The host names that it is for, in lower case; ``*.`` may stand in front."""
    kind: str = ""
    """The kind of its key: RSA, ECDSA, Ed25519; empty if it is unknown."""
    bits: int = 0
    """The size of its key; 0 if kinds of that name have one size."""
    has_alt_names: bool = True
    """Whether it has a subjectAltName; without, its name is the common name."""
    must_staple: bool = False
    """Whether clients may want a stapled OCSP response with it (RFC 7633)."""

    def is_valid(self, now: datetime) -> bool:
        """Return whether it is valid at a time."""
        early = self.begins is not None and now < self.begins
        return not early and (self.ends is None or now <= self.ends)

    @property
    def age_rank(self) -> tuple[float, float]:
        """Sorts younger certificates, and of those the longer lasting, to the front."""
        begins = (self.begins or datetime.min.replace(tzinfo=UTC)).timestamp()
        ends = (self.ends or datetime.max.replace(tzinfo=UTC)).timestamp()
        return -begins, begins - ends

    @property
    def key_text(self) -> str:
        """The kind and the size of its key, for people: ``RSA 2048``."""
        return f"{self.kind} {self.bits}" if self.bits else self.kind


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A certificate, its chain and its key, ready to be used in handshakes.

    Two pairs are equal only if they are the same object, so they are cheap keys.
    """

    file: str
    """Where the certificate is."""
    key_file: str
    """Where its key is."""
    leaf: Leaf
    der: bytes = field(repr=False)
    """The certificate in DER."""
    chain: tuple[bytes, ...] = field(repr=False)
    """The certificates of its CAs in DER, in the order in which they are sent."""
    key: bytes = field(repr=False)
    """The private key in DER, not encrypted: as RSAPrivateKey (RFC 8017), ECPrivateKey
    (RFC 5915), or else PKCS#8."""

    def same_as(self, other: Pair | None) -> bool:
        """Return whether clients would see no difference."""
        return other is not None and (self.der, self.chain, self.key, self.file) == (
            other.der,
            other.chain,
            other.key,
            other.file,
        )
