"""Driven tasks: tasks of trio whose coroutines the engine resumes.

Why, and the trap in it, stands at the head of `engine`. The life of such a task:

    run       a task of trio begins, detaches its coroutine from trio, and is parked
      resume  the engine runs it up to its next wait, again and again
      in_trio it goes back to trio for a while, for something that only trio can do
    the end   it goes back, and ends as any task does

It is cancelled as any task, too: trio asks a parked task to abort; the engine resumes
it, and it goes back to trio, which raises `trio.Cancelled`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar, TypeVarTuple, Unpack, cast

import trio

from mailproxy.errors import SessionError
from mailproxy.net.engine import Engine
from mailproxy.net.timer import PhaseOver, client_timed_out

Args = TypeVarTuple("Args")
T = TypeVar("T")

_LATE = 1
_CANCELLED = 2


async def run(
    engine: Engine, work: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args
) -> None:
    """Run `work` as a driven task, which the current task of trio becomes."""
    task = DrivenTask(engine)
    await task.detach()
    try:
        await work(*args)
    finally:
        await task.end()


class DrivenTask:
    """A task that the engine resumes, and its `Timer`.

    Attributes:
      deadline: when its present phase is over, in trio's time; may be inf.
      interrupted: not 0: it must not wait, but `interrupt` raises the reason.
    """

    __slots__ = (
        "_engine",
        "_expired",
        "_fresh",
        "_queued",
        "_send",
        "_task",
        "deadline",
        "interrupted",
    )

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._task = trio.lowlevel.current_task()
        self._send: Callable[[None], object] | None = None
        """Resumes the coroutine; None while trio does."""
        self._fresh = False
        """Whether it has just left trio, and waits for nothing but its turn."""
        self._queued = False
        self._expired: Callable[[], SessionError] = client_timed_out
        self.deadline = math.inf
        self.interrupted = 0

    # Driving

    def resume(self) -> None:
        """Go on up to the next wait, unless it goes back to trio to be cancelled."""
        send = self._send
        if send is None:
            return
        engine = self._engine
        before = engine.current
        engine.current = self
        try:
            yielded = send(None)
            while yielded is not None:
                # A message to trio's loop, which does not get it.
                error = RuntimeError("a driven task waits as trio does, not in_trio()")
                yielded = self._task.coro.throw(error)
        finally:
            engine.current = before

    async def detach(self) -> None:
        """Leave trio; the engine resumes the task in its next round."""
        self._send = cast("Callable[[None], object]", self._task.coro.send)
        self._fresh = True
        self._go_on_later()
        await trio.lowlevel.temporarily_detach_coroutine_object(self._abort)

    def _go_on_later(self) -> None:
        if not self._queued:
            self._queued = True
            self._engine.again(self._go_on)

    def _go_on(self) -> None:
        self._queued = False
        if self._send is not None and (self._fresh or self.interrupted):
            self._fresh = False
            self.resume()

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Let the coroutine go back to trio in order to be cancelled."""
        self.interrupted = _CANCELLED
        self._go_on_later()
        return trio.lowlevel.Abort.FAILED

    async def _go_back(self) -> None:
        """Let trio resume the coroutine."""
        self._send = None
        await trio.lowlevel.reattach_detached_coroutine_object(self._task, None)

    async def end(self) -> None:
        """Go back to trio in order to end there."""
        self.stop()
        self._expired = client_timed_out  # the last one may refer to this timer
        if self._send is not None:
            self._engine.moved = True
            await self._go_back()

    async def interrupt(self) -> None:
        """Raise the reason for which it was interrupted.

        Raises:
          PhaseOver: its time is over.
          trio.Cancelled: trio has cancelled it.
        """
        reason, self.interrupted = self.interrupted, 0
        if reason == _LATE:
            raise PhaseOver
        self._engine.woke = True
        await self._go_back()
        await trio.lowlevel.checkpoint()
        await self.detach()  # the scope that was cancelled is over by now

    def park(self) -> Awaitable[None]:
        """Wait until `resume` is called."""
        return self

    def __await__(self) -> Generator[None, None, None]:
        """The waiting of `park`, which so needs no object of its own."""
        if not self.interrupted:
            yield
        if self.interrupted:
            yield from self.interrupt().__await__()

    def end_phase(self) -> None:
        """Interrupt the task, because its time is over; called by the engine."""
        self.stop()
        self.interrupted = self.interrupted or _LATE
        self._go_on_later()

    # The timer: see `Timer`

    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        self._expired = expired or client_timed_out
        engine = self._engine
        self.deadline = deadline = engine.time() + seconds
        engine.limited.add(self)
        if deadline < engine.due:
            engine.bring_forward(deadline)

    def stop(self) -> None:
        self.deadline = math.inf
        self._engine.limited.discard(self)

    def now(self) -> float:
        return self._engine.time()

    async def sleep(self, seconds: float) -> None:
        with self.at_most(seconds):
            await self.park()

    def at_most(self, seconds: float) -> AbstractContextManager[None]:
        return _AtMost(self, self._engine, seconds)

    def attempt(self) -> AbstractContextManager[None]:
        return _Attempt(self)

    async def in_trio(
        self, work: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args
    ) -> T:
        deadline = self.deadline
        self.stop()
        self._engine.woke = True
        await self._go_back()
        try:
            with trio.CancelScope(deadline=deadline) as scope:
                result = await work(*args)
        except trio.Cancelled:
            raise
        except BaseException:
            await self._return(deadline)
            raise
        await self._return(deadline)
        if scope.cancelled_caught:
            raise PhaseOver
        return result

    async def _return(self, deadline: float) -> None:
        """Leave trio after a while, with the deadline from before."""
        await self.detach()
        self.restore(deadline)

    def expired(self) -> SessionError:
        """Return the error of a present phase whose time is over."""
        return self._expired()

    def restore(self, deadline: float) -> None:
        """Set the deadline of the present phase."""
        self.stop()
        if deadline < math.inf:
            self.deadline = deadline
            self._engine.limited.add(self)
            if deadline < self._engine.due:
                self._engine.bring_forward(deadline)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if kind is PhaseOver:
            raise self.expired()


class _Attempt:
    """See `Timer.attempt`."""

    __slots__ = ("_task",)

    def __init__(self, task: DrivenTask) -> None:
        self._task = task

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is PhaseOver:
            raise self._task.expired()


class _AtMost:
    """A limit within the present phase of a driven task; see `Timer.at_most`."""

    __slots__ = ("_engine", "_outer", "_seconds", "_task")

    def __init__(self, task: DrivenTask, engine: Engine, seconds: float) -> None:
        self._task = task
        self._engine = engine
        self._seconds = seconds
        self._outer = math.inf

    def __enter__(self) -> None:
        self._outer = self._task.deadline
        own = self._engine.time() + self._seconds
        if own < self._outer:
            self._task.restore(own)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._task.restore(self._outer)
        return kind is PhaseOver and self._engine.time() < self._outer
