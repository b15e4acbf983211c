"""The contents of certificates, read by `cryptography`, in OpenSSL's words.

Dates and kinds of keys are read here for all Pythons. Names are read here only if
OpenSSL cannot be called: their texts are OpenSSL's, and it reads more of them than
`cryptography` does.

Importing `cryptography` adds about 30 ms to a start, so this module is imported only
where there is a certificate to read.
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

from mailproxy.net.openssl.names import certified_name
from mailproxy.net.openssl.pairs import Leaf
from mailproxy.net.openssl.peers import PeerCertificate, ServerCertificate

_BIT_STRING = x509.name._ASN1Type.BitString  # noqa: SLF001 - values that are not text
_ESCAPED = re.compile(rb'^[ #](?=.)|[,+"\\<>;]| \Z', re.DOTALL)
_HEX = re.compile(rb"[\x00-\x1f\x7f-\xff]")
_LONG_FORM = 0x80
"""The bit in the first octet of a DER length that is not the length itself (X.690,
section 8.1.3)."""


def _certificate(der: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises:
      ValueError: `cryptography` cannot read it, although OpenSSL accepts it.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except x509.InvalidVersion as error:  # not a ValueError
        raise ValueError("the version of the certificate is unknown") from error


def leaf(der: bytes) -> Leaf:
    """Return what a server's certificate says, as far as `cryptography` can read it."""
    dates = Leaf()
    try:
        certificate = _certificate(der)
        dates = Leaf(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        return read_leaf(certificate)
    except ValueError:
        return dates


def read_leaf(certificate: x509.Certificate) -> Leaf:
    """Return what a server's certificate says.

    Raises:
      ValueError: an extension is unreadable.
    """
    names, has_alt_names = _host_names(certificate)
    kind, bits = _kind(certificate)
    return Leaf(
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        names=names,
        kind=kind,
        bits=bits,
        has_alt_names=has_alt_names,
        must_staple=_must_staple(certificate),
    )


def _host_names(certificate: x509.Certificate) -> tuple[tuple[str, ...], bool]:
    """Return the names that clients may ask for, and whether they are alternative ones."""
    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.DNSName)
        has_alt_names = True
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = [str(each.value) for each in common[-1:]]
        has_alt_names = False
    names = filter(None, map(certified_name, found))
    return tuple(dict.fromkeys(names)), has_alt_names


def _must_staple(certificate: x509.Certificate) -> bool:
    try:
        wanted = certificate.extensions.get_extension_for_class(x509.TLSFeature)
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in wanted.value


def _kind(certificate: x509.Certificate) -> tuple[str, int]:
    """Return the kind of a key, and its size if there are several."""
    try:
        key = certificate.public_key()
    except UnsupportedAlgorithm:
        return "", 0
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ECDSA", key.key_size
    # Ed25519PublicKey, MLDSA65PublicKey
    name = type(key).__name__.removesuffix("PublicKey")
    return name.replace("MLDSA", "ML-DSA-"), 0


def server_certificate(der: bytes) -> ServerCertificate | None:
    """Describe the server's certificate for PROXY headers; None if it is unreadable."""
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
    """Return OpenSSL's short name of an object (``CN``, ``RSA-SHA256``), if any."""
    try:
        return _ssl.txt2obj(oid.dotted_string)[1]
    except ValueError:
        return None


def peer_certificate(der: bytes) -> PeerCertificate:
    """Describe a client's certificate as OpenSSL does.

    Raises:
      ValueError: `cryptography` cannot read it, although OpenSSL accepts it.
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
    """Format a name as OpenSSL does with XN_FLAG_RFC2253: last part first."""
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
    """Return the value as the certificate encodes it, without what encloses it."""
    pair = x509.Name([attribute]).public_bytes()
    for _ in range(3):  # the sequence, its set, the pair in it
        pair = _content(pair)
    return _after_first(pair)


def _content(der: bytes) -> bytes:
    """Return the content of the first value."""
    return der[_header(der) :]


def _after_first(der: bytes) -> bytes:
    """Return what follows the first value, an OID shorter than 128 octets."""
    return der[_header(der) + der[1] :]


def _header(der: bytes) -> int:
    return 2 if der[1] < _LONG_FORM else 2 + (der[1] & ~_LONG_FORM)
