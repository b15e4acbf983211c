"""The way from the objects of `ssl` to OpenSSL's, and whether there is one.

An `ssl.SSLContext` is a Python object whose first field is the `SSL_CTX *`; in the
object behind an `ssl.SSLSocket`, the `SSL *` is the second field. CPython promises
neither, so both are verified once, by asking OpenSSL for values that Python has set.

Not every Python shares its OpenSSL: portable builds (uv's among them) carry it inside
and do not export its functions. `unreachable` reports that, and TLS then uses only what
`ssl` offers (portable.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import crypto_h, ssl_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.openssl.headers.types import SSL, SSL_CTX

_Pointer = TypeVar("_Pointer", bound=int)


class NeedsOpenSSLError(OpenSSLError):
    """A directive needs OpenSSL's own functions, which cannot be called.

    Attributes:
      directive: its name.
      remedy: what the operator can do.
    """

    def __init__(self, directive: str) -> None:
        super().__init__(
            f'"{directive}" needs a Python that shares the system\'s OpenSSL'
        )
        self.directive = directive
        self.remedy = (
            f"{unreachable() or 'OpenSSL cannot be called'}; "
            "run mailproxy with the python3 of your distribution"
        )


_MIN_ADDRESS = 4096
_CTX_FIELD = object.__basicsize__
_SSL_FIELD = object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)


def _field(owner: object, offset: int) -> int:
    return ctypes.c_void_p.from_address(id(owner) + offset).value or 0


def ctx_of(context: ssl.SSLContext) -> SSL_CTX:
    """Return the `SSL_CTX *` of a context; only valid if `unreachable` returns None."""
    return SSL_CTX(_field(context, _CTX_FIELD))


def ssl_of(tls: ssl.SSLSocket | ssl.SSLObject) -> SSL:
    """Return the `SSL *` of a connection; only valid if `unreachable` returns None.

    Raises:
      ValueError: the connection was closed.
    """
    inner = tls._sslobj  # type: ignore[union-attr] # noqa: SLF001 - the only way to it
    if inner is None:
        raise ValueError("the TLS connection is closed")
    return SSL(_field(inner, _SSL_FIELD))


def addresses() -> dict[str, int]:
    """Return where the functions are that the compiled core calls (`net/calls.pyx`).

    Only valid if `unreachable` returns None.
    """
    functions = (
        ssl_h.SSL_read_ex,
        ssl_h.SSL_write_ex,
        ssl_h.SSL_get_error,
        ssl_h.SSL_pending,
        crypto_h.ERR_clear_error,
    )
    return {
        each.__name__: ctypes.cast(each, ctypes.c_void_p).value or 0  # type: ignore[arg-type] # a function of ctypes
        for each in functions
    }


@functools.cache
def unsupported() -> str | None:
    """Return why contexts cannot be made with this Python, or None if they can."""
    if ssl.OPENSSL_VERSION_INFO < (3,):
        return f"{ssl.OPENSSL_VERSION} is not supported, TLS needs OpenSSL 3.0"
    return None


@functools.cache
def unreachable() -> str | None:
    """Return why the functions of OpenSSL cannot be called, or None if they can."""
    product = f"{sys.implementation.name} {sys.version.split()[0]}"
    if sys.implementation.name != "cpython":
        return f"{product} is not CPython"
    # Another library of the process may have loaded another OpenSSL.
    if not (has(ssl_h.SSL_CTX_ctrl) and has(crypto_h.OpenSSL_version_num)) or (
        crypto_h.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER
    ):
        return "this Python carries OpenSSL inside"
    if not _layout_is_known():
        return f"the ssl module of {product} has a layout that is not known here"
    return None


def _layout_is_known() -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 5  # rare enough to be recognised
    ctx = ctx_of(context)
    if ctx < _MIN_ADDRESS or ctx % ctypes.sizeof(ctypes.c_void_p):
        return False
    if ssl_h.SSL_CTX_get_num_tickets(ctx) != context.num_tickets:
        return False
    if ssl_h.SSL_CTX_get_options(ctx) != context.options:
        return False
    connection = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    return ssl_h.SSL_get_SSL_CTX(ssl_of(connection)) == ctx


@functools.cache
def defaults() -> tuple[int, int]:
    """Return OpenSSL's defaults, which `ssl` changes: options and security level."""
    with owned(ssl_h.SSL_CTX_new(ssl_h.TLS_server_method()), ssl_h.SSL_CTX_free) as ctx:
        return ssl_h.SSL_CTX_get_options(ctx), ssl_h.SSL_CTX_get_security_level(ctx)


@contextlib.contextmanager
def owned(pointer: _Pointer, free: Callable[[_Pointer], object]) -> Iterator[_Pointer]:
    """Free an object of OpenSSL at the end of a `with` statement."""
    try:
        yield pointer
    finally:
        free(pointer)


def encoded(item: _Pointer, encode: Callable[[_Pointer, object], int]) -> bytes:
    """Encode an object of OpenSSL in DER.

    Args:
      encode: the ``i2d_…`` function of its type.
    """
    size = encode(item, None)
    octets = ctypes.create_string_buffer(max(size, 0))
    encode(item, ctypes.byref(ctypes.c_void_p(ctypes.addressof(octets))))
    return octets.raw
