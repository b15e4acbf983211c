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
from dataclasses import dataclass, field
from functools import partial
from signal import Signals
from typing import Protocol

from mailproxy.log import Logger
from mailproxy.process.children import FATAL, End, Heard, SpawnError
from mailproxy.process.generation import Generation
from mailproxy.process.messages import Complaints, Order
from mailproxy.stats.cells import CellKey, Role
from mailproxy.stats.mapping import Row, Statistics

MIN_HEALTHY = 10.0
"""Seconds that a worker must have run for its end not to be blamed on its start."""
MAX_RESPAWN_DELAY = 32
"""The longest pause, in seconds, before a worker is started again."""
MAX_SILENCE = 60.0
"""Seconds without an answer after which a worker counts as stuck."""
FIRST_STOP_DELAY = 0.05
"""Seconds until a stop order is repeated; doubled each time."""
MAX_STOP_DELAY = 1.0
"""Once the delay is longer than this, SIGKILL is sent: after three seconds in all."""
MAX_PROCESSES = 1024
"""The number of processes that nginx can have (NGX_MAX_PROCESSES)."""

_NAME = "worker process"


class Processes(Protocol):
    """What is done with processes; `Children` does it."""

    def start(self, work: Callable[[socket.socket], int]) -> int: ...
    def tell(self, pid: int, order: Order) -> bool: ...
    def hear(self, pid: int) -> Heard: ...
    def kill(self, pid: int, number: int) -> None: ...
    def reap(self) -> list[End]: ...


Work = Callable[[Generation, Generation | None, int, Row, socket.socket], int]
"""Runs as a worker and returns the exit code. Takes the generation, the outgoing one if
that is still open (at a reload), the slot, the row in the statistics, and the line to the
master."""


@dataclass(slots=True)
class WorkerProcess:
    """One worker, as the master sees it."""

    pid: int
    slot: int
    generation: Generation
    started: float
    died_young: int
    """How many workers in a row before it, in its slot, ended right after their start."""
    row: Row
    """Its row in the statistics."""
    up: bool = False
    """It has answered a ping."""
    leaving: bool = False
    """It was ordered to leave, and is not replaced."""
    asked: float | None = None
    """When it was pinged, in seconds of the clock; None if no answer is due."""
    complaints: Complaints = field(kw_only=True)
    """Limits the log lines about its invalid messages."""


