"""Candidates: the backends that a session may connect to."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.auth.verdict import Route
    from mailproxy.conf.addresses import SocketAddress


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that a session may connect to.

    Attributes:
      family, address: its socket address.
      name: the address as the auth source wrote it, for the log.
    """

    family: int
    address: SocketAddress
    name: str


def candidates(route: Route) -> tuple[Candidate, ...]:
    """The backends of a route, in the order in which to try them; at present, one."""
    family = socket.AF_INET6 if ":" in route.server else socket.AF_INET
    return (Candidate(family, (route.server, route.port), route.name),)
