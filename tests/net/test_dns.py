"""Host names of clients: what is asked, what is believed, what the log says.

The logic runs on virtual time with a name server that is a function; the transport
is tried with a real one on loopback.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mailproxy.log import ERROR, MailContext
from mailproxy.net.dns import (
    CACHED,
    TEMPUNAVAIL,
    UNAVAILABLE,
    Accept,
    Answer,
    NameServer,
    Question,
    Resolver,
    ask,
)
from mailproxy.net.dns_messages import make_query
from tests.captured_log import CapturedLog
from tests.play import load_server

NEVER = "never"
REVERSE = "1.2.0.192.in-addr.arpa. PTR"


@dataclass(frozen=True)
class Server:
    family: int
    sockaddr: tuple[str, int]


FIRST = Server(socket.AF_INET, ("127.0.0.1", 53))
SECOND = Server(socket.AF_INET, ("127.0.0.2", 53))


@dataclass(frozen=True)
class Settings:
    servers: tuple[Server, ...] = (FIRST,)
    valid: float | None = None
    ipv4: bool = True
    ipv6: bool = True


Zone = dict[str, str | list[str]]
"""For "NAME TYPE": records as text ("TTL TYPE DATA"), an rcode, or NEVER."""


def respond(zone: Zone, query: bytes) -> bytes | None:
    """What a name server with that zone sends, if anything."""
    message = dns.message.from_wire(query)
    question = message.question[0]
    name = question.name.to_text()
    entry = zone.get(f"{name} {question.to_text().split()[-1]}", "NXDOMAIN")
    if entry == NEVER:
        return None
    response = dns.message.make_response(message)
    if isinstance(entry, str):
        response.set_rcode(dns.rcode.from_text(entry))
        return response.to_wire()
    for record in entry:
        words = record.split(" ", 3)
        owner, ttl, kind, data = words if words[0].endswith(".") else [name, *words]
        response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
    return response.to_wire()


@dataclass
class FakeServers:
    """Answers out of a zone, at once or never."""

    zone: Zone
    asked: list[str] = field(default_factory=list)
    servers: list[tuple[NameServer, float]] = field(default_factory=list)
    dead: set[Server] = field(default_factory=set)
    silent: set[Server] = field(default_factory=set)

    async def __call__(
        self, server: NameServer, query: bytes, accept: Accept, tcp: bool
    ) -> Answer:
        question = dns.message.from_wire(query).question[0]
        self.asked.append(question.to_text().replace(" IN", ""))
        self.servers.append((server, trio.current_time()))
        await trio.lowlevel.checkpoint()
        if server in self.dead:
            raise ConnectionRefusedError(111, "refused")
        data = None if server in self.silent else respond(self.zone, query)
        if data is None:
            await trio.sleep_forever()
            raise AssertionError
        answer = accept(data)
        if answer is None:
            await trio.sleep_forever()
            raise AssertionError
        return answer


async def client_host(
    servers: FakeServers,
    settings: Settings | None = None,
    client: str = "192.0.2.1",
    resolver_timeout: float = 30.0,
) -> tuple[bytes, list[str]]:
    """The name, and what is logged."""
    resolver = Resolver(settings or Settings(), resolver_timeout, servers)
    return await client_host_of(resolver, client)


async def client_host_of(
    resolver: Resolver, client: str = "192.0.2.1"
) -> tuple[bytes, list[str]]:
    captured = CapturedLog(ERROR)
    context = MailContext(1, client, 99, "127.0.0.1:25")
    name = await resolver.client_host(context, captured.log.bind(context=context))
    events = [
        text.removesuffix(", server: 127.0.0.1:25") for _, text in captured.events
    ]
    return name, [event.removesuffix(f", client: {client}") for event in events]


ADDRESS = "while in resolving client address"
HOSTNAME = "while in resolving client hostname"
GOOD: Zone = {
    REVERSE: ["60 PTR Mail.Example.COM."],
    "mail.example.com. A": ["60 A 192.0.2.9", "60 A 192.0.2.1"],
}


async def test_name_that_leads_back_is_the_clients() -> None:
    servers = FakeServers(GOOD)
    assert await client_host(servers) == (b"mail.example.com", [])
    assert servers.asked[0] == REVERSE
    assert sorted(servers.asked[1:]) == [
        "mail.example.com. A",
        "mail.example.com. AAAA",
    ]


@pytest.mark.parametrize(
    ("zone", "name", "events"),
    [
        ({}, UNAVAILABLE, [f"192.0.2.1 could not be resolved (3: Host not found) {ADDRESS}"]),
        (
            {REVERSE: []},
            UNAVAILABLE,
            [f"192.0.2.1 could not be resolved (3: Host not found) {ADDRESS}"],
        ),
        (
            {REVERSE: ["60 CNAME alias.example."]},
            UNAVAILABLE,
            [f"192.0.2.1 could not be resolved (3: Host not found) {ADDRESS}"],
        ),
        (
            {REVERSE: "SERVFAIL"},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (2: Server failure) {ADDRESS}"],
        ),
        (
            {REVERSE: "REFUSED"},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (5: Operation refused) {ADDRESS}"],
        ),
        (
            {REVERSE: "NOTIMP"},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (4: Unimplemented) {ADDRESS}"],
        ),
        (
            {REVERSE: "YXDOMAIN"},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (6: Unknown error) {ADDRESS}"],
        ),
        (
            {REVERSE: NEVER},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (110: Operation timed out) {ADDRESS}"],
        ),
        (
            {REVERSE: "FORMERR"},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (110: Operation timed out) {ADDRESS}"],
        ),
        (
            {REVERSE: ["60 PTR bad_name.example."]},
            TEMPUNAVAIL,
            [f'192.0.2.1 resolved to invalid host name "bad_name.example" {ADDRESS}'],
        ),
        (
            {REVERSE: ["60 PTR a\\013\\010b\\034.example."]},
            TEMPUNAVAIL,
            [
                "192.0.2.1 resolved to invalid host name"
                f' "a\\x0D\\x0Ab\\x22.example" {ADDRESS}'
            ],
        ),
        (
            {REVERSE: ["60 PTR a\\.\\.b.example."]},
            TEMPUNAVAIL,
            [f'192.0.2.1 resolved to invalid host name "a..b.example" {ADDRESS}'],
        ),
        (
            {REVERSE: ["60 PTR ."]},
            TEMPUNAVAIL,
            [f'192.0.2.1 resolved to invalid host name "" {ADDRESS}'],
        ),
        (
            {REVERSE: ["60 PTR m.example."]},
            UNAVAILABLE,
            [f'"m.example" could not be resolved (3: Host not found) {HOSTNAME}'],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": [],
                "m.example. AAAA": [],
            },
            UNAVAILABLE,
            [f'"m.example" could not be resolved (3: Host not found) {HOSTNAME}'],
        ),
        (
            {REVERSE: ["60 PTR m.example."], "m.example. AAAA": "SERVFAIL"},
            TEMPUNAVAIL,
            [f'"m.example" could not be resolved (2: Server failure) {HOSTNAME}'],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": ["60 A 192.0.2.2"],
                "m.example. AAAA": NEVER,
            },
            TEMPUNAVAIL,
            [f'"m.example" could not be resolved (110: Operation timed out) {HOSTNAME}'],
        ),
        (
            {REVERSE: ["60 PTR m.example."], "m.example. A": ["60 A 192.0.2.2"]},
            UNAVAILABLE,
            [],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": ["60 A 192.0.2.1"],
                "m.example. AAAA": NEVER,
            },
            b"m.example",
            [],
        ),
        (
            {
                REVERSE: ["60 PTR first.example.", "60 PTR second.example."],
                "first.example. A": ["60 A 192.0.2.1"],
            },
            b"first.example",
            [],
        ),
        (
            {
                REVERSE: ["60 CNAME 1.sub.example.", "1.sub.example. 60 PTR m.example."],
                "m.example. A": ["60 CNAME x.example.", "x.example. 60 A 192.0.2.1"],
            },
            b"m.example",
            [],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": ["60 CNAME x.example."],
                "x.example. A": ["60 A 192.0.2.1"],
            },
            b"m.example",
            [],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": ["60 CNAME x.example."],
                "x.example. A": ["60 CNAME m.example."],
            },
            UNAVAILABLE,
            [f'"m.example" could not be resolved (3: Host not found) {HOSTNAME}'],
        ),
        (
            {REVERSE: ["60 PTR m.example."], "m.example. A": ["o.example. 60 A 192.0.2.1"]},
            UNAVAILABLE,
            [f'"m.example" could not be resolved (3: Host not found) {HOSTNAME}'],
        ),
    ],
)  # fmt: skip
async def test_what_servers_say_has_its_result_and_its_line(
    autojump_clock: MockClock, zone: Zone, name: bytes, events: list[str]
) -> None:
    start = trio.current_time()
    assert await client_host(FakeServers(zone)) == (name, events)
    waited = trio.current_time() - start
    assert waited == (30 if any("110:" in event for event in events) else 0)


@pytest.mark.proves("resolver_timeout")
async def test_each_lookup_may_take_the_timeout(autojump_clock: MockClock) -> None:
    zone = GOOD | {"mail.example.com. A": NEVER}
    start = trio.current_time()
    name, _ = await client_host(FakeServers(zone), resolver_timeout=2.0)
    assert name == TEMPUNAVAIL
    assert trio.current_time() - start == 2


async def test_ipv6_clients() -> None:
    reverse = f"{'1.' + '0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa. PTR"
    zone: Zone = {
        reverse: ["60 PTR six.example."],
        "six.example. AAAA": ["60 AAAA 2001:db8::1"],
    }
    assert await client_host(FakeServers(zone), client="2001:db8::1") == (
        b"six.example",
        [],
    )


async def test_mapped_ipv4_clients_are_ipv4_clients() -> None:
    name, _ = await client_host(FakeServers(GOOD), client="::ffff:192.0.2.1")
    assert name == b"mail.example.com"


async def test_clients_on_unix_sockets_have_no_name() -> None:
    servers = FakeServers(GOOD)
    assert await client_host(servers, client="unix:") == (TEMPUNAVAIL, [])
    assert servers.asked == []


@pytest.mark.proves("resolver", "ipv4=", "ipv6=")
@pytest.mark.parametrize(
    ("settings", "kinds"),
    [(Settings(ipv4=False), ["AAAA"]), (Settings(ipv6=False), ["A"])],
)
async def test_only_the_wanted_kinds_are_asked_for(
    settings: Settings, kinds: list[str]
) -> None:
    servers = FakeServers(GOOD)
    await client_host(servers, settings)
    assert [asked.split()[1] for asked in servers.asked[1:]] == kinds


@pytest.mark.proves("resolver", "valid=", "ipv4=", "ipv6=")
@pytest.mark.parametrize(
    ("parameters", "kinds"),
    [
        ("", ["A", "AAAA"]),
        ("ipv6=off", ["A"]),
        ("ipv4=off", ["AAAA"]),
        ("ipv6=off valid=5s", ["A", "A"]),  # the zone says a minute
    ],
)
async def test_parameters_of_the_directive(
    autojump_clock: MockClock, parameters: str, kinds: list[str]
) -> None:
    text = f"protocol smtp; resolver 127.0.0.1 {parameters};"
    settings = load_server(text).core.resolver
    assert settings is not None
    zone = GOOD | {"mail.example.com. AAAA": ["60 AAAA 2001:db8::1"]}
    servers = FakeServers(zone)
    resolver = Resolver(settings, 30.0, servers)
    await client_host_of(resolver)
    await trio.sleep(6)
    await client_host_of(resolver)
    asked = [each.split()[1] for each in servers.asked]
    assert sorted(kind for kind in asked if kind != "PTR") == kinds


class TestServers:
    async def test_take_turns(self) -> None:
        servers = FakeServers({REVERSE: "SERVFAIL"})
        resolver = Resolver(Settings((FIRST, SECOND)), 30.0, servers)
        for _ in range(3):
            await client_host_of(resolver)
        assert [server for server, _ in servers.servers] == [FIRST, SECOND, FIRST]

    async def test_silent_one_is_not_waited_for_long(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, silent={FIRST})
        start = trio.current_time()
        name, _ = await client_host(servers, Settings((FIRST, SECOND), ipv6=False))
        assert name == b"mail.example.com"
        assert [at - start for _, at in servers.servers] == [0, 5, 5]

    async def test_dead_ones_are_tried_once_and_then_again_after_a_while(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, dead={FIRST, SECOND})
        start = trio.current_time()
        name, events = await client_host(
            servers, Settings((FIRST, SECOND)), resolver_timeout=12.0
        )
        assert name == TEMPUNAVAIL
        assert "(110: Operation timed out)" in events[0]
        assert [at - start for _, at in servers.servers] == [0, 0, 5, 10]

    async def test_dead_one_costs_no_time_beside_a_good_one(self) -> None:
        servers = FakeServers(GOOD, dead={FIRST})
        name, _ = await client_host(servers, Settings((FIRST, SECOND)))
        assert name == b"mail.example.com"


@pytest.mark.proves("resolver", "conf=")
async def test_servers_of_a_resolv_conf_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search example.com\nnameserver 127.0.0.2\nnameserver ::1\n")
    settings = load_server(f"protocol smtp; resolver conf={path};").core.resolver
    assert settings is not None
    servers = FakeServers({REVERSE: "SERVFAIL"})
    resolver = Resolver(settings, 30.0, servers)
    for _ in range(2):
        await client_host_of(resolver)
    asked = [server.sockaddr[:2] for server, _ in servers.servers]
    assert asked == [("127.0.0.2", 53), ("::1", 53)]


class TestMemory:
    async def test_answers_are_kept_for_their_time(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD | {"mail.example.com. A": ["10 A 192.0.2.1"]})
        resolver = Resolver(Settings(ipv6=False), 30.0, servers)
        for pause in (0, 9, 2, 50):
            await trio.sleep(pause)
            assert await client_host_of(resolver) == (b"mail.example.com", [])
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
        resolver = Resolver(Settings(valid=5.0, ipv6=False), 30.0, servers)
        for pause in (0, 4, 2):
            await trio.sleep(pause)
            await client_host_of(resolver)
        assert len(servers.asked) == 4

    async def test_errors_are_not_kept(self) -> None:
        servers = FakeServers({})
        resolver = Resolver(Settings(), 30.0, servers)
        await client_host_of(resolver)
        await client_host_of(resolver)
        assert servers.asked == [REVERSE, REVERSE]

    async def test_is_bounded(self) -> None:
        class Everything(FakeServers):
            async def __call__(
                self, server: NameServer, query: bytes, accept: Accept, tcp: bool
            ) -> Answer:
                self.asked.append("")
                return Answer(0, (b"m.example",), ttl=1000)

        servers = Everything({})
        resolver = Resolver(Settings(), 30.0, servers)
        for number in range(CACHED + 100):
            await resolver._look_up(Question("PTR", f"{number}."))  # noqa: SLF001 - quick
        assert len(resolver._cache) == CACHED  # noqa: SLF001 - the bound itself

    async def test_who_asks_the_same_at_the_same_time_shares_the_answer(self) -> None:
        servers = FakeServers(GOOD)
        resolver = Resolver(Settings(ipv6=False), 30.0, servers)
        names = []

        async def one() -> None:
            names.append((await client_host_of(resolver))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert names == [b"mail.example.com"] * 50
        assert len(servers.asked) == 2

    async def test_who_leaves_does_not_take_the_others_with_them(
        self, autojump_clock: MockClock
    ) -> None:
        servers = FakeServers(GOOD, silent={FIRST})
        resolver = Resolver(Settings((FIRST, SECOND), ipv6=False), 30.0, servers)
        names = []

        async def one(patience: float) -> None:
            with trio.move_on_after(patience):
                names.append((await client_host_of(resolver))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(one, 60)
            nursery.start_soon(one, 60)
        assert names == [b"mail.example.com"] * 2


Respond = Callable[[bytes], list[bytes]]


@asynccontextmanager
async def name_server(
    respond: Respond, over_tcp: Callable[[bytes], bytes] = bytes
) -> AsyncIterator[Server]:
    """A name server on loopback: UDP, and TCP at the same port if wanted."""
    with (
        trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
    ):
        await tcp.bind(("127.0.0.1", 0))
        await udp.bind(tcp.getsockname())
        tcp.listen()

        async def serve_udp() -> None:
            while True:
                data, client = await udp.recvfrom(4096)
                for packet in respond(data):
                    await udp.sendto(packet, client)

        async def serve_tcp() -> None:
            while True:
                async with trio.SocketStream((await tcp.accept())[0]) as stream:
                    with contextlib.suppress(trio.BrokenResourceError):
                        answer = over_tcp((await stream.receive_some())[2:])
                        await stream.send_all(len(answer).to_bytes(2, "big")[:1])
                        await stream.send_all(len(answer).to_bytes(2, "big")[1:])
                        await stream.send_all(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(serve_tcp)
            yield Server(socket.AF_INET, udp.getsockname())
            nursery.cancel_scope.cancel()


def response(query: bytes) -> bytes:
    data = respond(GOOD, query)
    assert data is not None
    return data


async def test_over_udp() -> None:
    async with name_server(lambda query: [response(query)]) as server:
        resolver = Resolver(Settings((server,)), 30.0)
        assert await client_host_of(resolver) == (b"mail.example.com", [])


async def test_answers_that_do_not_fit_come_over_tcp() -> None:
    def truncated(query: bytes) -> list[bytes]:
        head = dns.message.make_response(dns.message.from_wire(query))
        head.flags |= dns.flags.TC
        return [head.to_wire() + b"half a rec"]

    async with name_server(truncated, response) as server:
        resolver = Resolver(Settings((server,)), 30.0)
        assert await client_host_of(resolver) == (b"mail.example.com", [])


async def test_what_does_not_match_the_question_is_passed_over() -> None:
    def forged(query: bytes) -> list[bytes]:
        other_id = bytes([query[0] ^ 1]) + query[1:]
        question = dns.message.from_wire(query).question[0]
        other_name = dns.message.make_query("other.example", question.rdtype)
        other_name.id = dns.message.from_wire(query).id
        wrong = respond(
            {"other.example. PTR": ["60 PTR evil.example."]}, other_name.to_wire()
        )
        assert wrong is not None
        return [b"", b"junk", query, response(other_id), wrong, response(query)]

    async with name_server(forged) as server:
        resolver = Resolver(Settings((server,)), 30.0)
        assert await client_host_of(resolver) == (b"mail.example.com", [])


async def test_server_that_is_not_there_is_an_error_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = Server(socket.AF_INET, sock.getsockname())
    query, accept = make_query(Question("A", "mail.example.com."))
    for tcp in False, True:
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's choice
            await ask(nobody, query, accept, tcp)
    async with name_server(lambda query: [response(query)]) as server:
        resolver = Resolver(Settings((nobody, server)), 30.0)
        assert await client_host_of(resolver) == (b"mail.example.com", [])


@pytest.mark.parametrize("answer", [b"", b"\0"])
async def test_tcp_answer_that_ends_early_is_an_error(answer: bytes) -> None:
    query, accept = make_query(Question("A", "mail.example.com."))
    async with name_server(lambda query: [], lambda query: answer) as server:
        with pytest.raises(ConnectionAbortedError):
            await ask(server, query, accept, True)


def test_queries_cannot_be_guessed() -> None:
    question = Question("A", "mail.example.com.")
    assert len({make_query(question)[0][:2] for _ in range(50)}) > 40


@given(st.binary(max_size=100), st.integers(0, 12), st.booleans())
def test_any_bytes_are_an_answer_or_none(tail: bytes, cut: int, flip: bool) -> None:
    query, accept = make_query(Question("PTR", "1.2.0.192.in-addr.arpa."))
    good = response(query)
    for data in (
        tail,
        query[:2] + b"\x84" + tail,
        good[: len(good) - cut] + tail,
        good[:30] + tail + good[30 + cut :],
    ):
        answer = accept(data)
        assert answer is None or isinstance(answer, Answer)
