"""TLS without reads that fail: what stands behind a record that was read is found.

A wire, and the relay, do not read on behind a short record, but have the engine look at
the descriptor anew. Nothing must be left inside OpenSSL then, and nothing be missed in
the socket. The server's context is that of the product. Nothing waits for time: what is
not noticed once all tasks wait counts as missed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailproxy.net import driven, openssl
from mailproxy.net.engine import Engine
from mailproxy.net.relay import Relay
from mailproxy.net.wire import Wire
from tests.net.far import (
    KEY_UPDATE_NOT_REQUESTED,
    KEY_UPDATE_REQUESTED,
    FarTls,
)
from tests.play import certificate, load_server

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
PLACES = ("dialogue", "relay", "relay to TLS")
HANDSHAKE = b"\x16"
"""The first octet of a record (RFC 5246, section 6.2.1)."""
LINES = [b"a NOOP\r\n", b"b SELECT INBOX\r\n", b"c", b" NOOP\r\n", b"d LOGOUT\r\n"]

every_version = pytest.mark.parametrize(
    "version", VERSIONS.values(), ids=list(VERSIONS)
)
every_place = pytest.mark.parametrize("place", PLACES)
needs_openssl = pytest.mark.skipif(
    openssl.unreachable() is not None, reason="OpenSSL's functions cannot be called"
)


def client_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def server_context() -> ssl.SSLContext:
    """That of a server of the product."""
    server = load_server(
        "protocol imap; starttls on; ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
    )
    assert server.ssl.context is not None
    return server.ssl.context


class Line:
    """A client that speaks TLS, and what becomes of what it says.

    Attributes:
      client: its end.
      ended: whether the session has seen the end of the client.
      answer: what a dialogue sends after each receive.
      first: what the client gets as the relay begins, after a login.
      error: with which the relay has ended.
      wires: the session's.
    """

    def __init__(self, engine: Engine, relay: Relay, place: str) -> None:
        self.engine = engine
        self.relay = relay
        self.place = place
        self.ended = False
        self.wires: list[Wire] = []
        self.answer = b""
        self.first = b""
        self.error: OSError | None = None
        self._read = bytearray()
        self._unsent = bytearray()
        self._sockets: list[socket.socket] = []
        self.backend: FarTls | None = None

    def pair(self) -> tuple[Wire, socket.socket]:
        ours, far = socket.socketpair()
        for each in (ours, far):
            each.setblocking(False)
        self._sockets.append(far)
        wire = Wire(self.engine, ours.detach())
        self.wires.append(wire)
        return wire, far

    async def begin(
        self, nursery: trio.Nursery, version: ssl.TLSVersion, behind: bytes
    ) -> None:
        """Shake hands, and begin the session; see `line`."""
        wire, far = self.pair()
        self.client = FarTls(far, client_context(version))
        await self._shake(self.client, wire.start_tls, server_context(), behind)
        if self.place == "dialogue":
            nursery.start_soon(driven.run, self.engine, self._dialogue, wire)
            return
        backend, self._far = self.pair()
        if "to TLS" in self.place:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate())
            self.backend = FarTls(self._far, context, server_side=True)
            client = client_context(version)
            await self._shake(self.backend, backend.connect_tls, client)
        nursery.start_soon(driven.run, self.engine, self._carry, wire, backend)

    async def _shake(
        self,
        far: FarTls,
        ours: Callable[[ssl.SSLContext], Awaitable[None]],
        context: ssl.SSLContext,
        behind: bytes = b"",
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driven.run, self.engine, ours, context)
            while not far.shake(behind):
                await wait_all_tasks_blocked()

    async def _dialogue(self, wire: Wire) -> None:
        with contextlib.suppress(OSError):
            while data := await wire.receive_some(100):
                self._read += data
                await wire.send_all(self.answer)
        self.ended = True

    async def _carry(self, client: Wire, backend: Wire) -> None:
        if self.first:
            await client.receive_some(100)  # a login
        ended = await self.relay.carry(
            client, backend, to_client=self.first, idle_limit=3600.0
        )
        self.error = ended.error
        self.ended = True

    async def received(self) -> bytes:
        """Everything that has arrived behind the session since the last call."""
        await wait_all_tasks_blocked()
        if self.place == "dialogue":
            data = bytes(self._read)
            self._read.clear()
            return data
        if self.backend is not None:
            return self.backend.receive()
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := self._far.recv(1 << 16):
                data += more
        return data

    def flood(self, data: bytes = b"") -> None:
        """Send as the backend while there is room; the rest goes with the next call."""
        self._unsent += self.backend.record(data) if self.backend else data
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._far.send(self._unsent)]

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        for each in self._sockets:
            each.close()


@asynccontextmanager
async def line(
    place: str, version: ssl.TLSVersion, *, behind: bytes = b"", first: bytes = b""
) -> AsyncIterator[Line]:
    """A session.

    Args:
      behind: what the client sends together with the end of its handshake.
      first: see `Line.first`.
    """
    engine = Engine()
    relay = Relay(engine)
    here = Line(engine, relay, place)
    here.first = first
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            await here.begin(nursery, version, behind)
            assert await here.received() == behind
            yield here
            nursery.cancel_scope.cancel()
    finally:
        here.close()
        relay.close()
        engine.close()


@every_version
@every_place
async def test_records_in_one_segment(place: str, version: ssl.TLSVersion) -> None:
    async with line(place, version) as here:
        for first in (1, 2, len(LINES)):
            sent = b"".join(map(here.client.record, LINES[:first]))
            here.client.socket.sendall(sent)
            assert await here.received() == b"".join(LINES[:first])


@every_version
@every_place
async def test_a_record_in_two_segments(place: str, version: ssl.TLSVersion) -> None:
    """Alone, and behind another record."""
    async with line(place, version) as here:
        for before in ([], LINES[:1], LINES[:3]):
            for cut in (1, 4, 5, 6, -1):
                whole = b"".join(map(here.client.record, before))
                last = here.client.record(LINES[1])
                here.client.socket.sendall(whole + last[:cut])
                assert await here.received() == b"".join(before)
                here.client.socket.sendall(last[cut:])
                assert await here.received() == LINES[1]


@every_version
@every_place
async def test_records_in_segments_of_one_octet(
    place: str, version: ssl.TLSVersion
) -> None:
    async with line(place, version) as here:
        received = b""
        for octet in b"".join(map(here.client.record, LINES)):
            here.client.socket.sendall(bytes([octet]))
            received += await here.received()
        assert received == b"".join(LINES)


@every_version
@every_place
async def test_tiny_records_in_a_burst(place: str, version: ssl.TLSVersion) -> None:
    """As many as one turn of the relay takes, one less, one more, and many more."""
    async with line(place, version) as here:
        for number in (127, 128, 129, 511, 512, 513, 1500):
            octets = bytes(n % 256 for n in range(number))
            sent = b"".join(here.client.record(bytes([n])) for n in octets)
            here.client.socket.sendall(sent)
            assert await here.received() == octets


@every_version
@every_place
async def test_long_and_short_records_in_turn(
    place: str, version: ssl.TLSVersion
) -> None:
    """About the length from which on the relay expects another one, and the longest."""
    async with line(place, version) as here:
        for size in (8191, 8192, 8193, 16383, 16384):
            for order in ((size, 1), (1, size), (1, size, 1), (size, size, 1, size)):
                sent = b"".join(here.client.record(b"x" * each) for each in order)
                here.client.socket.sendall(sent)
                assert len(await here.received()) == sum(order)


@pytest.mark.parametrize("notify", [False, True], ids=["FIN", "close_notify"])
@pytest.mark.parametrize("number", [0, 1, 3])
@every_version
@every_place
async def test_an_end_behind_short_records(
    place: str, version: ssl.TLSVersion, number: int, *, notify: bool
) -> None:
    async with line(place, version) as here:
        sent = b"".join(map(here.client.record, LINES[:number]))
        if notify:
            sent += here.client.close_notify()
        here.client.socket.sendall(sent)
        here.client.socket.shutdown(socket.SHUT_WR)
        assert await here.received() == b"".join(LINES[:number])
        assert here.ended


@pytest.mark.parametrize("notify", [False, True], ids=["FIN", "close_notify"])
@every_version
@every_place
async def test_an_end_after_a_short_record(
    place: str, version: ssl.TLSVersion, *, notify: bool
) -> None:
    async with line(place, version) as here:
        here.client.send(LINES[0])
        assert await here.received() == LINES[0]
        assert not here.ended
        if notify:
            here.client.socket.sendall(here.client.close_notify())
        else:
            here.client.socket.shutdown(socket.SHUT_WR)
        assert await here.received() == b""
        assert here.ended


@every_version
@every_place
async def test_a_command_behind_the_handshake(
    place: str, version: ssl.TLSVersion
) -> None:
    async with line(place, version, behind=LINES[0]) as here:
        here.client.send(LINES[1])
        assert await here.received() == LINES[1]


@every_version
@pytest.mark.parametrize("place", ["relay", "relay to TLS"])
@pytest.mark.parametrize("number", [0, 1, 3, 200])
async def test_nonsense_behind_records(
    place: str, version: ssl.TLSVersion, number: int
) -> None:
    """What came before counts; the error is OpenSSL's first one."""
    async with line(place, version) as here:
        sent = b"".join(here.client.record(LINES[0]) for _ in range(number))
        here.client.socket.sendall(sent + b"\x17\x03\x03\x00\x40" + bytes(64))
        assert await here.received() == LINES[0] * number
        assert here.ended
        assert isinstance(here.error, ssl.SSLError)
        assert "BAD_RECORD_MAC" in here.error.reason


