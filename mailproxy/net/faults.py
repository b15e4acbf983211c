"""Faults: what the log says about a broken connection, and at which level.

This is the one place that judges an `OSError` of a client's or backend's connection,
in the dialogues and in the relay, as nginx does (ngx_connection_error,
ngx_ssl_connection_error):

    the peer left, or the network failed      the peer's level: info for a client,
                                              error for a backend
    any other error of the system             alert: it is our fault
    a TLS error that the peer caused          the peer's level
    any other error of OpenSSL                crit

In TLS, `ssl` hides the system's error. Up to some 3.12, a connection that was reset is
an `SSLEOFError` without number, or for a reader an ordinary end; later versions report
the reset. nginx itself treats a reset in TLS as an end when it reads. `is_end` and
`under_tls` make all versions alike: reading ends, and writing fails with
`UnderTlsError`.
"""

from __future__ import annotations

import errno
import os
import ssl
from dataclasses import dataclass
from typing import Final, Literal

from mailproxy.errors import SessionError
from mailproxy.frozen import Frozen
from mailproxy.net.openssl import error_text, is_peers_fault

Call = Literal["recv", "send", "handshake"]

_LEFT: Final = frozenset((
    errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT,
    errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
))  # fmt: skip
"""System errors that mean that the peer is gone (nginx: ngx_connection_error)."""
_TLS_CALL: Final = {
    "recv": "SSL_read",
    "send": "SSL_write",
    "handshake": "SSL_do_handshake",
}
_NO_MORE: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class UnderTlsError(Frozen, ConnectionError):
    """The connection under TLS broke; `errno` is the system's error."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What the log says about a broken connection.

    Attributes:
      event, values: the message, as the methods of a `Logger` take it.
      error: the system error that the log appends, if any.
      level: nginx's name of the log level.
    """

    event: str
    values: tuple[object, ...]
    error: OSError | None
    level: str


def is_end(error: OSError) -> bool:
    """Return whether a read in TLS failed because the peer is gone, however it left."""
    if isinstance(error, ssl.SSLError):
        return isinstance(error, (*_NO_MORE, ssl.SSLSyscallError))
    return error.errno in _LEFT


def under_tls(error: OSError) -> OSError:
    """Return the error to raise for a failed write in TLS: OpenSSL's own, or
    `UnderTlsError`."""
    if isinstance(error, (*_NO_MORE, ssl.SSLSyscallError)):
        # `ssl` has lost the number; a write fails because of a reset.
        return UnderTlsError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    if isinstance(error, ssl.SSLError):
        return error
    return UnderTlsError(error.errno, error.strerror)


def describe(call: Call, error: OSError, left: str) -> Fault:
    """Return what the log says about an `error` of a `Wire` or of the relay.

    Args:
      call: the call that failed.
      left: the level for a peer that left: "info" for clients, "error" for backends.
    """
    if call == "handshake" and isinstance(error, (*_NO_MORE, ssl.SSLSyscallError)):
        return Fault("peer closed connection in SSL handshake", (), None, left)
    if isinstance(error, ssl.SSLError):
        level = left if is_peers_fault(error) else "crit"
        event = f"{_TLS_CALL[call]}() failed (SSL: %s)"
        return Fault(event, (error_text(error),), None, level)
    level = left if error.errno in _LEFT else "alert"
    if call == "handshake":
        return Fault("peer closed connection in SSL handshake", (), error, level)
    if isinstance(error, UnderTlsError):
        return Fault(f"{_TLS_CALL[call]}() failed", (), error, level)
    return Fault(f"{call}() failed", (), error, level)


def broken(kind: type[SessionError], call: Call, error: OSError) -> SessionError:
    """Return the error of class `kind` that ends the session; see `describe`."""
    found = describe(call, error, kind.level)
    return kind(found.event, *found.values, error=found.error, level=found.level)
