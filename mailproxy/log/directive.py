"""Parsing and checking the arguments of `error_log`, with nginx's error texts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mailproxy.conf.addresses import Address, AddressError
from mailproxy.frozen import Frozen
from mailproxy.log.record import DEBUG, ERROR, LEVELS, Record

DEBUG_PARTS = ("core", "alloc", "mutex", "event", "http", "mail", "stream")
"""The X of nginx's debug_X."""

FACILITIES = [
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "intern",
    "lpr",
    "news",
    "uucp",
    "clock",
    "authpriv",
    "ftp",
    "ntp",
    "audit",
    "alert",
    "cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
]
"""syslog's facilities under nginx's names; the index is the number in packets."""

PROPERTIES = frozenset(
    # Those of mail, then others that a configuration shared with http may name.
    [
        "action",
        "client",
        "server",
        "starttls",
        "ssl_server_name",
        "login",
        "upstream",
        "peer",
        "request",
        "host",
        "referrer",
        "subrequest",
    ]
)
"""The properties that `filter=PROPERTY:…` may name."""


class ErrorLogError(Frozen, ValueError):
    """An `error_log` is wrong; the text is nginx's (or Angie's).

    Attributes:
      remedy: what is accepted instead; empty if the text says so.
      word: the wrong argument; None for the first one, or for a part of one.
    """

    def __init__(
        self, reason: str, remedy: str = "", *, word: str | None = None
    ) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.word = word


_LEVELS_ARE = f"levels are {' '.join(LEVELS[1:])}"

FindAddress = Callable[[str, int], Address]
"""Parses an address, given its text and a default port; raises `AddressError`."""


@dataclass(frozen=True)
class File:
    """A file that lines are appended to."""

    path: str


@dataclass(frozen=True)
class Stderr:
    """File descriptor 2."""

    redirect: bool = False
    """`error_log ""`: as without `error_log`, descriptor 2 may become the first file."""


@dataclass(frozen=True)
class Syslog:
    """A syslog server that takes datagrams."""

    address: Address
    facility: int = FACILITIES.index("local7")
    tag: str = "nginx"
    hostname: bool = True


@dataclass(frozen=True)
class Memory:
    """The last lines, in a buffer of `size` bytes."""

    size: int


@dataclass(frozen=True)
class Filter:
    """A condition that lines must meet to be written (Angie)."""

    kind: str
    """`logline`, `message`, `tag`, or the name of a property."""
    pattern: str
    how: Literal["contains", "exact", "regex"]

    def __post_init__(self) -> None:
        if self.how == "regex":
            re.compile(self.pattern)

    def _matches(self, text: str) -> bool:
        if self.how == "contains":
            return self.pattern in text
        if self.how == "exact":
            return self.pattern == text
        return re.search(self.pattern, text) is not None

    def admits(self, record: Record, json: bool) -> bool:
        """Whether the event meets the condition, in a log as JSON or as text."""
        if self.kind == "logline":
            return self._matches(record.text())
        if self.kind == "message":
            return self._matches(record.json_message() if json else record.message())
        if self.kind == "tag":
            tags = () if record.context is None else record.context.all_tags
            return any(map(self._matches, tags))
        value = record.properties().get(self.kind)
        return value is not None and self._matches(value)


@dataclass(frozen=True)
class ErrorLog:
    """One `error_log` directive."""

    target: File | Stderr | Syslog | Memory
    level: int = ERROR
    parts: frozenset[str] = frozenset()
    """The X of each `debug_X`; empty at level debug for all of them."""
    format: str = ""
    """"json" or "default" (Angie); empty for text in the form of the program's name."""
    filters: tuple[Filter, ...] = ()
    rate: int = 0
    """Lines per second; 0 is no limit.

    Angie and freenginx have a default of 1000, nginx has no limit: a log loses lines
    only if the configuration asks for it.
    """


