"""Guesses at what the user meant: a similar name, another module's directive, an encoding.

A hint is given only if it is close or certain. It stands below nginx's line, which it
does not change.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from mailproxy.conf.elsewhere import HTTP, STREAM, extension_of, module_of
from mailproxy.conf.tree import Directive, Position, SourceText, Word, decode

_MAX_DISTANCE = 3
"""Typing mistakes in a long name."""

_FOREIGN_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
"""Byte order marks of encodings that nginx cannot read."""

_BOM = "\ufeff"
_BLANKS = " \t\r\n"
"""What is a blank to nginx."""
_QUOTES = frozenset("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2032\u2033")
"""What word processors write instead of ' and ": quotation marks and primes."""
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cf"})
"""Unicode's categories of blanks and of invisible characters."""

_WORDS = re.compile("[-_]")
_VARIABLE = re.compile(r"(?<!\\)\$(?:\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)", re.ASCII)
_UNFILLED = re.compile(r"(?:^|=)\$[A-Za-z_]\w*$|(?<!\\)\$\{[A-Za-z_]\w*\}", re.ASCII)


def reordered(name: str, names: Iterable[str]) -> str | None:
    """The name that has the same words in another order: ``http_auth``, ``auth_http``."""
    words = sorted(_WORDS.split(name))
    found = (each for each in names if sorted(_WORDS.split(each)) == words)
    return next(found, None) if len(words) > 1 else None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Find the name that `name` may be a misspelling of.

    One mistake is allowed for every four letters, up to three, and one in the
    shortest names: "proxy_ssl" is not taken for "proxy".
    """
    limit = min(_MAX_DISTANCE, max(1, len(name) // 4))
    if len(name) < 3:
        return None
    found = None
    for each in names:
        if abs(len(each) - len(name)) <= limit:
            distance = _distance(name, each)
            if distance <= limit:
                found, limit = each, distance - 1
    return found


def _distance(one: str, other: str) -> int:
    """Count the letters to insert, delete, replace or swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, against in enumerate(other, 1):
            cost = min(
                before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != against)
            )
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def elsewhere(name: str) -> str | None:
    """Say which module has the directive; None if no known one does."""
    if name in HTTP:
        return f'"{name}" is a directive of http, not of mail'
    if name in STREAM:
        return f'"{name}" is a directive of stream, not of mail'
    module = module_of(name)
    if module is not None:
        return f'"{name}" is a directive of {module}, not of mail'
    owner = extension_of(name)
    if owner is not None:
        return f'"{name}" is a directive of {owner}, which nginx does not have'
    return None


def foreign_encoding(source: SourceText) -> str | None:
    """The name of a file's encoding if its byte order mark shows UTF-16 or UTF-32."""
    for mark, name in _FOREIGN_ENCODINGS:
        if source.text.startswith(decode(mark)):
            return name
    return None


def unseen(statement: Directive, position: Position | None) -> str | None:
    """Describe an invisible or misleading character in the word that an error is about."""
    if position is None:
        return None
    for word in statement.words:
        place = word.position
        if (place.line, place.column) == (position.line, position.column):
            return _unseen_in(word)
    return None


def unseen_rest(source: SourceText, *, whole: bool) -> str | None:
    """Say what a person cannot see where a file ends too early: a mark, a strange blank.

    Args:
      whole: there is no complete statement before, so it is about the beginning, too.
    """
    text = source.text
    marked = text.startswith(_BOM) or foreign_encoding(source) is not None
    if whole and marked:
        return _unseen_in(Word(text[:1], source))
    rest = text.rstrip(_BLANKS)
    at = max(map(rest.rfind, f"{_BLANKS};{{}}")) + 1
    word = Word(rest[at:], source, at)
    if "#" in rest[rest.rfind("\n") + 1 :]:  # of a comment nothing is asked
        return None
    return _unseen_in(word)


def _unseen_in(word: Word) -> str | None:
    if word.offset == 0 and (encoding := foreign_encoding(word.source)) is not None:
        return f"the file is {encoding}: save it as UTF-8, without byte order mark"
    if "\0" in word.value:
        return "there is a NUL in it: is the file damaged, or UTF-16?"
    if word.offset == 0 and word.value.startswith(_BOM):
        return (
            "the file begins with a UTF-8 byte order mark (BOM), which is part of the"
            " first word to nginx: save the file without it"
        )
    for char in word.value:
        if char in _QUOTES:
            return f"it has a {_name(char)} in it: quotes are \" and ' only"
        if char > "\x7f" and unicodedata.category(char) in _UNSEEN:
            return f"it has a {_name(char)} in it, which is no blank to nginx"
    return None


def _name(char: str) -> str:
    return f"{unicodedata.name(char, 'strange character').lower()} (U+{ord(char):04X})"


def has_variable(word: str) -> bool:
    """Whether `word` contains a ``$name`` or ``${name}``."""
    return "$" in word and _VARIABLE.search(word) is not None


def is_secret(word: str) -> bool:
    """Whether `word` may be a secret that contains a ``$``, not a forgotten variable.

    A forgotten variable is the whole word, or all that follows an ``=``, or has braces.
    """
    return _UNFILLED.search(word) is None
