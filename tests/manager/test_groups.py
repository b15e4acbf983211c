"""Failures that workers share: when a peer is unavailable, and who tries it then."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mailproxy.conf.addresses import Address
from mailproxy.mail.group import Group, Member
from mailproxy.mail.peer_news import GroupNews, NewsReader, PeerNews, write_news
from mailproxy.mail.peer_states import PeerState
from mailproxy.manager.groups import GroupService
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import MessageError, read_frame, write_frame
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row, Statistics
from mailproxy.stats.peers import PeerNumbers, peer_keys
from tests.manager.ends import Ends, Worker, manager

UP, UNAVAILABLE = PeerState.UP, PeerState.UNAVAILABLE
A, B = "192.0.2.1:143", "192.0.2.2:143"


def member(text: str, **more: int) -> Member:
    host, _, port = text.rpartition(":")
    address = Address(socket.AF_INET, (host, int(port)), text)
    return Member(server=text, host=host, addresses=(address,), **more)  # type: ignore[arg-type] # of numbers


def group(zone: str = "u", **more: int) -> Group:
    return Group(name="U", members=(member(A, **more), member(B)), zone=zone)


class Told:
    """A worker, and what it knows of the group."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.peers: dict[str, PeerNews] = {}
        self._reader = NewsReader()

    async def listen(self) -> None:
        for message in await self.worker.heard():
            if message.kind == LineKind.PEERS:
                news = self._reader.read(message.body)
                if news is not None:
                    self.peers = {each.name: each for each in news.peers}

    async def state(self, peer: str = A) -> PeerState:
        await self.listen()
        return self.peers[peer].state

    async def may_try(self, peer: str = A) -> bool:
        await self.listen()
        return self.peers[peer].may_try

    def report(self, event: str, peer: str = A, upstream: str = "u") -> None:
        body = {"upstream": upstream, "peer": peer, "event": event}
        self.worker.say(LineKind.REPORT, body)


@asynccontextmanager
async def sharing(
    shared: Group | None = None, row: Row | None = None
) -> AsyncIterator[tuple[Ends, Told, Told]]:
    row = Row() if row is None else row
    service = GroupService([group() if shared is None else shared], row)
    async with manager(service, row=row) as ends:
        yield ends, Told(await ends.greeted(101)), Told(await ends.greeted(102))


async def test_workers_are_told_all_peers_when_they_come() -> None:
    async with sharing() as (_, first, second):
        for told in (first, second):
            assert await told.state() == UP
            assert {each: told.peers[each].address.text for each in told.peers} == {
                A: A,
                B: B,
            }


async def test_failures_of_all_workers_add_up(autojump_clock: MockClock) -> None:
    async with sharing(group(max_fails=3)) as (ends, first, second):
        for told in (first, second):
            told.report("failed")
            assert await told.state() == UP
        first.report("failed")
        assert [await told.state() for told in (first, second)] == [UNAVAILABLE] * 2
        assert await second.state(B) == UP
    assert ends.said == [f'[warn] peer {A} of upstream "U" is unavailable']


async def test_no_failure_counts_where_none_is_to(autojump_clock: MockClock) -> None:
    async with sharing(group(max_fails=0)) as (_, first, second):
        for _ in range(10):
            first.report("failed")
        assert await second.state() == UP


async def test_one_worker_after_the_other_may_try(autojump_clock: MockClock) -> None:
    async with sharing(group(fail_timeout=5)) as (_, first, second):
        first.report("failed")
        await first.listen()
        await trio.sleep(4.9)
        assert not await first.may_try()
        await trio.sleep(0.2)
        assert [await told.may_try() for told in (first, second)] == [True, False]
        await trio.sleep(1)
        assert [await told.may_try() for told in (first, second)] == [True, True]
        assert await second.state() == UNAVAILABLE


async def test_only_one_tries_at_a_time(autojump_clock: MockClock) -> None:
    async with sharing(group(fail_timeout=5)) as (_, first, second):
        first.report("failed")
        await first.listen()
        await trio.sleep(5.1)
        assert await first.may_try()
        first.report("try")
        assert not await first.may_try()
        await trio.sleep(4.8)
        assert [await told.may_try() for told in (first, second)] == [False, False]
        first.report("failed")
        await first.listen()
        await trio.sleep(4.8)
        assert [await told.may_try() for told in (first, second)] == [False, False]
        await trio.sleep(0.3)
        assert [await told.may_try() for told in (first, second)] == [True, False]


async def test_a_try_that_succeeds_ends_it_for_all(autojump_clock: MockClock) -> None:
    async with sharing(group(fail_timeout=5)) as (ends, first, second):
        first.report("failed")
        await first.listen()
        await trio.sleep(6.1)
        second.report("try")
        second.report("ok")
        assert [await told.state() for told in (first, second)] == [UP, UP]
        assert not first.peers[A].doubted
        assert not first.peers[A].may_try
    assert ends.said[-1] == f'[notice] peer {A} of upstream "U" is available'


async def test_a_worker_that_comes_later_may_try_as_well(
    autojump_clock: MockClock,
) -> None:
    async with sharing(group(fail_timeout=5)) as (ends, first, second):
        first.report("failed")
        await first.listen()
        await trio.sleep(10)
        assert [await told.may_try() for told in (first, second)] == [True, True]
        third = Told(await ends.greeted(103))
        assert await third.state() == UNAVAILABLE
        await trio.sleep(1.1)
        assert await third.may_try()


