"""Memory that a peer can make us use: never more than the limits say."""

from ipaddress import ip_address

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.auth.http_exchange import MAX_HEADER
from mailproxy.conf.addresses import Address
from mailproxy.net.dns import MAX_CACHED, MAX_CACHED_VALUES, Resolver
from mailproxy.net.dns_messages import Answer, Kind, Question
from tests.name_servers import resolver_settings
from tests.play import load_server, parse
from tests.security.acts import Act

FLOOD = 1 << 20
BUFFER = 4096
LITERAL = "imap; proxy_login literal"


def taken_of_a_flood(directives: str, script: str, kind: str, octets: bytes) -> int:
    """How many octets are read of a mebibyte before the session is over.

    Args:
      script: what everyone says before.
      kind: who sends it.
    """
    act = Act(load_server(directives))

    async def run() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse(script))
            wire = act.wire_of(kind)
            before = wire.received
            wire.put(octets * (FLOOD // len(octets)))
            await wait_all_tasks_blocked()
            assert wire.closed
        return wire.received - before

    taken = trio.run(run, clock=MockClock(autojump_threshold=0))
    act.check()
    return taken


OCTETS = pytest.mark.parametrize(
    "octets", [b"x", b" ", b"\0", b"\r", b'"', b"\\", b"{", b"=", b"\n", b"x\r\n"]
)


@OCTETS
@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_client_that_sends_without_end(protocol: str, octets: bytes) -> None:
    taken = taken_of_a_flood(f"protocol {protocol};", "", "C", octets)
    assert taken <= BUFFER


@OCTETS
@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        ("imap", "C: a AUTHENTICATE PLAIN"),
        ("imap", "C: a LOGIN {9999}"),
        ("imap", "C: a LOGIN {1+}⏎u {9999+}"),
        ("pop3", "C: AUTH PLAIN"),
        ("pop3", "C: USER u"),
        ("smtp", "C: AUTH PLAIN"),
        ("smtp", "C: AUTH XOAUTH2"),
        ("smtp", "C: EHLO me"),
    ],
)
def test_client_that_answers_without_end(
    protocol: str, script: str, octets: bytes
) -> None:
    """An empty answer is an answer, so that the session may go on with the next."""
    taken = taken_of_a_flood(
        f"protocol {protocol}; max_errors 1; max_commands 10;", script, "C", octets
    )
    assert taken <= 2 * BUFFER


def test_client_that_is_not_read_while_others_decide() -> None:
    """What it sends meanwhile waits in the kernel."""
    act = Act(load_server("protocol imap;"))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse("C: a LOGIN u SECRET"))
            act.wire.put(bytes(FLOOD))
            await act.follow(parse("A: OK\nB: * OK hi"))
            assert act.wire.received <= BUFFER
            for who in act.present:
                act.leave(who, "close")

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "octets",
    [
        *(b"x", b"X: y\r\n", b"\r", b" ", b":", b"\0"),
        b"HTTP/1.1 100 Continue\r\n",
        b"X: " + b" " * 1000,
    ],
)
@pytest.mark.parametrize("start", ["", "A: HTTP/1.1 200 OK⏎Auth-Status: OK"])
def test_auth_server_that_sends_without_end(start: str, octets: bytes) -> None:
    taken = taken_of_a_flood(
        "protocol imap;", f"C: a LOGIN u SECRET\n{start}", "A", octets
    )
    assert taken <= MAX_HEADER + 16 * 1024  # and one read more


@pytest.mark.parametrize(
    "octets", [b"x", b"* x\r\n", b"+OK\r\n", b"250-x\r\n", b"\r", b"\0"]
)
@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        ("imap", "C: a LOGIN u SECRET\nA: OK"),
        ("imap", "C: a LOGIN u SECRET\nA: OK\nB: * OK hi"),
        (LITERAL, "C: a LOGIN u SECRET\nA: OK\nB: * OK hi"),
        (LITERAL, "C: a LOGIN u SECRET\nA: OK\nB: * OK hi\nB: + a\nB: + b"),
        ("pop3", "C: USER u\nC: PASS SECRET\nA: OK"),
        ("pop3", "C: USER u\nC: PASS SECRET\nA: OK\nB: +OK"),
        ("smtp", "C: AUTH PLAIN AHUAcA==\nA: OK"),
        ("smtp", "C: AUTH PLAIN AHUAcA==\nA: OK\nB: 220 hi"),
    ],
)
def test_backend_that_sends_without_end(
    protocol: str, script: str, octets: bytes
) -> None:
    taken = taken_of_a_flood(f"protocol {protocol};", script, "B", octets)
    assert taken <= BUFFER


@pytest.mark.parametrize("values", [1, MAX_CACHED_VALUES, MAX_CACHED_VALUES + 1])
async def test_long_answers_of_name_servers_are_not_kept(values: int) -> None:
    """Whoever has a zone for their addresses chooses what is in it."""
    asked = 0

    async def ask(server: Address, question: Question) -> Answer:
        nonlocal asked
        asked += 1
        assert question.kind is Kind.A
        return Answer(0, (b"\xc0\0\2\1",) * values, ttl=60)

    resolver = Resolver(resolver_settings(ipv6=False), 30.0, ask)
    for _ in range(2):
        await resolver.find_addresses(b"mail.example.com", ip_address("192.0.2.2"))
    assert asked == (1 if values <= MAX_CACHED_VALUES else 2)
    assert MAX_CACHED * MAX_CACHED_VALUES * 64 < 1 << 26
