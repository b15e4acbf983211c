"""Who the peer of a TLS connection is, and what was agreed with it.

These functions are for connections of a builder's contexts, after their handshakes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import ssl
from ctypes import byref, c_char_p, c_void_p
from dataclasses import dataclass

from mailproxy.net.openssl import notes
from mailproxy.net.openssl.headers import crypto_h, pem_h, ssl_h, x509_h
from mailproxy.net.openssl.headers.types import BIO, X509_NAME
from mailproxy.net.openssl.library import encoded, owned, ssl_of, unreachable
from mailproxy.net.openssl.plain import PortableContext, PortableSocket

UNTRUSTED = frozenset((
    x509_h.X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT,
    x509_h.X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
    x509_h.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    x509_h.X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    x509_h.X509_V_ERR_CERT_UNTRUSTED,
))  # fmt: skip
"""Results of `verify_result` which say only that no CA that we know has signed the
certificate, which may be good (nginx: ngx_ssl_verify_error_optional)."""


@dataclass(frozen=True)
class PeerCertificate:
    """A client's certificate, as auth requests and PROXY headers show it."""

    subject: bytes
    """RFC 2253: last part first, non-ASCII as ``\\C3\\9C``."""
    issuer: bytes
    """As `subject`."""
    common_name: bytes
    """CN of the subject in UTF-8; empty if it has none."""
    serial: bytes
    """Upper-case hexadecimal, with an even number of digits."""
    fingerprint: bytes
    """SHA-1 in lower-case hexadecimal."""
    pem: bytes


def peer_certificate(tls: ssl.SSLSocket | ssl.SSLObject) -> PeerCertificate | None:
    """Return the certificate that the client sent now or when the TLS session began.

    None if it sent none.
    """
    der = tls.getpeercert(binary_form=True)
    if der is None:
        return None
    if isinstance(tls.context, PortableContext):
        return _portable_certificate(der)
    return describe(der)


def describe(der: bytes) -> PeerCertificate:
    """Describe a certificate, which OpenSSL has accepted, in OpenSSL's words."""
    certificate = x509_h.d2i_X509(None, byref(c_char_p(der)), len(der))
    with (
        owned(certificate, x509_h.X509_free),
        owned(pem_h.BIO_new(pem_h.BIO_s_mem()), pem_h.BIO_free) as bio,
    ):
        subject = x509_h.X509_get_subject_name(certificate)
        x509_h.X509_NAME_print_ex(bio, subject, 0, x509_h.XN_FLAG_RFC2253)
        subject_text = _written(bio)
        x509_h.X509_NAME_print_ex(
            bio, x509_h.X509_get_issuer_name(certificate), 0, x509_h.XN_FLAG_RFC2253
        )
        issuer_text = _written(bio)
        x509_h.i2a_ASN1_INTEGER(bio, x509_h.X509_get_serialNumber(certificate))
        return PeerCertificate(
            subject=subject_text,
            issuer=issuer_text,
            common_name=_common_name(subject),
            serial=_written(bio).replace(b"\\\n", b""),  # OpenSSL folds long ones
            fingerprint=hashlib.sha1(der, usedforsecurity=False).hexdigest().encode(),
            pem=ssl.DER_cert_to_PEM_cert(der).encode(),
        )


def _portable_certificate(der: bytes) -> PeerCertificate:
    from mailproxy.net.openssl import certificates  # see there

    return certificates.peer_certificate(der)


def _written(bio: BIO) -> bytes:
    """Read what has been written to a memory BIO since the last call."""
    buffer = ctypes.create_string_buffer(
        pem_h.BIO_ctrl(bio, pem_h.BIO_CTRL_PENDING, 0, None)
    )
    size = pem_h.BIO_read(bio, buffer, len(buffer))
    return buffer.raw[: max(size, 0)]


def _common_name(name: X509_NAME) -> bytes:
    index = x509_h.X509_NAME_get_index_by_NID(name, x509_h.NID_commonName, -1)
    if index < 0:
        return b""
    text = c_void_p()
    value = x509_h.X509_NAME_ENTRY_get_data(x509_h.X509_NAME_get_entry(name, index))
    size = x509_h.ASN1_STRING_to_UTF8(byref(text), value)
    if size < 0 or text.value is None:
        crypto_h.ERR_clear_error()
        return b""
    found = ctypes.string_at(text.value, size)
    crypto_h.CRYPTO_free(text.value, None, 0)
    return found


def verify_result(tls: ssl.SSLSocket | ssl.SSLObject) -> tuple[int, str]:
    """Return OpenSSL's verdict on the client's certificate, and its text.

    The verdict is 0 if the certificate is good, or if there is none.
    """
    context = tls.context
    if isinstance(context, PortableContext):
        return _portable_verdict(context, tls)
    code = ssl_h.SSL_get_verify_result(ssl_of(tls))
    return code, (x509_h.X509_verify_cert_error_string(code) or b"").decode()


