"""What the master decides, signal by signal; no process is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from signal import (
    SIGHUP,
    SIGINT,
    SIGIO,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    Signals,
)

import pytest

from mailproxy.process.children import MAX_MESSAGES_IN_A_ROW
from mailproxy.process.settings import MainSettings
from tests.named import Site as NamedSite
from tests.process.world import NEW_BINARY, PROGRAM, Story, World


@pytest.fixture
def pid_file(tmp_path: Path) -> Path:
    return tmp_path / "mailproxy.pid"


@pytest.fixture
def world(tmp_path: Path, pid_file: Path) -> World:
    return World(tmp_path, MainSettings(worker_processes=2, pid=str(pid_file)))


def started(*pids: int) -> list[str]:
    return ["start worker processes", *(f"start worker process {pid}" for pid in pids)]


class TestStart:
    def test_starts_the_workers(self, world: World) -> None:
        def story(world: World) -> Story:
            assert world.running == [101, 102]
            assert world.log() == started(101, 102)
            yield from ()

        world.play(story)

    def test_gives_up_when_no_worker_can_ever_work(
        self, world: World, pid_file: Path
    ) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, code=2)
            yield world.dies(102, code=2)

        world.prompt = False
        assert world.play(story) == 2
        assert world.log()[3:] == [
            "signal 17 (SIGCHLD) received",
            "worker process 101 exited with code 2",
            "[alert] worker process 101 exited with fatal code 2"
            " and cannot be respawned",
            "signal 17 (SIGCHLD) received",
            "worker process 102 exited with code 2",
            "[alert] worker process 102 exited with fatal code 2"
            " and cannot be respawned",
            "[emerg] no worker process could start, exiting",
            "exit",
        ]
        assert not pid_file.exists()

    def test_goes_on_without_workers_that_are_slow(self, world: World) -> None:
        def story(world: World) -> Story:
            yield 31.0
            yield SIGHUP
            assert "reconfiguring" in world.log()

        world.prompt = False
        world.play(story)

    def test_a_start_can_be_stopped(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGTERM
            assert world.told == ["101 stop", "102 stop"]
            yield world.dies(101)
            yield world.dies(102)

        world.prompt = False
        assert world.play(story) == 0


class TestStop:
    @pytest.mark.parametrize("number", [SIGTERM, SIGINT])
    def test_term_stops_at_once(
        self, world: World, pid_file: Path, number: Signals
    ) -> None:
        def story(world: World) -> Story:
            world.log()
            yield number
            assert world.told == ["101 stop", "102 stop"]
            yield world.dies(101)
            assert pid_file.exists()
            yield world.dies(102)

        assert world.play(story) == 0
        assert not pid_file.exists()
        assert world.log() == [
            f"signal {number:d} ({number.name}) received from 4711, exiting",
            "signal 17 (SIGCHLD) received",
            "worker process 101 exited with code 0",
            "signal 17 (SIGCHLD) received",
            "worker process 102 exited with code 0",
            "exit",
        ]

    def test_who_does_not_stop_is_told_again_and_killed(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGTERM
            yield world.dies(101)
            yield 1.6
            assert world.told == ["101 stop", *["102 stop"] * 6]
            yield 1.5
            assert world.killed == []
            yield 0.1
            assert world.killed == [f"102 {SIGKILL:d}"]
            yield world.dies(102, by=9)

        assert world.play(story) == 0
        assert "[alert] worker process 102 exited on signal 9" in world.log()

    def test_quit_lets_sessions_finish(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGQUIT
            assert world.told == ["101 quit", "102 quit"]
            yield world.dies(101)
            yield 100000.0
            assert world.killed == []
            yield world.dies(102)

        assert world.play(story) == 0
        assert world.log() == [
            "signal 3 (SIGQUIT) received from 4711, shutting down",
            "signal 17 (SIGCHLD) received",
            "worker process 101 exited with code 0",
            "signal 17 (SIGCHLD) received",
            "worker process 102 exited with code 0",
            "exit",
        ]

    def test_term_ends_a_graceful_stop(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGQUIT
            yield SIGTERM
            assert world.told[2:] == ["101 stop", "102 stop"]
            yield world.dies(101)
            yield world.dies(102)

        assert world.play(story) == 0

    def test_logs_are_reopened_during_a_graceful_stop(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGQUIT
            yield SIGUSR1
            assert world.told[2:] == ["101 reopen", "102 reopen"]

        world.play(story)

    def test_no_reload_during_a_stop(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGQUIT
            yield SIGHUP
            assert world.log()[1:] == [
                "signal 1 (SIGHUP) received from 4711, reconfiguring"
            ]
            assert world.running == [101, 102]

        world.play(story)

    def test_without_workers_it_stops_too(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGQUIT

        world.main = replace(world.main, worker_processes=0)
        assert world.play(story) == 0

    def test_vanished_pid_file_is_an_alert(self, world: World, pid_file: Path) -> None:
        def story(world: World) -> Story:
            pid_file.unlink()
            yield SIGTERM
            yield world.dies(101)
            yield world.dies(102)

        assert world.play(story) == 0
        assert world.log()[-2:] == [
            f'[alert] unlink() "{pid_file}" failed (2: No such file or directory)',
            "exit",
        ]


class TestWorkerThatDies:
    def test_is_replaced(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield 60.0
            yield world.dies(101, by=9)
            assert world.running == [102, 103]
            assert world.log() == [
                "signal 17 (SIGCHLD) received",
                "[alert] worker process 101 exited on signal 9",
                "start worker process 103",
            ]

        world.play(story)

    def test_core_dump_is_said(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, by=11 | 128)
            assert (
                "[alert] worker process 101 exited on signal 11 (core dumped)"
                in world.log()
            )

        world.play(story)

    def test_is_replaced_when_it_was_stopped_by_hand(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(102, code=0)
            assert world.running == [101, 103]

        world.play(story)

    def test_several_at_once_make_one_signal(self, world: World) -> None:
        def story(world: World) -> Story:
            world.dies(101)
            yield world.dies(102)
            assert world.running == [103, 104]

        world.play(story)

    def test_is_not_replaced_after_a_fatal_code(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield world.dies(101, code=2)
            yield 100.0
            assert world.running == [102]
            assert world.log() == [
                "signal 17 (SIGCHLD) received",
                "worker process 101 exited with code 2",
                "[alert] worker process 101 exited with fatal code 2"
                " and cannot be respawned",
            ]

        world.play(story)

    def test_crash_loop_is_slowed_down_and_said(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, code=1)
            assert world.running == [102, 103], "once is chance"
            for delay, pid in [(1, 103), (2, 104), (4, 105), (8, 106), (16, 107)]:
                world.log()
                yield world.dies(pid, code=1)
                assert world.log()[-1].startswith(
                    "[error] worker processes end right after their start"
                )
                yield delay - 0.1
                assert world.running == [102]
                yield 0.2
                assert world.running == [102, pid + 1]
            for pid in (108, 109):
                yield world.dies(pid, code=1)
                yield 31.9
                assert world.running == [102], "half a minute is the longest"
                yield 0.2
                assert world.running == [102, pid + 1]
            yield 11.0
            yield world.dies(110, code=1)
            assert world.running == [102, 111], "it had been well"

        world.play(story)

    def test_stop_does_not_wait_for_who_is_to_follow(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(101, code=1)
            yield world.dies(103, code=1)
            yield SIGQUIT
            yield world.dies(102)

        assert world.play(story) == 0

    def test_failed_fork_is_tried_again(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.forks = 0
            yield world.dies(101, by=9)
            assert world.log()[2] == (
                '[alert] fork() failed while spawning "worker process"'
                " (11: Resource temporarily unavailable)"
            )
            world.forks = 1
            yield 1.1
            assert world.running == [102, 103]

        world.play(story)

    def test_unknown_process_is_named_so(self, world: World) -> None:
        def story(world: World) -> Story:
            yield world.dies(77, code=3)
            assert world.log()[-1] == "unknown process 77 exited with code 3"

        world.play(story)


class TestWatchdog:
    def test_stuck_worker_is_killed_and_replaced(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.mute.add(102)
            yield 60.0
            assert world.killed == []
            yield 31.0
            assert world.killed == [f"102 {SIGKILL:d}"]
            (line,) = world.log()
            assert line.startswith("[alert] worker process 102 is stuck: no answer for")
            yield world.dies(102, by=9)
            assert world.running == [101, 103]

        world.play(story)

    def test_invalid_messages_are_told_once_a_second(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.invalid = {101: 2, 102: 1}
            yield SIGIO
            told = [
                f"[alert] worker {pid} sent an invalid message" for pid in (101, 102)
            ]
            assert world.log() == told
            for _ in range(9):
                world.invalid = {101: 1}
                yield SIGIO
                yield 0.1
            assert world.log() == []
            yield 0.1
            world.invalid = {101: 1}
            yield SIGIO
            assert world.log() == told[:1]
            yield 1000.0
            assert (world.killed, world.told, world.log()) == ([], [], [])

        world.play(story)

    def test_signals_are_taken_while_a_worker_floods(self, world: World) -> None:
        """What it says is heard in pieces, and without being told again."""

        def story(world: World) -> Story:
            world.log()
            world.invalid = {101: 9 * MAX_MESSAGES_IN_A_ROW + 1}
            yield SIGIO
            yield SIGUSR1
            assert world.invalid[101] > 0
            assert world.told == ["101 reopen", "102 reopen"]
            yield 0.001
            assert world.invalid[101] == 0

        world.play(story)

    def test_who_answers_is_left_alone(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield 100000.0
            assert (world.killed, world.told, world.log()) == ([], [], [])

        world.play(story)


class TestReload:
    def test_new_workers_come_up_before_the_old_ones_leave(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            world.prompt = False
            yield SIGHUP
            assert world.running == [101, 102, 103, 104, 105]
            assert world.told == []
            yield world.comes_up(103, 104)
            assert world.told == []
            yield world.comes_up(105)
            assert world.told == ["101 quit", "102 quit"]
            yield world.dies(101)
            assert world.running == [102, 103, 104, 105]
            assert world.log() == [
                "signal 1 (SIGHUP) received from 4711, reconfiguring",
                "reconfiguring",
                *started(103, 104, 105),
                "signal 17 (SIGCHLD) received",
                "worker process 101 exited with code 0",
            ]

        world.next_main = replace(world.main, worker_processes=3)
        world.play(story)

    def test_broken_configuration_changes_nothing(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGHUP
            assert world.log() == [
                "signal 1 (SIGHUP) received from 4711, reconfiguring",
                "reconfiguring",
                "[emerg] it is broken: badly (5: Input/output error)",
            ]
            assert (world.running, world.told) == ([101, 102], [])

        world.play(story)

    def test_stop_ends_a_reload(self, world: World) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield SIGQUIT
            assert world.running == [101, 102, 103, 104]
            assert world.told == [f"{pid} quit" for pid in world.running]
            for pid in tuple(world.running):
                yield world.dies(pid)

        world.next_main = world.main
        assert world.play(story) == 0

    def test_bug_changes_nothing(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGHUP
            found = world.log()
            assert found[2] == "[alert] reload failed, this is a bug"
            assert found[-1] == "[alert] ZeroDivisionError: of zero"
            assert (world.running, world.told) == ([101, 102], [])

        world.bug = ZeroDivisionError("of zero")
        world.play(story)

    def test_workers_that_cannot_start_change_nothing(self, world: World) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            world.log()
            yield world.dies(103, code=2)
            assert world.told == ["104 stop"]
            assert world.log()[-1] == (
                "[emerg] new worker processes do not start, nothing is changed"
            )
            yield world.dies(104)
            assert world.running == [101, 102]
            world.prompt = True
            yield world.dies(101, by=9)
            assert world.running == [102, 105], "of the old generation"

        world.next_main = world.main
        world.play(story)

    def test_old_worker_that_dies_meanwhile_is_missing_after_a_rollback_only(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.dies(101, by=9)
            assert world.running == [102, 103, 104]
            yield world.dies(104, code=2)
            assert world.running == [102, 103, 105]

        world.next_main = world.main
        world.play(story)

    def test_a_respawned_worker_is_of_the_new_generation(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            yield world.dies(102)
            yield world.dies(104, by=9)
            assert world.running == [101, 103, 105]
            yield SIGHUP
            assert world.told[2:] == ["103 quit", "105 quit"], "101 knows it"

        world.next_main = world.main
        world.play(story)

    def test_second_signal_waits_for_the_first_reload(self, world: World) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield SIGHUP
            assert world.running == [101, 102, 103, 104]
            yield world.comes_up(103, 104)
            assert world.running == [101, 102, 103, 104, 105, 106]

        world.next_main = world.main
        world.play(story)

    def test_pid_file_moves(self, world: World, pid_file: Path, tmp_path: Path) -> None:
        def story(world: World) -> Story:
            moved.write_text("1\n", encoding="ascii")  # as loading does it
            yield SIGHUP
            assert not pid_file.exists()
            assert moved.exists()

        moved = tmp_path / "moved.pid"
        world.next_main = replace(world.main, pid=str(moved))
        world.play(story)

    def test_pid_file_under_another_name_stays(
        self, world: World, pid_file: Path, tmp_path: Path
    ) -> None:
        def story(world: World) -> Story:
            (tmp_path / "link").symlink_to(tmp_path)
            yield SIGHUP
            assert pid_file.exists()

        world.next_main = replace(
            world.main, pid=str(tmp_path / "link" / pid_file.name)
        )
        world.play(story)


class TestUpgrade:
    @pytest.fixture
    def oldbin(self, pid_file: Path) -> Path:
        return pid_file.with_name("mailproxy.pid.oldbin")

    def test_new_binary_is_started_beside_the_workers(
        self, world: World, pid_file: Path, oldbin: Path
    ) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGUSR2
            assert oldbin.exists()
            assert not pid_file.exists()
            assert world.log() == [
                "signal 12 (SIGUSR2) received from 4711, changing binary",
                "changing binary",
                f"start new binary process {NEW_BINARY}",
            ]
            assert (world.running, world.told) == ([101, 102], [])

        world.play(story)

    def test_old_master_leaves_for_good(
        self, world: World, pid_file: Path, oldbin: Path
    ) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            pid_file.write_text(f"{NEW_BINARY}\n", encoding="ascii")
            yield SIGWINCH
            assert world.told == ["101 quit", "102 quit"]
            yield world.dies(101)
            yield world.dies(102)
            assert world.running == []
            yield SIGQUIT

        assert world.play(story) == 0
        assert not oldbin.exists()
        assert pid_file.exists(), "it is the new master's"

    def test_hup_rolls_back(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            yield world.dies(101)
            yield world.dies(102)
            world.log()
            yield SIGHUP
            assert world.log() == [
                "signal 1 (SIGHUP) received from 4711, reconfiguring",
                *started(103, 104),
            ]

        world.play(story)

    def test_hup_starts_none_twice(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGHUP
            assert world.running == [101, 102]

        world.play(story)

    def test_end_of_the_new_binary_rolls_back(
        self, world: World, pid_file: Path, oldbin: Path
    ) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            yield world.dies(101)
            yield world.dies(102)
            world.log()
            yield world.dies(NEW_BINARY)
            assert world.log() == [
                "signal 17 (SIGCHLD) received",
                f"new binary process {NEW_BINARY} exited with code 0",
                *started(103, 104),
            ]
            assert pid_file.exists()
            assert not oldbin.exists()

        world.play(story)

    def test_new_binary_that_fails_changes_nothing(
        self, world: World, pid_file: Path
    ) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield world.dies(NEW_BINARY, code=1)
            assert world.running == [101, 102]
            assert pid_file.exists()
            yield SIGUSR2
            assert f"start new binary process {NEW_BINARY}" in world.log()

        world.play(story)

    def test_second_upgrade_is_ignored(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            world.log()
            yield SIGUSR2
            assert world.log() == [
                "signal 12 (SIGUSR2) received from 4711, ignoring",
                "[crit] the changing binary signal is ignored: you should shutdown"
                " or terminate before either old or new binary's process",
            ]

        world.play(story)

    def test_pid_file_that_cannot_be_renamed_forbids_it(
        self, world: World, pid_file: Path, oldbin: Path
    ) -> None:
        def story(world: World) -> Story:
            pid_file.unlink()
            world.log()
            yield SIGUSR2
            assert world.log()[2:] == [
                f"[alert] rename() {pid_file} to {oldbin} failed before executing new"
                f' binary process "{PROGRAM}" (2: No such file or directory)'
            ]

        world.play(story)

    def test_fork_that_fails_gives_the_pid_file_back(
        self, world: World, pid_file: Path
    ) -> None:
        def story(world: World) -> Story:
            world.log()
            world.forks = 0
            yield SIGUSR2
            assert world.log()[2:] == [
                '[alert] fork() failed while spawning "new binary process"'
                " (11: Resource temporarily unavailable)"
            ]
            assert pid_file.exists()

        world.play(story)


class TestWinch:
    def test_in_the_background_workers_leave(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGWINCH
            assert world.told == ["101 quit", "102 quit"]
            assert world.log() == [
                "signal 28 (SIGWINCH) received from 4711, stop accepting connections"
            ]
            yield world.dies(101)
            assert world.running == [102]

        world.play(story)

    def test_in_the_foreground_nothing_happens(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGWINCH
            assert world.told == []
            assert world.log() == ["signal 28 (SIGWINCH) received from 4711"]

        world.background = False
        world.play(story)

    def test_in_the_foreground_it_counts_during_an_upgrade(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            assert world.told == ["101 quit", "102 quit"]

        world.background = False
        world.play(story)

    def test_reload_brings_workers_back(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGWINCH
            yield world.dies(101)
            yield world.dies(102)
            yield SIGHUP
            assert world.running == [103, 104]
            yield world.dies(103, by=9)
            assert world.running == [104, 105]

        world.next_main = world.main
        world.play(story)


class TestReopen:
    def test_logs_are_opened_by_name_and_workers_told(
        self, world: World, tmp_path: Path
    ) -> None:
        def story(world: World) -> Story:
            world.log()
            rotated = tmp_path / "error.log.1"
            world.log_path.rename(rotated)
            yield SIGUSR1
            assert rotated.read_text(encoding="utf-8").endswith(": reopening logs\n")
            assert world.log_path.read_text(encoding="utf-8") == ""
            assert world.told == ["101 reopen", "102 reopen"]

        world.play(story)


class TestCertificates:
    """What the master does when certificates change; see test_renewal.py."""

    @pytest.fixture
    def certificates(self, world: World, tmp_path: Path) -> NamedSite:
        site = NamedSite(tmp_path)
        site.issuer.put("a.example.org")
        world.servers = site.load("ssl_certificate_directory certs;").servers
        world.main = replace(world.main, ssl_certificate_watch=60.0)
        world.next_main = world.main
        return site

    def test_workers_are_told(self, world: World, certificates: NamedSite) -> None:
        def story(world: World) -> Story:
            yield 61.0
            certificates.issuer.put("a.example.org")
            yield 63.0
            assert world.told == ["101 certificates", "102 certificates"]
            world.log()
            world.deaf.add(101)
            certificates.issuer.put("a.example.org")
            yield 63.0
            assert world.told[2:] == ["102 certificates"]
            assert world.log()[1:] == [
                "[error] worker process 101 did not take new certificates"
            ]
            world.refusing.add(102)
            yield SIGIO
            assert world.log() == [
                "[error] worker process 102 did not take new certificates"
            ]

        world.play(story)

    def test_those_that_leave_are_not(
        self, world: World, certificates: NamedSite
    ) -> None:
        def story(world: World) -> Story:
            yield 50.0
            yield SIGHUP
            yield SIGIO
            assert world.running == [101, 102, 103, 104]
            world.told.clear()
            certificates.issuer.put("a.example.org")
            yield 40.0  # the watch has begun anew
            assert world.told == []
            yield 23.0
            assert world.told == ["103 certificates", "104 certificates"]
            yield SIGQUIT
            world.told.clear()
            certificates.issuer.put("a.example.org")
            yield 200.0
            assert world.told == []

        world.play(story)
