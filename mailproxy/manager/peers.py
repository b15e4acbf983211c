"""One group as the manager knows it, and its peers.

Failures are counted as nginx does it with a zone. Once there are `max_fails`, the peer is
unavailable for `fail_timeout`. Then workers may try it, once each and one a second, until
one of them says that it has begun; what comes of that decides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from mailproxy.conf.addresses import Address
from mailproxy.mail.group import Group, Member
from mailproxy.mail.peer_news import PeerNews
from mailproxy.mail.peer_states import Health, PeerState, imposed
from mailproxy.mail.peers import named_peers
from mailproxy.net.messages import MessageError
from mailproxy.stats.mapping import Row
from mailproxy.stats.peers import MAX_RESOLVED, PeerNumbers, resolved_name

TRY_PAUSE = 1.0
"""Seconds until another worker may try a peer, if none has begun to."""


class ManagedPeer:
    """One peer, as all workers know it together.

    Attributes:
      name: its name in the group; see `PeerNews.name`.
      server: which `server` of the group it comes from.
      member: that `server`, with the weight and kind of this very peer.
      down, draining: as in `Peer`.
      health: what health checks say.
      blocked: it has failed too often.
    """

    def __init__(
        self,
        name: str,
        server: int,
        member: Member,
        address: Address,
        numbers: PeerNumbers,
    ) -> None:
        self.name = name
        self.server = server
        self.member = member
        self.address = address
        self.numbers = numbers
        self.down = member.down
        self.draining = member.drain
        self.health: Health = "healthy"
        self.blocked = False
        self.fails = 0
        self.may_try: set[int] = set()
        """The workers that may try it, by pid."""
        self._accessed = -math.inf
        self._due = math.inf
        """When a worker may try it."""

    @property
    def state(self) -> PeerState:
        """What it is; workers know what depends on their sessions."""
        found = imposed(down=self.down, draining=self.draining, health=self.health)
        if found is not None:
            return found
        return PeerState.UNAVAILABLE if self.blocked else PeerState.UP

    def block(self, now: float) -> None:
        """Have no worker use it for `fail_timeout`."""
        self.blocked = True
        self.may_try.clear()
        self._due = now + self.member.fail_timeout

    def fail(self, now: float) -> bool:
        """Count a failure; returns whether workers have to know."""
        member = self.member
        first = not self.fails
        self.fails += 1
        self._accessed = now
        if self.blocked or 0 < member.max_fails <= self.fails:
            self.block(now)
            return True
        return first

    def begin_try(self, now: float) -> None:
        """Note that a worker tries it; nobody else does, for `fail_timeout`."""
        if self.blocked:
            self.block(now)

    def greet(self, now: float) -> bool:
        """Note that it has greeted; returns whether workers have to know."""
        if not self.blocked and now - self._accessed <= self.member.fail_timeout:
            return False
        changed = self.blocked or self.fails > 0
        self.blocked = False
        self.fails = 0
        self._due = math.inf
        self.may_try.clear()
        return changed

    def let_try(self, workers: Iterable[int], now: float) -> bool:
        """Let one more of the workers try it, if that is due; returns whether one may."""
        if now < self._due:
            return False
        for worker in workers:
            if worker not in self.may_try:
                self.may_try.add(worker)
                self._due = now + TRY_PAUSE
                return True
        self._due = math.inf  # all may; see `meet`
        return False

    def meet(self, now: float) -> None:
        """Note that there is a new worker."""
        if self.may_try:
            self._due = min(self._due, now)

    @property
    def due(self) -> float:
        """When `let_try` has something to do."""
        return self._due

    def news(self, worker: int) -> PeerNews:
        """What a worker is told of it."""
        return PeerNews(
            name=self.name,
            server=self.server,
            address=self.address,
            weight=self.member.weight,
            backup=self.member.backup,
            state=self.state,
            doubted=self.fails > 0,
            may_try=worker in self.may_try,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A peer that was found by a lookup."""

    address: Address
    weight: int
    backup: bool
    name: str = ""
    """Its name in the group, if it has one already."""


class ManagedGroup:
    """One group, and its peers.

    Attributes:
      group: what the configuration says.
      peers: those that workers use, in their order: primaries first.
    """

    def __init__(self, group: Group, row: Row) -> None:
        self.group = group
        self._row = row
        self.peers = [
            self._make(name, group.members.index(member), member, address, row)
            for name, member, address in named_peers(group)
        ]

    def _make(
        self, name: str, server: int, member: Member, address: Address, row: Row
    ) -> ManagedPeer:
        numbers = PeerNumbers(row, self.group.name, name)
        return ManagedPeer(name, server, member, address, numbers)

    def replace(self, server: int, found: Sequence[Found]) -> bool:
        """Have these peers come from a `server` that was looked up.

        Those that stay keep their states, their names and so their numbers.

        Returns:
          Whether anything has changed.
        """
        before = [(peer, peer.member) for peer in self.peers]
        known = {peer.address: peer for peer in self.peers if peer.server == server}
        others = [peer for peer in self.peers if peer.server != server]
        member = self.group.members[server]
        peers, taken = [], {peer.name for peer in self.peers}
        for each in found:
            own = replace(
                member, weight=each.weight, backup=member.backup or each.backup
            )
            peer = known.get(each.address)
            if peer is None:
                name = each.name or self._free_name(taken) or each.address.text
                taken.add(name)
                peer = self._make(name, server, own, each.address, self._row)
            peer.member = own
            peers.append(peer)
        order = {id(peer): place for place, peer in enumerate(peers)}
        self.peers = sorted(
            (*others, *peers),
            key=lambda peer: (
                peer.member.backup,
                peer.server,
                order.get(id(peer), 0),
            ),
        )
        return before != [(peer, peer.member) for peer in self.peers]

    def _free_name(self, taken: Collection[str]) -> str | None:
        """A name whose numbers nobody has, preferably without sessions; None: all are
        taken."""
        names = [
            *filter(
                lambda name: name not in taken, map(resolved_name, range(MAX_RESOLVED))
            )
        ]
        upstream = self.group.name
        idle = (
            name for name in names if not PeerNumbers(self._row, upstream, name).conns
        )
        return next(idle, names[0] if names else None)

    def peer(self, name: str) -> ManagedPeer:
        """The peer of that name.

        Raises:
          MessageError: there is none.
        """
        for each in self.peers:
            if each.name == name:
                return each
        raise MessageError("no such peer")
