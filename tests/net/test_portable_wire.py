"""Handshakes over sockets where OpenSSL cannot be told to look at ALPN and SNI."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from mailproxy.net import openssl
from mailproxy.net.engine import Engine
from mailproxy.net.openssl.portable import PortableBuilder
from mailproxy.net.wire import Wire
from tests.tls import Certificates


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def server(files: Certificates) -> ssl.SSLContext:
    builder = PortableBuilder(("TLSv1.2", "TLSv1.3"))
    builder.alpn(b"imap")
    builder.certificate(files.path("ec.pem"), files.path("ec.key"))
    return builder.context


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield engine
        nursery.cancel_scope.cancel()
    engine.close()


@pytest.fixture
def ends(engine: Engine) -> tuple[Wire, trio.socket.SocketType]:
    """Our end of a connection, and the client's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Wire(engine, ours.detach()), trio.socket.from_stdlib_socket(theirs)


async def be_client(
    peer: trio.socket.SocketType, context: ssl.SSLContext, *, size: int = 65536
) -> None:
    """Do the client's side of a handshake, sending at most `size` octets at once.

    Raises:
      ssl.SSLError: the server refused.
    """
    down, up = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(down, up, server_hostname="localhost")
    done = False
    while not done:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        while piece := up.read(size):
            await peer.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        if not done:
            data = await peer.recv(65536)
            if data:
                down.write(data)
            else:
                down.write_eof()


@pytest.mark.parametrize("size", [100, 65536])
@pytest.mark.parametrize("offered", [[], ["imap"], ["h2", "imap"]])
async def test_the_protocol_and_the_name_are_known(
    files: Certificates,
    server: ssl.SSLContext,
    ends: tuple[Wire, trio.socket.SocketType],
    offered: list[str],
    size: int,
) -> None:
    wire, peer = ends
    client = files.client()
    if offered:
        client.set_alpn_protocols(offered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.start_tls, server)
        await be_client(peer, client, size=size)
    assert wire.tls is not None
    assert wire.tls.selected_alpn_protocol() == ("imap" if offered else None)
    assert openssl.server_name(wire.tls) == b"localhost"
    wire.close()
    peer.close()


async def test_a_client_with_other_protocols_hears_why_it_is_refused(
    files: Certificates,
    server: ssl.SSLContext,
    ends: tuple[Wire, trio.socket.SocketType],
) -> None:
    wire, peer = ends
    client = files.client()
    client.set_alpn_protocols(["http/1.1"])
    errors = []

    async def serve() -> None:
        try:
            await wire.start_tls(server)
        except ssl.SSLError as error:
            errors.append(openssl.error_text(error))
        wire.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ssl.SSLError, match="alert no application protocol"):
            await be_client(peer, client)
    assert errors == ["error:0A0000EB:SSL routines::no application protocol"]
    peer.close()


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_client_that_leaves_before_its_hello_is_complete(
    server: ssl.SSLContext, ends: tuple[Wire, trio.socket.SocketType], begun: bytes
) -> None:
    wire, peer = ends
    if begun:
        await peer.send(begun)
    peer.close()
    with pytest.raises((ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        await wire.start_tls(server)
    wire.close()


async def test_a_hello_without_end_is_for_openssl_to_refuse(
    server: ssl.SSLContext, ends: tuple[Wire, trio.socket.SocketType]
) -> None:
    wire, peer = ends
    record = b"\x16\x03\x01\x10\x00" + b"\x01\xff\xff\xff" + bytes(4092)
    more = b"\x16\x03\x01\x10\x00" + bytes(4096)
    await peer.send(record + more * 3)
    with pytest.raises(ssl.SSLError, match="EXCESSIVE_MESSAGE_SIZE"):
        await wire.start_tls(server)
    wire.close()
    peer.close()
