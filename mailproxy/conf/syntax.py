"""Text of a configuration -> statements: the front end to Lark.

The grammar is grammar/nginx.lark, and Lark's LALR parser decides what may follow
what. Two things here make it fast and exact. The terminals of the grammar are
compiled into one regular expression, whose matches are the tokens. And the tree is
built while Lark shifts tokens, so that after a syntax error it has all statements
before the error: nginx executes statements as it reads them, and reports a mistake
in one of them first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

from lark import Lark, Transformer
from lark.common import LexerConf
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from mailproxy import outside
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
    error: ConfigError | None = None
    try:
        _LARK.parse(source)
    except ConfigError as found:
        error = found
    except UnexpectedToken as found:
        error = _unexpected(found, source)
    return Parsed(_BUILDER.finish(), error)


def _unexpected(found: UnexpectedToken, source: SourceText) -> ConfigError:
    """Make nginx's error for a token that Lark does not accept."""
    token = found.token
    if isinstance(token, Word):
        missing = token.type == "CLOSE" and "END" in found.expected
        return ConfigError(
            f'unexpected "{token.value}"',
            token,
            'a ";" is missing before it' if missing else None,
        )
    if "CLOSE" in found.expected:
        message = 'unexpected end of file, expecting "}"'
    elif source.name == COMMAND_LINE:
        message = 'unexpected end of parameter, expecting ";"'
    else:
        message = 'unexpected end of file, expecting ";" or "}"'
    return ConfigError(message, source.position(len(source.text)))


class _Builder(Transformer[Word, None]):
    """Builds the tree while Lark parses.

    It works on each terminal that Lark shifts. Lark reduces a rule only after it has
    the next token, which may be the one that is wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self._statements: list[Directive] = []
        self._words: list[Word] = []
        self._around: list[tuple[list[Directive], Directive]] = []

    def finish(self) -> list[Directive]:
        """Return the tree, and be ready for another file."""
        if self._around:
            self._statements, _ = self._around[0]
        finished = self._statements
        self._statements, self._words, self._around = [], [], []
        return finished

    def WORD(self, word: Word) -> None:  # noqa: N802 # the grammar's name
        """Add a word to the statement that has begun."""
        self._words.append(word)

    DQUOTED = SQUOTED = WORD

    def END(self, end: Word) -> None:  # noqa: N802 # the grammar's name
        """Complete the statement."""
        self._statements.append(Directive(self._words, end.offset))
        self._words = []

    def OPEN(self, brace: Word) -> None:  # noqa: N802 # the grammar's name
        """Open the statement's block, which the next statements belong to."""
        if brace.source.name == COMMAND_LINE:
            raise ConfigError("block directives are not supported in -g option", brace)
        inside: list[Directive] = []
        opened = Directive(self._words, brace.offset, inside)
        self._words = []
        self._statements.append(opened)
        self._around.append((self._statements, opened))
        self._statements = inside

    def CLOSE(self, brace: Word) -> None:  # noqa: N802 # the grammar's name
        """Close the block."""
        self._statements, opened = self._around.pop()
        opened.closed = brace.offset

    def LUA(self, lua: Word) -> None:  # noqa: N802 # the grammar's name
        """Complete a statement that has a block of Lua."""
        made = Directive(self._words, lua.offset, [], lua.value[1:-1])
        made.closed = lua.offset + len(lua.value) - 1
        self._statements.append(made)
        self._words = []

    def words(self, _: object) -> None:
        """Do nothing for rules."""

    start = simple = block = lua = words


class _Lexer(Lexer):
    """Finds the words of a file with one expression made from the grammar's terminals."""

    def __init__(self, lexer_conf: LexerConf) -> None:
        patterns = {
            terminal.name: terminal.pattern.to_regexp()
            for terminal in lexer_conf.terminals
        }
        del patterns["LUA"]
        ignored = "|".join(patterns.pop(name) for name in lexer_conf.ignore)
        tokens = "|".join(f"(?P<{name}>{each})" for name, each in patterns.items())
        self._token = re.compile(f"(?:{ignored})*+(?:{tokens}|(?P<EOF>\\Z))")

    def lex(self, source: SourceText) -> Iterator[Word]:  # type: ignore[override] # one of Lark's interfaces
        """Yield the tokens of a file.

        Raises:
          ConfigError: a word is too long, or a quoted word does not end properly.
        """
        text = source.text
        match = self._token.match
        limited = source.name != COMMAND_LINE
        long_comments = limited and has_long_comments(source)
        lua = "_by_lua_block" in text
        first: Word | None = None
        at = 0
        while True:
            found = match(text, at)
            if found is None:
                refuse(source, at, limited=limited)
            kind = found.lastgroup
            assert kind is not None
            start = found.start(kind)
            if long_comments:
                check_comments(source, at, start)
            at = found.end()
            value = found[kind]
            if len(value) > WORTH_A_LOOK and limited:
                check_length(source, start, at)
            if kind == "DQUOTED" or kind == "SQUOTED":
                value = value[1:-1]
            elif kind == "EOF":
                return
            word = Word(unescape(value), source, start, kind)
            if lua:
                if kind == "OPEN" and first is not None and first.value in LUA_BLOCKS:
                    at = end_of_lua(source, at)
                    word = Word(text[start:at], source, start, "LUA")
                    kind = "LUA"
                if kind in ("END", "OPEN", "CLOSE", "LUA"):
                    first = None
                elif first is None:
                    first = word
            yield word


_BUILDER = _Builder()
_LARK = Lark(
    resources.files("mailproxy").joinpath("grammar/nginx.lark").read_text("utf-8"),
    parser="lalr",
    lexer=_Lexer,
    transformer=_BUILDER,
    keep_all_tokens=True,
    maybe_placeholders=False,
)
