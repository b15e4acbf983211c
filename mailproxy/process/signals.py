"""Signals: which are handled, who sent them, and waiting for them.

All of them stay blocked from start to end in each of our processes. No handler ever
runs: the master waits for the next signal in one place (`wait`), and a worker reads
them from a descriptor (`SignalDescriptor`). Both learn the sender of a signal, which
nginx's log lines show and a handler in Python would not know.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Collection
from dataclasses import dataclass
from signal import Signals

HANDLED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCHLD,
    signal.SIGIO,
    signal.SIGALRM,
)
"""SIGCHLD: a process ended. SIGIO: a worker sent the master a message. SIGALRM has no
effect, but nginx is not killed by it either."""

_INFO_SIZE = 128
"""Size of `struct signalfd_siginfo`, signalfd(2)."""


@dataclass(frozen=True, slots=True)
class Received:
    """One signal that arrived."""

    number: Signals
    sender: int = 0
    """The process that sent it; 0 if the kernel did."""

    def text(self, action: str = "") -> str:
        """The log line: ``signal 1 (SIGHUP) received from 7, reconfiguring``."""
        sender = f" from {self.sender}" if self.sender else ""
        action = f", {action}" if action else ""
        return f"signal {self.number:d} ({self.number.name}) received{sender}{action}"


def block() -> None:
    """Block the handled signals, so that they stay pending until they are waited for.

    SIGCHLD gets its default disposition: if we inherited "ignore", the ends of our
    children would be lost (wait(2)).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGSYS, signal.SIG_IGN)


def unblock() -> None:
    """Undo `block`, for a program that is about to be executed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def wait(
    timeout: float | None, signals: Collection[Signals] = HANDLED
) -> Received | None:
    """Wait for the next of `signals`; None after `timeout` seconds (None: no limit)."""
    if timeout is None:
        info = signal.sigwaitinfo(signals)
    else:
        found = signal.sigtimedwait(signals, max(timeout, 0))
        if found is None:
            return None
        info = found
    return Received(Signals(info.si_signo), info.si_pid)


class SignalDescriptor:
    """A descriptor from which blocked signals are read once it is readable (signalfd(2)).

    Python has no signalfd, hence the call to libc.
    """

    def __init__(self) -> None:
        """Raises: OSError, on a system without signalfd, such as macOS or FreeBSD."""
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "signalfd"):
            raise OSError(
                errno.ENOSYS, "workers need signalfd(2), which only Linux has"
            )
        words = (ctypes.c_ulong * 16)()  # sigset_t: 1024 bits
        bits = 8 * ctypes.sizeof(ctypes.c_ulong)
        for number in HANDLED:
            words[(number - 1) // bits] |= 1 << (number - 1) % bits
        self._fd: int = libc.signalfd(-1, words, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[Received]:
        """Read the signals that have arrived, possibly none."""
        try:
            data = os.read(self._fd, 16 * _INFO_SIZE)
        except BlockingIOError:
            return []
        return [
            Received(Signals(number), sender)
            for number, sender in (
                # ssi_signo is the first field, ssi_pid the fourth
                struct.unpack_from("I8xI", data, offset)
                for offset in range(0, len(data), _INFO_SIZE)
            )
        ]

    def close(self) -> None:
        os.close(self._fd)
