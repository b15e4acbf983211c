"""The engine in company: what else a worker waits for is noticed at once.

Sessions only relay meanwhile, so that the engine waits in trio's place. Whatever is to
wake the worker happens in another process, once this one is asleep. Each test runs in
a process of its own: threads that other tests have left, even idle ones of trio's, would
keep the engine from waiting there, and nothing would be shown.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ParamSpec

import pytest
import trio

from mailproxy.net.calls import READABLE
from mailproxy.net.engine import Engine, Handler, Readiness
from mailproxy.net.relay import Relay
from mailproxy.net.wire import Wire

P = ParamSpec("P")

PATIENCE = 30.0
"""Seconds to the one deadline that a deaf engine would wait for."""
EPOLL_WAIT = {"232", "22", "281"}
"""epoll_wait(2) of x86-64, and epoll_pwait(2) of it and of most others."""


def in_a_process(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an asynchronous test in a process without other threads."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert threading.active_count() == 1
                engine = kwargs["engine"]
                assert isinstance(engine, Engine)
                trio.run(functools.partial(test, *args, **kwargs), clock=engine.clock)
                status = 0
            except BaseException:  # noqa: BLE001 # pytest is the other process
                traceback.print_exc()
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    return run


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


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def relayed(engine: Engine) -> tuple[Wire, socket.socket]:
    ours, far = socket.socketpair()
    ours.setblocking(False)
    return Wire(engine, ours.detach()), far


@asynccontextmanager
async def worker(engine: Engine) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """The engine in trio's place, and the far ends of a session that only relays."""
    relay = Relay(engine)
    client, far_client = relayed(engine)
    backend, far_backend = relayed(engine)

    async def session() -> None:
        await relay.carry(client, backend, idle_limit=2 * PATIENCE)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            nursery.start_soon(session)
            with trio.fail_after(PATIENCE) as limit:
                for _ in range(3):  # both have begun
                    await trio.lowlevel.checkpoint()
                yield far_client, far_backend
                # A deaf engine hears of everything at its deadline.
                assert trio.current_time() < limit.deadline
            nursery.cancel_scope.cancel()
    finally:
        for each in (client, backend):
            each.close()
        for end in (far_client, far_backend):
            end.close()
        relay.close()


