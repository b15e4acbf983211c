"""How a configuration error is shown to people, below nginx's line.

4 |     timout 3s;
  |     ^^^^^^ did you mean "timeout"?

If nginx's line names no place, or not the one that is wrong, the place comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mailproxy.conf.tree import ConfigError, SourceText

MAX_WIDTH = 100
"""Characters that are shown of a source line."""

_WORD = re.compile(
    r"""\"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|(?:[^ \t\r\n;{\\]|\\.)+|."""
)
_SECRET = re.compile(r"(data:-----BEGIN [A-Z ]*PRIVATE KEY-----).*")
"""A private key that is written out in a configuration."""
_RED, _CYAN, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[36m", "\x1b[1m", "\x1b[0m"


def headline(message: ConfigError, name: str, *, colours: bool = False) -> str:
    """Format nginx's line for an error or warning, without its line end.

    Args:
      message: the error or warning.
      name: the program's name.
      colours: colour the level, for a terminal.
    """
    level = f"[{message.level}]"
    if colours:
        level = f"{_RED if not message.is_warning else _BOLD}{level}{_PLAIN}"
    return f"{name}: {level} {message.text}"


def explanation(
    message: ConfigError, sources: Mapping[str, SourceText], *, colours: bool = False
) -> str:
    """Format the lines below it: the source line, a mark under the word, a remedy.

    Args:
      message: the error or warning.
      sources: the files that were read, by name.
      colours: colour the marks, for a terminal.
    """
    mark, plain = (_CYAN, _PLAIN) if colours else ("", "")
    remedy = printable(message.remedy or "")
    position = message.cause or message.position
    if position is None or position.file not in sources:
        return f"{mark}  = {remedy}{plain}\n" if remedy else ""
    place = ""
    if message.unnamed is not None:
        place = f"{mark}  in {printable(str(position))}{plain}\n"
    lines = sources[position.file].text.split("\n", position.line)
    if len(lines) < position.line:
        return place
    line = _SECRET.sub(r"\1...", lines[position.line - 1].removesuffix("\r"))
    at = min(position.column - 1, len(line))
    found = _WORD.match(line, at)
    end = found.end() if found else at + 1
    first = max(0, min(at - MAX_WIDTH // 2, len(line) - MAX_WIDTH))
    before = printable(line[first:at])
    word = printable(line[at:end])[: max(1, MAX_WIDTH - len(before))]
    after = printable(line[end : first + MAX_WIDTH])
    number = f"{position.line:5} | "
    margin = " " * (len(number) - 2) + "| "
    # Tabs are kept, so that they are as wide below as above.
    blank = re.sub(r"[^\t]", " ", before)
    marks = "^" * max(1, len(word))
    red = _RED if colours else ""
    return (
        f"{place}{mark}{number}{plain}{before}{word}{after}\n"
        f"{mark}{margin}{plain}{blank}{red}{marks}{plain}"
        f"{' ' + remedy if remedy else ''}\n"
    )


def printable(text: str) -> str:
    """Replace characters that could affect a terminal or be invisible, one by one."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text.translate(_CONTROLS))


_CONTROLS = dict.fromkeys(
    # After the control characters, those without width and those that change direction.
    (
        *(*range(9), *range(10, 32), *range(127, 160), 0xAD, 0xFEFF),
        *(*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)),
    ),
    "\ufffd",
)