class Workers:
    """All workers of all generations.

    Attributes:
      generation: the generation of workers to be started.
      outgoing: the one that it is replacing, until that is decided.
      failed: a worker of `generation` could not be started, or ended before it came
        up.
      ever_up: a worker has come up at some time.
    """

    def __init__(
        self,
        generation: Generation,
        work: Work,
        processes: Processes,
        clock: Callable[[], float],
        statistics: Statistics,
        patience: float = MAX_SILENCE,
    ) -> None:
        self.generation = generation
        self._statistics = statistics
        self.outgoing: Generation | None = None
        self.failed = False
        self.ever_up = False
        self._work = work
        self._processes = processes
        self._clock = clock
        self._patience = patience
        self._all: dict[int, WorkerProcess] = {}
        self._respawns: list[tuple[float, int, int]] = []
        self._stop_delay = FIRST_STOP_DELAY
        self._stop_at: float | None = None
        self._unheard = False
        self._watch_at = clock() + patience / 4

    def __len__(self) -> int:
        return len(self._all)

    @property
    def coming_up(self) -> bool:
        """Whether some workers of the current generation have not answered yet."""
        return any(not each.up for each in self._all.values() if self._current(each))

    @property
    def any_up(self) -> bool:
        """Whether a worker of the current generation has answered and is not leaving."""
        return any(each.up for each in self._all.values() if self._current(each))

    @property
    def _log(self) -> Logger:
        return self.generation.log

    def _current(self, worker: WorkerProcess) -> bool:
        return worker.generation is self.generation and not worker.leaving

    # Start

    def start(self) -> None:
        """Log that the current generation starts, and start its workers."""
        self._log.notice("start worker processes")
        self.failed = False
        self._make_room()
        gc.collect()  # each worker would inherit the garbage
        self.fill()

    def _make_room(self) -> None:
        """Have cells for all numbers that the configuration wants to be shared."""
        self._statistics.begin_generation()
        configuration = self.generation.configuration
        if not configuration.shares_numbers:
            return
        left_out = self._statistics.need(
            configuration.counted, self.generation.main.worker_processes
        )
        for what in dict.fromkeys(map(_zone, left_out)):
            self._log.warn(f"no room for the statistics of {what}")

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
        row = self._statistics.take_row(Role.WORKER)
        try:
            pid = self._processes.start(
                partial(self._work, self.generation, self.outgoing, slot, row)
            )
        except SpawnError as failure:
            self._statistics.free_row(row)
            self._log.alert(
                f'{failure.call} failed while spawning "{_NAME}"', error=failure.error
            )
            self.failed = True
            if self.outgoing is None:
                self._start_later(slot, died_young + 1)
            return
        self._log.notice(f"start {_NAME} {pid}")
        if row.has_mapping and not row.is_shared:
            self._log.warn(
                f"no free row in the statistics, process {pid} is not counted"
            )
        worker = WorkerProcess(
            pid,
            slot,
            self.generation,
            self._clock(),
            died_young,
            row,
            complaints=Complaints(self._clock),
        )
        self._all[pid] = worker
        self._ask(worker)

    def _start_later(self, slot: int, died_young: int) -> int:
        """Start a worker in some seconds; returns how many."""
        delay = min(1 << max(died_young - 2, 0), MAX_RESPAWN_DELAY)
        self._respawns.append((self._clock() + delay, slot, died_young))
        return delay

    # End

    def bury(self, end: End, *, replace: bool) -> bool:
        """Note that a process has ended; returns False if it was not a worker."""
        worker = self._all.pop(end.pid, None)
        if worker is None:
            return False
        self._statistics.free_row(worker.row)
        (self._log.alert if end.code is None else self._log.notice)(
            f"{_NAME} {end.pid} {end.text}"
        )
        if worker.leaving or not replace:
            return True
        if not worker.up and worker.generation is self.generation:
            self.failed = True
        if end.code == FATAL:
            self._log.alert(
                f"{_NAME} {end.pid} exited with fatal code {FATAL}"
                " and cannot be respawned"
            )
        elif self.outgoing is None:  # otherwise `fill` follows
            young = self._clock() - worker.started < MIN_HEALTHY
            died_young = worker.died_young + 1 if young else 0
            if died_young > 1:
                delay = self._start_later(worker.slot, died_young)
                self._log.error(
                    f"{_NAME}es end right after their start, {died_young} in a row;"
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

    def stop(self, but: Generation | None = None) -> None:
        """Order all, except those of generation `but`, to exit at once."""
        self._respawns.clear()
        for worker in self._all.values():
            if worker.generation is not but:
                self._order(worker, Order.STOP, signal.SIGTERM)
                worker.leaving = True

    def insist(self) -> None:
        """Order all to exit at once, again and again, and then kill them."""
        self.stop()
        self._stop_at = self._clock() + self._stop_delay

    def reopen_logs(self) -> None:
        """Order all to open their log files again."""
        for worker in self._all.values():
            self._order(worker, Order.REOPEN, signal.SIGUSR1)

    def _order(self, worker: WorkerProcess, order: Order, otherwise: Signals) -> None:
        if not self._processes.tell(worker.pid, order):
            self._kill(worker, otherwise)

    def _kill(self, worker: WorkerProcess, number: Signals) -> None:
        try:
            self._processes.kill(worker.pid, number)
        except OSError as error:
            self._log.alert(f"kill({worker.pid}, {number:d}) failed", error=error)

    # Time

    def hear(self) -> None:
        """Read the messages of all workers."""
        self._unheard = False
        for worker in self._all.values():
            heard = self._processes.hear(worker.pid)
            if heard.alive:
                worker.asked = None
                worker.up = self.ever_up = True
            if heard.invalid and worker.complaints.is_due():
                self._log.alert(f"worker {worker.pid} sent an invalid message")
            self._unheard = self._unheard or heard.more

    def until_next(self) -> float:
        """Seconds until `catch_up` has something to do."""
        if self._unheard:
            return 0.0
        due = [self._watch_at, *(due for due, _, _ in self._respawns)]
        if self._stop_at is not None:
            due.append(self._stop_at)
        return max(min(due) - self._clock(), 0.0)

    def catch_up(self) -> bool:
        """Do what has become due; returns whether it looked for stuck workers."""
        if self._unheard:
            self.hear()
        now = self._clock()
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_again(now)
        for respawn in [each for each in self._respawns if each[0] <= now]:
            self._respawns.remove(respawn)
            self._start(*respawn[1:])
        if now < self._watch_at:
            return False
        self._watch_at = now + self._patience / 4
        self._watch(now)
        return True

    def _stop_again(self, now: float) -> None:
        if self._stop_delay > MAX_STOP_DELAY:
            for worker in self._all.values():
                self._kill(worker, signal.SIGKILL)
        else:
            self.stop()
        self._stop_delay *= 2
        self._stop_at = now + self._stop_delay

    def _watch(self, now: float) -> None:
        """Kill stuck workers, and ask the others whether they are alive."""
        self.hear()
        for worker in self._all.values():
            if worker.asked is None:
                self._ask(worker)
            elif now - worker.asked >= self._patience:
                self._log.alert(
                    f"{_NAME} {worker.pid} is stuck: no answer"
                    f" for {now - worker.asked:.0f} s, killing it"
                )
                self._kill(worker, signal.SIGKILL)
                worker.asked = now  # it may take a while to die

    def _ask(self, worker: WorkerProcess) -> None:
        if self._processes.tell(worker.pid, Order.PING):
            worker.asked = self._clock()


def _zone(key: CellKey) -> str:
    """What a key belongs to, for the log."""
    kind = "upstream" if key.name.startswith("peer_") else "zone"
    return f'{kind} "{key.labels[0]}"'
