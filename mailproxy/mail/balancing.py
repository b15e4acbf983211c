"""The choice among the peers of a group, bit by bit as nginx's stream makes it.

So a fleet of both agrees on where a key leads. Each class below is one method of one
session; the sources are ngx_stream_upstream_{round_robin,least_conn_module,
hash_module,random_module}.c.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING
from zlib import crc32

from mailproxy.mail.group import is_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mailproxy.mail.peers import Peer, Peers

MAX_TRIES = 20
"""Attempts of a method by keys or chance, before peers take turns."""
POINTS = 160
"""Points on the ring for each unit of weight."""


class RoundRobin:
    """Smooth weighted round robin.

    Args:
      single: the only peer of a group is chosen, whatever its failures.

    Attributes:
      tried: the peers that this session has tried.
    """

    def __init__(self, *, single: bool) -> None:
        self.tried: set[Peer] = set()
        self._single = single

    def pick(self, peers: Peers, now: int) -> Peer | None:
        """Choose a peer that was not tried and may have another session."""
        return self._take_turns(peers, now)

    def _is_open(self, peer: Peer, now: int) -> bool:
        if peer in self.tried:
            return False
        return peer.is_willing if self._single else peer.is_open(now)

    def _take_turns(self, peers: Peers, now: int) -> Peer | None:
        candidates = [each for each in peers.all if self._is_open(each, now)]
        if self._single or not candidates:
            return candidates[0] if candidates else None
        return _next_in_turn(candidates, now)


def _next_in_turn(candidates: Iterable[Peer], now: int) -> Peer:
    """Let each candidate's weight add up, and choose the first with the largest sum."""
    best: Peer | None = None
    total = 0
    for peer in candidates:
        weight = peer.effective
        if weight > 1:
            weight = min(weight, peer.weight(now))
        peer.current += weight
        total += weight
        if peer.effective < peer.member.weight:
            peer.effective += 1
        if best is None or peer.current > best.current:
            best = peer
    assert best is not None, "there are candidates"
    best.current -= total
    return best


class LeastConn(RoundRobin):
    """The fewest sessions for its weight; those with equally few take turns."""

    def pick(self, peers: Peers, now: int) -> Peer | None:
        candidates = [each for each in peers.all if self._is_open(each, now)]
        if self._single or not candidates:
            return candidates[0] if candidates else None
        loads = [(each.numbers.conns, each.weight(now)) for each in candidates]
        least, weight = loads[0]
        for conns, own in loads:
            if conns * weight < least * own:
                least, weight = conns, own
        best = [
            peer
            for peer, (conns, own) in zip(candidates, loads, strict=True)
            if conns * weight == least * own
        ]
        return best[0] if len(best) == 1 else _next_in_turn(best, now)


class Hash(RoundRobin):
    """By a key, as Cache::Memcached does it."""

    def __init__(self, key: bytes, *, single: bool) -> None:
        super().__init__(single=single)
        self._key = key
        self._tries = 0
        self._hash = 0
        self._rehash = 0

    def pick(self, peers: Peers, now: int) -> Peer | None:
        if not self._key or len(peers.all) < 2:
            return self._take_turns(peers, now)
        while self._tries <= MAX_TRIES:
            again = b"%d" % self._rehash if self._rehash else b""
            self._hash += (crc32(again + self._key) >> 16) & 0x7FFF
            self._rehash += 1
            peer = _at_weight(peers, self._hash % peers.total)
            if self._is_open(peer, now):
                return peer
            self._tries += 1
        return self._take_turns(peers, now)


def _at_weight(peers: Peers, weight: int) -> Peer:
    """The peer that a number below the sum of all weights falls to."""
    for peer in peers.all:
        if weight < peer.member.weight:
            return peer
        weight -= peer.member.weight
    raise AssertionError("the number is smaller than the sum")


class ConsistentHash(RoundRobin):
    """By a key, on a ring of points (ketama, as Cache::Memcached::Fast does it)."""

    def __init__(self, key: bytes, *, single: bool) -> None:
        super().__init__(single=single)
        self._key = key
        self._tries = 0
        self._at: int | None = None

    def pick(self, peers: Peers, now: int) -> Peer | None:
        if not self._key or self._single or not peers.all:
            return self._take_turns(peers, now)
        if peers.points is None:
            peers.points = make_points(peers.all)
        points, servers = peers.points
        if self._at is None:
            self._at = _first_point(points, crc32(self._key))
        while self._tries <= MAX_TRIES:
            server = servers[points[self._at % len(points)] & 0xFFFFFFFF]
            candidates = [
                each
                for each in peers.all
                if each.member.server == server and self._is_open(each, now)
            ]
            if candidates:
                return _next_in_turn(candidates, now)
            self._at += 1
            self._tries += 1
        return self._take_turns(peers, now)


def make_points(peers: Sequence[Peer]) -> tuple[list[int], list[str]]:
    """Make the ring.

    Returns:
      Numbers in ascending order, with the point in the upper 32 bits and the index of
      its server in the lower ones; and the servers, as written.
    """
    servers: list[str] = []
    owners: dict[int, int] = {}
    for peer in peers:
        server = peer.member.server
        if server not in servers:
            servers.append(server)
        index = servers.index(server)
        base = crc32(_hashed(server))
        point = 0
        for _ in range(POINTS * peer.member.weight):
            point = crc32(point.to_bytes(4, "little"), base)
            owners.setdefault(point, index)  # of equal points, the first one counts
    return sorted(point << 32 | index for point, index in owners.items()), servers


def _hashed(server: str) -> bytes:
    """What of a server's address is hashed: HOST NUL PORT, or PATH NUL."""
    octets = server.encode("utf-8", "surrogateescape")
    if is_path(server):
        return octets[5:] + b"\0"
    host, colon, port = octets.rpartition(b":")
    if colon and (port.isdigit() or not port):
        return host + b"\0" + port
    return octets + b"\0"


def _first_point(points: Sequence[int], key: int) -> int:
    """The index of the first point that is not below `key`; beyond the last, if none."""
    return bisect_right(points, (key << 32) - 1)


class Random(RoundRobin):
    """By chance and weight, or the less busy one of two such.

    Args:
      draw: returns a number below its argument.
    """

    def __init__(
        self,
        *,
        two: bool,
        single: bool,
        draw: Callable[[int], int] = random.randrange,
    ) -> None:
        super().__init__(single=single)
        self._two = two
        self._draw = draw
        self._tries = 0

    def pick(self, peers: Peers, now: int) -> Peer | None:
        if len(peers.all) < 2:
            return self._take_turns(peers, now)
        limits = list(accumulate(each.member.weight for each in peers.all))
        first: Peer | None = None
        while self._tries <= MAX_TRIES:
            peer = peers.all[bisect_right(limits, self._draw(peers.total))]
            if peer is not first and self._is_open(peer, now):
                if not self._two:
                    return peer
                if first is not None:
                    return _less_busy(first, peer)
                first = peer
            else:
                self._tries += 1
        return self._take_turns(peers, now)


def _less_busy(first: Peer, second: Peer) -> Peer:
    ours = second.numbers.conns * first.member.weight
    return first if ours > first.numbers.conns * second.member.weight else second
