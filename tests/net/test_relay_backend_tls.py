"""Relays with TLS toward the backend, the client, or both: every octet, under duress."""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest
import trio
import trustme

from mailproxy.net.relay import Ended, Relay
from mailproxy.net.wire import Wire
from tests.net.test_relay import client_context, reset, running, server_context

T = TypeVar("T")
MIB = 1 << 20
PAIRS = [("tls", "tls"), ("tls", "clear"), ("clear", "tls")]
"""How the client and the backend are spoken to."""
each_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)
DIRECTIONS = pytest.mark.parametrize("direction", ["down", "up"])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def no_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    """splice(2) knows nothing of TLS."""

    def splice(*_: object, **__: object) -> int:
        raise AssertionError("the octets of TLS were spliced")

    monkeypatch.setattr(os, "splice", splice)


async def in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


class Relayed:
    """A relayed session; `client` and `backend` are its far ends, blocking sockets."""

    def __init__(self) -> None:
        self.client: socket.socket
        self.backend: socket.socket
        self.ended: Ended | None = None

    def ends(self, direction: str) -> tuple[socket.socket, socket.socket]:
        """The source and the sink."""
        if direction == "down":
            return self.backend, self.client
        return self.client, self.backend


@asynccontextmanager
async def relayed(
    authority: trustme.CA,
    pair: tuple[str, str],
    *,
    room: int | None = None,
    bound: int | None = None,
    to_client: bytes = b"",
    to_backend: bytes = b"",
) -> AsyncIterator[Relayed]:
    """A session, whose end is waited for.

    Args:
      room: of the buffers of all sockets, if it is to be small.
    """
    session = Relayed()
    async with running() as relay, trio.open_nursery() as nursery:
        server, client = server_context(authority), client_context(authority)
        wires = []
        for side, mode in zip(("client", "backend"), pair, strict=True):
            wire, far = _connection(relay, room)
            if mode == "tls":
                far = await _shake_hands(wire, far, side, server, client)
            far.settimeout(30)
            setattr(session, side, far)
            wires.append(wire)

        async def carry() -> None:
            session.ended = await relay.carry(
                wires[0],
                wires[1],
                to_client=to_client,
                to_backend=to_backend,
                idle_limit=3600,
                bound=bound,
            )
            for wire in wires:
                wire.close()

        nursery.start_soon(carry)
        try:
            yield session
        finally:
            for far in (session.client, session.backend):
                with suppress(OSError):
                    far.shutdown(socket.SHUT_RDWR)
                far.close()


def _connection(relay: Relay, room: int | None) -> tuple[Wire, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if room:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        far = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    if room:
        for each in (ours, far):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    ours.setblocking(False)
    return Wire(relay.engine, ours.detach()), far


async def _shake_hands(
    wire: Wire,
    far: socket.socket,
    side: str,
    server: ssl.SSLContext,
    client: ssl.SSLContext,
) -> ssl.SSLSocket:
    made: list[ssl.SSLSocket] = []

    def shake() -> None:
        if side == "client":
            made.append(client.wrap_socket(far, server_hostname="localhost"))
        else:
            made.append(server.wrap_socket(far, server_side=True))
            made[0].sendall(b"* OK\r\n")

    thread = threading.Thread(target=shake)
    thread.start()
    if side == "client":
        await wire.start_tls(server)
    else:
        await wire.connect_tls(client, "localhost")
        # Session tickets come before it, and are read with it.
        assert await wire.receive_some() == b"* OK\r\n"
    await in_thread(thread.join)
    return made[0]


SIZES = (1, 7, 100, 1460, 4096, 16384, 16385, 70000)
WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def send_in_pieces(source: socket.socket, data: bytes, seed: int) -> None:
    """Send in pieces of all sizes, and nothing behind."""
    chance, at = random.Random(seed), 0
    while at < len(data):
        size = chance.choice(SIZES)
        source.sendall(data[at : at + size])
        at += size


def receive(sink: socket.socket, size: int, most: int = 1 << 16) -> bytes:
    """Receive so many octets, or until the end."""
    received = bytearray()
    while len(received) < size:
        part = sink.recv(most)
        if not part:
            break
        received += part
    return bytes(received)


def exchange(far: socket.socket, data: bytes, size: int, seed: int) -> bytes:
    """Send `data` in pieces, and receive `size` octets meanwhile.

    One thread does both: TLS of OpenSSL's is not for two.
    """
    chance, received = random.Random(seed), bytearray()
    left = memoryview(data)
    far.setblocking(False)
    while left or len(received) < size:
        idle = True
        if left:
            with suppress(BlockingIOError, *WOULD_BLOCK):
                left = left[far.send(left[: chance.choice(SIZES)]) :]
                idle = False
        if len(received) < size:
            with suppress(BlockingIOError, *WOULD_BLOCK):
                part = far.recv(chance.choice(SIZES))
                assert part, "it has ended"
                received += part
                idle = False
        if idle:
            select.select([far], [far] if left else [], [], 30)
    far.setblocking(True)
    return bytes(received)


def octets(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@each_pair
@pytest.mark.parametrize("bound", [None, 1024], ids=["", "proxy_buffer"])
async def test_both_directions_at_once(
    authority: trustme.CA, pair: tuple[str, str], bound: int | None
) -> None:
    up, down = octets(MIB, 1), octets(2 * MIB, 2)
    got: dict[str, bytes] = {}
    async with relayed(authority, pair, bound=bound) as session:

        async def run(name: str, far: socket.socket, data: bytes, size: int) -> None:
            got[name] = await in_thread(lambda: exchange(far, data, size, size))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "down", session.client, up, len(down))
            nursery.start_soon(run, "up", session.backend, down, len(up))
    assert got["up"] == up
    assert got["down"] == down


@each_pair
@DIRECTIONS
async def test_slow_reader_with_small_buffers(
    authority: trustme.CA, pair: tuple[str, str], direction: str
) -> None:
    data = octets(64 * 1024)
    async with relayed(authority, pair, room=4096, bound=1024) as session:
        source, sink = session.ends(direction)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: send_in_pieces(source, data, 3))
            assert await in_thread(lambda: receive(sink, len(data), 777)) == data


