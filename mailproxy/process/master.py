"""The master: does what signals ask for.

It is plain and synchronous. Signals stay blocked and are waited for in one place,
so that none arrives at a bad moment, and forking is safe because there is no thread
and no event loop. All its decisions can be tested without a process: it sees the
world through `SignalSource`, `Processes` and `Upgrade`.

A reload makes a new generation beside the running one, from a configuration that
another process has read before (see `reader`). The old one leaves only after all
workers of the new one have come up; after any failure before that, the old one goes on.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from mailproxy.log import Logger
from mailproxy.net import listening
from mailproxy.net.listening import Held
from mailproxy.outside import Findings
from mailproxy.process import certificate_orders, pidfile
from mailproxy.process.children import End
from mailproxy.process.crew import MAX_SILENCE, Means, Processes
from mailproxy.process.generation import Generation, GenerationError
from mailproxy.process.managers import Managers, ManagerWork
from mailproxy.process.notify import Notify
from mailproxy.process.reader import MAX_READING, TOO_SLOW, ConfigurationReader
from mailproxy.process.renewal import Change, Renewal
from mailproxy.process.signals import HANDLED, Received
from mailproxy.process.workers import Workers, WorkerWork
from mailproxy.stats.cells import CellKey
from mailproxy.stats.mapping import Statistics

MAX_COMING_UP = 30.0
"""Seconds that new workers may take to come up. After that the master goes on: at a
start without them, at a reload with the old ones."""
MAX_MANAGER_START = 15.0
"""Seconds that a new manager may take; without it, nothing starts."""

_CONCERNS_START = (
    signal.SIGCHLD,
    signal.SIGIO,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
)
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_WHILE_READING = (*_CONCERNS_START, signal.SIGUSR1, signal.SIGALRM)
"""The signals that are taken while a configuration is read; others stay pending."""


class SignalSource(Protocol):
    """Where signals come from; the module `signals` is one such source."""

    def wait(
        self, timeout: float | None, signals: Collection[signal.Signals] = HANDLED
    ) -> Received | None:
        """Return the next signal, or None after `timeout` seconds."""


Pause = Callable[[float], None]
"""Waits for a number of seconds; raises GenerationError if the master must end."""
Load = Callable[[Generation, Findings, Pause], Generation]
"""Makes the next generation from the current one and from a reader's findings; logs
what is wrong and raises GenerationError."""


class Upgrade(Protocol):
    """How a new binary is started; `Successor` does it."""

    def start(self, generation: Generation) -> int | None: ...
    def gone(self, generation: Generation) -> None: ...


@dataclass(frozen=True)
class Origin:
    """How this process came to be."""

    background: bool = False
    """It is a daemon, or a binary upgrade started it."""
    old_master: int | None = None
    """The process that started this one for an upgrade; None if none did."""
    activated: bool = False
    """The inherited sockets come from systemd, which keeps them open."""

    @property
    def old_master_lives(self) -> bool:
        """Whether the old master still runs, so that the upgrade can be undone."""
        return self.old_master is not None and os.getppid() == self.old_master

    @property
    def owns_sockets(self) -> bool:
        """Whether no other process needs the inherited sockets, and their files."""
        return not (self.activated or self.old_master_lives)


class Master:
    """Obeys signals; see the module's docstring.

    Args:
      reader: reads the configuration anew before `load` does.
    """

    def __init__(
        self,
        first: Generation,
        load: Load,
        work: WorkerWork,
        manage: ManagerWork,
        *,
        reader: ConfigurationReader,
        processes: Processes,
        signals: SignalSource,
        upgrade: Upgrade,
        notify: Notify,
        origin: Origin,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generation = first
        self._load = load
        self._reader = reader
        self._read_by = float("inf")
        self._read_end: End | None = None
        self._processes = processes
        self._signals = signals
        self._upgrade = upgrade
        self._notify = notify
        self._origin = origin
        self._clock = clock
        self._statistics = Statistics()
        means = Means(
            processes=processes,
            clock=clock,
            statistics=self._statistics,
            patience=notify.watchdog or MAX_SILENCE,
        )
        self._managers = Managers(first, manage, means)
        self._workers = Workers(first, work, means, self._managers)
        self._renewal = self._make_renewal()
        self._new_binary: int | None = None
        self._paused = False
        self._listening = True
        self._ending: signal.Signals | None = None
        self._owes_ready = False

    @property
    def _log(self) -> Logger:
        return self._generation.log

    def start(self) -> bool:
        """Start the first workers; returns False, after cleaning up, if none can work."""
        self._make_room()
        if not self._start_manager():
            self._give_up("manager process does not start")
            return False
        if self._ending is None:
            self._workers.start()
            self._wait_until_up(self._workers, MAX_COMING_UP)
        if self._workers.failed and not self._workers and not self._workers.ever_up:
            self._give_up("no worker process could start, exiting")
            return False
        self._say_ready()
        return True

    def _give_up(self, why: str) -> None:
        """End before it has begun to serve."""
        self._log.emerg(why)
        self._stop()
        while self._managers:
            self._obey(float("inf"), _CONCERNS_START)
        self._leave()

    def _start_manager(self) -> bool:
        """Start the manager of the current generation, if it needs one; False if that
        does not come up."""
        self._managers.start()
        came_up = self._wait_until_up(self._managers, MAX_MANAGER_START)
        self._managers.settle()
        return came_up

    def _make_room(self) -> None:
        """Have cells for all numbers that the current generation wants to be shared."""
        self._statistics.begin_generation()
        configuration = self._generation.configuration
        if not configuration.shares_numbers:
            return
        left_out = self._statistics.need(
            configuration.counted, self._generation.main.worker_processes
        )
        for what in dict.fromkeys(map(_zone, left_out)):
            self._log.warn(f"no room for the statistics of {what}")

    def run(self) -> int:
        """Obey signals until one of them ends the master; returns the exit code."""
        while self._ending is None or self._workers or self._managers:
            if self._reader.pid is None:
                self._obey(float("inf"), HANDLED)
            else:
                self._obey(self._read_by, _WHILE_READING)
                self._go_on_reading()
        self._leave()
        return 0

    def _obey(self, until: float, signals: Collection[signal.Signals]) -> None:
        """Take the next of `signals`, if one comes in time, and do what is due."""
        crews = self._workers, self._managers
        due = min(
            until - self._clock(),
            self._until_renewal(),
            *(crew.until_next() for crew in crews),
        )
        received = self._signals.wait(due, signals)
        if received is not None:
            self._take(received)
        watched = [crew.catch_up() for crew in crews]
        if self._until_renewal() <= 0:
            self._renewal.catch_up()
        if any(watched):
            self._notify.alive()
        if self._owes_ready:
            self._say_ready()

    def _take(self, received: Received) -> None:
        match received.number:
            case signal.SIGIO:
                self._workers.hear()
                self._managers.hear()
            case signal.SIGCHLD:
                self._reap(received)
            case signal.SIGTERM | signal.SIGINT:
                self._log.notice(received.text("exiting"))
                self._stop()
            case signal.SIGQUIT:
                self._log.notice(received.text("shutting down"))
                self._quit()
            case signal.SIGUSR1:
                self._log.notice(received.text("reopening logs"))
                self._reopen_logs()
            case signal.SIGHUP:
                self._log.notice(received.text("reconfiguring"))
                self._reconfigure()
            case signal.SIGUSR2:
                self._change_binary(received)
            case signal.SIGWINCH:
                self._pause(received)

    def _reap(self, received: Received) -> None:
        ends = self._processes.reap()
        if not ends or any(end.pid != self._reader.pid for end in ends):
            self._log.notice(received.text())
        for end in ends:
            if end.pid == self._reader.pid:
                self._read_end = end
                continue
            replace = self._ending is None
            if (
                self._reader.forget(end.pid)
                or self._workers.bury(end, replace=replace)
                or self._managers.bury(end, replace=replace)
            ):
                continue
            new_binary = end.pid == self._new_binary
            name = "new binary process" if new_binary else "unknown process"
            log = self._log.alert if end.code is None else self._log.notice
            log(f"{name} {end.pid} {end.text}")
            if new_binary:
                self._new_binary = None
                self._upgrade.gone(self._generation)
                self._resume()
        self._managers.retire(all_end=self._ending is not None)

    # The end

    def _stop(self) -> None:
        if self._ending != signal.SIGTERM:
            self._ending = signal.SIGTERM
            self._reader.abandon(self._log)
            self._notify.stopping()
            self._workers.insist()
            self._managers.insist()

    def _quit(self) -> None:
        if self._ending is None:
            self._ending = signal.SIGQUIT
            self._reader.abandon(self._log)
            self._notify.stopping()
            self._workers.leave()
            self._managers.retire(all_end=True)
            self._stop_listening()

    def _leave(self) -> None:
        renamed = "" if self._new_binary is None else pidfile.OLDBIN
        self._generation.remove_pid(suffix=renamed)
        self._log.notice("exit")
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            self._close(self._generation.listeners, say=False)

    def _close(self, unwanted: Iterable[Held], *, say: bool) -> None:
        """Close sockets; their files stay while another process has them, too."""
        for held in unwanted:
            ours = not held.inherited or self._origin.owns_sockets
            files = ours and self._new_binary is None
            listening.close([held], self._log, files=files, say=say)

    # Logs

    def _reopen_logs(self) -> None:
        self._log.notice("reopening logs")
        self._generation.reopen_logs()
        self._workers.reopen_logs()
        self._managers.reopen_logs()

    # Reload

    def _reconfigure(self) -> None:
        if self._ending is not None:
            return
        if self._new_binary is not None:  # back to the old binary, which is this one
            self._paused = False
            self._workers.start()
            return
        self._log.notice("reconfiguring")
        self._notify.reloading()
        if self._reader.start(self._log):
            self._read_by = self._clock() + MAX_READING
        else:
            self._say_ready()

    def _go_on_reading(self) -> None:
        """Go on with the reload if the reader has finished; give up if it takes too long."""
        if self._ending is not None:
            return
        if self._read_end is not None:
            end, self._read_end = self._read_end, None
            new = self._make_next(end)
            if new is not None:
                self._replace_by(new)
        elif self._clock() >= self._read_by:
            self._reader.abandon(self._log)
            self._log.emerg(TOO_SLOW)
        else:
            return
        self._say_ready()

    def _make_next(self, end: End) -> Generation | None:
        """Load the reader's findings, whose memory is freed before workers are forked."""
        findings = self._reader.finish(end, self._log)
        if findings is None:
            return None
        self._notify.alive()  # loading a long configuration may take a while
        try:
            return self._load(self._generation, findings, self._pause_loading)
        except GenerationError:
            pass  # it is logged
        except Exception as error:  # noqa: BLE001 # a bug must not end the old workers
            self._log.exception("reload failed, this is a bug", exception=error)
        return None

    def _pause_loading(self, seconds: float) -> None:
        """Wait; raises GenerationError if a signal ends the master."""
        self._notify.alive()
        received = self._signals.wait(seconds, _ENDS)
        if received is not None:
            self._take(received)
            raise GenerationError

    def _replace_by(self, new: Generation) -> None:
        """Start the workers of a generation; if they come up, all others leave."""
        old, workers, managers = self._generation, self._workers, self._managers
        workers.outgoing = managers.outgoing = old
        self._use(new)
        missing = self._start_new()
        if not missing:
            self._paused = False
            self._renewal = self._make_renewal()
            workers.leave(but=new)
            self._dismiss(old, new)
        else:
            self._use(old)
            self._log.emerg(f"{missing}, nothing is changed")
            workers.stop(only=new)
            managers.stop(only=new)
            self._dismiss(new, old)
            old.logs.redirect_stderr()
        workers.outgoing = managers.outgoing = None
        managers.set_front()
        managers.retire(all_end=self._ending is not None)
        if not self._paused and self._ending is None:
            workers.fill()

    def _use(self, generation: Generation) -> None:
        """Start processes of this generation from now on."""
        self._generation = generation
        self._workers.generation = self._managers.generation = generation

    def _start_new(self) -> str:
        """Start the new manager and workers; returns what does not start, or ""."""
        self._make_room()
        if not self._start_manager():
            return "new manager process does not start"
        if self._ending is None:
            self._workers.start()
            if not self._wait_until_up(self._workers, MAX_COMING_UP):
                return "new worker processes do not start"
        return ""

    def _dismiss(self, loser: Generation, winner: Generation) -> None:
        """Close and remove what only the losing generation has."""
        self._close(winner.lacks(loser), say=True)
        loser.remove_pid(but=winner)
        loser.close()

    def _wait_until_up(self, crew: Workers | Managers, seconds: float) -> bool:
        """Wait for new processes; False if not all of them have come up.

        Meanwhile it takes only the signals that concern them or end the master; the
        others stay pending in the kernel.
        """
        deadline = self._clock() + seconds
        while crew.coming_up and self._ending is None:
            if crew.is_hopeless:
                break
            if self._clock() >= deadline:
                return False
            self._obey(deadline, _CONCERNS_START)
        return not crew.failed

    # Certificates

    def _make_renewal(self) -> Renewal:
        generation = self._generation
        return Renewal(
            generation.configuration,
            generation.log,
            self._tell_certificates,
            clock=self._clock,
        )

    def _until_renewal(self) -> float:
        """Seconds until certificates are looked at; not while generations change."""
        if self._ending is not None or self._workers.outgoing is not None:
            return float("inf")
        return self._renewal.until_next()

    def _tell_certificates(self, change: Change) -> None:
        """Have the workers use what has changed."""
        try:
            sheet = certificate_orders.write_sheet(change)
        except OSError as error:
            self._log.error("memfd_create() failed for certificates", error=error)
            return
        try:
            self._workers.renew(sheet)
        finally:
            os.close(sheet)

    def _say_ready(self) -> None:
        """Tell systemd that clients are served, at once or as soon as a worker is up."""
        if self._ending is not None:
            return
        count = self._generation.main.worker_processes
        self._owes_ready = bool(count) and not (self._workers.any_up or self._paused)
        if self._owes_ready:
            return
        self._notify.ready(f"{count} worker process{'' if count == 1 else 'es'}")

    # Binary upgrade

    def _change_binary(self, received: Received) -> None:
        if self._new_binary is not None or self._origin.old_master_lives:
            self._log.notice(received.text("ignoring"))
            self._log.crit(
                "the changing binary signal is ignored: you should shutdown or"
                " terminate before either old or new binary's process"
            )
            return
        self._log.notice(received.text("changing binary"))
        if self._ending is None:
            self._log.notice("changing binary")
            self._new_binary = self._upgrade.start(self._generation)

    def _pause(self, received: Received) -> None:
        """Have the workers leave at WINCH; the master stays, so that they can come back.

        Terminals send it, too, when their size changes. So in the foreground it is
        ignored, unless there is another master to serve (as in a systemd unit).
        """
        if not self._origin.background and self._new_binary is None:
            self._log.notice(received.text())
            return
        self._log.notice(received.text("stop accepting connections"))
        if self._ending is None:
            self._paused = True
            self._workers.leave()

    def _resume(self) -> None:
        """Serve again, because the new binary has ended."""
        if self._ending is not None:
            return
        if self._paused:
            self._paused = False
            self._workers.start()
        self._say_ready()


def _zone(key: CellKey) -> str:
    """What a key belongs to, for the log."""
    kind = "upstream" if key.name.startswith("peer_") else "zone"
    return f'{kind} "{key.labels[0]}"'
