"""One event of the error log, as nginx's text line or as Angie's JSON line.

Both forms are cut at 2048 bytes. nginx cuts the end of the line and so loses what
tells one client from another; here the message is cut and the context stays.

Data from clients and backends appears only as an argument of a message or as a
property of the context, and is escaped there, so that peers can neither write lines
of their own nor close a quote that they did not open. The rest of a line is checked
for control characters, too, before it is written.

Everything is escaped that would make a line look different from what it is: control
characters of ASCII and of ISO 6429 (C1, as octets 80-9F or as U+0080-9F: to many
terminals, 9B begins a command as ESC [ does), what ends a line for some programs
(U+0085, U+2028, U+2029), what changes the direction of text (UAX 9: U+061C, U+200E-F,
U+202A-E, U+2066-9), and every octet that is not UTF-8, which would make grep(1) treat
the whole log as a binary file. So a line is always UTF-8, and all other characters
stay readable. A terminal that shows Latin-1 is not protected from octets within them.
"""

import os
import re
import time
from collections.abc import Callable, Iterable

from mailproxy.log.session_info import SessionInfo

LEVELS = ("", "emerg", "alert", "crit", "error", "warn", "notice", "info", "debug")
"""Names of nginx's levels; the index is nginx's number."""

EMERG, ALERT, CRIT, ERROR, WARN, NOTICE, INFO, DEBUG = range(1, 9)

MAX_LINE = 2048
"""Bytes of a line, its line feed included (NGX_MAX_ERROR_STR)."""

_MAX_PROPERTY = 256
"""Characters of a property in a line that would otherwise be too long."""

Fault = OSError | tuple[int, str]
"""The system error behind an event: the exception, or its number and text."""

_MISLEADING = (
    "\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069"
    "\\ud800-\\udfff"  # octets that are not UTF-8, decoded
)
_UNSAFE = re.compile(rf'[{_MISLEADING}"\\]')
_CONTROL = re.compile(rf"[{_MISLEADING}]")
_JSON_SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}


def escape(value: object) -> str:
    r"""Escape data from outside, so that it can stand between quotes in a text line.

    `"`, `\` and all octets of misleading characters become `\xHH`; all other UTF-8
    stays as it is.
    """
    text = _decode(value)
    return _UNSAFE.sub(_hex, text) if _UNSAFE.search(text) else text


def _clean(text: str) -> str:
    """Escape a part of a line in which quotes and backslashes are our own."""
    return text if text.isprintable() else _CONTROL.sub(_hex, text)


def _begin(value: object, limit: int | None) -> str:
    """Escape `value` and cut it to `limit` characters, but not within an escape."""
    text = escape(value)
    return text if limit is None else _HALF_ESCAPE.sub("", text[:limit])


_HALF_ESCAPE = re.compile(r"\\x?[0-9A-F]?\Z")


def _hex(match: re.Match[str]) -> str:
    return "".join(f"\\x{octet:02X}" for octet in _encode(match[0]))


def _json_escape(text: str) -> str:
    return _UNSAFE.sub(_json_hex, text) if _UNSAFE.search(text) else text


