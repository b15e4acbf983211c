"""What a manager does with what the master says to it, and with what it should not."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.log import NOTICE, ErrorLog, Logs, open_logs
from mailproxy.log.directive import File
from mailproxy.manager.services import ManagerService
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import (
    COMPLAINT_PAUSE,
    MAX_FRAME,
    Message,
    read_frame,
    write_frame,
)
from mailproxy.process.manager import MAX_PREPARATION, Manager
from mailproxy.process.messages import Order, write_order
from mailproxy.stats.mapping import Row
from tests.process.site import LINE

INVALID = "[alert] the master sent an invalid message"


class Slow(ManagerService):
    """Is ready when a test says so."""

    name = "slow"

    def __init__(self) -> None:
        super().__init__()
        self.ready = trio.Event()

    async def wait_ready(self) -> None:
        await self.ready.wait()


class Master:
    """The master's end of the line to a manager that runs.

    Attributes:
      manager: the manager itself.
      ended: is set when it has ended.
    """

    def __init__(self, manager: Manager, end: socket.socket, log: Path) -> None:
        self.manager = manager
        self.ended = trio.Event()
        self.socket = end
        self._log = log

    def tell(self, order: Order, *descriptors: int, **body: object) -> None:
        socket.send_fds(self.socket, [write_order(order, 7, body)], descriptors)

    async def is_alive(self) -> bool:
        self.tell(Order.PING)
        with trio.fail_after(600):
            await trio.lowlevel.wait_readable(self.socket)
        return self.socket.recv(MAX_FRAME) == write_order(Order.ALIVE, 7)

    def add_worker(self, pid: int) -> socket.socket:
        """Start a worker; returns its end of the line."""
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
        with ours:
            self.tell(Order.WORKER, ours.fileno(), row=1, pid=pid)
        return theirs

    def said(self) -> list[str]:
        """What was logged at level warn or worse."""
        lines = LINE.findall(self._log.read_text(encoding="utf-8"))
        return [f"[{level}] {text}" for level, _, text in lines if level != "notice"]


@asynccontextmanager
async def manager(directory: Path, *services: ManagerService) -> AsyncIterator[Master]:
    """A manager that ends with the block, if not before."""
    log = directory / "error.log"
    logs: Logs = open_logs([ErrorLog(File(str(log)), NOTICE)], default="")
    ours, theirs = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    )
    stderr = os.dup(2)  # a manager writes it to its log
    with ours, theirs:
        master = Master(Manager(logs, Row(), services, theirs), ours, log)

        async def serve() -> None:
            await master.manager.serve()
            master.ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await wait_all_tasks_blocked()
            yield master
            nursery.cancel_scope.cancel()
    os.dup2(stderr, 2)
    os.close(stderr)
    logs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_it_is_alive_once_its_services_are_ready(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    service = Slow()
    async with manager(tmp_path, service) as master:
        master.tell(Order.PING)
        await wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            master.socket.recv(1)
        service.ready.set()
        await wait_all_tasks_blocked()
        assert master.socket.recv(MAX_FRAME) == write_order(Order.ALIVE, 7)
        assert await master.is_alive()


async def test_it_does_not_wait_for_them_for_ever(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with manager(tmp_path, Slow()) as master:
        began = trio.current_time()
        assert await master.is_alive()
        assert trio.current_time() - began == pytest.approx(MAX_PREPARATION)


@pytest.mark.parametrize("order", [Order.STOP, Order.QUIT])
async def test_it_ends_at_once_when_told(
    autojump_clock: MockClock, tmp_path: Path, order: Order
) -> None:
    async with manager(tmp_path, Slow()) as master:
        with master.add_worker(101):
            began = trio.current_time()
            master.tell(order)
            await master.ended.wait()
            assert trio.current_time() == began


async def test_worker_is_greeted(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with manager(tmp_path) as master:
        with master.add_worker(101) as worker:
            await wait_all_tasks_blocked()
            hello = Message(LineKind.HELLO, body={"pid": os.getpid()})
            assert read_frame(worker.recv(MAX_FRAME)) == hello
            assert [*master.manager.hub.workers] == [101]
    assert master.said() == []


async def test_logs_are_those_that_the_master_has_opened(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with manager(tmp_path) as master:
        before = descriptors()
        with (tmp_path / "new.log").open("ab") as new:
            for _ in range(3):
                master.tell(
                    Order.REOPEN, new.fileno(), files=[str(tmp_path / "error.log")]
                )
            assert await master.is_alive()
        assert descriptors() == before
        master.manager.hub.log.alert("hello")
        assert "hello" in (tmp_path / "new.log").read_text(encoding="utf-8")


async def test_logs_are_opened_by_name_if_there_are_too_many(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with manager(tmp_path) as master:
        (tmp_path / "error.log").rename(tmp_path / "old.log")
        master.tell(Order.REOPEN, files=[])
        assert await master.is_alive()
        assert (tmp_path / "error.log").exists()


@pytest.mark.parametrize(
    "frame",
    [
        b"stop",
        write_order(Order.STOP)[:-1],
        write_order(Order.ALIVE),
        write_order(Order.UNMANAGED),
        write_order(Order.WORKER),
        write_order(Order.WORKER, body={"row": 1, "pid": 101}),
        write_order(Order.WORKER, body={"row": "1", "pid": 101}),
        write_order(Order.REOPEN, body={"files": ["x"]}),
        write_order(Order.REOPEN, body={"files": 5}),
        write_frame(Message(30)),
        bytes(MAX_FRAME),
    ],
    ids=[
        *("text", "short", "alive", "unmanaged", "no worker", "no line", "no row"),
        *("no file", "no files", "kind", "zeros"),
    ],
)
async def test_invalid_message_is_dropped(
    autojump_clock: MockClock, tmp_path: Path, frame: bytes
) -> None:
    async with manager(tmp_path) as master:
        before = descriptors()
        for _ in range(3):
            master.socket.send(frame)
            assert await master.is_alive()
        assert master.said() == [INVALID]
        await trio.sleep(COMPLAINT_PAUSE)
        socket.send_fds(master.socket, [frame], [0, 1])
        assert await master.is_alive()
        assert master.said() == [INVALID] * 2
        assert descriptors() == before, "those that came with it are closed"


async def test_it_outlives_the_master_as_long_as_there_are_workers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with manager(tmp_path) as master:
        with master.add_worker(101), master.add_worker(102):
            await wait_all_tasks_blocked()
            master.socket.close()
            await wait_all_tasks_blocked()
            assert not master.ended.is_set()
        await master.ended.wait()


async def test_without_workers_it_ends_with_its_master(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with manager(tmp_path) as master:
        master.socket.close()
        await master.ended.wait()
