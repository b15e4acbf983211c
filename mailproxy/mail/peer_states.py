"""The states of a peer, in the words and numbers of Angie's API."""

from __future__ import annotations

from enum import IntEnum


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