def _json_hex(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        # An octet that is not UTF-8 is written as if it were Latin-1: raw, as in
        # Angie, it would make the whole line unreadable for a JSON parser.
        number -= 0xDC00
    elif 0xD800 <= number <= 0xDFFF:
        number = 0xFFFD  # some parsers reject half of a surrogate pair
    return _JSON_SHORT.get(character) or f"\\u{number:04X}"


def _decode(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return text.encode("utf-8", "surrogatepass")


def _fault(error: Fault) -> tuple[int, str] | None:
    """Return the number and text of a system error; None if it has no number."""
    if isinstance(error, tuple):
        return error
    if error.errno is None:
        return None
    if error.errno <= 0:  # getaddrinfo() counts its own errors below zero
        return error.errno, error.strerror or ""
    return error.errno, os.strerror(error.errno)


class Record:
    """One event; its lines are formatted on demand, and most of them only once."""

    __slots__ = (
        "_json",
        "_line",
        "args",
        "connection",
        "context",
        "error",
        "event",
        "forced",
        "level",
        "part",
        "suffix",
    )

    def __init__(
        self,
        level: int,
        event: str,
        args: tuple[object, ...] = (),
        error: Fault | None = None,
        context: SessionInfo | None = None,
        connection: int | None = None,
        part: str = "",
        suffix: str = "",
        forced: bool = False,
    ) -> None:
        """Args:
        event: the message, with a `%s` for each of `args`.
        part: the part of the program that a debug line belongs to.
        suffix: follows the error.
        forced: every log takes it, whatever its level (`debug_connection`).
        """
        self.level = level
        self.event = event
        self.args = args
        self.error = error
        self.context = context
        self.connection = connection
        self.part = part
        self.suffix = suffix
        self.forced = forced
        self._line: bytes | None = None
        self._json: bytes | None = None

    def message(self) -> str:
        """The message alone, escaped for a text line."""
        event = self.event
        if self.args:
            event %= tuple(map(escape, self.args))
        return _clean(event)

    def raw_message(self) -> str:
        """The message alone, not escaped."""
        event = self.event
        if self.args:
            event %= tuple(map(_decode, self.args))
        return event + self.suffix

    def text(self) -> str:
        """The text line from the message to its end, uncut."""
        return self.message() + _clean(self._tail())

    def _fault_text(self) -> str:
        fault = None if self.error is None else _fault(self.error)
        return "" if fault is None else f" ({fault[0]}: {fault[1]})"

    def _tail(self, limit: int | None = None, /) -> str:
        tail = self._fault_text() + self.suffix
        context = self.context
        if context is None or self.level == DEBUG:
            return tail
        if context.action is not None:
            tail += f" while {context.action}"
        tail += f", client: {context.client}"
        if context.starttls:
            tail += " using starttls"
        tail += f", server: {context.server}"
        if context.login:
            tail += f', login: "{_begin(context.login, limit)}"'
        if context.upstream is not None:
            tail += f", upstream: {_begin(context.upstream, limit)}"
        return tail

    def properties(self) -> dict[str, str]:
        """The session as Angie's JSON lines and filters show it; no value is empty."""
        return {} if self.context is None else self.context.properties()

    def _number(self) -> str:
        if self.context is not None:
            return f"*{self.context.connection} "
        return "" if self.connection is None else f"*{self.connection} "

    def text_line(self) -> bytes:
        """The whole line in nginx's form, line feed included."""
        if self._line is None:
            self._line = self._text_line(self.message(), self._tail)
        return self._line

    def angie_line(self) -> bytes:
        """The whole line in Angie's text form, line feed included."""
        return self._text_line(self.message(), self._angie_tail)

    def _text_line(self, message: str, make_tail: Callable[[int | None], str]) -> bytes:
        head = f"{_clock.prefix(self.level)}{self._number()}{message}"
        line = _encode(f"{head}{_clean(make_tail(None))}\n")
        if len(line) > MAX_LINE:
            tail = _encode(_clean(make_tail(_MAX_PROPERTY))) + b"\n"
            begun = _cut(_encode(head), MAX_LINE - len(tail) - 1)
            # With a quote left open, the context would seem to be quoted.
            line = begun + (b'"' if begun.count(b'"') % 2 else b"") + tail
        return line

    def _angie_tail(self, limit: int | None, /) -> str:
        """Error, action and properties; each value is quoted, and the client has a port."""
        tail = self._fault_text() + self.suffix
        context = self.context
        if context is None or self.level == DEBUG:
            return tail
        properties = {**self.properties(), "client": context.peer}
        action = properties.pop("action", None)
        properties.pop("peer", None)
        if action is not None:
            tail += f" while {action}"
        for name, value in properties.items():
            tail += f', {name}: "{_begin(value, limit)}"'
        return tail

    def console_line(self, name: str) -> bytes:
        """The line as it is copied to the terminal while `name` starts."""
        prefix = f"{name}: [{LEVELS[self.level]}] {self._number()}"
        return _cut(_encode(prefix + self.text()), MAX_LINE - 1) + b"\n"

    def json_line(self) -> bytes:
        """The whole line in Angie's `format=json`, line feed included."""
        if self._json is None:
            line = self._json_line(self.raw_message())
            if len(line) > MAX_LINE:
                line = self._cut_json_line()
            self._json = line
        return self._json

    def json_message(self) -> str:
        """The message alone, escaped for a JSON line."""
        return _json_escape(self.raw_message())

    def _cut_json_line(self) -> bytes:
        message = self.raw_message()[:MAX_LINE]
        while True:
            line = self._json_line(message, _MAX_PROPERTY)
            over = len(line) - MAX_LINE
            if over <= 0 or not message:
                return line
            # An escaped character takes six bytes at most.
            message = message[: -max(over // 6, 1)]

    def _json_line(self, message: str, limit: int | None = None) -> bytes:
        pid = _clock.pid
        line = (
            f'{{"time":"{_clock.iso()}","level":"{LEVELS[self.level]}"'
            f',"pid":{pid},"tid":{pid}'
        )
        context = self.context
        number = context.connection if context is not None else self.connection
        if number is not None:
            line += f',"connection":{number}'
        line += f',"message":"{_json_escape(message)}"'
        fault = None if self.error is None else _fault(self.error)
        if fault is not None:
            line += (
                f',"error":{{"code":{fault[0]},"message":"{_json_escape(fault[1])}"}}'
            )
        if context is not None:
            if self.level != DEBUG:
                members = ",".join(
                    f'"{name}":"{_json_escape(value[:limit])}"'
                    for name, value in self.properties().items()
                )
                line += f',"mail":{{{members}}}'
            if limit is None:
                line += f',"tags":[{_strings(context.all_tags)}]'
        return _encode(line + ("}\n" if limit is None else ',"truncated":true}\n'))


class Connected(Record):
    """The first event of a session, which nginx and Angie word differently."""

    __slots__ = ()

    def message(self) -> str:
        context = self.context
        assert context is not None
        return _clean(f"client {context.client_address} connected to {context.server}")

    def _tail(self, _limit: int | None = None, /) -> str:
        return ""

    def angie_line(self) -> bytes:
        return self._text_line(self.event, self._angie_tail)

    def properties(self) -> dict[str, str]:
        return super().properties() | {"action": "initializing session"}


def _strings(values: Iterable[str]) -> str:
    return ",".join(f'"{_json_escape(value)}"' for value in values)


_BROKEN_END = re.compile(rb"(?:\\x?[0-9A-F]?|[\xC0-\xFF][\x80-\xBF]{0,2})\Z")


def _cut(text: bytes, size: int) -> bytes:
    """Cut `text` to `size` bytes, but not within an escape or a character."""
    if len(text) <= size:
        return text
    text = text[: max(size, 0)]
    return _BROKEN_END.sub(b"", text)


_MONTHS = [
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
]


class _Clock:
    """Time and process as lines show them, formatted once a second.

    Month names are English whatever the locale, as syslog requires.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.pid = os.getpid()
        self._second = -1

    def _refresh(self, second: int) -> None:
        self._second = second
        here = time.localtime(second)
        when = time.strftime("%Y/%m/%d %H:%M:%S", here)
        self._prefixes = [
            f"{when} [{level}] {self.pid}#{self.pid}: " for level in LEVELS
        ]
        self._syslog = (
            f"{_MONTHS[here.tm_mon - 1]} {here.tm_mday:2} "
            f"{here.tm_hour:02}:{here.tm_min:02}:{here.tm_sec:02}"
        )
        self._iso = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))

    def prefix(self, level: int) -> str:
        """Time, level and process, as they begin a text line."""
        second = int(time.time())
        if second != self._second:
            self._refresh(second)
        return self._prefixes[level]

    def syslog(self) -> str:
        """The time as it begins a syslog packet (RFC 3164, section 4.1.2)."""
        second = int(time.time())
        if second != self._second:
            self._refresh(second)
        return self._syslog

    def iso(self) -> str:
        """The time in UTC with milliseconds, which are left out if they are 0."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._refresh(second)
        milliseconds = int((now - second) * 1000)
        return f"{self._iso}.{milliseconds:03}Z" if milliseconds else f"{self._iso}Z"


_clock = _Clock()
os.register_at_fork(after_in_child=_clock.forget)


def syslog_time() -> str:
    """The time as it begins a syslog packet (RFC 3164, section 4.1.2)."""
    return _clock.syslog()
