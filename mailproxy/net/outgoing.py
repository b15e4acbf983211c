"""Options of the connections that a session makes."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass

from mailproxy.conf.addresses import Address
from mailproxy.frozen import Frozen

_IP_BIND_ADDRESS_NO_PORT = 24
"""ip(7): leave the choice of the port to connect(), so that many connections to different
servers can share one. Python has no name for it."""


class BindError(Frozen, OSError):
    """bind() failed, before a connection could begin.

    Attributes:
      text: the address.
    """

    def __init__(self, text: str, number: int, strerror: str) -> None:
        super().__init__(number, strerror)
        self.text = text


@dataclass(frozen=True, slots=True)
class Outgoing:
    """From where to connect, and how."""

    bind: Address | None = None
    """The address to connect from; None: the system chooses."""
    keepalive: bool = False
    """Whether the kernel probes for a silent peer."""

    def prepare(self, connection: socket.SocketType, family: int) -> None:
        """Set the options of a socket that is about to connect.

        A unix socket has no address of its own to choose.

        Raises:
          BindError: bind() failed.
        """
        if self.keepalive:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        address = self.bind
        if address is None or family == socket.AF_UNIX:
            return
        assert not isinstance(address.sockaddr, str), "it is no path"
        if address.family != family:
            raise _failed(address, errno.EAFNOSUPPORT)
        if address.sockaddr[1] == 0:
            connection.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            connection.bind(address.sockaddr)
        except OSError as error:
            raise _failed(address, error.errno or errno.EINVAL) from None


def _failed(address: Address, number: int) -> BindError:
    return BindError(address.text, number, os.strerror(number))
