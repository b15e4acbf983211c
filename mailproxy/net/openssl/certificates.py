"""What a certificate says, read by `cryptography`, in OpenSSL's words.

Only for Pythons whose OpenSSL cannot be called; importing `cryptography` takes as long
as all the rest of a start.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import NameOID

from mailproxy.net.openssl.material import Validity
from mailproxy.net.openssl.peers import PeerCertificate, ServerCertificate

_NAMES = {
    NameOID.COMMON_NAME: "CN",
    NameOID.SURNAME: "SN",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.COUNTRY_NAME: "C",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.STREET_ADDRESS: "street",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.TITLE: "title",
    NameOID.GIVEN_NAME: "GN",
    NameOID.INITIALS: "initials",
    NameOID.GENERATION_QUALIFIER: "generationQualifier",
    NameOID.X500_UNIQUE_IDENTIFIER: "x500UniqueIdentifier",
    NameOID.DN_QUALIFIER: "dnQualifier",
    NameOID.PSEUDONYM: "pseudonym",
    NameOID.USER_ID: "UID",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.UNSTRUCTURED_NAME: "unstructuredName",
    NameOID.POSTAL_CODE: "postalCode",
    NameOID.BUSINESS_CATEGORY: "businessCategory",
    NameOID.ORGANIZATION_IDENTIFIER: "organizationIdentifier",
}
"""OpenSSL's short names of what a name is made of."""
_SIGNATURES = {
    "1.2.840.113549.1.1.4": "RSA-MD5",
    "1.2.840.113549.1.1.5": "RSA-SHA1",
    "1.2.840.113549.1.1.10": "RSASSA-PSS",
    "1.2.840.113549.1.1.11": "RSA-SHA256",
    "1.2.840.113549.1.1.12": "RSA-SHA384",
    "1.2.840.113549.1.1.13": "RSA-SHA512",
    "1.2.840.113549.1.1.14": "RSA-SHA224",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.1": "ecdsa-with-SHA224",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.3.101.112": "ED25519",
    "1.3.101.113": "ED448",
}
"""OpenSSL's short names of algorithms."""
_BIT_STRING = x509.name._ASN1Type.BitString  # noqa: SLF001 - not text, and rare
_ESCAPED = re.compile(rb'^[ #](?=.)|[,+"\\<>;]| \Z', re.DOTALL)
_HEX = re.compile(rb"[\x00-\x1f\x7f-\xff]")


def validity(certificate: x509.Certificate) -> Validity:
    """When a certificate is valid."""
    return Validity(
        _moment(certificate.not_valid_before_utc),
        _moment(certificate.not_valid_after_utc),
    )


def _moment(time: datetime) -> tuple[int, ...]:
    return tuple(time.utctimetuple()[:6])


def server_certificate(certificate: x509.Certificate) -> ServerCertificate:
    """A certificate as PROXY headers describe the server's own."""
    oid = certificate.signature_algorithm_oid.dotted_string
    key = certificate.public_key()
    kind = ""
    if isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        kind = f"EC{key.key_size}"
    elif isinstance(key, dsa.DSAPublicKey):
        kind = f"DSA{key.key_size}"
    return ServerCertificate(_SIGNATURES.get(oid, oid).encode(), kind.encode())


def peer_certificate(der: bytes) -> PeerCertificate:
    """A client's certificate as OpenSSL shows it.

    Raises:
      ValueError: OpenSSL accepts more than `cryptography` can read.
    """
    certificate = x509.load_der_x509_certificate(der)
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
    name = _NAMES.get(attribute.oid)
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
