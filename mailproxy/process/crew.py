"""What the master does for all its processes, workers and managers alike.

It pings them regularly and kills those that are stuck, passes on orders, stops those
that do not stop, and waits longer and longer before it replaces what ends right after its
start.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals
from socket import socket
from typing import ClassVar, Generic, Protocol, TypeVar

from mailproxy.log import Logger
from mailproxy.net.messages import Complaints
from mailproxy.process.children import FATAL, Closable, End, Heard, SpawnError
from mailproxy.process.generation import Generation
from mailproxy.process.messages import Order
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row, Statistics

MIN_HEALTHY = 10.0
"""Seconds that a process must have run for its end not to be blamed on its start."""
MAX_RESPAWN_DELAY = 32
"""The longest pause, in seconds, before a process is started again."""
MAX_SILENCE = 60.0
"""Seconds without an answer after which a process counts as stuck."""
FIRST_STOP_DELAY = 0.05
"""Seconds until a stop order is repeated; doubled each time."""
MAX_STOP_DELAY = 1.0
"""Once the delay is longer than this, SIGKILL is sent: after three seconds in all."""


class Processes(Protocol):
    """What is done with processes; `Children` does it."""

    def start(
        self, work: Callable[[socket], int], close: Iterable[Closable] = ()
    ) -> int: ...
    def tell(
        self,
        pid: int,
        order: Order,
        body: Mapping[str, object] | None = None,
        descriptors: Sequence[int] = (),
    ) -> bool: ...
    def hear(self, pid: int) -> Heard: ...
    def kill(self, pid: int, number: int) -> None: ...
    def reap(self) -> list[End]: ...


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a crew needs to start its processes, and to watch them."""

    processes: Processes
    clock: Callable[[], float]
    """Seconds that never go backwards."""
    statistics: Statistics
    """Gives them rows."""
    patience: float = MAX_SILENCE
    """Seconds without an answer after which a process is killed."""


@dataclass(slots=True, kw_only=True)
class CrewMember:
    """One process, as the master sees it."""

    pid: int
    generation: Generation
    row: Row
    """Its row in the statistics."""
    started: float
    died_young: int
    """How many before it, in its place, ended right after their start."""
    complaints: Complaints
    """Limits the log lines about its invalid messages."""
    up: bool = False
    """It has answered a ping."""
    leaving: bool = False
    """It was ordered to leave, and is not replaced."""
    asked: float | None = None
    """When it was pinged, in seconds of the clock; None if no answer is due."""


M = TypeVar("M", bound=CrewMember)
P = TypeVar("P")
"""The place of a member, which another one takes after its end."""


