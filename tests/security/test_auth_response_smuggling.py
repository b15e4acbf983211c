"""An answer of the auth server that is taken for the answer to somebody else.

Connections to it are kept between sessions. What waits in one when the next request
is sent would decide about a login that the auth server has never seen.
"""

import os
import socket

import pytest
from trio.testing import MockClock

from mailproxy.auth.http_answer import parse
from mailproxy.net.engine import Engine
from mailproxy.net.idle import Connection
from mailproxy.net.network import Network
from mailproxy.net.reuse import Reuse
from mailproxy.net.wire import Wire
from tests.security.world import World, passing, world

REFUSED = b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\n"
KEPT = b"Connection: keep-alive\r\nContent-Length: 0\r\n\r\n"
EVIL = (
    b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 1\r\n"
)
KEEPING = "protocol imap; auth_http_keepalive on;"


async def ask(here: World, answer: bytes) -> None:
    """Have a login refused by `answer`."""
    client = await here.connect()
    await client.send(b"a LOGIN u p\r\n")
    auth = await here.auth()
    await auth.read_until(b"\r\n\r\n")
    await auth.send(answer)
    assert b"a NO no\r\n" in await client.rest()


async def ask_anew(here: World) -> None:
    """The next login is asked about on a new connection, and its answer counts."""
    await ask(here, REFUSED + KEPT)


@pytest.mark.parametrize(
    "answer",
    [
        REFUSED + KEPT + EVIL + KEPT,
        REFUSED + b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\nx" + EVIL + KEPT,
        b"HTTP/1.1 204 No Content\r\nAuth-Status: no\r\n\r\n" + EVIL + KEPT,
        b"HTTP/1.1 100 Continue\r\nAuth-Status: no\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 0\r\n"
        b"Content-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 0\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: +0\r\n\r\n",
        b"Auth-Status: no\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=[
        *("second answer", "after the body", "after 204", "1xx", "two lengths"),
        *("chunked", "signed length", "no status line"),
    ],
)
async def test_by_what_follows_in_the_same_segment(answer: bytes) -> None:
    async with world(KEEPING) as here:
        await ask(here, answer)
        await ask_anew(here)


async def test_by_what_follows_before_the_next_session() -> None:
    """It is in the kernel when the next session takes the connection."""
    async with world(KEEPING) as here:
        await ask(here, REFUSED + KEPT)
        await here.over()
        auth = here.peers[-1]
        client = await here.connect()
        await client.expect(b"* OK IMAP4 ready\r\n")
        # No task runs between these two: the engine has not seen the first yet.
        os.write(auth.socket.fileno(), EVIL + KEPT)
        os.write(client.socket.fileno(), b"a LOGIN v q\r\n")
        auth = await here.auth()
        assert b"\r\nAuth-User: v\r\n" in await auth.read_until(b"\r\n\r\n")
        await auth.send(REFUSED + KEPT)
        await client.expect(b"a NO no\r\n")


async def test_by_what_the_engine_has_not_seen_yet() -> None:
    """Tasks have their turn before the engine looks what has arrived."""
    engine = Engine()
    network = Network(engine)
    ours, auth = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(Wire(engine, ours.detach()))
    network.idle.keep("auth", connection, Reuse(idle=60, requests=2))
    with auth:
        auth.send(EVIL + KEPT)
        assert network.idle.take("auth") is None
    network.close()
    engine.close()


async def test_by_what_follows_while_nobody_uses_the_connection() -> None:
    async with world(KEEPING) as here:
        await ask(here, REFUSED + KEPT)
        await here.over()
        auth = here.peers[-1]
        await auth.send(EVIL + KEPT)
        assert await auth.rest() == b""  # closed by mailproxy
        await ask_anew(here)


async def test_by_an_answer_that_came_too_late(mock_clock: MockClock) -> None:
    async with world(f"{KEEPING} auth_http_timeout 9s;") as here:
        client = await here.connect()
        await client.send(b"a LOGIN u p\r\n")
        late = await here.auth()
        async with passing(mock_clock, 9):
            assert b"* BAD internal server error\r\n" in await client.rest()
        await late.send(here.granted())
        await ask_anew(here)


async def test_an_orderly_connection_is_kept() -> None:
    """What the other tests see is not that none is."""
    async with world(KEEPING) as here:
        await ask(here, REFUSED + KEPT)
        await here.over()
        auth = here.peers[-1]
        client = await here.connect()
        await client.send(b"a LOGIN v q\r\n")
        auth.seen = b""
        assert b"\r\nAuth-User: v\r\n" in await auth.read_until(b"\r\n\r\n")
        await auth.send(REFUSED + KEPT)
        assert b"a NO no\r\n" in await client.rest()


def test_lines_that_fake_an_end_of_the_headers() -> None:
    """A value of a header cannot bring a line of its own."""
    answer = parse(b"HTTP/1.1 200 OK\r\nX: a\0b\tAuth-Status: OK")
    assert answer.statuses == []