@every_version
@pytest.mark.parametrize("place", ["relay", "relay to TLS"])
async def test_a_relay_that_begins_with_more_than_there_is_room_for(
    place: str, version: ssl.TLSVersion
) -> None:
    sent = bytes(range(256)) * 4096
    async with line(place, version, first=sent) as here:
        here.client.send(LINES[0])
        assert await here.received() == b""
        got = b""
        while data := here.client.receive():
            got += data
            await here.received()
        assert got == sent
        here.client.send(LINES[1])
        assert await here.received() == LINES[1]


@needs_openssl
@pytest.mark.parametrize(
    "kind",
    [KEY_UPDATE_NOT_REQUESTED, KEY_UPDATE_REQUESTED],
    ids=["not requested", "requested"],
)
@every_place
async def test_key_updates(place: str, kind: int) -> None:
    """RFC 8446, section 4.6.3: they come at any time, alone or between records."""
    async with line(place, ssl.TLSVersion.TLSv1_3) as here:
        client = here.client
        client.socket.sendall(client.key_update(kind))
        assert await here.received() == b""
        client.receive()
        client.send(LINES[0])
        assert await here.received() == LINES[0]
        client.socket.sendall(client.record(LINES[0]) + client.key_update(kind))
        assert await here.received() == LINES[0]
        sent = client.record(LINES[0])
        sent += client.key_update(kind) + client.record(LINES[1])
        client.socket.sendall(sent + client.key_update(kind))
        assert await here.received() == LINES[0] + LINES[1]
        client.send(LINES[4])
        assert await here.received() == LINES[4]


