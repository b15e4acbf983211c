"""Rows of the shared mapping follow the lives of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGUSR2, SIGWINCH

import pytest

from mailproxy.process.settings import MainSettings
from mailproxy.stats.cells import CellKey, CellKind
from mailproxy.stats.mapping import MIN_CELLS, MIN_ROWS
from mailproxy.stats.peers import PeerNumbers, peer_keys
from tests.process.world import NEW_BINARY, Story, World

KEYS = peer_keys("imap", "192.0.2.1:143")
LOGINS = CellKey(CellKind.COUNTER, "logins")


@pytest.fixture
def world(tmp_path: Path) -> World:
    main = MainSettings(worker_processes=2, pid=str(tmp_path / "the.pid"))
    return World(tmp_path, main, counted=KEYS)


def numbers(world: World) -> dict[int, int]:
    return {pid: world.rows[pid].number for pid in world.running}


def test_without_need_there_is_no_mapping(world: World) -> None:
    def story(world: World) -> Story:
        assert not world.rows[101].has_mapping
        world.next_main = world.main
        yield SIGHUP
        assert not world.rows[103].has_mapping
        world.counted = KEYS
        yield SIGHUP
        assert numbers(world) == {101: 0, 102: 0, 103: 0, 104: 0, 105: 1, 106: 2}

    world.counted = ()
    world.play(story)


def test_a_life_has_a_row(world: World) -> None:
    def story(world: World) -> Story:
        assert numbers(world) == {101: 1, 102: 2}
        yield 60.0
        peers = {
            pid: PeerNumbers(row, "imap", KEYS[0].labels[1])
            for pid, row in world.rows.items()
        }
        for each in peers.values():
            each.enter()
        assert peers[102].conns == 2
        yield world.dies(101, by=9)
        assert numbers(world) == {102: 2, 103: 1}
        assert (peers[102].conns, peers[102].selected) == (1, 2)

    world.play(story)


def test_leaving_workers_keep_their_rows(world: World) -> None:
    def story(world: World) -> Story:
        world.next_main = world.main
        yield SIGHUP
        assert numbers(world) == {101: 1, 102: 2, 103: 3, 104: 4}
        yield world.dies(101)
        yield SIGHUP
        assert numbers(world) == {102: 2, 103: 3, 104: 4, 105: 1, 106: 5}

    world.play(story)


def test_two_workers_of_one_slot_have_two_rows(world: World) -> None:
    def story(world: World) -> Story:
        yield SIGUSR2
        yield SIGWINCH
        yield SIGHUP
        assert world.running == [101, 102, 103, 104]
        assert numbers(world) == {101: 1, 102: 2, 103: 3, 104: 4}
        yield world.dies(NEW_BINARY)
        yield SIGQUIT

    world.play(story)


def test_a_new_peer_gets_cells_in_the_same_mapping(world: World) -> None:
    def story(world: World) -> Story:
        PeerNumbers(world.rows[101], "imap", KEYS[0].labels[1]).enter()
        world.next_main = world.main
        world.counted = peer_keys("imap", "192.0.2.2:143")
        yield SIGHUP
        row = world.rows[103]
        for peer in ("192.0.2.1:143", "192.0.2.2:143"):
            PeerNumbers(row, "imap", peer).enter()
        assert PeerNumbers(row, "imap", "192.0.2.1:143").conns == 2
        assert PeerNumbers(row, "imap", "192.0.2.2:143").conns == 1

    world.play(story)


def test_too_many_processes_are_told(world: World) -> None:
    def story(world: World) -> Story:
        world.next_main = world.main
        for _ in range((MIN_ROWS - 1) // 2):
            yield SIGHUP
        *_, last, extra = world.running
        assert world.rows[last].number == MIN_ROWS - 1
        assert world.rows[extra].number == 0
        assert world.log()[-1] == (
            f"[warn] no free row in the statistics, process {extra} is not counted"
        )

    world.play(story)


def test_too_many_peers_are_told_once_for_each_group(world: World) -> None:
    def story(world: World) -> Story:
        world.log()
        world.next_main = replace(world.main, worker_processes=1)
        world.counted = tuple(
            key for n in range(MIN_CELLS // 4) for key in peer_keys("many", str(n))
        )
        yield SIGHUP
        assert '[warn] no room for the statistics of upstream "many"' in world.log()
        row = world.rows[103]
        PeerNumbers(row, "many", str(MIN_CELLS // 4 - 1)).enter()
        assert PeerNumbers(row, "many", "0").conns == 0

    world.play(story)


def test_a_row_is_not_lost_with_a_fork_that_fails(world: World) -> None:
    def story(world: World) -> Story:
        yield 60.0
        world.forks = 0
        yield world.dies(101, by=9)
        world.forks = 1
        yield 1.1
        assert numbers(world) == {102: 2, 103: 1}

    world.play(story)
