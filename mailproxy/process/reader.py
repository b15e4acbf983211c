"""A configuration is read in a process of its own before the master loads it.

Reading may take long: the name server of a host is dead, a disk is slow, a FIFO has
no writer. The master must not wait for that, for meanwhile it would neither hear
signals nor feed the watchdog. So a reload has two steps:

1. A reader, forked from the master, loads the configuration as `-t` does. The master
   obeys signals meanwhile. What the reader fetched from outside (see `outside`), and
   what it has to say, it writes on a sheet: a file in memory, memfd_create(2).
2. If the configuration is good, the master loads it again, with what is on the sheet:
   that is computing alone. If it is not, the master logs what the reader says.

A reader that is not done in `DEADLINE` seconds is killed, and the reload has failed.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from mailproxy import outside
from mailproxy.log import INFO, LEVELS, Fault, Logger, Record, make_logger
from mailproxy.outside import Findings
from mailproxy.process.children import End, SpawnError
from mailproxy.process.generation import GenerationError

DEADLINE = 60.0
"""Seconds that reading a configuration may take at a reload."""
TOO_SLOW = (
    f"reading the configuration takes longer than {DEADLINE:.0f} s, nothing is changed"
)
_UNREAD = "the configuration could not be read, nothing is changed"
NAME = "configuration reader process"


class Forks(Protocol):
    """What is done with the reader's process; `Children` does it."""

    def start_apart(self, work: Callable[[], int], keep: Collection[int]) -> int: ...
    def kill(self, pid: int, number: int) -> None: ...


@dataclass
class _Report:
    """What is on a sheet; an `Outlet` for the log of the reader.

    Attributes:
      good: the configuration can be used.
      lines: what there is to log: level, event, its arguments, system error, and
        what stands behind that.
    """

    findings: Findings
    good: bool = False
    lines: list[tuple[int, str, list[object], Fault | None, str]] = field(
        default_factory=list
    )

    def write(self, record: Record) -> None:
        arguments = [a if isinstance(a, bytes) else str(a) for a in record.args]
        error = record.error
        if isinstance(error, OSError):
            # Its class may hold what cannot be written down; the log shows these two.
            error = OSError(error.errno, error.strerror)
        self.lines.append(
            (record.level, record.event, [*arguments], error, record.suffix)
        )


class Reader:
    """Has configurations read, one at a time.

    Args:
      load: reads and checks the configuration, in the reader's process; raises
        GenerationError after it logged what is wrong.

    Attributes:
      pid: of the process that reads; None if none does.
    """

    def __init__(self, load: Callable[[Logger], object], processes: Forks) -> None:
        self.pid: int | None = None
        self._load = load
        self._processes = processes
        self._sheet = -1
        self._abandoned: set[int] = set()

    def start(self, log: Logger) -> bool:
        """Begin to read; False, and a line in the log, if no process can be created."""
        assert self.pid is None, "one at a time"
        failed = "memfd_create()"
        try:
            self._sheet = sheet = os.memfd_create("configuration")
            try:
                self.pid = self._processes.start_apart(
                    lambda: _read(self._load, sheet), (sheet,)
                )
            except SpawnError as failure:
                self.close()
                failed = failure.call
                raise failure.error from failure
        except OSError as error:
            log.alert(f'{failed} failed while spawning "{NAME}"', error=error)
            log.emerg(_UNREAD)
            return False
        return True

    def finish(self, end: End, log: Logger) -> Findings | None:
        """What the reader, which has ended, found; None if that cannot be used.

        Why not is logged. Of a good configuration nothing is said here: the load
        says it. Whatever is wrong with what the reader wrote is a failed reload.
        """
        wrong = end.text
        try:
            content = self._take_sheet()
            if end.code == 0:
                return _understand(content, log)
        except Exception as error:  # noqa: BLE001 # a bug, but not of those who run
            # Nothing of its text: the sheet has keys and passwords.
            wrong = f"wrote what cannot be read ({type(error).__name__})"
        log.alert(f"{NAME} {end.pid} {wrong}")
        log.emerg(_UNREAD)
        return None

    def abandon(self, log: Logger) -> None:
        """Kill the process, if one reads; `forget` knows its end."""
        if self.pid is None:
            return
        try:
            self._processes.kill(self.pid, signal.SIGKILL)
        except OSError as error:
            log.alert(f"kill({self.pid}, {signal.SIGKILL:d}) failed", error=error)
        self._abandoned.add(self.pid)
        self._take_sheet()

    def forget(self, pid: int) -> bool:
        """Whether the process that ended was an abandoned reader."""
        known = pid in self._abandoned
        self._abandoned.discard(pid)
        return known

    def close(self) -> None:
        """Give up the sheet, in a process that is not the master: it has secrets."""
        if self._sheet >= 0:
            os.close(self._sheet)
            self._sheet = -1

    def _take_sheet(self) -> bytes:
        descriptor, self.pid, self._sheet = self._sheet, None, -1
        with open(descriptor, "rb") as sheet:
            sheet.seek(0)
            return sheet.read()


def _understand(content: bytes, log: Logger) -> Findings | None:
    """What is on a sheet; None, and it is logged, if the configuration is bad.

    Raises:
      Exception: any, if the sheet is no report, or only the beginning of one.
    """
    # A fork of this very process has written it, where no other process could.
    report = pickle.loads(content)  # noqa: S301
    if not isinstance(report, _Report) or not isinstance(report.findings, Findings):
        raise TypeError("not a report")
    if report.good:
        return report.findings
    for level, event, arguments, error, suffix in report.lines:
        log.bind(suffix=suffix).log(LEVELS[level], event, *arguments, error=error)
    return None


def _read(load: Callable[[Logger], object], sheet: int) -> int:
    """Read, in the reader's process; returns its exit code, 0 if the sheet is written."""
    with outside.recording() as findings:
        report = _Report(findings)
        log = make_logger(report, INFO)
        try:
            load(log)
            report.good = True
        except GenerationError:
            pass  # it is logged
        except Exception as error:  # the master logs it, and goes on
            log.exception("reload failed, this is a bug", exception=error)
    if not report.good:
        report.findings = Findings()
    left = memoryview(pickle.dumps(report))
    while left:
        left = left[os.write(sheet, left) :]
    return 0