def parse_error_log(
    args: Sequence[str],
    *,
    path: Callable[[str], str],
    address: FindAddress,
    file: str = "",
    line: int = 0,
) -> ErrorLog:
    """Parse an `error_log` directive.

    Args:
      args: its arguments.
      path: returns the full path of a file name.
      address: parses the address of a syslog server.
      file: the configuration file it stands in; nginx's limit of a memory buffer and
        one of its texts depend on it.
      line: the line in that file, for the same text.

    Raises:
      ErrorLogError: an argument is wrong.
    """
    target = _target(args[0], path, address, file)
    level = 0
    parts: set[str] = set()
    form = ""
    filters: list[Filter] = []
    rate = 0
    for word in args[1:]:
        name = word.partition("\0")[0]  # as C sees it
        if name in LEVELS[1:]:
            if level or parts:
                raise ErrorLogError(f'duplicate log level "{word}"', word=word)
            level = LEVELS.index(name)
        elif name.startswith("debug_") and name[6:] in DEBUG_PARTS:
            if level:
                raise ErrorLogError(
                    f'invalid log level "{word}"', _LEVELS_ARE, word=word
                )
            parts.add(name[6:])
        elif word.startswith("format="):
            if form:
                raise ErrorLogError(
                    f'duplicate format= parameter ("{word}")', word=word
                )
            form = word[7:]
            if form not in {"json", "default"}:
                raise ErrorLogError(
                    f'unknown log format "{form}"', "formats are json and default"
                )
        elif word.startswith("filter="):
            filters.append(_filter(word[7:], file, line))
        elif word.startswith("rate="):
            number = word[5:].removesuffix("m/s")
            if not (number.isascii() and number.isdigit()):
                raise ErrorLogError(
                    f'invalid rate "{word}"',
                    "a rate is a number of lines a second",
                    word=word,
                )
            rate = int(number)
        else:
            raise ErrorLogError(f'invalid log level "{word}"', _LEVELS_ARE, word=word)
    return ErrorLog(
        target=target,
        level=DEBUG if parts else level or ERROR,
        parts=frozenset(parts),
        format=form,
        filters=tuple(filters),
        rate=rate,
    )


def _target(
    word: str, path: Callable[[str], str], address: FindAddress, file: str
) -> File | Stderr | Syslog | Memory:
    if word == "stderr":
        return Stderr()
    if word == "":
        return Stderr(redirect=True)
    if word.startswith("memory:"):
        return Memory(_size(word[7:], file))
    if word.startswith("syslog:"):
        return _syslog(word[7:], address)
    return File(path(word.partition("\0")[0]))  # as C sees it; open() wants it so


def _size(text: str, file: str) -> int:
    found = re.fullmatch(r"([0-9]+)([kKmM]?)", text, re.ASCII)
    units = {"": 1, "k": 1 << 10, "m": 1 << 20}
    size = int(found[1]) * units[found[2].lower()] if found else 0
    # nginx's buffer begins with a header that names the file.
    if not 2099 + len(file.encode("utf-8", "surrogateescape")) <= size < 1 << 63:
        raise ErrorLogError(
            f'invalid buffer size "{text}"', "a size is like 32k or 1m, from 3k"
        )
    return size


def _syslog(text: str, address: FindAddress) -> Syslog:
    values: dict[str, str] = {}
    server: Address | None = None
    hostname = True
    for word in text.split(","):
        name, equals, value = word.partition("=")
        if word == "nohostname":
            hostname = False
            continue
        if not equals or name not in {"server", "facility", "severity", "tag"}:
            raise ErrorLogError(
                f'unknown syslog parameter "{word}"',
                "parameters are server= facility= severity= tag= nohostname",
            )
        if name in values:
            raise ErrorLogError(f'duplicate syslog "{name}"')
        values[name] = value
        if name == "server":
            try:
                server = address(value, 514)
            except AddressError as error:
                raise ErrorLogError(
                    f'{error} in syslog server "{value}"', error.remedy
                ) from error
        elif name == "facility" and value not in FACILITIES:
            raise ErrorLogError(
                f'unknown syslog facility "{value}"',
                f"facilities are {' '.join(FACILITIES)}",
            )
        elif name == "severity" and value not in LEVELS[1:]:
            raise ErrorLogError(f'unknown syslog severity "{value}"', _LEVELS_ARE)
        elif name == "tag":
            if len(value) > 32:
                raise ErrorLogError("syslog tag length exceeds 32")
            if not re.fullmatch(r"[0-9A-Za-z_]*", value):
                raise ErrorLogError(
                    'syslog "tag" only allows alphanumeric characters and underscore'
                )
    if server is None:
        raise ErrorLogError("no syslog server specified")
    return Syslog(
        address=server,
        facility=FACILITIES.index(values.get("facility", "local7")),
        tag=values.get("tag", "nginx"),
        hostname=hostname,
    )


def _filter(text: str, file: str, line: int) -> Filter:
    kind, colon, pattern = text.partition(":")
    if not colon:
        raise ErrorLogError(f'missing filter type in "{text}"')
    how: Literal["contains", "exact", "regex"] = "contains"
    if pattern.startswith("="):
        how, pattern = "exact", pattern[1:]
    elif pattern.startswith("~"):
        how, pattern = "regex", pattern[1:]
    if not pattern:
        raise ErrorLogError(f'empty filter pattern "{text}"')
    if kind == "sourcefile":
        raise ErrorLogError(
            '"error_log" directive source file filtering requires debug build'
        )
    if kind not in PROPERTIES and kind not in {"logline", "message", "tag"}:
        raise ErrorLogError(
            f"error_log directive at {file}:{line} has filter "
            f'with unknown property "{kind}"'
        )
    try:
        return Filter(kind, pattern, how)
    except re.error as error:
        raise ErrorLogError(
            f'pcre2_compile() failed: {error.msg} in "{pattern}"'
            f' at "{pattern[error.pos or 0 :]}"'
        ) from error
