"""Members that are looked up while running: who comes, who goes, who stays."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from mailproxy.conf.addresses import Address
from mailproxy.mail.group import Group, GroupResolver, Member
from mailproxy.mail.peer_news import NewsReader, PeerNews
from mailproxy.mail.peer_states import PeerState
from mailproxy.manager import dns_client
from mailproxy.manager.groups import GroupService
from mailproxy.manager.resolve import MAX_PAUSE, RETRY_PAUSE, ResolveService
from mailproxy.net.dns_messages import Kind, forward_question
from mailproxy.net.line_kinds import LineKind
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row, Statistics
from mailproxy.stats.peers import (
    MAX_RESOLVED,
    PeerNumbers,
    PeerPlace,
    Place,
    resolved_keys,
)
from tests.manager.ends import Ends, Worker, manager
from tests.name_servers import (
    NEVER,
    FakeServers,
    Zone,
    resolver_settings,
    respond,
)

A, B, C = (f"192.0.2.{n}:143" for n in (1, 2, 3))


def member(host: str = "mail.test", **more: object) -> Member:
    values = {"server": f"{host}:143", "port": 143, "resolve": True, **more}
    return Member(host=host, addresses=(), **values)  # type: ignore[arg-type] # of fields


@dataclass
class Looking:
    """A manager that looks names up in a zone, and one of its workers."""

    ends: Ends
    service: ResolveService
    worker: Worker
    peers: list[PeerNews] = field(default_factory=list)
    _reader: NewsReader = field(default_factory=NewsReader)

    async def texts(self) -> list[str]:
        """The addresses that the worker uses."""
        for message in await self.worker.heard():
            if message.kind == LineKind.PEERS:
                news = self._reader.read(message.body)
                assert news is not None
                self.peers = [*news.peers]
        return [peer.address.text for peer in self.peers]

    @property
    def said(self) -> list[str]:
        return self.ends.said


@asynccontextmanager
async def resolving(
    zone: Zone,
    *members: Member,
    valid: float | None = None,
    row: Row | None = None,
    ipv6: bool = False,
    zone_name: str = "",
) -> AsyncIterator[Looking]:
    group = Group(name="U", members=members or (member(),), zone=zone_name)
    own = Row() if row is None else row
    groups = GroupService([group], own)
    settings = resolver_settings(valid=valid, ipv6=ipv6)
    resolvers = {"u": GroupResolver(settings=settings, timeout=3.0)}
    service = ResolveService(groups, resolvers, own, FakeServers(zone))
    async with manager(groups, service, row=own) as ends:
        with trio.fail_after(30):
            await service.wait_ready()
        yield Looking(ends, service, await ends.greeted(101))


async def test_workers_begin_with_what_was_found(autojump_clock: MockClock) -> None:
    zone: Zone = {"mail.test. A": ["60 A 192.0.2.2", "60 A 192.0.2.1"]}
    async with resolving(zone) as place:
        assert await place.texts() == [A, B]
    assert place.said == [f'[notice] upstream "U": mail.test resolved to {A}, {B}']


async def test_both_families_are_asked(autojump_clock: MockClock) -> None:
    zone: Zone = {
        "mail.test. A": ["60 A 192.0.2.1"],
        "mail.test. AAAA": ["60 AAAA 2001:db8::1"],
    }
    async with resolving(zone, ipv6=True) as place:
        assert await place.texts() == [A, "[2001:db8::1]:143"]


async def test_members_come_and_go_when_the_answer_is_old(
    autojump_clock: MockClock,
) -> None:
    zone: Zone = {"mail.test. A": ["60 A 192.0.2.1", "60 A 192.0.2.2"]}
    async with resolving(zone) as place:
        assert await place.texts() == [A, B]
        kept = place.peers[1].name
        zone["mail.test. A"] = ["60 A 192.0.2.2", "60 A 192.0.2.3"]
        await trio.sleep(55)
        assert await place.texts() == [A, B]
        await trio.sleep(10)
        assert await place.texts() == [B, C]
        assert place.peers[0].name == kept, "its numbers are found by it"
        await trio.sleep(600)
        assert len(place.said) == 2, "nothing is new"


async def test_valid_replaces_the_lifetime(autojump_clock: MockClock) -> None:
    zone: Zone = {"mail.test. A": ["86400 A 192.0.2.1"]}
    async with resolving(zone, valid=5.0) as place:
        zone["mail.test. A"] = ["86400 A 192.0.2.2"]
        await trio.sleep(6)
        assert await place.texts() == [B]


async def test_lifetimes_have_bounds(autojump_clock: MockClock) -> None:
    zone: Zone = {"mail.test. A": ["0 A 192.0.2.1"]}
    async with resolving(zone) as place:
        zone["mail.test. A"] = ["86400 A 192.0.2.2"]
        await trio.sleep(1.1)
        assert await place.texts() == [B]
        zone["mail.test. A"] = ["86400 A 192.0.2.3"]
        await trio.sleep(MAX_PAUSE - 5)
        assert await place.texts() == [B]
        await trio.sleep(10)
        # The resolver's own memory lasts as long as the answer; then it is asked again.
        await trio.sleep(86400)
        assert await place.texts() == [C]


async def test_what_cannot_be_looked_up_keeps_what_it_has(
    autojump_clock: MockClock,
) -> None:
    zone: Zone = {"mail.test. A": ["10 A 192.0.2.1"]}
    async with resolving(zone) as place:
        assert await place.texts() == [A]
        for answer, said in (
            ("NXDOMAIN", "3: Host not found"),
            ("SERVFAIL", "2: Server failure"),
            (NEVER, "110: Operation timed out"),
        ):
            zone["mail.test. A"] = answer
            await trio.sleep(20)
            assert await place.texts() == [A]
            assert place.said[
                -1
            ] == f"[error] mail.test could not be resolved ({said})" or place.said[
                -1
            ].startswith("[info]")
            assert f"[error] mail.test could not be resolved ({said})" in place.said
        zone["mail.test. A"] = ["10 A 192.0.2.2"]
        await trio.sleep(RETRY_PAUSE + 3.1)
        assert await place.texts() == [B]
    errors = [line for line in place.said if line.startswith("[error]")]
    assert len(errors) == 3, "each of them once"


async def test_a_name_that_is_unknown_at_first_may_come_later(
    autojump_clock: MockClock,
) -> None:
    zone: Zone = {}
    async with resolving(zone) as place:
        assert await place.texts() == []
        zone["mail.test. A"] = ["10 A 192.0.2.1"]
        await trio.sleep(RETRY_PAUSE + 0.1)
        assert await place.texts() == [A]


async def test_other_members_stay_in_their_places(autojump_clock: MockClock) -> None:
    fixed = Address(socket.AF_INET, ("192.0.2.9", 143), "192.0.2.9:143")
    zone: Zone = {
        "mail.test. A": ["10 A 192.0.2.1"],
        "spare.test. A": ["10 A 192.0.2.3"],
    }
    async with resolving(
        zone,
        member("spare.test", backup=True),
        Member(server=fixed.text, host="192.0.2.9", addresses=(fixed,), weight=3),
        member(weight=2),
    ) as place:
        assert await place.texts() == [fixed.text, A, C]
        assert [peer.weight for peer in place.peers] == [3, 2, 1]
        assert [peer.backup for peer in place.peers] == [False, False, True]
        assert [peer.server for peer in place.peers] == [1, 2, 0]
        zone["mail.test. A"] = ["10 A 192.0.2.1", "10 A 192.0.2.2"]
        await trio.sleep(11)
        assert await place.texts() == [fixed.text, A, B, C]


class TestServices:
    SRV = "_imap._tcp.mail.test. SRV"

    def zone(self, *records: str) -> Zone:
        return {
            self.SRV: [f"_imap._tcp.mail.test. 60 SRV {each}" for each in records],
            "a.test. A": ["60 A 192.0.2.1"],
            "b.test. A": ["60 A 192.0.2.2"],
            "c.test. A": ["60 A 192.0.2.3"],
        }

    async def test_smallest_priority_is_primary(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone("20 5 993 c.test.", "10 7 143 a.test.", "10 0 143 b.test.")
        wanted = member("mail.test", service="imap", port=0)
        async with resolving(zone, wanted) as place:
            assert await place.texts() == [B, A, "192.0.2.3:993"]
            assert [peer.weight for peer in place.peers] == [1, 7, 5]
            assert [peer.backup for peer in place.peers] == [False, False, True]
            zone |= self.zone("20 5 993 c.test.")
            await trio.sleep(61)
            assert await place.texts() == ["192.0.2.3:993"]
            assert [peer.backup for peer in place.peers] == [False]

    async def test_service_with_a_dot_is_a_whole_name(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone("1 1 143 a.test.")
        wanted = member("test", service="_imap._tcp.mail", port=0)
        async with resolving(zone, wanted) as place:
            assert await place.texts() == [A]

    async def test_server_without_an_address_is_left_out(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone("1 1 143 a.test.", "1 1 143 gone.test.")
        async with resolving(zone, member(service="imap", port=0)) as place:
            assert await place.texts() == [A]

    async def test_server_that_cannot_be_looked_up_stays(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone("1 1 143 a.test.", "1 1 143 b.test.")
        async with resolving(zone, member(service="imap", port=0)) as place:
            assert await place.texts() == [A, B]
            zone["b.test. A"] = "SERVFAIL"
            await trio.sleep(200)
            assert await place.texts() == [A, B]
            assert (
                "[error] _imap._tcp.mail.test could not be resolved (2: Server failure)"
                in place.said
            )

    async def test_servers_that_cannot_be_named_are_left_out(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone(
            "1 1 0 a.test.", "1 1 143 a\\.b\\032c.test.", "1 1 143 b.test."
        )
        async with resolving(zone, member(service="imap", port=0)) as place:
            assert await place.texts() == [B]

    async def test_service_that_is_decidedly_not_there(
        self, autojump_clock: MockClock
    ) -> None:
        zone = self.zone("0 0 0 .")
        async with resolving(zone, member(service="imap", port=0)) as place:
            assert await place.texts() == []
            assert place.said[0] == (
                "[error] _imap._tcp.mail.test could not be resolved (3: Host not found)"
            )


class TestBoard:
    def statistics(self) -> Statistics:
        statistics = Statistics()
        statistics.need(resolved_keys("U"), workers=1)
        return statistics

    async def test_the_next_manager_goes_on_without_a_name_server(
        self, autojump_clock: MockClock
    ) -> None:
        statistics = self.statistics()
        row = statistics.take_row(Role.MANAGER)
        zone: Zone = {
            "mail.test. A": ["5 A 192.0.2.1", "5 A 192.0.2.2"],
            "mail.test. AAAA": ["5 AAAA 2001:db8::1"],
        }
        async with resolving(zone, row=row, ipv6=True, zone_name="z") as place:
            statistics.set_front(row)
            await trio.sleep(1)
            before = await place.texts()
            names = [peer.name for peer in place.peers]
            body = {"upstream": "U", "peer": names[1], "event": "failed"}
            place.worker.say(LineKind.REPORT, body)
            await place.texts()
            assert place.peers[1].state == PeerState.UNAVAILABLE
        after = statistics.take_row(Role.MANAGER)
        silent: Zone = {"mail.test. A": NEVER, "mail.test. AAAA": NEVER}
        began = trio.current_time()
        async with resolving(silent, row=after, ipv6=True, zone_name="z") as place:
            assert trio.current_time() == began, "nobody waits"
            assert await place.texts() == before
            assert [peer.name for peer in place.peers] == names
            assert place.peers[1].state == PeerState.UNAVAILABLE

    async def test_what_another_server_had_is_no_member(
        self, autojump_clock: MockClock
    ) -> None:
        statistics = self.statistics()
        row = statistics.take_row(Role.MANAGER)
        async with resolving({"mail.test. A": ["5 A 192.0.2.1"]}, row=row) as place:
            statistics.set_front(row)
            await trio.sleep(1)
            assert await place.texts() == [A]
        async with resolving({}, member("other.test"), row=row) as place:
            assert await place.texts() == []

    async def test_names_with_sessions_are_not_given_to_others(
        self, autojump_clock: MockClock
    ) -> None:
        statistics = self.statistics()
        row, worker = (statistics.take_row(Role.WORKER) for _ in range(2))
        zone: Zone = {"mail.test. A": ["5 A 192.0.2.1"]}
        async with resolving(zone, row=row) as place:
            await place.texts()
            PeerNumbers(worker, "U", place.peers[0].name).enter()
            old = place.peers[0].name
            zone["mail.test. A"] = ["5 A 192.0.2.2"]
            await trio.sleep(6)
            assert await place.texts() == [B]
            assert place.peers[0].name != old

    async def test_more_members_than_names(self, autojump_clock: MockClock) -> None:
        statistics = self.statistics()
        row = statistics.take_row(Role.MANAGER)
        zone: Zone = {
            "mail.test. A": [f"5 A 192.0.2.{n}" for n in range(1, MAX_RESOLVED + 6)]
        }
        async with resolving(zone, row=row) as place:
            assert len(await place.texts()) == MAX_RESOLVED + 5
            assert len({peer.name for peer in place.peers}) == MAX_RESOLVED + 5

    def test_places_are_kept_octet_by_octet(self) -> None:
        statistics = self.statistics()
        row = statistics.take_row(Role.MANAGER)
        board = PeerPlace(row, "U", "#0")
        assert board.read() is None
        for place in (
            Place(0xFFFFFFF, b"\xff" * 16, 65535, 65535, True),
            Place(0, b"\0" * 16, 1, 1, False),
            Place(7, b"\xc0\0\2\1", 143, 1, True),
        ):
            board.write(place)
            assert PeerPlace(row, "U", "#0").read() == place
        board.write(None)
        assert board.read() is None


class TestAsking:
    """The client itself, with a server on the loopback."""

    async def test_answer_is_recognised(self) -> None:
        question = forward_question(Kind.A, b"mail.test")
        zone: Zone = {"mail.test. A": ["60 A 192.0.2.1"]}
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            await server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]

            async def serve() -> None:
                query, sender = await server.recvfrom(4096)
                good = respond(zone, query)
                assert good is not None
                for forged in (b"", b"x", b"\0\0" + good[2:], query):
                    await server.sendto(forged, sender)
                await server.sendto(good, sender)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                address = Address(socket.AF_INET, ("127.0.0.1", port), "server")
                answer = await dns_client.ask(address, question)
        assert answer.values == (bytes((192, 0, 2, 1)),)
        assert answer.ttl == 60

    async def test_long_answer_comes_over_tcp(self) -> None:
        question = forward_question(Kind.A, b"mail.test")
        zone: Zone = {"mail.test. A": [f"60 A 192.0.2.{n}" for n in range(60)]}
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            await server.bind(("127.0.0.1", port))

            async def truncate() -> None:
                query, sender = await server.recvfrom(4096)
                flags = bytes((query[2] | 0x82, query[3]))
                await server.sendto(query[:2] + flags + query[4:], sender)

            async def answer_whole(stream: trio.SocketStream) -> None:
                size = int.from_bytes(await stream.receive_some(2), "big")
                reply = respond(zone, await stream.receive_some(size))
                assert reply is not None
                await stream.send_all(len(reply).to_bytes(2, "big") + reply[:100])
                await stream.send_all(reply[100:])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(truncate)
                nursery.start_soon(trio.serve_listeners, answer_whole, listeners)
                address = Address(socket.AF_INET, ("127.0.0.1", port), "server")
                answer = await dns_client.ask(address, question)
                nursery.cancel_scope.cancel()
        assert len(answer.values) == 60
