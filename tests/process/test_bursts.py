"""Many clients come at once, as the worker reloads or ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.net.engine import MAX_IN_A_ROW
from mailproxy.process.messages import Order
from tests.net.test_wire import descriptors
from tests.process.own_worker import GREETING, Served, worker

CLIENTS = 100
"""More than one listener accepts in a few rounds, and fewer than its backlog."""


async def greeted(client: trio.SocketStream) -> bool:
    """Whether a client is greeted; or else hears that nobody is there."""
    try:
        data = await client.receive_some()
    except trio.BrokenResourceError:
        return False
    assert data in {GREETING, b""}
    return bool(data)


@contextmanager
def clients_of(served: Served) -> Iterator[list[trio.SocketStream]]:
    """Clients that have come, and leave with the block."""
    present = [served.connect() for _ in range(CLIENTS)]
    try:
        yield present
    finally:
        for client in present:
            client.socket.close()


async def sessions(served: Served, number: int) -> None:
    """Return once so many sessions live."""
    while len(served.worker.network.sessions) < number:
        await trio.lowlevel.checkpoint()


async def test_everyone_is_greeted(autojump_clock: MockClock, tmp_path: Path) -> None:
    before = descriptors()
    async with worker(tmp_path) as served:
        with clients_of(served) as clients:
            assert all([await greeted(client) for client in clients])
            assert len(served.worker.network.sessions) == CLIENTS
    assert not served.worker.network.sessions
    assert not served.complaints()
    assert descriptors() == before


@pytest.mark.parametrize("begun", [0, 1, 2 * MAX_IN_A_ROW])
async def test_nobody_is_lost_in_a_reload(
    autojump_clock: MockClock, tmp_path: Path, begun: int
) -> None:
    """Those whom the old configuration has not accepted are served by the new one."""
    async with worker(tmp_path) as served:
        with clients_of(served) as clients:
            await sessions(served, begun)
            await served.reload()
            clients += [served.connect() for _ in range(5)]
            assert all([await greeted(client) for client in clients])
    assert not served.worker.network.sessions
    assert not served.complaints()


@pytest.mark.parametrize("order", [Order.QUIT, Order.STOP])
@pytest.mark.parametrize("begun", [0, 1, 2 * MAX_IN_A_ROW])
async def test_those_who_were_accepted_are_greeted_before_the_end(
    autojump_clock: MockClock, tmp_path: Path, begun: int, order: Order
) -> None:
    """Unless it ends at once. The others hear that nobody is there."""
    before = descriptors()
    async with worker(tmp_path) as served:
        with clients_of(served) as clients:
            await sessions(served, begun)
            served.tell(order)
            while not served.worker.leaving and not served.ended.is_set():
                await trio.lowlevel.checkpoint()
            if order is Order.STOP:
                served.socket.close()
            heard = [await greeted(client) for client in clients]
            accepted = served.worker.network.next_number() - 1
            assert begun <= accepted
            assert begun or accepted < CLIENTS
            if order is Order.QUIT:
                assert heard == [True] * accepted + [False] * (CLIENTS - accepted)
            await served.ended.wait()
            assert served.exit_code == 0
    assert not served.worker.network.sessions
    assert not served.complaints()
    assert descriptors() == before
