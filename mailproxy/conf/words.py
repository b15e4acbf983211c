"""What the grammar cannot express about words: limits, escapes, Lua.

nginx reads through a buffer of 4096 bytes. A word and the byte that ends it must fit
into it, and so must a comment; longer ones are errors.
"""

from __future__ import annotations

import re
from typing import NoReturn

from mailproxy.conf.tree import ConfigError, SourceText, decode, encode

_BUFFER = 4096
"""Bytes of nginx's buffer, which a word and the byte that ends it must fit into."""
WORTH_A_LOOK = _BUFFER // 4 - 2
"""This many characters are within the limit whatever they are (UTF-8 has 4 octets)."""
_ESCAPE = re.compile(r"""\\(["'\\trn])""")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_LONG_COMMENT = re.compile(rf"#[^\n]{{{WORTH_A_LOOK},}}")
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


def unescape(raw: str) -> str:
    """Replace the six escapes that nginx knows; others stay as they are."""
    return _ESCAPE.sub(_unescaped, raw) if "\\" in raw else raw


def _unescaped(found: re.Match[str]) -> str:
    return _ESCAPES.get(found[1], found[1])


def has_long_comments(source: SourceText) -> bool:
    """Whether some comment may be too long, so that each must be checked."""
    return _LONG_COMMENT.search(source.text) is not None


def refuse(source: SourceText, at: int, *, limited: bool) -> NoReturn:
    """Raise the error for a place without a token, such as a badly ended quoted word."""
    text = source.text
    skipped = re.compile(r"(?:#[^\n]*+|[ \t\r\n]++)*+").match(text, at)
    assert skipped is not None
    if limited:
        check_comments(source, at, skipped.end())
    at = skipped.end()
    closed = _CLOSED[text[at]].match(text, at) if text[at] in _CLOSED else None
    end = closed.end() if closed else len(text)
    if limited:
        check_length(source, at, end, closed=closed is not None)
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


def check_comments(source: SourceText, start: int, end: int) -> None:
    """Refuse a comment that does not fit into nginx's buffer."""
    for comment in _COMMENT.finditer(source.text, start, end):
        if len(encode(comment[0])) >= _BUFFER and _is_more(source, comment.start()):
            raise _too_long(source, comment.start(), comment.start())


def check_length(
    source: SourceText, start: int, end: int, *, closed: bool = True
) -> None:
    """Refuse a word that does not fit, with the byte that ends it, into nginx's buffer.

    The buffer holds the word without its opening quote, but with its closing one,
    and the byte after it; if that is a blank, nginx needs room to read on.
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


def _is_more(source: SourceText, start: int) -> bool:
    """Whether the file has more than fits into a buffer that begins at `start`."""
    return len(encode(source.text[start : start + _BUFFER + 1])) > _BUFFER


def _too_long(source: SourceText, start: int, shown: int) -> ConfigError:
    beginning = decode(encode(source.text[shown : shown + 10])[:10])
    return ConfigError(
        f'too long parameter "{beginning}..." started', source.position(start)
    )


def end_of_lua(source: SourceText, at: int) -> int:
    """Find the offset after the ``}`` that ends the Lua block at `at`.

    Raises:
      ConfigError: the file ends before the block does.
    """
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
