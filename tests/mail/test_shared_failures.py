"""What a worker does with what the manager says of its peers, and what it reports."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace

import pytest

from mailproxy.conf.addresses import Address
from mailproxy.conf.tree import Position
from mailproxy.mail.group import Group, Member
from mailproxy.mail.peer_news import GroupNews, PeerNews, write_news
from mailproxy.mail.peer_states import PeerState
from mailproxy.mail.peers import LiveGroup, Peer
from mailproxy.mail.upstreams import Upstreams
from mailproxy.net.engine import Engine
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.manager_line import ManagerLine, Subscriber
from mailproxy.net.messages import MessageError

A = Address(socket.AF_INET, ("192.0.2.1", 143), "192.0.2.1:143")
B = Address(socket.AF_INET, ("192.0.2.2", 143), "192.0.2.2:143")
C = Address(socket.AF_INET, ("192.0.2.3", 143), "192.0.2.3:143")


def member(address: Address, **more: int) -> Member:
    return Member(
        server=address.text,
        host="h",
        addresses=(address,),
        **more,  # type: ignore[arg-type] # of numbers
    )


class Line(ManagerLine):
    """Keeps what is told; a test says whether there is a manager."""

    def __init__(self) -> None:
        self.manager = True
        self.told: list[str] = []
        self.subscribers: dict[int, Subscriber] = {}

    @property
    def is_open(self) -> bool:
        return self.manager

    def tell(self, kind: int, body: Mapping[str, object]) -> None:
        assert kind == LineKind.REPORT
        assert body["upstream"] == "U"
        self.told.append(f"{body['peer']} {body['event']}")

    def subscribe(self, kind: int, subscriber: Subscriber) -> None:
        self.subscribers[kind] = subscriber


class World:
    """A worker with a group, and its manager."""

    def __init__(self, zone: str = "u", **more: int) -> None:
        self.line = Line()
        self.now = 1000
        self.group = Group(
            name="U",
            members=(member(A, **more), member(B)),
            zone=zone,
            position=Position("nginx.conf", 1, 1),
        )
        upstreams = Upstreams({"u": self.group}, ())
        upstreams.manage(self.line, lambda: self.now)
        self.live: LiveGroup = upstreams.groups["u"]

    @property
    def peer(self) -> Peer:
        return next(iter(self.live))

    def news(self, *news: PeerNews) -> None:
        for message in write_news(GroupNews("U", 1, news)):
            self.line.subscribers[LineKind.PEERS](message.body)

    def says(
        self, state: PeerState, *, may_try: bool = False, doubted: bool = True
    ) -> None:
        """The manager tells the state of the first peer."""
        first = replace(news(A), state=state, may_try=may_try, doubted=doubted)
        self.news(first, replace(news(B), server=1))


def news(address: Address, server: int = 0, **more: int) -> PeerNews:
    values = {"weight": 1, "backup": False, **more}
    return PeerNews(
        name=address.text,
        server=server,
        address=address,
        state=PeerState.UP,
        **values,  # type: ignore[arg-type] # of numbers
    )


def test_failure_is_reported_and_the_manager_decides() -> None:
    world = World()
    world.says(PeerState.UP, doubted=False)
    assert not world.peer.fail(world.now), "no line of this worker's"
    assert world.line.told == [f"{A.text} failed"]
    assert world.peer.is_open(world.now)
    world.says(PeerState.UNAVAILABLE)
    assert world.peer.state(world.now) == PeerState.UNAVAILABLE
    assert not world.peer.is_open(world.now + 40), "the manager says when"
    world.says(PeerState.UP)
    assert world.peer.is_open(world.now)


def test_one_session_uses_the_one_try() -> None:
    world = World()
    world.says(PeerState.UNAVAILABLE, may_try=True)
    assert world.peer.is_open(world.now)
    world.peer.enter(world.now)
    assert world.line.told == [f"{A.text} try"]
    assert not world.peer.is_open(world.now)
    world.peer.greet(world.now)
    assert world.line.told[1:] == [f"{A.text} ok"]


def test_a_manager_that_hangs_does_not_keep_a_peer_unavailable() -> None:
    world = World()
    world.says(PeerState.UNAVAILABLE)
    world.now += 41  # 10 s are `fail_timeout`
    assert world.peer.is_open(world.now)
    world.peer.enter(world.now)
    assert not world.peer.is_open(world.now), "one session tries"
    world.peer.fail(world.now)
    assert not world.peer.is_open(world.now + 40)
    world.now += 41
    world.peer.enter(world.now)
    world.peer.greet(world.now)
    assert world.peer.is_open(world.now)
    assert world.line.told == [f"{A.text} failed", f"{A.text} ok"]
    world.says(PeerState.UNAVAILABLE)
    assert not world.peer.is_open(world.now), "it speaks again"
    world.says(PeerState.UP)
    assert world.peer.is_open(world.now)
    assert len(world.line.told) == 2


def test_greetings_are_reported_only_if_they_are_news() -> None:
    world = World()
    world.says(PeerState.UP, doubted=False)
    world.peer.enter(world.now)
    world.peer.greet(world.now)
    assert world.line.told == []
    world.says(PeerState.UP)
    world.peer.greet(world.now)
    assert world.line.told == [], "the failure is not older than fail_timeout"
    world.now += 11
    world.peer.greet(world.now)
    assert world.line.told == [f"{A.text} ok"]
    world.says(PeerState.UP, doubted=False)
    world.peer.greet(world.now)
    assert len(world.line.told) == 1


def test_recovery_is_slow_if_it_is_to_be() -> None:
    world = World(slow_start=10, weight=10)
    ready = replace(news(A), weight=10)
    world.news(replace(ready, state=PeerState.UNAVAILABLE), news(B, 1))
    world.news(ready, news(B, 1))
    assert world.peer.state(world.now) == PeerState.RECOVERING
    assert world.peer.weight(world.now + 5) == 5
    assert world.peer.state(world.now + 10) == PeerState.UP


def test_without_a_manager_each_goes_on_with_what_it_knows() -> None:
    world = World()
    world.says(PeerState.UNAVAILABLE)
    world.line.manager = False
    assert not world.peer.is_open(world.now)
    assert world.peer.is_open(world.now + 11), "as a worker by itself does"
    world.now += 20
    assert world.peer.fail(world.now), "and counts by itself"
    assert not world.peer.is_open(world.now)
    world.line.manager = True
    world.line.told.clear()
    world.says(PeerState.UP)
    assert world.line.told == [f"{A.text} failed"], "the next manager hears of it"
    world.says(PeerState.UNAVAILABLE)
    assert not world.peer.is_open(world.now)
    world.says(PeerState.UP)
    assert world.peer.is_open(world.now)
    assert len(world.line.told) == 1


def test_without_a_zone_failures_stay_here() -> None:
    world = World(zone="")
    world.says(PeerState.UP)
    assert world.peer.fail(world.now)
    assert world.line.told == []
    assert not world.peer.is_open(world.now)
    world.says(PeerState.UP)
    assert not world.peer.is_open(world.now)


@pytest.mark.parametrize(
    "state",
    [PeerState.DOWN, PeerState.DRAINING, PeerState.UNHEALTHY, PeerState.CHECKING],
)
@pytest.mark.parametrize("zone", ["", "u"])
def test_other_states_are_used_from_the_next_choice_on(
    state: PeerState, zone: str
) -> None:
    world = World(zone)
    world.says(state)
    assert world.peer.state(world.now) == state
    assert not world.peer.is_open(world.now)
    world.says(PeerState.UP)
    assert world.peer.state(world.now) == PeerState.UP


class TestMembers:
    def test_who_stays_keeps_its_state_and_its_sessions(self) -> None:
        world = World()
        world.peer.enter(world.now)
        old, gone = world.live
        epoch = world.live.epoch
        world.news(news(A), news(C, 1))
        first, second = world.live
        assert first is old
        assert second.address == C
        assert world.live.epoch == epoch + 1
        assert first.numbers.own_conns == 1
        gone.enter(world.now)
        gone.leave()
        world.news(news(A), news(C, 1))
        assert [*world.live] == [first, second]
        assert world.live.epoch == epoch + 1, "nothing is new"

    def test_weights_and_backups_may_change(self) -> None:
        world = World()
        world.news(news(A, weight=5), news(B, 1, backup=True))
        (first,) = world.live.primaries.all
        (second,) = world.live.backups.all
        assert first.member.weight == 5
        assert second.address == B
        second.fail(world.now)
        assert world.line.told == [f"{B.text} failed"], "new peers are shared, too"

    def test_all_may_be_gone(self) -> None:
        world = World()
        world.news()
        assert [*world.live] == []

    def test_unknown_group_is_no_news(self) -> None:
        world = World()
        (message,) = write_news(GroupNews("other", 1, ()))
        with pytest.raises(MessageError):
            world.line.subscribers[LineKind.PEERS](message.body)


def test_line_of_a_test_is_one() -> None:
    """`Line` has what the real one has."""
    real = ManagerLine(Engine())
    assert not real.is_open
    real.tell(LineKind.REPORT, {})
