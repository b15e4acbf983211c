"""The hub of a manager: its services, and the lines to all workers of its generation.

The messages are those of `net/manager_line.py`. Workers talk to strangers, and may send
anything: each line has its own tasks, what it may have under way is bounded, and a
message that is none is dropped. So a worker that floods its line only fills that.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence

import trio

from mailproxy.log import Logger
from mailproxy.manager.services import (
    Answering,
    Body,
    ManagerService,
    Take,
    keep_running,
)
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.manager_line import MAX_QUESTIONS
from mailproxy.net.messages import (
    MAX_FRAME,
    Complaints,
    Message,
    MessageError,
    read_frame,
    write_frame,
)
from mailproxy.net.watched import receive_packet
from mailproxy.stats.mapping import Row

MAX_WAITING = 2 * MAX_QUESTIONS
"""Messages to a worker that may wait for room in the line, before nothing more is read
from it."""
MAX_IN_A_ROW = 16
"""Messages that are read from a worker, or sent to it, before others have their turn."""


class Hub:
    """See the module.

    Attributes:
      log: the log of the manager.
      row: its row in the statistics.
      services: what it does.
      workers: those of its generation that live, by pid.
    """

    def __init__(
        self, log: Logger, row: Row, services: Sequence[ManagerService]
    ) -> None:
        self.log = log
        self.row = row
        self.services = services
        self.workers: dict[int, ManagedWorker] = {}
        self.takes: dict[int, Take] = {}
        self.answers: dict[int, Answering] = {}
        for service in services:
            self.takes |= service.takes
            self.answers |= service.answers
        self._gone = trio.Event()

    def begin(self, nursery: trio.Nursery) -> None:
        """Begin to run all services, each in a task of the nursery."""
        self._nursery = nursery
        for service in self.services:
            nursery.start_soon(keep_running, service, self)

    def join(self, row: int, pid: int, line: socket.socket, *, inherited: bool) -> None:
        """Talk to a worker, over a line that this takes possession of.

        Args:
          row: that of the worker in the statistics.
          inherited: another manager has talked there; what waits was not for us.
        """
        if inherited:
            _throw_away(line)
        worker = ManagedWorker(self, row, pid, line)
        self.workers[pid] = worker
        worker.tell(LineKind.HELLO, {"pid": os.getpid()})
        for service in self.services:
            service.greet(worker)
        self._nursery.start_soon(self._serve, worker)

    async def _serve(self, worker: ManagedWorker) -> None:
        try:
            await worker.serve()
        finally:
            worker.close()
            if self.workers.get(worker.pid) is worker:
                del self.workers[worker.pid]
            if not self.workers:
                self._gone.set()
                self._gone = trio.Event()

    async def wait_deserted(self) -> None:
        """Wait until there is no worker."""
        while self.workers:
            await self._gone.wait()


class ManagedWorker:
    """A worker, as the manager sees it.

    Attributes:
      row: its row in the statistics; 0: it has none.
      pid: its process.
    """

    def __init__(self, hub: Hub, row: int, pid: int, line: socket.socket) -> None:
        self.row = row
        self.pid = pid
        self._hub = hub
        self._socket = line
        self._outbox: dict[object, list[bytes]] = {}
        self._numbers = itertools.count()
        self._wanted = trio.Event()
        self._sent = trio.Event()
        self._questions: dict[int, trio.CancelScope] = {}
        self._complaints = Complaints(trio.current_time)

    # Sending

    def tell(self, kind: int, body: Body) -> None:
        """Tell the worker something, after all that waits to be told."""
        self._put(Message(kind, body=body))

    def push(self, topic: object, messages: Sequence[Message]) -> None:
        """Tell the worker what holds from now on.

        What was said before about the same topic, and has not been sent yet, is not
        sent: a worker that is slow hears what is new.
        """
        self._outbox.pop(topic, None)
        self._outbox[topic] = [write_frame(message) for message in messages]
        self._wanted.set()

    def _put(self, message: Message) -> None:
        self._outbox[next(self._numbers)] = [write_frame(message)]
        self._wanted.set()

    async def _send(self) -> None:
        """Send what there is to send, until the other end has closed."""
        sent = 0
        while True:
            while not self._outbox:
                self._wanted = trio.Event()
                await self._wanted.wait()
            topic = next(iter(self._outbox))
            frames = self._outbox[topic]
            if not frames:
                del self._outbox[topic]
                self._sent.set()
                continue
            try:
                self._socket.send(frames[0])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)
                continue
            except OSError:  # it has died
                return
            del frames[0]
            sent += 1
            if not sent % MAX_IN_A_ROW:
                await trio.lowlevel.checkpoint()

    # Receiving

    async def serve(self) -> None:
        """Talk until the worker has closed its end."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._send)
            await self._receive()
            self._nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        for received in itertools.count(1):
            while len(self._outbox) >= MAX_WAITING:
                self._sent = trio.Event()
                await self._sent.wait()
            frame = await self._next_frame()
            if frame is None:
                return
            try:
                self._take(read_frame(frame))
            except MessageError:
                self._complain()
            if not received % MAX_IN_A_ROW:
                await trio.lowlevel.checkpoint()

    async def _next_frame(self) -> bytes | None:
        while True:
            try:
                return receive_packet(self._socket, MAX_FRAME + 1)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            except OSError:  # it has died
                return None

    def _take(self, message: Message) -> None:
        """Understand a message.

        Raises:
          MessageError: it is none of those that this line has.
        """
        kind, request, body = message.kind, message.request, message.body
        if kind == LineKind.HELLO:
            if body.get("pid") != self.pid:
                raise MessageError("not its pid")
        elif kind == LineKind.CANCEL:
            asked = body.get("id")
            if not isinstance(asked, int):
                raise MessageError("no id")
            if asked in self._questions:
                self._questions[asked].cancel()
        elif kind in self._hub.answers and request:
            self._begin_answer(request, self._hub.answers[kind], body)
        elif kind in self._hub.takes and not request:
            self._hub.takes[kind](self, body)
        else:
            raise MessageError(f"unknown kind {kind}")

    def _begin_answer(self, request: int, answering: Answering, body: Body) -> None:
        if request in self._questions:
            raise MessageError("two questions with one id")
        if len(self._questions) >= MAX_QUESTIONS:
            self._put(Message(LineKind.OVERLOADED, request))
            return
        scope = self._questions[request] = trio.CancelScope()
        self._nursery.start_soon(self._answer, request, scope, answering, body)

    async def _answer(
        self,
        request: int,
        scope: trio.CancelScope,
        answering: Answering,
        body: Body,
    ) -> None:
        with scope:
            try:
                answer = Message(
                    answering.kind, request, await answering.work(self, body)
                )
            except MessageError:
                self._complain()
                answer = Message(LineKind.OVERLOADED, request)
            except Exception as error:  # a bug: it concerns this question alone
                self._hub.log.exception(
                    "a question of a worker failed, this is a bug", exception=error
                )
                answer = Message(LineKind.OVERLOADED, request)
            self._put(answer)
        del self._questions[request]

    def _complain(self) -> None:
        if self._complaints.is_due():
            self._hub.log.alert(f"worker {self.pid} sent an invalid message")

    def close(self) -> None:
        """Close the line."""
        self._socket.close()


def _throw_away(line: socket.socket) -> None:
    """Read what waits in a line, for somebody who has died."""
    try:
        while receive_packet(line, 1) is not None:
            pass
    except OSError:  # nothing more
        pass
