"""Sockets of the load and of the fake servers: one epoll, and generators on it.

A session is a generator that yields the events it waits for; `Loop` sends it on when one
of them is there. Each socket is registered once, level-triggered, and changed only when
its session waits for something else than before. In clear text a session waits first
and reads then; with TLS it reads first, because what it waits for may be in OpenSSL.

What the sessions send goes out when all of a turn have had theirs, without a line of
Python in between. Sent one by one, each would find the proxy asleep, and wake it up: its
CPU time would tell how slow Python's clients are.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Generator
from contextlib import suppress
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Waiting: TypeAlias = Generator[int, None, T]
"""A session, or a part of one: yields `READ` or `WRITE`, returns a `T`."""

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
KIB = 1024
MIB = 1024 * KIB
MAX_READ = 64 * KIB
"""Octets of commands and replies that are read at once."""

_FILLING = memoryview(b"m" * (256 * KIB))
_DISCARDED = bytearray(8 * MIB)


class SessionError(OSError):
    """A session that did not go as it has to; the text says how."""


class Wire:
    """One connection, in clear text or with TLS.

    Args:
      sock: belongs to the wire from now on.

    Attributes:
      fd: the descriptor.
      open: whether nobody has closed it.
      unsent: what goes out at the end of the turn.
    """

    __slots__ = ("_sock", "_tls", "fd", "open", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd = sock.fileno()
        self.open = True
        self.unsent = b""
        self._sock = sock
        self._tls: ssl.SSLSocket | None = None

    def connect(self, address: tuple[str, int]) -> None:
        """Begin to connect; the socket is writable when that is done."""
        with suppress(BlockingIOError):
            self._sock.connect(address)

    def start_tls(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None
    ) -> Waiting[None]:
        """Do the handshake as a client; `session` is resumed if the server likes to."""
        tls = context.wrap_socket(
            self._sock, do_handshake_on_connect=False, session=session
        )
        self._sock = self._tls = tls
        while True:
            try:
                tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                yield READ
            except ssl.SSLWantWriteError:
                yield WRITE

    @property
    def tls_session(self) -> ssl.SSLSession | None:
        """What another connection may resume; with TLS 1.3, once something was read."""
        return None if self._tls is None else self._tls.session

    @property
    def resumed(self) -> bool:
        """Whether its TLS session is a resumed one."""
        return self._tls is not None and bool(self._tls.session_reused)

    def send(self, data: bytes) -> None:
        """Send a command or a reply, at the end of the turn."""
        self.unsent += data

    def flush(self) -> None:
        """Send now what is unsent; it is short enough for a socket that is read.

        Raises:
          SessionError: the peer does not read.
        """
        data, self.unsent = self.unsent, b""
        if data and self._sock.send(data) != len(data):
            raise SessionError("the peer does not read")
        if not self.open:
            self._sock.close()

    def receive(self) -> Waiting[bytes]:
        """Return what has come, at least one octet; empty at the end."""
        if self._tls is None:
            yield READ
            return self._sock.recv(MAX_READ)
        while True:
            try:
                return self._tls.recv(MAX_READ)
            except ssl.SSLWantReadError:
                yield READ

    def send_filling(self, size: int) -> Waiting[None]:
        """Send `size` octets without meaning, as fast as the peer takes them."""
        self.flush()
        while size:
            try:
                size -= self._sock.send(_FILLING[:size])
            except (BlockingIOError, ssl.SSLWantWriteError):
                yield WRITE

    def discard(self, size: int) -> Waiting[None]:
        """Read `size` octets and forget them; in clear text the kernel drops them.

        Raises:
          SessionError: the peer closed before.
        """
        flags = socket.MSG_TRUNC if self._tls is None else 0
        while size:
            if self._tls is None:
                yield READ
            try:
                wanted = min(size, len(_DISCARDED))
                got = self._sock.recv_into(_DISCARDED, wanted, flags)
            except ssl.SSLWantReadError:
                yield READ
                continue
            if not got:
                raise SessionError(f"closed, {size} octets before the end")
            size -= got

    def close(self) -> None:
        """Close the socket, behind what is unsent, without TLS's goodbye."""
        self.open = False
        if not self.unsent:
            self._sock.close()

    def abort(self) -> None:
        """Close it at once."""
        self.unsent = b""
        self.close()


class Loop:
    """Runs sessions.

    Attributes:
      failures: how many have ended by an `OSError`, a `SessionError` among them.
      first_failure: what the first one of them said; empty if none has.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.first_failure = ""
        self._epoll = select.epoll()
        self._running: dict[int, tuple[Wire, Waiting[None]]] = {}
        self._events: dict[int, int] = {}
        self._unsent: list[Wire] = []

    def __len__(self) -> int:
        return len(self._running)

    def start(self, wire: Wire, session: Waiting[None]) -> None:
        """Run a session on a wire, now until it waits, then in `turn`.

        When it fails, the wire is closed; when it just ends, the wire is left as it is.
        """
        self._running[wire.fd] = (wire, session)
        self._send_on(wire, session)

    def watch(self, listening: socket.socket, session: Waiting[None]) -> None:
        """The same for a socket that listens; this session does not end."""
        self.start(Wire(listening), session)

    def turn(self, timeout: float) -> None:
        """Send what is unsent, and send on those whose events are there.

        Args:
          timeout: for how many seconds to wait for an event.
        """
        unsent, self._unsent = self._unsent, []
        for wire in unsent:
            try:
                wire.flush()
            except OSError as error:
                self._fail(wire, error)
        running = self._running
        for fd, _ in self._epoll.poll(timeout):
            self._send_on(*running[fd])

    def stop_all(self, reason: str) -> None:
        """Fail all sessions that still run."""
        for wire, session in list(self._running.values()):
            session.close()
            self._fail(wire, SessionError(reason))

    def _send_on(self, wire: Wire, session: Waiting[None]) -> None:
        try:
            wanted = session.send(None)
        except StopIteration:
            self._forget(wire)
        except OSError as error:
            self._fail(wire, error)
        else:
            events = self._events.get(wire.fd)
            if events != wanted:
                self._events[wire.fd] = wanted
                if events is None:
                    self._epoll.register(wire.fd, wanted)
                else:
                    self._epoll.modify(wire.fd, wanted)
        if wire.unsent:
            self._unsent.append(wire)

    def _fail(self, wire: Wire, error: OSError) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or str(error)
        wire.abort()
        self._forget(wire)

    def _forget(self, wire: Wire) -> None:
        """End a session; a closed descriptor has left epoll by itself, or will at once."""
        self._running.pop(wire.fd, None)
        if self._events.pop(wire.fd, None) is not None and wire.open:
            self._epoll.unregister(wire.fd)
