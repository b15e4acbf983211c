"""What a certificate says, read by `cryptography`, in OpenSSL's words.

Dates and kinds of keys are read here for all Pythons, names for those whose OpenSSL
cannot be called: the text of a name is OpenSSL's, and `cryptography` reads less than it.

Importing `cryptography` costs a start about 30 ms, so this module is imported where a
certificate is at hand.
"""

from __future__ import annotations

import _ssl  # CPython's half of `ssl`: OpenSSL's names of objects
import hashlib
import re
import ssl

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID

from mailproxy.net.openssl.material import Validity
from mailproxy.net.openssl.peers import PeerCertificate, ServerCertificate

_BIT_STRING = x509.name._ASN1Type.BitString  # noqa: SLF001 - not text, and rare
_ESCAPED = re.compile(rb'^[ #](?=.)|[,+"\\<>;]| \Z', re.DOTALL)
_HEX = re.compile(rb"[\x00-\x1f\x7f-\xff]")


def _certificate(der: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises:
      ValueError: OpenSSL accepts more than `cryptography` can read.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except x509.InvalidVersion as error:  # which is no ValueError
        raise ValueError("the version of the certificate is unknown") from error


def validity(der: bytes) -> Validity:
    """When a certificate is valid."""
    try:
        certificate = _certificate(der)
        return Validity(
            certificate.not_valid_before_utc, certificate.not_valid_after_utc
        )
    except ValueError:
        return Validity(None, None)


def server_certificate(der: bytes) -> ServerCertificate | None:
    """A certificate as PROXY headers describe the server's own; None: unreadable."""
    try:
        certificate = _certificate(der)
        kind = _key(certificate)
    except ValueError:
        return None
    oid = certificate.signature_algorithm_oid
    signature = _short_name(oid) or oid.dotted_string
    return ServerCertificate(signature.encode(), kind.encode())


def _key(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return ""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC{key.key_size}"
    return f"DSA{key.key_size}" if isinstance(key, dsa.DSAPublicKey) else ""


def _short_name(oid: x509.ObjectIdentifier) -> str | None:
    """OpenSSL's short name of an object (``CN``, ``RSA-SHA256``) that it knows."""
    try:
        return _ssl.txt2obj(oid.dotted_string)[1]
    except ValueError:
        return None


def peer_certificate(der: bytes) -> PeerCertificate:
    """A client's certificate as OpenSSL shows it.

    Raises:
      ValueError: OpenSSL accepts more than `cryptography` can read.
    """
    certificate = _certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    serial = f"{certificate.serial_number:X}"
    return PeerCertificate(
        subject=rfc2253(certificate.subject),
        issuer=rfc2253(certificate.issuer),
        common_name=_octets(names[0]) if names else b"",
        serial=(serial if len(serial) % 2 == 0 else f"0{serial}").encode(),
        fingerprint=hashlib.sha1(der, usedforsecurity=False).hexdigest().encode(),
        pem=ssl.DER_cert_to_PEM_cert(der).encode(),
    )


def rfc2253(name: x509.Name) -> bytes:
    """A name as OpenSSL prints it with XN_FLAG_RFC2253: last part first."""
    text = b""
    for rdn in reversed(list(name.rdns)):
        parts = [_attribute(each) for each in reversed(list(rdn))]
        text += (b"," if text else b"") + b"+".join(parts)
    return text


def _attribute(attribute: x509.NameAttribute[str | bytes]) -> bytes:
    name = _short_name(attribute.oid)
    if name is None or attribute._type is _BIT_STRING:  # noqa: SLF001 - see above
        oid = name or attribute.oid.dotted_string
        return f"{oid}=#{_value_der(attribute).hex().upper()}".encode()
    value = _ESCAPED.sub(lambda match: b"\\" + match[0], _octets(attribute))
    value = _HEX.sub(lambda match: b"\\%02X" % match[0][0], value)
    return name.encode() + b"=" + value


def _octets(attribute: x509.NameAttribute[str | bytes]) -> bytes:
    value = attribute.value
    return value.encode() if isinstance(value, str) else value


def _value_der(attribute: x509.NameAttribute[str | bytes]) -> bytes:
    """The value as the certificate holds it: what is left without what is around it."""
    pair = x509.Name([attribute]).public_bytes()
    for _ in range(3):  # the sequence, its set, the pair in it
        pair = _content(pair)
    return _after_first(pair)


def _content(der: bytes) -> bytes:
    """The inside of the first value."""
    return der[_header(der) :]


def _after_first(der: bytes) -> bytes:
    """What follows the first value, an object identifier shorter than 128 octets."""
    return der[_header(der) + der[1] :]


def _header(der: bytes) -> int:
    return 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
