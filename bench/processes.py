"""CPU time and memory of a process and all its descendants, from /proc (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def missing() -> str:
    """What this machine does not tell, in a sentence; empty if it tells all."""
    for name in ("schedstat", "smaps_rollup", f"task/{os.getpid()}/children"):
        if not Path("/proc/self", name).exists():
            return f"there is no /proc/self/{name} here; Linux has it"
    return ""


def tree(root: int) -> list[int]:
    """`root` and its living descendants; empty if it has ended."""
    try:
        threads = os.listdir(f"/proc/{root}/task")
    except OSError:
        return []
    found = [root]
    for thread in threads:
        with suppress(OSError):
            children = Path(f"/proc/{root}/task/{thread}/children").read_text().split()
            for child in children:
                found += tree(int(child))
    return found


def cpu_seconds(root: int) -> float:
    """CPU time that a tree has used, the kernel's work for it included.

    Living threads are counted in nanoseconds, processes that have ended and were waited
    for in ticks.
    """
    total = 0.0
    for pid in tree(root):
        with suppress(OSError):
            for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                total += int(schedstat.read_text().split()[0]) / 1e9
            # proc_pid_stat(5): behind the name, which may contain anything but the
            # last ")", cutime and cstime are the 14th and the 15th field.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) / _TICKS
    return total


def memory(root: int) -> int:
    """The proportional set size of a tree, in bytes: shared pages are counted once."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


@contextmanager
def one_cpu(root: int) -> Iterator[None]:
    """Have a tree, as it is now, run on a single CPU for the length of the block."""
    allowed = os.sched_getaffinity(root)
    _pin(root, {min(allowed)})
    try:
        yield
    finally:
        _pin(root, allowed)


def _pin(root: int, cpus: set[int]) -> None:
    for pid in tree(root):
        with suppress(OSError):
            os.sched_setaffinity(pid, cpus)