@in_a_process
async def test_relaying_goes_on_while_the_engine_waits(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    async with worker(engine) as (client, backend):

        def talk() -> None:
            client.send(b"a1 NOOP\r\n")
            os.write(write_end, backend.recv(64))

        with once_asleep(talk):
            await trio.lowlevel.wait_readable(read_end)
        assert os.read(read_end, 64) == b"a1 NOOP\r\n"
    os.close(read_end)
    os.close(write_end)


@in_a_process
async def test_the_result_of_a_thread_wakes_the_worker(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    async with worker(engine):
        with once_asleep(lambda: os.write(write_end, b"x")):
            assert await trio.to_thread.run_sync(os.read, read_end, 1) == b"x"
    os.close(read_end)
    os.close(write_end)


@in_a_process
async def test_a_readable_socket_of_trio_s_wakes_the_worker(engine: Engine) -> None:
    ours, theirs = trio.socket.socketpair()
    async with worker(engine):
        with once_asleep(lambda: os.write(theirs.fileno(), b"x")):
            assert await ours.recv(1) == b"x"
    ours.close()
    theirs.close()


@in_a_process
async def test_a_writable_socket_of_trio_s_wakes_the_worker(engine: Engine) -> None:
    ours, theirs = trio.socket.socketpair()
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += os.write(ours.fileno(), bytes(65536))

    def drain() -> None:
        left = sent
        while left:
            left -= len(os.read(theirs.fileno(), left))

    async with worker(engine):
        with once_asleep(drain):
            assert await ours.send(b"x") == 1
    ours.close()
    theirs.close()


@in_a_process
async def test_a_deadline_wakes_the_worker(engine: Engine) -> None:
    async with worker(engine):
        began = trio.current_time()
        await trio.sleep(0.01)
        assert trio.current_time() - began < PATIENCE


@in_a_process
async def test_what_a_task_waits_for_after_its_deadline_wakes_the_worker(
    engine: Engine,
) -> None:
    """The engine asks again who else there is."""
    read_end, write_end = os.pipe()
    async with worker(engine):
        await trio.sleep(0.01)
        with once_asleep(lambda: os.write(write_end, b"x")):
            await trio.lowlevel.wait_readable(read_end)
    os.close(read_end)
    os.close(write_end)


@in_a_process
async def test_a_call_from_another_thread_wakes_the_worker(engine: Engine) -> None:
    token = trio.lowlevel.current_trio_token()
    read_end, write_end = os.pipe()
    called = trio.Event()

    def call() -> None:
        os.read(read_end, 1)
        token.run_sync_soon(called.set)

    async with worker(engine):
        thread = threading.Thread(target=call)
        thread.start()
        with once_asleep(lambda: os.write(write_end, b"x")):
            await called.wait()
        thread.join()
    os.close(read_end)
    os.close(write_end)


@in_a_process
async def test_a_thread_that_ends_as_the_engine_looks_wakes_the_worker(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may leave a call and be gone while the engine asks who else there is."""
    token = trio.lowlevel.current_trio_token()
    called = trio.Event()
    go_on = threading.Event()
    count = threading.active_count

    def call() -> None:
        go_on.wait(PATIENCE)
        token.run_sync_soon(called.set)

    thread = threading.Thread(target=call)

    def count_after_its_end() -> int:
        if not thread.ident or go_on.is_set():
            return count()
        go_on.set()
        thread.join(PATIENCE)
        return count()

    async with worker(engine):
        thread.start()
        monkeypatch.setattr(threading, "active_count", count_after_its_end)
        await called.wait()


class Broken(Handler):
    """Fails when there is something to read."""

    def ready(self, events: int) -> None:
        if events & select.EPOLLIN:
            raise LookupError


@pytest.mark.parametrize("alone", [False, True], ids=["in trio", "in its place"])
@in_a_process
async def test_a_handler_that_fails_ends_the_engine(
    engine: Engine, *, alone: bool
) -> None:
    """A clock that raises would end the whole process."""
    ours, theirs = socket.socketpair()
    engine.register(ours.fileno(), Broken())
    with trio.fail_after(PATIENCE) as limit:
        async with trio.open_nursery() as nursery:
            if not alone:
                nursery.start_soon(trio.lowlevel.wait_readable, theirs.fileno())
            with once_asleep(lambda: theirs.send(b"x")), pytest.raises(LookupError):
                await engine.run()
            # The engine has no task any more, so it does not wait in trio's place.
            await trio.sleep(0.01)
            assert trio.current_time() < limit.deadline
            nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


@in_a_process
async def test_a_cancelled_engine_leaves_the_waiting_to_trio(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    with trio.fail_after(PATIENCE) as limit:
        with once_asleep(lambda: os.write(write_end, b"x")):
            await trio.lowlevel.wait_readable(read_end)
        assert trio.current_time() < limit.deadline
    os.close(read_end)
    os.close(write_end)


class Turns(trio.abc.Instrument):
    """Counts the turns of trio's loop."""

    count = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.count += 1


@in_a_process
async def test_trio_s_loop_does_not_turn_while_sessions_relay(engine: Engine) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    end = Readiness(engine)
    turns = Turns()
    async with worker(engine) as (client, backend):
        engine.register(read_end, end)

        def talk() -> None:
            for _ in range(100):
                client.send(b"a1 NOOP\r\n")
                backend.recv(64)
            os.write(write_end, b"x")

        trio.lowlevel.add_instrument(turns)
        with once_asleep(talk):
            await end.wait(READABLE)
        trio.lowlevel.remove_instrument(turns)
        assert turns.count < 5
        engine.unregister(read_end)
    os.close(read_end)
    os.close(write_end)
