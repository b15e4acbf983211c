"""System calls and OpenSSL's, where "would block" is a value and not an exception.

An exception costs as much as the system call that it comes from, and a proxy gets this
answer all the time.

`calls.pyx` does the same in C, and takes the place of this module in the compiled core
(see `mailproxy.compiled`). `tests/net/test_calls.py` holds both to what is said here.
"""

from __future__ import annotations

import os
import select
import ssl

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

BOTH_WAYS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""What a descriptor is registered for."""
READING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""The same without writing, for `Engine.rearm`."""
LISTENING = select.EPOLLIN | select.EPOLLET
"""The same for a listening socket."""

Epoll = select.epoll
"""`poll` may return without a change before the time is over."""

_read = os.read
_readv = os.readv
_write = os.write


def receive(fd: int, size: int) -> bytes | None:
    """Receive at most `size` octets; b"" at the end, None if there is nothing yet.

    Raises:
      OSError: of read().
    """
    try:
        return _read(fd, size)
    except BlockingIOError:
        return None


def receive_into(fd: int, view: memoryview) -> int:
    """Fill `view` with what there is; 0 at the end, -1 if there is nothing yet.

    Raises:
      OSError: of read().
    """
    try:
        return _readv(fd, (view,))
    except BlockingIOError:
        return -1


def send(fd: int, data: bytes | memoryview) -> int:
    """Send what there is room for, and return how much; -1 if there is none.

    Raises:
      OSError: of write().
    """
    try:
        return _write(fd, data)
    except BlockingIOError:
        return -1


send_from = send
"""The same for what `receive_into` has filled; in C these are two."""


class TlsCalls:
    """The same for a connection in TLS.

    Errors are those of `ssl`, and `OSError`.

    Attributes:
      needs: what the last call that would have blocked has to wait for: `READABLE` or
        `WRITABLE`.
    """

    __slots__ = ("_connection", "needs")

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self.needs = READABLE

    def receive(self, size: int) -> bytes | None:
        """Receive at most `size` octets, of one record."""
        try:
            return self._connection.recv(size)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return None

    def receive_into(self, view: memoryview) -> int:
        """Fill `view` with octets of one record."""
        try:
            return self._connection.recv_into(view)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return -1

    def send(self, data: bytes | memoryview) -> int:
        """Send what there is room for."""
        try:
            return self._connection.send(data)
        except ssl.SSLWantReadError:
            self.needs = READABLE
        except ssl.SSLWantWriteError:
            self.needs = WRITABLE
        return -1

    send_from = send

    def pending(self) -> int:
        """Return how many octets OpenSSL has decrypted that nobody has received."""
        return self._connection.pending()

    def close(self) -> None:
        """Leave OpenSSL alone from now on: the connection is about to be closed."""
