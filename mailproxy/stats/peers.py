"""The numbers of one peer of a group: how busy it is, in all workers."""

from __future__ import annotations

from typing import NamedTuple

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


def place_keys(upstream: str, peer: str) -> tuple[CellKey, ...]:
    """What has to be in the mapping, besides, for a peer that is found while running."""
    labels = upstream, peer
    return (
        CellKey(CellKind.BOARD, "peer_place", labels),
        CellKey(CellKind.BOARD, "peer_address_high", labels),
        CellKey(CellKind.BOARD, "peer_address_low", labels),
    )


def resolved_keys(upstream: str) -> tuple[CellKey, ...]:
    """What has to be in the mapping for peers of a group that are found while running."""
    names = [resolved_name(number) for number in range(MAX_RESOLVED)]
    return tuple(
        key
        for name in names
        for key in (*peer_keys(upstream, name), *place_keys(upstream, name))
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


class Place(NamedTuple):
    """Where a peer is that was found while running."""

    origin: int
    """28 bits that tell from which `server` it comes."""
    address: bytes
    """4 or 16 octets."""
    port: int
    weight: int
    backup: bool


class PeerPlace:
    """The place of such a peer on the board, from where the next manager goes on."""

    def __init__(self, row: Row, upstream: str, peer: str) -> None:
        self._place, self._high, self._low = map(row.cell, place_keys(upstream, peer))

    def read(self) -> Place | None:
        """Return the place; None if there is no peer."""
        packed = self._place.own
        if not packed & 1:
            return None
        octets = (self._high.own << 64 | self._low.own).to_bytes(16, "big")
        return Place(
            origin=packed >> 36,
            address=octets if packed & 4 else octets[12:],
            port=packed >> 20 & 0xFFFF,
            weight=packed >> 4 & 0xFFFF,
            backup=bool(packed & 2),
        )

    def write(self, place: Place | None) -> None:
        """Put the place on the board, or take it away."""
        if place is None:
            self._place.set(0)
            return
        number = int.from_bytes(place.address, "big")
        self._high.set(number >> 64)
        self._low.set(number & 0xFFFFFFFFFFFFFFFF)
        is_long = len(place.address) == 16
        self._place.set(
            place.origin << 36
            | place.port << 20
            | place.weight << 4
            | is_long << 2
            | place.backup << 1
            | 1
        )
