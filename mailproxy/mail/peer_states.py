"""The states of a peer, in the words and numbers of Angie's API."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

Health = Literal["healthy", "unhealthy", "checking"]
"""What health checks say; "checking": nothing yet, and that is needed."""


class PeerState(IntEnum):
    """What a peer is."""

    UP = 1
    DOWN = 2
    UNAVAILABLE = 3
    """It has failed too often, and not long ago."""
    RECOVERING = 4
    """Its weight grows (`slow_start`)."""
    UNHEALTHY = 5
    """A health check has failed."""
    CHECKING = 6
    """The first health check is not done."""
    DRAINING = 7
    """It keeps its sessions and gets no new ones."""
    BUSY = 8
    """It has as many sessions as it may have (`max_conns`)."""


def imposed(*, down: bool, draining: bool, health: Health) -> PeerState | None:
    """The state that others than sessions have put a peer in; None: sessions decide."""
    if down:
        return PeerState.DOWN
    if draining:
        return PeerState.DRAINING
    if health == "unhealthy":
        return PeerState.UNHEALTHY
    return PeerState.CHECKING if health == "checking" else None
