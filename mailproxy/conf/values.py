"""Words of the configuration -> values, with nginx's limits and messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from mailproxy.conf import hints
from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.tree import ConfigError, Directive, Word, encode

T = TypeVar("T")

MINUTE = 60.0
HOUR = 60 * MINUTE
KIB = 1024
MIB = 1024 * KIB
MAX_NUMBER = 2**63 - 1
"""The largest number in a configuration (nginx's NGX_MAX_INT_T_VALUE)."""

_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def lower(text: str) -> str:
    """Convert to lower case as C does it: ASCII letters only."""
    return text.lower() if text.isascii() else text.translate(_LOWER)


def c_string(text: str) -> str:
    """Return the part of a word that C sees: up to a NUL."""
    return text.partition("\0")[0] if "\0" in text else text


def shown(source: str) -> str:
    """A certificate or key of the configuration in a message, never its secrets."""
    if source.startswith("data:") and "PRIVATE KEY" in source:
        return "data:..."
    return source


def one(parse: Callable[[str], T], usage: str, remedy: str = "") -> Value[T]:
    """Make the `Value` of a directive with one argument from a parser of its text."""
    return Value(lambda found, _: parse(found.values[1]), usage, remedy=remedy)


def _flag(found: Directive, _: Reading) -> bool:
    value = c_string(found.values[1])
    text = lower(value)
    if text == "on":
        return True
    if text == "off":
        return False
    raise ConfigError(
        f'invalid value "{value}" in "{found.name}" directive, '
        'it must be "on" or "off"',
        found.words[1],
    )


flag: Value[bool] = Value(_flag, "on | off")
"""``on`` or ``off``."""


def parse_number(text: str) -> int:
    """Parse a number of decimal digits and nothing else (ngx_atoi).

    Raises:
      ValueError: `text` has anything else, or is more than `MAX_NUMBER`.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError("invalid number")
    if len(text) > 18 and (len(text) > 4000 or int(text) > MAX_NUMBER):
        raise ValueError("invalid number")
    return int(text)


number: Value[int] = one(parse_number, "number", "a number has digits only")
"""0 to 2^63 - 1, decimal."""

_SIZE = re.compile(r"([0-9]+)([kKmMgG]?)")
_SCALES = {"": 1, "k": KIB, "m": MIB, "g": 1024 * MIB}


def _parse_scaled(text: str, units: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ValueError("invalid value")
    try:
        size = parse_number(match[1]) * _SCALES[match[2].lower()]
    except ValueError:
        size = MAX_NUMBER + 1
    if size > MAX_NUMBER:
        raise ValueError("invalid value")
    return size


def parse_size(text: str) -> int:
    """Parse a number of bytes, with an optional ``k`` or ``m``.

    Raises:
      ValueError: `text` is not a size.
    """
    return _parse_scaled(text, "km")


size: Value[int] = one(parse_size, "size", "a size is like 4096, 8k or 1m")
"""Bytes."""
offset: Value[int] = one(
    lambda text: _parse_scaled(text, "kmg"), "size", "a size is like 8k, 1m or 2g"
)
"""Bytes, in a file."""

# Units in the order in which they must come: name, seconds.
_UNITS = {
    "y": (1, 365 * 86400),
    "M": (2, 30 * 86400),
    "w": (3, 7 * 86400),
    "d": (4, 86400),
    "h": (5, 3600),
    "m": (6, 60),
    "s": (7, 1),
}
_MONTH, _MSEC, _LAST = 2, 8, 9
_PLAIN_TIME = re.compile(r"([0-9]{1,9})([smhd]?)")
_TIME_PART = re.compile(r"([0-9]*)(ms|[yMwdhms ])(\ *)")


def parse_milliseconds(text: str) -> int:
    """Parse a time into milliseconds: ``1h30m``, ``500ms``, ``60``.

    Raises:
      ValueError: `text` is not a time.
    """
    return _parse_time(text, milli=True)


def parse_seconds(text: str) -> int:
    """Parse a time into whole seconds: ``1y``, ``1M``, ``1h30m``, ``60``.

    Raises:
      ValueError: `text` is not a time.
    """
    return _parse_time(text, milli=False)


def _parse_time(text: str, *, milli: bool) -> int:
    scale = 1000 if milli else 1
    plain = _PLAIN_TIME.fullmatch(text)
    if plain is not None:
        return int(plain[1]) * _UNITS[plain[2] or "s"][1] * scale
    step = _MONTH if milli else 0
    total = at = 0
    part = _TIME_PART.match(text)
    while part is not None:
        unit = part[2]
        if unit == "ms":
            rank, factor = (_MSEC, 1) if milli else (0, 1)
        elif unit == " ":
            rank, factor = _LAST, scale
        else:
            rank, factor = _UNITS[unit][0], _UNITS[unit][1] * scale
        if rank <= step or (unit == " " and step >= _UNITS["s"][0]):
            raise ValueError("invalid value")
        step = rank
        total += (parse_number(part[1]) if part[1] else 0) * factor
        at = part.end()
        part = _TIME_PART.match(text, at)
    rest = text[at:]
    if rest:
        total += parse_number(rest) * scale
    if total > MAX_NUMBER or not any("0" <= byte <= "9" for byte in text):
        raise ValueError("invalid value")
    return total


def _time(parse: Callable[[str], int], per: int) -> Callable[[str], float]:
    def seconds_of(text: str) -> float:
        try:
            return parse(text) / per
        except ValueError:
            raise ValueError("invalid value") from None

    return seconds_of


duration: Value[float] = one(
    _time(parse_milliseconds, 1000),
    "time",
    "a time is like 30s, 1h30m or 500ms; units are ms s m h d w, largest first",
)
"""Seconds, written with a resolution of milliseconds."""
seconds: Value[float] = one(
    _time(parse_seconds, 1),
    "time",
    "a time is like 30s, 1h30m or 1d; units are s m h d w M y, largest first",
)
"""Seconds."""

text: Value[str] = one(str, "string")
"""Any word."""
octets: Value[bytes] = Value(lambda found, _: encode(found.values[1]), "string")
"""Any word, as it goes on the wire."""
words: Value[tuple[bytes, ...]] = Value(
    lambda found, _: tuple(map(encode, found.values[1:])), "string ...", most=None
)
"""One or more words, as they go on the wire."""
pair: Value[tuple[tuple[bytes, bytes], ...]] = Value(
    lambda found, _: ((encode(found.values[1]), encode(found.values[2])),),
    "name value",
    least=2,
    most=2,
    means_dollar=hints.is_secret,
)
"""A name and a value that may be a secret; repeated ones are added."""
in_prefix: Value[str] = Value(
    lambda found, reading: reading.in_prefix(found.values[1]), "file"
)
"""A file name, relative to P/."""
in_directory: Value[str] = Value(
    lambda found, reading: reading.in_directory(found.values[1]), "file"
)
"""A file name, relative to C/."""


def parse_port(text: str) -> int:
    """Parse the number of a port, 1 to 65535.

    Raises:
      ValueError: `text` is none.
    """
    port = parse_number(text)
    if not 1 <= port <= 65535:
        raise ValueError("invalid value")
    return port


def parse_text(text: str) -> str:
    """Return a text that has to be there.

    Raises:
      ValueError: it is empty.
    """
    if not text:
        raise ValueError("invalid value")
    return text


def one_of(*accepted: str) -> Callable[[str], str]:
    """Make a function that accepts these words only, in this case."""

    def parse(text: str) -> str:
        if text not in accepted:
            raise ValueError("invalid value")
        return text

    return parse


def choice(*accepted: str) -> Value[str]:
    """Make the `Value` of one of these words, in any case; it is spelt as listed here."""
    known = {lower(word): word for word in accepted}

    def parse(found: Directive, _: Reading) -> str:
        try:
            return known[lower(found.values[1])]
        except KeyError:
            raise _not_accepted(found.words[1], accepted) from None

    return Value(parse, " | ".join(accepted), parameters=accepted)


def choices(*accepted: str) -> Value[frozenset[str]]:
    """Make the `Value` of a set of these words, in any case; repeated ones are added."""
    known = {lower(word): word for word in accepted}

    def parse(found: Directive, reading: Reading) -> frozenset[str]:
        given = reading.block.given.get(found.name)
        chosen: set[str] = set()
        if given is not None and isinstance(given.value, frozenset):
            chosen.update(given.value)
        for word in found.args:
            value = known.get(lower(word.value))
            if value is None:
                raise _not_accepted(word, accepted)
            if value in chosen:
                reading.warn(f'duplicate value "{c_string(word.value)}"', word)
            chosen.add(value)
        return frozenset(chosen)

    usage = f"{' | '.join(accepted)} ..."
    return Value(parse, usage, most=None, parameters=accepted)


def _not_accepted(word: Word, accepted: tuple[str, ...]) -> ConfigError:
    return ConfigError(
        f'invalid value "{c_string(word.value)}"',
        word,
        f"accepted are {', '.join(accepted)}",
    )
