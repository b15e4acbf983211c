"""A worker in the test's own process, on virtual time; its clients and sockets are real.

Running out of what all processes share cannot be tried; a listening socket that says
so can.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from mailproxy.errors import StartError
from mailproxy.log import Logs, open_logs
from mailproxy.mail.listen import Listen
from mailproxy.net.listening import Listener
from mailproxy.net.messages import MAX_FRAME
from mailproxy.process.configuration import Configuration, load
from mailproxy.process.messages import Order, write_order
from mailproxy.process.options import Options
from mailproxy.process.services import Service
from mailproxy.process.worker import Worker
from mailproxy.process.worker_services import of_worker
from tests.process.site import LINE

PAUSE = 7.0
"""`accept_mutex_delay`, in seconds."""
PATIENCE = 3600.0
"""Seconds, virtual ones, in which anything happens that happens at all."""
GREETING = b"* OK IMAP4 ready\r\n"


class ShortSocket(socket.socket):
    """A listening socket whose accept4() fails at first.

    Attributes:
      errors: what it says, in turn; connections wait meanwhile.
    """

    errors: list[int]

    def _accept(self) -> tuple[int, object]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        accepted: tuple[int, object] = super()._accept()  # type: ignore[misc] # as there
        return accepted


class Served:
    """A running worker with one IMAP server.

    Attributes:
      socket: where it accepts.
      master: the master's end of its line, non-blocking.
      line: the worker's end.
      worker: the worker itself.
      ended: is set when it has ended, with `exit_code`, or could not begin: `lacking`.
    """

    def __init__(
        self,
        listening: ShortSocket,
        line: tuple[socket.socket, socket.socket],
        worker: Worker,
        log: Path,
        path: Path,
        logs: Logs,
    ) -> None:
        self.socket = listening
        self.master, self.line = line
        self.worker = worker
        self.ended = trio.Event()
        self.exit_code: int | None = None
        self.lacking: StartError | None = None
        self._log = log
        self._path = path
        self._logs = [logs]

    async def reload(self) -> None:
        """Have it read its configuration again, as a process without a master does."""
        configuration, listener = _load(self._path, self.socket)
        logs = open_logs(configuration.main.error_log, default="")
        self._logs.append(logs)
        await self.worker.serve_instead(configuration, [listener], logs)

    def close_logs(self) -> None:
        """Close those that the worker has left open."""
        for logs in self._logs:
            with suppress(OSError):
                logs.close()

    async def serve(self) -> None:
        """Be the worker."""
        try:
            self.exit_code = await self.worker.serve()
        except StartError as failure:
            self.lacking = failure
        self.ended.set()

    def connect(self) -> trio.SocketStream:
        """A client whom the kernel has let in; the worker may not know yet."""
        client = socket.create_connection(self.socket.getsockname())
        client.setblocking(False)
        return trio.SocketStream(trio.socket.from_stdlib_socket(client))

    def tell(self, order: Order, request: int = 0) -> None:
        """Say something as the master would."""
        self.master.send(write_order(order, request))

    async def answer(self) -> bytes:
        """What the worker says to the master next."""
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(self.master)
        return self.master.recv(MAX_FRAME)

    def complaints(self) -> list[str]:
        """What was logged at level error or worse."""
        return [
            f"[{level}] {text}"
            for level, _, text in LINE.findall(self._log.read_text())
        ]


@asynccontextmanager
async def worker(
    directory: Path,
    *errors: int,
    services: Iterable[Service] = (),
    main: str = "",
    server: str = "",
) -> AsyncIterator[Served]:
    """A worker that ends with the block.

    Args:
      errors: of the first calls of accept().
      services: that it has besides its own.
      main, server: more directives.
    """
    path, log = directory / "nginx.conf", directory / "error.log"
    path.write_text(
        f"error_log {log} error; {main}"
        f"events {{ accept_mutex_delay {PAUSE:.0f}s; }}"
        f"mail {{ auth_http 127.0.0.1:9; server {{ listen 127.0.0.1:143; {server} }} }}"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ShortSocket() as listening, ours, theirs:
        listening.errors = list(errors)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        for each in (listening, ours, theirs):
            each.setblocking(False)
        configuration, listener = _load(path, listening)
        logs = open_logs(configuration.main.error_log, default="")
        worker = Worker(
            configuration, [listener], logs, [*of_worker(theirs), *services]
        )
        served = Served(listening, (ours, theirs), worker, log, path, logs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.serve)
            yield served
            worker.stop()
        served.close_logs()


def _load(
    path: Path, listening: socket.socket
) -> tuple[Configuration, Listener[Listen]]:
    """The configuration in a file, and the listener of its only server."""
    configuration = load(Options(conf_file=str(path)))
    key = socket.AF_INET, socket.inet_aton("127.0.0.1"), 143
    return configuration, Listener(listening, key, listen=configuration.listens[0])
