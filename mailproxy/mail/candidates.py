"""Candidates: the servers that a session may be passed on to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.conf.addresses import SocketAddress
    from mailproxy.mail.auth.source import Granted


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


def candidates(granted: Granted) -> tuple[Candidate, ...]:
    """The servers that a client may be brought to, the first to try first; one today."""
    return (Candidate(granted.family, granted.address, granted.name),)
