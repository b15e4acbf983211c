"""The resolver: which server is asked when, and what is remembered.

It runs on virtual time, with name servers that are functions.
"""

from __future__ import annotations

import errno
import os
from ipaddress import ip_address

import pytest
import trio
from trio.testing import MockClock

from mailproxy.conf.addresses import Address
from mailproxy.net.dns import MAX_CACHED, TIMED_OUT, Resolver
from mailproxy.net.dns_messages import (
    NOT_FOUND,
    SERVER_FAILURE,
    Answer,
    Question,
    packed,
)
from tests.name_servers import (
    FIRST,
    NEVER,
    SECOND,
    FakeServers,
    Zone,
    resolver_settings,
)

CLIENT = ip_address("192.0.2.1")
REVERSE = "1.2.0.192.in-addr.arpa. PTR"
GOOD: Zone = {
    REVERSE: ["60 PTR Mail.Example.COM."],
    "mail.example.com. A": ["60 A 192.0.2.9", "60 A 192.0.2.1"],
}
NAME = Answer(0, (b"mail.example.com",), 60)
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")


async def look_up(resolver: Resolver) -> bool:
    """Whether the client has a name that leads back to it."""
    answer = await resolver.find_name(CLIENT)
    if answer.code:
        return False
    answer = await resolver.find_addresses(answer.values[0], CLIENT)
    return packed(CLIENT) in answer.values


async def test_name_and_addresses(autojump_clock: MockClock) -> None:
    resolver = Resolver(resolver_settings(), 30.0, FakeServers(GOOD))
    assert await resolver.find_name(CLIENT) == NAME
    answer = await resolver.find_addresses(b"mail.example.com", CLIENT)
    assert answer.values == (b"\xc0\0\2\x09", b"\xc0\0\2\1")


async def test_addresses_of_both_families(autojump_clock: MockClock) -> None:
    zone: Zone = {"m.example. A": ["1 A 192.0.2.2"], "m.example. AAAA": ["1 AAAA ::2"]}
    resolver = Resolver(resolver_settings(), 30.0, FakeServers(zone))
    answer = await resolver.find_addresses(b"M.example", CLIENT)
    assert sorted(answer.values) == [bytes(15) + b"\2", b"\xc0\0\2\2"]


async def test_silence_ends_with_the_timeout(autojump_clock: MockClock) -> None:
    resolver = Resolver(resolver_settings(), 7.0, FakeServers({REVERSE: NEVER}))
    start = trio.current_time()
    assert await resolver.find_name(CLIENT) == Answer(TIMED_OUT)
    assert trio.current_time() - start == 7


async def test_aliases_that_never_end(autojump_clock: MockClock) -> None:
    zone: Zone = {f"{n}.example. A": [f"60 CNAME {n + 1}.example."] for n in range(20)}
    servers = FakeServers(zone)
    resolver = Resolver(resolver_settings(ipv6=False), 30.0, servers)
    assert await resolver.find_addresses(b"0.example", CLIENT) == Answer(SERVER_FAILURE)
    assert len(servers.asked) == 8