async def test_old_failures_are_forgiven(autojump_clock: MockClock) -> None:
    async with sharing(group(max_fails=2, fail_timeout=5)) as (_, first, second):
        first.report("failed")
        await second.listen()
        assert second.peers[A].doubted, "so that it reports when it greets"
        second.report("ok")
        await second.listen()
        assert second.peers[A].doubted, "not long ago"
        await trio.sleep(5.1)
        second.report("ok")
        await second.listen()
        assert not second.peers[A].doubted
        first.report("failed")
        assert await first.state() == UP


async def test_without_a_zone_nobody_shares(autojump_clock: MockClock) -> None:
    async with sharing(group(zone="")) as (ends, first, second):
        first.report("failed")
        assert await second.state() == UP
    assert ends.said == ["[alert] worker 101 sent an invalid message"]


async def test_nonsense_is_dropped() -> None:
    async with sharing() as (ends, first, _):
        first.report("failed", peer="192.0.2.9:143")
        first.report("failed", upstream="other")
        first.report("exploded")
        first.worker.say(LineKind.REPORT, {"upstream": ["u"], "peer": 1})
        first.report("failed", peer=B)
        assert await first.state(B) == UNAVAILABLE
    assert "[alert] worker 101 sent an invalid message" in ends.said


class TestBoard:
    async def test_the_next_manager_begins_with_it(
        self, autojump_clock: MockClock
    ) -> None:
        statistics = Statistics()
        statistics.need([*peer_keys("U", A), *peer_keys("U", B)], workers=1)
        row = statistics.take_row(Role.MANAGER)
        statistics.set_front(row)
        async with sharing(row=row) as (_, first, _second):
            first.report("failed")
            assert await first.state() == UNAVAILABLE
        assert PeerNumbers(row, "U", A).state == UNAVAILABLE
        assert PeerNumbers(row, "U", B).state == UP
        after = statistics.take_row(Role.MANAGER)
        async with sharing(row=after) as (_, first, _second):
            assert await first.state() == UNAVAILABLE
            assert await first.state(B) == UP
            first.report("try")
            first.report("ok")
            assert await first.state() == UP
        assert PeerNumbers(row, "U", A).state == UNAVAILABLE, "it is not the front one"


NAMES = st.text(st.characters(codec=None), min_size=1, max_size=40)
PEERS = st.builds(
    PeerNews,
    name=NAMES,
    server=st.integers(0, 100),
    address=st.one_of(
        st.just(Address(socket.AF_INET, ("192.0.2.1", 143), A)),
        st.just(Address(socket.AF_INET6, ("::1", 143, 0, 0), "[::1]:143")),
        st.just(Address(socket.AF_UNIX, "/run/x", "unix:/run/x")),
    ),
    weight=st.integers(1, 65535),
    backup=st.booleans(),
    state=st.sampled_from(PeerState),
    doubted=st.booleans(),
    may_try=st.booleans(),
)


class TestNews:
    @given(NAMES, st.integers(0, 2**32), st.lists(PEERS, max_size=5))
    def test_what_was_told_is_heard(
        self, upstream: str, epoch: int, peers: list[PeerNews]
    ) -> None:
        news = GroupNews(upstream, epoch, tuple(peers))
        (message,) = write_news(news)
        read = NewsReader().read(read_frame(write_frame(message)).body)
        assert read == news

    def many(self, epoch: int = 1) -> GroupNews:
        return GroupNews(
            "U",
            epoch,
            tuple(
                PeerNews(
                    name=f"{'x' * 200}#{n}",
                    server=0,
                    address=Address(socket.AF_UNIX, f"/run/{n}", f"unix:/run/{n}"),
                    weight=1,
                    backup=False,
                    state=UP,
                )
                for n in range(1000)
            ),
        )

    def test_a_long_list_comes_in_parts(self) -> None:
        news, reader = self.many(), NewsReader()
        messages = write_news(news)
        assert len(messages) > 5
        frames = [write_frame(each) for each in messages]
        read = [reader.read(read_frame(frame).body) for frame in frames]
        assert read == [None] * (len(frames) - 1) + [news]

    def test_a_list_may_be_begun_anew(self) -> None:
        reader = NewsReader()
        old, new = write_news(self.many()), write_news(self.many(2))
        for message in old[:3]:
            assert reader.read(message.body) is None
        assert [reader.read(each.body) for each in new][-1] == self.many(2)

    def test_lost_parts_are_noticed(self) -> None:
        messages = write_news(self.many())
        for wrong in ([1], [0, 2], [0, 1, 1]):
            reader = NewsReader()
            *before, last = wrong
            for number in before:
                reader.read(messages[number].body)
            with pytest.raises(MessageError):
                reader.read(messages[last].body)

    @pytest.mark.parametrize(
        "change",
        [
            {"peers": 5},
            {"peers": [[]]},
            {"peers": [["a", 0, 2, ["h", 1], "h:1", 1, 0, 99]]},
            {"first": 7},
            {"first": None},
            {"part": None},
        ],
    )
    def test_anything_else_is_no_news(self, change: dict[str, object]) -> None:
        (message,) = write_news(GroupNews("U", 1, ()))
        with pytest.raises(MessageError):
            NewsReader().read({**message.body, **change})
