"""A client breaks its connection to a TLS port before the handshake begins."""

import socket
import ssl

import pytest

from mailproxy.net.engine import Engine
from mailproxy.net.wire import Wire
from tests.security.world import TLS, make_reset, world


@pytest.mark.parametrize("sent", [b"", b"x", b"\x16\x03\x01\x02\x00\x01"])
async def test_leaves_nothing_behind(sent: bytes) -> None:
    """What stays registered counts for `worker_connections`, for ever."""
    async with world(f"listen 127.0.0.1:1143 ssl; protocol imap; {TLS}") as here:
        for _ in range(20):
            here.connect_and_reset(sent)
        await here.over()
        here.check()
        broken = (
            "peer closed connection in SSL handshake (104: Connection reset by peer)"
        )
        assert {text.split(" while ")[0] for text in here.texts} == {broken}


@pytest.mark.parametrize("sent", [b"", b"x", b"\x16\x03\x01\x02\x00\x01"])
async def test_by_an_orderly_close(sent: bytes) -> None:
    async with world(f"listen 127.0.0.1:1143 ssl; protocol imap; {TLS}") as here:
        here.connect_and_finish(sent)
        await here.over()
        here.check()


async def test_in_the_very_moment() -> None:
    """`ssl` takes the descriptor from us before it looks whether it is any good."""
    engine = Engine(limit=1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    peer.sendall(b"x")

    class Late(ssl.SSLContext):
        def wrap_socket(self, *args: object, **options: object) -> ssl.SSLSocket:
            make_reset(peer)
            peer.close()
            return super().wrap_socket(*args, **options)  # type: ignore[arg-type] # its own

    wire = Wire(engine, ours.detach())
    with pytest.raises(ConnectionResetError):
        await wire.start_tls(Late(ssl.PROTOCOL_TLS_SERVER))
    wire.close()
    assert not engine.full
    engine.close()
