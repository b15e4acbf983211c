"""A worker's end of the line to its manager: what is asked, answered, lost and refused."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.net import driven
from mailproxy.net.engine import Engine
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.manager_line import (
    MAX_QUESTIONS,
    MAX_QUEUED,
    ManagerError,
    ManagerLine,
)
from mailproxy.net.messages import (
    COMPLAINT_PAUSE,
    MAX_FRAME,
    Message,
    MessageError,
    read_frame,
    write_frame,
)
from tests.captured_log import CapturedLog

ASK, ANSWER = 10, 11


class Manager:
    """The other end, at which a test plays the manager.

    Attributes:
      line: what the worker has.
      engine: the worker's.
      log: what was logged.
    """

    def __init__(self, line: ManagerLine, engine: Engine, end: socket.socket) -> None:
        self.line = line
        self.engine = engine
        self.log = CapturedLog()
        self.socket = end

    def say(self, message: Message) -> None:
        self.socket.send(write_frame(message))

    def hello(self) -> None:
        self.say(Message(LineKind.HELLO, body={"pid": 7}))

    async def hear(self) -> Message:
        """The next message of the worker."""
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(self.socket)
        return read_frame(self.socket.recv(MAX_FRAME))

    async def greeted(self) -> None:
        """Say hello, and hear the worker's."""
        self.hello()
        assert (await self.hear()).kind == LineKind.HELLO

    @property
    def said(self) -> list[str]:
        """What was logged."""
        return [f"[{level}] {text}" for level, text in self.log.events]

    def nothing_more(self) -> None:
        with pytest.raises(BlockingIOError):
            self.socket.recv(1)


@asynccontextmanager
async def manager(room: int = 0) -> AsyncIterator[Manager]:
    """A worker's line, on an engine that runs.

    Args:
      room: octets that the line has room for; 0: as it is.
    """
    ours, theirs = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
    )
    if room:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
    engine = Engine(2)
    line = ManagerLine(engine)
    other = Manager(line, engine, theirs)
    line.connect(ours, lambda: other.log.log)
    line.open()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            yield other
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    finally:
        theirs.close()
        line.close()
        engine.close()


Result = Message | BaseException
Begin = Callable[..., Awaitable[list[Result]]]


@pytest.fixture(params=["trio", "driven"])
def asking(request: pytest.FixtureRequest) -> str:
    """Which tasks ask: trio's own, or sessions."""
    return str(request.param)


class Askers:
    """Tasks that ask, and what became of them."""

    def __init__(self, kind: str, other: Manager, nursery: trio.Nursery) -> None:
        self.results: list[Result] = []
        self._kind = kind
        self._other = other
        self._nursery = nursery

    async def start(
        self, count: int = 1, body: dict[str, object] | None = None
    ) -> None:
        """Let so many ask, up to their first wait."""
        for _ in range(count):
            if self._kind == "driven":
                engine = self._other.engine
                self._nursery.start_soon(driven.run, engine, self._ask, body)
            else:
                self._nursery.start_soon(self._ask, body)
        await wait_all_tasks_blocked()

    async def _ask(self, body: dict[str, object] | None) -> None:
        try:
            self.results.append(await self._other.line.ask(ASK, body or {"user": "u"}))
        except ManagerError as error:
            self.results.append(error)

    @property
    def failures(self) -> list[str]:
        """The texts of those that failed."""
        return [str(each) for each in self.results if isinstance(each, ManagerError)]


@asynccontextmanager
async def askers(kind: str, room: int = 0) -> AsyncIterator[tuple[Manager, Askers]]:
    async with manager(room) as other, trio.open_nursery() as nursery:
        yield other, Askers(kind, other, nursery)
        nursery.cancel_scope.cancel()


