"""The lines of an error log that belong to one script."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.differential.script import Step
from tests.differential.signs import Signs

_ENTRY = re.compile(
    rb"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(\w+)\] \d+#\d+: (?:\*(\d+) )?(.*)", re.DOTALL
)
_WHERE = re.compile(
    rb"(?:connected to|, server:) (\S+?)(?:, (?:login|upstream): .*)?$", re.DOTALL
)

_MORE = re.compile(
    r"L\d*: \[\w+\] (?:client|upstream|auth http server \S+) closed connection"
)

Entry = tuple[bytes, bytes, bytes]
"""Level, number of the connection, message."""


class Log:
    """An error log that is being written; read once, whoever asks."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0
        self._entries: dict[bytes, list[Entry]] = {}

    def entries(self, listen: str) -> list[Entry]:
        """What has been said of the sessions of a listener."""
        with self._file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for text in re.split(rb"\n(?=\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[|\Z)", data):
            entry = _ENTRY.fullmatch(text)
            where = entry and _WHERE.search(entry[3])
            if entry and where:
                self._entries.setdefault(where[1], []).append(
                    (entry[1], entry[2], entry[3])
                )
        return self._entries.setdefault(listen.encode(), [])


def steps(entries: Sequence[Entry], listen: str, signs: Signs) -> list[Step]:
    """Entries of a log as steps; the label is the number of the session.

    The line that every session begins with is left out, if it is as it has to be.
    `, …` stands for the client and server of most lines.
    """
    found = []
    sessions: list[bytes] = []
    first = re.compile(
        rb"client (?:127\.0\.0\.1:\d+|\[::1\]:\d+|unix:) connected to "
        + re.escape(listen.encode())
    )
    usual = signs.text(f", client: 127.0.0.1, server: {listen}\r\n".encode())
    for level, connection, message in entries:
        if connection not in sessions:
            sessions.append(connection)
            if level == b"info" and first.fullmatch(message):
                continue
        line = signs.text(message + b"\r\n").replace(usual, ", …")
        found.append(
            Step("L", f"[{level.decode()}] {line}", sessions.index(connection) + 1)
        )
    return found


def wanted(script: Sequence[Step]) -> list[str]:
    """The lines a script expects, as text."""
    return [str(replace(step, proxy="")) for step in script if step.kind == "L"]


def without_more(lines: Sequence[str], expected: Sequence[str]) -> list[str]:
    """Lines of mailproxy, but for those nginx does not have and the script does not ask for.

    nginx says nothing of a peer that closes too early.
    """
    return [line for line in lines if line in expected or not _MORE.match(line)]
