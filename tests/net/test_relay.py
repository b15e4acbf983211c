"""Relay, engine and wire: real sockets, and a clock that is moved by hand."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing
import trustme

from mailproxy.net.engine import Engine, ListeningWire
from mailproxy.net.idle import Connection
from mailproxy.net.network import Network
from mailproxy.net.relay import MAX_PIPES, Ended, Relay
from mailproxy.net.reuse import Reuse
from mailproxy.net.wire import Wire
from tests.net.test_wire import no_descriptors_left

MIB = 1 << 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def running() -> AsyncIterator[Relay]:
    """An engine and a relay, as in a worker."""
    engine = Engine()
    relay = Relay(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        nursery.start_soon(relay.expire)
        yield relay
        nursery.cancel_scope.cancel()
    relay.close()
    engine.close()


_OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: ours, non-blocking, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    _OPENED.append(peer)
    return ours, peer


class Session:
    """A relayed session; `client` and `backend` are the far ends, for trio."""

    def __init__(self, relay: Relay, *, tls: ssl.SSLContext | None = None) -> None:
        self.relay = relay
        ours, client = tcp_pair()
        theirs, backend = tcp_pair()
        self.tls = tls
        self.wires = (
            Wire(relay.engine, ours.detach()),
            Wire(relay.engine, theirs.detach()),
        )
        self.sockets = (client, backend)
        self.ended: Ended | None = None

    async def carry(
        self, nursery: trio.Nursery, **options: object
    ) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Start it; returns the far ends."""
        self.start(nursery, **options)
        client, backend = map(stream, self.sockets)
        return client, backend

    def start(self, nursery: trio.Nursery, **options: object) -> None:
        """Start it."""
        options.setdefault("idle_limit", 3600.0)

        async def run() -> None:
            try:
                self.ended = await self.relay.carry(*self.wires, **options)  # type: ignore[arg-type] # the tests' words
            finally:
                for wire in self.wires:
                    wire.close()

        nursery.start_soon(run)


def stream(connection: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(connection))


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([part async for part in stream])


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        assert part
        data += part
    return data


async def test_bytes_pass_both_ways_until_one_side_closes() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        session = Session(relay)
        client, backend = await session.carry(nursery)
        await client.send_all(b"a NOOP\r\n")
        assert await receive_exactly(backend, 8) == b"a NOOP\r\n"
        await backend.send_all(b"a OK\r\n")
        assert await receive_exactly(client, 6) == b"a OK\r\n"
        await backend.send_all(b"* BYE\r\n")
        await backend.aclose()
        assert await receive_all(client) == b"* BYE\r\n"
    assert session.ended is not None
    assert (session.ended.reason, session.ended.error) == ("done", None)
    assert len(relay) == 0


async def test_leftovers_go_first() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        client, backend = await Session(relay).carry(
            nursery, to_client=b"a OK\r\n", to_backend=b"b SELECT INBOX\r\n"
        )
        assert await receive_exactly(client, 6) == b"a OK\r\n"
        await client.send_all(b"c NOOP\r\n")
        assert await receive_exactly(backend, 24) == b"b SELECT INBOX\r\nc NOOP\r\n"
        await client.aclose()


