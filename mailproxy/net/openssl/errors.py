"""OpenSSL's errors in nginx's words: ``(SSL: error:0A00010B:SSL routines::…)``."""

from __future__ import annotations

import _ssl  # CPython's half of `ssl`: the numbers of OpenSSL's errors
import ctypes
import functools
import os
import re
import ssl

from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import crypto_h
from mailproxy.net.openssl.library import unreachable

_LIBRARIES = {
    "RSA": crypto_h.ERR_LIB_RSA,
    "DH": crypto_h.ERR_LIB_DH,
    "EVP": crypto_h.ERR_LIB_EVP,
    "PEM": crypto_h.ERR_LIB_PEM,
    "X509": crypto_h.ERR_LIB_X509,
    "ASN1": crypto_h.ERR_LIB_ASN1,
    "CRYPTO": crypto_h.ERR_LIB_CRYPTO,
    "EC": crypto_h.ERR_LIB_EC,
    "SSL": crypto_h.ERR_LIB_SSL,
    "BIO": crypto_h.ERR_LIB_BIO,
    "X509V3": crypto_h.ERR_LIB_X509V3,
    "RAND": crypto_h.ERR_LIB_RAND,
}
"""`ssl.SSLError.library` -> the number of that part of OpenSSL."""
_LIBRARY_TEXTS = {
    crypto_h.ERR_LIB_RSA: "rsa routines",
    crypto_h.ERR_LIB_DH: "Diffie-Hellman routines",
    crypto_h.ERR_LIB_EVP: "digital envelope routines",
    crypto_h.ERR_LIB_PEM: "PEM routines",
    crypto_h.ERR_LIB_X509: "x509 certificate routines",
    crypto_h.ERR_LIB_ASN1: "asn1 encoding routines",
    crypto_h.ERR_LIB_CRYPTO: "common libcrypto routines",
    crypto_h.ERR_LIB_EC: "elliptic curve routines",
    crypto_h.ERR_LIB_SSL: "SSL routines",
    crypto_h.ERR_LIB_BIO: "BIO routines",
    crypto_h.ERR_LIB_X509V3: "X509 V3 routines",
    crypto_h.ERR_LIB_RAND: "random number generator",
}
"""OpenSSL's names of its parts in messages, for when it cannot be called."""
_SSL_AD_REASON_OFFSET = 1000
"""Reasons above this number are alerts that the peer sent."""

_TEXT = re.compile(r"(?:\[[^\]]*\] )?(.*?)(?: \(\w+\.c:\d+\))?", re.DOTALL)
"""`ssl.SSLError.strerror`: ``[SSL: NAME] text of OpenSSL (_ssl.c:1006)``."""

_CLIENT_REASONS: dict[str, int] = {
    name: int(number)
    for name, number in re.findall(
        r"(\w+)=(\d+)",
        """
    NO_SUITABLE_KEY_SHARE=101 BAD_DH_VALUE=102 BAD_CHANGE_CIPHER_SPEC=103
    BAD_KEY_SHARE=108 BAD_EXTENSION=110 BAD_DIGEST_LENGTH=111
    MISSING_SIGALGS_EXTENSION=112 BAD_PACKET_LENGTH=115
    NO_SUITABLE_SIGNATURE_ALGORITHM=118 BAD_KEY_UPDATE=122
    BLOCK_CIPHER_PAD_IS_WRONG=129 CCS_RECEIVED_EARLY=133
    CIPHER_CODE_WRONG_LENGTH=137 DATA_BETWEEN_CCS_AND_FINISHED=145
    DATA_LENGTH_TOO_LONG=146 DIGEST_CHECK_FAILED=149 ENCRYPTED_LENGTH_TOO_LONG=150
    ERROR_IN_RECEIVED_CIPHER_LIST=151 EXCESSIVE_MESSAGE_SIZE=152
    GOT_A_FIN_BEFORE_A_CCS=154 HTTPS_PROXY_REQUEST=155 HTTP_REQUEST=156
    LENGTH_MISMATCH=159 LENGTH_TOO_SHORT=160 NOT_ON_RECORD_BOUNDARY=182
    NO_CIPHERS_SPECIFIED=183 BAD_CIPHER=186 NO_COMPRESSION_SPECIFIED=187
    NO_SHARED_CIPHER=193 PACKET_LENGTH_TOO_LONG=198 RECORD_LENGTH_MISMATCH=213
    SIGNATURE_FOR_NON_SIGNING_CERTIFICATE=220 CLIENTHELLO_TLSEXT=226
    PARSE_TLSEXT=227 CALLBACK_FAILED=234 NO_APPLICATION_PROTOCOL=235
    UNEXPECTED_MESSAGE=244 UNEXPECTED_RECORD=245 UNKNOWN_ALERT_TYPE=246
    UNKNOWN_PROTOCOL=252 BINDER_DOES_NOT_VERIFY=253 MISSING_FATAL=256
    UNSUPPORTED_PROTOCOL=258 WRONG_SSL_VERSION=266 WRONG_VERSION_NUMBER=267
    PATH_TOO_LONG=270 BAD_LENGTH=271 DECRYPTION_FAILED_OR_BAD_RECORD_MAC=281
    APPLICATION_DATA_AFTER_CLOSE_NOTIFY=291 BAD_LEGACY_VERSION=292
    MIXED_HANDSHAKE_AND_NON_HANDSHAKE_DATA=293 RECORD_TOO_SMALL=298
    SSL3_SESSION_ID_TOO_LONG=300 BAD_ECPOINT=306 RENEGOTIATE_EXT_TOO_LONG=335
    RENEGOTIATION_ENCODING_ERR=336 RENEGOTIATION_MISMATCH=337
    UNSAFE_LEGACY_RENEGOTIATION_DISABLED=338 SCSV_RECEIVED_WHEN_RENEGOTIATING=345
    INAPPROPRIATE_FALLBACK=373 NO_SHARED_SIGNATURE_ALGORITHMS=376 CERT_CB_ERROR=377
    VERSION_TOO_LOW=396 TOO_MANY_WARN_ALERTS=409 BAD_RECORD_TYPE=443
    SSLV3_ALERT_UNEXPECTED_MESSAGE=1010 SSLV3_ALERT_BAD_RECORD_MAC=1020
    TLSV1_ALERT_DECRYPTION_FAILED=1021 TLSV1_ALERT_RECORD_OVERFLOW=1022
    SSLV3_ALERT_DECOMPRESSION_FAILURE=1030 SSLV3_ALERT_HANDSHAKE_FAILURE=1040
    SSLV3_ALERT_NO_CERTIFICATE=1041 SSLV3_ALERT_BAD_CERTIFICATE=1042
    SSLV3_ALERT_UNSUPPORTED_CERTIFICATE=1043 SSLV3_ALERT_CERTIFICATE_REVOKED=1044
    SSLV3_ALERT_CERTIFICATE_EXPIRED=1045 SSLV3_ALERT_CERTIFICATE_UNKNOWN=1046
    SSLV3_ALERT_ILLEGAL_PARAMETER=1047 TLSV1_ALERT_UNKNOWN_CA=1048
    TLSV1_ALERT_ACCESS_DENIED=1049 TLSV1_ALERT_DECODE_ERROR=1050
    TLSV1_ALERT_DECRYPT_ERROR=1051 TLSV1_ALERT_EXPORT_RESTRICTION=1060
    TLSV1_ALERT_PROTOCOL_VERSION=1070 TLSV1_ALERT_INSUFFICIENT_SECURITY=1071
    TLSV1_ALERT_INTERNAL_ERROR=1080 TLSV1_ALERT_USER_CANCELLED=1090
    TLSV1_ALERT_NO_RENEGOTIATION=1100
    """,
    )
}
"""Reasons that a client causes, by `ssl.SSLError.reason`."""


