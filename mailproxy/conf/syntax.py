"""Text of a configuration -> words, statements, blocks: the front end to Lark.

The grammar is grammar/nginx.lark, and Lark's LALR parser decides what may follow
what. Two things are done here to make it fast and exact. The terminals of the
grammar are compiled into one regular expression, whose matches are the tokens; and
the rules build the tree while Lark parses, so that on a syntax error all statements
before it are there: nginx executes them as it reads, and a mistake in one of them is
reported first. What the lexer adds to the grammar are nginx's limits of length, which
come from its buffer of 4096 bytes, and Lua blocks, which are not nginx syntax.
"""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_right
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple, NoReturn

from lark import Lark, Transformer
from lark.common import LexerConf
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer


class Position(NamedTuple):
    """Where something stands in a configuration, for messages."""

    file: str
    """As nginx prints it: prefix and given name, not normalised."""
    line: int
    """From 1."""
    column: int
    """From 1, in characters."""
    end: int = 0
    """The line that nginx reports: of the ``;`` or ``{`` of the statement.

    0 where that is `line` itself.
    """

    def __str__(self) -> str:
        """As in nginx's messages: FILE:LINE, or ``command line`` for -g."""
        if self.file == COMMAND_LINE:
            return self.file
        return f"{self.file}:{self.end or self.line}"


COMMAND_LINE = "command line"
"""The "file" that the text of -g is in."""


class Source:
    """A file (or the text of -g) and how offsets in it become lines."""

    __slots__ = ("_lines", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._lines: list[int] | None = None

    def position(self, offset: int, end: int | None = None) -> Position:
        """The line and column of an offset; `end` is that of the terminator."""
        line = self.line(offset)
        assert self._lines is not None
        column = offset - self._lines[line - 1] + 1
        return Position(self.name, line, column, 0 if end is None else self.line(end))

    def line(self, offset: int) -> int:
        """The number of the line that an offset is in; only LF ends a line."""
        if self._lines is None:
            self._lines = [0, *_after_newlines(self.text)]
        return bisect_right(self._lines, offset)


def _after_newlines(text: str) -> Iterator[int]:
    at = text.find("\n")
    while at >= 0:
        yield at + 1
        at = text.find("\n", at + 1)


_NOWHERE = Source("", "")


class Word:
    """One word of a statement: its value, and where it stands.

    `value` has quotes and escapes taken away; bytes that are not UTF-8 are kept
    as surrogate escapes, so `octets` is what the file holds.
    """

    __slots__ = ("offset", "source", "type", "value")

    # What Lark asks of a token besides its type; we have places of our own.
    start_pos = end_pos = line = column = end_line = end_column = None

    def __init__(
        self,
        value: str,
        source: Source = _NOWHERE,
        offset: int = 0,
        kind: str = "WORD",
    ) -> None:
        self.value = value
        self.source = source
        self.offset = offset
        self.type = kind
        """The terminal of the grammar."""

    @property
    def position(self) -> Position:
        """Where the word begins."""
        return self.source.position(self.offset)

    @property
    def octets(self) -> bytes:
        """The word as it goes on the wire."""
        return self.value.encode("utf-8", "surrogateescape")

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"Word({self.value!r})"


class Directive:
    """A statement: its words, what ended it, and the block it may have."""

    __slots__ = ("block", "closed", "end", "raw", "words")

    def __init__(
        self,
        words: list[Word],
        end: int = 0,
        block: list[Directive] | None = None,
        raw: str | None = None,
    ) -> None:
        self.words = words
        """The name and the arguments."""
        self.end = end
        """Offset of the ``;`` or ``{``."""
        self.block = block
        """The statements in its braces; None for a simple statement."""
        self.raw = raw
        """For a Lua block, the text in its braces."""
        self.closed: int | None = None
        """Offset of the ``}`` of a block; None where a syntax error comes first."""

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0].value

    @property
    def args(self) -> list[Word]:
        """The words after the name."""
        return self.words[1:]

    @property
    def position(self) -> Position:
        """Where the name stands, and the line where nginx would look for it."""
        first = self.words[0]
        return first.source.position(first.offset, self.end)

    def __repr__(self) -> str:
        return f"Directive({' '.join(word.value for word in self.words)!r})"


