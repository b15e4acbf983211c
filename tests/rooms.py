"""Runs tests, two rooms at a time: `python -m tests.rooms`, as `make test` does.

A room is a folder of tests, or all files that are in none ("files"). Each is a run of pytest
of its own, and what it prints is shown when it ends: the last line if all is well, and
else everything. pytest-xdist would do the same, but its workers have a thread, and tests
here fork and block signals, as a master without threads does.

    python -m tests.rooms                 all rooms
    python -m tests.rooms net mail        these
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

AT_ONCE = min(2, len(os.sched_getaffinity(0)))
LONGEST = ("process", "files", "security", "net", "differential", "mail")
"""Those that take longest begin first, so that none is left alone in the end."""
FILES = "files"

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Room:
    """A run of pytest.

    Attributes:
      name: of its folder, or "files".
      output: what it prints.
      began: when, in seconds.
    """

    name: str
    output: IO[str]
    began: float

    def show(self, status: int) -> None:
        """Print what is worth reading."""
        self.output.seek(0)
        text = self.output.read().rstrip()
        if status == 0:
            text = text.splitlines()[-1].strip("= ")
        took = time.monotonic() - self.began
        sys.stdout.write(f"[{self.name}, {took:.0f} s] {text}\n")
        sys.stdout.flush()


def rooms() -> list[str]:
    """The names of all rooms, in the order in which they should begin."""
    folders = {each.parent.name for each in HERE.glob("*/test_*.py")}
    order = {name: place for place, name in enumerate(LONGEST)}
    return sorted({*folders, FILES}, key=lambda name: (order.get(name, 99), name))


def start(name: str, output: IO[str]) -> int:
    """Start pytest for a room; returns its pid."""
    paths = sorted(map(str, HERE.glob("test_*.py")))
    if name != FILES:
        paths = [str(HERE / name)]
    color = "yes" if sys.stdout.isatty() else "no"
    command = [sys.executable, "-m", "pytest", "-q", f"--color={color}", *paths]
    to = [(os.POSIX_SPAWN_DUP2, output.fileno(), number) for number in (1, 2)]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=to)


def main(wanted: Sequence[str]) -> int:
    """Run rooms; returns 0 if all is well.

    Args:
      wanted: their names; none: all.
    """
    unknown = set(wanted) - set(rooms())
    if unknown:
        known = ", ".join(rooms())
        sys.stderr.write(
            f"no rooms of tests: {', '.join(unknown)}; there are {known}\n"
        )
        return 2
    left = [name for name in rooms() if not wanted or name in wanted]
    running: dict[int, Room] = {}
    worst = 0
    while left or running:
        try:
            while left and len(running) < AT_ONCE:
                name = left.pop(0)
                output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 # closed below
                room = Room(name, output, time.monotonic())
                running[start(name, output)] = room
            pid, status = os.wait()
        except KeyboardInterrupt:  # the terminal has told pytest, too
            left.clear()
            worst = 130
            continue
        room = running.pop(pid)
        room.show(status)
        room.output.close()
        worst = worst or (1 if status else 0)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
