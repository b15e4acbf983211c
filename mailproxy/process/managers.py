"""The manager processes as the master sees them: one for each generation that needs one.

A manager is started before the workers of its generation, and has to be up before they
are. It stays until its generation is over and the last of its workers has gone. If it
dies before, it is replaced as a worker is; until then its workers are told that nobody
answers.

Each worker has a line to its manager. The master keeps a duplicate of the manager's end
as long as the worker lives, so that the next manager inherits the lines of all living
workers by fork; it takes no message from them.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from mailproxy.net.messages import Complaints
from mailproxy.process.children import Closable, End, SpawnError, make_line
from mailproxy.process.crew import Crew, CrewMember, Means
from mailproxy.process.generation import Generation
from mailproxy.process.messages import Order
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row

MAX_HANDED_LOGS = 200
"""Log files that are handed over at once; the kernel's limit is 253 descriptors."""
HAND_OVER_PAUSE = 0.05
"""Seconds until a line is handed over again to a manager whose own line was full."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """The manager's end of the line to a worker."""

    row: int
    """The worker's row in the statistics; 0: it has none."""
    pid: int
    socket: socket.socket


@dataclass(frozen=True, kw_only=True)
class ManagerPlace:
    """What a manager is born into."""

    generation: Generation
    current: Generation
    """The generation that the master is at, whose logs are open: an older one may have
    workers still, and so need a new manager."""
    outgoing: Generation | None
    """The generation that `current` replaces, if that is still open (at a reload)."""
    row: Row
    """Its row in the statistics."""
    lines: tuple[WorkerLine, ...]
    """The lines to the living workers of its generation, from its predecessor."""


ManagerWork = Callable[[ManagerPlace, socket.socket], int]
"""Runs as a manager, with a line to the master, and returns the exit code."""


@dataclass(slots=True, kw_only=True)
class ManagerProcess(CrewMember):
    """One manager, as the master sees it."""

    owed: list[WorkerLine] = field(default_factory=list)
    """Lines that it could not be handed yet."""


class Managers(Crew[ManagerProcess, Generation]):
    """All managers of all generations.

    Attributes:
      lines: to the workers of all generations.
    """

    kind = "manager"
    role = Role.MANAGER

    def __init__(self, generation: Generation, work: ManagerWork, means: Means) -> None:
        super().__init__(generation, means)
        self.lines = Lines()
        self._starting = False
        self._work = work
        self._served: set[Generation] = set()
        """The generations that have a manager, or may need one."""

    # Start

    @property
    def is_hopeless(self) -> bool:
        """The same as for workers, but that a start is not tried again either."""
        return self.failed

    def start(self) -> None:
        """Start the manager of the current generation, if it needs one and has none.

        Until `settle` is called, it is not tried again if it fails.
        """
        self.failed = False
        self._starting = True
        needed = self.generation.configuration.manager
        if needed:
            self._served.add(self.generation)
        if needed and not any(self._current(each) for each in self._all.values()):
            self._start(self.generation)

    def settle(self) -> None:
        """Note that all have come up, or have been given up; replace those that die."""
        self._starting = False
        if self.outgoing is None:
            self.set_front()

    def set_front(self) -> None:
        """Have the manager of the current generation write the board."""
        front = self._of(self.generation)
        self._means.statistics.set_front(None if front is None else front.row)

    def _start(self, place: Generation, died_young: int = 0) -> None:
        """Start a manager of a generation."""
        row = self._take_row()
        born = ManagerPlace(
            generation=place,
            current=self.generation,
            outgoing=self.outgoing,
            row=row,
            lines=self.lines.of(place),
        )
        try:
            pid = self._processes.start(
                partial(self._work, born), close=self.kept(but=place)
            )
        except SpawnError as failure:
            self._not_spawned(row, failure)
            if self._is_hasty(place):
                self.failed = True
            else:
                self._start_later(place, died_young + 1)
            return
        self._welcome(
            ManagerProcess(
                pid=pid,
                generation=place,
                row=row,
                started=self._clock(),
                died_young=died_young,
                complaints=Complaints(self._clock),
            )
        )
        if self.outgoing is None:
            self.set_front()

    def _is_hasty(self, generation: Generation) -> bool:
        """Whether somebody waits for a manager, who does not wait for a second one."""
        return self._starting and generation is self.generation

    def reopen_logs(self) -> None:
        """Order all to use the log files that the master has opened again.

        The user of a manager need not be that of the workers, whom the files are given.
        """
        files = self.generation.logs.descriptors
        if len(files) > MAX_HANDED_LOGS:
            files = {}
        for manager in self._all.values():
            if not self._processes.tell(
                manager.pid, Order.REOPEN, {"files": [*files]}, [*files.values()]
            ):
                self._kill(manager, signal.SIGUSR1)

    # What the master keeps for managers

    def kept(self, but: Generation | None = None) -> list[Closable]:
        """Lines and secrets of all generations but one; no worker may have them."""
        return [
            *self.lines.sockets(but=but),
            *(each.manager_secrets for each in self._served if each is not but),
        ]

    def hand_over(self, worker: int) -> None:
        """Give the manager of a worker that was started the line to it."""
        line, generation = self.lines.find(worker)
        if line is None:
            return
        manager = self._of(generation)
        if manager is not None:
            manager.owed.append(line)
            self._pay(manager)

    def _of(self, generation: Generation | None) -> ManagerProcess | None:
        """The living manager of a generation."""
        for each in self._all.values():
            if each.generation is generation and not each.leaving:
                return each
        return None

    def _pay(self, manager: ManagerProcess) -> None:
        """Hand over what is owed, as far as there is room in the line."""
        while manager.owed:
            line = manager.owed[0]
            if self.lines.find(line.pid)[0] is line and not self._processes.tell(
                manager.pid,
                Order.WORKER,
                {"row": line.row, "pid": line.pid},
                [line.socket.fileno()],
            ):
                return
            del manager.owed[0]

    # End

    def bury(self, end: End, *, replace: bool) -> bool:
        """Note that a process has ended; returns False if it was not a manager."""
        manager = self._part(end)
        if manager is None:
            return False
        generation = manager.generation
        for worker in self.lines.of(generation):
            self._processes.tell(worker.pid, Order.UNMANAGED)
        if manager.leaving or not replace:
            return True
        if self._is_hasty(generation):
            self.failed = True
        elif not self._is_fatal(end) and self._is_needed(generation):
            self._replace(manager, generation)
        return True

    def _is_needed(self, generation: Generation) -> bool:
        return generation is self.generation or bool(self.lines.of(generation))

    def retire(self, *, all_end: bool = False) -> None:
        """Have those end whose generation is over, and whose workers have gone.

        Args:
          all_end: the current generation is over, too.
        """
        current = None if all_end else self.generation
        for manager in self._all.values():
            over = manager.generation is not current
            if over and not manager.leaving and not self.lines.of(manager.generation):
                self._order(manager, Order.QUIT, signal.SIGQUIT)
                manager.leaving = True
        self._respawns = [
            each
            for each in self._respawns
            if each[1] is current or self.lines.of(each[1])
        ]
        for generation in [*self._served]:
            if generation is not current and not self.lines.of(generation):
                generation.manager_secrets.close()
                self._served.remove(generation)

    def stop(self, only: Generation | None = None) -> None:
        """Order all, or only those of one generation, to exit at once."""
        self._respawns = [
            each for each in self._respawns if only is not None and each[1] is not only
        ]
        super().stop(only)

    # Time

    def _next_due(self) -> float:
        due = super()._next_due()
        if any(manager.owed for manager in self._all.values()):
            due = min(due, self._clock() + HAND_OVER_PAUSE)
        return due

    def _do_own(self, now: float) -> None:
        super()._do_own(now)
        for manager in self._all.values():
            self._pay(manager)