class ConfigError(Exception):
    """What is wrong with a configuration: a message in nginx's words, and where.

    Also used, with level "warn", as the value that a warning is.
    """

    def __init__(
        self,
        message: str,
        position: Position | Word | Directive | None = None,
        remedy: str | None = None,
        *,
        error: OSError | None = None,
        level: str = "emerg",
    ) -> None:
        """Describe a mistake.

        Args:
          message: nginx's text, without the place and without the system error.
          position: the wrong word, or the whole statement. A message about a
            word gets the line of its statement when conf passes it on.
          remedy: for people, what to write instead.
          error: the system error behind it, shown as ``(2: No such file …)``.
          level: nginx's level, "emerg" but for a few.
        """
        super().__init__(message)
        self.message = message
        self.position = (
            position.position if isinstance(position, Word | Directive) else position
        )
        self.remedy = remedy
        self.error = error
        self.level = level

    @property
    def text(self) -> str:
        """The message as nginx prints it, place included."""
        body = self.message.encode("utf-8", "surrogateescape")
        if self.error is not None and self.error.errno is not None:
            code = self.error.errno
            body = _fit(body, f" ({code}: {os.strerror(code)})".encode())
        place = "" if self.position is None else f" in {self.position}"
        return body[:MESSAGE_LIMIT].decode("utf-8", "surrogateescape") + place

    def __str__(self) -> str:
        return self.text


MESSAGE_LIMIT = 1024
"""Bytes of a message before its place; nginx cuts the rest."""
_ERROR_ROOM = 50
"""Bytes that nginx keeps free for the system error, when it has to cut."""


def _fit(body: bytes, suffix: bytes) -> bytes:
    if len(body) > MESSAGE_LIMIT - _ERROR_ROOM:
        body = body[: MESSAGE_LIMIT - _ERROR_ROOM] + b"..."
    return body + suffix


def decode(octets: bytes) -> str:
    """The text of a file; bytes that are not UTF-8 become surrogate escapes."""
    return octets.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The bytes that `decode` made `text` of."""
    return text.encode("utf-8", "surrogateescape")


def read_source(path: str, asked_by: Word | Directive | None = None) -> Source:
    """Read a file, as many bytes as it has when it is opened: none of a pipe.

    Args:
      path: the file, as messages are to show it.
      asked_by: the `include` that names it.

    Raises:
      ConfigError: it cannot be read.
    """
    try:
        descriptor = os.open(encode(path), os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'open() "{path}" failed',
            asked_by,
            error=error if isinstance(error, OSError) else None,
        ) from None
    try:
        status = os.fstat(descriptor)
        directory = stat.S_ISDIR(status.st_mode)
        size = max(status.st_size, 1) if directory else status.st_size
        octets = b""
        while len(octets) < size:
            more = os.read(descriptor, size - len(octets))
            if not more:
                raise ConfigError(
                    f"pread() returned only {len(octets)} bytes instead of {size}",
                    Position(path, 1, 1),
                )
            octets += more
    except OSError as error:
        raise ConfigError(
            f'pread() "{path}" failed', error=error, level="crit"
        ) from None
    finally:
        os.close(descriptor)
    return Source(path, decode(octets))


class Parsed(NamedTuple):
    """What could be understood of a file."""

    statements: list[Directive]
    """All statements before the error; open blocks have no `closed`."""
    error: ConfigError | None
    """The first syntax error, which ends parsing."""


def parse(source: Source) -> Parsed:
    """Parse a file, or the text of -g; any text gives a tree or an error."""
    builder = _BUILDER
    builder.begin()
    error: ConfigError | None = None
    try:
        _LARK.parse(source)
    except ConfigError as found:
        error = found
    except UnexpectedToken as found:
        error = _unexpected(found, source)
    return Parsed(builder.statements, error)


def _unexpected(found: UnexpectedToken, source: Source) -> ConfigError:
    """nginx's words for a token that Lark does not accept."""
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
    """Makes the tree while Lark parses.

    Called for each terminal that Lark shifts, not for each rule that it reduces,
    which it does when the next token has come: that may be the wrong one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Forget the tree before; another file comes."""
        self.statements: list[Directive] = []
        self._block = self.statements
        self._words: list[Word] = []
        self._around: list[tuple[list[Directive], Directive]] = []

    def WORD(self, word: Word) -> None:  # noqa: N802 # the grammar's name
        """A word of the statement that comes."""
        self._words.append(word)

    DQUOTED = SQUOTED = WORD

    def END(self, end: Word) -> None:  # noqa: N802 # the grammar's name
        """The statement is complete."""
        self._block.append(Directive(self._words, end.offset))
        self._words = []

    def OPEN(self, brace: Word) -> None:  # noqa: N802 # the grammar's name
        """The statement has a block; the next ones are in it."""
        if brace.source.name == COMMAND_LINE:
            raise ConfigError("block directives are not supported in -g option", brace)
        inside: list[Directive] = []
        opened = Directive(self._words, brace.offset, inside)
        self._words = []
        self._block.append(opened)
        self._around.append((self._block, opened))
        self._block = inside

    def CLOSE(self, brace: Word) -> None:  # noqa: N802 # the grammar's name
        """The block ends."""
        self._block, opened = self._around.pop()
        opened.closed = brace.offset

    def LUA(self, lua: Word) -> None:  # noqa: N802 # the grammar's name
        """The statement has a block of Lua."""
        made = Directive(self._words, lua.offset, [], lua.value[1:-1])
        made.closed = lua.offset + len(lua.value) - 1
        self._block.append(made)
        self._words = []

    def words(self, _: object) -> None:
        """Nothing is to be done for rules."""

    start = simple = block = lua = words


