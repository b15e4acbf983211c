"""The options that nginx sets in every context; what `ssl` names is taken from there."""

import ssl
import warnings
from collections.abc import Collection

from mailproxy.net.openssl.headers.ssl_h import (
    SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS,
    SSL_OP_NO_ANTI_REPLAY,
    SSL_OP_NO_TX_CERTIFICATE_COMPRESSION,
)

REFUSALS: dict[str, int] = {
    "SSLv3": ssl.OP_NO_SSLv3,
    "TLSv1": ssl.OP_NO_TLSv1,
    "TLSv1.1": ssl.OP_NO_TLSv1_1,
    "TLSv1.2": ssl.OP_NO_TLSv1_2,
    "TLSv1.3": ssl.OP_NO_TLSv1_3,
}
"""What keeps a version of `ssl_protocols` from being spoken."""
ALWAYS: int = (
    ssl.OP_IGNORE_UNEXPECTED_EOF
    | ssl.OP_NO_COMPRESSION
    | ssl.OP_NO_RENEGOTIATION
    | SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS
    | SSL_OP_NO_ANTI_REPLAY
)
NO_CERTIFICATE_COMPRESSION: int = (
    SSL_OP_NO_TX_CERTIFICATE_COMPRESSION if ssl.OPENSSL_VERSION_INFO >= (3, 2) else 0
)
"""An older OpenSSL compresses nothing."""


def with_protocols(options: int, protocols: Collection[str]) -> int:
    """Options as nginx has them, for versions as in `ssl_protocols`."""
    options |= ALWAYS
    for name, refusal in REFUSALS.items():
        options = options & ~refusal if name in protocols else options | refusal
    return options


def set_options(context: ssl.SSLContext, options: int) -> None:
    """Give a context these options and no others."""
    with warnings.catch_warnings():
        # `ssl` wants a range of versions; ssl_protocols may have gaps.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.options = ssl.Options(options)
