"""Sessions on a real engine with real sockets; a test plays everyone around them.

    async with world("protocol imap;") as here:
        client = await here.connect()
        await client.expect(b"* OK IMAP4 ready\r\n")
        await client.send(b"a LOGIN u p\r\n")
        auth = await here.auth()          # mailproxy asks
        await auth.read_until(b"\r\n\r\n")
        await auth.send(here.granted())
        backend = await here.backend()    # and connects

Nothing waits for time: whoever waits in vain for `PATIENCE` fails.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.log import INFO, SessionInfo
from mailproxy.mail import session
from mailproxy.net import driven
from mailproxy.net.engine import Engine
from mailproxy.net.network import Network
from mailproxy.net.wire import Wire
from tests.captured_log import CapturedLog
from tests.play import load_server

PATIENCE = 60.0
TLS = "ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
BUGS = ("emerg", "alert", "crit")
"""Levels that no peer can bring about; `connect() … failed` is the exception."""


def make_reset(connection: socket.socket | trio.socket.SocketType) -> None:
    """Have the next close() of a connection break it (RST)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Peer:
    """A connection as the test sees it."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]):
        self.stream = stream
        self.seen = b""
        """Received, and not yet asked for."""

    @property
    def socket(self) -> trio.socket.SocketType:
        stream = self.stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return stream.socket

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_until(self, end: bytes) -> bytes:
        """Everything up to `end`."""
        while end not in self.seen:
            data = await self.stream.receive_some()
            assert data, f"closed after {self.seen!r}"
            self.seen += data
        found, end, self.seen = self.seen.partition(end)
        return found + end

    async def expect(self, wanted: bytes) -> None:
        """Receive exactly this."""
        while len(self.seen) < len(wanted):
            data = await self.stream.receive_some()
            assert data, f"closed after {self.seen!r}"
            self.seen += data
        got, self.seen = self.seen[: len(wanted)], self.seen[len(wanted) :]
        assert got == wanted

    async def rest(self) -> bytes:
        """Everything up to the end, however the connection ends."""
        try:
            while data := await self.stream.receive_some():
                self.seen += data
        except trio.BrokenResourceError:
            pass
        got, self.seen = self.seen, b""
        return got

    async def start_tls(
        self,
        name: str = "mx.test",
        certificate: Path | None = None,
        alpn: str = "",
        version: ssl.TLSVersion | None = None,
    ) -> None:
        """The client's side of a handshake; any certificate is good.

        Args:
          name: what the server is called.
          certificate: a file with the client's own, and its key.
          alpn: the protocol that the client wants to speak.
          version: the one version of TLS that the client knows.
        """
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols([alpn])
        if certificate is not None:
            context.load_cert_chain(certificate)
        assert isinstance(self.stream, trio.SocketStream)
        self.stream = trio.SSLStream(
            self.stream, context, server_hostname=name, https_compatible=True
        )
        await self.stream.do_handshake()

    def close(self) -> None:
        self.socket.close()

    def finish(self) -> None:
        """Send no more: the other side gets a FIN, unless it has left already."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break the connection: the other side gets an RST."""
        make_reset(self.socket)
        self.close()


