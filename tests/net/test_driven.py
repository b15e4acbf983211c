"""Driven tasks: their timer, their way into trio and back, their end.

Each scenario runs twice: under the engine's own clock, as in a worker, in a process of
its own (see `test_engine`); and under a virtual clock, where the engine waits as a task.
`SOON` and `LATER` are seconds of either. All runs are watched: the engine has no current
task while trio's run, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from mailproxy.errors import ClientTimeoutError, SessionError
from mailproxy.net import driven
from mailproxy.net import engine as engine_module
from mailproxy.net.calls import READABLE
from mailproxy.net.driven import DrivenTask
from mailproxy.net.engine import SWEEP_PAUSE, Engine, Handler
from mailproxy.net.relay import Relay
from mailproxy.net.wire import Wire
from tests.net.test_engine import in_a_process

SOON = 0.002
LATER = 3600.0
Scenario = Callable[["Stage"], Awaitable[None]]


class LateError(SessionError):
    """A phase is over."""


@contextmanager
def phase(timer: DrivenTask, *, raises: type[BaseException]) -> Iterator[None]:
    """Use the timer for a block that ends with an error."""
    with pytest.raises(raises), timer:
        yield


class Watch(trio.abc.Instrument):
    """Sees that no driven task is the current one while a task of trio runs."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        assert self.engine.current is None, task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        assert self.engine.current is None, task


class Stage:
    """Driven tasks, and what they wait for.

    Attributes:
      notes: what has happened, in order.
      sessions: the nursery of the tasks, as that of a listener.
    """

    def __init__(self, engine: Engine, sessions: trio.Nursery) -> None:
        self.engine = engine
        self.relay = Relay(engine)
        self.sessions = sessions
        self.notes: list[str] = []
        self._news = trio.Event()
        self._open: list[Wire | socket.socket] = []

    @property
    def task(self) -> DrivenTask:
        """The task that runs."""
        assert self.engine.current is not None
        return self.engine.current

    def start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Begin a driven task."""
        self.sessions.start_soon(self._run, work, *args)

    async def _run(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await driven.run(self.engine, work, *args)
        finally:
            # It is an ordinary task again.
            assert self.engine.current is None
            self.note("over")

    def note(self, text: str) -> None:
        """Write down that something has happened, and let `until` know."""
        self.notes.append(text)
        self.engine.woke = True
        self._news.set()

    async def until(self, text: str, times: int = 1) -> None:
        """Wait for a note."""
        while self.notes.count(text) < times:
            self._news = trio.Event()
            await self._news.wait()

    def wire(self) -> tuple[Wire, socket.socket]:
        """A wire, and its far end."""
        ours, far = socket.socketpair()
        ours.setblocking(False)
        wire = Wire(self.engine, ours.detach())
        self._open += wire, far
        return wire, far

    def close(self) -> None:
        for each in self._open:
            each.close()
        self.relay.close()

    def check(self) -> None:
        """Nothing is left of the tasks."""
        engine = self.engine
        assert engine.current is None
        assert not engine.limited
        assert not len(self.relay)


@asynccontextmanager
async def stage(engine: Engine) -> AsyncIterator[Stage]:
    """A stage; its tasks have to end by themselves."""
    watch = Watch(engine)
    trio.lowlevel.add_instrument(watch)
    async with trio.open_nursery() as services:
        services.start_soon(engine.run)
        here = None
        try:
            async with trio.open_nursery() as sessions:
                here = Stage(engine, sessions)
                services.start_soon(here.relay.expire)
                try:
                    yield here
                except BaseException:
                    sessions.cancel_scope.cancel()
                    raise
            here.check()
        finally:
            assert here is not None
            here.close()
        services.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(watch)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def in_both_ways(scenario: Scenario) -> Callable[..., None]:
    """Make a test that plays a scenario in trio's place, and again as a task of trio."""

    async def play(engine: Engine) -> None:
        with trio.fail_after(2 * LATER if not engine.clock.in_use else 20):
            async with stage(engine) as here:
                await scenario(here)

    in_place = in_a_process(play)

    @pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
    def test(engine: Engine, *, in_trio: bool) -> None:
        if in_trio:
            trio.run(play, engine, clock=MockClock(autojump_threshold=0))
        else:
            in_place(engine=engine)

    test.__doc__ = scenario.__doc__
    return test


