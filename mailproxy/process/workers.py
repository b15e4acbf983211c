"""The workers as the master sees them: which run, leave, or must be replaced.

Each has a slot, which another one takes after its end; see `Crew` for the rest.
"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mailproxy.net.messages import Complaints
from mailproxy.process.children import End, SpawnError
from mailproxy.process.crew import Crew, CrewMember, Means
from mailproxy.process.generation import Generation
from mailproxy.process.managers import Managers
from mailproxy.process.messages import Order
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row

MAX_PROCESSES = 1024
"""The number of processes that nginx can have (NGX_MAX_PROCESSES)."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlace:
    """What a worker is born into."""

    generation: Generation
    outgoing: Generation | None
    """The generation that it replaces, if that is still open (at a reload)."""
    slot: int
    row: Row
    """Its row in the statistics."""
    manager: socket.socket | None
    """Its end of the line to the manager process; None if there is none."""


WorkerWork = Callable[[WorkerPlace, socket.socket], int]
"""Runs as a worker, with a line to the master, and returns the exit code."""


@dataclass(slots=True, kw_only=True)
class WorkerProcess(CrewMember):
    """One worker, as the master sees it."""

    slot: int


class Workers(Crew[WorkerProcess, int]):
    """All workers of all generations.

    Args:
      managers: those that the workers have lines to.
    """

    kind = "worker"
    role = Role.WORKER

    def __init__(
        self,
        generation: Generation,
        work: WorkerWork,
        means: Means,
        managers: Managers,
    ) -> None:
        super().__init__(generation, means)
        self._work = work
        self._managers = managers

    # Start

    def start(self) -> None:
        """Log that the current generation starts, and start its workers."""
        self._log.notice("start worker processes")
        self.failed = False
        gc.collect()  # each worker would inherit the garbage
        self.fill()

    def fill(self) -> None:
        """Start a worker in each slot that has none of the current generation.

        One that cannot be started is tried again later, unless there is an outgoing
        generation to go back to: then the generation has `failed`.
        """
        self._respawns.clear()
        manned = {each.slot for each in self._all.values() if self._current(each)}
        for slot in range(self.generation.main.worker_processes):
            if slot not in manned:
                self._start(slot)
                if self.failed and self.outgoing is not None:
                    return

    def _start(self, place: int, died_young: int = 0) -> None:
        """Start a worker in a slot."""
        if len(self._all) >= MAX_PROCESSES:
            self._log.alert(f"no more than {MAX_PROCESSES} processes can be spawned")
            self.failed = True
            return
        row = self._take_row()
        try:
            pid = self._fork(place, row)
        except SpawnError as failure:
            self._not_spawned(row, failure)
            self.failed = True
            if self.outgoing is None:
                self._start_later(place, died_young + 1)
            return
        self._welcome(
            WorkerProcess(
                pid=pid,
                slot=place,
                generation=self.generation,
                row=row,
                started=self._clock(),
                died_young=died_young,
                complaints=Complaints(self._clock),
            )
        )

    def _fork(self, slot: int, row: Row) -> int:
        """Start the process, with a line to its manager.

        Raises:
          SpawnError: there is no process, or no socket, to be had.
        """
        generation, managers = self.generation, self._managers
        with managers.lines.begin(generation) as line:
            place = WorkerPlace(
                generation=generation,
                outgoing=self.outgoing,
                slot=slot,
                row=row,
                manager=line.theirs,
            )
            pid = self._processes.start(
                partial(self._work, place), close=managers.kept()
            )
            line.keep(pid, row)
        managers.hand_over(pid)
        return pid

    # End

    def bury(self, end: End, *, replace: bool) -> bool:
        """Note that a process has ended; returns False if it was not a worker."""
        worker = self._part(end)
        if worker is None:
            return False
        self._managers.lines.end(end.pid)
        if worker.leaving or not replace:
            return True
        if not worker.up and worker.generation is self.generation:
            self.failed = True
        if (
            not self._is_fatal(end) and self.outgoing is None
        ):  # otherwise `fill` follows
            self._replace(worker, worker.slot)
        return True

    def leave(self, but: Generation | None = None) -> None:
        """Order all, except those of generation `but`, to leave gracefully."""
        self._respawns.clear()
        for worker in self._all.values():
            if not worker.leaving and worker.generation is not but:
                self._order(worker, Order.QUIT, signal.SIGQUIT)
                worker.leaving = True

    def renew(self, sheet: int) -> None:
        """Have all of the current generation use new certificates.

        Args:
          sheet: the descriptor of the file that they are in (`certificate_orders`).
        """
        for worker in self._all.values():
            if self._current(worker) and not self._processes.tell(
                worker.pid, Order.CERTIFICATES, descriptors=(sheet,)
            ):
                self._log.error(
                    f"{self.name} {worker.pid} did not take new certificates"
                )

    def stop(self, only: Generation | None = None) -> None:
        """Order all, or only those of one generation, to exit at once."""
        self._respawns.clear()
        super().stop(only)