def _describe(code: int) -> str:
    buffer = ctypes.create_string_buffer(256)
    crypto_h.ERR_error_string_n(code, buffer, len(buffer))
    return buffer.value.decode("ascii", "replace")


def failure(what: str) -> OpenSSLError:
    """Return an error of `what` and OpenSSL's queue of errors, which is then empty."""
    texts = []
    data, flags = ctypes.c_char_p(), ctypes.c_int()
    where = None, None, None
    while code := crypto_h.ERR_get_error_all(
        *where, ctypes.byref(data), ctypes.byref(flags)
    ):
        text = _describe(code)
        if flags.value & crypto_h.ERR_TXT_STRING and data.value:
            text += ":" + os.fsdecode(data.value)
        texts.append(text)
    return OpenSSLError(f"{what} (SSL: {' '.join(texts)})" if texts else what)


def error_text(error: ssl.SSLError) -> str:
    """Return the text that nginx logs after ``SSL: `` for a failed handshake or read.

    nginx shows all errors that OpenSSL has queued; `ssl` keeps only the last one, which
    is nearly always the only one.
    """
    match = _TEXT.fullmatch(str(error.args[-1])) if error.args else None
    text = match[1] if match is not None else ""
    code = _code(error)
    if not code:
        return f"error:{text}"
    reason = crypto_h.ERR_GET_REASON(code)
    alert = ""
    if reason >= _SSL_AD_REASON_OFFSET:
        alert = f":SSL alert number {reason - _SSL_AD_REASON_OFFSET}"
    if unreachable() is None:
        return _describe(code) + alert
    library = _LIBRARY_TEXTS.get(crypto_h.ERR_GET_LIB(code), "")
    return f"error:{code:08X}:{library}::{text}{alert}"


def is_peers_fault(error: ssl.SSLError) -> bool:
    """Return whether the peer caused an error; nginx does not log it as "crit" then."""
    if isinstance(error, ssl.SSLCertVerificationError) and unreachable() is not None:
        return True  # nginx judges a bad certificate only after the handshake
    return _reason(error) in _CLIENT_REASONS


def _reason(error: ssl.SSLError) -> str:
    """Return the name of an error without its ``SSL_R_``; empty if `ssl` has none."""
    return getattr(error, "reason", None) or ""


def _code(error: ssl.SSLError) -> int:
    """Find the number of an error, which `ssl` does not keep; 0 if it is unknown."""
    library = _LIBRARIES.get(getattr(error, "library", None) or "", 0)
    return _codes(library).get(_reason(error), 0) if library else 0


@functools.cache
def _codes(library: int) -> dict[str, int]:
    """Return the errors of one part of OpenSSL, by `ssl.SSLError.reason`.

    CPython has a table of them, but does not promise to keep it.
    """
    known: dict[tuple[int, int], str] = getattr(_ssl, "err_codes_to_names", {})
    found = {name: reason for (part, reason), name in known.items() if part == library}
    if library == crypto_h.ERR_LIB_SSL:
        found |= _CLIENT_REASONS
    return {name: crypto_h.ERR_PACK(library, each) for name, each in found.items()}
