"""Questions to name servers on the loopback, through the kernel's sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import dns.flags
import dns.message
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.conf.addresses import Address
from mailproxy.net.dns_messages import (
    NOT_FOUND,
    Answer,
    Kind,
    Question,
    forward_question,
)
from mailproxy.net.dns_port import (
    MAX_IN_A_ROW,
    MAX_PENDING,
    MAX_PORT_AGE,
    MAX_PORT_QUERIES,
    MAX_STRAYS,
)
from mailproxy.net.dns_transport import MAX_PORTS, PORTS, STREAMS, NameServers
from mailproxy.net.engine import Engine
from mailproxy.net.network import Network
from tests.name_servers import Zone, resolver_settings, respond, server_address
from tests.net.test_wire import descriptors, no_descriptors_left

QUESTION = forward_question(Kind.A, b"mail.example.com")
ZONE: Zone = {"mail.example.com. A": ["60 A 192.0.2.1"]}
ANSWER = Answer(0, (b"\xc0\0\2\1",), 60)
PATIENCE = 2 * MAX_PORT_AGE + 10

Respond = Callable[[bytes], list[bytes]]


def response(query: bytes) -> bytes:
    """The answer of a good name server."""
    data = respond(ZONE, query)
    assert data is not None
    return data


def framed(answer: bytes) -> bytes:
    """An answer as it is sent over TCP (RFC 1035, section 4.2.2)."""
    return len(answer).to_bytes(2, "big") + answer


def truncated(query: bytes) -> list[bytes]:
    """An answer that does not fit into a datagram."""
    head = dns.message.make_response(dns.message.from_wire(query))
    head.flags |= dns.flags.TC
    return [head.to_wire() + b"half a rec"]


class Served:
    """A transport on a running engine, and a name server.

    Attributes:
      udp: the server's socket.
      ports: UDP ports from which it was asked, in order.
      streams, most_streams: TCP connections at the server, now and ever.
    """

    def __init__(self, udp: trio.socket.SocketType, transport: NameServers) -> None:
        self.address = server_address(*udp.getsockname())
        self.transport = transport
        self.udp = udp
        self.ports: list[int] = []
        self.streams = self.most_streams = 0

    async def ask(self, question: Question = QUESTION) -> Answer:
        return await self.transport.ask(self.address, question)

    async def serve_udp(self, respond: Respond) -> None:
        while True:
            data, client = await self.udp.recvfrom(4096)
            self.ports.append(client[1])
            for packet in respond(data):
                await self.udp.sendto(packet, client)

    async def serve_tcp(
        self, tcp: trio.socket.SocketType, over_tcp: Callable[[bytes], bytes | None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await tcp.accept()
                stream = trio.SocketStream(connection)
                nursery.start_soon(self._serve_stream, stream, over_tcp)

    async def _serve_stream(
        self, stream: trio.SocketStream, over_tcp: Callable[[bytes], bytes | None]
    ) -> None:
        self.streams += 1
        self.most_streams = max(self.most_streams, self.streams)
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                answer = over_tcp((await stream.receive_some())[2:])
                if answer is None:
                    assert not await stream.receive_some()  # the client leaves
                else:
                    for part in (answer[:1], answer[1:3], answer[3:]):
                        await stream.send_all(part)
        self.streams -= 1


@asynccontextmanager
async def served(
    respond: Respond = lambda query: [response(query)],
    over_tcp: Callable[[bytes], bytes | None] = lambda query: framed(response(query)),
    limit: int = 1 << 30,
) -> AsyncIterator[Served]:
    """A name server: UDP, and TCP at the same port.

    Args:
      respond: the datagrams that answer a query.
      over_tcp: what answers over TCP before the end; None: nothing, and no end.
      limit: `worker_connections`.
    """
    engine = Engine(limit)
    with (
        trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
    ):
        await tcp.bind(("127.0.0.1", 0))
        await udp.bind(tcp.getsockname())
        tcp.listen()
        here = Served(udp, NameServers(engine))
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.run)
                nursery.start_soon(here.serve_udp, respond)
                nursery.start_soon(here.serve_tcp, tcp, over_tcp)
                yield here
                nursery.cancel_scope.cancel()
    here.transport.close()
    engine.close()


async def test_over_udp() -> None:
    async with served() as here:
        assert await here.ask() == ANSWER


async def test_over_ipv6() -> None:
    engine = Engine()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        udp.bind(("::1", 0))
        address = Address(socket.AF_INET6, udp.getsockname(), "[::1]")
        transport = NameServers(engine)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            nursery.start_soon(transport.ask, address, QUESTION)
            await wait_all_tasks_blocked()
            assert udp.recv(100)[12:] == QUESTION.wire
            nursery.cancel_scope.cancel()
    transport.close()
    engine.close()


async def test_answers_that_do_not_fit_come_over_tcp() -> None:
    async with served(truncated) as here:
        assert await here.ask() == ANSWER


async def test_what_does_not_match_the_question_is_passed_over() -> None:
    def forged(query: bytes) -> list[bytes]:
        other_id = bytes([query[0] ^ 1]) + query[1:]
        other_name = query.replace(b"mail", b"evil")
        evil = respond({"evil.example.com. A": ["60 A 192.0.2.66"]}, other_name)
        assert evil is not None
        return [b"", b"x", b"junk", query, response(other_id), evil, response(query)]

    async with served(forged) as here:
        assert await here.ask() == ANSWER


async def test_what_others_send_is_passed_over() -> None:
    """Datagrams of another address, which knows the number and the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))

        def respond_late(query: bytes) -> list[bytes]:
            evil = response(query).replace(b"\xc0\0\2\1", b"\xc0\0\2\x42")
            other.sendto(evil, ("127.0.0.1", here.ports[-1]))
            return [response(query)]

        async with served(respond_late) as here:
            assert await here.ask() == ANSWER


