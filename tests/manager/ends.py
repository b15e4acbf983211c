"""The manager's side of lines to workers, which a test plays."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from mailproxy.manager.hub import Hub
from mailproxy.manager.services import ManagerService
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import MAX_FRAME, Message, read_frame, write_frame
from mailproxy.stats.mapping import Row
from tests.captured_log import CapturedLog


class Worker:
    """A worker's end of a line."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self.socket = end

    def say(self, kind: int, body: Mapping[str, object], request: int = 0) -> None:
        self.socket.send(write_frame(Message(kind, request, body)))

    async def hear(self) -> Message:
        """The next message of the manager."""
        with trio.fail_after(600):
            await trio.lowlevel.wait_readable(self.socket)
        return read_frame(self.socket.recv(MAX_FRAME))

    async def heard(self) -> list[Message]:
        """All messages that have come, and come before anything else happens."""
        await wait_all_tasks_blocked()
        found = []
        try:
            while True:
                found.append(read_frame(self.socket.recv(MAX_FRAME)))
        except BlockingIOError:
            return found


class Ends:
    """A hub that runs, and the workers that it has.

    Attributes:
      hub: the hub.
      log: what it logs.
    """

    def __init__(self, services: Sequence[ManagerService], row: Row) -> None:
        self.log = CapturedLog()
        self.hub = Hub(self.log.log, row, services)
        self._sockets: list[socket.socket] = []

    @property
    def said(self) -> list[str]:
        """What was logged."""
        return [f"[{level}] {text}" for level, text in self.log.events]

    def line(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        self._sockets += ours, theirs
        return ours, theirs

    def worker(self, pid: int) -> Worker:
        """A worker that has just been started."""
        ours, theirs = self.line()
        self.hub.join(pid - 100, pid, ours, inherited=False)
        return Worker(pid, theirs)

    async def greeted(self, pid: int) -> Worker:
        """The same, after the first message."""
        worker = self.worker(pid)
        assert await worker.hear() == Message(LineKind.HELLO, 0, {"pid": os.getpid()})
        worker.say(LineKind.HELLO, {"pid": pid})
        return worker

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@asynccontextmanager
async def manager(
    *services: ManagerService, row: Row | None = None
) -> AsyncIterator[Ends]:
    """A manager with these services, for the length of the block."""
    ends = Ends(services, Row() if row is None else row)
    async with trio.open_nursery() as nursery:
        ends.hub.begin(nursery)
        yield ends
        nursery.cancel_scope.cancel()
    ends.close()
