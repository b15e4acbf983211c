"""The error log: structlog underneath, nginx's levels, lines and targets on top.

`record`        one event as a line of text or JSON
`session_info`  `SessionInfo`: the session that an event is about
`logger`        `Logger`: what the rest of the program calls
`directive`     `ErrorLog`: the arguments of `error_log`
`targets`       files, stderr, syslog, memory; rate limits
`files`         opening files safely where other users may have planted links

Here: which logger writes to which targets, and what is done to all of them.

A test of a configuration opens the logs and writes nothing, or errors of the
configuration, which are records. So loggers are made, and `logger` is imported with
structlog, when one of them is wanted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mailproxy.log.directive import (
    ErrorLog,
    File,
    Memory,
    Stderr,
    Syslog,
    parse_error_log,
)
from mailproxy.log.files import (
    RefusedError,
    WorkerAccount,
    open_for_appending,
    unknown_workers,
)
from mailproxy.log.record import (
    ALERT,
    CRIT,
    DEBUG,
    EMERG,
    ERROR,
    INFO,
    LEVELS,
    NOTICE,
    WARN,
    Fault,
    Record,
    escape,
)
from mailproxy.log.session_info import Phase, SessionInfo
from mailproxy.log.targets import (
    FileSink,
    MemorySink,
    RateLimit,
    Sink,
    SyslogSink,
    Target,
    log_unopened,
)

if TYPE_CHECKING:
    from mailproxy.log.logger import Logger, Outlet, make_logger
else:

    def __getattr__(name: str) -> object:
        """Import what is in `logger`; an attribute of the package like the others."""
        if name not in {"Logger", "Outlet", "make_logger"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mailproxy.log import logger

        return getattr(logger, name)


__all__ = [
    "ALERT",
    "CRIT",
    "DEBUG",
    "EMERG",
    "ERROR",
    "INFO",
    "LEVELS",
    "NOTICE",
    "WARN",
    "ErrorLog",
    "Fault",
    "Logger",
    "Logs",
    "Outlet",
    "Phase",
    "Record",
    "SessionInfo",
    "WorkerAccount",
    "escape",
    "log_unopened",
    "make_logger",
    "open_for_appending",
    "open_logs",
    "open_startup_log",
    "parse_error_log",
    "unknown_workers",
]


class Logs:
    """The open logs of a configuration, shared by master and workers.

    They are opened once, before the first fork, and workers inherit the descriptors.
    """

    def __init__(
        self,
        main: Sequence[ErrorLog],
        others: Iterable[Sequence[ErrorLog]],
        copy_as: str | None,
        clock: Callable[[], float],
        angie: bool,
        workers: WorkerAccount | None,
    ) -> None:
        self.copy_as = copy_as
        self._angie = angie
        self._workers = workers
        self.console = FileSink("")
        self._clock = clock
        self._files: dict[str, FileSink] = {}
        self._others: list[SyslogSink | MemorySink] = []
        self._outlets: dict[tuple[ErrorLog, ...], _Outlet] = {}
        self._loggers: dict[tuple[ErrorLog, ...], Logger] = {}
        self._keep_stderr = False
        self._main = _Outlet(self, _level(main))
        try:
            self._main.targets = self._targets(main)
            for directives in filter(None, map(tuple, others)):
                self._outlet(directives)
        except OSError:
            self.close()
            raise
        self._first = next(
            target.sink
            for target in self._main.targets
            if isinstance(target.sink, FileSink)
        )

    @cached_property
    def main(self) -> Logger:
        """The log of everything but sessions."""
        return _logger(self._main)

    def logger(self, directives: Sequence[ErrorLog]) -> Logger:
        """Return the logger of a server, whose logs are the main ones if it has none."""
        key = tuple(directives)
        if not key:
            return self.main
        if key not in self._loggers:
            self._loggers[key] = _logger(self._outlet(key))
        return self._loggers[key]

    def write(self, record: Record) -> None:
        """Write to the main log without its logger, which a record does not need."""
        if record.level <= self._main.level:
            self._main.write(record)

    def reopen(self, *, give: bool = False) -> None:
        """Open all files by name again; errors are logged.

        Args:
          give: hand the files over to the workers' user, so that workers can reopen
            them, too.
        """
        for file in self._files.values():
            file.reopen(self.main, give=give)

    @property
    def descriptors(self) -> dict[str, int]:
        """The descriptors of all files, by name."""
        return {name: file.fd for name, file in self._files.items()}

    def adopt(self, name: str, descriptor: int) -> None:
        """Write to another descriptor from now on, which another process has opened.

        That is for a process whose user may not open the file by its name.
        """
        if name in self._files:
            self._files[name].adopt(descriptor)
        else:
            os.close(descriptor)

    def redirect_stderr(self) -> None:
        """Make descriptor 2 the first log file, unless `error_log stderr` is used."""
        if not self._keep_stderr and self._first.fd != 2:
            os.dup2(self._first.fd, 2)

    def stop_copying(self) -> None:
        """Stop copying severe lines to stderr, because the process has started."""
        self.copy_as = None

    @property
    def memories(self) -> list[MemorySink]:
        """The buffers of `error_log memory:SIZE`, in the order of the directives."""
        return [sink for sink in self._others if isinstance(sink, MemorySink)]

    def close(self) -> None:
        """Close every file and socket."""
        for sink in (*self._files.values(), *self._others):
            sink.close()

    def _targets(self, directives: Sequence[ErrorLog]) -> tuple[Target, ...]:
        return tuple(
            Target(
                directive,
                self._sink(directive.target),
                RateLimit(directive.rate, directive.level, self._clock)
                if directive.rate
                else None,
                angie=self._angie,
            )
            for directive in directives
        )

    def _outlet(self, directives: tuple[ErrorLog, ...]) -> _Outlet:
        if directives not in self._outlets:
            self._outlets[directives] = outlet = _Outlet(self, _level(directives))
            outlet.targets = self._targets(directives)
        return self._outlets[directives]

    def _sink(self, target: File | Stderr | Syslog | Memory) -> Sink:
        sink: SyslogSink | MemorySink
        match target:
            case File(path):
                if path not in self._files:
                    self._files[path] = FileSink(path, self._workers)
                return self._files[path]
            case Stderr(redirect):
                self._keep_stderr |= not redirect
                return self.console
            case Syslog():
                sink = SyslogSink(target, lambda: self.main, self._clock)
            case Memory(size):
                sink = MemorySink(size)
        self._others.append(sink)
        return sink


class _Outlet:
    """Passes the events of one logger to its targets.

    Attributes:
      level: the most verbose one that a target wants.
    """

    def __init__(self, logs: Logs, level: int) -> None:
        self.level = level
        self.targets: tuple[Target, ...] = ()
        self._logs = logs

    def write(self, record: Record) -> None:
        logs = self._logs
        seen = False
        for target in self.targets:
            if target.write(record) and target.sink is logs.console:
                seen = True
        if logs.copy_as is not None and record.level <= WARN and not seen:
            logs.console.write(record.console_line(logs.copy_as), record.level)


def _logger(outlet: _Outlet) -> Logger:
    from mailproxy.log.logger import make_logger  # brings structlog

    return make_logger(outlet, outlet.level)


def _level(directives: Iterable[ErrorLog]) -> int:
    return max(directive.level for directive in directives)


def open_logs(
    main: Sequence[ErrorLog],
    others: Iterable[Sequence[ErrorLog]] = (),
    *,
    default: str,
    copy_as: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    angie: bool = False,
    workers: WorkerAccount | None = None,
) -> Logs:
    """Open the logs of a configuration.

    Args:
      main: the `error_log` directives of the main context.
      others: those of every server, with what they inherit from `mail`.
      default: the file that is used, at level error, if `main` names no file; empty
        or `stderr` for descriptor 2.
      copy_as: the program's name; lines of level warn or worse are copied to stderr,
        after that name, until `stop_copying()`.
      clock: seconds, never going back.
      angie: text lines have Angie's form unless `format=` says otherwise.
      workers: the user that workers will run as, if that is another one than ours: a
        file that this user may have planted is refused (see `files`).

    Raises:
      OSError: a file cannot be opened; `filename` says which.
    """
    if not any(isinstance(log.target, (File, Stderr)) for log in main):
        stderr = default in {"", "stderr"}
        main = [*main, ErrorLog(Stderr() if stderr else File(default))]
    return Logs(main, others, copy_as, clock, angie, workers)


def open_startup_log(path: str, name: str = "nginx", level: int = NOTICE) -> Logs:
    """Open the log that is used until the configuration's own are open.

    Args:
      path: the argument of `-e` or the built-in default; empty or `stderr` for
        stderr, which is also used if the file cannot be opened.
      name: the name that the program was called by.
      level: info for a test of the configuration, else notice.
    """
    stderr = ErrorLog(Stderr(), level)
    if path in {"", "stderr"}:
        return open_logs([stderr], default="")
    try:
        return open_logs(
            [ErrorLog(File(path), level)],
            default="",
            copy_as=name,
            workers=unknown_workers(),
        )
    except OSError as error:
        logs = open_logs([stderr], default="")
        text = f'could not open error log file: open() "{path}" failed'
        reason = f": {error.reason}" if isinstance(error, RefusedError) else ""
        failure = Record(ALERT, text, error=error, suffix=reason)
        logs.console.write(failure.console_line(name), failure.level)
        return logs
