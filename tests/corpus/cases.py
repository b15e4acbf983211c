"""Read and rewrite the case files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = frozenset(
    {"why", "each", "run", "g", "with", "setup", "leaves", "needs", "config", "also"}
)
_HEADER = re.compile(r"(\w+):(?: (.*))?$")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration and the answer that is expected."""

    name: str
    source: Path
    line: int
    """The line of the `===` in `source`, from 1."""
    value: str | None = None
    """The value that `each` gave to this case, None without `each`."""
    number: int = 0
    """Which of the values of `each` this is, from 0."""
    headers: dict[str, str] = field(default_factory=dict)
    config: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    exit: int | None = None
    """None: not generated yet."""
    stderr: tuple[str, ...] = ()
    stdout: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        number = "" if self.value is None else f"-{self.number}"
        return f"{self.source.stem}:{self.line}{number}-{words}"

    @property
    def why(self) -> str:
        return self.headers.get("why", "")

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.headers.get("run", "-t"))

    @property
    def globals(self) -> str:
        """The text of -g; without a pid file in it every case would share one."""
        return self.headers.get("g", "pid mail.pid;")


@dataclass
class Block:
    """The lines of one case in its file, values of `each` not yet filled in."""

    name: str
    line: int
    head: list[str] = field(default_factory=list)
    """Everything up to the expectation: headers, configuration, files."""
    answer: list[str] = field(default_factory=list)
    """The lines from `--- exit` on."""


def blocks(text: str) -> tuple[list[str], list[Block]]:
    """Split a case file into the lines before the first case and the cases."""
    preface: list[str] = []
    found: list[Block] = []
    current = preface
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith("=== "):
            found.append(Block(line[4:].strip(), number))
            current = found[-1].head
        elif line.startswith("--- exit"):
            current = found[-1].answer
            current.append(line)
        else:
            current.append(line)
    return preface, found


def expand(block: Block, source: Path) -> Iterator[Case]:
    """The cases of a block: one, or one for each value."""
    headers = {}
    rest = iter(block.head)
    body = []
    for line in rest:
        match = _HEADER.match(line)
        if not match or match[1] not in HEADERS:
            body = [line, *rest]
            break
        headers[match[1]] = match[2] or ""
    sections = _sections(body)
    case = Case(
        name=block.name, source=source, line=block.line, headers=headers, config=b""
    )
    values = headers["each"].split(" | ") if "each" in headers else [None]
    for number, value in enumerate(values):
        yield _fill(case, sections, block.answer, value, number)


def _fill(
    case: Case,
    sections: dict[str, str],
    answer: list[str],
    value: str | None,
    number: int,
) -> Case:
    def filled(text: str) -> str:
        if value is None:
            return text
        return text.replace("@@", value).replace("@1@", first_word(value))

    headers = {name: filled(text) for name, text in case.headers.items()}
    config = filled(sections[""]).encode()
    if "config" in headers:
        config = eval(headers["config"], {"__builtins__": {}})
    files = {filled(n): filled(t).encode() for n, t in sections.items() if n}
    exit_code, stderr, stdout = _answer([filled(line) for line in answer])
    return replace(
        case,
        headers=headers,
        value=value,
        number=number,
        config=config,
        files=files,
        exit=exit_code,
        stderr=stderr,
        stdout=stdout,
    )


def _sections(lines: list[str]) -> dict[str, str]:
    """The texts of the files by name; the main file has none."""
    texts: dict[str, list[str]] = {"": []}
    current = texts[""]
    for line in lines:
        if line.startswith("--- file "):
            current = texts.setdefault(line[9:].strip(), [])
        else:
            current.append(line)
    return {
        name: "".join(line + "\n" for line in stripped(text))
        for name, text in texts.items()
    }


def stripped(lines: list[str]) -> list[str]:
    """The lines without the empty ones at the end."""
    end = len(lines)
    while end and not lines[end - 1]:
        end -= 1
    return lines[:end]


def _answer(lines: list[str]) -> tuple[int | None, tuple[str, ...], tuple[str, ...]]:
    lines = stripped(lines)
    if not lines:
        return None, (), ()
    code = int(lines[0].removeprefix("--- exit"))
    if "--- stdout" not in lines:
        return code, tuple(lines[1:]), ()
    middle = lines.index("--- stdout")
    end = lines.index("--- end")
    return code, tuple(lines[1:middle]), tuple(lines[middle + 1 : end])


def first_word(value: str) -> str:
    """What a message about a whole statement cites of it."""
    match = re.match(r"[^\s;{]+", value)
    return match[0] if match else value


def load(directory: Path = HERE) -> list[Case]:
    """All cases of the corpus, in the order of their files."""
    return [
        case
        for source in sorted(directory.glob("*.txt"))
        for block in blocks(source.read_text())[1]
        for case in expand(block, source)
    ]
