"""One edge-triggered epoll per worker, beside trio's, and tasks that it drives.

The theory, because a mistake here is a hang and not a slowdown.

**Descriptors**

- A descriptor is registered **once**, for reading and writing, edge-triggered.
  The kernel then reports each *change* once. A caller that wants to read or write tries
  first, and waits only after the try has failed with "would block" (EAGAIN). A change
  between the try and the wait cannot be lost: only a round hands out changes, and
  there is no await between a try and its wait. A caller that knows that a socket is
  empty, and that nothing was handed out since, may wait without a try.
- A report is only a hint. A handler that is called for nothing tries, gets EAGAIN, and
  no harm is done. So a report about a descriptor that was closed in the same round, and
  whose number is in use again, does no harm either.
- To `rearm` a descriptor makes the kernel look at it anew: what is there by now is
  reported in the next round, as if it had just come.

**Whose turn it is**

trio's loop costs some 10 us for each wait of a task, and it turns for all tasks if it
turns for one. The engine is quicker, and a worker has mostly work for the engine. So it
waits in trio's place. trio asks its clock how long it may wait once no task can run:
that is the moment. `Engine.clock` does not answer before a task can run again or a
deadline of trio's has come, and then says "do not wait". Meanwhile trio stands still:
whatever gives one of its tasks something to do (waking it, cancelling its scope,
bringing its deadline forward, starting it) must set `Engine.woke`, or `Engine.moved` if
all it does is to begin or to end a driven task.

Nothing else is noticed meanwhile, either. So the engine leaves the wait to trio as long
as anything but a descriptor of its own could end it: a task that waits for a descriptor
as trio does, another thread, whose result reaches trio through such a descriptor, or a
pending call in `TrioToken.run_sync_soon`. That is looked for whenever other tasks than
driven ones may have run, as it takes longer than the turn of a driven task. The same holds under any other clock, such as
that of a test. Then `Engine.run` waits as an ordinary task, for the descriptor of the
engine's epoll, which is readable while the engine has something to hand out. Sessions
are slower so, but nothing is missed.

**Driven tasks**

A session waits some ten times before its login is done, and each time trio would spend
more on it than the session itself. So a session is a task of trio, in the nursery of its
listener, whose coroutine the engine resumes (`DrivenTask` in `driven`): a handler calls
`coroutine.send`, and the code of the session runs at once, up to its next wait. For trio
such a task is parked. It goes back to trio when it ends, when it is cancelled, and for
what needs trio.

The trap: while a driven task runs, "the current task" of trio is another one, or none.
`trio.sleep`, a cancel scope or an event would take that for its own. So what a session
calls waits through a `Readiness` (as `Wire` is), a `Timer`, the relay, or in
`Timer.in_trio`, and the rooms `mail` and `auth` do not import trio
(`tests/test_imports.py`). A driven task that waits for trio all the same gets a
`RuntimeError` for it.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import trio

from mailproxy.errors import needed

if TYPE_CHECKING:
    from mailproxy.net.driven import DrivenTask

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

BOTH_WAYS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""What a descriptor is registered for."""
READING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""The same without writing, for `Engine.rearm`."""
_LISTENING = select.EPOLLIN | select.EPOLLET
_MAX_CHANGES = 256
_MAX_WAIT = 24 * 60 * 60.0
"""Seconds that one system call waits, at most."""
_OWN_WAITS = 1
"""Tasks that always wait to read: one of trio's, which receives calls from threads and
signal handlers. `Engine.run` does not wait when it is asked."""
MAX_IN_A_ROW = 16
"""Connections that one listener accepts before others have their turn."""
SWEEP_PAUSE = 0.02
"""Seconds between two looks at the limits of driven tasks, at least."""
SWEEP_PAUSE_EACH = 20e-6
"""The same for each of them: to look at one takes a fiftieth of it."""


class Handler:
    """Is told of the changes of a descriptor."""

    __slots__ = ()

    def ready(self, events: int) -> None:
        """Take note of epoll `events`.

        It must not raise and must do bounded work; it passes the remaining work to
        `Engine.again`.
        """
        raise NotImplementedError


class Engine:
    """Calls handlers when their descriptors can be read or written; see the module.

    Attributes:
      limit: how many descriptors may be registered (`worker_connections`).
      now: trio's time at the start of the current round.
      turn: the number of the current round.
      woke: is set by whatever gives a task of trio something to do.
      moved: is set instead for a driven task that begins or ends.
      current: the driven task that is running; None while trio's own run.
      clock: the clock for `trio.run`, with which the engine waits in trio's place.
      time: trio's time.
      limited: the driven tasks that have a deadline; see `DrivenTask.limit`.
      due: when the first of them may be over.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        """Raises:
        StartError: there is no descriptor, or no memory, for it.
        """
        with needed("epoll_create1()"):
            self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._again: deque[Callable[[], None]] = deque()
        with needed("eventfd()"):
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        with needed("epoll_ctl()"):
            self._epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)
        self._fault: Exception | None = None
        self._parked: trio.lowlevel.Task | None = None
        """The task in `run`, while the engine may wait in trio's place."""
        self._waiting: trio.CancelScope | None = None
        """The scope of the task in `run`, while trio waits."""
        self._stopped: trio.lowlevel.TrioToken | None = None
        self.limit = limit
        self.limited: set[DrivenTask] = set()
        self.due = math.inf
        self.now = 0.0
        self.turn = 0
        self.woke = True
        self.moved = False
        self.current: DrivenTask | None = None
        self.clock = _Clock(self)
        self.time: Callable[[], float] = trio.current_time

    # Descriptors

    @property
    def full(self) -> bool:
        """Whether `worker_connections` are in use."""
        return len(self._handlers) >= self.limit

    def register(self, fd: int, handler: Handler, *, listening: bool = False) -> None:
        """Have `handler` told when `fd` changes; once in the life of `fd`.

        Args:
          listening: it is a listening socket, which counts, but is never refused: a
            configuration has room for its own, and a reload finds sessions there.

        Raises:
          OSError: ENOBUFS when `limit` descriptors are registered already.
        """
        if len(self._handlers) >= self.limit and not listening:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self._epoll.register(fd, _LISTENING if listening else BOTH_WAYS)
        self._handlers[fd] = handler

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Tell another handler of the registered `fd` from now on."""
        self._handlers[fd] = handler

    def rearm(self, fd: int, events: int) -> None:
        """Report anew what `fd` is ready for: `READING` or `BOTH_WAYS`."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`, which stays open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, which is closed already, or at once."""
        self._handlers.pop(fd, None)

    # Rounds

    def again(self, work: Callable[[], None]) -> None:
        """Call `work` in the next round, after all tasks of trio that are ready have run.

        When `run` has ended, trio calls it.
        """
        if self._stopped is not None:
            self._stopped.run_sync_soon(work)
            return
        self._again.append(work)
        if self._waiting is not None:
            os.eventfd_write(self._bell, 1)

    async def run(self) -> None:
        """Hand out changes until cancelled, or until a handler raises."""
        self._stopped = None
        self.now = self.time()
        try:
            while True:
                if self.clock.in_use:
                    await self._wait_in_place()
                if self._fault is not None:
                    raise self._fault
                await self._wait_as_trio_does()
                self.hand_out()
        finally:
            # Sessions may still have to be cancelled.
            self._stopped = trio.lowlevel.current_trio_token()
            while self._again:
                self._stopped.run_sync_soon(self._again.popleft())

    def waiter(self) -> DrivenTask | TrioTask:
        """Return the task that calls, which may `park` until another one resumes it."""
        return self.current or TrioTask(self)

    def hand_out(self) -> None:
        """Hand out what has changed by now; tasks of trio may call it."""
        self._round(0)

    def _round(self, patience: float) -> None:
        """Wait at most `patience` seconds for changes, and hand them out."""
        changes = self._epoll.poll(patience, _MAX_CHANGES)
        self.now = now = self.time()
        self.turn += 1
        again = self._again
        if again:
            for _ in range(len(again)):
                again.popleft()()
        handlers = self._handlers
        for fd, events in changes:
            handler = handlers.get(fd)
            if handler is not None:
                handler.ready(events)
        if now >= self.due:
            self._end_late(now)

    async def _wait_as_trio_does(self) -> None:
        """Wait until there is something to hand out."""
        if self._again or self.due <= self.time():
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(deadline=self.due) as self._waiting:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            finally:
                self._waiting = None

    async def _wait_in_place(self) -> None:
        """Park as long as `wait_in_place` does the work."""
        if _others_may_call():
            return

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def wait_in_place(self, deadline: float) -> float:
        """Wait in trio's place until a task of trio can run; for the clock.

        Args:
          deadline: the first of trio's deadlines.

        Returns:
          How many seconds trio itself has to wait.
        """
        now = time.monotonic()
        if self._parked is None:
            return deadline - now
        if self.woke and _others_may_call():
            self._unpark()
            return 0
        self.woke = self.moved = False
        try:
            while not (self.woke or self.moved):
                if now >= deadline:
                    self.woke = True
                    break
                # No min() and max() here: they cost as much as the rest of a round.
                if self._again or self.due <= now:
                    patience = 0.0
                elif self.due < deadline:
                    patience = self.due - now
                else:
                    patience = deadline - now
                if patience > _MAX_WAIT:
                    patience = _MAX_WAIT
                self._round(patience)
                now = self.now
        except Exception as error:  # noqa: BLE001 # trio would end the whole process
            self._fault = error  # `run` raises it
            self._unpark()
        return 0

    def _unpark(self) -> None:
        """Let the task in `run` go on."""
        self.woke = True
        parked, self._parked = self._parked, None
        assert parked is not None
        trio.lowlevel.reschedule(parked)

    def close(self) -> None:
        """Close the epoll; no task may wait on it any more."""
        self._epoll.close()
        os.close(self._bell)

    # Limits of driven tasks

    def bring_forward(self, deadline: float) -> None:
        """See at that time, or before, whether a driven task is late."""
        self.due = deadline
        if self._waiting is not None and deadline < self._waiting.deadline:
            self._waiting.deadline = deadline

    def _end_late(self, now: float) -> None:
        """End the phases of tasks that are late, and see when the next may be."""
        limited = self.limited
        for task in [each for each in limited if each.deadline <= now]:
            if task.deadline <= now:  # it may have gone on meanwhile
                task.end_phase()
        first = min((each.deadline for each in limited), default=math.inf)
        self.due = max(first, now + SWEEP_PAUSE + len(limited) * SWEEP_PAUSE_EACH)


