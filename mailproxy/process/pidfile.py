"""The pid file, by which init scripts, logrotate and `-s` find the master.

It is written after the master has gone into the background and before the command that
started it returns, and removed when the master ends.
"""

from __future__ import annotations

import os
import re

from mailproxy import outside
from mailproxy.frozen import Frozen
from mailproxy.log import open_for_appending, unknown_workers

OLDBIN = ".oldbin"
"""The suffix of the file's name while a new binary is being tried."""

_MAX_READ = 22
"""Bytes that nginx reads of a pid file."""


class PidError(Frozen, Exception):
    """There is no usable process id; the text is nginx's message.

    Attributes:
      error: the system error behind it, if any.
    """

    def __init__(self, message: str, error: OSError | None = None) -> None:
        super().__init__(message)
        self.error = error


def write(path: str, pid: int) -> None:
    """Write `pid` to the file, creating it if needed.

    Raises:
      PidError: it cannot be opened or written.
    """
    what = "open()"
    try:
        # Other users may have put a link there, as for a log.
        fd = open_for_appending(path, unknown_workers()).fd
        try:
            os.truncate(fd, 0)
            what = "write()"
            os.write(fd, b"%d\n" % pid)
        finally:
            os.close(fd)
    except OSError as error:
        raise PidError(f'{what} "{path}" failed', error) from error


def read(path: str) -> int:
    """Read the process id in the file.

    Raises:
      PidError: there is no file, or no valid number in it.
    """
    try:
        text = outside.begin(path, _MAX_READ)
    except outside.FileError as error:
        raise PidError(f'{error.call}() "{path}" failed', error) from error
    digits = text.rstrip(b"\r\n")
    # To kill(2), 0 is "my own process group", which no pid file can mean.
    if not re.fullmatch(rb"[0-9]+", digits) or not 0 < int(digits) < 1 << 31:
        shown = digits.decode("utf-8", "surrogateescape")
        raise PidError(f'invalid PID number "{shown}" in "{path}"')
    return int(digits)


def test(path: str) -> None:
    """Check that `write` would succeed (`-t`), without leaving a file behind.

    Raises:
      PidError: it would fail.
    """
    there = os.path.lexists(path)
    try:
        os.close(open_for_appending(path, unknown_workers()).fd)
        if not there:
            os.unlink(path)
    except OSError as error:
        raise PidError(f'open() "{path}" failed', error) from error


def remove(path: str) -> None:
    """Remove the file.

    Raises:
      PidError: it cannot be removed, because it is missing, for example.
    """
    try:
        os.unlink(path)
    except OSError as error:
        raise PidError(f'unlink() "{path}" failed', error) from error


def same(path: str, other: str) -> bool:
    """Whether two names lead to the same file (by a link, for example)."""
    return path == other or os.path.realpath(path) == os.path.realpath(other)
