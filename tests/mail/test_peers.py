"""What becomes of the members of a group in a process, and who of them is chosen."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from mailproxy.conf.addresses import Address
from mailproxy.mail.balancing import ConsistentHash, Hash, LeastConn, Random, RoundRobin
from mailproxy.mail.group import Group, Member, Method
from mailproxy.mail.peer_states import PeerState
from mailproxy.mail.peers import LiveGroup, Peer
from mailproxy.mail.upstreams import MAX_HOSTS, Upstreams
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Statistics
from mailproxy.stats.peers import peer_keys


def address(number: int) -> Address:
    return Address(socket.AF_INET, (f"10.0.0.{number}", 143), f"10.0.0.{number}:143")


def member(number: int, **parameters: object) -> Member:
    """A member with one address, 10.0.0.number."""
    at = address(number)
    made = Member(server=at.text, host=f"10.0.0.{number}", addresses=(at,))
    return replace(made, **parameters)  # type: ignore[arg-type] # fields of it


def live(*members: Member, method: str = "round_robin") -> LiveGroup:
    made = Method(name=method)  # type: ignore[arg-type] # one of its names
    return LiveGroup(Group(name="u", members=members, method=made))


def in_turn(group: LiveGroup, rounds: int, now: int = 0) -> str:
    """The members that so many sessions are given, by their numbers."""
    found = []
    for _ in range(rounds):
        peer = RoundRobin(single=group.single).pick(group.primaries, now)
        found.append("-" if peer is None else str(peer.address.sockaddr[0])[-1])
    return "".join(found)


def peer_of(group: LiveGroup, number: int) -> Peer:
    return next(each for each in group if each.address == address(number))


# States


def test_words_and_numbers_are_angie_s() -> None:
    assert [f"{each.name.lower()} {each}" for each in PeerState] == [
        "up 1",
        "down 2",
        "unavailable 3",
        "recovering 4",
        "unhealthy 5",
        "checking 6",
        "draining 7",
        "busy 8",
    ]


def test_each_state_comes_and_goes() -> None:
    group = live(member(1, max_conns=1, slow_start=10, weight=4), member(2))
    peer = peer_of(group, 1)
    seen = [peer.state(0)]
    peer.enter(0)
    seen.append(peer.state(0))
    peer.leave()
    assert peer.fail(0)
    seen += [peer.state(10), peer.state(11)]
    peer.enter(11)
    peer.greet(11)
    peer.leave()
    seen += [peer.state(11), peer.state(20), peer.state(21)]
    peer.set_health("checking", 21)
    seen.append(peer.state(21))
    peer.set_health("healthy", 21)
    peer.set_health("unhealthy", 21)
    seen.append(peer.state(21))
    peer.set_health("healthy", 30)
    seen += [peer.state(30), peer.state(40)]
    peer.draining = True
    seen.append(peer.state(40))
    peer.down = True
    seen.append(peer.state(40))
    assert [each.name.lower() for each in seen] == [
        "up",
        "busy",
        "unavailable",
        "up",
        "recovering",
        "recovering",
        "up",
        "checking",
        "unhealthy",
        "recovering",
        "up",
        "draining",
        "down",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda peer: setattr(peer, "down", True),
        lambda peer: setattr(peer, "draining", True),
        lambda peer: peer.set_health("unhealthy", 0),
        lambda peer: peer.set_health("checking", 0),
        lambda peer: peer.fail(0),
        lambda peer: peer.enter(0),
    ],
)
@pytest.mark.parametrize(
    "method",
    [
        lambda: RoundRobin(single=False),
        lambda: LeastConn(single=False),
        lambda: Hash(b"key", single=False),
        lambda: ConsistentHash(b"key", single=False),
        lambda: Random(two=False, single=False),
        lambda: Random(two=True, single=False),
    ],
)
def test_nobody_else_is_chosen(
    change: Callable[[Peer], object], method: Callable[[], RoundRobin]
) -> None:
    group = live(*(member(number, max_conns=1) for number in (1, 2, 3)))
    change(peer_of(group, 1))
    change(peer_of(group, 3))
    for _ in range(20):
        assert method().pick(group.primaries, 0) is peer_of(group, 2)
    change(peer_of(group, 2))
    assert method().pick(group.primaries, 0) is None


def test_one_session_decides_after_fail_timeout() -> None:
    group = live(member(1, fail_timeout=5), member(2, fail_timeout=5))
    peer_of(group, 2).fail(0)
    assert in_turn(group, 3, now=5) == "111"
    peer = peer_of(group, 2)
    assert not peer.is_unavailable(6)
    peer.enter(6)
    assert peer.is_unavailable(6), "others wait for what comes of it"
    assert peer.is_unavailable(11)
    peer.greet(7)
    assert not peer.is_unavailable(7)
    assert peer.fails == 0


def test_failures_that_do_not_follow_each_other_do_not_add_up() -> None:
    group = live(member(1, max_fails=2), member(2))
    peer = peer_of(group, 1)
    assert not peer.fail(0)
    peer.enter(5)
    peer.greet(5)
    assert peer.fails == 1, "fail_timeout is not over"
    peer.enter(11)
    peer.greet(11)
    assert not peer.fail(12)


def test_member_of_no_failures() -> None:
    group = live(member(1, max_fails=0), member(2))
    peer = peer_of(group, 1)
    assert not any(peer.fail(0) for _ in range(9))
    assert peer.state(0) is PeerState.UP


@pytest.mark.proves("server", "slow_start=")
@pytest.mark.parametrize("method", [RoundRobin, LeastConn])
def test_weight_grows_slowly_after_a_failure(method: type[RoundRobin]) -> None:
    group = live(member(1, weight=10, slow_start=100), member(2, weight=10))
    peer = peer_of(group, 1)
    peer.fail(0)
    peer.enter(11)
    peer.greet(11)
    peer.leave()
    shares = []
    for now in (11, 31, 61, 91, 111, 112):
        for each in group:
            each.current, each.effective = 0, 10
        given: Counter[Peer | None] = Counter()
        for _ in range(110):
            chosen = method(single=False).pick(group.primaries, now)
            assert chosen is not None
            if method is LeastConn:
                chosen.enter(now)
            given[chosen] += 1
        shares.append(given[peer])
        for each in group:
            for _ in range(given[each] if method is LeastConn else 0):
                each.leave()
    assert shares[0] == 10, "one of eleven"
    assert shares == sorted(shares)
    assert shares[-2:] == [55, 55]


@pytest.mark.proves("server", "max_conns=")
def test_sessions_of_a_member_are_limited_over_workers() -> None:
    group = live(member(1, max_conns=2), member(2, max_conns=1))
    statistics = Statistics()
    keys = [key for n in (1, 2) for key in peer_keys("u", f"10.0.0.{n}:143")]
    statistics.need(keys, 4)
    rows = [statistics.take_row(Role.WORKER) for _ in range(3)]
    workers = [live(*group.group.members) for _ in rows]
    for worker, row in zip(workers, rows, strict=True):
        worker.count_in(row)

    def choose(number: int) -> Peer | None:
        worker = workers[number]
        peer = RoundRobin(single=False).pick(worker.primaries, 0)
        if peer is not None:
            peer.enter(0)
        return peer

    taken = [choose(0), choose(1), choose(2)]
    assert None not in taken
    assert choose(0) is None
    statistics.free_row(rows[1])  # its worker has died
    assert choose(0) is not None
    assert choose(2) is None


# Lists that change


def test_new_list_counts_from_the_next_choice_on() -> None:
    group = live(member(1), member(2))
    session = RoundRobin(single=group.single)
    first = session.pick(group.primaries, 0)
    assert first is not None
    session.tried.add(first)
    first.enter(0)
    added = group.make_peer("#0", member(3), address(3))
    assert added.epoch == group.epoch == 1
    group.renew([peer_of(group, 2), added])
    assert group.epoch == 2
    assert session.pick(group.primaries, 0) is not first
    first.leave()
    assert set(in_turn(group, 4)) == set("23")


def test_single_member_may_become_one_of_several_and_be_alone_again() -> None:
    group = live(member(1))
    assert group.single
    group.renew([*group, group.make_peer("#0", member(2), address(2))])
    assert not group.single
    peer_of(group, 2).fail(0)
    assert in_turn(group, 2) == "11"
    group.renew([peer_of(group, 2)])
    assert in_turn(group, 2) == "22", "there is nobody else"
    group.renew([])
    assert in_turn(group, 1) == "-"


def test_addresses_of_a_host_keep_what_is_known_of_them() -> None:
    upstreams = Upstreams({}, ())
    one, two, three = map(address, (1, 2, 3))
    group = upstreams.host("mail.test", 143, [one, two])
    peer_of(group, 1).fail(0)
    again = upstreams.host("MAIL.test", 143, [two, three, one])
    assert again is group
    assert [peer.fails for peer in group] == [0, 0, 1]
    assert upstreams.host("mail.test", 144, [one]) is not group


def test_hosts_that_are_remembered_are_limited() -> None:
    upstreams = Upstreams({}, ())
    kept = upstreams.host("kept.test", 143, [address(1)])
    first = upstreams.host("first.test", 143, [address(1)])
    for number in range(MAX_HOSTS - 1):
        upstreams.host(f"{number}.test", 143, [address(1)])
        assert upstreams.host("kept.test", 143, [address(1)]) is kept
    assert upstreams.host("first.test", 143, [address(1)]) is not first


# Methods by chance and by keys


def drawing(*numbers: int) -> Callable[[int], int]:
    """Draws these numbers, whatever the limit is."""
    left = iter(numbers)
    return lambda _: next(left)


@pytest.mark.proves("random")
def test_chance_has_weights() -> None:
    group = live(member(1, weight=3), member(2), member(3, weight=2))
    drawn = [
        Random(two=False, single=False, draw=drawing(at)).pick(group.primaries, 0)
        for at in range(6)
    ]
    assert [str(peer.address.text)[7] for peer in drawn if peer] == list("111233")


@pytest.mark.proves("random", "two")
def test_of_two_that_with_fewer_sessions_for_its_weight() -> None:
    group = live(member(1, weight=2), member(2))
    for sessions, better in ((1, 1), (2, 1), (3, 2)):
        first, second = peer_of(group, 1), peer_of(group, 2)
        for _ in range(sessions):
            first.enter(0)
        second.enter(0)
        for draws in ([0, 2], [2, 0], [0, 1, 0, 2]):
            two = Random(two=True, single=False, draw=drawing(*draws))
            chosen = two.pick(group.primaries, 0)
            equal = sessions == 2
            assert chosen is peer_of(group, better) or equal
        for _ in range(sessions):
            first.leave()
        second.leave()


def test_chance_ends_with_turns() -> None:
    group = live(member(1), member(2))
    unlucky = Random(two=True, single=False, draw=drawing(*[0] * 99))
    assert unlucky.pick(group.primaries, 0) is not None


def test_others_keep_their_keys_when_a_member_goes() -> None:
    four = live(*map(member, (1, 2, 3, 4)))
    three = live(*map(member, (1, 2, 4)))
    draw = random.Random(3)
    moved = Counter[str]()
    for _ in range(1000):
        key = b"user%d@example.com" % draw.randrange(1 << 30)
        before, after = (
            ConsistentHash(key, single=False).pick(group.primaries, 0)
            for group in (four, three)
        )
        assert before is not None
        assert after is not None
        if before.address != after.address:
            moved[before.address.text] += 1
    assert list(moved) == ["10.0.0.3:143"]
    assert 150 < moved["10.0.0.3:143"] < 350


@pytest.mark.parametrize("method", [Hash, ConsistentHash])
def test_each_session_tries_each_member_once(
    method: type[Hash | ConsistentHash],
) -> None:
    group = live(*map(member, range(1, 8)))
    for key in (b"a", b"b", b"c"):
        session = method(key, single=False)
        while (peer := session.pick(group.primaries, 0)) is not None:
            assert peer not in session.tried
            session.tried.add(peer)
        assert session.tried == set(group)
