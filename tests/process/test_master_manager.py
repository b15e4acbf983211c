"""The life of manager processes, as the master decides it; no process is started."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH

import pytest

from mailproxy.mail.load_state import Reason
from mailproxy.process.settings import MainSettings
from mailproxy.stats.cells import Board
from tests.process.world import NEW_BINARY, Story, World

REASONS = (Reason("zone", None),)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The manager is 101, its workers are 102 and 103."""
    main = MainSettings(worker_processes=2, pid=str(tmp_path / "the.pid"))
    return World(tmp_path, main, reasons=REASONS)


def lines(world: World, manager: int) -> list[int]:
    """The workers whose lines a manager inherited."""
    return [line.pid for line in world.managers[manager].lines]


def is_open(path: Path) -> bool:
    """Whether this process has a file open."""
    found = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    return any(os.path.exists(fd) and os.path.samefile(fd, path) for fd in found)


class TestStart:
    def test_manager_is_up_before_workers_are_started(self, world: World) -> None:
        def story(world: World) -> Story:
            assert world.running == [101]
            assert world.log() == ["start manager process 101"]
            yield world.comes_up(101)
            assert world.running == [101, 102, 103]
            assert world.told == ["101 worker 102", "101 worker 103"]
            assert world.log() == [
                "start worker processes",
                "start worker process 102",
                "start worker process 103",
            ]

        world.prompt = False
        world.play(story)

    def test_without_a_reason_there_is_none(self, world: World) -> None:
        def story(world: World) -> Story:
            assert world.managers == {}
            assert world.told == []
            yield from ()

        world.reasons = ()
        world.play(story)

    def test_one_that_is_not_up_in_time_ends_the_start(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 15.0
            assert world.told == ["101 stop"]
            yield world.dies(101)

        world.prompt = False
        assert world.play(story) == 2
        assert world.log() == [
            "start manager process 101",
            "[emerg] manager process does not start",
            "signal 17 (SIGCHLD) received",
            "manager process 101 exited with code 0",
            "exit",
        ]

    @pytest.mark.parametrize("how", [{"code": 2}, {"code": 1}, {"by": 9}])
    def test_one_that_ends_at_once_ends_the_start(
        self, world: World, how: dict[str, int]
    ) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, **how)

        world.prompt = False
        assert world.play(story) == 2
        assert "[emerg] manager process does not start" in world.log()
        assert world.running == []

    def test_one_that_cannot_be_forked_ends_the_start(self, world: World) -> None:
        world.forks = 0
        assert world.play(lambda _: iter(())) == 2
        assert world.log() == [
            '[alert] fork() failed while spawning "manager process"'
            " (11: Resource temporarily unavailable)",
            "[emerg] manager process does not start",
            "exit",
        ]

    def test_a_start_can_be_stopped(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGTERM
            assert world.told == ["101 stop"]
            assert world.running == [101]
            yield world.dies(101)

        world.prompt = False
        assert world.play(story) == 0

    def test_manager_leaves_when_no_worker_can_work(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.comes_up(101)
            yield world.dies(102, code=2)
            yield world.dies(103, code=2)
            assert world.told[2:] == ["101 stop"]
            yield world.dies(101)

        world.prompt = False
        assert world.play(story) == 2
        assert world.log()[-1] == "exit"


class TestEnd:
    def test_quit_is_told_after_the_last_worker(self, world: World) -> None:
        def story(world: World) -> Story:
            world.told.clear()
            yield SIGQUIT
            assert world.told == ["102 quit", "103 quit"]
            yield world.dies(102)
            assert world.told[2:] == []
            yield world.dies(103)
            assert world.told[2:] == ["101 quit"]
            yield world.dies(101)

        assert world.play(story) == 0

    def test_stop_is_told_to_all(self, world: World) -> None:
        def story(world: World) -> Story:
            world.told.clear()
            yield SIGTERM
            assert world.told == ["102 stop", "103 stop", "101 stop"]
            for pid in (102, 103, 101):
                yield world.dies(pid)

        assert world.play(story) == 0

    def test_one_that_does_not_stop_is_killed(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGTERM
            yield world.dies(102)
            yield world.dies(103)
            yield 3.5
            assert world.killed == [f"101 {SIGKILL:d}"]
            yield world.dies(101, by=9)

        assert world.play(story) == 0

    def test_it_is_not_replaced_during_a_stop(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGQUIT
            yield world.dies(101, by=9)
            yield world.dies(102)
            yield world.dies(103)

        assert world.play(story) == 0
        assert len(world.managers) == 1

    def test_logs_are_reopened(self, world: World) -> None:
        def story(world: World) -> Story:
            world.told.clear()
            yield SIGUSR1
            assert world.told == ["102 reopen", "103 reopen", "101 reopen"]

        world.play(story)


class TestDeath:
    def test_it_is_replaced_and_inherits_the_lines(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 60.0
            world.log()
            world.told.clear()
            yield world.dies(101, by=9)
            assert world.log() == [
                "signal 17 (SIGCHLD) received",
                "[alert] manager process 101 exited on signal 9",
                "start manager process 104",
            ]
            assert world.told == ["102 unmanaged", "103 unmanaged"]
            assert lines(world, 104) == [102, 103]
            yield world.dies(102, by=9)
            assert world.told[2:] == ["104 worker 105"]
            yield world.dies(104, by=9)
            assert lines(world, 106) == [103, 105]

        world.play(story)

    def test_crash_loop_is_slowed_down_and_said(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, code=1)
            assert world.running == [102, 103, 104], "once is chance"
            world.log()
            yield world.dies(104, code=1)
            assert world.log()[-1] == (
                "[error] manager processes end right after their start, 2 in a row;"
                " the next one starts in 1 s"
            )
            yield 0.9
            assert world.running == [102, 103]
            yield 0.2
            assert world.running == [102, 103, 105]

        world.play(story)

    def test_workers_that_come_meanwhile_are_known_to_the_next(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, code=1)
            yield world.dies(104, code=1)
            yield world.dies(102, by=9)
            assert world.running == [103, 105]
            yield 1.1
            assert lines(world, 106) == [103, 105]

        world.play(story)

    def test_it_is_not_replaced_after_a_fatal_code(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 60.0
            yield world.dies(101, code=2)
            yield 100.0
            assert world.running == [102, 103]
            assert world.log()[-1] == (
                "[alert] manager process 101 exited with fatal code 2"
                " and cannot be respawned"
            )

        world.play(story)

    def test_stuck_one_is_killed_and_replaced(self, world: World) -> None:
        def story(world: World) -> Story:
            world.mute.add(101)
            yield 91.0
            assert world.killed == [f"101 {SIGKILL:d}"]
            assert world.log()[-1].startswith(
                "[alert] manager process 101 is stuck: no answer for"
            )
            yield world.dies(101, by=9)
            assert lines(world, 104) == [102, 103]

        world.play(story)

    def test_invalid_messages_are_told(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.invalid = {101: 3}
            yield 20.0
            assert world.log() == ["[alert] manager 101 sent an invalid message"]

        world.play(story)

    def test_line_that_found_no_room_is_handed_over_later(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 60.0
            world.told.clear()
            world.deaf.add(101)
            yield world.dies(102, by=9)
            yield 0.5
            assert world.told == []
            world.deaf.clear()
            yield 0.1
            assert world.told == ["101 worker 104"]

        world.play(story)

    def test_line_of_a_dead_worker_is_not_handed_over(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 60.0
            world.told.clear()
            world.deaf.add(101)
            yield world.dies(102, by=9)
            yield 20.0
            yield world.dies(104, by=9)
            world.deaf.clear()
            yield 0.1
            assert world.told == ["101 worker 105"]

        world.play(story)


class TestReload:
    def test_each_generation_has_its_own(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.told.clear()
            yield SIGHUP
            assert world.running == [101, 102, 103, 104, 105, 106]
            assert world.told == [
                *("104 worker 105", "104 worker 106"),
                *("102 quit", "103 quit"),
            ]
            yield world.dies(102)
            assert "101 quit" not in world.told
            yield world.dies(103)
            assert world.told[4:] == ["101 quit"]
            yield world.dies(101)
            assert world.running == [104, 105, 106]

        world.next_main = world.main
        world.play(story)

    def test_one_that_does_not_start_changes_nothing(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.prompt = False
            yield SIGHUP
            world.told.clear()
            yield 15.0
            assert world.told == ["104 stop"]
            assert world.log()[-1] == (
                "[emerg] new manager process does not start, nothing is changed"
            )
            yield world.dies(104)
            assert world.running == [101, 102, 103]
            yield world.dies(101, by=9)
            assert lines(world, 105) == [102, 103]

        world.next_main = world.main
        world.play(story)

    def test_one_with_a_fatal_code_is_not_waited_for(self, world: World) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.dies(104, code=2)
            assert world.log()[-1] == (
                "[emerg] new manager process does not start, nothing is changed"
            )
            yield 100.0
            assert world.running == [101, 102, 103]

        world.next_main = world.main
        world.play(story)

    def test_manager_goes_with_workers_that_do_not_start(self, world: World) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.comes_up(104)
            world.told.clear()
            yield world.dies(105, code=1)
            assert world.log()[-1] == (
                "[emerg] new worker processes do not start, nothing is changed"
            )
            assert world.told == ["106 stop", "104 stop"]
            yield world.dies(106)
            yield world.dies(104)
            assert world.running == [101, 102, 103]

        world.next_main = world.main
        world.play(story)

    def test_workers_that_leave_are_not_cut_off_by_a_failed_reload(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            assert world.running == [101, 102, 103, 104, 105, 106]
            world.prompt = False
            yield SIGHUP
            world.told.clear()
            yield world.dies(107, code=2)
            assert world.told == []
            assert world.running == [101, 102, 103, 104, 105, 106]

        world.next_main = world.main
        world.play(story)

    def test_one_of_an_old_generation_is_replaced_while_it_has_workers(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.told.clear()
            yield world.dies(102)
            yield world.dies(101, by=9)
            assert world.told == ["103 unmanaged"]
            assert lines(world, 107) == [103]
            place, current = world.managers[107], world.managers[104]
            assert place.generation is world.managers[101].generation
            assert place.current is current.generation, "only its logs are open"
            yield world.dies(103)
            assert world.told[1:] == ["107 quit"]

        world.next_main = world.main
        world.play(story)

    def test_secrets_stay_open_as_long_as_a_manager_may_need_them(
        self, world: World, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("watchdog:wonderland\n")

        def story(world: World) -> Story:
            world.secret = None
            yield SIGHUP
            yield world.dies(102)
            yield world.dies(101, by=9)
            secrets = world.managers[107].generation.manager_secrets
            assert secrets.take() == {str(secret): b"watchdog:wonderland"}
            assert not is_open(secret), (
                "in the manager; but this test is the master, too"
            )

        world.secret = secret
        world.next_main = world.main
        world.play(story)

    def test_secrets_are_closed_with_the_generation(
        self, world: World, tmp_path: Path
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("watchdog:wonderland\n")

        def story(world: World) -> Story:
            world.secret = None
            yield SIGHUP
            yield world.dies(102)
            assert is_open(secret)
            yield world.dies(103)
            assert not is_open(secret)

        world.secret = secret
        world.next_main = world.main
        world.play(story)

    def test_a_configuration_without_need_ends_it(self, world: World) -> None:
        def story(world: World) -> Story:
            world.reasons = ()
            yield SIGHUP
            assert world.running == [101, 102, 103, 104, 105]
            yield world.dies(102)
            yield world.dies(103)
            assert world.told[-1] == "101 quit"

        world.next_main = world.main
        world.play(story)

    def test_a_need_may_come_later(self, world: World) -> None:
        def story(world: World) -> Story:
            world.reasons = REASONS
            yield SIGHUP
            assert sorted(world.managers) == [103]
            assert world.told[:2] == ["103 worker 104", "103 worker 105"]

        world.reasons = ()
        world.next_main = world.main
        world.play(story)

    def test_the_board_is_written_by_the_current_one(self, world: World) -> None:
        def story(world: World) -> Story:
            old = world.rows[101]
            assert old.is_front
            world.prompt = False
            yield SIGHUP
            yield world.comes_up(104)
            assert old.is_front, "the new generation may fail"
            yield world.comes_up(105, 106)
            new = world.rows[104]
            assert (old.is_front, new.is_front) == (False, True)
            yield world.dies(104, by=9)
            assert new.mapping[Board.FRONT] == world.rows[107].number
            yield world.dies(107, code=2)
            assert new.mapping[Board.FRONT] == 0

        world.next_main = world.main
        world.play(story)

    def test_the_old_one_writes_the_board_after_a_failed_reload(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.dies(104, code=2)
            assert world.rows[101].is_front

        world.next_main = world.main
        world.play(story)


class TestUpgrade:
    def test_it_stays_while_the_new_binary_serves(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            yield world.dies(102)
            yield world.dies(103)
            assert world.running == [101]
            world.told.clear()
            yield world.dies(NEW_BINARY)
            assert world.told == ["101 worker 104", "101 worker 105"]

        world.play(story)


def test_few_workers_more_or_less_do_not_matter(world: World) -> None:
    def story(world: World) -> Story:
        yield SIGQUIT
        assert world.told[-1] == "101 quit"
        yield world.dies(101)

    world.main = replace(world.main, worker_processes=0)
    assert world.play(story) == 0