class Crew(ABC, Generic[M, P]):
    """The processes of one kind, of all generations.

    One that ends without an order is replaced: at once if it had run for a while, after
    longer and longer pauses if it ended right after its start, and never if it ended with
    the code FATAL.

    Attributes:
      kind: what the log calls one of them, in short.
      role: what they are in the statistics.
      generation: the generation of those to be started.
      outgoing: the one that it is replacing, until that is decided.
      failed: one of `generation` could not be started, or ended before it came up.
      ever_up: one has come up at some time.
    """

    kind: ClassVar[str]
    role: ClassVar[Role]

    def __init__(self, generation: Generation, means: Means) -> None:
        self.generation = generation
        self.outgoing: Generation | None = None
        self.failed = False
        self.ever_up = False
        self._means = means
        self._processes = means.processes
        self._clock = means.clock
        self._all: dict[int, M] = {}
        self._stop_delay = FIRST_STOP_DELAY
        self._stop_at: float | None = None
        self._respawns: list[tuple[float, P, int]] = []
        """When which place gets a process, and how many have died young there."""
        self._unheard = False
        self._watch_at = self._clock() + means.patience / 4

    def __len__(self) -> int:
        return len(self._all)

    @property
    def name(self) -> str:
        """What the log calls one of them."""
        return f"{self.kind} process"

    @property
    def is_hopeless(self) -> bool:
        """Whether nobody need wait any more for the current generation to come up."""
        return self.failed and self.outgoing is not None

    @property
    def coming_up(self) -> bool:
        """Whether some of the current generation have not answered yet."""
        return any(not each.up for each in self._all.values() if self._current(each))

    @property
    def any_up(self) -> bool:
        """Whether one of the current generation has answered and is not leaving."""
        return any(each.up for each in self._all.values() if self._current(each))

    @property
    def _log(self) -> Logger:
        return self.generation.log

    def _current(self, member: M) -> bool:
        return member.generation is self.generation and not member.leaving

    def _welcome(self, member: M) -> None:
        """Note that a process has been started, and ask whether it is up."""
        self._log.notice(f"start {self.name} {member.pid}")
        row = member.row
        if row.has_mapping and not row.is_shared:
            self._log.warn(
                f"no free row in the statistics, process {member.pid} is not counted"
            )
        self._all[member.pid] = member
        self._ask(member)

    # Start

    @abstractmethod
    def _start(self, place: P, died_young: int = 0) -> None:
        """Start a process in a place, or note that it cannot be started."""

    def _take_row(self) -> Row:
        return self._means.statistics.take_row(self.role)

    def _not_spawned(self, row: Row, failure: SpawnError) -> None:
        """Note that a process could not be started."""
        self._means.statistics.free_row(row)
        self._log.alert(
            f'{failure.call} failed while spawning "{self.name}"', error=failure.error
        )

    def _start_later(self, place: P, died_young: int) -> int:
        """Start a process in some seconds; returns how many."""
        delay = respawn_delay(died_young)
        self._respawns.append((self._clock() + delay, place, died_young))
        return delay

    def _replace(self, member: M, place: P) -> None:
        """Start another process in the place of one that has ended, now or later."""
        young = self._clock() - member.started < MIN_HEALTHY
        died_young = member.died_young + 1 if young else 0
        if died_young <= 1:
            self._start(place, died_young)
            return
        delay = self._start_later(place, died_young)
        self._log.error(
            f"{self.name}es end right after their start, {died_young} in a row;"
            f" the next one starts in {delay} s"
        )

    # End

    def _part(self, end: End) -> M | None:
        """Note that a process has ended; returns None if it was none of these."""
        member = self._all.pop(end.pid, None)
        if member is not None:
            self._means.statistics.free_row(member.row)
            log = self._log.alert if end.code is None else self._log.notice
            log(f"{self.name} {end.pid} {end.text}")
        return member

    def _is_fatal(self, end: End) -> bool:
        """Whether a process is not replaced because it said so; that is logged."""
        if end.code != FATAL:
            return False
        self._log.alert(
            f"{self.name} {end.pid} exited with fatal code {FATAL}"
            " and cannot be respawned"
        )
        return True

    # Orders

    def stop(self, only: Generation | None = None) -> None:
        """Order all, or only those of one generation, to exit at once."""
        for member in self._all.values():
            if only is None or member.generation is only:
                self._order(member, Order.STOP, signal.SIGTERM)
                member.leaving = True

    def insist(self) -> None:
        """Order all to exit at once, again and again, and then kill them."""
        self.stop()
        self._stop_at = self._clock() + self._stop_delay

    def reopen_logs(self) -> None:
        """Order all to open their log files again."""
        for member in self._all.values():
            self._order(member, Order.REOPEN, signal.SIGUSR1)

    def _order(self, member: M, order: Order, otherwise: Signals) -> None:
        if not self._processes.tell(member.pid, order):
            self._kill(member, otherwise)

    def _kill(self, member: M, number: Signals) -> None:
        try:
            self._processes.kill(member.pid, number)
        except OSError as error:
            self._log.alert(f"kill({member.pid}, {number:d}) failed", error=error)

    # Time

    def hear(self) -> None:
        """Read the messages of all."""
        self._unheard = False
        for member in self._all.values():
            heard = self._processes.hear(member.pid)
            if heard.alive:
                member.asked = None
                member.up = self.ever_up = True
            if heard.refused:
                self._log.error(
                    f"{self.name} {member.pid} did not take new certificates"
                )
            if heard.invalid and member.complaints.is_due():
                self._log.alert(f"{self.kind} {member.pid} sent an invalid message")
            self._unheard = self._unheard or heard.more

    def until_next(self) -> float:
        """Seconds until `catch_up` has something to do."""
        if self._unheard:
            return 0.0
        due = self._watch_at if self._stop_at is None else self._stop_at
        return max(min(due, self._watch_at, self._next_due()) - self._clock(), 0.0)

    def _next_due(self) -> float:
        """When something is to be started, or is due of a crew's own."""
        return min((due for due, _, _ in self._respawns), default=float("inf"))

    def catch_up(self) -> bool:
        """Do what has become due; returns whether it looked for stuck processes."""
        if self._unheard:
            self.hear()
        now = self._clock()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_again(now)
        self._do_own(now)
        if now < self._watch_at:
            return False
        self._watch_at = now + self._means.patience / 4
        self._watch(now)
        return True

    def _do_own(self, now: float) -> None:
        """Start what is to be started, and do what is due of a crew's own."""
        for respawn in [each for each in self._respawns if each[0] <= now]:
            self._respawns.remove(respawn)
            self._start(*respawn[1:])

    def _stop_again(self, now: float) -> None:
        if self._stop_delay > MAX_STOP_DELAY:
            for member in self._all.values():
                self._kill(member, signal.SIGKILL)
        else:
            self.stop()
        self._stop_delay *= 2
        self._stop_at = now + self._stop_delay

    def _watch(self, now: float) -> None:
        """Kill stuck processes, and ask the others whether they are alive."""
        self.hear()
        for member in self._all.values():
            if member.asked is None:
                self._ask(member)
            elif now - member.asked >= self._means.patience:
                self._log.alert(
                    f"{self.name} {member.pid} is stuck: no answer"
                    f" for {now - member.asked:.0f} s, killing it"
                )
                self._kill(member, signal.SIGKILL)
                member.asked = now  # it may take a while to die

    def _ask(self, member: M) -> None:
        if self._processes.tell(member.pid, Order.PING):
            member.asked = self._clock()


def respawn_delay(died_young: int) -> int:
    """Seconds until a process is started again, if so many have ended in a row."""
    return min(1 << max(died_young - 2, 0), MAX_RESPAWN_DELAY)
