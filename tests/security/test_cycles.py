"""What a session used is free when it ends, however it ends.

A worker collects garbage rarely, and what it would find of a session holds descriptors,
buffers and passwords. So nothing of a session may be part of a reference cycle.
"""

from __future__ import annotations

import gc
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import mailproxy
from mailproxy.net.relay import Pipe
from tests.security.world import TLS, Peer, World, passing, world

Scene = Callable[[World], Awaitable[None]]

CODE = str(Path(mailproxy.__file__).parent)
LOGIN = b"a LOGIN u p\r\n"
LIMIT = 4
"""Seconds of all timeouts."""
PLAIN = f"protocol imap; proxy_login literal; timeout {LIMIT}; auth_http_timeout {LIMIT}; proxy_timeout {LIMIT};"
SECURE = f"listen 127.0.0.1:1143 ssl; {PLAIN} {TLS}"
STARTTLS = f"starttls on; {PLAIN} {TLS}"
SCENES: list[tuple[str, Scene, bool]] = []


def scene(directives: str, *, late: bool = False) -> Callable[[Scene], Scene]:
    """Add a scene.

    Args:
      late: time passes.
    """

    def add(function: Scene) -> Scene:
        SCENES.append((directives, function, late))
        return function

    return add


async def greeted(here: World) -> Peer:
    client = await here.connect()
    if here.server.core.listen[0].ssl:
        await client.start_tls()
    await client.expect(b"* OK IMAP4 ready\r\n")
    if here.server.ssl.starttls == "on":
        await client.send(b"a STARTTLS\r\n")
        await client.read_until(b"\r\n")
        await client.start_tls()
    return client


async def asked(here: World) -> tuple[Peer, Peer]:
    """A client that waits for the answer of the auth server."""
    client = await greeted(here)
    await client.send(LOGIN)
    auth = await here.auth()
    await auth.read_until(b"\r\n\r\n")
    return client, auth


async def granted(here: World) -> tuple[Peer, Peer]:
    """A client that waits for its backend."""
    client = await greeted(here)
    return client, await here.log_in(client, LOGIN)


async def enter(client: Peer, backend: Peer) -> None:
    """Have the backend let the client in."""
    await backend.send(b"* OK hello\r\n")
    await backend.read_until(b"\r\n")
    await backend.send(b"+ go on\r\n")
    await backend.read_until(b"u")
    await backend.send(b"+ go on\r\n")
    await backend.read_until(b"p\r\n")
    await backend.send(b"a OK welcome\r\n")
    await client.read_until(b"a OK welcome\r\n")


async def relayed(here: World) -> tuple[Peer, Peer]:
    client, backend = await granted(here)
    await enter(client, backend)
    return client, backend


@scene(PLAIN)
async def client_logs_out(here: World) -> None:
    client = await greeted(here)
    await client.send(b"a LOGOUT\r\n")
    await client.rest()


@scene(PLAIN)
async def client_leaves(here: World) -> None:
    (await greeted(here)).close()


@scene(PLAIN)
async def client_breaks(here: World) -> None:
    (await greeted(here)).reset()


@scene(PLAIN, late=True)
async def client_is_silent(here: World) -> None:
    await (await greeted(here)).rest()


@scene(PLAIN)
async def client_sends_bad_commands(here: World) -> None:
    client = await greeted(here)
    await client.send(b"a NONSENSE\r\n" * 10)
    await client.rest()


@scene(PLAIN)
async def client_sends_a_long_line(here: World) -> None:
    client = await greeted(here)
    await client.send(b"a" * 10000)
    await client.rest()


@scene(PLAIN)
async def client_leaves_during_the_request(here: World) -> None:
    client, auth = await asked(here)
    client.close()
    await auth.send(here.granted())
    (await here.backend()).close()


@scene(PLAIN, late=True)
async def auth_server_refuses(here: World) -> None:
    client, auth = await asked(here)
    await auth.send(b"HTTP/1.0 200 OK\r\nAuth-Status: no\r\nAuth-Wait: 3\r\n\r\n")
    await client.read_until(b"a NO no\r\n")
    client.close()


@scene(PLAIN)
async def auth_server_talks_nonsense(here: World) -> None:
    client, auth = await asked(here)
    await auth.send(b"nonsense\r\n\r\n")
    await client.rest()


@scene(PLAIN)
async def auth_server_leaves(here: World) -> None:
    client, auth = await asked(here)
    auth.close()
    await client.rest()


@scene(PLAIN)
async def auth_server_breaks(here: World) -> None:
    client, auth = await asked(here)
    auth.reset()
    await client.rest()


@scene(PLAIN, late=True)
async def auth_server_is_silent(here: World) -> None:
    client, _ = await asked(here)
    await client.rest()


@scene(PLAIN, late=True)
async def auth_server_stops_halfway(here: World) -> None:
    client, auth = await asked(here)
    await auth.send(b"HTTP/1.0 200 OK\r\n")
    await client.rest()


@scene(PLAIN + " auth_http 127.0.0.1:9/;")
async def auth_server_is_not_there(here: World) -> None:
    client = await greeted(here)
    await client.send(LOGIN)
    await client.rest()


@scene(PLAIN)
async def backend_leaves(here: World) -> None:
    client, backend = await granted(here)
    await backend.send(b"* BYE not now\r\n")
    backend.close()
    await client.rest()


@scene(PLAIN)
async def backend_breaks(here: World) -> None:
    client, backend = await granted(here)
    backend.reset()
    await client.rest()


@scene(PLAIN, late=True)
async def backend_is_silent(here: World) -> None:
    client, _ = await granted(here)
    await client.rest()


