"""Text of a configuration -> statements: the parser that Lark's table drives.

The grammar is grammar/nginx.lark; from it Lark makes an LALR table, which says what may
follow what (see `conf/grammar.py`). The loop that obeys the table is here, because most
of the time of reading a long file is spent in it. Two more things make it fast and
exact. The terminals of the grammar are compiled into one regular expression, whose
matches are the tokens; a simple statement is a single one. And the tree is built when
tokens are shifted, so that after a syntax error it has all statements before the error:
nginx executes statements as it reads them, and reports a mistake in one of them first.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from mailproxy import outside
from mailproxy.conf import grammar
from mailproxy.conf.tree import (
    COMMAND_LINE,
    ConfigError,
    Directive,
    Position,
    SourceText,
    Word,
    decode,
)
from mailproxy.conf.words import (
    LUA_BLOCKS,
    WORTH_A_LOOK,
    check_comments,
    check_length,
    end_of_lua,
    has_long_comments,
    refuse,
    unescape,
)

MAX_FILE = 64 << 20
"""Octets of a configuration file."""


def read_source(path: str, asked_by: Word | Directive | None = None) -> SourceText:
    """Read as many octets as a file has when it is opened; none from a pipe.

    Args:
      path: the file, named as messages should show it.
      asked_by: the `include` that names it.

    Raises:
      ConfigError: it cannot be read, or has more than `MAX_FILE` octets.
    """
    try:
        octets, size = outside.read_sized(path, MAX_FILE)
    except ValueError:
        raise ConfigError(f'open() "{path}" failed', asked_by) from None
    except outside.FileError as error:
        if error.call == "open":
            raise ConfigError(
                f'open() "{path}" failed', asked_by, error=error
            ) from None
        raise ConfigError(
            f'pread() "{path}" failed', error=error, level="crit"
        ) from None
    if len(octets) < size:
        raise ConfigError(
            f"pread() returned only {len(octets)} bytes instead of {size}",
            Position(path, 1, 1),
        )
    return SourceText(path, decode(octets))


class Parsed(NamedTuple):
    """The statements of a file, and the syntax error in it."""

    statements: list[Directive]
    """All statements before the error; open blocks have no `closed`."""
    error: ConfigError | None
    """The first syntax error, which ends parsing."""


def parse(source: SourceText) -> Parsed:
    """Parse a file or the text of -g; never raises, whatever the text."""
    parser = _Parser(source)
    error: ConfigError | None = None
    try:
        parser.run()
    except ConfigError as found:
        error = found
    return Parsed(parser.statements, error)


_GRAMMAR = grammar.load()
_QUOTED = frozenset({"DQUOTED", "SQUOTED"})
_WORD = re.compile(r"(?:[^ \t\r\n;\\]++|\\[\s\S])++")
"""A word of a token that is a run of bare words."""
_ODD_BLANK = re.compile(
    "[\x0b\x0c\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
)
"""What is a blank to Python, and part of a word to nginx."""


def _compile(terminals: dict[str, str], ignored: tuple[str, ...]) -> re.Pattern[str]:
    """Compile the expression of a token, which finds one, or nothing, at any place.

    Its last group is the terminal; there is none where no token begins.
    """
    between = "|".join(ignored)
    tokens = "|".join(
        f"(?P<{name}>{each})" for name, each in terminals.items() if name != "LUA"
    )
    return re.compile(f"(?:{between})*+(?:{tokens}|(?P<{grammar.END}>\\Z)|)")


_TOKEN = _compile(_GRAMMAR.terminals, _GRAMMAR.ignored)


class _Parser:
    """Parses one text.

    Attributes:
      statements: all of the outermost level so far.
    """

    def __init__(self, source: SourceText) -> None:
        self.statements: list[Directive] = []
        self._source = source
        self._limited = source.name != COMMAND_LINE
        self._long_comments = self._limited and has_long_comments(source)
        self._lua = "_by_lua_block" in source.text
        self._plain = _ODD_BLANK.search(source.text) is None
        self._words: list[Word] = []
        """The words of the statement that has begun."""
        self._inside = self.statements
        """The statements of the innermost open block."""
        self._around: list[tuple[list[Directive], Directive]] = []
        """For each open block, the statements around it, and its own."""

    def run(self) -> None:
        """Build the tree.

        It works on each token that is shifted. Rules are reduced only when the next
        token is there, and that may be the one that is wrong.

        Raises:
          ConfigError: the text is no configuration.
        """
        actions, gotos = _GRAMMAR.actions, _GRAMMAR.gotos
        take = {
            "LAST": self._last,
            "BARE": self._bare,
            "DQUOTED": self._quoted,
            "SQUOTED": self._quoted,
            "END": self._end,
            "OPEN": self._open,
            "CLOSE": self._close,
            "LUA": self._take_lua,
        }
        stack = [0]
        for kind, start, end in self._tokens():
            expected = actions[stack[-1]]
            while not isinstance(action := expected.get(kind), int):
                if action is None:
                    raise self._unexpected(kind, start, expected)
                size, symbol = action
                if symbol == grammar.START:
                    return
                if size:
                    del stack[-size:]
                state = gotos[stack[-1]][symbol]
                expected = actions[state]
                stack.append(state)
            stack.append(action)
            take[kind](start, end)

    def _unexpected(
        self, kind: str, start: int, expected: Container[str]
    ) -> ConfigError:
        """Make nginx's error for a token that is not among the expected ones."""
        if kind != grammar.END:
            missing = kind == "CLOSE" and "END" in expected
            return ConfigError(
                f'unexpected "{self._source.text[start]}"',
                self._source.position(start),
                'a ";" is missing before it' if missing else None,
            )
        if "CLOSE" in expected:
            message = 'unexpected end of file, expecting "}"'
        elif not self._limited:
            message = 'unexpected end of parameter, expecting ";"'
        else:
            message = 'unexpected end of file, expecting ";" or "}"'
        return ConfigError(message, self._source.position(start))

    # Tokens

    def _tokens(self) -> Iterator[tuple[str, int, int]]:
        """Yield the tokens: terminal, offset, offset behind it; `grammar.END` is the last.

        Raises:
          ConfigError: a word is too long, or a quoted word does not end properly.
        """
        source, text = self._source, self._source.text
        at: int | None = 0
        while at is not None:
            matches, at = _TOKEN.finditer(text, at), None
            for found in matches:
                kind = found.lastgroup
                if kind is None:
                    refuse(source, found.start(), limited=self._limited)
                start, end = found.span(kind)
                if self._long_comments:
                    check_comments(source, found.start(), start)
                if end - start > WORTH_A_LOOK and self._limited:
                    self._check_lengths(kind, start, end)
                if self._lua and kind == "OPEN" and self._opens_lua():
                    at = end_of_lua(source, end)
                    yield "LUA", start, at
                    break
                yield kind, start, end

    def _check_lengths(self, kind: str, start: int, end: int) -> None:
        """Refuse a token with a word that does not fit into nginx's buffer."""
        if kind in _QUOTED:
            check_length(self._source, start, end)
        else:
            for word in _WORD.finditer(self._source.text, start, end):
                check_length(self._source, *word.span())

    def _opens_lua(self) -> bool:
        return bool(self._words) and self._words[0].value in LUA_BLOCKS

    # What they add to the tree

    def _bare(self, start: int, end: int) -> None:
        """Add words to the statement that has begun."""
        source = self._source
        self._words += (
            Word(unescape(found[0]), source, found.start())
            for found in _WORD.finditer(source.text, start, end)
        )

    def _quoted(self, start: int, end: int) -> None:
        """Add a word to the statement that has begun."""
        value = unescape(self._source.text[start + 1 : end - 1])
        self._words.append(Word(value, self._source, start))

    def _last(self, start: int, end: int) -> None:
        """Complete the statement with the words before a ";"."""
        end -= 1
        run = self._source.text[start:end]
        if self._plain and not self._words and "\\" not in run:
            self._inside.append(
                Directive.of_bare_words(run.split(), self._source, start, end)
            )
        else:
            self._bare(start, end)
            self._end(end, end + 1)

    def _end(self, start: int, _end: int) -> None:
        """Complete the statement."""
        self._inside.append(Directive(self._words, start))
        self._words = []

    def _open(self, start: int, _end: int) -> None:
        """Open the statement's block, which the next statements belong to."""
        if not self._limited:
            raise ConfigError(
                "block directives are not supported in -g option",
                self._source.position(start),
            )
        inside: list[Directive] = []
        opened = Directive(self._words, start, inside)
        self._words = []
        self._inside.append(opened)
        self._around.append((self._inside, opened))
        self._inside = inside

    def _close(self, start: int, _end: int) -> None:
        """Close the block."""
        self._inside, opened = self._around.pop()
        opened.closed = start

    def _take_lua(self, start: int, end: int) -> None:
        """Complete a statement that has a block of Lua."""
        text = self._source.text
        made = Directive(self._words, start, [], text[start + 1 : end - 1])
        made.closed = end - 1
        self._inside.append(made)
        self._words = []