class _Clock(trio.abc.Clock):
    """The system's clock. trio asks it when no task can run: see `Engine.wait_in_place`.

    Attributes:
      in_use: whether trio runs with it.
    """

    def __init__(self, engine: Engine) -> None:
        self.in_use = False
        self._engine = engine

    def start_clock(self) -> None:
        self.in_use = True
        self._engine.time = time.monotonic

    def current_time(self) -> float:
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return self._engine.wait_in_place(deadline)


def _others_may_call() -> bool:
    """Return whether anything but the engine could give a task something to do."""
    # Threads before pending calls: a thread that ends just now leaves its call there.
    if threading.active_count() > 1:
        return True
    statistics = trio.lowlevel.current_statistics()
    waiting = statistics.io_statistics
    assert waiting.backend == "epoll"
    return (
        waiting.tasks_waiting_read > _OWN_WAITS
        or waiting.tasks_waiting_write > 0
        or statistics.run_sync_soon_queue_size > 0
    )


class TrioTask:
    """The current task of trio, as one that waits to be resumed; see `DrivenTask`."""

    __slots__ = ("_engine", "_parked", "_task")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._task = trio.lowlevel.current_task()
        self._parked = False

    async def park(self) -> None:
        """Wait until `resume` is called."""
        self._parked = True
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._parked = False
        return trio.lowlevel.Abort.SUCCEEDED

    def resume(self) -> None:
        """Go on, unless it is being cancelled."""
        if self._parked:
            self._parked = False
            self._engine.woke = True
            trio.lowlevel.reschedule(self._task)


