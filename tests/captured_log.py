"""A log for tests that assert what a session says."""

from mailproxy.log import DEBUG, LEVELS, Logger, Record, make_logger


class CapturedLog:
    """Keeps events as (level, text line from the message to its end).

    Attributes:
      events: those up to level info.
      debug: the texts of those at level debug.
    """

    log: Logger
    """Logs into `events`; bind a context to it as to any logger."""

    def __init__(self, level: int = DEBUG) -> None:
        self.events: list[tuple[str, str]] = []
        self.debug: list[str] = []
        self.log = make_logger(self, level)

    def write(self, record: Record) -> None:
        if record.level == DEBUG:
            self.debug.append(record.text())
        else:
            self.events.append((LEVELS[record.level], record.text()))
