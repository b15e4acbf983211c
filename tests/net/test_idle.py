"""Connections that are kept for the next request, and how they end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.net.engine import Engine
from mailproxy.net.idle import (
    DOUBT,
    IDLE_CONNECTIONS,
    MAX_TIMES_IDLE,
    STALE,
    STALL,
    SWEEP_SLACK,
    Connection,
    IdleConnections,
)
from mailproxy.net.reuse import Reuse
from mailproxy.net.wire import PROBE_IDLE, PROBE_INTERVAL, PROBES, Wire
from tests.memory import MemoryWire
from tests.net.test_relay import running, tcp_pair

REUSE = Reuse(idle=10, requests=3)


@asynccontextmanager
async def keeping() -> AsyncIterator[IdleConnections]:
    """Idle connections, and the task that closes them in time."""
    idle = IdleConnections()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(idle.expire)
        await wait_all_tasks_blocked()
        yield idle
        nursery.cancel_scope.cancel()


def kept(idle: IdleConnections, reuse: Reuse = REUSE, server: str = "a") -> MemoryWire:
    """A new connection on which a request was answered."""
    wire = MemoryWire()
    idle.keep(server, Connection(wire), reuse)
    return wire


async def test_the_last_kept_is_the_first_taken(autojump_clock: MockClock) -> None:
    async with keeping() as idle:
        first, second = kept(idle), kept(idle)
        other = kept(idle, server="b")
        taken = [idle.take("a") for _ in range(3)]
        assert [each and each.wire for each in taken] == [second, first, None]
        assert len(idle) == 1
        assert not other.closed


async def test_each_is_closed_when_its_time_is_over(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with keeping() as idle:
        wires = [(kept(idle, Reuse(idle=t, requests=9)), t) for t in (60, 0.02, 5)]
        for now in (0.01, 0.02, 4, 5, 59, 60):
            await trio.sleep_until(start + now)
            await wait_all_tasks_blocked()
            assert [wire.closed for wire, _ in wires] == [t <= now for _, t in wires]
        assert len(idle) == 0


async def test_one_that_is_used_again_has_its_time_again(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        wire = kept(idle)
        await trio.sleep(8)
        connection = idle.take("a")
        assert connection is not None
        await trio.sleep(8)  # a long request is not idleness
        assert not wire.closed
        idle.keep("a", connection, REUSE)
        await trio.sleep(8)
        assert not wire.closed
        await trio.sleep(2)
        await wait_all_tasks_blocked()
        assert wire.closed


async def test_one_that_is_over_and_not_yet_closed_is_used(
    autojump_clock: MockClock,
) -> None:
    """A worker that had to wait for a CPU closes none that it needs at this moment."""
    async with keeping() as idle:
        wire = kept(idle)

        async def ask() -> None:
            await trio.sleep(REUSE.idle)
            await trio.lowlevel.checkpoint()  # the engine hands out what has arrived
            taken.append(idle.take("a"))

        taken: list[Connection | None] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert [each and each.wire for each in taken] == [wire]
        assert not wire.closed


async def test_one_that_does_not_answer_in_time_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        silent, prompt = kept(idle), kept(idle)
        await trio.sleep(STALE)
        first, second = idle.take("a", 2), idle.take("a", 3)
        assert first is not None
        assert second is not None
        assert (first.wire, second.wire) == (prompt, silent)
        await trio.sleep(1.9)
        idle.heard("a", first, answer=True)
        assert not second.silent
        assert await silent.receive_some() == b""
        assert second.silent
        assert not first.silent
        await trio.sleep(50)
        assert not prompt.ended


async def test_one_that_is_dead_ends_for_a_task_that_waits() -> None:
    """On the engine, with a real connection, and no other event that wakes it."""
    async with running() as relay:
        idle = IdleConnections()
        ours, far = tcp_pair()
        ours.setblocking(False)
        connection = Connection(Wire(relay.engine, ours.detach()))
        idle.keep("a", connection, REUSE)
        connection.since -= STALE  # as if it had been idle for so long
        taken = idle.take("a", 0.01)
        assert taken is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(idle.expire)
            assert await taken.wire.receive_some() == b""
            nursery.cancel_scope.cancel()
        assert taken.silent
        taken.wire.close()
        far.close()


async def test_one_that_was_idle_for_a_moment_cannot_be_dead(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        wire = kept(idle)
        await trio.sleep(STALE * 0.9)
        taken = idle.take("a", 2)
        assert taken is not None
        await trio.sleep(50)
        assert not taken.silent
        assert not wire.ended


YIELDING = Reuse(idle=STALL, parallel_idle=0.1, requests=9999, yielding=True)


def asked(idle: IdleConnections) -> Connection:
    """A new connection, on which a request has gone out."""
    connection = Connection(MemoryWire())
    idle.sent("a", connection)
    return connection


def answer(idle: IdleConnections, connection: Connection, reuse: Reuse) -> bool:
    """An answer comes; returns whether the connection is kept after it."""
    idle.heard("a", connection, answer=True)
    idle.keep("a", connection, reuse)
    return not connection.wire.closed


def ask_again(idle: IdleConnections) -> Connection:
    """Ask on the connection that is kept."""
    connection = idle.take("a")
    assert connection is not None
    idle.sent("a", connection)
    return connection


@pytest.mark.parametrize("servers", [1, 3])
async def test_a_server_that_is_blocked_is_served_by_new_connections_for_a_while(
    autojump_clock: MockClock, servers: int
) -> None:
    """One process, or a few that were forked, each of which serves one at a time."""
    async with keeping() as idle:
        first = [asked(idle) for _ in range(servers)]
        waiting = asked(idle)
        assert all(answer(idle, each, YIELDING) for each in first)
        await trio.sleep(STALL - 1.01 * SWEEP_SLACK)
        assert len(idle) == servers
        await trio.sleep(1.01 * SWEEP_SLACK)
        await wait_all_tasks_blocked()
        assert len(idle) == 0
        assert not waiting.wire.closed
        assert not answer(idle, waiting, YIELDING)
        await trio.sleep(0.9 * DOUBT)
        assert not answer(idle, asked(idle), YIELDING)
        wanted = asked(idle)
        assert answer(idle, wanted, REUSE)  # who said "on" knows it better
        cast("MemoryWire", wanted.wire).finish()
        await trio.sleep(0.1 * DOUBT)
        assert answer(idle, asked(idle), YIELDING)
        await trio.sleep(STALL)
        await wait_all_tasks_blocked()
        assert len(idle) == 0  # whatever it had shown before, it has to show again


async def test_a_server_that_answers_anybody_is_not_blocked(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        both = [asked(idle), asked(idle)]
        slow = asked(idle)
        assert all(answer(idle, each, YIELDING) for each in both)
        for _ in range(3):  # the second is idle, and has more time by now
            await trio.sleep(0.7 * STALL)
            idle.heard("a", asked(idle), answer=True)
        await wait_all_tasks_blocked()
        assert len(idle) == 1
        idle.heard("a", slow, answer=True)
        await trio.sleep(1.5 * STALL)
        assert len(idle) == 1  # nor is it blocked if nobody waits


async def test_what_has_not_reached_the_server_says_nothing_about_it(
    autojump_clock: MockClock,
) -> None:
    """connect() may take long: SYNs that the server's queue has no room for are lost."""
    async with keeping() as idle:
        both = [asked(idle), asked(idle)]
        Connection(MemoryWire())  # nothing was sent on it
        assert all(answer(idle, each, YIELDING) for each in both)
        await trio.sleep(2 * STALL)
        assert len(idle) == 1
        assert answer(idle, asked(idle), YIELDING)