class Readiness(Handler):
    """Lets one task at a time wait for a registered descriptor, driven or not.

    Attributes:
      readable: whether a try to read may find something. The engine sets it, a caller
        that has emptied the socket clears it. If there is something to read when the
        descriptor is registered, the engine reports that at once.
      hung_up: whether the peer will send no more than what has arrived.
    """

    __slots__ = ("_mask", "_waiter", "engine", "hung_up", "readable")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.readable = False
        self.hung_up = False
        self._waiter: DrivenTask | TrioTask | None = None
        self._mask = 0

    def ready(self, events: int) -> None:
        """Wake the waiting task."""
        if events & READABLE:
            self.readable = True
            if events & HUNG_UP:
                self.hung_up = True
        waiter = self._waiter
        if waiter is not None and events & self._mask:
            self._waiter = None
            waiter.resume()

    @types.coroutine
    def wait(self, mask: int) -> Generator[None, None, None]:
        """Wait for one of the events in `mask`.

        Call it only after EAGAIN, or for READABLE while `readable` is false.
        """
        assert self._waiter is None, "one task at a time"
        self._mask = mask
        task = self.engine.current
        if task is None:
            yield from self._wait_in_trio().__await__()  # trio's own message
            return
        if not task.interrupted:
            self._waiter = task
            yield
        if task.interrupted:
            self._waiter = None
            yield from task.interrupt().__await__()

    async def _wait_in_trio(self) -> None:
        waiter = self._waiter = TrioTask(self.engine)
        try:
            await waiter.park()
        finally:
            self._waiter = None


