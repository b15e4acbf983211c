"""A worker to whom the kernel gives no connections for a while, in virtual time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.process.own_worker import GREETING, PAUSE, worker


@pytest.mark.parametrize(
    ("number", "line", "pause"),
    [
        (errno.EMFILE, "[crit] accept4() failed (24: Too many open files)", PAUSE),
        (
            errno.ENFILE,
            "[crit] accept4() failed (23: Too many open files in system)",
            PAUSE,
        ),
        (
            errno.ENOBUFS,
            "[crit] accept4() failed (105: No buffer space available)",
            PAUSE,
        ),
        (errno.ENOMEM, "[crit] accept4() failed (12: Cannot allocate memory)", PAUSE),
        (errno.EPERM, "[alert] accept4() failed (1: Operation not permitted)", PAUSE),
        (
            errno.ECONNABORTED,
            "[error] accept4() failed (103: Software caused connection abort)",
            0,
        ),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
async def test_accept_that_fails_is_tried_again(
    autojump_clock: MockClock, tmp_path: Path, number: int, line: str, pause: float
) -> None:
    """Each failure costs a pause and a line; then whoever has waited is served."""
    async with worker(tmp_path, number, number, number) as served:
        began = trio.current_time()
        async with served.connect() as first, served.connect() as second:
            assert await first.receive_some() == GREETING
            assert trio.current_time() - began == pytest.approx(3 * pause)
            assert await second.receive_some() == GREETING
            async with served.connect() as late:
                assert await late.receive_some() == GREETING
            assert trio.current_time() - began == pytest.approx(3 * pause)
    assert served.complaints() == [line] * 3


async def test_sessions_go_on_while_no_connections_are_to_be_had(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path) as served, served.connect() as client:
        assert await client.receive_some() == GREETING
        served.socket.errors = [errno.ENFILE]
        began = trio.current_time()
        async with served.connect() as waiting:
            while not served.complaints():
                await trio.lowlevel.checkpoint()
            await client.send_all(b"a NOOP\r\n")
            assert await client.receive_some() == b"a OK completed\r\n"
            assert trio.current_time() == began
            assert len(served.complaints()) == 1
            assert await waiting.receive_some() == GREETING
            assert trio.current_time() - began == pytest.approx(PAUSE)


async def test_a_worker_that_pauses_can_be_stopped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    began = trio.current_time()
    async with worker(tmp_path, errno.ENFILE) as served, served.connect():
        while not served.complaints():
            await trio.lowlevel.checkpoint()
    assert trio.current_time() == began
