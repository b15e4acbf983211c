"""What workers ask the manager, and that none of them gets the better of it."""

from __future__ import annotations

import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.manager.hub import MAX_WAITING, Hub, ManagedWorker
from mailproxy.manager.services import Answering, Body, ManagerService
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.manager_line import MAX_QUESTIONS
from mailproxy.net.messages import (
    COMPLAINT_PAUSE,
    MAX_FRAME,
    Message,
    MessageError,
    write_frame,
)
from tests.manager.ends import manager

ASK, ANSWER, TELL = 10, 11, 13


class Echo(ManagerService):
    """Answers with the question, once `gate` is open; keeps what it is told."""

    name = "echo"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, Body]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.cancelled = 0
        self.takes[TELL] = lambda worker, body: self.told.append((worker.pid, body))
        self.answers[ASK] = Answering(ANSWER, self._answer)

    async def _answer(self, _: ManagedWorker, body: Body) -> Body:
        if body.get("fail"):
            raise KeyError("oh")
        if body.get("refuse"):
            raise MessageError("no question")
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return body


async def test_questions_are_answered_when_the_answer_is_there() -> None:
    service = Echo()
    service.gate = trio.Event()
    async with manager(service) as ends:
        first, second = await ends.greeted(101), await ends.greeted(102)
        first.say(ASK, {"n": 1}, request=7)
        second.say(ASK, {"n": 2}, request=7)
        assert await first.heard() == []
        service.gate.set()
        assert await first.hear() == Message(ANSWER, 7, {"n": 1})
        assert await second.hear() == Message(ANSWER, 7, {"n": 2})


async def test_cancelled_question_has_no_answer() -> None:
    service = Echo()
    service.gate = trio.Event()
    async with manager(service) as ends:
        worker = await ends.greeted(101)
        worker.say(ASK, {}, request=7)
        worker.say(ASK, {}, request=8)
        worker.say(LineKind.CANCEL, {"id": 7})
        worker.say(LineKind.CANCEL, {"id": 9})
        await wait_all_tasks_blocked()
        assert service.cancelled == 1
        service.gate.set()
        assert [each.request for each in await worker.heard()] == [8]
    assert ends.said == []


async def test_too_many_questions_are_refused() -> None:
    service = Echo()
    service.gate = trio.Event()
    async with manager(service) as ends:
        worker = await ends.greeted(101)
        for request in range(1, MAX_QUESTIONS + 1):
            worker.say(ASK, {}, request=request)
            if not request % 50:
                await wait_all_tasks_blocked()
        worker.say(ASK, {}, request=MAX_QUESTIONS + 1)
        assert await worker.heard() == [Message(LineKind.OVERLOADED, MAX_QUESTIONS + 1)]
        other = await ends.greeted(102)
        service.gate.set()
        other.say(ASK, {}, request=1)
        assert await other.heard() == [Message(ANSWER, 1)]


async def test_a_bug_fails_one_question() -> None:
    async with manager(Echo()) as ends:
        worker = await ends.greeted(101)
        worker.say(ASK, {"fail": True}, request=1)
        worker.say(ASK, {"refuse": True}, request=2)
        worker.say(ASK, {}, request=3)
        answers = {each.request: each.kind for each in await worker.heard()}
        assert answers == {
            1: LineKind.OVERLOADED,
            2: LineKind.OVERLOADED,
            3: ANSWER,
        }
    bug = "[alert] a question of a worker failed, this is a bug"
    assert any(line.startswith(bug) for line in ends.said)
    assert "[alert] worker 101 sent an invalid message" in ends.said


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"hello",
        write_frame(Message(ASK)),
        write_frame(Message(TELL, 5)),
        write_frame(Message(12345, 1)),
        write_frame(Message(LineKind.HELLO, body={"pid": 102})),
        write_frame(Message(LineKind.CANCEL, body={"id": [1]})),
        write_frame(Message(LineKind.PEERS)),
        bytes(MAX_FRAME),
        bytes(MAX_FRAME + 1),
    ],
    ids=[
        *("empty", "text", "no request", "no question", "kind", "other pid"),
        *("no id", "not for it", "zeros", "too long"),
    ],
)
async def test_invalid_message_is_dropped(
    autojump_clock: MockClock, frame: bytes
) -> None:
    line = "[alert] worker 101 sent an invalid message"
    async with manager(Echo()) as ends:
        worker = await ends.greeted(101)
        for _ in range(3):
            worker.socket.send(frame)
        worker.say(ASK, {}, request=1)
        assert await worker.heard() == [Message(ANSWER, 1)]
        assert ends.said == [line]
        await trio.sleep(COMPLAINT_PAUSE)
        worker.socket.send(frame)
        await wait_all_tasks_blocked()
        assert ends.said == [line] * 2


async def test_two_questions_with_one_number_are_invalid() -> None:
    service = Echo()
    service.gate = trio.Event()
    async with manager(service) as ends:
        worker = await ends.greeted(101)
        worker.say(ASK, {}, request=1)
        worker.say(ASK, {}, request=1)
        await wait_all_tasks_blocked()
        assert ends.said == ["[alert] worker 101 sent an invalid message"]
        service.gate.set()
        assert await worker.heard() == [Message(ANSWER, 1)]