async def test_a_request_that_ends_without_answer_does_not_count_any_more(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        both = [asked(idle), asked(idle)]
        left = asked(idle)
        assert all(answer(idle, each, YIELDING) for each in both)
        idle.heard("a", left, answer=False)
        await trio.sleep(2 * STALL)
        assert len(idle) == 1


async def test_what_the_operator_keeps_does_not_yield(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        first = asked(idle)
        asked(idle)
        assert answer(idle, first, REUSE)
        await trio.sleep(5)
        assert answer(idle, ask_again(idle), REUSE)


async def test_later_requests_do_not_overtake_for_long(
    autojump_clock: MockClock,
) -> None:
    """The only connection is used so often that the server is never silent."""
    async with keeping() as idle:
        first = asked(idle)
        waiting = asked(idle)
        kept = answer(idle, first, YIELDING)
        started = trio.current_time()
        while kept:
            again = ask_again(idle)
            await trio.sleep(0.001)
            kept = answer(idle, again, YIELDING)
        assert STALL <= trio.current_time() - started <= STALL + 0.002
        assert answer(idle, waiting, YIELDING)  # nor is it doubted


@pytest.mark.parametrize(("connections", "idle_time"), [(1, STALL), (2, 0.1)])
async def test_other_workers_have_their_turn(
    autojump_clock: MockClock, connections: int, idle_time: float
) -> None:
    """What they ask, and that it waits, nobody sees here."""
    async with keeping() as idle:
        for each in [asked(idle) for _ in range(connections)]:
            assert answer(idle, each, YIELDING)
        started = trio.current_time()
        kept = True
        while kept:
            await trio.sleep(0.001)
            kept = answer(idle, ask_again(idle), YIELDING)
        life = MAX_TIMES_IDLE * idle_time
        assert life <= trio.current_time() - started <= life + 0.002


PARALLEL = Reuse(idle=1, parallel_idle=5, requests=9)


async def test_who_serves_one_at_a_time_has_less_time(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        for _ in range(3):
            wire = kept(idle, PARALLEL)
            await trio.sleep(0.9)
            again = idle.take("a")
            assert again is not None
            idle.keep("a", again, PARALLEL)  # the next answer, on the only connection
            await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert wire.closed


async def test_who_serves_several_at_once_has_more_time(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        first, second = kept(idle, PARALLEL), kept(idle, PARALLEL)
        other = kept(idle, PARALLEL, server="b")
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert [first.closed, second.closed, other.closed] == [True, False, True]
        await trio.sleep(4)
        await wait_all_tasks_blocked()
        assert second.closed
        third = kept(idle, PARALLEL)
        await trio.sleep(4)
        assert not third.closed  # it is known by now
        idle.clear()
        fourth = kept(idle, PARALLEL)
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert fourth.closed  # and forgotten with the configuration


async def test_one_serves_so_many_requests(autojump_clock: MockClock) -> None:
    async with keeping() as idle:
        wire = kept(idle)
        for _ in range(REUSE.requests - 1):
            connection = idle.take("a")
            assert connection is not None
            assert connection.wire is wire
            idle.keep("a", connection, REUSE)
        assert wire.closed
        assert len(idle) == 0


async def test_what_is_closed_or_speaks_is_not_kept(autojump_clock: MockClock) -> None:
    async with keeping() as idle:
        closing, speaking, staying = kept(idle), kept(idle), kept(idle)
        closing.finish()
        speaking.put(b"HTTP/1.0 200 OK\r\n")
        assert [closing.closed, speaking.closed, staying.closed] == [True, True, False]
        assert len(idle) == 1


async def test_their_number_is_limited(autojump_clock: MockClock) -> None:
    async with keeping() as idle:
        wires = [kept(idle) for _ in range(IDLE_CONNECTIONS + 1)]
        assert wires[-1].closed
        assert len(idle) == IDLE_CONNECTIONS


async def test_one_makes_room(autojump_clock: MockClock) -> None:
    async with keeping() as idle:
        oldest, other = kept(idle), kept(idle)
        assert idle.evict()
        assert [oldest.closed, other.closed] == [True, False]
        assert idle.evict()
        assert not idle.evict()


async def test_a_dead_one_takes_those_along_that_were_idle_as_long(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        older, as_old, dead = kept(idle), kept(idle), kept(idle)
        other_server = kept(idle, server="b")
        connection = idle.take("a")
        assert connection is not None
        await trio.sleep(1)
        younger = kept(idle)
        idle.drop_suspects("a", connection.since)
        assert [older.closed, as_old.closed, younger.closed] == [True, True, False]
        assert not other_server.closed
        assert not dead.closed  # whoever has it closes it


async def test_none_is_kept_any_more_when_the_worker_leaves(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        before = kept(idle)
        idle.clear()
        again = kept(idle)
        assert [before.closed, again.closed] == [True, False]
        idle.stop_keeping()
        after = kept(idle)
        assert [again.closed, after.closed] == [True, True]
        assert len(idle) == 0


async def test_nothing_wakes_up_while_nothing_is_kept(
    autojump_clock: MockClock,
) -> None:
    async with keeping() as idle:
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float(
            "inf"
        )
        kept(idle)
        statistics = trio.lowlevel.current_statistics()
        assert statistics.seconds_to_next_deadline == REUSE.idle
        await trio.sleep(REUSE.idle)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float(
            "inf"
        )


@given(st.lists(st.tuples(st.floats(0, 0.03), st.sampled_from([0.02, 0.05, 1.0]))))
def test_none_is_kept_too_long_or_closed_too_early(
    steps: list[tuple[float, float]],
) -> None:
    async def run() -> None:
        async with keeping() as idle:
            wires: list[tuple[MemoryWire, float]] = []
            for pause, time in steps:
                wire = kept(idle, Reuse(idle=time, requests=9))
                wires.append((wire, trio.current_time() + time))
                await trio.sleep(pause)
                await wait_all_tasks_blocked()
                now = trio.current_time()
                for wire, until in wires:
                    assert not wire.closed or now >= until - 1.01 * SWEEP_SLACK
                    assert wire.closed or now < until

    trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("time", "probed"), [(60.0, 1), (0.02, 0)])
async def test_the_kernel_looks_for_dead_peers(time: float, probed: int) -> None:
    engine = Engine()
    idle = IdleConnections()
    ours, far = tcp_pair()
    ours.setblocking(False)
    wire = Wire(engine, ours.detach())
    idle.keep("a", Connection(wire), Reuse(idle=time, requests=9))
    ours = wire.socket
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == probed
    if probed:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        got = [ours.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert got == [PROBE_IDLE, PROBE_INTERVAL, PROBES]
    idle.clear()
    far.close()
    engine.close()
