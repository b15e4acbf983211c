"""Health checks: who is probed when, and what comes of it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.log import INFO
from mailproxy.mail.peer_states import Health
from mailproxy.mail.probing import Schedule
from mailproxy.manager.health import (
    MAX_PROBES,
    Check,
    HealthChecks,
    PeerKey,
    WatchedPeer,
)
from mailproxy.manager.probes.peer import Failure
from tests.captured_log import CapturedLog

KEY = PeerKey("pool", "192.0.2.1:143")
EVERY_FIVE = Schedule()
DOWN = Failure("connect() failed (%s: %s)", (111, "Connection refused"))


class Target:
    """What a probe finds; it notes when it is probed.

    Attributes:
      failure: what is wrong with it, or nothing.
      takes: seconds that a probe takes.
      times: when probes began.
    """

    def __init__(self, failure: Failure | None = None, takes: float = 0.0) -> None:
        self.failure = failure
        self.takes = takes
        self.times: list[float] = []

    async def probe(self) -> Failure | None:
        self.times.append(trio.current_time())
        await trio.sleep(self.takes)
        return self.failure


class World:
    """Health checks, their log, and what they have told."""

    def __init__(self, chance: Callable[[], float] = lambda: 0.0) -> None:
        self.captured = CapturedLog(INFO)
        self.changes: list[tuple[float, str, Health]] = []
        self.checks = HealthChecks(self.captured.log, self._changed, chance)

    def _changed(self, key: PeerKey, health: Health) -> None:
        self.changes.append((trio.current_time(), key.name, health))

    @property
    def lines(self) -> list[tuple[str, str]]:
        return self.captured.events


def watched(
    *targets: Target,
    schedule: Schedule = EVERY_FIVE,
    mandatory: bool = False,
    health: Health = "healthy",
    key: PeerKey = KEY,
) -> WatchedPeer:
    return WatchedPeer(
        key=key,
        address=key.name,
        checks=tuple(
            Check(schedule=schedule, probe=each.probe, mandatory=mandatory)
            for each in targets
        ),
        health=health,
    )


Run = Callable[[World, float], Awaitable[None]]


@pytest.fixture
def run(nursery: trio.Nursery) -> Run:
    """Run health checks for some seconds; they go on the next time."""
    started: set[int] = set()

    async def run(world: World, duration: float) -> None:
        if id(world) not in started:
            started.add(id(world))
            nursery.start_soon(world.checks.run)
        await trio.sleep(duration)

    return run


async def test_a_peer_is_probed_at_once_and_then_every_interval(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(takes=1)
    world.checks.watch([watched(target, schedule=Schedule(interval=10))])
    await run(world, 40)
    assert target.times == [0, 11, 22, 33]
    assert world.changes == []
    assert world.lines == []


async def test_jitter_is_added_by_chance(run: Run, autojump_clock: MockClock) -> None:
    chances = iter((0.5, 0.25, 1.0))
    world, target = World(lambda: next(chances)), Target()
    world.checks.watch([watched(target, schedule=Schedule(interval=10, jitter=4))])
    await run(world, 30)
    assert target.times == [0, 12, 23]


async def test_fails_and_passes_are_counted_in_a_row(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target()
    world.checks.watch(
        [watched(target, schedule=Schedule(interval=1, fails=3, passes=2))]
    )
    found: list[tuple[Failure | None, Health]] = [
        (None, "healthy"),
        (DOWN, "healthy"),
        (DOWN, "healthy"),
        (None, "healthy"),
        (DOWN, "healthy"),
        (DOWN, "healthy"),
        (DOWN, "unhealthy"),
        (DOWN, "unhealthy"),
        (None, "unhealthy"),
        (DOWN, "unhealthy"),
        (None, "unhealthy"),
        (None, "healthy"),
    ]
    for failure, health in found:
        target.failure = failure
        await run(world, 0.5)
        assert world.checks.health(KEY) == health
        await run(world, 0.5)
    assert [change[1:] for change in world.changes] == [
        (KEY.name, "unhealthy"),
        (KEY.name, "healthy"),
    ]


async def test_the_log_says_what_changes_and_why(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(Failure('invalid greeting: "%s"', (b'* NO "x\r',)))
    world.checks.watch([watched(target, schedule=Schedule(interval=1, fails=2))])
    await run(world, 2.5)
    target.failure = DOWN
    await run(world, 3)
    target.failure = None
    await run(world, 2)
    peer = 'peer 192.0.2.1:143 of upstream "pool"'
    assert world.lines == [
        (
            "info",
            f'health check of {peer} failed: invalid greeting: "* NO \\x22x\\x0D"',
        ),
        ("warn", f'{peer} is unhealthy: invalid greeting: "* NO \\x22x\\x0D"'),
        (
            "info",
            f"health check of {peer} failed: connect() failed (111: Connection refused)",
        ),
        ("notice", f"{peer} is healthy"),
    ]


async def test_a_fault_of_this_machine_says_nothing_of_the_peer(
    run: Run, autojump_clock: MockClock
) -> None:
    fault = Failure(
        "connect() failed (%s: %s)", (24, "Too many open files"), local=True
    )
    world, target = World(), Target(DOWN)
    world.checks.watch([watched(target, schedule=Schedule(interval=1, fails=2))])
    await run(world, 0.5)
    target.failure = fault
    await run(world, 3)
    assert world.checks.health(KEY) == "healthy"
    target.failure = DOWN
    await run(world, 1)
    assert world.checks.health(KEY) == "unhealthy"
    assert [level for level, _ in world.lines] == ["info", "crit", "warn"]
    assert world.lines[1][1] == (
        'health check of peer 192.0.2.1:143 of upstream "pool" failed: '
        "connect() failed (24: Too many open files)"
    )


async def test_a_mandatory_check_has_to_pass_before_the_first_session(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(takes=2)
    peer = watched(target, mandatory=True, health="checking")
    world.checks.watch([peer])
    assert world.checks.health(KEY) == "checking"
    await run(world, 1)
    assert world.checks.health(KEY) == "checking"
    await run(world, 2)
    assert world.checks.health(KEY) == "healthy"
    assert world.changes == [(2, KEY.name, "healthy")]
    assert world.lines == [
        ("notice", 'peer 192.0.2.1:143 of upstream "pool" is healthy')
    ]


async def test_a_mandatory_check_that_fails_makes_unhealthy(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(DOWN)
    world.checks.watch(
        [
            watched(
                target,
                mandatory=True,
                health="checking",
                schedule=Schedule(interval=1, fails=2, passes=2),
            )
        ]
    )
    await run(world, 0.5)
    assert world.checks.health(KEY) == "checking"
    await run(world, 1)
    assert world.checks.health(KEY) == "unhealthy"


async def test_checks_that_are_not_mandatory_are_not_waited_for(
    run: Run, autojump_clock: MockClock
) -> None:
    world = World()
    world.checks.watch([watched(Target(takes=5), health="checking")])
    await run(world, 1)
    assert world.checks.health(KEY) == "healthy"


async def test_what_was_unhealthy_before_has_to_pass(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target()
    schedule = Schedule(interval=1, passes=3)
    world.checks.watch([watched(target, health="unhealthy", schedule=schedule)])
    await run(world, 1.5)
    assert world.checks.health(KEY) == "unhealthy"
    await run(world, 1)
    assert world.changes == [(2, KEY.name, "healthy")]


async def test_one_check_of_several_that_fails_is_enough(
    run: Run, autojump_clock: MockClock
) -> None:
    world, good, bad = World(), Target(), Target()
    world.checks.watch([watched(good, bad, schedule=Schedule(interval=1))])
    await run(world, 0.5)
    bad.failure = DOWN
    await run(world, 1)
    assert world.checks.health(KEY) == "unhealthy"
    good.failure = DOWN
    await run(world, 1)
    bad.failure = None
    await run(world, 1)
    assert world.checks.health(KEY) == "unhealthy"
    good.failure = None
    await run(world, 1)
    assert world.checks.health(KEY) == "healthy"
    assert [health for _, _, health in world.changes] == ["unhealthy", "healthy"]


async def test_one_peer_is_probed_by_one_check_at_a_time(
    run: Run, autojump_clock: MockClock
) -> None:
    world, first, second = World(), Target(takes=3), Target(takes=3)
    world.checks.watch([watched(first, second, schedule=Schedule(interval=2))])
    await run(world, 20)
    began = sorted(first.times + second.times)
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(began))


async def test_no_more_than_32_probes_run_at_a_time(
    run: Run, autojump_clock: MockClock
) -> None:
    world = World()
    targets = [Target(takes=5) for _ in range(3 * MAX_PROBES)]
    world.checks.watch(
        watched(each, schedule=Schedule(interval=60), key=PeerKey("pool", str(number)))
        for number, each in enumerate(targets)
    )
    await run(world, 59)
    assert MAX_PROBES == 32
    assert sorted(target.times[0] for target in targets) == [
        *([0] * MAX_PROBES),
        *([5] * MAX_PROBES),
        *([10] * MAX_PROBES),
    ]


async def test_a_peer_that_comes_is_probed_and_one_that_goes_is_not(
    run: Run, autojump_clock: MockClock
) -> None:
    world, first, second = World(), Target(), Target()
    other = PeerKey("pool", "192.0.2.2:143")
    schedule = Schedule(interval=10)
    world.checks.watch([watched(first, schedule=schedule)])
    await run(world, 15)
    world.checks.watch(
        [
            watched(first, schedule=schedule),
            watched(second, schedule=schedule, key=other),
        ]
    )
    await run(world, 10)
    world.checks.watch([watched(second, schedule=schedule, key=other)])
    assert world.checks.health(KEY) == "healthy"
    await run(world, 20)
    assert first.times == [0, 10, 20]
    assert second.times == [15, 25, 35]


async def test_a_probe_of_a_peer_that_goes_is_given_up(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(DOWN, takes=5)
    world.checks.watch([watched(target)])
    await run(world, 1)
    world.checks.watch([])
    await run(world, 10)
    assert world.changes == []
    assert world.lines == []


async def test_peers_that_stay_keep_what_is_known_of_them(
    run: Run, autojump_clock: MockClock
) -> None:
    world, target = World(), Target(DOWN)
    world.checks.watch([watched(target)])
    await run(world, 1)
    world.checks.watch([watched(Target(), health="healthy")])
    assert world.checks.health(KEY) == "unhealthy"


async def test_checks_that_are_run_again_know_what_they_knew(
    autojump_clock: MockClock,
) -> None:
    world, target = World(), Target(DOWN)
    world.checks.watch([watched(target)])

    @contextmanager
    def for_a_second() -> Iterator[None]:
        with trio.move_on_after(1):
            yield

    with for_a_second():
        await world.checks.run()
    assert world.checks.health(KEY) == "unhealthy"
    target.failure = None
    with for_a_second():
        await world.checks.run()
    await wait_all_tasks_blocked()
    assert world.changes == [
        (0, KEY.name, "unhealthy"),
        (1, KEY.name, "healthy"),
    ]
