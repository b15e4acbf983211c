"""Who sends without end has its turn, and no more: others log in meanwhile.

The engine runs only when a test says so, and the test counts its rounds.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailproxy.log import INFO, SessionInfo
from mailproxy.mail import session
from mailproxy.net import driven
from mailproxy.net.engine import Engine
from mailproxy.net.network import Network
from mailproxy.net.relay import BUFFER, MAX_READS, PIPE_SIZE
from mailproxy.net.wire import Wire
from tests.captured_log import CapturedLog
from tests.play import load_server

FLOODS = 10
PATIENCE = 10
"""Rounds of the engine after which an answer has come; two or three, as a rule."""


class Site:
    """Sessions of one server, and everyone around them; all sockets are non-blocking."""

    def __init__(self, nursery: trio.Nursery, directives: str) -> None:
        self.engine = Engine()
        self.network = Network(self.engine)
        self.log = CapturedLog(INFO)
        self._nursery = nursery
        self._sockets: list[socket.socket] = []
        self._auth = self._listening()
        self._backend = self._listening()
        port = self._auth.getsockname()[1]
        self.server = load_server(f"{directives} auth_http 127.0.0.1:{port}/;")

    def _listening(self) -> socket.socket:
        return self._keep(socket.create_server(("127.0.0.1", 0)))

    def _keep(self, each: socket.socket) -> socket.socket:
        each.setblocking(False)
        self._sockets.append(each)
        return each

    def pair(self) -> tuple[Wire, socket.socket]:
        """A wire and its far end, with a lot of room between them."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            far = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        ours.setblocking(False)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `ListeningWire`
        return Wire(self.engine, ours.detach()), self._keep(far)

    def connect(self) -> socket.socket:
        """A new client, whose session begins."""
        wire, far = self.pair()
        self._nursery.start_soon(
            driven.run,
            self.engine,
            session.run,
            wire,
            self.server,
            self.server.core.listen[0],
            self.network,
            self.log.log,
            SessionInfo(self.network.next_number(), "unix:"),
        )
        return far

    def flood(self) -> Flood:
        """A session that is relayed, and has much to do."""
        (client, source), (backend, sink) = self.pair(), self.pair()

        async def carry() -> None:
            with contextlib.ExitStack() as stack:
                stack.callback(client.close)
                stack.callback(backend.close)
                await self.network.relay.carry(client, backend, idle_limit=60.0)

        self.begin(carry)
        return Flood(source, sink)

    def begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start a driven task."""
        self._nursery.start_soon(driven.run, self.engine, work)

    async def round(self) -> None:
        """Let the engine hand out once, and all tasks of trio run."""
        await wait_all_tasks_blocked()
        self.engine.hand_out()
        await wait_all_tasks_blocked()

    async def heard(self, far: socket.socket, end: bytes, *floods: Flood) -> bytes:
        """What comes within `PATIENCE` rounds, up to `end`; floods go on meanwhile."""
        received = b""
        for _ in range(PATIENCE):
            for flood in floods:
                flood.go_on()
            await self.round()
            with contextlib.suppress(BlockingIOError):
                received += far.recv(1 << 16)
            if received.endswith(end):
                return received
        raise AssertionError(f"only {received!r} was heard")

    async def called(self, listening: socket.socket, *floods: Flood) -> socket.socket:
        """The next connection, which comes within `PATIENCE` rounds."""
        for _ in range(PATIENCE):
            for flood in floods:
                flood.go_on()
            await self.round()
            with contextlib.suppress(BlockingIOError):
                return self._keep(listening.accept()[0])
        raise AssertionError("nobody has called")

    async def log_in(self, client: socket.socket, *floods: Flood) -> None:
        """Log a client in; each step of the proxy takes few rounds."""
        client.send(b"a LOGIN u p\r\n")
        auth = await self.called(self._auth, *floods)
        await self.heard(auth, b"\r\n\r\n", *floods)
        port = self._backend.getsockname()[1]
        auth.send(
            b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\n"
            b"Auth-Port: %d\r\n\r\n" % port
        )
        backend = await self.called(self._backend, *floods)
        for said, end in (
            (b"* OK hello\r\n", b"a LOGIN {1}\r\n"),
            (b"+ go on\r\n", b"u {1}\r\n"),
            (b"+ go on\r\n", b"p\r\n"),
        ):
            backend.send(said)
            await self.heard(backend, end, *floods)
        backend.send(b"a OK welcome\r\n")
        await self.heard(client, b"a OK welcome\r\n", *floods)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self.network.close()
        self.engine.close()


class Flood:
    """Who sends without end.

    Args:
      source: where it sends.
      sink: where that, or the answers, arrive.
      what: is sent, again and again.

    Attributes:
      received: how many octets have arrived.
      most: how many of them in one round.
    """

    def __init__(
        self, source: socket.socket, sink: socket.socket, what: bytes = b"x"
    ) -> None:
        self.received = 0
        self.most = 0
        self._source, self._sink = source, sink
        self._what = what * ((1 << 16) // len(what))
        self._at = 0

    def go_on(self) -> bytes:
        """Send as much as there is room for; return what has arrived."""
        arrived = b""
        with contextlib.suppress(BlockingIOError):
            while data := self._sink.recv(1 << 20):
                arrived += data
        with contextlib.suppress(BlockingIOError):
            while True:
                self._at += self._source.send(self._what[self._at :])
                self._at %= len(self._what)
        self.received += len(arrived)
        self.most = max(self.most, len(arrived))
        return arrived


@asynccontextmanager
async def site(
    directives: str = "protocol imap; proxy_login literal;",
) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        here = Site(nursery, directives)
        try:
            yield here
            nursery.cancel_scope.cancel()
            await here.round()  # with the engine's help, sessions end
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await here.round()
    here.close()


async def test_logins_beside_floods_of_relayed_sessions() -> None:
    async with site() as here:
        floods = [here.flood() for _ in range(FLOODS)]
        client = here.connect()
        await here.heard(client, b"* OK IMAP4 ready\r\n", *floods)
        await here.log_in(client, *floods)
        for flood in floods:
            assert flood.received
            # One turn for what was left, one for each event of its two ends.
            assert flood.most <= 3 * MAX_READS * max(BUFFER, PIPE_SIZE)


async def test_logins_beside_floods_of_commands() -> None:
    async with site(
        "protocol imap; proxy_login literal; max_commands 1000000;"
    ) as here:
        floods = []
        for _ in range(FLOODS):
            client = here.connect()
            await here.heard(client, b"* OK IMAP4 ready\r\n")
            floods.append(Flood(client, client, b"a NOOP\r\n"))
        client = here.connect()
        await here.heard(client, b"* OK IMAP4 ready\r\n", *floods)
        await here.log_in(client, *floods)
        assert all(flood.received for flood in floods)


@pytest.mark.parametrize(
    ("protocol", "command", "greeting"),
    [
        ("imap", b"a NOOP\r\n", b"* OK IMAP4 ready\r\n"),
        ("pop3", b"NOOP\r\n", b"+OK POP3 ready\r\n"),
        ("smtp", b"NOOP\r\n", b"220 mx.test ESMTP ready\r\n"),
    ],
)
async def test_a_turn_of_a_flood_of_commands(
    protocol: str, command: bytes, greeting: bytes
) -> None:
    """No more of them are answered than the client's buffer holds."""
    async with site(f"protocol {protocol}; max_commands 1000000;") as here:
        client = here.connect()
        await here.heard(client, greeting)
        flood = Flood(client, client, command)
        flood.go_on()
        room = here.server.protocol.client_buffer // len(command)
        answers = 0
        while answers < 5 * room:
            await here.round()
            turn = flood.go_on().count(b"\n")
            assert turn <= room + 1
            answers += turn


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_nothing_is_lost_between_reads_that_fill_their_buffer(size: int) -> None:
    """Until the end, which may have come long before."""
    sent = bytes(range(256)) * 10
    async with site() as here:
        wire, far = here.pair()
        far.sendall(sent)
        far.shutdown(socket.SHUT_WR)
        received = b""

        async def dialogue() -> None:
            nonlocal received
            while data := await wire.receive_some(size):
                received += data
            wire.close()

        here.begin(dialogue)
        while not wire.closed:
            await here.round()
        assert received == sent


@pytest.mark.parametrize("more", [b"", b"b SELECT INBOX\r\n"])
async def test_a_relay_begins_after_a_read_that_fills_its_buffer(more: bytes) -> None:
    login = b"a LOGIN u p\r\n"
    async with site() as here:
        (client, far), (backend, sink) = here.pair(), here.pair()
        far.sendall(login + more)

        async def work() -> None:
            with contextlib.ExitStack() as stack:
                stack.callback(client.close)
                stack.callback(backend.close)
                assert await client.receive_some(len(login)) == login
                await here.network.relay.carry(client, backend, idle_limit=60.0)

        here.begin(work)
        if more:
            assert await here.heard(sink, more) == more
        else:
            await here.round()
        far.sendall(b"c NOOP\r\n")
        assert await here.heard(sink, b"c NOOP\r\n") == b"c NOOP\r\n"
        far.shutdown(socket.SHUT_WR)
        while not client.closed:
            await here.round()