@each_pair
@DIRECTIONS
async def test_reader_that_does_not_read_stops_the_sender(
    authority: trustme.CA, pair: tuple[str, str], direction: str
) -> None:
    """And nothing is lost, nor the other direction blocked."""
    data = octets(1 << 16)
    async with relayed(authority, pair, room=4096) as session:
        source, sink = session.ends(direction)
        sent = bytearray()

        def send() -> None:
            source.settimeout(0.5)
            with suppress(OSError):
                while True:
                    source.sendall(data[:1024])
                    sent.extend(data[:1024])

        if isinstance(source, ssl.SSLSocket):
            source.settimeout(0.5)
        await in_thread(send)
        assert 0 < len(sent) < 8 * MIB
        await in_thread(lambda: sink.sendall(b"a NOOP\r\n"))
        source.settimeout(30)
        assert await in_thread(lambda: receive(source, 8)) == b"a NOOP\r\n"
        got = await in_thread(lambda: receive(sink, len(sent)))
        assert got == bytes(sent)


@each_pair
@DIRECTIONS
@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "FIN"])
async def test_last_octets_before_the_end_arrive(
    authority: trustme.CA, pair: tuple[str, str], direction: str, notify: bool
) -> None:
    data = octets(100_000)
    async with relayed(authority, pair) as session:
        source, sink = session.ends(direction)

        def send() -> None:
            source.sendall(data)
            if notify and isinstance(source, ssl.SSLSocket):
                source.settimeout(0)
                with suppress(OSError):
                    source.unwrap()
            else:
                source.shutdown(socket.SHUT_WR)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, send)
            got = await in_thread(lambda: receive(sink, len(data) + 1))
        assert got == data
    assert session.ended is not None
    assert (session.ended.reason, session.ended.error) == ("done", None)


@each_pair
@DIRECTIONS
async def test_reset(
    authority: trustme.CA, pair: tuple[str, str], direction: str
) -> None:
    async with relayed(authority, pair) as session:
        source, sink = session.ends(direction)
        await in_thread(lambda: source.sendall(b"x"))
        assert await in_thread(lambda: receive(sink, 1)) == b"x"
        reset(source)
        with suppress(ssl.SSLError):
            assert await in_thread(lambda: sink.recv(1)) == b""
    assert session.ended is not None
    assert session.ended.reason in ("done", "broken")


@each_pair
async def test_what_the_dialogue_left_goes_first(
    authority: trustme.CA, pair: tuple[str, str]
) -> None:
    async with relayed(
        authority, pair, to_client=b"a OK\r\n", to_backend=b"b NOOP\r\n"
    ) as session:
        await in_thread(lambda: session.client.sendall(b"c NOOP\r\n"))
        await in_thread(lambda: session.backend.sendall(b"b OK\r\n"))
        up = await in_thread(lambda: receive(session.backend, 16))
        down = await in_thread(lambda: receive(session.client, 12))
    assert up == b"b NOOP\r\nc NOOP\r\n"
    assert down == b"a OK\r\nb OK\r\n"


async def test_commands_that_take_turns(authority: trustme.CA) -> None:
    """Short records, each of which has to be noticed."""
    async with relayed(authority, ("tls", "tls")) as session:

        def talk() -> None:
            for number in range(300):
                command, answer = b"%d NOOP\r\n" % number, b"%d OK\r\n" % number
                session.client.sendall(command)
                assert receive(session.backend, len(command)) == command
                session.backend.sendall(answer)
                assert receive(session.client, len(answer)) == answer

        await in_thread(talk)
