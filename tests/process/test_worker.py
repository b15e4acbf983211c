"""A worker to whom the kernel gives no connections for a while, in virtual time.

Running out of what all processes share cannot be tried; a listening socket that says
so can. All else is real.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.log import open_logs
from mailproxy.net.listening import Listener
from mailproxy.process.children import STOP
from mailproxy.process.configuration import load
from mailproxy.process.options import Options
from mailproxy.process.worker import Worker
from tests.process.site import LINE

PAUSE = 7.0
"""`accept_mutex_delay`, in seconds."""
GREETING = b"* OK IMAP4 ready\r\n"


class ShortSocket(socket.socket):
    """A listening socket whose accept() fails at first.

    Attributes:
      errors: what it says, in turn; connections wait meanwhile.
    """

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class Served:
    """A running worker with one IMAP server.

    Attributes:
      socket: where it accepts.
    """

    def __init__(self, listening: ShortSocket, log: Path) -> None:
        self.socket = listening
        self._log = log

    def connect(self) -> trio.SocketStream:
        """A client whom the kernel has let in; the worker may not know yet."""
        client = socket.create_connection(self.socket.getsockname())
        client.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(client))

    def complaints(self) -> list[str]:
        """What was logged at level error or worse."""
        return [
            f"[{level}] {text}"
            for level, _, text in LINE.findall(self._log.read_text())
        ]


@asynccontextmanager
async def worker(directory: Path, *errors: int) -> AsyncIterator[Served]:
    """A worker whose first calls of accept() fail; it ends with the block."""
    path, log = directory / "nginx.conf", directory / "error.log"
    path.write_text(
        f"error_log {log} error; events {{ accept_mutex_delay {PAUSE:.0f}s; }}"
        "mail { auth_http 127.0.0.1:9; server { listen 127.0.0.1:143; } }"
    )
    configuration = load(Options(conf_file=str(path)))
    logs = open_logs(configuration.main.error_log, default="")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ShortSocket() as listening, ours, theirs:
        listening.errors = list(errors)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        for each in (listening, theirs):
            each.setblocking(False)
        key = socket.AF_INET, socket.inet_aton("127.0.0.1"), 143
        listener = Listener(listening, key, listen=configuration.listens[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                Worker(configuration, [listener], logs, orders=theirs).serve
            )
            yield Served(listening, log)
            ours.send(STOP)
    logs.close()


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