# The timer


@in_both_ways
async def test_a_phase_that_is_over_raises_its_error(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        wire, _ = here.wire()
        with phase(timer, raises=LateError):
            timer.limit(SOON, LateError)
            await wire.receive_some()
        with phase(timer, raises=ClientTimeoutError):
            timer.limit(LATER, LateError)
            timer.limit(SOON)
            await wire.receive_some()
        assert here.engine.current is timer

    here.start(session)


@in_both_ways
async def test_a_phase_without_a_limit_goes_on(here: Stage) -> None:
    wire, far = here.wire()

    async def session() -> None:
        timer = here.task
        with timer:
            timer.limit(SOON, LateError)
            timer.stop()
            assert await wire.receive_some() == b"x"

    async def client() -> None:
        await here.task.sleep(3 * SOON)
        far.send(b"x")

    here.start(session)
    here.start(client)


@in_both_ways
async def test_a_phase_begins_anew(here: Stage) -> None:
    """As often as there is something to do before it is over."""

    async def session() -> None:
        timer = here.task
        began = here.engine.time()
        with timer:
            for _ in range(5):
                timer.limit(20 * SOON, LateError)
                await timer.sleep(5 * SOON)
        assert here.engine.time() - began >= 25 * SOON

    here.start(session)


@in_both_ways
async def test_the_error_of_the_work_is_not_that_of_the_timer(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        with phase(timer, raises=LookupError):
            timer.limit(SOON, LateError)
            raise LookupError
        await timer.sleep(3 * SOON)  # the limit is over with its block

    here.start(session)


@in_both_ways
async def test_a_task_that_ends_has_no_limit_any_more(here: Stage) -> None:
    async def session() -> None:
        here.task.limit(SOON, LateError)

    async def waits_first() -> None:
        here.task.limit(LATER, LateError)
        await here.task.sleep(SOON)

    here.start(session)
    here.start(waits_first)


@in_both_ways
async def test_at_most_ends_without_an_error(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        wire, _ = here.wire()
        for _ in range(2):
            with timer.at_most(SOON):
                await wire.receive_some()
                raise AssertionError("nobody sends")
        with timer.at_most(LATER):
            await timer.sleep(SOON)

    here.start(session)


@in_both_ways
async def test_at_most_within_a_phase(here: Stage) -> None:
    """The phase goes on behind it, with its own limit."""

    async def session() -> None:
        timer = here.task
        wire, _ = here.wire()
        with phase(timer, raises=LateError):
            timer.limit(5 * SOON, LateError)
            with timer.at_most(SOON):
                await wire.receive_some()
            here.note("still in time")
            with timer.at_most(LATER):
                await wire.receive_some()
            raise AssertionError("the phase was over")
        assert here.notes == ["still in time"]

    here.start(session)


@in_both_ways
async def test_at_most_with_the_very_deadline_of_the_phase(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        now = here.engine.time()
        wire, _ = here.wire()
        with phase(timer, raises=LateError):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(here.engine, "time", lambda: now)
                timer.limit(SOON, LateError)
                shorter = timer.at_most(SOON)
                shorter.__enter__()
            with contextlib.ExitStack() as stack:
                stack.push(shorter)  # entered already, at the same moment
                await wire.receive_some()

    here.start(session)


@in_both_ways
async def test_at_most_in_at_most(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        with timer:
            timer.limit(LATER, LateError)
            with timer.at_most(6 * SOON):
                for _ in range(2):
                    with timer.at_most(SOON):
                        await timer.sleep(LATER)
                with timer.at_most(LATER):
                    await timer.sleep(LATER)
                raise AssertionError("the outer one was over")
            here.note("in time")
        assert here.notes == ["in time"]

    here.start(session)


@in_both_ways
async def test_sleeping(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        began = here.engine.time()
        await timer.sleep(3 * SOON)
        assert here.engine.time() - began >= 3 * SOON
        with phase(timer, raises=LateError):
            timer.limit(SOON, LateError)
            await timer.sleep(LATER)

    here.start(session)


@in_both_ways
async def test_to_sleep_for_no_time_gives_others_their_turn(here: Stage) -> None:
    async def session(name: str) -> None:
        for _ in range(3):
            here.note(name)
            await here.task.sleep(0)

    here.start(session, "a")
    here.start(session, "b")
    await here.until("over", times=2)
    rounds = [set(here.notes[at : at + 2]) for at in (0, 2, 4)]
    assert rounds == [{"a", "b"}] * 3


# In trio, and back


@in_both_ways
async def test_in_trio_anything_of_trio_can_be_used(here: Stage) -> None:
    async def work(value: str, more: str) -> str:
        assert here.engine.current is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, SOON)
            with trio.move_on_after(SOON) as scope:
                await trio.sleep_forever()
        assert scope.cancelled_caught
        return value + more

    async def session() -> None:
        timer = here.task
        for _ in range(2):  # before the first wait, and again
            assert await timer.in_trio(work, "a", "b") == "ab"
            assert here.engine.current is timer
        with timer.at_most(SOON):
            await timer.sleep(LATER)
        assert await timer.in_trio(work, "c", "d") == "cd"

    here.start(session)


@in_both_ways
async def test_in_trio_a_wire_can_be_used_as_well(here: Stage) -> None:
    wire, far = here.wire()

    async def work() -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send_all, b"question")
            nursery.start_soon(answer)
            return await wire.receive_some()

    async def answer() -> None:
        await trio.lowlevel.checkpoint()
        assert far.recv(100) == b"question"
        far.send(b"answer")

    async def session() -> None:
        assert await here.task.in_trio(work) == b"answer"
        far.send(b"more")
        assert await wire.receive_some() == b"more"

    here.start(session)


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, LateError])
def test_in_trio_an_error_is_the_caller_s(
    engine: Engine, error: type[BaseException]
) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async def scenario() -> None:
        async with stage(engine) as here:

            async def session() -> None:
                timer = here.task
                wire, far = here.wire()
                with pytest.raises(error):
                    await timer.in_trio(work)
                assert here.engine.current is timer
                far.send(b"x")
                assert await wire.receive_some() == b"x"

            here.start(session)

    trio.run(scenario)


@in_both_ways
async def test_in_trio_the_limit_of_the_phase_holds(here: Stage) -> None:
    async def work() -> None:
        await trio.sleep(LATER)

    async def session() -> None:
        timer = here.task
        with phase(timer, raises=LateError):
            timer.limit(SOON, LateError)
            await timer.in_trio(work)
        assert here.engine.current is timer
        with timer:
            timer.limit(LATER, LateError)
            with timer.at_most(SOON):
                await timer.in_trio(work)
            here.note("in time")
            await timer.sleep(SOON)
        assert here.notes == ["in time"]

    here.start(session)


@in_both_ways
async def test_after_in_trio_the_limit_of_the_phase_holds(here: Stage) -> None:
    async def session() -> None:
        timer = here.task
        for seconds in (0, 3 * SOON):
            with phase(timer, raises=LateError):
                timer.limit(2 * SOON, LateError)
                await timer.in_trio(shielded, seconds)  # it may come back too late
                await timer.sleep(LATER)

    async def shielded(seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    here.start(session)


@in_both_ways
async def test_in_trio_without_a_wait_keeps_the_limit(here: Stage) -> None:
    async def work() -> int:
        return 7

    async def session() -> None:
        timer = here.task
        with phase(timer, raises=LateError):
            timer.limit(SOON, LateError)
            assert await timer.in_trio(work) == 7
            await timer.sleep(LATER)

    here.start(session)


# Cancellation: the nursery of a listener is cancelled with its sessions


async def receiving(here: Stage) -> None:
    wire, _ = here.wire()
    here.note("waits")
    await wire.receive_some()


async def sending(here: Stage) -> None:
    wire, _ = here.wire()
    here.note("waits")
    await wire.send_all(bytes(1 << 22))


async def relaying(here: Stage) -> None:
    client, backend = here.wire()[0], here.wire()[0]
    here.note("waits")
    await here.relay.carry(client, backend, idle_limit=LATER)


async def sleeping(here: Stage) -> None:
    here.note("waits")
    await here.task.sleep(LATER)


async def sleeping_in_a_phase(here: Stage) -> None:
    here.note("waits")
    with here.task:
        here.task.limit(LATER, LateError)
        with here.task.at_most(LATER / 2):
            await here.task.sleep(LATER)


async def in_trio(here: Stage) -> None:
    async def work() -> None:
        here.note("waits")
        try:
            await trio.sleep_forever()
        finally:
            here.note("cancelled in trio")

    with here.task:
        here.task.limit(LATER, LateError)
        await here.task.in_trio(work)


async def about_to_wait(here: Stage) -> None:
    """Cancelled by itself, and not waiting yet."""
    here.sessions.cancel_scope.cancel()
    here.note("waits")
    wire, far = here.wire()
    far.send(b"x")
    await wire.receive_some()


async def about_to_go_to_trio(here: Stage) -> None:
    async def work() -> None:
        here.note("waits")
        await trio.lowlevel.checkpoint()

    here.sessions.cancel_scope.cancel()
    await here.task.in_trio(work)


async def about_to_come_back(here: Stage) -> None:
    """It notices as it waits next, though in trio it was not to be cancelled."""

    async def work() -> None:
        with trio.CancelScope(shield=True):
            here.sessions.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()

    await here.task.in_trio(work)
    here.note("waits")
    await receiving(here)


WAITS = [
    *(receiving, sending, relaying, sleeping, sleeping_in_a_phase),
    *(in_trio, about_to_wait, about_to_go_to_trio, about_to_come_back),
]


def cancelled(wait: Callable[[Stage], Awaitable[None]], *, at_once: bool) -> Scenario:
    """A scenario that cancels two tasks while they wait, or before they have begun."""

    async def scenario(here: Stage) -> None:
        async def session() -> None:
            try:
                await wait(here)
            except trio.Cancelled:
                here.note("cancelled")
                raise
            finally:
                # It is with trio again, which cancels whatever it waits for.
                assert here.engine.current is None
                with pytest.raises(trio.Cancelled):
                    await here.wire()[0].receive_some()
                here.note("cleared up")

        here.start(session)
        here.start(session)
        if not at_once:
            await here.until("waits", 2 if "about" not in wait.__name__ else 1)
        here.sessions.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await here.until("over", 2)
        for text in ("cancelled", "cleared up", "over"):
            assert here.notes.count(text) == 2, here.notes

    return scenario


@pytest.mark.parametrize("at_once", [False, True], ids=["later", "at once"])
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
@pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
def test_cancelled(
    engine: Engine,
    wait: Callable[[Stage], Awaitable[None]],
    *,
    at_once: bool,
    in_trio: bool,
) -> None:
    in_both_ways(cancelled(wait, at_once=at_once))(engine, in_trio=in_trio)


@in_both_ways
async def test_cancelled_as_something_arrives(here: Stage) -> None:
    """Whichever comes first, it ends once, and is not resumed any more."""

    async def session(wire: Wire) -> None:
        try:
            while True:
                here.note("waits")
                await wire.receive_some()
        finally:
            here.note("cleared up")
            wire.close()

    pairs = [here.wire() for _ in range(6)]
    for wire, _ in pairs:
        here.start(session, wire)
    await here.until("waits", 6)
    for number, (_, far) in enumerate(pairs):
        if number % 2:
            far.send(b"x")
        if number == 3:
            here.sessions.cancel_scope.cancel()
        if number > 4:
            far.shutdown(socket.SHUT_WR)
    with trio.CancelScope(shield=True):
        await here.until("over", 6)
    assert here.notes.count("cleared up") == 6


@in_both_ways
async def test_cancelled_at_its_deadline(here: Stage) -> None:
    """The listener's nursery and the session have the same one, to the bit."""
    deadline = here.engine.time() + 5 * SOON

    async def session() -> None:
        timer = here.task
        wire, _ = here.wire()
        here.note("waits")
        try:
            with timer:
                timer.limit(LATER, LateError)
                timer.restore(deadline)
                await wire.receive_some()
        except (LateError, trio.Cancelled) as error:
            here.note(type(error).__name__)
            await here.wire()[0].receive_some()  # it is cancelled, too
        finally:
            here.note("cleared up")

    for _ in range(3):
        here.start(session)
    await here.until("waits", 3)
    here.sessions.cancel_scope.deadline = deadline
    with trio.CancelScope(shield=True):
        await here.until("over", 3)
    assert here.notes.count("cleared up") == 3


@in_both_ways
async def test_a_cancelled_task_that_is_just_ending_ends(here: Stage) -> None:
    async def session() -> None:
        await here.task.sleep(0)
        here.sessions.cancel_scope.cancel()

    here.start(session)
    with trio.CancelScope(shield=True):
        await here.until("over")


# Errors


class UnusualError(BaseException):
    """Is no Exception."""


@pytest.mark.parametrize("error", [LookupError, UnusualError])
@pytest.mark.parametrize("before", ["at once", "after a wait", "after trio", "late"])
@pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
def test_an_error_ends_the_nursery(
    engine: Engine, error: type[BaseException], before: str, *, in_trio: bool
) -> None:
    """As that of any task; the others are cancelled."""

    async def scenario(here: Stage) -> None:
        async def bad() -> None:
            timer = here.task
            if before == "after a wait":
                await timer.sleep(SOON)
            elif before == "after trio":
                await timer.in_trio(trio.sleep, SOON)
            with timer:
                timer.limit(SOON if before == "late" else LATER, error)  # type: ignore[arg-type] # only this timer can tell
                if before == "late":
                    await timer.sleep(LATER)
                raise error

        async def good() -> None:
            try:
                await receiving(here)
            finally:
                here.note("cleared up")

        here.start(good)
        await here.until("waits")
        here.start(bad)
        with trio.CancelScope(shield=True):
            await here.until("over", 2)
        assert "cleared up" in here.notes
        here.note("done")

    async def play(engine: Engine) -> None:
        notes: list[str] = []

        async def all_of_it() -> None:
            async with stage(engine) as here:
                here.notes = notes
                await scenario(here)

        with pytest.raises(BaseExceptionGroup) as raised:
            await all_of_it()
        assert raised.value.subgroup(error) is not None
        assert raised.value.split((error, trio.Cancelled))[1] is None
        assert notes[-1] == "done"
        assert not engine.limited

    if in_trio:
        trio.run(play, engine, clock=MockClock(autojump_threshold=0))
    else:
        in_a_process(play)(engine=engine)


# The trap: what takes trio's current task for its own


async def _sleep() -> None:
    await trio.sleep(SOON)


async def _let_others_run() -> None:
    await trio.lowlevel.checkpoint()


async def _wait_for_an_event() -> None:
    await trio.Event().wait()


async def _wait_for_a_thread() -> None:
    await trio.to_thread.run_sync(print)


async def _go_in_circles() -> None:
    await trio.lowlevel.cancel_shielded_checkpoint()


async def _open_a_scope() -> None:
    with trio.CancelScope():
        await trio.lowlevel.checkpoint()


async def _open_a_nursery() -> None:
    async with trio.open_nursery():
        await trio.lowlevel.checkpoint()


MISUSES = [
    *(_sleep, _let_others_run, _wait_for_an_event, _go_in_circles),
    *(_open_a_scope, _open_a_nursery),
]


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.__name__)
@pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
def test_a_driven_task_that_waits_as_trio_does_is_told(
    engine: Engine, misuse: Callable[[], Awaitable[None]], *, in_trio: bool
) -> None:
    """It gets an error, goes on, and no other task notices."""

    async def scenario(here: Stage) -> None:
        wire, far = here.wire()

        async def good() -> None:
            here.note("waits")
            assert await wire.receive_some() == b"x"

        async def bad() -> None:
            timer = here.task
            for _ in range(2):
                with pytest.raises((RuntimeError, ExceptionGroup)) as raised:
                    await misuse()
                if isinstance(raised.value, ExceptionGroup):
                    assert raised.value.subgroup(RuntimeError) is not None
                assert here.engine.current is timer
                await timer.sleep(0)
            far.send(b"x")
            await timer.in_trio(misuse) if misuse in MISUSES[:2] else None

        here.start(good)
        await here.until("waits")
        here.start(bad)

    in_both_ways(scenario)(engine, in_trio=in_trio)


# The engine


class Broken(Handler):
    """Fails when there is something to read."""

    def ready(self, events: int) -> None:
        if events & READABLE:
            raise LookupError("the engine is broken")


@pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
def test_sessions_end_with_the_engine(engine: Engine, *, in_trio: bool) -> None:
    """Whatever they wait for, in the order in which a worker ends."""

    async def play(engine: Engine) -> None:
        ours, theirs = socket.socketpair()
        engine.register(ours.fileno(), Broken())
        here = None

        async def session(wait: Callable[[Stage], Awaitable[None]]) -> None:
            assert here is not None
            try:
                await wait(here)
            finally:
                here.note("cleared up")

        async def service() -> None:
            try:
                with pytest.raises(LookupError):
                    await engine.run()
            finally:
                sessions.cancel_scope.cancel()

        waits = [receiving, sending, relaying, sleeping, sleeping_in_a_phase, in_trio_]
        with trio.fail_after(20):
            async with trio.open_nursery() as services:
                services.start_soon(service)
                async with trio.open_nursery() as sessions:
                    here = Stage(engine, sessions)
                    services.start_soon(here.relay.expire)
                    for wait in waits:
                        here.start(session, wait)
                    await here.until("waits", len(waits))
                    theirs.send(b"x")
                    here.start(
                        session, receiving
                    )  # it has not begun when it is cancelled
                assert here.notes.count("cleared up") == len(waits) + 1
                assert here.notes.count("over") == len(waits) + 1
                here.check()
                services.cancel_scope.cancel()
        here.close()
        ours.close()
        theirs.close()

    in_trio_ = globals()["in_trio"]
    if in_trio:
        trio.run(play, engine)
    else:
        in_a_process(play)(engine=engine)


@in_both_ways
async def test_a_task_of_trio_hands_out(here: Stage) -> None:
    """A driven task goes on within it, and begins a phase while the engine waits."""
    wire, far = here.wire()

    async def session() -> None:
        timer = here.task
        here.note("waits")
        assert await wire.receive_some() == b"x"
        here.note("begins")
        with phase(timer, raises=LateError):
            timer.limit(SOON, LateError)
            await wire.receive_some()

    here.start(session)
    await here.until("waits")
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    far.send(b"x")
    here.engine.hand_out()
    assert "begins" in here.notes
    assert here.engine.current is None


@in_both_ways
async def test_what_another_task_has_closed_is_not_reported(here: Stage) -> None:
    """Both could go on in the same round; the second waits for what is gone."""
    (first, far), (second, other) = here.wire(), here.wire()

    async def closer() -> None:
        here.note("waits")
        await first.receive_some()
        second.close()
        here.note("closed")

    async def waiter() -> None:
        timer = here.task
        here.note("waits")
        with timer.at_most(5 * SOON):
            await second.receive_some()
            here.note("received")

    here.start(closer)
    here.start(waiter)
    await here.until("waits", 2)
    far.send(b"x")
    other.send(b"y")
    await here.until("over", 2)
    assert "received" not in here.notes[here.notes.index("closed") :]


@in_both_ways
async def test_a_descriptor_s_number_is_used_again_within_a_round(here: Stage) -> None:
    """The new wire is told of the old one's end, and tries in vain."""
    (first, far), (second, other) = here.wire(), here.wire()
    reading: list[Wire] = [first, second]
    fresh: list[socket.socket] = []

    async def session(number: int) -> None:
        here.note("waits")
        await reading[number].receive_some()
        if fresh:
            return
        # The first one to go on gives the number of the other one to a new connection.
        old = reading[1 - number]
        fd = old.fd
        old.close()
        wire, new = here.wire()
        assert wire.fd == fd
        fresh.append(new)
        here.note("waits anew")
        with here.task.at_most(LATER):
            assert await wire.receive_some() == b"news"
        here.note("heard")

    for number in range(2):
        here.start(session, number)
    await here.until("waits", 2)
    far.shutdown(socket.SHUT_WR)
    other.shutdown(socket.SHUT_WR)
    await here.until("waits anew")
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    assert "heard" not in here.notes
    fresh[0].send(b"news")
    await here.until("heard")
    here.sessions.cancel_scope.cancel()


MANY = 1000


class WatchedEngine(Engine):
    """Knows when it has looked at all limits."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[float] = []

    def _end_late(self, now: float) -> None:
        self.looks.append(now)
        super()._end_late(now)


@pytest.mark.parametrize("spread", [0.0, 0.001, 1.0], ids=str)
def test_many_limits_cost_few_looks(spread: float) -> None:
    """None is early, none is late by more than some tens of milliseconds.

    Args:
      spread: seconds from one limit to the next.
    """
    engine = WatchedEngine()
    over: list[tuple[float, float]] = []

    async def play(engine: Engine) -> None:
        async with stage(engine) as here:

            async def session(number: int) -> None:
                timer = here.task
                due = 60 + number * spread
                with contextlib.suppress(LateError), timer:
                    timer.limit(due, LateError)
                    await timer.park()
                over.append((trio.current_time() - began, due))

            began = trio.current_time()
            for number in range(MANY):
                here.start(session, number)

    trio.run(play, engine, clock=MockClock(autojump_threshold=0))
    assert len(over) == MANY
    assert all(0 <= at - due <= 0.05 for at, due in over)
    engine.close()
    assert len(engine.looks) <= min(MANY, spread * MANY / SWEEP_PAUSE) + 10


def test_limits_that_are_not_reached_cost_few_looks() -> None:
    """Each step of each session begins a new one."""
    engine = WatchedEngine()

    async def play(engine: Engine) -> None:
        async with stage(engine) as here:

            async def session(wire: Wire, far: socket.socket) -> None:
                timer = here.task
                with timer:
                    for _ in range(50):
                        timer.limit(60, LateError)
                        far.send(b"x")
                        await wire.receive_some()
                        with timer.at_most(0.1):
                            far.send(b"x")
                            await wire.receive_some()

            for _ in range(10):
                here.start(session, *here.wire())

    trio.run(play, engine, clock=MockClock(autojump_threshold=0))
    engine.close()
    assert len(engine.looks) <= 2


# Anything, in any order


class JumpingEpoll:
    """An epoll in whose waits, if nothing happens, time passes at once.

    Attributes:
      now: the time, in seconds.
    """

    def __init__(self, epoll: select.epoll) -> None:
        self.now = 1000.0
        self._epoll = epoll
        self.register = epoll.register
        self.modify = epoll.modify
        self.unregister = epoll.unregister
        self.fileno = epoll.fileno
        self.close = epoll.close

    def poll(self, patience: float, most: int) -> list[tuple[int, int]]:
        changes = self._epoll.poll(0, most)
        if not changes:
            self.now += patience
        return changes

    def monotonic(self) -> float:
        return self.now


@contextmanager
def jumping(engine: Engine) -> Iterator[trio.abc.Clock]:
    """The engine's own clock, without waiting for time that passes."""
    epoll = engine._epoll = JumpingEpoll(engine._epoll)  # type: ignore[assignment] # noqa: SLF001
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "time", epoll)
        # Other tests may have left threads.
        patch.setattr(engine_module, "_others_may_call", lambda: False)
        yield engine.clock


TASKS = 4
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 60.0])
NUMBERS = st.integers(0, TASKS - 1)
WHAT = st.sampled_from(
    ["receive", "send", "relay", "sleep", "in trio", "fails in trio"]
)
Act = tuple[str, float, str]
"""What a task does: wait at most so many seconds, or begin a phase, and for what."""
ACTS: st.SearchStrategy[list[Act]] = st.lists(
    st.tuples(
        st.sampled_from(["phase", "at most", "just", "cancel", "fail"]), SECONDS, WHAT
    ),
    max_size=5,
)
Event = tuple[str, int, float]
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.tuples(
        st.sampled_from(
            ["sends", "sends", "reads", "finishes", "cancel", "time", "time"]
        ),
        NUMBERS,
        SECONDS,
    ),
    max_size=25,
)


