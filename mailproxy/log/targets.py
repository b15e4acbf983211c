"""The targets of the error log: files, stderr, syslog, memory.

A session must not end because its log cannot be written, so no `write` here raises.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from operator import methodcaller
from typing import TYPE_CHECKING, Protocol

from mailproxy.log.directive import ErrorLog, Syslog
from mailproxy.log.files import Opened, RefusedError, WorkerAccount, open_for_appending
from mailproxy.log.record import DEBUG, Record, syslog_time

if TYPE_CHECKING:
    from mailproxy.log.logger import Logger


class Sink(Protocol):
    """Takes the lines of one or more `error_log` directives."""

    def write(self, line: bytes, level: int, /) -> None:
        """Write a line, its line feed included."""

    def close(self) -> None:
        """Release descriptors and memory."""


class FileSink:
    """A file that lines are appended to, or stderr; one write(2) for each line."""

    def __init__(self, path: str, workers: WorkerAccount | None = None) -> None:
        """Open `path`; an empty one is stderr.

        Args:
          workers: the user who must not choose which file this is (see `files`).

        Raises:
          OSError: the file cannot be opened.
        """
        self.path = path
        self._workers = workers
        self.fd = open_for_appending(path, workers).fd if path else 2
        self._full_second = 0

    def write(self, line: bytes, _level: int, /) -> None:
        # A full disk is left alone for the rest of the second.
        if self._full_second and self._full_second == int(time.time()):
            return
        try:
            os.write(self.fd, line)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._full_second = int(time.time())

    def reopen(self, log: Logger, *, give: bool) -> None:
        """Open the file by its name again, after it was renamed, as by logrotate.

        Errors are logged, and the old file stays in use.

        Args:
          log: where to complain.
          give: hand the file over to the workers' user, so that workers can open it,
            too. Without it, a file that still has its name is left alone: it may be
            a terminal, which only root could open again.
        """
        if not self.path or (not give and self._has_its_name()):
            return
        try:
            opened = open_for_appending(self.path, self._workers)
        except OSError as error:
            log_unopened(log, error)
            return
        if give and not self._give(opened, log):
            os.close(opened.fd)
            return
        self.adopt(opened.fd)

    def adopt(self, fd: int) -> None:
        """Write to another descriptor from now on."""
        old, self.fd = self.fd, fd
        os.close(old)

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except OSError:
            return False

    def _give(self, opened: Opened, log: Logger) -> bool:
        """Make the workers' user the owner of a file; devices keep their owner."""
        owner = None if self._workers is None else self._workers.uid
        found = os.fstat(opened.fd)
        if owner is None or not (
            stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
        ):
            return True
        if found.st_uid != owner:
            try:
                if not opened.may_be_given:
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                os.fchown(opened.fd, owner, -1)
            except OSError as error:
                log.emerg('chown("%s", %s) failed', self.path, owner, error=error)
                return False
        wanted = stat.S_IRUSR | stat.S_IWUSR
        if found.st_mode & wanted != wanted:
            try:
                os.fchmod(opened.fd, stat.S_IMODE(found.st_mode) | wanted)
            except OSError as error:
                log.emerg('chmod() "%s" failed', self.path, error=error)
                return False
        return True

    def close(self) -> None:
        if self.path:
            # The number may soon be that of a client's socket.
            fd, self.fd = self.fd, -1
            os.close(fd)


def log_unopened(log: Logger, error: OSError) -> None:
    """Log that a file could not be opened, and the reason if it was refused."""
    if isinstance(error, RefusedError):
        log = log.bind(suffix=f": {error.reason}")
    log.emerg('open() "%s" failed', error.filename, error=error)


