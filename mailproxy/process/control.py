"""`-s`: send the running master a signal, by the number in its pid file."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from mailproxy.process import pidfile
from mailproxy.process.pidfile import PidError

if TYPE_CHECKING:
    from mailproxy.log import Logger

SIGNALS = {
    "stop": signal.SIGTERM,
    "quit": signal.SIGQUIT,
    "reopen": signal.SIGUSR1,
    "reload": signal.SIGHUP,
}
"""The signals by the orders of `-s`."""


def send(order: str, pid_path: str | None, log: Logger) -> int:
    """Send the signal for `order`, without waiting for its effect.

    Args:
      pid_path: as the configuration names it; None if it wants no pid file.
      log: the start-up log.

    Returns:
      The exit code of the program.
    """
    log.notice("signal process started")
    if pid_path is None:
        log.error("no PID file configured")
        return 1
    try:
        pid = pidfile.read(pid_path)
    except PidError as failure:
        log.error(str(failure), error=failure.error)
        return 1
    number = SIGNALS[order]
    try:
        os.kill(pid, number)
    except OSError as error:
        log.alert(f"kill({pid}, {number:d}) failed", error=error)
        return 1
    return 0