class Player:
    """One task of a random scenario, and its peer."""

    def __init__(self, here: Stage, acts: list[Act]) -> None:
        self.here = here
        self.acts = acts
        self.scope = trio.CancelScope()
        self.wire, self.far = here.wire()
        self.other, self.other_far = here.wire()
        self.far.setblocking(False)
        self.ends = 0
        self.running = False

    async def run(self) -> None:
        """Be a task of trio."""
        with contextlib.suppress(LookupError), self.scope:
            await driven.run(self.here.engine, self.play)

    async def play(self) -> None:
        try:
            for how, seconds, what in self.acts:
                await self.act(how, seconds, what)
        finally:
            self.ends += 1
            self.wire.close()
            self.other.close()

    async def act(self, how: str, seconds: float, what: str) -> None:
        engine = self.here.engine
        timer = engine.current
        if timer is None:
            raise AssertionError("a cancelled task goes on")
        due = engine.time() + seconds
        match how:
            case "phase":
                try:
                    with timer:
                        timer.limit(seconds, LateError)
                        await self.wait(what)
                except LateError:
                    assert engine.time() >= due
                assert timer.deadline == math.inf
            case "at most":
                with timer.at_most(seconds):
                    await self.wait(what)
                    due = -math.inf
                assert engine.time() >= due
            case "cancel":
                self.scope.cancel()
            case "fail":
                raise LookupError
            case _:
                await self.wait(what)
        assert engine.current is timer

    async def wait(self, what: str) -> None:
        here = self.here
        assert here.engine.current is not None
        with contextlib.suppress(OSError):
            match what:
                case "receive":
                    await self.wire.receive_some()
                case "send":
                    await self.wire.send_all(bytes(300_000))
                case "relay":
                    await here.relay.carry(self.wire, self.other, idle_limit=30.0)
                case "sleep":
                    await here.engine.current.sleep(1.0)
                case "in trio":
                    await here.engine.current.in_trio(trio.sleep, 1.0)
                case _:
                    await here.engine.current.in_trio(self.fail)

    async def fail(self) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError

    def happen(self, what: str) -> None:
        """Do something as its peer, or as who cancels it."""
        with contextlib.suppress(OSError):
            match what:
                case "sends":
                    self.far.send(b"x")
                case "reads":
                    while self.far.recv(1 << 16):
                        pass
                case "finishes":
                    self.far.shutdown(socket.SHUT_WR)
                case "cancel":
                    self.scope.cancel()


@pytest.mark.parametrize("in_trio", [False, True], ids=["in place", "in trio"])
@settings(max_examples=60)
@given(all_acts=st.lists(ACTS, min_size=TASKS, max_size=TASKS), events=EVENTS)
def test_anything_in_any_order(
    all_acts: list[list[Act]], events: list[Event], *, in_trio: bool
) -> None:
    """Every task ends once, with its clean-up, and leaves nothing behind."""
    engine = Engine()

    async def play() -> None:
        async with stage(engine) as here:
            players = [Player(here, acts) for acts in all_acts]
            for player in players:
                here.sessions.start_soon(player.run)
            for what, number, seconds in events:
                if what == "time":
                    await trio.sleep(seconds)
                else:
                    players[number].happen(what)
            await trio.sleep(60)
            for player in players:
                player.scope.cancel()
        assert [player.ends for player in players] == [1] * TASKS
        assert not engine._handlers  # noqa: SLF001 - what counts as a connection
        assert not engine.full

    if in_trio:
        trio.run(play, clock=MockClock(autojump_threshold=0))
    else:
        with jumping(engine) as clock:
            trio.run(play, clock=clock)
    engine.close()
