"""Going into the background, while the command that started us waits for the outcome."""

from __future__ import annotations

import os
import select
from typing import NoReturn


class Foreground:
    """The process that the operator started: it waits, and exits with a given code.

    nginx's returns 0 at once, although the start may still fail. Here, as in Angie and
    freenginx, it returns once the pid file is there and workers run.
    """

    def __init__(self, line: int) -> None:
        self._line = line

    def release(self, code: int) -> None:
        """Make it exit with `code`; a second call does nothing."""
        if self._line >= 0:
            os.write(self._line, bytes([code]))
            self.close()

    def close(self) -> None:
        """Leave its release to our other processes."""
        if self._line >= 0:
            os.close(self._line)
            self._line = -1


def daemonise() -> Foreground:
    """Fork, and go on as a child without terminal, in a session of its own.

    Descriptor 2 stays what it was, the umask becomes 0, the directory stays.

    Raises:
      OSError: fork() failed.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writable)
        _wait_and_exit(pid, readable)
    os.close(readable)
    os.setsid()
    os.umask(0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if null > 1:
        os.close(null)
    return Foreground(writable)


def _wait_and_exit(pid: int, line: int) -> NoReturn:
    # Workers have the other end of the line, too: its end-of-file would not tell
    # that the master is gone.
    ready, _, _ = select.select([line, os.pidfd_open(pid)], [], [])
    if line in ready and (code := os.read(line, 1)):
        os._exit(code[0])
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