@needs_openssl
@every_place
async def test_another_handshake_is_refused(place: str) -> None:
    """A renegotiation of TLS 1.2, which OpenSSL refuses; what came before it counts."""
    async with line(place, ssl.TLSVersion.TLSv1_2) as here:
        client = here.client
        client.socket.sendall(client.record(LINES[0]) + client.renegotiation())
        assert await here.received() == LINES[0]
        with pytest.raises(ssl.SSLError, match="NO_RENEGOTIATION"):
            client.receive()
        assert not here.ended
        client.socket.shutdown(socket.SHUT_WR)
        assert await here.received() == b""
        assert here.ended


@every_version
@pytest.mark.parametrize("place", ["relay", "relay to TLS"])
async def test_sends_that_block_while_the_client_goes_on(
    place: str, version: ssl.TLSVersion
) -> None:
    """It sends short records and reads nothing; then it reads, and says nothing more."""
    async with line(place, version) as here:
        sent = bytes(range(256)) * 4096
        here.flood(sent)
        assert await here.received() == b""
        for each in LINES * 3:
            here.client.send(each)
            assert await here.received() == each
        got = b""
        while data := here.client.receive():
            got += data
            here.flood()
            assert await here.received() == b""
        assert got == sent


@every_version
async def test_a_dialogue_sends_more_than_there_is_room_for(
    version: ssl.TLSVersion,
) -> None:
    """The answer to a command, while the client sends others and reads nothing."""
    sent = bytes(range(256)) * 4096
    async with line("dialogue", version) as here:
        here.answer = sent
        here.client.send(LINES[0])
        assert await here.received() == LINES[0]
        here.client.send(LINES[1])
        here.client.send(LINES[2])
        assert await here.received() == b""
        got = b""
        while data := here.client.receive():
            got += data
            await here.received()
        assert got == sent * 3
        here.client.send(LINES[4])
        assert await here.received() == LINES[4]


@needs_openssl
async def test_a_handshake_that_cannot_be_answered_at_once() -> None:
    """One that a backend wants: OpenSSL has to write first in order to read on."""
    piece = b"x" * 1000
    pieces = 0
    async with line("relay to TLS", ssl.TLSVersion.TLSv1_2) as here:
        while here.wires[1].sent == pieces * len(piece):
            here.client.send(piece)
            pieces += 1
            await wait_all_tasks_blocked()
    pieces -= 1  # so many fill all the room there is
    async with line("relay to TLS", ssl.TLSVersion.TLSv1_2) as here:
        backend = here.backend
        assert backend is not None
        backend.send(LINES[0])
        for _ in range(pieces):
            here.client.send(piece)
            await wait_all_tasks_blocked()
        assert here.wires[1].sent == pieces * len(piece)
        backend.socket.sendall(backend.renegotiation())
        assert await here.received() == piece * pieces
        await wait_all_tasks_blocked()
        assert backend.socket.recv(100, socket.MSG_PEEK)[:1] == HANDSHAKE
