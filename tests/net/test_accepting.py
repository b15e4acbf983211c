"""Accepting: every connection begins once, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailproxy.net.engine import MAX_IN_A_ROW, Engine, ListeningWire
from tests.net.test_wire import descriptors
from tests.process.own_worker import ShortSocket

FAMILIES = {
    "IPv4": (socket.AF_INET, "127.0.0.1"),
    "IPv6": (socket.AF_INET6, "::1"),
    "unix": (socket.AF_UNIX, ""),
}


class Door:
    """A listening socket on an engine that runs only when a test says so.

    Attributes:
      accepted: the descriptors of all connections, in order; they are closed in the end.
      addresses: of their peers.
      clients: the other ends.
    """

    def __init__(self, engine: Engine, listening: ShortSocket) -> None:
        self.engine = engine
        self.socket = listening
        self.wire = ListeningWire(engine, listening)
        self.accepted: list[int] = []
        self.addresses: list[object] = []
        self.clients: list[socket.socket] = []
        self.errors: list[OSError] = []

    def begin(self, fd: int, address: object) -> None:
        self.accepted.append(fd)
        self.addresses.append(address)

    async def serve(self) -> None:
        """Accept, and go on after each error."""
        while True:
            self.errors.append(await self.wire.serve(self.begin))

    def connect(self, number: int = 1) -> None:
        """Clients that the kernel lets in."""
        for _ in range(number):
            client = socket.socket(self.socket.family)
            self.clients.append(client)
            client.connect(self.socket.getsockname())

    def round(self) -> int:
        """Let the engine hand out once; return how many connections have begun."""
        before = len(self.accepted)
        self.engine.hand_out()
        return len(self.accepted) - before

    def check(self) -> None:
        """Each client has one connection of its own, and all of them work."""
        assert len(self.accepted) == len(set(self.accepted)) == len(self.clients)
        for client in self.clients:
            client.sendall(b"%d" % client.fileno())
        heard = sorted(int(os.read(fd, 100)) for fd in self.accepted)
        assert heard == sorted(client.fileno() for client in self.clients)


@contextmanager
def door(
    *errors: int, family: str = "IPv4", directory: Path | None = None
) -> Iterator[Door]:
    before = descriptors()
    kind, host = FAMILIES[family]
    engine = Engine()
    with ShortSocket(kind) as listening:
        listening.errors = list(errors)
        listening.bind(str(directory) + "/socket" if directory else (host, 0))
        listening.listen(200)
        listening.setblocking(False)
        here = Door(engine, listening)
        try:
            yield here
        finally:
            here.wire.close()
            for fd in here.accepted:
                os.close(fd)
            for client in here.clients:
                client.close()
    engine.close()
    assert descriptors() == before


@pytest.mark.parametrize("family", FAMILIES)
async def test_connections_before_and_after_the_beginning(
    family: str, tmp_path: Path
) -> None:
    directory = tmp_path if family == "unix" else None
    with door(family=family, directory=directory) as here:
        here.connect(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            assert here.round() == 3
            assert here.round() == 0
            here.connect(2)
            assert here.round() == 2
            nursery.cancel_scope.cancel()
        here.check()
        for fd, address, client in zip(
            here.accepted, here.addresses, here.clients, strict=True
        ):
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            assert address == client.getsockname()
            if family != "unix":
                with closing(socket.socket(fileno=os.dup(fd))) as ours:
                    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_burst_leaves_others_their_turn() -> None:
    """More connections arrive while those before are accepted."""
    with door() as here:
        here.connect(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            for _ in range(4):
                assert here.round() == MAX_IN_A_ROW
                here.connect(10)
            while len(here.accepted) < len(here.clients):
                assert 0 < here.round() <= MAX_IN_A_ROW
            assert here.round() == 0
            nursery.cancel_scope.cancel()
        here.check()


@pytest.mark.parametrize(
    "error", [errno.EMFILE, errno.ECONNABORTED, errno.EPERM], ids=errno.errorcode.get
)
async def test_an_error_loses_no_connection(error: int) -> None:
    with door(error, error) as here:
        here.connect(30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            for number in (1, 2):
                assert here.round() == 0
                # Nothing is accepted before the error was told.
                here.connect()
                assert here.round() == 0
                await wait_all_tasks_blocked()
                assert [each.errno for each in here.errors] == [error] * number
            while len(here.accepted) < len(here.clients):
                assert here.round()
            nursery.cancel_scope.cancel()
        here.check()


async def test_an_error_within_a_burst() -> None:
    with door() as here:
        here.connect(40)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            assert here.round() == MAX_IN_A_ROW
            here.socket.errors = [errno.ENFILE]
            here.connect()  # an event, and more work from before
            assert here.round() == 0
            await wait_all_tasks_blocked()
            assert len(here.errors) == 1
            while len(here.accepted) < len(here.clients):
                assert 0 < here.round() <= MAX_IN_A_ROW
            nursery.cancel_scope.cancel()
        here.check()


async def test_nothing_is_accepted_once_it_is_cancelled() -> None:
    """What the kernel has let in waits for the next one, as at a reload."""
    with door() as here:
        here.connect(40)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            assert here.round() == MAX_IN_A_ROW
            here.connect()
            nursery.cancel_scope.cancel()
            assert here.round() == 0  # the task has not even noticed
        assert here.round() == 0
        here.wire.close()
        here.wire = ListeningWire(here.engine, here.socket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            while len(here.accepted) < len(here.clients):
                assert 0 < here.round() <= MAX_IN_A_ROW
            nursery.cancel_scope.cancel()
        here.check()


async def test_cancelled_together_with_an_error() -> None:
    with door(errno.EMFILE) as here:
        here.connect(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            assert here.round() == 0
            nursery.cancel_scope.cancel()
        assert here.round() == 0
        assert len(here.errors) == 1
        async with trio.open_nursery() as nursery:  # the same wire again
            nursery.start_soon(here.serve)
            await wait_all_tasks_blocked()
            assert here.round() == 3
            nursery.cancel_scope.cancel()
        here.check()
