"""OpenSSL's errors in nginx's words: ``(SSL: error:0A00010B:SSL routines::…)``."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import ssl

from mailproxy.net.openssl.library import OpenSSLError, c

__all__ = ["OpenSSLError", "error_level", "error_text", "failure"]

_SHIFT = 23
_REASON = (1 << _SHIFT) - 1
_TXT_STRING = 2
_LOAD_SSL_STRINGS = 0x00200000
_LIBRARIES = {
    "RSA": 4, "DH": 5, "EVP": 6, "PEM": 9, "X509": 11, "ASN1": 13, "CRYPTO": 15,
    "EC": 16, "SSL": 20, "BIO": 32, "X509V3": 34, "RAND": 36,
}  # fmt: skip
"""`ssl.SSLError.library` -> the number of that part of OpenSSL."""
_MAX_REASON = 1200
_ALERT = 1000
"""Reasons from here on are alerts that the peer sent."""

_TEXT = re.compile(r"(?:\[[^\]]*\] )?(.*?)(?: \(\w+\.c:\d+\))?", re.DOTALL)
"""`ssl.SSLError.strerror`: ``[SSL: NAME] text of OpenSSL (_ssl.c:1006)``."""

_CLIENT_REASONS = frozenset({
    101, 102, 103, 108, 110, 111, 112, 115, 118, 122, 129, 133, 137, 145, 146, 149,
    150, 151, 152, 154, 155, 156, 159, 160, 182, 183, 186, 187, 193, 198, 213, 220,
    226, 227, 234, 235, 244, 245, 246, 252, 253, 256, 258, 266, 267, 270, 271, 281,
    291, 292, 293, 298, 300, 306, 335, 336, 337, 338, 345, 373, 376, 377, 396, 409,
    443, 1000, 1010, 1020, 1021, 1022, 1030, 1040, 1041, 1042, 1043, 1044, 1045,
    1046, 1047, 1048, 1049, 1050, 1051, 1060, 1070, 1071, 1080, 1090, 1100,
})  # fmt: skip
"""Reasons that a client brings about, such as "wrong version number" (267)."""


def _describe(code: int) -> str:
    buffer = ctypes.create_string_buffer(256)
    c.ERR_error_string_n(code, buffer, len(buffer))
    return buffer.value.decode("ascii", "replace")


def failure(what: str) -> OpenSSLError:
    """An error: `what`, and everything in OpenSSL's queue, which is empty then."""
    texts = []
    data, flags = ctypes.c_char_p(), ctypes.c_int()
    where = None, None, None
    while code := c.ERR_get_error_all(*where, ctypes.byref(data), ctypes.byref(flags)):
        text = _describe(code)
        if flags.value & _TXT_STRING and data.value:
            text += ":" + os.fsdecode(data.value)
        texts.append(text)
    return OpenSSLError(f"{what} (SSL: {' '.join(texts)})" if texts else what)


def error_text(error: ssl.SSLError) -> str:
    """What nginx logs after ``SSL: `` for a handshake or a read that failed.

    nginx shows all errors that OpenSSL has queued; `ssl` keeps the last one, which
    nearly always is the only one.
    """
    code = _code(error)
    if not code:
        return f"error:{_openssl_text(error)}"
    reason = code & _REASON
    alert = f":SSL alert number {reason - _ALERT}" if reason >= _ALERT else ""
    return _describe(code) + alert


def error_level(error: ssl.SSLError) -> str:
    """nginx's log level: "info" for what a client brings about, else "crit"."""
    return "info" if _code(error) & _REASON in _CLIENT_REASONS else "crit"


def _openssl_text(error: ssl.SSLError) -> str:
    match = _TEXT.fullmatch(str(error.args[-1])) if error.args else None
    return match[1] if match is not None else ""


def _code(error: ssl.SSLError) -> int:
    """The number of an error, which `ssl` does not keep; 0 if it is not found."""
    library = _LIBRARIES.get(getattr(error, "library", None) or "", 0)
    return _codes(library).get(_openssl_text(error), 0) if library else 0


@functools.cache
def _codes(library: int) -> dict[str, int]:
    """The errors of one part of OpenSSL, by their texts."""
    # OpenSSL has its texts from its first context on, which may be yet to come.
    c.OPENSSL_init_ssl(_LOAD_SSL_STRINGS, None)
    found: dict[str, int] = {}
    for reason in range(1, _MAX_REASON):
        code = library << _SHIFT | reason
        text = c.ERR_reason_error_string(code)
        if text:
            found.setdefault(ctypes.string_at(text).decode("ascii", "replace"), code)
    return found
