"""A world without processes for the master: signals, workers and time are made up.

A test tells a story, a generator: it yields what happens next, and looks at the
world in between. A signal arrives, or seconds pass:

    def story(world: World) -> Story:
        yield SIGHUP
        assert world.running == [102]
        yield 5.0
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mailproxy.log import NOTICE, ErrorLog, Logger, open_logs
from mailproxy.log.directive import File
from mailproxy.mail.load_state import Reason
from mailproxy.mail.server import Server
from mailproxy.mail.upstreams import Upstreams
from mailproxy.outside import Findings
from mailproxy.process.children import (
    MAX_MESSAGES_IN_A_ROW,
    Closable,
    End,
    Heard,
    SpawnError,
)
from mailproxy.process.configuration import Configuration, Messages
from mailproxy.process.generation import Generation, GenerationError
from mailproxy.process.managers import ManagerPlace
from mailproxy.process.master import Master, Origin, Pause
from mailproxy.process.messages import Order
from mailproxy.process.notify import Notify
from mailproxy.process.reader import ConfigurationReader
from mailproxy.process.secret_files import SecretFiles
from mailproxy.process.settings import EventsSettings, MainSettings
from mailproxy.process.signals import HANDLED, Received
from mailproxy.process.upgrade import Successor
from mailproxy.stats.cells import CellKey
from mailproxy.stats.mapping import Row

SENDER = 4711
"""Who sends all signals but those of the kernel."""

READER = 501
"""The pid of the first reader of a configuration; the next one has the next."""

NEW_BINARY = 900
"""The pid of a new binary."""

PROGRAM = "/bin/true"
"""Something that can be executed."""

Story = Iterator[signal.Signals | float]


class OverError(Exception):
    """The story has been told."""


@dataclass
class World:
    """What a master sees, and what it did.

    Attributes:
      running: workers, by pid, in order of their start.
      told: orders, each as "PID ORDER", pings left out.
      killed: signals sent, each as "PID NUMBER".
      prompt: workers come up as soon as they are started.
    """

    directory: Path
    main: MainSettings
    background: bool = True
    running: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    prompt: bool = True
    mute: set[int] = field(default_factory=set)
    """Workers that never answer."""
    invalid: dict[int, int] = field(default_factory=dict)
    """How many invalid messages of a worker wait, by its pid."""
    forks: int = 1 << 30
    """How many more processes can be had."""
    readers: int = 1 << 30
    """The same for processes that read a configuration."""
    spoil: Callable[[int], object] = lambda _: None
    """What happens to the sheet that a reader has written; called with its descriptor."""
    reads_at_once: bool = True
    """A reader has ended when it is next asked for."""
    call: str = "fork()"
    """What fails when there are none to be had."""
    next_main: MainSettings | None = None
    """What the next reload finds; None: a broken file."""
    bug: Exception | None = None
    """What reading raises."""
    loading_bug: Exception | None = None
    """What loading raises after that."""
    bind_rounds: int = 0
    """How often loading has to wait for an address."""
    notify: Notify = field(default_factory=lambda: Notify({}))
    counted: tuple[CellKey, ...] = ()
    """What the processes of the next generation count together."""
    rows: dict[int, Row] = field(default_factory=dict)
    """The rows of processes in the statistics, by pid."""
    reasons: tuple[Reason, ...] = ()
    """What needs a manager in the next generation."""
    managers: dict[int, ManagerPlace] = field(default_factory=dict)
    """What managers were born into, by pid."""
    secret: Path | None = None
    """A file that managers of the next generation read."""
    deaf: set[int] = field(default_factory=set)
    """Processes whose lines have no room."""
    servers: tuple[Server, ...] = ()
    """The servers of each generation."""
    refusing: set[int] = field(default_factory=set)
    """Workers that say that they cannot use new certificates."""
    now: float = 1000.0
    _next_pid: int = 101
    _next_reader: int = READER
    _ends: list[End] = field(default_factory=list)
    _pinged: set[int] = field(default_factory=set)
    _answered: set[int] = field(default_factory=set)
    _lines: set[Closable] = field(default_factory=set)
    _pending: list[signal.Signals] = field(default_factory=list)
    _passing: float = 0.0

    # What tests use

    def play(self, tell: Callable[[World], Story]) -> int | None:
        """Run a master through a story; its exit code, None if it goes on."""
        self._story = tell(self)
        if self.main.pid is not None:
            Path(self.main.pid).write_text("1\n", encoding="ascii")
        master = Master(
            self.generation(self.main),
            self._load,
            lambda *_: 0,
            lambda *_: 0,
            reader=ConfigurationReader(self._read, self),
            processes=self,
            signals=self,
            upgrade=Successor((PROGRAM, "-q"), {}, {}, self),
            notify=self.notify,
            origin=Origin(background=self.background),
            clock=lambda: self.now,
        )
        try:
            return master.run() if master.start() else 2
        except OverError:
            return None
        finally:
            for line in self._lines:
                line.close()

    def generation(self, main: MainSettings) -> Generation:
        """A generation without servers, which logs into the directory."""
        error_log = (ErrorLog(File(str(self.log_path)), NOTICE),)
        configuration = Configuration(
            main=main,
            events=EventsSettings(),
            servers=self.servers,
            error_logs=(),
            messages=Messages(),
            upstreams=Upstreams({}, ()),
            counted=self.counted,
            manager=self.reasons,
        )
        logs = open_logs(error_log, default="")
        secrets = SecretFiles()
        if self.secret is not None:
            secrets = SecretFiles({str(self.secret): os.open(self.secret, os.O_RDONLY)})
        return Generation(configuration, logs, (), manager_secrets=secrets)

    @property
    def log_path(self) -> Path:
        return self.directory / "error.log"

    def log(self) -> list[str]:
        """What was logged since it was last asked here, notices without level."""
        text = self.log_path.read_text(encoding="utf-8")
        self.log_path.write_text("", encoding="utf-8")
        found = re.findall(r"^\S+ \S+ \[(\w+)\] [0-9#]+: (.*)$", text, re.MULTILINE)
        return [
            message if level == "notice" else f"[{level}] {message}"
            for level, message in found
        ]

    def dies(self, pid: int, code: int = 0, by: int = 0) -> signal.Signals:
        """A process ends, with an exit code or by a signal."""
        if pid in self.running:
            self.running.remove(pid)
        self._ends.append(End(pid, by or code << 8))
        return signal.SIGCHLD

    def comes_up(self, *pids: int) -> signal.Signals:
        """Workers have answered."""
        self._pinged -= set(pids)
        self._answered = set(pids)
        return signal.SIGIO

    def has_read(self) -> signal.Signals:
        """The latest reader ends as it should."""
        return self.dies(self._next_reader - 1)

    # What the master uses

    def wait(
        self, timeout: float | None, signals: Collection[signal.Signals] = HANDLED
    ) -> Received | None:
        for number in self._pending:
            if number in signals:
                self._pending.remove(number)
                return self._received(number)
        if self.prompt and (self._pinged - self.mute) & set(self.running):
            return Received(signal.SIGIO)
        while True:
            if self._passing:
                assert timeout is not None
                if timeout <= self._passing:
                    self.now += timeout
                    self._passing -= timeout
                    return None
                self.now += self._passing
                timeout -= self._passing
                self._passing = 0.0
            try:
                step = next(self._story)
            except StopIteration:
                raise OverError from None
            if isinstance(step, float):
                self._passing = step
            elif step in signals:
                return self._received(step)
            else:
                self._pending.append(step)

    def _received(self, number: signal.Signals) -> Received:
        kernel = number in (signal.SIGIO, signal.SIGCHLD)
        return Received(number, 0 if kernel else SENDER)

    def start(
        self,
        work: Callable[[socket.socket], int],
        close: Iterable[Closable] = (),
    ) -> int:
        assert isinstance(work, partial)
        place = work.args[0]
        self._lines |= {*close}
        self._refuse(self.forks)
        self.forks -= 1
        pid, self._next_pid = self._next_pid, self._next_pid + 1
        self.running.append(pid)
        self.rows[pid] = place.row
        if isinstance(place, ManagerPlace):
            self.managers[pid] = place
        return pid

    def start_apart(self, work: Callable[[], int], keep: Collection[int]) -> int:
        self._refuse(self.readers)
        assert work() == 0
        (sheet,) = keep
        self.spoil(sheet)
        pid, self._next_reader = self._next_reader, self._next_reader + 1
        if self.reads_at_once:
            self._ends.append(End(pid, 0))
            self._pending.append(signal.SIGCHLD)
        return pid

    def _refuse(self, left: int) -> None:
        if not left:
            raise SpawnError(self.call, OSError(11, os.strerror(11)))

    def execute(
        self,
        path: str,
        arguments: list[str],
        environment: dict[str, str],
        keep: Sequence[int],
        failed: Callable[[OSError], None],
    ) -> int:
        if not self.forks:
            raise OSError(11, os.strerror(11))
        return NEW_BINARY

    def tell(
        self,
        pid: int,
        order: Order,
        body: Mapping[str, object] | None = None,
        descriptors: Sequence[int] = (),
    ) -> bool:
        if pid in self.deaf:
            return False
        if order == Order.PING:
            self._pinged.add(pid)
        elif order == Order.WORKER:
            assert body is not None
            assert len(descriptors) == 1
            self.told.append(f"{pid} worker {body['pid']}")
        else:
            self.told.append(f"{pid} {order.name.lower()}")
        return True

    def hear(self, pid: int) -> Heard:
        waiting = self.invalid.get(pid, 0)
        taken = min(waiting, MAX_MESSAGES_IN_A_ROW)
        self.invalid[pid] = waiting - taken
        alive = pid in self._answered
        if self.prompt and pid in self._pinged - self.mute:
            self._pinged.remove(pid)
            alive = True
        else:
            self._answered.discard(pid)
        refused = pid in self.refusing
        self.refusing.discard(pid)
        return Heard(
            alive=alive,
            refused=refused,
            invalid=taken > 0,
            more=taken == MAX_MESSAGES_IN_A_ROW,
        )

    def kill(self, pid: int, number: int) -> None:
        self.killed.append(f"{pid} {number}")

    def reap(self) -> list[End]:
        ends, self._ends = self._ends, []
        return ends

    def _read(self, log: Logger) -> None:
        if self.bug:
            raise self.bug
        if self.next_main is None:
            log.emerg("it is broken: %s", b"badly", error=OSError(5, "I/O"))
            raise GenerationError

    def _load(self, old: Generation, findings: Findings, pause: Pause) -> Generation:
        if self.loading_bug:
            raise self.loading_bug
        for _ in range(self.bind_rounds):
            pause(0.5)
        assert self.next_main is not None
        return self.generation(self.next_main)