class Lines:
    """The managers' ends of the lines to all living workers, as the master keeps them."""

    def __init__(self) -> None:
        self._all: dict[int, tuple[WorkerLine, Generation]] = {}
        self._new: socket.socket | None = None

    def sockets(self, but: Generation | None = None) -> list[socket.socket]:
        """The sockets of all lines, but those to workers of one generation."""
        new = [] if self._new is None else [self._new]
        return [
            *new,
            *(line.socket for line, of in self._all.values() if of is not but),
        ]

    def of(self, generation: Generation) -> tuple[WorkerLine, ...]:
        """The lines to the workers of a generation."""
        return tuple(line for line, of in self._all.values() if of is generation)

    def find(self, worker: int) -> tuple[WorkerLine | None, Generation | None]:
        """The line to a worker, and its generation; None, None if it has none."""
        return self._all.get(worker, (None, None))

    @contextmanager
    def begin(self, generation: Generation) -> Iterator[NewLine]:
        """Make the line to a worker that is about to be started, if it has a manager.

        Raises:
          SpawnError: there are no descriptors for it.
        """
        if not generation.configuration.manager:
            yield NewLine(self, generation, None, None)
            return
        ours, theirs = make_line()
        self._new = ours
        new = NewLine(self, generation, ours, theirs)
        try:
            yield new
        finally:
            self._new = None
            theirs.close()
            if not new.is_kept:
                ours.close()

    def add(self, line: WorkerLine, generation: Generation) -> None:
        """Keep the line to a worker that has been started."""
        self._all[line.pid] = line, generation

    def end(self, worker: int) -> None:
        """Close our end of the line to a worker that has ended."""
        line, _ = self._all.pop(worker, (None, None))
        if line is not None:
            line.socket.close()


class NewLine:
    """A line to a worker that is about to be started.

    Attributes:
      theirs: the end of the worker; None if it needs no line.
      is_kept: whether the worker was started.
    """

    def __init__(
        self,
        lines: Lines,
        generation: Generation,
        ours: socket.socket | None,
        theirs: socket.socket | None,
    ) -> None:
        self.theirs = theirs
        self.is_kept = False
        self._lines = lines
        self._generation = generation
        self._ours = ours

    def keep(self, pid: int, row: Row) -> None:
        """Note that the worker was started."""
        self.is_kept = True
        if self._ours is not None:
            line = WorkerLine(row.number, pid, self._ours)
            self._lines.add(line, self._generation)