class TestServers:
    async def test_take_turns(self) -> None:
        servers = FakeServers({REVERSE: "SERVFAIL"})
        resolver = Resolver(resolver_settings(FIRST, SECOND), 30.0, servers)
        for _ in range(3):
            assert await resolver.find_name(CLIENT) == Answer(SERVER_FAILURE)
        assert [server for server, _ in servers.servers] == [FIRST, SECOND, FIRST]

    async def test_silent_one_is_not_waited_for_long(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, silent={FIRST})
        resolver = Resolver(resolver_settings(FIRST, SECOND, ipv6=False), 30.0, servers)
        start = trio.current_time()
        assert await look_up(resolver)
        assert [at - start for _, at in servers.servers] == [0, 5, 5]

    async def test_dead_ones_are_tried_once_and_then_again_after_a_while(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, dead={FIRST: REFUSED, SECOND: REFUSED})
        resolver = Resolver(resolver_settings(FIRST, SECOND), 12.0, servers)
        start = trio.current_time()
        assert await resolver.find_name(CLIENT) == Answer(TIMED_OUT)
        assert [at - start for _, at in servers.servers] == [0, 0, 5, 10]

    async def test_dead_one_costs_no_time_beside_a_good_one(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, dead={FIRST: REFUSED})
        resolver = Resolver(resolver_settings(FIRST, SECOND), 30.0, servers)
        start = trio.current_time()
        assert await look_up(resolver)
        assert trio.current_time() == start

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
    async def test_without_room_for_a_socket_the_lookup_fails_at_once(
        self, autojump_clock: MockClock, number: int
    ) -> None:
        full = OSError(number, os.strerror(number))
        servers = FakeServers(GOOD, dead={FIRST: full, SECOND: full})
        resolver = Resolver(resolver_settings(FIRST, SECOND), 30.0, servers)
        start = trio.current_time()
        assert await resolver.find_name(CLIENT) == Answer(SERVER_FAILURE)
        assert trio.current_time() == start
        assert [server for server, _ in servers.servers] == [FIRST, SECOND]

    async def test_room_for_one_server_is_enough(
        self, autojump_clock: MockClock
    ) -> None:
        full = OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        servers = FakeServers(GOOD, dead={FIRST: full})
        resolver = Resolver(resolver_settings(FIRST, SECOND), 30.0, servers)
        assert await resolver.find_name(CLIENT) == NAME


class TestMemory:
    async def test_answers_are_kept_for_their_time(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD | {"mail.example.com. A": ["10 A 192.0.2.1"]})
        resolver = Resolver(resolver_settings(ipv6=False), 30.0, servers)
        for pause in (0, 9, 2, 50):
            await trio.sleep(pause)
            assert await look_up(resolver)
        assert servers.asked == [
            REVERSE,
            "mail.example.com. A",
            "mail.example.com. A",
            REVERSE,
            "mail.example.com. A",
        ]

    @pytest.mark.proves("resolver", "valid=")
    async def test_or_for_as_long_as_valid_says(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD)
        resolver = Resolver(resolver_settings(valid=5.0, ipv6=False), 30.0, servers)
        for pause in (0, 4, 2):
            await trio.sleep(pause)
            assert await look_up(resolver)
        assert len(servers.asked) == 4

    async def test_errors_are_not_kept(self) -> None:
        servers = FakeServers({})
        resolver = Resolver(resolver_settings(), 30.0, servers)
        for _ in range(2):
            assert await resolver.find_name(CLIENT) == Answer(NOT_FOUND)
        assert servers.asked == [REVERSE, REVERSE]

    async def test_is_bounded(self) -> None:
        """The oldest answers make room for new ones."""
        asked = 0

        async def ask(server: Address, question: Question) -> Answer:
            nonlocal asked
            asked += 1
            return Answer(0, (b"m.example",), ttl=1000)

        resolver = Resolver(resolver_settings(), 30.0, ask)
        first = int(CLIENT)
        for number in range(MAX_CACHED + 1):
            await resolver.find_name(ip_address(first + number))
        assert asked == MAX_CACHED + 1
        await resolver.find_name(ip_address(first + 1))  # kept still
        assert asked == MAX_CACHED + 1
        await resolver.find_name(CLIENT)
        assert asked == MAX_CACHED + 2

    async def test_who_asks_the_same_at_the_same_time_shares_the_answer(self) -> None:
        servers = FakeServers(GOOD)
        resolver = Resolver(resolver_settings(ipv6=False), 30.0, servers)
        found = []

        async def one() -> None:
            found.append(await look_up(resolver))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert found == [True] * 50
        assert len(servers.asked) == 2

    async def test_who_leaves_does_not_take_the_others_with_them(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, silent={FIRST})
        resolver = Resolver(resolver_settings(FIRST, SECOND, ipv6=False), 30.0, servers)
        found = []

        async def one(patience: float) -> None:
            with trio.move_on_after(patience):
                found.append(await look_up(resolver))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(one, 60)
            nursery.start_soon(one, 60)
        assert found == [True] * 2
