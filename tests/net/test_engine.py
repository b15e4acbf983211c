"""The engine in company: what else a worker waits for is noticed at once.

Sessions only relay meanwhile, so that the engine waits in trio's place. Whatever is to
wake the worker happens in another process, once this one is asleep.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from mailproxy.net.engine import Engine
from mailproxy.net.relay import Relay
from mailproxy.net.wire import Wire

PATIENCE = 30.0
"""Seconds to the one deadline that a deaf engine would wait for."""
EPOLL_WAIT = {"232", "22", "281"}
"""epoll_wait(2) of x86-64, and epoll_pwait(2) of it and of most others."""


@contextmanager
def once_asleep(action: Callable[[], object]) -> Iterator[None]:
    """Have another process do `action` as soon as this one waits in an epoll."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        call = Path(f"/proc/{parent}/syscall")
        while call.read_text().split()[0] not in EPOLL_WAIT:
            os.sched_yield()
        action()
        os._exit(0)
    yield
    os.waitpid(child, 0)


def relayed(engine: Engine) -> tuple[Wire, socket.socket]:
    ours, far = socket.socketpair()
    ours.setblocking(False)
    return Wire(engine, ours), far


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """An engine in trio's place, and the far ends of a session that only relays."""
    engine = Engine()
    relay = Relay(engine)
    trio.lowlevel.add_instrument(engine)
    client, far_client = relayed(engine)
    backend, far_backend = relayed(engine)

    async def session() -> None:
        await relay.carry(client, backend, idle_limit=2 * PATIENCE)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            nursery.start_soon(session)
            with trio.fail_after(PATIENCE) as limit:
                # After a round that woke no task, the engine waits in trio's place.
                far_client.send(b"x")
                while engine.woke:
                    await trio.lowlevel.checkpoint()
                assert far_backend.recv(1) == b"x"
                yield far_client, far_backend
                # A deaf engine hears of everything at its deadline.
                assert trio.current_time() < limit.deadline
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(engine)
        for each in (client, backend):
            each.close()
        for end in (far_client, far_backend):
            end.close()
        relay.close()
        engine.close()


async def test_relaying_goes_on_while_the_engine_waits() -> None:
    read_end, write_end = os.pipe()
    async with worker() as (client, backend):

        def talk() -> None:
            client.send(b"a1 NOOP\r\n")
            os.write(write_end, backend.recv(64))

        with once_asleep(talk):
            await trio.lowlevel.wait_readable(read_end)
        assert os.read(read_end, 64) == b"a1 NOOP\r\n"
    os.close(read_end)
    os.close(write_end)


async def test_the_result_of_a_thread_wakes_the_worker() -> None:
    read_end, write_end = os.pipe()
    async with worker():
        with once_asleep(lambda: os.write(write_end, b"x")):
            assert await trio.to_thread.run_sync(os.read, read_end, 1) == b"x"
    os.close(read_end)
    os.close(write_end)


async def test_a_readable_socket_of_trio_s_wakes_the_worker() -> None:
    ours, theirs = trio.socket.socketpair()
    async with worker():
        with once_asleep(lambda: os.write(theirs.fileno(), b"x")):
            assert await ours.recv(1) == b"x"
    ours.close()
    theirs.close()


async def test_a_writable_socket_of_trio_s_wakes_the_worker() -> None:
    ours, theirs = trio.socket.socketpair()
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += os.write(ours.fileno(), bytes(65536))

    def drain() -> None:
        left = sent
        while left:
            left -= len(os.read(theirs.fileno(), left))

    async with worker():
        with once_asleep(drain):
            assert await ours.send(b"x") == 1
    ours.close()
    theirs.close()


async def test_a_deadline_wakes_the_worker() -> None:
    async with worker():
        began = trio.current_time()
        await trio.sleep(0.01)
        assert trio.current_time() - began < PATIENCE


async def test_a_call_from_another_thread_wakes_the_worker() -> None:
    token = trio.lowlevel.current_trio_token()
    read_end, write_end = os.pipe()
    called = trio.Event()

    def call() -> None:
        os.read(read_end, 1)
        token.run_sync_soon(called.set)

    async with worker():
        thread = threading.Thread(target=call)
        thread.start()
        with once_asleep(lambda: os.write(write_end, b"x")):
            await called.wait()
        thread.join()
    os.close(read_end)
    os.close(write_end)
