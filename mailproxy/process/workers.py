"""The workers as the master sees them: which run, leave, or must be replaced.

A worker that ends without an order is replaced: at once if it had run for a while,
after longer and longer pauses if workers end right after their start, and never if it
ended with the code FATAL. The master pings workers regularly, and kills stuck ones.
"""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mailproxy.net.messages import Complaints
from mailproxy.process.children import FATAL, End, SpawnError
from mailproxy.process.crew import Crew, CrewMember, Means, respawn_delay
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


class Workers(Crew[WorkerProcess]):
    """All workers of all generations.

    Args:
      managers: those that the workers have lines to.
    """

    kind = "worker"

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
        self._respawns: list[tuple[float, int, int]] = []

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

    def _start(self, slot: int, died_young: int = 0) -> None:
        if len(self._all) >= MAX_PROCESSES:
            self._log.alert(f"no more than {MAX_PROCESSES} processes can be spawned")
            self.failed = True
            return
        row = self._means.statistics.take_row(Role.WORKER)
        try:
            pid = self._fork(slot, row)
        except SpawnError as failure:
            self._means.statistics.free_row(row)
            self._log.alert(
                f'{failure.call} failed while spawning "{self.name}"',
                error=failure.error,
            )
            self.failed = True
            if self.outgoing is None:
                self._start_later(slot, died_young + 1)
            return
        self._welcome(
            WorkerProcess(
                pid=pid,
                slot=slot,
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

    def _start_later(self, slot: int, died_young: int) -> int:
        """Start a worker in some seconds; returns how many."""
        delay = respawn_delay(died_young)
        self._respawns.append((self._clock() + delay, slot, died_young))
        return delay

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
        if end.code == FATAL:
            self._log.alert(
                f"{self.name} {end.pid} exited with fatal code {FATAL}"
                " and cannot be respawned"
            )
        elif self.outgoing is None:  # otherwise `fill` follows
            died_young = self._died_young(worker)
            if died_young > 1:
                delay = self._start_later(worker.slot, died_young)
                self._log.error(
                    f"{self.name}es end right after their start, {died_young} in a row;"
                    f" the next one starts in {delay} s"
                )
            else:
                self._start(worker.slot, died_young)
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

    # Time

    def _next_due(self) -> float:
        return min((due for due, _, _ in self._respawns), default=float("inf"))

    def _do_own(self, now: float) -> None:
        for respawn in [each for each in self._respawns if each[0] <= now]:
            self._respawns.remove(respawn)
            self._start(*respawn[1:])
