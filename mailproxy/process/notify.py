"""Notifications to systemd (sd_notify(3)), and the sockets that it hands over.

The environment describes both; the variables are removed once read, because a program
that we start must not take them for its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_FIRST = 3
"""The first descriptor that systemd hands over, SD_LISTEN_FDS_START."""


class Notify:
    """The line to the service manager; without a manager, nothing is sent.

    Attributes:
      watchdog: seconds within which the manager expects a sign of life; None: it
        expects none.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self._address = environment.pop("NOTIFY_SOCKET", "")
        interval = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog = int(interval) / 1e6 if interval.isdecimal() and meant else None
        if self._address:
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
            )

    @property
    def variables(self) -> dict[str, str]:
        """The environment that another process needs in order to notify in our place."""
        if not self._address:
            return {}
        variables = {"NOTIFY_SOCKET": self._address}
        if self.watchdog:
            variables["WATCHDOG_USEC"] = str(round(self.watchdog * 1e6))
        return variables

    def ready(self, status: str) -> None:
        """Tell that the start or reload is complete; `systemctl status` shows `status`."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        """Tell that a reload begins, as `Type=notify-reload` requires."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}\nSTATUS=Reloading")

    def stopping(self) -> None:
        """Tell that we are shutting down."""
        self._send("STOPPING=1\nSTATUS=Shutting down")

    def alive(self) -> None:
        """Feed the watchdog, if there is one."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the line, in a process that is not the master."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with contextlib.suppress(OSError):  # systemd may have stopped listening
            self._socket.sendto(message.encode(), address)


def activated(environment: MutableMapping[str, str]) -> list[int]:
    """The listening sockets that systemd opened for us, sd_listen_fds(3)."""
    meant = environment.pop("LISTEN_PID", "") == str(os.getpid())
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not meant or not count.isdecimal():
        return []
    return list(range(_FIRST, _FIRST + int(count)))
