"""What a worker does with what the master says to it, and with what it should not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.net.messages import COMPLAINT_PAUSE, MAX_FRAME, Message, write_frame
from mailproxy.process.messages import Order, write_order
from tests.process.own_worker import GREETING, Served, worker

INVALID = "[alert] the master sent an invalid message"


async def is_alive(served: Served) -> bool:
    """Whether a ping is answered, and with its own request id."""
    served.tell(Order.PING, 77)
    return await served.answer() == write_order(Order.ALIVE, 77)


async def test_ping_is_answered_with_its_request_id(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served:
        assert await is_alive(served)
        for request in (0, 2**32 - 1):
            served.tell(Order.PING, request)
            assert await served.answer() == write_order(Order.ALIVE, request)
    assert served.complaints() == []


async def test_stop_ends_sessions_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served, served.connect() as client:
        assert await client.receive_some() == GREETING
        served.tell(Order.STOP)
        assert await client.receive_some() == b""


async def test_quit_waits_for_sessions(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served, served.connect() as client:
        assert await client.receive_some() == GREETING
        served.tell(Order.QUIT)
        assert await is_alive(served)
        assert served.worker.leaving
        assert served.socket.fileno() == -1
        await client.send_all(b"a LOGOUT\r\n")
        assert await client.receive_some() == b"* BYE\r\na OK completed\r\n"


async def test_log_files_are_reopened(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served:
        (tmp_path / "error.log").rename(tmp_path / "old.log")
        served.tell(Order.REOPEN)
        assert await is_alive(served)
        assert (tmp_path / "error.log").exists()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"quit",
        write_order(Order.STOP)[:-1],
        write_order(Order.STOP) + b" ",
        write_frame(Message(30, body={"do": "list"})),
        write_order(Order.ALIVE),
        bytes(MAX_FRAME),
        b"\x00\x01\x00\x01" + write_order(Order.STOP)[4:].ljust(MAX_FRAME - 3, b" "),
    ],
    ids=["empty", "text", "short", "long", "kind", "alive", "zeros", "too long"],
)
async def test_invalid_message_is_dropped(
    autojump_clock: MockClock, tmp_path: Path, frame: bytes
) -> None:
    async with worker(tmp_path) as served:
        for _ in range(3):
            served.master.send(frame)
            assert await is_alive(served)
        assert served.complaints() == [INVALID]
        await trio.sleep(COMPLAINT_PAUSE)
        served.master.send(frame)
        assert await is_alive(served)
        assert served.complaints() == [INVALID] * 2
        async with served.connect() as client:
            assert await client.receive_some() == GREETING


async def test_worker_outlives_its_master(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served, served.connect() as client:
        assert await client.receive_some() == GREETING
        served.tell(Order.PING)  # the answer is one that nobody takes
        served.master.close()
        await wait_all_tasks_blocked()
        await client.send_all(b"a NOOP\r\n")
        assert await client.receive_some() == b"a OK completed\r\n"
        async with served.connect() as late:
            assert await late.receive_some() == GREETING
    assert served.complaints() == []


async def test_answer_that_finds_no_room_is_left_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """A master that does not listen for a while does not stop its workers."""
    async with worker(tmp_path) as served:
        room = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                served.line.send(b"x")
                room += 1
        served.tell(Order.PING)
        async with served.connect() as client:
            assert await client.receive_some() == GREETING
        for _ in range(room):
            assert await served.answer() == b"x"
        assert await is_alive(served)
    assert served.complaints() == []
