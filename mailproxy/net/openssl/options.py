"""The options that nginx sets in every context, from `ssl` where it has their names."""

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
"""The options that disable the versions of `ssl_protocols`."""
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
"""0 for older versions of OpenSSL, which do not compress certificates."""


def with_protocols(options: int, protocols: Collection[str]) -> int:
    """Return `options` as nginx sets them, for versions as in `ssl_protocols`."""
    options |= ALWAYS
    for name, refusal in REFUSALS.items():
        options = options & ~refusal if name in protocols else options | refusal
    return options


def set_options(context: ssl.SSLContext, options: int) -> None:
    """Set exactly these options in a context."""
    with warnings.catch_warnings():
        # `ssl` wants a range of versions; ssl_protocols may have gaps.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.options = ssl.Options(options)