@scene(PLAIN)
async def backend_sends_a_long_line(here: World) -> None:
    client, backend = await granted(here)
    await backend.send(b"x" * 10000)
    await client.rest()


@scene(PLAIN)
@scene(SECURE)
@scene(STARTTLS)
async def relayed_backend_leaves(here: World) -> None:
    _, backend = await relayed(here)
    backend.close()


@scene(PLAIN)
async def relayed_client_breaks(here: World) -> None:
    client, _ = await relayed(here)
    client.reset()


@scene(PLAIN)
@scene(SECURE)
async def relayed_backend_breaks(here: World) -> None:
    _, backend = await relayed(here)
    backend.reset()


@scene(PLAIN)
@scene(SECURE)
async def relayed_backend_breaks_while_it_does_not_read(here: World) -> None:
    client, backend = await relayed(here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, bytes(1 << 24))
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    backend.reset()


@scene(PLAIN, late=True)
async def relayed_and_silent(here: World) -> None:
    client, _ = await relayed(here)
    await client.rest()


@scene(PLAIN)
async def relayed_to_the_end_of_the_worker(here: World) -> None:
    client, _ = await relayed(here)
    here.network.relay.shutdown()
    await client.rest()


@scene(PLAIN)
async def relayed_in_bulk(here: World) -> None:
    """Through a pipe."""
    client, backend = await relayed(here)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, bytes(1 << 21) + b"end")
        await backend.read_until(b"end")
    client.close()


@scene(SECURE)
async def relayed_nonsense_in_tls(here: World) -> None:
    client, _ = await relayed(here)
    await client.socket.send(b"\x17\x03\x03\x00\x40" + bytes(64))


@scene(SECURE)
async def no_handshake(here: World) -> None:
    client = await here.connect()
    await client.send(b"a LOGIN u p\r\n")
    await client.rest()


@scene("protocol imap; proxy_login literal; listen 127.0.0.1:1143 proxy_protocol;")
async def no_header(here: World) -> None:
    client = await here.connect()
    await client.send(b"a LOGIN u p\r\n")
    await client.rest()


@scene("protocol pop3;")
async def pop3(here: World) -> None:
    client = await here.connect()
    backend = await here.log_in(client, b"USER u\r\nPASS p\r\n")
    await backend.send(b"+OK hello\r\n")
    await backend.read_until(b"USER u\r\n")
    await backend.send(b"+OK\r\n")
    await backend.read_until(b"PASS p\r\n")
    await backend.send(b"+OK welcome\r\n")
    await client.read_until(b"+OK welcome\r\n")
    client.close()


@scene("protocol smtp; smtp_greeting_delay 3s; timeout 60s;", late=True)
async def smtp(here: World) -> None:
    client = await here.connect()
    await client.read_until(b"220 mx.test ESMTP ready\r\n")
    await client.send(b"EHLO me\r\n")
    backend = await here.log_in(client, b"AUTH PLAIN AHUAcA==\r\n")
    await backend.send(b"220 hello\r\n")
    await backend.read_until(b"\r\n")
    await backend.send(b"500 what?\r\n")
    await client.rest()


@scene("protocol smtp; smtp_greeting_delay 3s; timeout 60s;")
async def smtp_too_early(here: World) -> None:
    client = await here.connect()
    await client.send(b"EHLO me\r\n")
    await client.rest()


def of_ours(item: object) -> bool:
    """Whether an object is one of a session."""
    match item:
        case types.FrameType():
            return item.f_code.co_filename.startswith(CODE)
        case types.FunctionType():
            return item.__module__.startswith("mailproxy.")
        case types.CoroutineType():
            return item.cr_code.co_filename.startswith(CODE)
        case BaseException():
            return True
        case _:
            kind = type(item)
            module = str(kind.__module__)  # Cython's own types have no text there
            if "cython" in module:  # coroutines and functions of the compiled core
                module = str(getattr(item, "__module__", ""))
            return module.startswith("mailproxy.") or kind is trio.lowlevel.Task


def alive() -> Counter[type]:
    """How many objects of our classes there are, but for pipes, which the relay keeps."""
    kinds = map(type, gc.get_objects())
    return Counter(
        kind
        for kind in kinds
        if str(kind.__module__).startswith("mailproxy.") and kind is not Pipe
    )


@contextmanager
def nothing_left() -> Iterator[None]:
    """The block leaves nothing that lives on, or that only the collector can free."""
    gc.collect()
    before = alive()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = [repr(item) for item in gc.garbage if of_ours(item)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found
    assert not alive() - before


async def play(here: World, scene: Scene, clock: MockClock, *, late: bool) -> None:
    """Play a scene to its end."""
    if late:
        async with passing(clock, LIMIT):
            await scene(here)
    else:
        await scene(here)
    here.leave()
    here.peers.clear()
    await here.over()
    here.network.idle.clear()
    here.log.events.clear()
    await wait_all_tasks_blocked()


@pytest.mark.parametrize(
    ("directives", "scene", "late"),
    SCENES,
    ids=[f"{'TLS ' * (TLS in text)}{each.__name__}" for text, each, _ in SCENES],
)
async def test_nothing_of_a_session_needs_the_collector(
    mock_clock: MockClock, directives: str, scene: Scene, late: bool
) -> None:
    mock_clock.rate = 0.0 if late else 1.0
    async with world(directives) as here:
        await play(here, scene, mock_clock, late=late)  # what is made once, is now
        with nothing_left():
            await play(here, scene, mock_clock, late=late)
