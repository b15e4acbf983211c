"""The numbers of one peer of a group: how busy it is, in all workers."""

from __future__ import annotations

from mailproxy.stats.cells import CellKey, CellKind
from mailproxy.stats.mapping import Row

MAX_RESOLVED = 32
"""Peers of one group that may be found while running and have numbers of their own."""


def peer_keys(upstream: str, peer: str) -> tuple[CellKey, ...]:
    """What has to be in the mapping, so that workers share the numbers of a peer.

    Args:
      upstream: the name of the group.
      peer: its name in the group: the address, or for peers that are found while running
        `resolved_name`.
    """
    labels = upstream, peer
    return (
        CellKey(CellKind.GAUGE, "peer_conns", labels),
        CellKey(CellKind.COUNTER, "peer_selected", labels),
        CellKey(CellKind.COUNTER, "peer_fails", labels),
        CellKey(CellKind.BOARD, "peer_state", labels),
        CellKey(CellKind.BOARD, "peer_weight", labels),
    )


def resolved_name(number: int) -> str:
    """The name of a peer that is found while running: 0 up to `MAX_RESOLVED`."""
    return f"#{number}"


class PeerNumbers:
    """The numbers of one peer: those of this process are written, those of all read.

    Where the mapping does not have the peer, each process counts for itself.
    """

    __slots__ = ("_conns", "_fails", "_selected", "_state", "_weight")

    def __init__(self, row: Row, upstream: str, peer: str) -> None:
        """Args:
        row: that of this process.
        upstream, peer: see `peer_keys`.
        """
        self._conns, self._selected, self._fails, self._state, self._weight = map(
            row.cell, peer_keys(upstream, peer)
        )

    @property
    def conns(self) -> int:
        """Sessions that connect to it, log in there or are relayed; of all workers."""
        return self._conns.total

    @property
    def own_conns(self) -> int:
        """The same, of this process."""
        return self._conns.own

    def enter(self) -> None:
        """Count a session that was given this peer."""
        self._conns.add(1)
        self._selected.add(1)

    def leave(self) -> None:
        """Note that such a session has ended, or tries another peer."""
        self._conns.add(-1)

    def fail(self) -> None:
        """Count a failed try."""
        self._fails.add(1)

    @property
    def selected(self) -> int:
        """How often it was chosen, ever, by all workers."""
        return self._selected.total

    @property
    def fails(self) -> int:
        """How many tries have failed, ever, in all workers."""
        return self._fails.total

    @property
    def state(self) -> int:
        """Its state as the manager last knew it; 0 if it has never said."""
        return self._state.own

    @property
    def weight(self) -> int:
        """Its weight as it was set while running; 0: as configured."""
        return self._weight.own

    def publish(self, state: int, weight: int) -> None:
        """Put both on the board; only the manager does."""
        self._state.set(state)
        self._weight.set(weight)
