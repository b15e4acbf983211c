"""The syntax of IMAP commands before the login: bytes in, values out (RFC 3501, RFC 2971).

ParsedArguments are parsed as nginx does it, which accepts more than RFC 3501. nginx does not
know ID, which is parsed by its RFC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailproxy.mail.commands import BadCommand, split_words
from mailproxy.mail.literals import Literal, parse_literal
from mailproxy.net.octets import NUL

_ARGUMENT = re.compile(
    rb"""\ *(?: "(?P<quoted>(?:\\.|[^"\\])*)"
            | \{(?P<size>[0-9]*)(?P<plus>\+?)\}$
            | (?P<atom>[^ "{][^ ]*) )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_QUOTE, _BRACE, _BACKSLASH = b'"{\\'


@dataclass(frozen=True, slots=True)
class ParsedArguments:
    """The arguments in a part of a command.

    Attributes:
      values: the arguments; there may be secrets among them.
      literal: the literal that follows the part, if any.
    """

    values: list[bytes] = field(repr=False)
    literal: Literal | None


def split_arguments(text: bytes, room: int) -> ParsedArguments:
    """Split a part of a command, which is a line without its end, into arguments.

    Args:
      room: the maximum number of arguments, including a literal.

    Raises:
      BadCommand: there are more, or the line is not well-formed.
    """
    if _QUOTE not in text and _BRACE not in text:
        return ParsedArguments(split_words(text, room), None)
    arguments: list[bytes] = []
    place, end = 0, len(text.rstrip(b" "))
    while place < end:
        match = _ARGUMENT.match(text, place)
        if match is None or len(arguments) == room:
            raise BadCommand(counted=True)
        place = match.end()
        quoted, atom = match["quoted"], match["atom"]
        if quoted is not None:
            arguments.append(_unescape(quoted))
        elif atom is not None:
            arguments.append(atom)
        else:
            return ParsedArguments(
                arguments, parse_literal(match["size"], match["plus"])
            )
    return ParsedArguments(arguments, None)


def _unescape(quoted: bytes) -> bytes:
    """The text of a quoted string."""
    return _ESCAPED.sub(rb"\1", quoted) if _BACKSLASH in quoted else quoted


Field = tuple[bytes, bytes | None]
"""A field of ID: its name as the client wrote it, and its value, which may be NIL."""

MAX_FIELDS = 30
MAX_FIELD_NAME = 30
MAX_FIELD_VALUE = 1024
"""Fields of an ID command, and octets of their names and values (RFC 2971, 3.3)."""

_STRING = re.compile(
    rb"""  "(?P<quoted>(?:\\["\\]|[^"\\\r\n\0])*)"
         | (?P<nil>NIL)(?=[ )])
         | \{0*(?P<size>[0-9]{1,4})(?P<plus>\+?)\}$""",
    re.VERBOSE | re.IGNORECASE,
)


def parse_id(parts: Sequence[bytes]) -> tuple[Field, ...] | Literal:
    """Parse the fields in the arguments of an ID command (RFC 2971, section 4).

    NIL and an empty list have none. Beyond the RFC, a quoted string may contain octets
    from 128 on, because clients send names in UTF-8.

    Args:
      parts: the line behind "ID", then alternately the data of a literal that it
        announced, and the line behind that; lines are without their ends.

    Returns:
      The fields, or the literal that the last line ends with.

    Raises:
      BadCommand: the command is not well-formed, or exceeds a limit of the RFC.
    """
    if len(parts) == 1 and parts[0].upper() == b" NIL":
        return ()
    first, *more = parts
    if not first.startswith(b" ("):
        raise BadCommand(counted=True)
    strings: list[bytes | None] = []
    literal = _take_strings(first[2:], strings)
    for data, line in zip(more[::2], more[1::2], strict=True):
        assert literal is not None, "a line follows a literal that was announced"
        if NUL in data:
            raise BadCommand(counted=True)
        _add(strings, data)
        literal = _take_strings(line, strings)
    return literal or _paired(strings)


def _take_strings(text: bytes, strings: list[bytes | None]) -> Literal | None:
    """Add the strings of a line to `strings`; returns the literal at its end.

    Raises:
      BadCommand: the line is not well-formed.
    """
    while text != b")":
        if strings:
            space, text = text[:1], text[1:]
            if space != b" ":
                raise BadCommand(counted=True)
        found = _STRING.match(text)
        if found is None:
            raise BadCommand(counted=True)
        if found["size"] is not None:
            _check_room(strings, int(found["size"]))
            return Literal(int(found["size"]), wait=not found["plus"])
        quoted = found["quoted"]
        _add(strings, None if quoted is None else _unescape(quoted))
        text = text[found.end() :]
    return None


def _add(strings: list[bytes | None], string: bytes | None) -> None:
    """Add the name or the value of a field; a name must not be NIL.

    Raises:
      BadCommand: it is, or it exceeds a limit.
    """
    if string is None and len(strings) % 2 == 0:
        raise BadCommand(counted=True)
    _check_room(strings, len(string or b""))
    strings.append(string)


def _check_room(strings: list[bytes | None], size: int) -> None:
    """Check that another string of `size` octets is within the limits.

    Raises:
      BadCommand: it is too long, or one too many.
    """
    limit = MAX_FIELD_VALUE if len(strings) % 2 else MAX_FIELD_NAME
    if size > limit or len(strings) == 2 * MAX_FIELDS:
        raise BadCommand(counted=True)


def _paired(strings: list[bytes | None]) -> tuple[Field, ...]:
    """Pair names with values.

    Raises:
      BadCommand: a value is missing, or two names differ at most in case.
    """
    names = [name for name in strings[::2] if name is not None]
    if len(strings) % 2 or len({name.upper() for name in names}) < len(names):
        raise BadCommand(counted=True)
    return tuple(zip(names, strings[1::2], strict=True))
