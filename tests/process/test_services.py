"""Tasks of a worker: in which order they come and go, and what happens when one fails."""

from __future__ import annotations

import errno
import select
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.net.engine import Handler
from mailproxy.process.messages import Order, write_order
from mailproxy.process.services import MAX_RESTART_PAUSE, RESTART_PAUSE, Service
from mailproxy.process.worker import Worker
from mailproxy.process.worker_services import Orders
from tests.process.own_worker import GREETING, Served, worker


class Diary(Service):
    """Notes when it begins and ends, and needs a moment to end."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name  # type: ignore[misc] # each object is another service here
        self._notes = notes

    async def run(self, worker: Worker) -> None:
        self._notes.append(f"{self.name} begins")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            self._notes.append(f"{self.name} ends")


class Fails(Service):
    """Fails, each time after the next of some seconds; then it runs.

    Attributes:
      begun: when it began, in trio's time.
    """

    name = "moon"

    def __init__(self, *after: float) -> None:
        self.begun: list[float] = []
        self._after = list(after)

    async def run(self, worker: Worker) -> None:
        self.begun.append(trio.current_time())
        if not self._after:
            await trio.sleep_forever()
        await trio.sleep(self._after.pop(0))
        raise LookupError("the moon is gone")


class FailsVitally(Fails):
    """The same, and nothing can go on without it."""

    name = "sun"
    vital = True


class Ends(Service):
    """Has nothing to do after a while."""

    name = "comet"
    vital = True

    async def run(self, worker: Worker) -> None:
        await trio.sleep(1)


async def test_services_begin_in_order_and_end_in_the_opposite_one(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    notes: list[str] = []
    names = ["a", "b", "c", "d"]
    diaries = [Diary(name, notes) for name in names]
    async with worker(tmp_path, services=diaries) as served, served.connect() as client:
        assert await client.receive_some() == GREETING
        assert notes == [f"{name} begins" for name in names]
        served.tell(Order.STOP)
        assert await client.receive_some() == b""
    assert notes[len(names) :] == [f"{name} ends" for name in reversed(names)]


def bugs(served: Served) -> list[str]:
    """The bugs that were logged, without their tracebacks."""
    return [line for line in served.complaints() if "this is a bug" in line]


async def test_service_that_fails_is_named_and_started_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Ever later, until it has run for a good while; clients are served meanwhile."""
    long = MAX_RESTART_PAUSE + 1
    service = Fails(*[0] * 8, long, 0)
    async with worker(tmp_path, services=[service]) as served:
        for _ in range(10):
            async with served.connect() as client:
                assert await client.receive_some() == GREETING
            await trio.sleep(MAX_RESTART_PAUSE)
    gaps = [after - before for before, after in pairwise(service.begun)]
    doubled = [RESTART_PAUSE * 2**n for n in range(7)]
    assert gaps == pytest.approx(
        [*doubled, MAX_RESTART_PAUSE, long + RESTART_PAUSE, 2 * RESTART_PAUSE]
    )
    assert bugs(served) == ['[alert] service "moon" failed, this is a bug'] * 10
    assert served.complaints().count("[alert] LookupError: the moon is gone") == 10
    assert served.exit_code == 0


async def test_worker_ends_with_a_vital_service(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    notes: list[str] = []
    services = [Diary("a", notes), FailsVitally(5), Diary("b", notes)]
    async with worker(tmp_path, services=services) as served, served.connect() as one:
        assert await one.receive_some() == GREETING
        assert await one.receive_some() == b""
        await served.ended.wait()
    assert served.exit_code == 1
    assert notes == ["a begins", "b begins", "b ends", "a ends"]
    assert bugs(served) == ['[alert] service "sun" failed, this is a bug']


async def test_worker_ends_with_a_vital_service_that_never_works(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path, services=[FailsVitally(0)]) as served:
        await served.ended.wait()
    assert served.exit_code == 1


async def test_worker_ends_with_its_engine(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Nothing could move then; a master starts another worker."""
    ours, theirs = socket.socketpair()

    class Broken(Handler):
        def ready(self, events: int) -> None:
            if events & select.EPOLLIN:
                raise LookupError("the engine is broken")

    with ours, theirs:
        async with worker(tmp_path) as served, served.connect() as client:
            assert await client.receive_some() == GREETING
            served.worker.network.engine.register(ours.fileno(), Broken())
            theirs.send(b"x")
            assert await client.receive_some() == b""
            await served.ended.wait()
    assert served.exit_code == 1
    assert bugs(served) == ['[alert] service "engine" failed, this is a bug']


async def test_worker_that_could_not_hear_orders_does_not_begin(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """What the engine watches already, it cannot watch once more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notes: list[str] = []
    services = [Diary("a", notes), Orders(theirs), Orders(theirs)]
    with ours, theirs:
        ours.send(write_order(Order.PING))
        async with worker(tmp_path, services=services) as served:
            await served.ended.wait()
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert served.lacking is not None
    assert served.lacking.call == "epoll_ctl()"
    assert served.lacking.error.errno == errno.EEXIST
    assert notes == []


async def test_service_that_has_nothing_more_to_do_is_missed_by_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with worker(tmp_path, services=[Ends()]) as served:
        await trio.sleep(2)
        async with served.connect() as client:
            assert await client.receive_some() == GREETING
    assert served.complaints() == []
    assert served.exit_code == 0


@pytest.mark.parametrize(("vital", "code"), [(False, 0), (True, 1)])
async def test_failure_at_the_end_is_told(
    autojump_clock: MockClock, tmp_path: Path, *, vital: bool, code: int
) -> None:
    class FailsToEnd(Service):
        name = "moon"

        async def run(self, worker: Worker) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                raise LookupError("the moon stays") from None

    FailsToEnd.vital = vital
    async with worker(tmp_path, services=[FailsToEnd()]) as served:
        pass
    assert bugs(served) == ['[alert] service "moon" failed, this is a bug']
    assert served.exit_code == code