def _portable_verdict(
    context: PortableContext, tls: ssl.SSLSocket | ssl.SSLObject
) -> tuple[int, str]:
    verdict = context.judge_chain(tls)
    try:
        peer_certificate(tls)
    except ValueError:
        # The certificate is unreadable, so the auth server cannot be told whose it is.
        return (
            x509_h.X509_V_ERR_UNSPECIFIED,
            "unspecified certificate verification error",
        )
    return verdict


def remove_session(tls: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Remove the TLS session of a client that must not resume it."""
    if isinstance(tls.context, PortableContext):
        return  # the context remembers the sessions that it has rejected
    connection = ssl_of(tls)
    session = ssl_h.SSL_get_session(connection)
    if session:
        ssl_h.SSL_CTX_remove_session(ssl_h.SSL_get_SSL_CTX(connection), session)


def say_goodbye(tls: ssl.SSLSocket) -> None:
    """Send close_notify (RFC 8446, section 6.1), without waiting for that of the peer.

    It is only a courtesy: the peer may be gone or slow. ``unwrap()`` of `ssl` would look
    for the peer's, too, and raise an exception if it is not there, which is costly.

    Raises:
      OSError, ValueError: the connection is broken.
    """
    if isinstance(tls.context, PortableContext) or unreachable() is not None:
        tls.unwrap()
    elif ssl_h.SSL_shutdown(ssl_of(tls)) < 0:
        crypto_h.ERR_clear_error()


def server_name(tls: ssl.SSLSocket | ssl.SSLObject) -> bytes | None:
    """Return the name that the client asked for by SNI, unchecked, or None."""
    if isinstance(tls.context, PortableContext):
        return tls.hello.server_name if isinstance(tls, PortableSocket) else None
    return ssl_h.SSL_get_servername(ssl_of(tls), ssl_h.TLSEXT_NAMETYPE_host_name)


def handshake_notes(tls: ssl.SSLSocket | ssl.SSLObject) -> list[notes.Note]:
    """Return, once, what was noted when certificates were chosen by name."""
    try:
        return notes.take(ssl_of(tls))
    except ValueError:  # it is closed
        return []


@dataclass(frozen=True)
class ServerCertificate:
    """The certificate that this end has sent, as PROXY headers describe it."""

    signature: bytes
    """The algorithm of its signature, by OpenSSL's name: ``RSA-SHA256``."""
    key: bytes
    """The kind and size of its key, ``RSA2048`` or ``EC256``; empty for other kinds."""


def server_certificate(tls: ssl.SSLSocket | ssl.SSLObject) -> ServerCertificate | None:
    """Return the certificate that this end of the connection sent, or None.

    It is also None for a `PortableContext` with several certificates, which cannot
    tell which of them was sent.
    """
    context = tls.context
    if isinstance(context, PortableContext):
        return context.own[0] if len(context.own) == 1 else None
    certificate = ssl_h.SSL_get_certificate(ssl_of(tls))
    if not certificate:
        return None
    return _server_certificate(encoded(certificate, x509_h.i2d_X509))


@functools.lru_cache(maxsize=64)
def _server_certificate(der: bytes) -> ServerCertificate | None:
    from mailproxy.net.openssl import certificates  # see there

    return certificates.server_certificate(der)


def key_digest(tls: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    """Return the SHA-256 of the peer's key, its SubjectPublicKeyInfo; empty without one."""
    der = tls.getpeercert(binary_form=True)
    return b"" if der is None else _key_digest(der)


@functools.lru_cache(maxsize=64)
def _key_digest(der: bytes) -> bytes:
    """See `key_digest`; the fields of a certificate are those of RFC 5280, section 4.1."""
    start, _ = _content(der, 0)
    at, _ = _content(der, start)
    if der[at] == _VERSION_TAG:
        at = sum(_content(der, at))
    for _field in ("serialNumber", "signature", "issuer", "validity", "subject"):
        at = sum(_content(der, at))
    return hashlib.sha256(der[at : sum(_content(der, at))]).digest()


_VERSION_TAG = 0xA0
_LONG_FORM = 0x80
"""The bit in the first octet of a DER length that is not the length itself (X.690,
section 8.1.3)."""


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the value at `at` begins, and its size."""
    size = der[at + 1]
    start = at + 2
    if size & _LONG_FORM:
        octets = size & ~_LONG_FORM
        size = int.from_bytes(der[start : start + octets], "big")
        start += octets
    return start, size