async def test_server_that_is_not_there_is_an_error_for_all_who_wait() -> None:
    """The kernel tells the socket once (ICMP); that concerns all of its questions."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = server_address(*sock.getsockname())
    before = descriptors()
    errors = []
    async with served() as here:

        async def ask() -> None:
            with pytest.raises(ConnectionRefusedError) as caught:
                await here.transport.ask(nobody, QUESTION)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert await here.ask() == ANSWER
    assert len(errors) == 20
    assert descriptors() == before


async def test_server_without_tcp() -> None:
    engine = Engine()
    transport = NameServers(engine)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        address = server_address(*udp.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)

            async def ask() -> None:
                with pytest.raises(ConnectionRefusedError):
                    await transport.ask(address, QUESTION)
                nursery.cancel_scope.cancel()

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            query, client = udp.recvfrom(100)
            udp.sendto(truncated(query)[0], client)
    transport.close()
    engine.close()


QUERY = dns.message.make_query("mail.example.com", "A")


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0",
        framed(b""),
        framed(b"\0\0\x81\x80"),
        framed(QUERY.to_wire()),
        framed(truncated(QUERY.to_wire())[0]),
        b"\1\0only this, and not 256 octets",
    ],
    ids=range(7),
)
async def test_tcp_answer_that_is_none_is_an_error(octets: bytes) -> None:
    async with served(truncated, lambda _: octets) as here:
        with pytest.raises(ConnectionAbortedError):
            await here.ask()


async def test_tcp_connections_are_few() -> None:
    async with served(truncated) as here:
        answers = []

        async def ask() -> None:
            answers.append(await here.ask())

        async with trio.open_nursery() as nursery:
            for _ in range(5 * STREAMS):
                nursery.start_soon(ask)
        assert answers == [ANSWER] * 5 * STREAMS


async def test_tcp_connections_that_are_silent_are_few() -> None:
    async with served(truncated, lambda _: None) as here:
        async with trio.open_nursery() as nursery:
            for _ in range(5 * STREAMS):
                nursery.start_soon(here.ask)
            while here.streams < STREAMS:
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked(0.01)
            assert here.most_streams == STREAMS
            nursery.cancel_scope.cancel()


async def test_silence_costs_a_few_sockets_and_leaving_leaves_nothing() -> None:
    async with served(lambda _: []) as here:
        before = len(descriptors())
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(here.ask)
            await wait_all_tasks_blocked()
            assert len(descriptors()) == before + PORTS
            assert not here.transport.make_room()
            nursery.cancel_scope.cancel()
        # No question waits: the sockets may be closed to make room for a session.
        for left in reversed(range(PORTS)):
            assert here.transport.make_room()
            assert len(descriptors()) == before + left
        assert not here.transport.make_room()


async def test_leaving_a_tcp_connection_closes_it() -> None:
    async with served(truncated, lambda _: None) as here:
        before = len(descriptors())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.ask)
            while not here.streams:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        while here.streams:
            await trio.lowlevel.checkpoint()
        assert len(descriptors()) == before + 1  # the UDP socket


async def test_answers_find_who_asked() -> None:
    """Many questions at a time, answered in another order."""
    waiting: list[tuple[bytes, int]] = []

    def hold(query: bytes) -> list[bytes]:
        waiting.append((query, here.ports[-1]))
        return []

    async with served(hold) as here:
        found: dict[int, Answer] = {}

        async def ask(number: int) -> None:
            question = forward_question(Kind.A, b"n%d.example" % number)
            found[number] = await here.ask(question)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
            while len(waiting) < 50:
                await trio.lowlevel.checkpoint()
            for query, port in reversed(waiting):
                name = dns.message.from_wire(query).question[0].name.to_text()
                text = name[1:].partition(".")[0]
                data = respond({f"{name} A": [f"60 A 10.0.0.{text}"]}, query)
                assert data is not None
                await here.udp.sendto(data, ("127.0.0.1", port))
    assert found == {n: Answer(0, (bytes((10, 0, 0, n)),), 60) for n in range(50)}
    # At a port all numbers differ, and they are drawn by lot.
    assert len({(query[:2], port) for query, port in waiting}) == 50
    numbers = [int.from_bytes(query[:2], "big") for query, _ in waiting]
    assert max(numbers) - min(numbers) > 1000


async def test_questions_at_a_port_are_bounded_and_differ_in_number() -> None:
    numbers = set()

    def hold(query: bytes) -> list[bytes]:
        numbers.add(query[:2])
        return []

    async with served(hold, limit=1) as here:
        async with trio.open_nursery() as nursery:
            for sent in range(64, MAX_PENDING + 1, 64):
                for _ in range(64):
                    nursery.start_soon(here.ask)
                while len(numbers) < sent:
                    await trio.lowlevel.checkpoint()
            with pytest.raises(OSError, match="No buffer space"):
                await here.ask()
            nursery.cancel_scope.cancel()


async def test_flood_has_to_wait_for_others() -> None:
    """So many messages of a round, and no more, are taken from a socket."""
    engine = Engine()
    transport = NameServers(engine)
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        address = server_address(*udp.getsockname())

        async def ask() -> None:
            answers.append(await transport.ask(address, QUESTION))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            query, client = udp.recvfrom(100)
            for _ in range(3 * MAX_IN_A_ROW):
                udp.sendto(bytes([query[0] ^ 1]) + query[1:], client)
            udp.sendto(response(query), client)
            for _ in range(3):
                engine._round(0)  # noqa: SLF001 - one by one
                await wait_all_tasks_blocked()
                assert answers == []
            engine.woke = False
            engine._round(0)  # noqa: SLF001
            assert engine.woke  # so that trio has a turn
        assert answers == [ANSWER]
    transport.close()
    engine.close()


def sockets() -> set[str]:
    """The sockets that this process has; a new one is never called as an old one."""
    names = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in descriptors())
    return {name for name in names if "socket:" in name}


async def wait_at_new_ports(here: Served, nursery: trio.Nursery) -> set[str]:
    """Ask often enough that every port is open and asked; the sockets there are then."""
    asked = len(here.ports)
    for _ in range(QUESTIONS):
        nursery.start_soon(here.ask)
    while len(here.ports) < asked + QUESTIONS:
        await trio.lowlevel.checkpoint()
    return sockets()


QUESTIONS = 100
"""So many that chance leaves no port out: three in ten to the twelfth power."""


class TestPorts:
    async def test_are_a_few_and_drawn_by_lot(self) -> None:
        async with served() as here:
            for _ in range(60):
                assert await here.ask() == ANSWER
        assert len(set(here.ports)) == PORTS
        drawn = here.ports[PORTS:]
        assert drawn[:-PORTS] != drawn[PORTS:]

    async def test_are_worn_out_by_questions(self) -> None:
        async with served(limit=1) as here:
            await here.ask()
            first = sockets()
            for _ in range(MAX_PORT_QUERIES - 1):
                await here.ask()
            assert sockets() == first
            await here.ask()
            assert len(sockets() - first) == len(first - sockets()) == 1

    async def test_are_worn_out_by_age(self, mock_clock: MockClock) -> None:
        async with served(limit=1) as here:
            await here.ask()
            first = sockets()
            mock_clock.jump(MAX_PORT_AGE - 1)
            await here.ask()
            assert sockets() == first
            mock_clock.jump(1)
            await here.ask()
            assert len(sockets() - first) == len(first - sockets()) == 1

    async def test_of_a_server_that_is_not_asked_any_more_are_closed(
        self, mock_clock: MockClock
    ) -> None:
        async with served() as here, served() as other:
            before = sockets()
            await here.transport.ask(other.address, QUESTION)
            old = sockets() - before
            mock_clock.jump(MAX_PORT_AGE)
            await here.ask()
            assert len(old) == 1
            assert not old & sockets()

    async def test_that_are_worn_are_replaced_while_somebody_waits_there(
        self, mock_clock: MockClock
    ) -> None:
        """There may be as many again, and no more."""
        async with served(lambda _: []) as here:
            before = sockets()
            async with trio.open_nursery() as nursery:
                old = await wait_at_new_ports(here, nursery)
                assert len(old - before) == PORTS
                mock_clock.jump(MAX_PORT_AGE)
                new = await wait_at_new_ports(here, nursery)
                assert len(new - before) == MAX_PORTS
                assert old < new
                fresh = {*here.ports[QUESTIONS:]}
                assert not fresh & {*here.ports[:QUESTIONS]}, "worn ones are not asked"
                mock_clock.jump(MAX_PORT_AGE)
                assert await wait_at_new_ports(here, nursery) == new
                nursery.cancel_scope.cancel()

    async def test_that_are_worn_are_closed_when_the_last_has_gone(
        self, mock_clock: MockClock
    ) -> None:
        async with served(lambda _: []) as here:
            before = sockets()
            async with trio.open_nursery() as first:
                old = await wait_at_new_ports(here, first)
                mock_clock.jump(MAX_PORT_AGE)
                async with trio.open_nursery() as second:
                    await wait_at_new_ports(here, second)
                    first.cancel_scope.cancel()
                    await wait_all_tasks_blocked()
                    second.cancel_scope.cancel()
            async with trio.open_nursery() as third:
                assert not (await wait_at_new_ports(here, third) - before) & old
                third.cancel_scope.cancel()

    async def test_are_used_on_while_there_is_no_room_for_others(self) -> None:
        """A port where an answer is waited for cannot make room for its successor."""
        silent = forward_question(Kind.A, b"silent.example")

        def answer_others(query: bytes) -> list[bytes]:
            return [] if b"silent" in query else [response(query)]

        async with served(answer_others, limit=1) as here:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.ask, silent)
                for _ in range(MAX_PORT_QUERIES + 5):
                    assert await here.ask() == ANSWER
                nursery.cancel_scope.cancel()
            assert len(set(here.ports)) == 1

    async def test_are_given_up_when_somebody_guesses(self) -> None:
        guesses = MAX_STRAYS

        def guess(query: bytes) -> list[bytes]:
            evil = bytes([query[0] ^ 1]) + response(query)[1:]
            return [evil] * guesses + [response(query)]

        async with served(guess) as here:
            first = sockets()
            with pytest.raises(ConnectionAbortedError):
                await here.ask()
            assert sockets() == first
            guesses -= 1
            assert await here.ask() == ANSWER

    async def test_are_not_had_without_room(self) -> None:
        async with served(limit=0) as here:
            before = descriptors()
            with pytest.raises(OSError, match="No buffer space") as caught:
                await here.ask()
            assert caught.value.errno == errno.ENOBUFS
            assert descriptors() == before

    async def test_are_not_had_without_descriptors(self) -> None:
        async with served() as here:
            before = descriptors()
            with no_descriptors_left(), pytest.raises(OSError, match="Too many open"):
                await here.ask()
            assert descriptors() == before
            assert await here.ask() == ANSWER


async def test_idle_sockets_make_room_for_others() -> None:
    """A network that is full closes sockets for which no question waits."""
    before = descriptors()
    async with served() as here:
        engine = Engine(limit=2)
        network = Network(engine)
        resolver = network.resolver(resolver_settings(here.address), 30.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            assert (await resolver.find_name(ip_address("192.0.2.1"))).code == NOT_FOUND
            assert not engine.full
            assert (await resolver.find_name(ip_address("192.0.2.2"))).code == NOT_FOUND
            assert engine.full
            assert network.make_room()
            assert not engine.full
            nursery.cancel_scope.cancel()
        network.close()
        engine.close()
    assert descriptors() == before
