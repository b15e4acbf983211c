"""One edge-triggered epoll per worker, nested into trio.

The theory, because a mistake here is a hang and not a slowdown:

- A descriptor is registered **once**, for reading and writing, edge-triggered.
  The kernel then reports each *change* once. A caller that wants to read or write tries
  first, and waits only after the try has failed with "would block" (EAGAIN). A change
  between the try and the wait cannot be lost: only `run` hands out changes, and there
  is no await between a try and its wait. A caller that knows that a socket is empty,
  and that nothing was handed out since, may wait without a try.
- A report is only a hint. A handler that is called for nothing tries, gets EAGAIN, and
  no harm is done.
- trio waits for one descriptor, that of this epoll. The cost of its own machinery
  (about 10 us for each wait) is paid once for all sockets that are ready by then.
- When trio is about to wait, no task is ready to run, and the last round woke none, the
  engine waits in its place (`Engine.before_io_wait`). So trio does no work for relayed
  sessions: only a woken task, or a deadline, leads back to it. That more than halves
  the CPU time of a single command in an idle session.
- Meanwhile trio's loop stands still: a handler that gives a task something to do, by
  whatever means (waking it, cancelling its scope, bringing its deadline forward), must
  set `Engine.woke`.
- Nothing else is noticed meanwhile, either. So the engine leaves the wait to trio as
  long as anything else could end it: a task that waits for a descriptor through trio,
  another thread, whose result reaches trio through such a descriptor, or a pending call
  in `TrioToken.run_sync_soon`. All three make relaying slower, but none is missed.

Tasks wait through `Wire` or `Watched`; the engine calls the handlers of the relay
directly.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable

import trio

from mailproxy.errors import needed

READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
HUNG_UP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_ALL = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_LISTENING = select.EPOLLIN | select.EPOLLET
_MAX_CHANGES = 256
_OWN_WAITS = 2
"""Tasks that always wait to read: `Engine.run`, and a task of trio that receives calls
from threads and signal handlers."""

Handler = Callable[[int], None]
"""Called with the epoll events of its descriptor. It must not raise and must do
bounded work; it passes the remaining work to `Engine.again`."""


class Engine(trio.abc.Instrument):
    """Calls handlers when their descriptors can be read or written; see the module.

    Attributes:
      limit: how many descriptors may be registered (`worker_connections`).
      now: trio's time at the start of the current round.
      woke: a handler sets it when it gives a task something to do.
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
        self._waiting = False
        self._fault: Exception | None = None
        self.woke = True
        self.limit = limit
        self.now = 0.0

    @property
    def full(self) -> bool:
        """Whether `worker_connections` are in use."""
        return len(self._handlers) >= self.limit

    def register(self, fd: int, handler: Handler, *, listening: bool = False) -> None:
        """Have `handler` called when `fd` changes; once in the life of `fd`.

        Args:
          listening: it is a listening socket, which counts, but is never refused: a
            configuration has room for its own, and a reload finds sessions there.

        Raises:
          OSError: ENOBUFS when `limit` descriptors are registered already.
        """
        if self.full and not listening:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        self._epoll.register(fd, _LISTENING if listening else _ALL)
        self._handlers[fd] = handler

    def hand_over(self, fd: int, handler: Handler) -> None:
        """Call another handler for the registered `fd` from now on."""
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Stop watching `fd`, which must still be open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, which may be closed already."""
        self._handlers.pop(fd, None)

    def again(self, work: Callable[[], None]) -> None:
        """Call `work` in the next round, after all tasks that are ready have run."""
        self._again.append(work)
        if self._waiting:
            self._waiting = False
            os.eventfd_write(self._bell, 1)

    async def run(self) -> None:
        """Hand out changes until cancelled, or until a handler raises."""
        descriptor = self._epoll.fileno()
        wait_readable = trio.lowlevel.wait_readable
        try:
            while True:
                if self._again:
                    await trio.lowlevel.checkpoint()
                else:
                    self._waiting = True
                    await wait_readable(descriptor)
                    self._waiting = False
                if self._fault is not None:
                    raise self._fault
                self.woke = False
                self._round(0)
        finally:
            self._waiting = False  # nothing would wake a task any more

    def _round(self, patience: float) -> None:
        """Wait at most `patience` seconds for changes, and hand them out."""
        changes = self._epoll.poll(patience, _MAX_CHANGES)
        self.now = trio.current_time()
        for _ in range(len(self._again)):
            self._again.popleft()()
        handlers = self._handlers
        for fd, events in changes:
            handler = handlers.get(fd)
            if handler is not None:
                handler(events)

    def before_io_wait(self, timeout: float) -> None:
        """Wait in trio's place, as long as only handlers have work.

        trio calls this if the engine is one of its instruments, which works only with
        real clocks. Signals and orders have to come through the engine.

        Args:
          timeout: seconds until trio's next deadline; 0 if a task is ready to run.
        """
        if self.woke or timeout <= 0 or not self._waiting or _others_may_call():
            return
        deadline = trio.current_time() + timeout
        self._waiting = False
        patience = timeout
        try:
            while not self.woke and patience > 0:
                self._round(0 if self._again else patience)
                patience = deadline - self.now
        except Exception as error:  # noqa: BLE001 # trio would only drop the engine
            self._fault = error  # `run` raises it
        self._waiting = True
        # trio is going to wait now: make its wait end at once.
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Close the epoll; no task may wait on it any more."""
        self._epoll.close()
        os.close(self._bell)


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


class Readiness:
    """Lets one task at a time wait for a registered descriptor.

    Attributes:
      readable: whether a try to read may find something. The engine sets it, a caller
        that has emptied the socket clears it. If there is something to read when the
        descriptor is registered, the engine reports that at once.
      hung_up: whether the peer will send no more than what has arrived.
    """

    __slots__ = ("_engine", "_mask", "_task", "hung_up", "readable")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.readable = False
        self.hung_up = False
        self._task: trio.lowlevel.Task | None = None
        self._mask = 0

    def ready(self, events: int) -> None:
        """Wake the waiting task; the handler to register."""
        if events & READABLE:
            self.readable = True
            if events & HUNG_UP:
                self.hung_up = True
        task = self._task
        if task is not None and events & self._mask:
            self._task = None
            self._engine.woke = True
            trio.lowlevel.reschedule(task)

    async def wait(self, mask: int) -> None:
        """Wait for one of the events in `mask`.

        Call it only after EAGAIN, or for READABLE while `readable` is false.
        """
        assert self._task is None, "one task at a time"
        self._task = trio.lowlevel.current_task()
        self._mask = mask
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class ListeningWire:
    """A listening socket on the engine, shared with the other workers."""

    def __init__(self, engine: Engine, listening: socket.socket) -> None:
        self._engine = engine
        self._socket = listening
        self._readiness = Readiness(engine)
        if listening.family != socket.AF_UNIX:
            # Connections inherit it: in a dialogue of short lines, a line must not
            # wait for the acknowledgement of the previous one.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        engine.register(listening.fileno(), self._readiness.ready, listening=True)

    async def accept(self) -> tuple[socket.socket, object]:
        """Return the next connection, non-blocking, and the peer's address.

        Raises:
          OSError: of accept(), except EAGAIN (e.g. EMFILE, ECONNABORTED).
        """
        while True:
            try:
                connection, address = self._socket.accept()
            except BlockingIOError:
                await self._readiness.wait(READABLE)
            else:
                connection.setblocking(False)
                return connection, address

    def close(self) -> None:
        """Stop watching the listening socket; it stays open."""
        self._engine.unregister(self._socket.fileno())
