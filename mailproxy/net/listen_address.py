"""The address and the options of a listening socket that is to be opened."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.addresses import SocketAddress

BACKLOG = 511
"""Connections that may wait to be accepted; nginx's default on Linux."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keepalive (tcp(7)); None: the system's default."""

    on: bool
    idle: int | None = None
    """Seconds before the first probe."""
    interval: int | None = None
    """Seconds between probes."""
    count: int | None = None
    """Unanswered probes that end the connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenAddress:
    """One address to listen on."""

    address: str
    """As in logs: "127.0.0.1:143", "[::1]:143", "unix:/path"."""
    family: int
    sockaddr: SocketAddress
    wildcard: bool
    """Whether it accepts connections to any address of the machine."""
    bind: bool = False
    """Whether it gets its own socket even if there is a wildcard with the same port."""
    backlog: int = BACKLOG
    rcvbuf: int | None = None
    """Octets of the receive buffer; None: the system's default."""
    sndbuf: int | None = None
    """Octets of the send buffer; None: the system's default."""
    ipv6only: bool | None = None
    """Whether an IPv6 wildcard accepts IPv6 only; None: it does, as in nginx."""
    so_keepalive: Keepalive | None = None
    multipath: bool = False
    """Whether to use Multipath TCP where the system has it."""
