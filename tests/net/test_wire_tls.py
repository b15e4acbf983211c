"""The client's side of TLS: a wire to a server that speaks it."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from mailproxy.net.engine import Engine
from mailproxy.net.relay import Relay
from mailproxy.net.wire import Wire
from tests.tls import Certificates

Talk = Callable[[trio.SocketStream], Awaitable[None]]
"""What a server does with its one connection."""


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def context(files: Certificates) -> ssl.SSLContext:
    """Of the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.path("ec.pem"), files.path("ec.key"))
    return context


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield engine
        nursery.cancel_scope.cancel()
    engine.close()


async def serve(listening: trio.SocketListener, talk: Talk) -> None:
    """Serve one connection, which the tests look at from the other end."""
    async with await listening.accept() as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await talk(stream)


def echo(context: ssl.SSLContext) -> Talk:
    """A server that shakes hands, says one line back, and leaves."""

    async def talk(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        await tls.do_handshake()
        line = await tls.receive_some(100)
        await tls.send_all(b"you said " + bytes(line))

    return talk


async def listen() -> tuple[trio.SocketListener, tuple[str, int]]:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    return listening, listening.socket.getsockname()


async def shake_hands(
    engine: Engine,
    talk: Talk,
    client: ssl.SSLContext,
    name: str | None,
    before: int = 0,
) -> bytes:
    """Connect, read `before` octets in clear text, do the handshake, say "hello".

    Returns:
      The answer.
    """
    listening, address = await listen()
    failure: OSError | None = None
    answer = b""
    async with trio.open_nursery() as nursery, listening:
        nursery.start_soon(serve, listening, talk)
        wire = Wire.connect(engine, socket.AF_INET, address)
        try:
            if before:
                assert len(await wire.receive_some(before)) == before
                await wire.send_all(b"go\r\n")
            await wire.connect_tls(client, name)
            assert wire.tls is wire.socket
            await wire.send_all(b"hello")
            answer = await wire.receive_some()
        except OSError as raised:
            failure = raised
        wire.close()
    if failure is not None:
        raise failure
    return answer


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_at_once(
    engine: Engine,
    files: Certificates,
    context: ssl.SSLContext,
    version: ssl.TLSVersion,
) -> None:
    names: list[str | None] = []

    def note(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.set_servername_callback(note)
    client = files.client(version=version)
    assert await shake_hands(engine, echo(context), client, "localhost") == (
        b"you said hello"
    )
    assert names == ["localhost"]


async def test_later(
    engine: Engine, files: Certificates, context: ssl.SSLContext
) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"+OK begin\r\n")
        assert await stream.receive_some(4) == b"go\r\n"
        await echo(context)(stream)

    size = len(b"+OK begin\r\n")
    said = await shake_hands(engine, talk, files.client(), "localhost", size)
    assert said == b"you said hello"


async def test_without_a_name_if_the_context_needs_none(
    engine: Engine, context: ssl.SSLContext
) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    assert await shake_hands(engine, echo(context), client, None) == b"you said hello"


async def test_certificate_of_another_name(
    engine: Engine, files: Certificates, context: ssl.SSLContext
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await shake_hands(engine, echo(context), files.client(), "other.test")


async def test_certificate_that_no_known_ca_has_signed(
    engine: Engine, context: ssl.SSLContext
) -> None:
    client = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local"):
        await shake_hands(engine, echo(context), client, "localhost")


async def test_octets_that_wait_in_the_socket_fail_in_the_handshake(
    engine: Engine, files: Certificates, context: ssl.SSLContext
) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"+OK begin\r\n+OK you are in\r\n")
        assert await stream.receive_some(4) == b"go\r\n"
        await echo(context)(stream)

    size = len(b"+OK begin\r\n")
    with pytest.raises(ssl.SSLError, match="wrong version number"):
        await shake_hands(engine, talk, files.client(), "localhost", size)


async def test_server_that_leaves_in_the_handshake(
    engine: Engine, files: Certificates
) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.socket.shutdown(socket.SHUT_WR)
        while await stream.receive_some():
            pass

    with pytest.raises((ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        await shake_hands(engine, talk, files.client(), "localhost")


async def test_nobody_listens(engine: Engine, files: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    wire = Wire.connect(engine, socket.AF_INET, address)
    with pytest.raises(ConnectionRefusedError):
        await wire.connect_tls(files.client(), "localhost")
    wire.close()


async def test_handshake_waits_for_the_connection(
    engine: Engine, files: Certificates, context: ssl.SSLContext
) -> None:
    """connect() may take its time; here it is not even called when TLS begins."""
    listening, address = await listen()
    connection = socket.socket(
        socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    )
    wire = Wire(engine, connection.detach())
    wire.connecting = True
    async with trio.open_nursery() as nursery, listening:
        nursery.start_soon(serve, listening, echo(context))
        async with trio.open_nursery() as shaking:
            shaking.start_soon(wire.connect_tls, files.client(), "localhost")
            await trio.testing.wait_all_tasks_blocked()
            assert wire.tls is None
            assert wire.socket.connect_ex(address) in (0, errno.EINPROGRESS)
        await wire.send_all(b"hello")
        assert await wire.receive_some() == b"you said hello"
    wire.close()


async def test_octets_are_counted_inside_tls(
    engine: Engine, files: Certificates, context: ssl.SSLContext
) -> None:
    """In the relay: what the server's TLS adds is not the session's."""
    listening, address = await listen()
    relay = Relay(engine)
    ours, far = socket.socketpair()
    ours.setblocking(False)
    client, backend = (
        Wire(engine, ours.detach()),
        Wire.connect(engine, socket.AF_INET, address),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listening, echo(context))
        await backend.connect_tls(files.client(), "localhost")
        far.sendall(b"hello\r\n")
        await relay.carry(client, backend, idle_limit=60)
    assert far.recv(100) == b"you said hello\r\n"
    assert (client.received, client.sent) == (7, 16)
    assert (backend.received, backend.sent) == (16, 7)
    for each in (client, backend, far):
        each.close()
    relay.close()
    await listening.aclose()
