"""Host names of SMTP clients: what is asked, what is believed, what the log says.

It runs on virtual time, with a name server that is a function.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.log import ERROR, SessionInfo
from mailproxy.mail.client_host import TEMPUNAVAIL, UNAVAILABLE, find_client_host
from mailproxy.net.dns import Resolver
from mailproxy.net.resolver_settings import ResolverSettings
from tests.captured_log import CapturedLog
from tests.name_servers import NEVER, FakeServers, Zone, resolver_settings
from tests.play import load_server

REVERSE = "1.2.0.192.in-addr.arpa. PTR"


async def client_host(
    servers: FakeServers,
    settings: ResolverSettings | None = None,
    client: str = "192.0.2.1",
    resolver_timeout: float = 30.0,
) -> tuple[bytes, list[str]]:
    """The name, and what is logged."""
    resolver = Resolver(settings or resolver_settings(), resolver_timeout, servers)
    return await client_host_of(resolver, client)


async def client_host_of(
    resolver: Resolver, client: str = "192.0.2.1"
) -> tuple[bytes, list[str]]:
    captured = CapturedLog(ERROR)
    context = SessionInfo(1, client, 99, "127.0.0.1:25")
    name = await find_client_host(resolver, context, captured.log.bind(context=context))
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
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (110: Operation timed out) {ADDRESS}"],
        ),
        (
            {REVERSE: ["60 TXT hello"]},
            TEMPUNAVAIL,
            [f"192.0.2.1 could not be resolved (110: Operation timed out) {ADDRESS}"],
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
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": ["60 CNAME 1.example."],
                **{f"{n}.example. A": [f"60 CNAME {n + 1}.example."] for n in range(1, 9)},
                "9.example. A": ["60 A 192.0.2.1"],
            },
            TEMPUNAVAIL,
            [f'"m.example" could not be resolved (2: Server failure) {HOSTNAME}'],
        ),
        (
            {REVERSE: ["60 PTR m.example."], "m.example. A": ["o.example. 60 A 192.0.2.1"]},
            TEMPUNAVAIL,
            [f'"m.example" could not be resolved (110: Operation timed out) {HOSTNAME}'],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": [f"60 A 10.0.{n}.1" for n in range(99)] + ["60 A 192.0.2.1"],
            },
            b"m.example",
            [],
        ),
        (
            {
                REVERSE: ["60 PTR m.example."],
                "m.example. A": [f"60 A 10.0.{n}.1" for n in range(100)] + ["60 A 192.0.2.1"],
            },
            TEMPUNAVAIL,
            [f'"m.example" could not be resolved (2: Server failure) {HOSTNAME}'],
        ),
        (
            {REVERSE: [f"60 PTR {n}.example." for n in range(200)], "0.example. A": ["60 A 192.0.2.1"]},
            b"0.example",
            [],
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
    [(resolver_settings(ipv4=False), ["AAAA"]), (resolver_settings(ipv6=False), ["A"])],
)
async def test_only_the_wanted_kinds_are_asked_for(
    settings: ResolverSettings, kinds: list[str]
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
