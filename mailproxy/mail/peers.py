"""Peers: the members of a group in this process, and what is known of them.

nginx calls one address of a `server` a peer, and so do we; names and rules are those of
ngx_stream_upstream_round_robin.c, which counts time in whole seconds. A peer belongs to
one process. What others find out about it comes in through `Peer.set_health`,
`Peer.drain` and `LiveGroup.renew`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from mailproxy.mail.candidates import Candidate
from mailproxy.mail.peer_states import Health, PeerState, imposed
from mailproxy.mail.shared_failures import SharedFailures
from mailproxy.stats.mapping import Row
from mailproxy.stats.peers import PeerNumbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mailproxy.conf.addresses import Address
    from mailproxy.mail.group import Group, Member
    from mailproxy.mail.peer_news import PeerNews
    from mailproxy.net.manager_line import ManagerLine


class Peer:
    """One address of a `server`.

    Attributes:
      member: the `server`, with all parameters.
      address: where it is.
      name: unlike that of all other peers of its group; its numbers are found by it.
      candidate: the same, for those who connect.
      epoch: of the list of members that it came with; see `LiveGroup`.
      down: gets no sessions.
      draining: gets no new sessions.
      health: what health checks say.
      numbers: its sessions, and those of other workers if the mapping has it.
      shared: what all workers know of its failures; None: this one counts for itself.
      fails: failures in a row, within `fail_timeout` of each other.
      current, effective: the weights of nginx's round robin.
    """

    __slots__ = (
        "_accessed",
        "_checked",
        "_recovers",
        "address",
        "candidate",
        "current",
        "down",
        "draining",
        "effective",
        "epoch",
        "fails",
        "health",
        "member",
        "name",
        "numbers",
        "shared",
    )

    def __init__(
        self,
        member: Member,
        address: Address,
        numbers: PeerNumbers,
        epoch: int = 0,
    ) -> None:
        self.member = member
        self.address = address
        self.name = address.text
        self.candidate = _candidate(member, address)
        self.epoch = epoch
        self.down = member.down
        self.draining = member.drain
        self.health: Health = "healthy"
        self.numbers = numbers
        self.shared: SharedFailures | None = None
        self.fails = 0
        self.current = 0
        self.effective = member.weight
        self._accessed = 0
        self._checked = 0
        self._recovers: int | None = None
        """When its recovery began; None if it does not recover."""

    def __repr__(self) -> str:
        return f"Peer({self.address.text})"

    def is_open(self, now: int) -> bool:
        """Whether a new session may be sent there."""
        return self.is_willing and not self.is_unavailable(now)

    @property
    def is_willing(self) -> bool:
        """The same, whatever sessions have found out: all that counts for a single one."""
        if self.down or self.draining or self.health != "healthy":
            return False
        return not self.is_busy

    def is_unavailable(self, now: int) -> bool:
        """Whether it has failed `max_fails` times, and `fail_timeout` is not over.

        Then one session may try, and this begins anew.
        """
        shared = self.shared
        if shared is not None and shared.is_heard:
            return shared.is_blocked(now, self.member.fail_timeout)
        return self._has_failed(now)

    def _has_failed(self, now: int) -> bool:
        """The same, as far as this process knows by itself."""
        member = self.member
        return (
            0 < member.max_fails <= self.fails
            and now - self._checked <= member.fail_timeout
        )

    @property
    def is_busy(self) -> bool:
        """Whether it has `max_conns` sessions."""
        return 0 < self.member.max_conns <= self.numbers.conns

    def weight(self, now: int) -> int:
        """Its weight, which grows while it recovers."""
        whole = self.member.weight
        if self._recovers is None:
            return whole
        passed = now - self._recovers
        if passed >= self.member.slow_start:
            self._recovers = None
            return whole
        return max(1, whole * passed // self.member.slow_start)

    def state(self, now: int) -> PeerState:
        """What it is."""
        found = imposed(down=self.down, draining=self.draining, health=self.health)
        if found is not None:
            return found
        if self.is_unavailable(now):
            return PeerState.UNAVAILABLE
        if self.is_busy:
            return PeerState.BUSY
        return (
            PeerState.UP
            if self.weight(now) == self.member.weight
            else PeerState.RECOVERING
        )

    # What sessions tell

    def enter(self, now: int) -> None:
        """Count a session that is about to connect."""
        self.numbers.enter()
        if self.shared is not None:
            self.shared.enter(now)
        if now - self._checked > self.member.fail_timeout:
            self._checked = now

    def leave(self) -> None:
        """Count that a session is over, or was not connected."""
        self.numbers.leave()

    def fail(self, now: int) -> bool:
        """Note that it was not reached, or did not greet.

        Returns:
          Whether it is unavailable now.
        """
        member = self.member
        self.numbers.fail()
        if self.shared is not None:
            self.shared.fail(now)
        self.fails += 1
        self._accessed = self._checked = now
        if not member.max_fails:
            return False
        self.effective = max(0, self.effective - member.weight // member.max_fails)
        if self.shared is not None and self.shared.is_heard:
            return False  # the manager decides, and says so
        return self.fails >= member.max_fails

    def greet(self, now: int) -> None:
        """Note that it has greeted, which makes up for failures before `fail_timeout`."""
        if self.shared is not None:
            self.shared.greet(now, self.member.fail_timeout)
        if self._accessed < self._checked:
            if 0 < self.member.max_fails <= self.fails:
                self._recover(now)
            self.fails = 0

    # What others tell

    def set_health(self, health: Health, now: int) -> None:
        """Note what a health check says."""
        if self.health == "unhealthy" and health == "healthy":
            self._recover(now)
        self.health = health

    def hear(self, news: PeerNews, now: int) -> None:
        """Note what the manager says."""
        state = news.state
        self.down = state == PeerState.DOWN
        self.draining = state == PeerState.DRAINING
        unhealthy: Health = "unhealthy"
        if state != PeerState.UNHEALTHY:
            unhealthy = "checking" if state == PeerState.CHECKING else "healthy"
        self.set_health(unhealthy, now)
        if self.shared is None:
            return
        blocked = state == PeerState.UNAVAILABLE
        before = self.shared.hear(news, now)
        # What this process would know if it had counted alone: if the manager dies, it
        # goes on with that.
        if blocked:
            self.fails = max(self.fails, self.member.max_fails)
            self._accessed = self._checked = now
        elif before:
            self.fails = 0
            self._recover(now)
        elif self._has_failed(now):
            self.shared.fail(now)  # while there was no manager

    def _recover(self, now: int) -> None:
        if self.member.slow_start:
            self._recovers = now


def _candidate(member: Member, address: Address) -> Candidate:
    return Candidate(
        address.family,
        address.sockaddr,
        address.text,
        spare=True,
        host=member.host,
        ssl=member.ssl,
        ssl_name=member.name,
    )


class Peers:
    """A list of peers, which does not change; a group has one, and one of backups.

    Attributes:
      total: the sum of all weights.
      points: the ring of `hash … consistent`, once it is needed (see `balancing`).
    """

    __slots__ = ("all", "points", "total")

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.all = tuple(peers)
        self.total = sum(peer.member.weight for peer in peers)
        self.points: tuple[Sequence[int], Sequence[str]] | None = None


class LiveGroup:
    """A group in this process.

    Attributes:
      group: what the configuration says.
      epoch: of its list of members; it grows with each new one.
      primaries, backups: who can be chosen from the next choice on. Sessions keep the
        peer that they have.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.epoch = 0
        self._row = Row()
        self._line: ManagerLine | None = None
        self.renew([self.make_peer(*each) for each in named_peers(group)])

    def count_in(self, row: Row) -> None:
        """Count in a row of the mapping from now on; there must be no sessions yet."""
        self._row = row
        for peer, (name, _, _) in zip(self, named_peers(self.group), strict=True):
            peer.numbers = PeerNumbers(row, self.group.name, name)

    def manage(self, line: ManagerLine) -> None:
        """Share what it finds out with other workers, through the manager."""
        if self.group.zone:
            self._line = line
            for peer in self:
                self._share(peer)

    def _share(self, peer: Peer) -> None:
        if self._line is not None:
            peer.shared = SharedFailures(self._line, self.group.name, peer.name)

    def hear(self, news: Sequence[PeerNews], now: int) -> None:
        """Use the peers that the manager tells from now on, in their states."""
        known = {(peer.name, peer.address, peer.member): peer for peer in self}
        peers = []
        for each in news:
            member = replace(
                self.group.members[each.server],
                weight=each.weight,
                backup=each.backup,
            )
            peer = known.get((each.name, each.address, member))
            if peer is None:
                peer = self.make_peer(each.name, member, each.address)
            peers.append(peer)
        if peers != [*self]:
            self.renew(peers)
        for peer, each in zip(peers, news, strict=True):
            peer.hear(each, now)

    def make_peer(self, name: str, member: Member, address: Address) -> Peer:
        """Make a peer, which is used once it is in a list for `renew`.

        Args:
          name: what its numbers are found by; see `peer_keys`.
        """
        numbers = PeerNumbers(self._row, self.group.name, name)
        peer = Peer(member, address, numbers, self.epoch)
        peer.name = name
        self._share(peer)
        return peer

    def renew(self, peers: Sequence[Peer]) -> None:
        """Use these peers from now on; those that stay must be the same objects."""
        self.epoch += 1
        self.primaries = Peers([each for each in peers if not each.member.backup])
        self.backups = Peers([each for each in peers if each.member.backup])

    @property
    def single(self) -> bool:
        """Whether there is no other peer, so that failures are not counted (nginx)."""
        return len(self.primaries.all) == 1 and not self.backups.all

    def __iter__(self) -> Iterator[Peer]:
        """Primaries come first."""
        yield from self.primaries.all
        yield from self.backups.all


def named_peers(group: Group) -> list[tuple[str, Member, Address]]:
    """The peers of a group as configured, primaries first, with different names."""
    found: list[tuple[str, Member, Address]] = []
    times: Counter[str] = Counter()
    for member in sorted(group.members, key=lambda each: each.backup):
        for address in member.addresses:
            times[address.text] += 1
            more = times[address.text]
            name = address.text if more == 1 else f"{address.text}#{more}"
            found.append((name, member, address))
    return found