class ListeningWire(Handler):
    """A listening socket on the engine, shared with the other workers."""

    def __init__(self, engine: Engine, listening: socket.socket) -> None:
        self._engine = engine
        self._socket = listening
        self._begin: Callable[[int, object], None] | None = None
        self._serving: trio.lowlevel.Task | None = None
        self._fault: OSError | None = None
        self._queued = False
        """Whether it goes on accepting in the next round."""
        self._poll = select.poll()
        self._poll.register(listening.fileno(), select.POLLIN)
        if listening.family != socket.AF_UNIX:
            # Connections inherit it: in a dialogue of short lines, a line must not
            # wait for the acknowledgement of the previous one.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        engine.register(listening.fileno(), self, listening=True)

    async def serve(self, begin: Callable[[int, object], None]) -> OSError:
        """Accept connections until accept() fails; returns its error.

        Args:
          begin: is called with the descriptor of each new connection, non-blocking,
            which is its to close, and the peer's address. It may start driven tasks in
            a nursery, and must not raise.
        """

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._begin = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._begin = begin
        self._serving = trio.lowlevel.current_task()
        self._later()  # what has come before
        await trio.lowlevel.wait_task_rescheduled(abort)
        assert self._fault is not None
        return self._fault

    def ready(self, _events: int) -> None:
        """Accept connections: called by the engine."""
        if not self._queued:  # else it has had its turn
            self._accept()

    def _later(self) -> None:
        if not self._queued:
            self._queued = True
            self._engine.again(self._go_on)

    def _go_on(self) -> None:
        self._queued = False
        self._accept()

    def _accept(self) -> None:
        begin = self._begin
        if begin is None:
            return
        for _ in range(MAX_IN_A_ROW):
            # Often another worker was quicker. An accept() that fails costs as much as
            # twenty questions.
            if not self._poll.poll(0):
                return
            try:
                # What socket.accept() itself calls, without an object for the socket.
                fd, address = self._socket._accept()  # type: ignore[attr-defined] # noqa: SLF001
            except BlockingIOError:
                return
            except OSError as error:
                self._fail(error)
                return
            os.set_blocking(fd, False)
            begin(fd, address)
            self._engine.moved = True
        self._later()

    def _fail(self, error: OSError) -> None:
        self._begin = None
        self._fault = error
        self._engine.woke = True
        assert self._serving is not None
        trio.lowlevel.reschedule(self._serving)

    def close(self) -> None:
        """Stop watching the listening socket; it stays open."""
        self._begin = None
        self._engine.unregister(self._socket.fileno())