class SyslogSink:
    """A syslog server (RFC 3164): a datagram for each line, without waiting.

    A datagram that cannot be sent is lost; the next line is tried again. Complaints go
    to the process's other logs, at most one per second.
    """

    def __init__(
        self,
        syslog: Syslog,
        complaints: Callable[[], Logger],
        clock: Callable[[], float],
    ) -> None:
        """Args:
        complaints: the log for what it cannot send; may lead to this sink.
        clock: seconds, never going back.
        """
        self._address = syslog.address
        self._priority = syslog.facility * 8
        host = f"{socket.gethostname().lower()} " if syslog.hostname else ""
        self._head = f" {host}{syslog.tag}: ".encode("utf-8", "surrogateescape")
        self._complaints = complaints
        self._clock = clock
        self._quiet_until = 0.0
        self._complaining = False
        self._socket: socket.socket | None = None

    def write(self, line: bytes, level: int, /) -> None:
        if self._complaining:
            return
        what = "alert", "connect() failed"
        try:
            if self._socket is None:
                self._socket = socket.socket(
                    self._address.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                )
                self._socket.connect(self._address.sockaddr)
            what = "error", "send() failed"
            packet = b"<%d>%s" % (self._priority + level - 1, syslog_time().encode())
            self._socket.send(packet + self._head + line.rstrip(b"\n"))
        except BlockingIOError:
            pass  # the server does not keep up: nginx loses the line, too
        except OSError as error:
            self.close()
            self._complain(*what, error)

    def _complain(self, level: str, what: str, error: OSError) -> None:
        now = self._clock()
        if now < self._quiet_until:
            return
        self._quiet_until = now + 1
        self._complaining = True
        suffix = f" while logging to syslog, server: {self._address.text}"
        try:
            self._complaints().bind(suffix=suffix).log(level, what, error=error)
        finally:
            self._complaining = False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class MemorySink:
    """The last lines, as many as fit, kept for inspection of the process."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._lines: deque[bytes] = deque()

    def write(self, line: bytes, _level: int, /) -> None:
        self._lines.append(line)
        self._used += len(line)
        while self._used > self._size:
            self._used -= len(self._lines.popleft())

    def lines(self) -> list[bytes]:
        """The lines, oldest first."""
        return list(self._lines)

    def close(self) -> None:
        self._lines.clear()
        self._used = 0


class RateLimit:
    """A limit of lines per second: a leaky bucket, deeper for more severe levels."""

    def __init__(self, rate: int, level: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._level = level
        self._clock = clock
        self._last = clock()
        self._excess = 0.0

    def admits(self, level: int) -> bool | None:
        """Whether to write a line; None for the first one that is not written."""
        now = self._clock()
        excess = max(self._excess - self._rate * (now - self._last), 0.0)
        burst = self._rate * (self._level - level + 1)
        if excess + 1 <= burst:
            self._excess, self._last = excess + 1, now
            return True
        if self._excess <= burst:
            self._excess += 1
            return None
        return False


class Target:
    """A sink with the level, filters and format of one `error_log` directive."""

    def __init__(
        self,
        directive: ErrorLog,
        sink: Sink,
        limit: RateLimit | None,
        *,
        angie: bool = False,
    ) -> None:
        """Combine a directive with its sink.

        Args:
          limit: of lines per second; it does not apply at level debug.
          angie: text lines have Angie's form unless the directive says otherwise.
        """
        self.sink = sink
        self._level = directive.level
        self._parts = directive.parts
        self._json = directive.format == "json"
        angie = directive.format == "default" or (angie and not directive.format)
        self._line = methodcaller(
            "json_line" if self._json else "angie_line" if angie else "text_line"
        )
        self._filters = directive.filters
        self._limit = limit if directive.level < DEBUG else None

    def write(self, record: Record) -> bool:
        """Write the line if it is wanted; returns whether it was."""
        level = record.level
        if not record.forced:
            if level > self._level:
                return False
            if level == DEBUG and self._parts and record.part not in self._parts:
                return False
        for rule in self._filters:
            if not rule.admits(record, self._json):
                return False
        if self._limit is not None:
            admitted = self._limit.admits(level)
            if admitted is None:
                record = Record(level, "too many log messages, limiting")
            elif not admitted:
                return False
        self.sink.write(self._line(record), level)
        return True
