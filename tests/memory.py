"""Wires, a relay and a network that are only memory; a test is at their other ends."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack, cast

import trio

from mailproxy.conf.addresses import SocketAddress
from mailproxy.errors import SessionError
from mailproxy.net.calls import READABLE
from mailproxy.net.dns import Resolver
from mailproxy.net.engine import Engine, Handler
from mailproxy.net.idle import IdleConnections
from mailproxy.net.manager_line import ManagerLine
from mailproxy.net.network import Network
from mailproxy.net.openssl import ClientSession
from mailproxy.net.outgoing import Outgoing
from mailproxy.net.relay import Ended, Relay, Side
from mailproxy.net.resolver_settings import ResolverSettings
from mailproxy.net.resumption import Resumption
from mailproxy.net.timer import Timer, client_timed_out
from mailproxy.net.wire import Wire
from mailproxy.stats.mapping import Row

if TYPE_CHECKING:
    import socket


Args = TypeVarTuple("Args")
T = TypeVar("T")


class MemoryTls:
    """What a session asks of a TLS connection where no certificate matters."""

    def version(self) -> str:
        return "TLSv1.3"

    def cipher(self) -> tuple[str, str, int]:
        return "TLS_AES_256_GCM_SHA384", "TLSv1.3", 256


class MemorySocket:
    """What a session asks of the socket itself."""

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 1143


class MemoryWire(Wire):
    """A connection whose peer is a test.

    Attributes:
      incoming: sent by the peer, not yet received.
      outgoing: sent to the peer, not yet looked at.
      received, sent: how many octets the proxy has received and sent, as in `Wire`.
      ended: the peer has closed, or, with `fault`, something worse.
      shaken: the peer does its part of a TLS handshake.
      verified: the name that the proxy looked for in the peer's certificate.
      room: octets that can be sent before somebody has to look at them.
      listener: is called with what is sent, instead of keeping it in `outgoing`.
    """

    server_name = None

    def __init__(self, news: Callable[[], None] = lambda: None) -> None:
        self._socket = cast("socket.socket", MemorySocket())
        self.tls = None
        self.closed = False
        self.connecting = False
        self.fd = -1
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.received = 0
        self.sent = 0
        self.ended = False
        self.fault: int | None = None
        self.shaken = False
        self.verified: str | None = None
        self.room = 1 << 30
        self.listener: Callable[[MemoryWire, bytes], None] | None = None
        self._news = news
        self._parking = trio.lowlevel.ParkingLot()
        self._watcher: Handler | None = None

    def put(self, data: bytes) -> None:
        """Send to the proxy, as its peer."""
        self.incoming += data
        self._changed()

    def establish(self) -> None:
        """Let connect() succeed."""
        self.connecting = False
        self._changed()

    def finish(self, fault: int | None = None) -> None:
        """Close, as the peer."""
        self.ended = True
        self.fault = fault
        self._changed()

    def _changed(self) -> None:
        if self._watcher is not None:
            self._watcher.ready(READABLE)
        else:
            self._parking.unpark_all()

    def shake(self) -> None:
        """Do the peer's part of a handshake."""
        self.shaken = True
        self._parking.unpark_all()

    def receive_now(self, size: int) -> bytes | None:
        assert not self.closed
        if not self.incoming:
            if not self.ended:
                return None
            if self.fault:
                raise OSError(self.fault, os.strerror(self.fault))
        data = bytes(self.incoming[:size])
        self.drop(len(data))
        self.received += len(data)
        return data

    async def wait_to_retry(self) -> None:
        await self._parking.park()

    async def peek(self, size: int, seen: int) -> bytes:
        assert not self.closed
        while len(self.incoming[:size]) <= seen and not self.ended:
            await self._parking.park()
        if not self.incoming and self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        return bytes(self.incoming[:size])

    def drop(self, size: int) -> None:
        del self.incoming[:size]

    def send_now(self, data: bytes | memoryview) -> int:
        assert not self.closed
        if len(self.outgoing) + len(data) > self.room and not self.ended:
            return -1
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        self.sent += len(data)
        if self.listener is not None:
            self.listener(self, bytes(data))
        else:
            self.outgoing += data
            self._news()
        return len(data)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        while not self.shaken and not self.ended and not self.incoming:
            await self._parking.park()
        if self.incoming:
            raise ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
        if not self.shaken:
            raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
        self.shaken = False
        self.tls = cast("ssl.SSLSocket", MemoryTls())
        self._news()

    async def connect_tls(
        self,
        context: ssl.SSLContext,
        server_name: str | None = None,
        *,
        session: ClientSession | None = None,
        hide_name: bool = False,
    ) -> None:
        await self.wait_connected()
        self.verified = server_name
        try:
            await self.start_tls(context)
        except ssl.SSLError as error:
            if error.errno == ssl.SSL_ERROR_SSL:
                error.library, error.reason = "SSL", "WRONG_VERSION_NUMBER"
            raise

    def resumable_session(self, resumed: ClientSession | None) -> ClientSession | None:
        return None

    async def wait_connected(self) -> None:
        while self.connecting:
            if self.fault:
                raise OSError(self.fault, os.strerror(self.fault))
            await self._parking.park()

    def is_quiet(self) -> bool:
        return not self.incoming and not self.ended

    def probe_peer(self) -> None:
        pass

    def abandon(self) -> None:
        self.finish()

    def watch(self, handler: Handler) -> None:
        self._watcher = handler

    def resume(self) -> None:
        self._watcher = None

    def close(self, *, notify: bool = True) -> None:
        self.closed = True
        self._watcher = None
        self._news()