@pytest.mark.proves("proxy_buffer")
@pytest.mark.parametrize("bound", [None, 4096], ids=["splice", "proxy_buffer"])
@pytest.mark.parametrize("direction", ["down", "up"])
async def test_large_transfers_arrive_whole(direction: str, bound: int | None) -> None:
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(MIB // 4))
    async with running() as relay, trio.open_nursery() as nursery:
        client, backend = await Session(relay).carry(nursery, bound=bound)
        source, sink = (backend, client) if direction == "down" else (client, backend)

        async def send() -> None:
            await source.send_all(data)
            await source.aclose()

        nursery.start_soon(send)
        assert await receive_all(sink) == data


async def test_a_slow_reader_stops_the_sender() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        client, backend = await Session(relay).carry(nursery)
        for each in (client, backend):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        sent = 0
        with trio.move_on_after(0.3):
            while True:
                await backend.send_all(bytes(64 * 1024))
                sent += 64 * 1024
        assert sent < 64 * MIB
        received = 0
        async with trio.open_nursery() as closing:
            closing.start_soon(backend.aclose)
            async for part in client:
                received += len(part)
        assert received >= sent


async def test_more_transfers_than_pipes() -> None:
    data = bytes(MIB)
    async with running() as relay, trio.open_nursery() as nursery:

        async def transfer() -> None:
            client, backend = await Session(relay).carry(nursery)
            async with trio.open_nursery() as both:
                both.start_soon(backend.send_all, data)
                assert len(await receive_exactly(client, len(data))) == len(data)
            await client.aclose()

        async with trio.open_nursery() as transfers:
            for _ in range(MAX_PIPES + 8):
                transfers.start_soon(transfer)


def reset(connection: socket.socket) -> None:
    """Break a connection, without the relay's having a chance to send the rest."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


async def test_without_descriptors_for_pipes_transfers_are_copied() -> None:
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(MIB // 8))
    async with running() as relay, trio.open_nursery() as nursery:
        client, backend = await Session(relay).carry(nursery)
        with no_descriptors_left():
            async with trio.open_nursery() as both:
                both.start_soon(backend.send_all, data)
                assert await receive_exactly(client, len(data)) == data
        await client.aclose()


async def test_a_wire_sends_more_than_the_kernel_takes_at_a_time() -> None:
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(MIB // 4))
    async with running() as relay, trio.open_nursery() as nursery:
        ours, peer = tcp_pair()
        wire = Wire(relay.engine, ours.detach())
        nursery.start_soon(wire.send_all, data)
        assert await receive_exactly(stream(peer), len(data)) == data
        wire.close()
        wire.close()  # does nothing


async def test_a_broken_connection_is_not_quiet() -> None:
    async with running() as relay:
        ours, peer = tcp_pair()
        wire = Wire(relay.engine, ours.detach())
        assert wire.is_quiet()
        reset(peer)
        assert not wire.is_quiet()
        wire.close()


@contextmanager
def blocking_client(
    connection: socket.socket, context: ssl.SSLContext
) -> Iterator[list[ssl.SSLSocket]]:
    """A TLS client in a thread of its own, as the handshake needs both sides."""
    made: list[ssl.SSLSocket] = []
    thread = threading.Thread(
        target=lambda: made.append(
            context.wrap_socket(connection, server_hostname="localhost")
        )
    )
    thread.start()
    yield made
    thread.join()


async def test_tls_toward_the_client(authority: trustme.CA) -> None:
    data = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(MIB // 8))
    async with running() as relay, trio.open_nursery() as nursery:
        session = Session(relay, tls=server_context(authority))
        with blocking_client(session.sockets[0], client_context(authority)) as made:
            assert session.tls is not None
            await session.wires[0].start_tls(session.tls)
        session.start(nursery)
        backend = stream(session.sockets[1])
        tls = made[0]
        await trio.to_thread.run_sync(tls.sendall, b"a NOOP\r\n")
        assert await receive_exactly(backend, 8) == b"a NOOP\r\n"

        def receive() -> bytes:
            received = b""
            while len(received) < len(data):
                received += tls.recv(1 << 16)
            tls.sendall(data)
            tls.close()
            return received

        async def send() -> None:
            await backend.send_all(data)
            assert await receive_exactly(backend, len(data)) == data

        nursery.start_soon(send)
        assert await trio.to_thread.run_sync(receive) == data


async def test_what_stays_inside_tls_is_not_lost(authority: trustme.CA) -> None:
    """A login and commands behind it in one TLS record: epoll reports them once."""
    async with running() as relay, trio.open_nursery() as nursery:
        session = Session(relay, tls=server_context(authority))
        with blocking_client(session.sockets[0], client_context(authority)) as made:
            assert session.tls is not None
            await session.wires[0].start_tls(session.tls)
        tls = made[0]
        await trio.to_thread.run_sync(tls.sendall, b"a LOGIN u p\r\nb SELECT x\r\n")
        assert await session.wires[0].receive_some(13) == b"a LOGIN u p\r\n"
        session.start(nursery)
        backend = stream(session.sockets[1])
        assert await receive_exactly(backend, 12) == b"b SELECT x\r\n"
        tls.close()


async def test_silence_ends_a_session(mock_clock: trio.testing.MockClock) -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        quiet, busy = Session(relay), Session(relay)
        await quiet.carry(nursery, idle_limit=10.0)
        client, backend = await busy.carry(nursery, idle_limit=10.0)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(9)
        # Traffic of the backend alone keeps a session alive.
        await backend.send_all(b"x")
        assert await client.receive_some() == b"x"
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert quiet.ended is not None
        assert (quiet.ended.reason, busy.ended) == ("timeout", None)
        mock_clock.jump(9)
        await trio.testing.wait_all_tasks_blocked()
        assert busy.ended is not None
        assert busy.ended.reason == "timeout"


async def test_shutdown_ends_every_session() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        sessions = [Session(relay) for _ in range(3)]
        for session in sessions:
            await session.carry(nursery)
        await trio.testing.wait_all_tasks_blocked()
        relay.shutdown()
        await trio.testing.wait_all_tasks_blocked()
        assert [s.ended and s.ended.reason for s in sessions] == ["shutdown"] * 3


async def test_cancelling_the_listener_ends_its_sessions() -> None:
    async with running() as relay:
        session = Session(relay)
        async with trio.open_nursery() as nursery:
            client, _ = await session.carry(nursery)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await client.receive_some() == b""
        assert len(relay) == 0


async def test_a_reset_is_the_end_and_is_told() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        session = Session(relay)
        client, backend = await session.carry(nursery)
        await client.send_all(b"x")
        await backend.receive_some()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.aclose()
        assert await backend.receive_some() == b""
    assert session.ended is not None
    assert isinstance(session.ended.error, ConnectionResetError)
    assert session.ended.side == "client"


async def test_a_backend_that_closed_before_the_relay_is_noticed() -> None:
    async with running() as relay, trio.open_nursery() as nursery:
        session = Session(relay)
        session.sockets[1].sendall(b"* BYE\r\n")
        session.sockets[1].shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        client, _ = await session.carry(nursery, to_client=b"a OK\r\n")
        assert await receive_all(client) == b"a OK\r\n* BYE\r\n"


async def test_connecting_to_nobody_shows_at_the_first_receive() -> None:
    async with running() as relay:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = listening.getsockname()
        wire = Wire.connect(relay.engine, socket.AF_INET, address)
        with pytest.raises(ConnectionRefusedError):
            await wire.receive_some()
        wire.close()


async def test_peek_waits_for_more_and_reads_nothing_away() -> None:
    async with running() as relay:
        ours, peer = tcp_pair()
        wire = Wire(relay.engine, ours.detach())
        peer.sendall(b"PRO")
        assert await wire.peek(100, 0) == b"PRO"
        async with trio.open_nursery() as nursery:

            async def more() -> None:
                assert await wire.peek(100, 3) == b"PROXY"

            nursery.start_soon(more)
            await trio.testing.wait_all_tasks_blocked()
            peer.sendall(b"XY")
        peer.shutdown(socket.SHUT_WR)
        assert await wire.peek(100, 5) == b"PROXY"
        wire.drop(5)
        assert await wire.receive_some() == b""
        wire.close()
        peer.close()


async def test_the_engine_takes_no_more_than_its_limit() -> None:
    engine = Engine(limit=1)
    network = Network(engine)
    ours, peer = tcp_pair()
    wire = Wire(engine, ours.detach())
    assert not network.make_room()
    other, far = tcp_pair()
    with pytest.raises(OSError, match="No buffer space"):
        Wire(engine, other.detach())
    wire.close()
    assert network.make_room()
    for each in (other, far, peer):
        each.close()
    engine.close()


async def test_an_idle_connection_is_thrown_away_when_its_server_closes() -> None:
    async with running() as relay:
        network = Network(relay.engine)
        (ours, peer), (second, far) = tcp_pair(), tcp_pair()
        number = ours.fileno()
        for each in (ours, second):
            connection = Connection(Wire(relay.engine, each.detach()))
            network.idle.keep("auth", connection, Reuse(idle=60, requests=2))
        far.close()
        await trio.testing.wait_all_tasks_blocked()
        taken = network.idle.take("auth")
        assert taken is not None
        wire = taken.wire
        assert wire.fd == number
        assert network.idle.take("auth") is None
        peer.sendall(b"answer")
        assert await wire.receive_some() == b"answer"
        wire.close()
        peer.close()


async def test_accepting() -> None:
    async with running() as relay:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            bound.setblocking(False)
            listening = ListeningWire(relay.engine, bound)
            peers = [socket.create_connection(bound.getsockname()) for _ in range(3)]
            accepted: list[tuple[socket.socket, object]] = []

            def begin(fd: int, address: object) -> None:
                accepted.append((socket.socket(fileno=fd), address))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listening.serve, begin)
                await trio.testing.wait_all_tasks_blocked()
                late = socket.create_connection(bound.getsockname())
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            for peer, (connection, address) in zip(
                [*peers, late], accepted, strict=True
            ):
                assert address == peer.getsockname()
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert not os.get_blocking(connection.fileno())
                connection.close()
                peer.close()
            listening.close()