class TestAsking:
    async def test_answers_come_in_any_order(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            await tasks.start(3)
            asked = [await other.hear() for _ in range(3)]
            assert {each.kind for each in asked} == {ASK}
            assert len({each.request for each in asked} - {0}) == 3
            for each in reversed(asked):
                other.say(Message(ANSWER, each.request, {"n": each.request}))
            await wait_all_tasks_blocked()
            for each in asked:
                assert (
                    Message(ANSWER, each.request, {"n": each.request}) in tasks.results
                )
            assert len(tasks.results) == 3

    async def test_a_question_waits_for_the_first_hello(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await tasks.start()
            other.nothing_more()
            await other.greeted()
            question = await other.hear()
            other.say(Message(ANSWER, question.request))
            await wait_all_tasks_blocked()
            assert tasks.results == [Message(ANSWER, question.request)]

    async def test_overloaded_manager_is_an_error(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            await tasks.start()
            other.say(Message(LineKind.OVERLOADED, (await other.hear()).request))
            await wait_all_tasks_blocked()
            assert tasks.failures == ["manager is overloaded"]

    async def test_late_answer_is_dropped(
        self, autojump_clock: MockClock, asking: str
    ) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            with trio.move_on_after(1):
                await other.line.ask(ASK, {})
            question, cancel = await other.hear(), await other.hear()
            assert cancel == Message(LineKind.CANCEL, 0, {"id": question.request})
            other.say(Message(ANSWER, question.request))
            await tasks.start()
            other.say(Message(ANSWER, (await other.hear()).request))
            await wait_all_tasks_blocked()
            assert len(tasks.results) == 1
        assert other.said == []

    async def test_a_session_gives_up_by_its_own_timer(self) -> None:
        async with manager() as other, trio.open_nursery() as nursery:
            await other.greeted()
            given_up = trio.Event()

            async def session() -> None:
                task = other.engine.current
                assert task is not None
                with task.at_most(0.01):
                    await other.line.ask(ASK, {})
                other.engine.woke = True
                given_up.set()

            nursery.start_soon(driven.run, other.engine, session)
            question = await other.hear()
            assert (await other.hear()).body == {"id": question.request}
            await given_up.wait()

    async def test_what_was_not_sent_yet_is_taken_back_in_silence(
        self, autojump_clock: MockClock
    ) -> None:
        async with manager() as other:
            with trio.move_on_after(1):
                await other.line.ask(ASK, {})
            await other.greeted()
            other.nothing_more()

    async def test_too_long_a_question_is_none(self) -> None:
        async with manager() as other:
            with pytest.raises(ValueError, match="too long"):
                await other.line.ask(ASK, {"user": "x" * MAX_FRAME})


class TestBounds:
    async def test_so_many_questions_and_no_more(self, asking: str) -> None:
        async with askers(asking, room=1 << 20) as (other, tasks):
            await other.greeted()
            await tasks.start(MAX_QUESTIONS)
            assert tasks.results == []
            await tasks.start()
            assert tasks.failures == ["manager is overloaded"]
            other.say(Message(ANSWER, (await other.hear()).request))
            await wait_all_tasks_blocked()
            await tasks.start()
            assert len(tasks.results) == 2

    async def test_so_many_octets_wait_for_room(self, asking: str) -> None:
        async with askers(asking, room=1 << 16) as (other, tasks):
            await other.greeted()
            body: dict[str, object] = {"user": "x" * 16_000}
            asked = 0
            while not tasks.results:
                await tasks.start(body=body)
                asked += 1
            assert MAX_QUEUED <= 16_000 * asked <= MAX_QUEUED + (1 << 18)
            assert tasks.failures == ["manager is overloaded"]
            other.line.tell(LineKind.REPORT, {})  # has no room either, and may be lost

    async def test_what_waits_is_sent_in_order_once_there_is_room(self) -> None:
        async with manager(room=4096) as other:
            await other.greeted()
            for number in range(200):
                other.line.tell(LineKind.REPORT, {"n": number, "x": "x" * 500})
            numbers = [(await other.hear()).body["n"] for _ in range(200)]
            assert numbers == [*range(200)]
            assert other.said == []


class TestLife:
    async def test_a_dead_manager_fails_what_was_asked(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            await tasks.start(200)
            other.line.lost()
            assert not other.line.is_open
            await wait_all_tasks_blocked()
            assert tasks.failures == ["manager is not running"] * 200
            await tasks.start()
            assert tasks.failures[200:] == ["manager is not running"]

    async def test_the_next_one_is_asked_from_its_hello_on(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            other.line.lost()
            await other.greeted()
            assert other.line.is_open
            await tasks.start()
            other.say(Message(ANSWER, (await other.hear()).request))
            await wait_all_tasks_blocked()
            assert len(tasks.results) == 1
            assert tasks.failures == []

    async def test_hello_fails_what_another_one_was_asked(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            await tasks.start(3)
            other.hello()
            await wait_all_tasks_blocked()
            assert tasks.failures == ["manager is not running"] * 3

    async def test_without_a_manager_there_is_no_answer(self) -> None:
        engine = Engine(1)
        line = ManagerLine(engine)
        line.open()
        with pytest.raises(ManagerError, match=r"^manager is not running$"):
            await line.ask(ASK, {})
        line.tell(LineKind.REPORT, {})
        line.lost()
        line.close()
        engine.close()

    async def test_a_closed_line_is_no_manager(self, asking: str) -> None:
        async with askers(asking) as (other, tasks):
            await other.greeted()
            await tasks.start()
            other.socket.close()
            await wait_all_tasks_blocked()
            assert tasks.failures == ["manager is not running"]
            await tasks.start()
            assert len(tasks.failures) == 2

    async def test_line_takes_none_of_the_connections(self) -> None:
        async with manager() as other:
            assert not other.engine.full
            limit = other.engine.limit
            other.line.close()
            assert other.engine.limit == limit - 1


class TestHearing:
    async def test_subscribers_hear_their_kind(self) -> None:
        async with manager() as other:
            heard: list[object] = []
            other.line.subscribe(LineKind.PEERS, heard.append)
            for number in range(100):
                other.say(Message(LineKind.PEERS, body={"n": number}))
            await wait_all_tasks_blocked()
            assert heard == [{"n": number} for number in range(100)]

    @pytest.mark.parametrize(
        "frame",
        [
            b"",
            b"hello",
            write_frame(Message(LineKind.PEERS, body={"not": "news"})),
            write_frame(Message(99, body={})),
            write_frame(Message(12345)),
            bytes(MAX_FRAME),
            bytes(MAX_FRAME + 1),
        ],
        ids=["empty", "text", "refused", "answer", "kind", "zeros", "too long"],
    )
    async def test_invalid_message_is_dropped(
        self, autojump_clock: MockClock, frame: bytes
    ) -> None:
        def refuse(_: object) -> None:
            raise MessageError("no")

        line = "[alert] the manager sent an invalid message"
        async with manager() as other:
            other.line.subscribe(LineKind.PEERS, refuse)
            await other.greeted()
            for _ in range(3):
                other.socket.send(frame)
            await wait_all_tasks_blocked()
            assert other.said == [line]
            await trio.sleep(COMPLAINT_PAUSE)
            other.socket.send(frame)
            await wait_all_tasks_blocked()
            assert other.said == [line] * 2
            assert other.line.is_open

    async def test_a_bug_of_a_subscriber_is_logged(self) -> None:
        def fail(_: object) -> None:
            raise KeyError("oh")

        async with manager() as other:
            other.line.subscribe(LineKind.PEERS, fail)
            other.say(Message(LineKind.PEERS))
            await other.greeted()
            assert "a message of the manager failed, this is a bug" in other.said[0]


def test_answers_have_no_repr_of_their_body(tmp_path: Path) -> None:
    assert "secret" not in repr(Message(ANSWER, 1, {"password": "secret"}))
