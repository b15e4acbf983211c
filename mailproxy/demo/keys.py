"""The keys that the demo obeys while it runs."""

import os
import stat
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import trio

INPUT = 0
"""The descriptor of standard input."""


def are_there() -> bool:
    """Whether keys can be read: from a terminal, not in the background, or from a pipe."""
    try:
        return os.tcgetpgrp(INPUT) == os.getpgrp()
    except OSError:  # it is no terminal, or closed
        pass
    try:
        return stat.S_ISFIFO(os.fstat(INPUT).st_mode)
    except OSError:
        return False


@contextmanager
def one_by_one() -> Iterator[None]:
    """Have the terminal pass on each key at once, and not show it."""
    if not os.isatty(INPUT):
        yield
        return
    before = termios.tcgetattr(INPUT)
    tty.setcbreak(INPUT, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(INPUT, termios.TCSADRAIN, before)


async def pressed() -> AsyncGenerator[str, None]:
    """The keys that are pressed, one after the other, until there are no more."""
    with one_by_one():
        while True:
            await trio.lowlevel.wait_readable(INPUT)
            key = os.read(INPUT, 1)
            if not key:
                return
            yield key.decode("latin-1")