_BUFFER = 4096
"""The size of nginx's buffer, which a word and what ends it must fit into."""
_WORTH_A_LOOK = _BUFFER // 4 - 2
"""Characters of fewer octets than the limit, whatever they are."""
_ESCAPE = re.compile(r"""\\(["'\\trn])""")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_LONG_COMMENT = re.compile(rf"#[^\n]{{{_WORTH_A_LOOK},}}")
_COMMENT = re.compile(r"#[^\n]*+")
_CLOSED = {
    mark: re.compile(rf"{mark}(?:[^{mark}\\]++|\\[\s\S])*+{mark}") for mark in "\"'"
}
_BLANKS = " \t\r\n"

_LUA_PHASES = """
    init init_worker exit_worker set rewrite server_rewrite access content header_filter
    body_filter log balancer preread proxy_ssl_certificate proxy_ssl_verify
    ssl_client_hello ssl_certificate ssl_session_fetch ssl_session_store
"""
LUA_BLOCKS = frozenset(f"{phase}_by_lua_block" for phase in _LUA_PHASES.split())
"""The directives of OpenResty whose blocks hold Lua."""
_LUA = re.compile(
    r"--\[(=*)\[[\s\S]*?\]\1\]|--[^\n]*"
    r"|\[(=*)\[[\s\S]*?\]\2\]"
    r"""|"(?:[^"\\\n]|\\[\s\S])*"|'(?:[^'\\\n]|\\[\s\S])*'"""
    r"|[{}]"
)


class _Lexer(Lexer):
    """Finds the words of a file, with one expression made of the grammar's terminals."""

    def __init__(self, lexer_conf: LexerConf) -> None:
        patterns = {
            terminal.name: terminal.pattern.to_regexp()
            for terminal in lexer_conf.terminals
        }
        del patterns["LUA"]
        ignored = "|".join(patterns.pop(name) for name in lexer_conf.ignore)
        tokens = "|".join(f"(?P<{name}>{each})" for name, each in patterns.items())
        self._token = re.compile(f"(?:{ignored})*+(?:{tokens}|(?P<EOF>\\Z))")

    def lex(self, source: Source) -> Iterator[Word]:  # type: ignore[override] # one of Lark's interfaces
        """The tokens of a file.

        Raises:
          ConfigError: a word is too long, or a quoted one does not end as it must.
        """
        text = source.text
        match = self._token.match
        limited = source.name != COMMAND_LINE
        long_comments = limited and _LONG_COMMENT.search(text) is not None
        lua = "_by_lua_block" in text
        first: Word | None = None
        at = 0
        while True:
            found = match(text, at)
            if found is None:
                _fail(source, at, limited=limited)
            kind = found.lastgroup
            assert kind is not None
            start = found.start(kind)
            if long_comments:
                _check_comments(source, at, start)
            at = found.end()
            value = found[kind]
            if len(value) > _WORTH_A_LOOK and limited:
                _check_length(source, start, at)
            if kind == "DQUOTED" or kind == "SQUOTED":
                value = value[1:-1]
            elif kind == "EOF":
                return
            if "\\" in value:
                value = _ESCAPE.sub(_unescape, value)
            word = Word(value, source, start, kind)
            if lua:
                if kind == "OPEN" and first is not None and first.value in LUA_BLOCKS:
                    at = _end_of_lua(source, at)
                    word = Word(text[start:at], source, start, "LUA")
                    kind = "LUA"
                if kind in ("END", "OPEN", "CLOSE", "LUA"):
                    first = None
                elif first is None:
                    first = word
            yield word


def _unescape(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[1], found[1])


