"""Pairs as OpenSSL has them, made when they are first used, and kept.

OpenSSL 3.0 takes half a millisecond for a certificate and its key. So of thousands of
certificates a worker makes those that clients ask for, and keeps the last `MAX_KEPT`.
The first `MAX_EAGER` are made when the configuration is loaded, which finds those that
OpenSSL refuses; the workers have them by fork.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from ctypes import byref, c_char_p

from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.headers import crypto_h, ssl_h, x509_h
from mailproxy.net.openssl.headers.types import EVP_PKEY, SSL, SSL_CTX, STACK, X509
from mailproxy.net.openssl.pairs import Pair

MAX_KEPT = 2048
"""Pairs that a process keeps as objects of OpenSSL, of some 10 KiB each."""
MAX_EAGER = 256
"""Pairs that are made when a configuration is loaded."""

_REPLACE = 1
"""An argument of SSL_use_cert_and_key(3): what was set before for this kind of key."""
_KINDS = {"RSA": crypto_h.EVP_PKEY_RSA, "ECDSA": crypto_h.EVP_PKEY_EC}


class Identity:
    """A certificate, its chain and its key in OpenSSL's memory.

    Raises:
      OpenSSLError: OpenSSL cannot read one of them.
    """

    __slots__ = ("_certificate", "_chain", "_issuers", "_key")

    def __init__(self, pair: Pair) -> None:
        self._certificate = X509(0)
        self._key = EVP_PKEY(0)
        self._issuers: list[X509] = []
        self._chain = crypto_h.OPENSSL_sk_new_null()
        crypto_h.ERR_clear_error()
        self._certificate = _certificate(pair.der)
        for der in pair.chain:
            self._issuers.append(_certificate(der))
            crypto_h.OPENSSL_sk_push(self._chain, self._issuers[-1])
        self._key = _key(pair)

    def use(self, ssl: SSL) -> bool:
        """Add it to the certificates of a connection; False if OpenSSL refuses it."""
        return bool(
            ssl_h.SSL_use_cert_and_key(
                ssl, self._certificate, self._key, self._chain, _REPLACE
            )
        )

    def use_by_default(self, ctx: SSL_CTX) -> bool:
        """Replace the context's certificate for this kind of key; False if refused."""
        return bool(
            ssl_h.SSL_CTX_use_cert_and_key(
                ctx, self._certificate, self._key, self._chain, _REPLACE
            )
        )

    def __del__(
        self,
        # At the end of the process, modules may be gone before this object.
        free_certificate: Callable[[X509], None] = x509_h.X509_free,
        free_key: Callable[[EVP_PKEY], None] = crypto_h.EVP_PKEY_free,
        free_stack: Callable[[STACK], None] = crypto_h.OPENSSL_sk_free,
    ) -> None:
        """Drop these references; connections have their own."""
        free_stack(self._chain)
        free_key(self._key)
        for each in (self._certificate, *self._issuers):
            free_certificate(each)


def _certificate(der: bytes) -> X509:
    found = x509_h.d2i_X509(None, byref(c_char_p(der)), len(der))
    if not found:
        raise failure("d2i_X509() failed")
    return found


def _key(pair: Pair) -> EVP_PKEY:
    der, found = pair.key, EVP_PKEY(0)
    kind = _KINDS.get(pair.leaf.kind)
    if kind is not None:
        found = crypto_h.d2i_PrivateKey(kind, None, byref(c_char_p(der)), len(der))
    if not found:
        found = crypto_h.d2i_AutoPrivateKey(None, byref(c_char_p(der)), len(der))
    if not found:
        raise failure("d2i_AutoPrivateKey() failed")
    crypto_h.ERR_clear_error()
    return found


_kept: OrderedDict[Pair, Identity] = OrderedDict()


def identity(pair: Pair) -> Identity:
    """Return a pair in OpenSSL's memory.

    Raises:
      OpenSSLError: OpenSSL cannot read it.
    """
    found = _kept.get(pair)
    if found is not None:
        _kept.move_to_end(pair)
        return found
    found = _kept[pair] = Identity(pair)
    if len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)
    return found


def forget(pairs: Iterable[Pair]) -> None:
    """Free what is kept of pairs that are not used any more."""
    for pair in pairs:
        _kept.pop(pair, None)


def use(pair: Pair, ssl: SSL) -> None:
    """Have a connection use a pair, beside those of other kinds.

    Raises:
      OpenSSLError: OpenSSL refuses it.
    """
    if not identity(pair).use(ssl):
        raise failure("SSL_use_cert_and_key() failed")


def check(pair: Pair, ctx: SSL_CTX) -> None:
    """Check that connections of a context can use a pair.

    Raises:
      OpenSSLError: they cannot: its key is too small for the security level.
    """
    ssl = ssl_h.SSL_new(ctx)
    try:
        use(pair, ssl)
    finally:
        ssl_h.SSL_free(ssl)
