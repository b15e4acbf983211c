"""Services: the tasks of a worker beside its sessions.

A service starts before the first session and ends after the last one. Services start in
the order of their list, each running to its first wait before the next one starts, and
end in the opposite order, each completely before the next one ends. So a service may
rely on those before it, and the engine comes first. What may fail for lack of descriptors
or memory is opened before (`Service.opened`): once services run, one of them tells the
master that the worker is alive.

An exception in a service is a bug: it is logged with the service's name. What happens
then depends on the service. A worker cannot go on without a `vital` one: it ends all
sessions and exits with code 1, and the master starts another one. Other services are
restarted, after a longer pause each time; sessions go on without the service meanwhile.

To add one: a class here or where it belongs, and an entry in `worker_services.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import TYPE_CHECKING, ClassVar

import trio

if TYPE_CHECKING:
    from mailproxy.process.worker import Worker

RESTART_PAUSE = 1.0
"""Seconds until a failed service is restarted; doubled after each failure."""
MAX_RESTART_PAUSE = 64.0
"""The longest pause, in seconds. A service that ran longer than this counts as sound:
if it fails then, it is restarted after `RESTART_PAUSE`."""


class Service(ABC):
    """A task that a worker runs as long as it lives.

    Attributes:
      name: for the log, as in ``service "engine" failed``.
      vital: without it, the worker cannot go on.
    """

    name: ClassVar[str]
    vital: ClassVar[bool] = False

    def opened(self, worker: Worker) -> AbstractContextManager[object]:
        """What it opens before any service runs, and closes after all have ended.

        Only a vital service may need something: others are started again, and would
        find it used.

        Raises:
          StartError: in the block's beginning; there are no descriptors left, or no
            memory. The worker then ends before it says that it is alive.
        """
        del worker
        return nullcontext()

    @abstractmethod
    async def run(self, worker: Worker) -> None:
        """Run until cancelled; a service that returns has nothing more to do.

        It is called again if it fails and the service is not `vital`.
        """


@contextmanager
def opened(services: Sequence[Service], worker: Worker) -> Iterator[None]:
    """Have all that `services` need open for the length of the block.

    Raises:
      StartError: something cannot be opened.
    """
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(service.opened(worker))
        yield


@asynccontextmanager
async def running(services: Sequence[Service], worker: Worker) -> AsyncIterator[None]:
    """Run `services`, which are `opened`, for the length of the block.

    See the module's docstring.
    """
    async with trio.open_nursery() as nursery:
        started: list[_Run] = []
        try:
            for service in services:
                run = _Run(service)
                await nursery.start(run.go, worker)
                started.append(run)
            yield
        finally:
            for run in reversed(started):
                run.scope.cancel()
                await run.over.wait()


class _Run:
    """A running service.

    Attributes:
      scope: cancels it.
      over: is set once it has ended for good.
    """

    def __init__(self, service: Service) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self._service = service

    async def go(self, worker: Worker, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the service, and again if it fails."""
        try:
            with self.scope:
                # No checkpoint: the service goes on from here to its first wait.
                task_status.started()
                await self._go_on(worker)
        finally:
            self.over.set()

    async def _go_on(self, worker: Worker) -> None:
        service, pause = self._service, RESTART_PAUSE
        while True:
            began = trio.current_time()
            try:
                await service.run(worker)
            except Exception as error:  # a bug, but not one of the sessions'
                worker.log.exception(
                    f'service "{service.name}" failed, this is a bug', exception=error
                )
            else:
                return
            if service.vital:
                worker.fail()
                return
            if trio.current_time() - began > MAX_RESTART_PAUSE:
                pause = RESTART_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, MAX_RESTART_PAUSE)
