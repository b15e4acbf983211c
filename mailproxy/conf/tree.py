"""The parts of a configuration (files, words, statements) and its errors.

Words and statements keep their offset in the file; lines and columns are computed
on demand, because only messages need them.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from functools import cached_property
from typing import NamedTuple, Self

from mailproxy.frozen import Frozen


class Position(NamedTuple):
    """Where something stands in a configuration, for messages."""

    file: str
    """As nginx prints it: prefix and given name, not normalised."""
    line: int
    """From 1."""
    column: int
    """From 1, in characters."""
    end: int = 0
    """The line that nginx reports: that of the statement's ``;`` or ``{``.

    0 if that is `line` itself.
    """

    def __str__(self) -> str:
        """As in nginx's messages: FILE:LINE, or ``command line`` for -g."""
        if self.file == COMMAND_LINE:
            return self.file
        return f"{self.file}:{self.end or self.line}"


COMMAND_LINE = "command line"
"""The name of the "file" that holds the text of -g."""


class SourceText:
    """The text of a file or of -g, in which offsets can be turned into lines."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def position(self, offset: int, end: int | None = None) -> Position:
        """The position of an offset; `end` is the offset of the statement's end."""
        begins = self._begins
        line = bisect_right(begins, offset)
        last = 0 if end is None else bisect_right(begins, end)
        return Position(self.name, line, offset - begins[line - 1] + 1, last)

    def line(self, offset: int) -> int:
        """The number of the line that an offset is in; only LF ends a line."""
        return bisect_right(self._begins, offset)

    @cached_property
    def _begins(self) -> list[int]:
        """The offset of each line."""
        return [0, *(found.end() for found in re.finditer("\n", self.text))]


_NOWHERE = SourceText("", "")


class Word:
    """One word of a statement: its value and its position.

    `value` is without quotes and escapes; bytes that are not UTF-8 are kept as
    surrogate escapes, so `octets` has them as the file does.
    """

    __slots__ = ("offset", "source", "value")

    def __init__(
        self, value: str, source: SourceText = _NOWHERE, offset: int = 0
    ) -> None:
        self.value = value
        self.source = source
        self.offset = offset

    @property
    def position(self) -> Position:
        """Where the word begins."""
        return self.source.position(self.offset)

    @property
    def octets(self) -> bytes:
        """The word as it goes on the wire."""
        return encode(self.value)

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"Word({self.value!r})"


class Directive:
    """A statement: its words, its end, and its block if it has one."""

    __slots__ = (
        "_source",
        "_start",
        "_words",
        "block",
        "closed",
        "end",
        "raw",
        "values",
    )

    def __init__(
        self,
        words: list[Word],
        end: int = 0,
        block: list[Directive] | None = None,
        raw: str | None = None,
    ) -> None:
        first = words[0]
        self._source, self._start = first.source, first.offset
        self._words: list[Word] | None = words
        self.values = [word.value for word in words]
        """The values of `words`."""
        self.end = end
        """Offset of the ``;`` or ``{``."""
        self.block = block
        """The statements in its braces; None for a simple statement."""
        self.raw = raw
        """For a Lua block, the text in its braces."""
        self.closed: int | None = None
        """Offset of the block's ``}``; None if a syntax error comes first."""

    @classmethod
    def of_bare_words(
        cls, values: list[str], source: SourceText, start: int, end: int
    ) -> Self:
        """Make a simple statement from words that the file has as they are.

        Where each of them stands is found out when somebody asks, as messages do.

        Args:
          values: the words, with nothing but blanks between them.
          start: offset of the first word.
          end: offset of the ``;``.
        """
        made = cls.__new__(cls)
        made._source, made._start, made._words = source, start, None  # noqa: SLF001 # its own class's
        made.values = values
        made.end = end
        made.block = made.raw = made.closed = None
        return made

    @property
    def words(self) -> list[Word]:
        """The name and the arguments."""
        words = self._words
        if words is None:
            words = self._words = []
            at = self._start
            for value in self.values:
                at = self._source.text.index(value, at)
                words.append(Word(value, self._source, at))
                at += len(value)
        return words

    @property
    def name(self) -> str:
        """The first word."""
        return self.values[0]

    @property
    def args(self) -> list[Word]:
        """The words after the name."""
        return self.words[1:]

    @property
    def position(self) -> Position:
        """The position of the name, with the line that nginx would report."""
        return self._source.position(self._start, self.end)

    @property
    def closing(self) -> Position:
        """The same, with the line of the block's ``}``."""
        return self._source.position(self._start, self.closed)

    def __repr__(self) -> str:
        return f"Directive({' '.join(self.values)!r})"


