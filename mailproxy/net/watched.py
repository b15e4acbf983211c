"""Descriptors other than streams of octets, watched by the engine.

Signals (signalfd(2)), exits of processes (pidfd_open(2)) and messages between processes
come through descriptors, too. Waiting for them as trio does would take the engine's
fast path away from all sessions (see `engine`), so a worker waits for them here.
"""

from __future__ import annotations

import select
import socket

import trio

from mailproxy.net.calls import READABLE
from mailproxy.net.engine import Engine, Readiness


class Watched:
    """A descriptor that one task at a time waits for.

    The caller has to follow the rule of edge triggering: try to read first, and wait
    only after the try would have blocked. A wait may end although there is nothing.

    Args:
      fd: non-blocking; the caller owns it, and closes it after `close`.
      counted: whether it takes one of the `worker_connections`.

    Raises:
      OSError: `worker_connections` are in use, or epoll cannot watch the descriptor.
    """

    def __init__(self, engine: Engine, fd: int, *, counted: bool = False) -> None:
        self._engine = engine
        self._fd = fd
        self._extra = 0 if counted else 1
        self._readiness = Readiness(engine)
        engine.limit += self._extra
        try:
            engine.register(fd, self._readiness)
        except BaseException:
            engine.limit -= self._extra
            raise

    async def wait_readable(self) -> None:
        """Wait until there may be something to read, or the other end has closed."""
        readiness = self._readiness
        if not readiness.readable:
            await readiness.wait(READABLE)
        readiness.readable = False

    def close(self) -> None:
        """Stop watching the descriptor; it stays open."""
        self._engine.unregister(self._fd)
        self._engine.limit -= self._extra


def receive_packet(connection: socket.socket, size: int) -> bytes | None:
    """Receive the next message on a SOCK_SEQPACKET socket, cut to `size` octets.

    Returns None if the other end has closed, which recv() does not distinguish from an
    empty message.

    Raises:
      OSError: of recv(); `BlockingIOError` if nothing has arrived.
    """
    packet = connection.recv(size)
    if not packet:
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        if poll.poll(0):
            return None
    return packet


class PacketWire:
    """A socket that preserves message boundaries (SOCK_SEQPACKET), for one task.

    It takes one of the `worker_connections`, as nginx's channel to the master does.

    Args:
      connection: a connected, non-blocking socket; the caller owns it.

    Raises:
      OSError: `worker_connections` are in use.
    """

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._socket = connection
        self._watched = Watched(engine, connection.fileno(), counted=True)

    async def receive(self, size: int) -> bytes | None:
        """Receive the next message, cut to `size` octets; None if the other end closed.

        Raises:
          OSError: of recv().
        """
        while True:
            try:
                packet = receive_packet(self._socket, size)
            except BlockingIOError:
                await self._watched.wait_readable()
            else:
                await trio.lowlevel.checkpoint()  # let other tasks run
                return packet

    def send(self, packet: bytes) -> None:
        """Send a message if there is room for it.

        Raises:
          OSError: of send(); `BlockingIOError` if there is no room.
        """
        self._socket.send(packet)

    def close(self) -> None:
        """Stop watching the socket; it stays open."""
        self._watched.close()
