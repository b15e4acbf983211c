"""The options of OpenSSL (SSL_OP_…, ssl.h) that nginx sets in every context."""

NO_CERTIFICATE_COMPRESSION = 1 << 32
CIPHER_SERVER_PREFERENCE = 0x400000
REFUSALS = {
    "SSLv3": 1 << 25,
    "TLSv1": 1 << 26,
    "TLSv1.1": 1 << 28,
    "TLSv1.2": 1 << 27,
    "TLSv1.3": 1 << 29,
}
"""What keeps a version of `ssl_protocols` from being spoken."""

_IGNORE_UNEXPECTED_EOF = 0x80
_DONT_INSERT_EMPTY_FRAGMENTS = 0x800
_NO_COMPRESSION = 0x20000
_NO_ANTI_REPLAY = 0x1000000
_NO_RENEGOTIATION = 0x40000000
ALWAYS = (
    _IGNORE_UNEXPECTED_EOF
    | _DONT_INSERT_EMPTY_FRAGMENTS
    | _NO_COMPRESSION
    | _NO_ANTI_REPLAY
    | _NO_RENEGOTIATION
)