async def test_a_worker_that_floods_does_not_stop_the_others() -> None:
    """A hundred thousand frames, most of them rubbish."""
    service = Echo()
    async with manager(service) as ends:
        noisy, quiet = await ends.greeted(101), await ends.greeted(102)
        frames = [b"", b"x" * 100, bytes(MAX_FRAME), write_frame(Message(777, 1))]
        sent = answered = 0
        asked = False
        while sent < 100_000:
            try:
                noisy.socket.send(frames[sent % 4] if sent % 16 < 8 else b"x")
                sent += 1
            except BlockingIOError:
                if not asked:
                    quiet.say(ASK, {}, request=answered + 1)
                    asked = True
                await trio.lowlevel.checkpoint()
                try:
                    quiet.socket.recv(MAX_FRAME)
                    answered += 1
                    asked = False
                except BlockingIOError:
                    pass
        assert answered > 100
        quiet.say(TELL, {"still": "there"})
        noisy.say(TELL, {"also": "there"})
        await wait_all_tasks_blocked()
        assert len(service.told) == 2
    assert set(ends.said) == {"[alert] worker 101 sent an invalid message"}
    assert len(ends.said) < 60


async def test_who_does_not_listen_is_not_read_any_more() -> None:
    async with manager(Echo()) as ends:
        deaf, other = await ends.greeted(101), await ends.greeted(102)
        sent = 0
        while True:
            try:
                deaf.say(ASK, {"x": "x" * 1000}, request=sent + 1)
                sent += 1
            except BlockingIOError:
                await wait_all_tasks_blocked()
                try:
                    deaf.say(ASK, {"x": "x" * 1000}, request=sent + 1)
                    sent += 1
                except BlockingIOError:
                    break
            assert sent < 2 * MAX_WAITING
        other.say(ASK, {}, request=1)
        assert await other.heard() == [Message(ANSWER, 1)]
        answers = 0
        while answers < sent:
            answers += len(await deaf.heard())
        deaf.say(ASK, {}, request=1)
        assert await deaf.heard() == [Message(ANSWER, 1)]


async def test_new_state_replaces_old_state_that_was_not_sent() -> None:
    class Stateful(ManagerService):
        name = "stateful"

    service = Stateful()
    async with manager(service) as ends:
        worker = await ends.greeted(101)
        (managed,) = ends.hub.workers.values()
        for number in range(1000):
            for topic in ("a", "b"):
                parts = [
                    Message(LineKind.PEERS, body={topic: number, "part": part})
                    for part in range(2)
                ]
                managed.push(topic, parts)
        assert [each.body for each in await worker.heard()] == [
            {"a": 999, "part": 0},
            {"a": 999, "part": 1},
            {"b": 999, "part": 0},
            {"b": 999, "part": 1},
        ]


async def test_what_waits_in_an_inherited_line_is_thrown_away() -> None:
    service = Echo()
    async with manager(service) as ends:
        ours, theirs = ends.line()
        for request in (1, 2):
            theirs.send(write_frame(Message(ASK, request)))
        theirs.send(b"")
        theirs.send(write_frame(Message(TELL)))
        ends.hub.join(1, 101, ours, inherited=True)
        await wait_all_tasks_blocked()
        assert service.told == []
        assert theirs.recv(MAX_FRAME) == write_frame(
            Message(LineKind.HELLO, body={"pid": os.getpid()})
        )
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


async def test_a_worker_that_ends_is_forgotten() -> None:
    service = Echo()
    service.gate = trio.Event()
    async with manager(service) as ends:
        worker = await ends.greeted(101)
        await ends.greeted(102)
        worker.say(ASK, {}, request=1)
        await wait_all_tasks_blocked()
        worker.socket.close()
        await wait_all_tasks_blocked()
        assert [*ends.hub.workers] == [102]
        assert service.cancelled == 1


async def test_deserted_is_who_has_no_worker() -> None:
    async with manager(Echo()) as ends, trio.open_nursery() as nursery:
        worker = await ends.greeted(101)
        deserted = trio.Event()

        async def wait() -> None:
            await ends.hub.wait_deserted()
            deserted.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not deserted.is_set()
        worker.socket.close()
        await deserted.wait()


async def test_failed_service_is_started_again_later_each_time(
    autojump_clock: MockClock,
) -> None:
    class Faulty(ManagerService):
        name = "faulty"
        began: list[float] = []  # noqa: RUF012 - of this test

        async def run(self, hub: Hub) -> None:
            self.began.append(trio.current_time())
            raise KeyError("oh")

    async with manager(Faulty()) as ends:
        begin = trio.current_time()
        await trio.sleep(8)
        assert [round(at - begin) for at in Faulty.began] == [0, 1, 3, 7]
    assert ends.said[0].startswith('[alert] service "faulty" failed, this is a bug')
