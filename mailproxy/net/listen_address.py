"""What a listening socket is to be: its address and its options."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.addresses import SocketAddress

BACKLOG = 511
"""nginx's default on Linux: how many connections may wait to be accepted."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """TCP keepalive (tcp(7)); None leaves a value to the system."""

    on: bool
    idle: int | None = None
    """Seconds before the first probe."""
    interval: int | None = None
    """Seconds between probes."""
    count: int | None = None
    """Probes that may go unanswered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListenAddress:
    """One address to listen on."""

    address: str
    """For logs: "127.0.0.1:143", "[::1]:143", "unix:/path"."""
    family: int
    sockaddr: SocketAddress
    wildcard: bool
    """Whether it takes connections to any address of the machine."""
    bind: bool = False
    """It has a socket of its own, even beside a wildcard of the same port."""
    backlog: int = BACKLOG
    rcvbuf: int | None = None
    """Octets of the receive buffer; None: the system's default."""
    sndbuf: int | None = None
    """Octets of the send buffer; None: the system's default."""
    ipv6only: bool | None = None
    """Whether an IPv6 wildcard takes IPv6 only; None: as `ipv6only=on`, as in nginx."""
    so_keepalive: Keepalive | None = None
    multipath: bool = False
    """Multipath TCP, where the system has it."""
