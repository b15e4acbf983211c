"""The logger: structlog with nginx's eight levels.

A logger is of a class that knows the most verbose level anybody wants; in it, the
methods of the levels beyond are replaced by one that does nothing. So a line that
nobody wants costs a call, and its arguments are never formatted.
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
    """Where the events of a logger go."""

    def write(self, record: Record) -> None:
        """Write `record` wherever its level is wanted."""


class Logger(structlog.BoundLoggerBase):
    """Logs events, each a short sentence.

    A sentence has `%s` where something from outside belongs, and that is an
    argument: it is escaped as the line's format needs it, and only if the line is
    written at all. `error` is the system error behind an event, shown as
    ``(110: Connection timed out)``. What is bound with ``bind(context=…)``, a
    `SessionInfo`, is shown as it is when the event happens; ``bind(connection=…)``
    shows only the number of a connection.
    """

    level: ClassVar[int] = DEBUG
    """The most verbose level that is wanted: 1 for emerg … 8 for debug."""

    def emerg(self, event: str, *args: object, error: Fault | None = None) -> None:
        """The program, or one of its processes, cannot go on."""
        self._write("emerg", EMERG, event, args, error)

    def alert(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Something that never happens in normal operation."""
        self._write("alert", ALERT, event, args, error)

    def crit(self, event: str, *args: object, error: Fault | None = None) -> None:
        """The system refused what it should not refuse."""
        self._write("crit", CRIT, event, args, error)

    def error(self, event: str, *args: object, error: Fault | None = None) -> None:
        """A session failed, and neither client nor user is to blame."""
        self._write("error", ERROR, event, args, error)

    def warn(self, event: str, *args: object, error: Fault | None = None) -> None:
        """Somebody should have a look, sometime."""
        self._write("warn", WARN, event, args, error)

    def notice(self, event: str, *args: object, error: Fault | None = None) -> None:
        """A step in the life of a process."""
        self._write("notice", NOTICE, event, args, error)

    def info(self, event: str, *args: object, error: Fault | None = None) -> None:
        """A step in the life of a session."""
        self._write("info", INFO, event, args, error)

    def debug(
        self,
        event: str,
        *args: object,
        error: Fault | None = None,
        part: str = "mail",
    ) -> None:
        """For who reads the source, too; `part` is the X of `error_log … debug_X`."""
        self._write("debug", DEBUG, event, args, error, part=part)

    def log(
        self, level: str, event: str, *args: object, error: Fault | None = None
    ) -> None:
        """Log at the level of that name."""
        number = LEVELS.index(level)
        if number <= self.level:
            self._write(level, number, event, args, error)

    def client_connected(self) -> None:
        """The first line of a session, which says by itself what a context would."""
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
        """A logger whose events are written whatever the levels of the logs are."""
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
    """structlog's processor: an event becomes the value that outlets take."""
    return (event_dict.pop("make", Record)(**event_dict),), {}


def _nothing(_self: Logger, _event: str, *_args: object, **_facts: object) -> None:
    """In the place of the methods whose level is not wanted."""


_LOGGERS: dict[int, type[Logger]] = {
    level: type(
        f"{LEVELS[level].capitalize()}Logger",
        (Logger,),
        {"level": level} | dict.fromkeys(LEVELS[level + 1 :], _nothing),
    )
    for level in range(EMERG, DEBUG + 1)
}


def make_logger(outlet: Outlet, level: int) -> Logger:
    """A logger for what `outlet` takes.

    Args:
      level: the most verbose level that it wants.
    """
    return _LOGGERS[level](outlet, [_make_record], {})