class World:
    """The inside of a worker, and everyone around it.

    Attributes:
      running: sessions that have not ended.
      peers: everyone there was, in the order of their coming.
    """

    def __init__(
        self,
        directives: str,
        nursery: trio.Nursery,
        auth: trio.SocketListener,
        backend: trio.SocketListener,
        limit: int = 1 << 30,
    ) -> None:
        self._auth, self._backend, self._nursery = auth, backend, nursery
        if "auth_http " not in directives:
            port = auth.socket.getsockname()[1]
            directives += f" auth_http 127.0.0.1:{port}/auth;"
        self.server = load_server(directives)
        self.engine = Engine(limit)
        self.network = Network(self.engine)
        self.log = CapturedLog(INFO)
        self.running = 0
        self.peers: list[Peer] = []
        self._ended = trio.Condition()

    async def connect(self, *, rcvbuf: int = 0) -> Peer:
        """A new client; its session runs.

        Args:
          rcvbuf: size of the client's receive buffer, if it is to be small.
        """
        far = self._begin(rcvbuf)
        far.setblocking(False)
        return self._peer(trio.SocketStream(trio.socket.from_stdlib_socket(far)))

    def connect_and_reset(self, sent: bytes) -> None:
        """A client that has broken its connection before its session begins."""
        far = self._begin()
        far.sendall(sent)
        make_reset(far)
        far.close()

    def connect_and_finish(self, sent: bytes) -> None:
        """A client that has closed its connection before its session begins."""
        far = self._begin()
        far.sendall(sent)
        far.close()

    def _begin(self, rcvbuf: int = 0) -> socket.socket:
        """Start a session; returns the client's end."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            far = socket.socket()
            if rcvbuf:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            far.connect(listening.getsockname())
            ours, address = listening.accept()
        ours.setblocking(False)
        listen = self.server.core.listen[0]
        info = SessionInfo(self.network.next_number(), *address)
        info.server = listen.address
        self.running += 1
        self._nursery.start_soon(self._run, Wire(self.engine, ours.detach()), info)
        return far

    async def _run(self, wire: Wire, info: SessionInfo) -> None:
        listen = self.server.core.listen[0]
        try:
            await driven.run(
                self.engine,
                session.run,
                wire,
                self.server,
                listen,
                self.network,
                self.log.log,
                info,
            )
        finally:
            self.running -= 1
        async with self._ended:
            self._ended.notify_all()

    def _peer(self, stream: trio.SocketStream) -> Peer:
        peer = Peer(stream)
        self.peers.append(peer)
        return peer

    async def auth(self) -> Peer:
        """The next new connection to the auth server."""
        return self._peer(await self._auth.accept())

    async def backend(self) -> Peer:
        """The next connection to the backend."""
        return self._peer(await self._backend.accept())

    def granted(self, *headers: bytes) -> bytes:
        """An answer that lets a client in; the connection stays open."""
        port = self._backend.socket.getsockname()[1]
        where = (b"Auth-Server: 127.0.0.1", b"Auth-Port: %d" % port)
        framing = (b"Content-Length: 0", b"Connection: keep-alive", b"", b"")
        lines = (b"HTTP/1.0 200 OK", b"Auth-Status: OK", *where, *headers, *framing)
        return b"\r\n".join(lines)

    async def log_in(self, client: Peer, login: bytes) -> Peer:
        """Have `login` granted; returns the backend's connection."""
        await client.send(login)
        auth = await self.auth()
        await auth.read_until(b"\r\n\r\n")
        await auth.send(self.granted().replace(b"keep-alive", b"close"))
        return await self.backend()

    async def over(self, left: int = 0) -> None:
        """Return when no session is running; who is asked meanwhile hangs up.

        Args:
          left: as many may still run.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hang_up, self._auth)
            nursery.start_soon(_hang_up, self._backend)
            async with self._ended:
                while self.running > left:
                    await self._ended.wait()
            nursery.cancel_scope.cancel()

    def leave(self) -> None:
        """Close all connections."""
        for peer in self.peers:
            peer.close()

    @property
    def texts(self) -> list[str]:
        """What was logged, but for the first lines of sessions."""
        return [text for _, text in self.log.events if " connected to " not in text]

    def check(self) -> None:
        """Nothing is left of the sessions, and nobody found a bug."""
        self.network.idle.clear()  # these may stay
        assert not self.engine._handlers  # noqa: SLF001 - what counts as a connection
        assert not len(self.network.relay)
        bugs = [text for level, text in self.log.events if level in BUGS]
        assert not bugs, bugs


async def _hang_up(listener: trio.SocketListener) -> None:
    while True:
        (await listener.accept()).socket.close()


@asynccontextmanager
async def passing(clock: MockClock, seconds: float) -> AsyncIterator[None]:
    """Let time pass for the length of the block: `seconds` whenever nothing else happens.

    To jump once is not enough: on a busy machine the limit may begin only afterwards.
    """

    async def tick() -> None:
        while True:
            await wait_all_tasks_blocked(0.01)
            clock.jump(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def world(directives: str, *, limit: int = 1 << 30) -> AsyncIterator[World]:
    """A worker's inside for a server with these directives.

    At the end everyone leaves, and the sessions have to end.

    Args:
      limit: `worker_connections`.
    """
    (auth,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    (backend,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(PATIENCE):
        async with auth, backend, trio.open_nursery() as nursery:
            here = World(directives, nursery, auth, backend, limit)
            try:
                nursery.start_soon(here.engine.run)
                nursery.start_soon(here.network.relay.expire)
                nursery.start_soon(here.network.idle.expire)
                yield here
                here.leave()
                await here.over()
                here.check()
                nursery.cancel_scope.cancel()
            finally:
                here.leave()
                here.network.close()
    here.engine.close()
