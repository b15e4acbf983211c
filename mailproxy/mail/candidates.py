"""Candidates: the servers that a session may be passed on to."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.auth.verdict import Route
    from mailproxy.conf.addresses import SocketAddress


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that the client may be brought to.

    Attributes:
      family, address: where it is.
      name: the same for the log, as the auth source wrote it.
    """

    family: int
    address: SocketAddress
    name: str


def candidates(route: Route) -> tuple[Candidate, ...]:
    """The servers that a route leads to, the first to try first; one today."""
    family = socket.AF_INET6 if ":" in route.server else socket.AF_INET
    return (Candidate(family, (route.server, route.port), route.name),)
