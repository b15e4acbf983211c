"""A worker's line to the manager process: questions, answers, and what each tells.

Sessions ask (`ask`) and wait; the manager's answers come in any order. What the manager
tells unasked goes to whoever has `subscribed` to that kind. The engine drives all of it,
so an answer resumes the session that waits for it at once.

The life of the line:

    waiting   the manager has not greeted yet: questions wait in the line's outbox
    open      from its HELLO on
    closed    the manager has died, and the master has said so (`lost`): questions fail
              at once, until another manager says HELLO

A manager that greets knows nothing of what its predecessor was asked. So each HELLO
fails all questions that have been sent, and none that wait to be sent.

Everything has a bound: `MAX_QUESTIONS` wait for answers, and `MAX_QUEUED` octets for room
in the line. Beyond them a question fails at once: the manager is overloaded.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from mailproxy.errors import AuthError
from mailproxy.log import Logger
from mailproxy.net.calls import READABLE, WRITABLE
from mailproxy.net.driven import DrivenTask
from mailproxy.net.engine import Engine, Handler, TrioTask
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import (
    MAX_FRAME,
    Complaints,
    Message,
    MessageError,
    read_frame,
    write_frame,
)
from mailproxy.net.watched import receive_packet

MAX_QUESTIONS = 1000
"""Questions of a worker that may wait for an answer."""
MAX_QUEUED = 256 * 1024
"""Octets that may wait for room in the line."""
MAX_IN_A_ROW = 16
"""Messages that are read before other descriptors have their turn."""
_MAX_REQUEST = 2**32 - 1


Subscriber = Callable[[Mapping[str, object]], None]
"""Takes the body of what the manager tells; raises MessageError if it is not as it must
be."""


class ManagerError(AuthError):
    """The manager does not answer a question. It may do so later."""


def overloaded() -> ManagerError:
    """Return the error for a question that is one too many."""
    return ManagerError("manager is overloaded")


def not_running() -> ManagerError:
    """Return the error for a question while there is no manager."""
    return ManagerError("manager is not running")


class _State(Enum):
    WAITING = "waiting"
    OPEN = "open"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class _Question:
    """A question that waits for its answer, and who waits."""

    waiter: DrivenTask | TrioTask
    answer: Message | None = None
    failure: Callable[[], ManagerError] | None = None

    @property
    def is_over(self) -> bool:
        return self.answer is not None or self.failure is not None


class ManagerLine(Handler):
    """See the module's docstring. A line without a socket is closed for ever."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._socket: socket.socket | None = None
        self._state = _State.CLOSED
        self._log: Callable[[], Logger] | None = None
        self._complaints = Complaints(lambda: engine.time())
        self._questions: dict[int, _Question] = {}
        self._requests = itertools.count(1)
        self._outbox: deque[tuple[int, bytes]] = deque()
        self._queued = 0
        self._subscribers: dict[int, Subscriber] = {}
        self._has_more = False
        self._watched = -1
        """The descriptor that the engine watches; -1: none."""

    # Set-up

    def connect(self, line: socket.socket | None, log: Callable[[], Logger]) -> None:
        """Use this socket, non-blocking and SOCK_SEQPACKET, if there is one."""
        self._socket, self._log = line, log

    def open(self) -> None:
        """Begin to talk. The descriptor takes none of the `worker_connections`.

        Raises:
          OSError: epoll cannot watch it.
        """
        if self._socket is None:
            return
        self._engine.limit += 1
        try:
            self._engine.register(self._socket.fileno(), self)
        except BaseException:
            self._engine.limit -= 1
            raise
        self._watched = self._socket.fileno()
        self._state = _State.WAITING

    def close(self) -> None:
        """Close the line; no session may be waiting. A second call does nothing."""
        self._state = _State.CLOSED
        if self._watched >= 0:
            self._engine.unregister(self._watched)
            self._engine.limit -= 1
            self._watched = -1
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def subscribe(self, kind: int, subscriber: Subscriber) -> None:
        """Have a function told of what the manager tells, by the kind of message."""
        self._subscribers[kind] = subscriber

    # Talking

    async def ask(self, kind: int, body: Mapping[str, object]) -> Message:
        """Ask the manager, and return its answer; by the time limits of the caller.

        If those end the waiting, the manager is told that nobody waits any more.

        Raises:
          ManagerError: there is no manager, or it does not answer.
          ValueError: the body is too long for a message.
        """
        if self._state is _State.CLOSED:
            raise not_running()
        if len(self._questions) >= MAX_QUESTIONS or self._queued >= MAX_QUEUED:
            raise overloaded()
        request = self._next_request()
        frame = write_frame(Message(kind, request, body))
        question = _Question(self._engine.waiter())
        self._questions[request] = question
        try:
            self._send(request, frame)
            while not question.is_over:
                await question.waiter.park()
        finally:
            del self._questions[request]
            if not question.is_over:
                self._cancel(request)
        if question.answer is None:
            assert question.failure is not None
            raise question.failure()
        return question.answer

    @property
    def is_open(self) -> bool:
        """Whether a manager has greeted, and is not known to have died."""
        return self._state is _State.OPEN

    def tell(self, kind: int, body: Mapping[str, object]) -> None:
        """Tell the manager something that it can do without, and may never get."""
        if self._state is _State.CLOSED or self._queued >= MAX_QUEUED:
            return
        self._send(0, write_frame(Message(kind, body=body)))

    def lost(self) -> None:
        """Fail what was asked, and what is asked before another manager greets."""
        if self._state is not _State.CLOSED:
            self._state = _State.CLOSED
            # In its own round: this may be called by a task of trio.
            self._engine.again(self._fail_all)

    def _next_request(self) -> int:
        """A number that no waiting question has; never 0, which means "no answer"."""
        while True:
            request = next(self._requests) & _MAX_REQUEST
            if request and request not in self._questions:
                return request

    def _send(self, request: int, frame: bytes) -> None:
        if self._state is not _State.OPEN or self._outbox or not self._try(frame):
            self._outbox.append((request, frame))
            self._queued += len(frame)

    def _try(self, frame: bytes) -> bool:
        """Send a frame; False if there is no room in the line."""
        assert self._socket is not None
        try:
            self._socket.send(frame)
        except BlockingIOError:
            return False
        except OSError:  # nobody has the other end
            self.lost()
        return True

    def _flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._outbox and self._state is _State.OPEN:
            _, frame = self._outbox[0]
            if not self._try(frame):
                return
            # Unless it was dropped with all others, as the line is closed.
            if self._outbox:
                self._outbox.popleft()
                self._queued -= len(frame)

    def _cancel(self, request: int) -> None:
        """Take back a question; tell the manager, if it has got it."""
        for waiting in self._outbox:
            if waiting[0] == request:
                self._outbox.remove(waiting)
                self._queued -= len(waiting[1])
                return
        if self._state is _State.OPEN:
            self._send(0, write_frame(Message(LineKind.CANCEL, body={"id": request})))

    # Listening

    def ready(self, events: int) -> None:
        """Receive, and send what waits: called by the engine."""
        if events & WRITABLE:
            self._flush()
        if events & READABLE and not self._has_more:
            self._receive()

    def _go_on(self) -> None:
        self._has_more = False
        self._receive()

    def _receive(self) -> None:
        for _ in range(MAX_IN_A_ROW):
            if self._socket is None:
                return
            try:
                frame = receive_packet(self._socket, MAX_FRAME + 1)
            except BlockingIOError:
                return
            except OSError:
                frame = None
            if frame is None:  # neither a manager nor a master has the other end
                self.lost()
                return
            self._hear(frame)
        self._has_more = True
        self._engine.again(self._go_on)

    def _hear(self, frame: bytes) -> None:
        assert self._log is not None, "it is connected"
        try:
            self._take(read_frame(frame))
        except MessageError:
            if self._complaints.is_due():
                self._log().alert("the manager sent an invalid message")
        except Exception as error:  # noqa: BLE001 # a bug of a subscriber, and no reason to stop
            self._log().exception(
                "a message of the manager failed, this is a bug", exception=error
            )

    def _take(self, message: Message) -> None:
        """Understand a message.

        Raises:
          MessageError: it is none of those that this line has.
        """
        if message.kind == LineKind.HELLO:
            self._greeted()
        elif message.request:
            question = self._questions.get(message.request)
            if question is not None and not question.is_over:  # else nobody waits
                if message.kind == LineKind.OVERLOADED:
                    question.failure = overloaded
                else:
                    question.answer = message
                question.waiter.resume()
        elif message.kind in self._subscribers:
            self._subscribers[message.kind](message.body)
        else:
            raise MessageError(f"unknown kind {message.kind}")

    def _greeted(self) -> None:
        """Note that there is a manager, which may be another one than before."""
        waiting = {request for request, _ in self._outbox}
        self._state = _State.OPEN
        self._outbox.appendleft(
            (0, write_frame(Message(LineKind.HELLO, body={"pid": os.getpid()})))
        )
        self._queued += len(self._outbox[0][1])
        self._fail(set(self._questions) - waiting)
        self._flush()

    def _fail_all(self) -> None:
        if self._state is _State.CLOSED:  # and nobody has greeted meanwhile
            self._outbox.clear()
            self._queued = 0
            self._fail(set(self._questions))

    def _fail(self, requests: set[int]) -> None:
        for request in requests:
            question = self._questions.get(request)
            if question is not None and not question.is_over:
                question.failure = not_running
                question.waiter.resume()
