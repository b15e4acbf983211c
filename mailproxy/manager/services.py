"""Services: the tasks of a manager, and what its workers may ask it.

A service may run a task of its own, tell every worker that comes what it has to know, take
what workers tell, and answer what they ask. An exception in its task is a bug: it is
logged, and the task begins again after a pause, longer each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import trio

if TYPE_CHECKING:
    from mailproxy.manager.hub import Hub, ManagedWorker

Body = Mapping[str, object]
"""The body of a message; workers talk to strangers, so it may hold anything."""

Take = Callable[["ManagedWorker", Body], None]
"""Takes what a worker tells; raises MessageError if it is not as it must be."""

RESTART_PAUSE = 1.0
"""Seconds until a failed service is restarted; doubled after each failure."""
MAX_RESTART_PAUSE = 64.0
"""The longest pause, in seconds."""


class Answering(NamedTuple):
    """How a kind of question is answered."""

    kind: int
    """That of the answer."""
    work: Callable[[ManagedWorker, Body], Awaitable[Body]]
    """Makes the body of the answer. It is cancelled if nobody waits any more, and
    raises MessageError if the question is not as it must be."""


class ManagerService:
    """A part of the manager's work; see the module.

    Attributes:
      name: for the log, as in ``service "resolve" failed``.
      takes: the kinds that it is told.
      answers: the kinds that it is asked.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.takes: dict[int, Take] = {}
        self.answers: dict[int, Answering] = {}

    def greet(self, worker: ManagedWorker) -> None:
        """Tell a worker that has come what it has to know."""

    async def wait_ready(self) -> None:
        """Return once workers can be started; the manager does not wait for it long."""

    async def run(self, hub: Hub) -> None:
        """Work until cancelled; a service that returns has no task of its own."""


async def keep_running(service: ManagerService, hub: Hub) -> None:
    """Run a service, and again if it fails."""
    pause = RESTART_PAUSE
    while True:
        began = trio.current_time()
        try:
            await service.run(hub)
        except Exception as error:  # a bug, but not one of the others
            hub.log.exception(
                f'service "{service.name}" failed, this is a bug', exception=error
            )
        else:
            return
        if trio.current_time() - began > MAX_RESTART_PAUSE:
            pause = RESTART_PAUSE
        await trio.sleep(pause)
        pause = min(2 * pause, MAX_RESTART_PAUSE)