def _fail(source: Source, at: int, *, limited: bool) -> NoReturn:
    """Say why there is no token: a quoted word that does not end well, or a backslash."""
    text = source.text
    skipped = re.compile(r"(?:#[^\n]*+|[ \t\r\n]++)*+").match(text, at)
    assert skipped is not None
    if limited:
        _check_comments(source, at, skipped.end())
    at = skipped.end()
    closed = _CLOSED[text[at]].match(text, at) if text[at] in _CLOSED else None
    end = closed.end() if closed else len(text)
    if limited:
        _check_length(source, at, end, closed=closed is not None)
    if closed is None:
        message = (
            'unexpected end of file, expecting ";" or "}"'
            if limited
            else 'unexpected end of parameter, expecting ";"'
        )
        remedy = None
        if text[at] in _CLOSED:
            line = source.line(at)
            remedy = f"the quoted word that begins in line {line} does not end"
        raise ConfigError(message, source.position(len(text)), remedy)
    wrong = decode(encode(text[end])[:1])
    raise ConfigError(
        f'unexpected "{wrong}"',
        source.position(end),
        'after a closing quote there must be a blank, ";" or "{"',
    )


def _check_comments(source: Source, start: int, end: int) -> None:
    """nginx reads a comment into its buffer, too."""
    for comment in _COMMENT.finditer(source.text, start, end):
        if len(encode(comment[0])) >= _BUFFER and _is_more(source, comment.start()):
            raise _too_long(source, comment.start(), comment.start())


def _check_length(source: Source, start: int, end: int, *, closed: bool = True) -> None:
    """Whether a word, with what ends it, fits into nginx's buffer.

    The buffer holds a word without its first quote, but with its last, and the
    byte behind it; if that is a blank, reading on needs room as well.
    """
    text = source.text
    quoted = text[start] in _CLOSED
    begin = start + 1 if quoted else start
    inside = len(encode(text[begin : end - 1 if quoted and closed else end]))
    if quoted and inside >= _BUFFER and _is_more(source, begin):
        raise ConfigError(
            f'too long parameter, probably missing terminating "{text[start]}" character',
            source.position(start),
        )
    size = inside + 1 if quoted and closed else inside
    blank = text[end : end + 1] != "" and text[end] in _BLANKS
    if size + blank >= _BUFFER and _is_more(source, begin):
        raise _too_long(source, start, begin)


def _is_more(source: Source, start: int) -> bool:
    """Whether the file goes on after the buffer that begins at `start` is full."""
    return len(encode(source.text[start : start + _BUFFER + 1])) > _BUFFER


def _too_long(source: Source, start: int, shown: int) -> ConfigError:
    beginning = decode(encode(source.text[shown : shown + 10])[:10])
    return ConfigError(
        f'too long parameter "{beginning}..." started', source.position(start)
    )


def _end_of_lua(source: Source, at: int) -> int:
    """The offset after the ``}`` that ends the Lua block which begins at `at`."""
    depth = 1
    for found in _LUA.finditer(source.text, at):
        if found[0] == "{":
            depth += 1
        elif found[0] == "}":
            depth -= 1
            if not depth:
                return found.end()
    raise ConfigError(
        'unexpected end of file, expecting "}"', source.position(len(source.text))
    )


_BUILDER = _Builder()
_LARK = Lark(
    resources.files("mailproxy").joinpath("grammar/nginx.lark").read_text("utf-8"),
    parser="lalr",
    lexer=_Lexer,
    transformer=_BUILDER,
    keep_all_tokens=True,
    maybe_placeholders=False,
)

_BARE = re.compile(r"[A-Za-z0-9_.:/*@%+,=~^|<>?!&()-]+")


def format_tree(statements: list[Directive], indent: str = "") -> str:
    """The text of a tree; parsing it gives the same tree.

    Args:
      statements: what to write.
      indent: goes before each line.
    """
    lines = []
    for statement in statements:
        head = indent + " ".join(map(_format_word, statement.words))
        if statement.raw is not None:
            lines.append(f"{head} {{{statement.raw}}}\n")
        elif statement.block is not None:
            inside = format_tree(statement.block, indent + "    ")
            lines.append(f"{head} {{\n{inside}{indent}}}\n")
        else:
            lines.append(f"{head};\n")
    return "".join(lines)


def _format_word(word: Word) -> str:
    if _BARE.fullmatch(word.value):
        return word.value
    return '"' + word.value.replace("\\", "\\\\").replace('"', '\\"') + '"'
