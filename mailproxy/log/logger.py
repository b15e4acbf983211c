"""The logger: structlog with nginx's eight levels.

There is a logger class for each level. In it, the methods of more verbose levels are
replaced by one that does nothing, so an unwanted line costs one call and its
arguments are never formatted.
"""

import traceback
from typing import ClassVar, Protocol

import structlog
from structlog.typing import EventDict

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
    Connected,
    Fault,
    Record,
)


class Outlet(Protocol):
    """Takes the events of a logger."""

    def write(self, record: Record) -> None:
        """Write `record` to each target that wants its level."""


class Logger(structlog.BoundLoggerBase):
    """Logs events, each a short sentence.

    A sentence has `%s` for each argument, which may come from outside: arguments are
    escaped as the line's format requires, and only if the line is written. `error` is
    the system error behind an event, shown as ``(110: Connection timed out)``. A
    `SessionInfo` bound with ``bind(context=…)`` is shown as it is at the time of the
    event; ``bind(connection=…)`` shows only the number of a connection.
    """

    level: ClassVar[int] = DEBUG
    """The most verbose level that is wanted: 1 for emerg … 8 for debug."""

    def emerg(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log that the program, or one of its processes, cannot go on."""
        self._write("emerg", EMERG, event, args, error)

    def alert(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log something that never happens in normal operation."""
        self._write("alert", ALERT, event, args, error)

    def crit(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log that the system refused something that it should not refuse."""
        self._write("crit", CRIT, event, args, error)

    def error(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log that a session failed through no fault of the client or the user."""
        self._write("error", ERROR, event, args, error)

    def warn(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log something that the operator should look into when there is time."""
        self._write("warn", WARN, event, args, error)

    def notice(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log a step in the life of a process."""
        self._write("notice", NOTICE, event, args, error)

    def info(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Log a step in the life of a session."""
        self._write("info", INFO, event, args, error)

    def debug(
        self,
        event: str,
        *args: object,
        error: Fault | None = None,
        part: str = "mail",
    ) -> None:
        """Log details for developers; `part` is the X of `error_log … debug_X`."""
        self._write("debug", DEBUG, event, args, error, part=part)

    def log(
        self, level: str, event: str, *args: object, error: Fault | None = None
    ) -> None:
        """Log at the level that is named `level`."""
        number = LEVELS.index(level)
        if number <= self.level:
            self._write(level, number, event, args, error)

    def client_connected(self) -> None:
        """Log the first line of a session, which names the client in its message."""
        if self.level >= INFO:
            self._write("info", INFO, "client connected", (), None, make=Connected)

    def exception(self, event: str, *args: object, exception: BaseException) -> None:
        """Log a bug at level alert, and its traceback line by line."""
        self.alert(event, *args)
        plain = self
        context = self._context.get("context")
        if context is not None:
            plain = self.bind(context=None, connection=context.connection)
        for lines in traceback.format_exception(exception):
            for line in lines.splitlines():
                plain.alert("%s", line)

    def at_debug(self) -> "Logger":
        """Return a logger whose events are written whatever the levels of the logs."""
        context = {**self._context, "forced": True}
        return _LOGGERS[DEBUG](self._logger, self._processors, context)

    def _write(
        self,
        name: str,
        level: int,
        event: str,
        args: tuple[object, ...],
        error: Fault | None,
        **facts: object,
    ) -> None:
        written, _ = self._process_event(
            name, event, {"level": level, "args": args, "error": error, **facts}
        )
        self._logger.write(*written)


def _make_record(
    _logger: object, _name: str, event_dict: EventDict
) -> tuple[tuple[Record], dict[str, object]]:
    """Turn an event into the value that outlets take, as a processor of structlog."""
    return (event_dict.pop("make", Record)(**event_dict),), {}


def _nothing(_self: Logger, _event: str, *_args: object, **_facts: object) -> None:
    """Do nothing, in place of the methods whose level is not wanted."""


_LOGGERS: dict[int, type[Logger]] = {
    level: type(
        f"{LEVELS[level].capitalize()}Logger",
        (Logger,),
        {"level": level} | dict.fromkeys(LEVELS[level + 1 :], _nothing),
    )
    for level in range(EMERG, DEBUG + 1)
}


def make_logger(outlet: Outlet, level: int) -> Logger:
    """Make a logger that writes to `outlet`.

    Args:
      level: the most verbose level that `outlet` wants.
    """
    return _LOGGERS[level](outlet, [_make_record], {})
