"""The lines of an error log that belong to one script."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.differential.script import Step
from tests.differential.signs import Signs

_ENTRY = re.compile(
    rb"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(\w+)\] \d+#\d+: \*(\d+) (.*?)"
    rb"(?=\n\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[|\n*\Z)",
    re.MULTILINE | re.DOTALL,
)


def read(file: Path, start: int, listen: str, signs: Signs) -> list[Step]:
    """What is said about the sessions of a listener after byte `start` of the log.

    The line that every session begins with is left out, if it is as it has to be.
    `, …` stands for the client and server of most lines; the label of a step is the
    number of the session.
    """
    steps = []
    sessions: list[bytes] = []
    address = re.escape(listen.encode())
    ours = re.compile(rb"server: %s(?:,|$)|connected to %s$" % (address, address))
    usual = signs.text(f", client: 127.0.0.1, server: {listen}\r\n".encode())
    with file.open("rb") as log:
        log.seek(start)
        text = log.read()
    for level, connection, message in _ENTRY.findall(text):
        if not ours.search(message):
            continue
        if connection not in sessions:
            sessions.append(connection)
            first = rb"client (127\.0\.0\.1:\d+|\[::1\]:\d+|unix:) connected to %s" % address
            if level == b"info" and re.fullmatch(first, message):
                continue
        line = signs.text(message + b"\r\n").replace(usual, ", …")
        steps.append(Step("L", f"[{level.decode()}] {line}", sessions.index(connection) + 1))
    return steps


def wanted(steps: Sequence[Step]) -> list[str]:
    """The log lines a script expects, as text."""
    return [str(replace(step, proxy="")) for step in steps if step.kind == "L"]
