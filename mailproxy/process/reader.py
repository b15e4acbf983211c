"""The reader: a process that reads a configuration before the master loads it.

Reading may take long: a name server is dead, a disk is slow, a FIFO has no writer. The
master must not wait for that, because meanwhile it would neither obey signals nor feed
the watchdog. So a reload has two steps:

1. A reader, forked from the master, loads the configuration as `-t` does, while the
   master obeys signals. The reader writes what it fetched from outside (see
   `outside`), and its log lines, on a sheet: a file in memory, memfd_create(2).
2. If the configuration is good, the master loads it again from the sheet, which is
   pure computation. If it is not, the master logs the reader's lines.

A reader that has not finished after `MAX_READING` seconds is killed, and the reload has
failed.
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

MAX_READING = 60.0
"""Seconds that reading a configuration may take at a reload."""
TOO_SLOW = (
    f"reading the configuration takes longer than {MAX_READING:.0f} s,"
    " nothing is changed"
)
_UNREAD = "the configuration could not be read, nothing is changed"
NAME = "configuration reader process"


class Forks(Protocol):
    """What is done with the reader's process; `Children` does it."""

    def start_apart(self, work: Callable[[], int], keep: Collection[int]) -> int: ...
    def kill(self, pid: int, number: int) -> None: ...


@dataclass
class _Report:
    """The content of a sheet; an `Outlet` for the log of the reader.

    Attributes:
      good: the configuration can be used.
      lines: the log lines: level, event, its arguments, system error, and the suffix
        after that.
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
            # Its class may hold what cannot be pickled; the log shows only these two.
            error = OSError(error.errno, error.strerror)
        self.lines.append(
            (record.level, record.event, [*arguments], error, record.suffix)
        )


class ConfigurationReader:
    """Has configurations read by another process, one at a time.

    Args:
      load: reads and checks the configuration, in the reader's process; logs what is
        wrong and raises GenerationError.

    Attributes:
      pid: the pid of the process that reads; None if none does.
    """

    def __init__(self, load: Callable[[Logger], object], processes: Forks) -> None:
        self.pid: int | None = None
        self._load = load
        self._processes = processes
        self._sheet = -1
        self._abandoned: set[int] = set()

    def start(self, log: Logger) -> bool:
        """Begin to read; returns False, and logs why, if no process can be created."""
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
        """Return the findings of the reader that has ended; None if they are unusable.

        In that case the reason is logged. The warnings of a good configuration are
        left to the load. Whatever is wrong with what the reader wrote is a failed reload.
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
        """Kill the process, if one reads; `forget` will recognise its end."""
        if self.pid is None:
            return
        try:
            self._processes.kill(self.pid, signal.SIGKILL)
        except OSError as error:
            log.alert(f"kill({self.pid}, {signal.SIGKILL:d}) failed", error=error)
        self._abandoned.add(self.pid)
        self._take_sheet()

    def forget(self, pid: int) -> bool:
        """Whether the process that has ended was an abandoned reader; asked once."""
        known = pid in self._abandoned
        self._abandoned.discard(pid)
        return known

    def close(self) -> None:
        """Close the sheet, which has secrets, in a process that is not the master."""
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
