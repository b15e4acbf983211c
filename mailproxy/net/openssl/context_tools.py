"""What is done with the certificates of a context after it was made."""

from __future__ import annotations

import ssl

from mailproxy.net.openssl import identities
from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import crypto_h, ssl_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.openssl.library import ctx_of
from mailproxy.net.openssl.pairs import Pair

_ALL_ALGORITHMS = 0


def refusal_of(pair: Pair, context: ssl.SSLContext) -> str:
    """Return why OpenSSL refuses a pair for connections of a context, or ""."""
    try:
        identities.check(pair, ctx_of(context))
    except OpenSSLError as error:
        return str(error)
    return ""


def renew_default(context: ssl.SSLContext, pair: Pair, *, compressed: bool) -> None:
    """Replace the certificate of a context that has a key of the same kind.

    Connections that exist keep theirs; so do tickets and the session id context.

    Args:
      compressed: compress it beforehand (RFC 8879), as the one before was.

    Raises:
      OpenSSLError: OpenSSL refuses it.
    """
    ctx = ctx_of(context)
    if not identities.Identity(pair).use_by_default(ctx):
        raise failure("SSL_CTX_use_cert_and_key() failed")
    if compressed and has(ssl_h.SSL_CTX_compress_certs):
        ssl_h.SSL_CTX_compress_certs(ctx, _ALL_ALGORITHMS)
        crypto_h.ERR_clear_error()
