"""Descriptors other than streams of octets, watched by the engine.

Signals (signalfd(2)), exits of processes (pidfd_open(2)) and messages between processes
come through descriptors, too. Waiting for them as trio does would take the engine's
fast path away from all sessions (see `engine`), so a worker waits for them here.
"""

from __future__ import annotations

import os
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
    return None if not packet and _has_closed(connection) else packet


def _has_closed(connection: socket.socket) -> bool:
    """Return whether the other end has closed."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


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

    async def receive_with_descriptors(
        self, size: int, most: int
    ) -> tuple[bytes | None, list[int]]:
        """Receive as `receive` does, and the descriptors that came with the message.

        Args:
          most: how many there may be; the kernel closes others. The caller closes these.

        Raises:
          OSError: of recvmsg().
        """
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._socket, size, most)
            except BlockingIOError:
                await self._watched.wait_readable()
                continue
            try:
                await trio.lowlevel.checkpoint()  # let other tasks run
            except BaseException:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise
            gone = not packet and _has_closed(self._socket)
            return (None if gone else packet), descriptors

    def send(self, packet: bytes) -> None:
        """Send a message if there is room for it.

        Raises:
          OSError: of send(); `BlockingIOError` if there is no room.
        """
        self._socket.send(packet)

    def close(self) -> None:
        """Stop watching the socket; it stays open."""
        self._watched.close()