class ConfigError(Frozen, Exception):
    """An error in a configuration: a message in nginx's words, and its place.

    With level "warn" or "notice" it stands for a remark, which is not raised.
    """

    def __init__(
        self,
        message: str,
        position: Position | Word | Directive | None = None,
        remedy: str | None = None,
        *,
        error: OSError | None = None,
        level: str = "emerg",
        cause: Position | Word | Directive | None = None,
    ) -> None:
        """Describe an error.

        Args:
          message: nginx's text, without the place and without the system error.
          position: the wrong word, or the whole statement. A message about a
            word gets the line of its statement when conf passes it on.
          remedy: for people, what to write instead.
          error: the system error behind it, shown as ``(2: No such file …)``.
          level: nginx's level, which is "emerg" with few exceptions.
          cause: the word or statement behind a message in which nginx names no
            place, or another; people see it below nginx's line.
        """
        super().__init__(message)
        self.message = message
        self.position = _position(position)
        self.cause = _position(cause)
        self.remedy = remedy
        self.error = error
        self.level = level

    @property
    def unnamed(self) -> Position | None:
        """The `cause`, if nginx's line names another line, or none."""
        cause, named = self.cause, self.position
        if cause is None or named is None:
            return cause
        return None if (cause.file, cause.line) == (named.file, named.line) else cause

    @property
    def text(self) -> str:
        """The message as nginx prints it, place included."""
        body = self.message.encode("utf-8", "surrogateescape")
        if self.error is not None and self.error.errno is not None:
            code = self.error.errno
            body = _fit(body, f" ({code}: {os.strerror(code)})".encode())
        place = "" if self.position is None else f" in {self.position}"
        return body[:MAX_MESSAGE].decode("utf-8", "surrogateescape") + place

    @property
    def is_warning(self) -> bool:
        """Whether the configuration can be used all the same."""
        return self.level in ("warn", "notice")

    def with_place(self, position: Position | None, remedy: str | None) -> ConfigError:
        """Return the same message with another place and remedy."""
        return ConfigError(
            self.message,
            position,
            remedy,
            error=self.error,
            level=self.level,
            cause=self.cause,
        )

    def __str__(self) -> str:
        return self.text


class DuplicateError(Frozen, ValueError):
    """Raised by a value parser for a directive that was given before."""

    def __init__(self) -> None:
        super().__init__("is duplicate")


def _position(place: Position | Word | Directive | None) -> Position | None:
    return place.position if isinstance(place, Word | Directive) else place


MAX_MESSAGE = 1024
"""Bytes of a message before its place; nginx cuts the rest."""
_ERROR_ROOM = 50
"""Bytes that nginx keeps free for the system error if it has to cut."""


def _fit(body: bytes, suffix: bytes) -> bytes:
    if len(body) > MAX_MESSAGE - _ERROR_ROOM:
        body = body[: MAX_MESSAGE - _ERROR_ROOM] + b"..."
    return body + suffix


def decode(octets: bytes) -> str:
    """Return the text of a file; bytes that are not UTF-8 become surrogate escapes."""
    return octets.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Return the bytes that `decode` made `text` from."""
    return text.encode("utf-8", "surrogateescape")


_BARE = re.compile(r"[A-Za-z0-9_.:/*@%+,=~^|<>?!&()-]+")


def format_tree(statements: list[Directive], indent: str = "") -> str:
    """Format a tree as text; parsing the text gives the same tree.

    Args:
      statements: the tree.
      indent: what each line begins with.
    """
    lines = []
    for statement in statements:
        head = indent + " ".join(map(format_word, statement.values))
        if statement.raw is not None:
            lines.append(f"{head} {{{statement.raw}}}\n")
        elif statement.block is not None:
            inside = format_tree(statement.block, indent + "    ")
            lines.append(f"{head} {{\n{inside}{indent}}}\n")
        else:
            lines.append(f"{head};\n")
    return "".join(lines)


def format_word(value: str) -> str:
    """A word as it is written in a file, in quotes if it needs them."""
    if _BARE.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