class MemoryRelay(Relay):
    """Relays between memory wires; the real one needs descriptors."""

    def __init__(self) -> None:
        pass

    async def carry(
        self,
        client: Wire,
        backend: Wire,
        *,
        to_client: bytes = b"",
        to_backend: bytes = b"",
        idle_limit: float,
        bound: int | None = None,
    ) -> Ended:
        ended = Ended("timeout")
        async with trio.open_nursery() as nursery:

            async def move(source: Wire, sink: Wire, data: bytes, side: Side) -> None:
                nonlocal ended
                error = None
                try:
                    while True:
                        nursery.cancel_scope.deadline = trio.current_time() + idle_limit
                        if data:
                            await sink.send_all(data)
                        data = await source.receive_some()
                        if not data:
                            break
                except OSError as raised:
                    error = raised
                ended = Ended("done", error, side)
                nursery.cancel_scope.cancel()

            nursery.start_soon(move, client, backend, to_backend, "client")
            nursery.start_soon(move, backend, client, to_client, "backend")
        return ended

    def close(self) -> None:
        pass


class ScopeTimer(Timer):
    """The timer of a session that is an ordinary task, with a clock of any kind."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._expired: Callable[[], SessionError] = client_timed_out

    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        self._expired = expired or client_timed_out
        self._scope.deadline = trio.current_time() + seconds

    def stop(self) -> None:
        self._scope.deadline = math.inf

    def now(self) -> float:
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        outer = self._scope
        self._scope = inner = trio.CancelScope(deadline=outer.deadline)
        outer.deadline = math.inf
        try:
            with inner:
                yield
        finally:
            self._scope = outer
            if not inner.cancelled_caught:
                outer.deadline = inner.deadline
        if inner.cancelled_caught:
            raise self._expired()

    def at_most(self, seconds: float) -> AbstractContextManager[None]:
        return cast("AbstractContextManager[None]", trio.move_on_after(seconds))

    async def in_trio(
        self, work: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args
    ) -> T:
        return await work(*args)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise self._expired()


class MemoryNetwork(Network):
    """Connects to nobody; a test finds the other ends here.

    Attributes:
      wires: connections to the auth server ("Q") and to backends ("P").
      failing: what connect() says to them, if it is to fail.
      pending: whether connect() does not succeed until a test says so.
      known: answers for every `resolver` directive.
      reached: the addresses of backends that were connected to, in order.
    """

    def __init__(self, auth: object, news: Callable[[], None] = lambda: None) -> None:
        self.relay = MemoryRelay()
        self.idle = IdleConnections()
        self.sessions = {}
        self.row = Row()
        self.manager = ManagerLine(cast("Engine", None))
        self.secrets = {}
        self._life = "18f.2a"
        self.resumption = Resumption()
        self.wires: dict[str, list[MemoryWire]] = {"Q": [], "P": []}
        self.failing: dict[str, int] = {}
        self.pending = False
        self.known: Resolver | None = None
        self.reached: list[SocketAddress] = []
        self._auth = auth
        self._news = news

    def timer(self) -> Timer:
        return ScopeTimer()

    def next_number(self) -> int:
        return 1

    def make_room(self) -> bool:
        return True

    def resolver(self, settings: ResolverSettings, timeout: float) -> Resolver:
        assert self.known is not None
        return self.known

    def connect(
        self, family: int, address: SocketAddress, how: Outgoing | None = None
    ) -> MemoryWire:
        kind = "Q" if address == self._auth else "P"
        if kind == "P":
            self.reached.append(address)
        if kind in self.failing:
            raise OSError(self.failing[kind], os.strerror(self.failing[kind]))
        wire = MemoryWire(self._news)
        wire.connecting = self.pending and kind == "P"
        self.wires[kind].append(wire)
        self._news()
        return wire

    def close(self) -> None:
        self.idle.stop_keeping()
