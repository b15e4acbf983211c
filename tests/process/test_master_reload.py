"""What the master does while a configuration is read, and when that leads to nothing."""

from __future__ import annotations

import operator
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from signal import (
    SIGHUP,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    Signals,
)

import pytest

from mailproxy.process.generation import Generation
from mailproxy.process.notify import Notify
from mailproxy.process.reader import NAME
from mailproxy.process.settings import MainSettings
from mailproxy.process.workers import MAX_PROCESSES
from tests.process.world import NEW_BINARY, READER, Story, World

UNREAD = "[emerg] the configuration could not be read, nothing is changed"
NO_WORKERS = "[emerg] new worker processes do not start, nothing is changed"
NO_FORK = (
    '[alert] fork() failed while spawning "worker process"'
    " (11: Resource temporarily unavailable)"
)
HUP = ["signal 1 (SIGHUP) received from 4711, reconfiguring", "reconfiguring"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world in which readers need time, and find what there is already."""
    pid = str(tmp_path / "mailproxy.pid")
    world = World(tmp_path, MainSettings(worker_processes=2, pid=pid))
    world.next_main = world.main
    world.reads_at_once = False
    return world


SECRET = "PRIVATE KEY"


class StubbornError(Exception):
    """It can be written down, and not be read again: its class wants two arguments."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class RaisesError(Exception):
    """To read it again raises what it was made with."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return operator.getitem, ({}, self.args[0])


def rewrite(sheet: int, content: object) -> None:
    """Put something else on the sheet."""
    os.ftruncate(sheet, 0)
    os.pwrite(sheet, pickle.dumps(content), 0)


def add_error(sheet: int, error: Exception) -> None:
    """Have the reader have found an error."""
    report = pickle.loads(os.pread(sheet, 1 << 20, 0))
    report.findings.errors["question"] = error
    rewrite(sheet, report)


class Manager:
    """systemd's end of the line."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """The first word of each message since it was last asked here."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode().partition("=")[0])
            except BlockingIOError:
                return found


@pytest.fixture
def manager(tmp_path: Path, world: World) -> Iterator[Manager]:
    path = tmp_path / "notify"
    manager = Manager(path)
    world.notify = Notify({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "4000000"})
    with manager.socket:
        yield manager
    world.notify.close()


class TestReading:
    def test_leads_to_new_workers(self, world: World) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGHUP
            assert (world.running, world.log()) == ([101, 102], HUP)
            yield 30.0
            yield world.has_read()
            assert world.running == [101, 102, 103, 104]
            assert world.told == ["101 quit", "102 quit"]
            assert world.log() == [
                "start worker processes",
                "start worker process 103",
                "start worker process 104",
            ]

        world.play(story)

    @pytest.mark.parametrize(
        ("number", "order"), [(SIGTERM, "stop"), (SIGQUIT, "quit")]
    )
    def test_is_ended_by_a_stop(
        self, world: World, number: Signals, order: str
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            yield number
            assert world.killed == [f"{READER} {SIGKILL:d}"]
            assert world.told == [f"101 {order}", f"102 {order}"]
            world.log()
            yield world.dies(READER, by=9)
            assert world.log() == ["signal 17 (SIGCHLD) received"]
            for pid in (101, 102):
                yield world.dies(pid)

        assert world.play(story) == 0
        assert world.running == []

    def test_that_has_just_ended_when_all_is_stopped(self, world: World) -> None:
        """The signal of its end comes after that of the stop."""

        def story(world: World) -> Story:
            yield SIGHUP
            ended = world.has_read()
            yield SIGTERM
            yield ended
            assert world.running == [101, 102]
            for pid in (101, 102):
                yield world.dies(pid)

        assert world.play(story) == 0

    def test_second_signal_is_remembered(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            yield SIGHUP
            assert world.log() == []
            yield world.has_read()
            assert world.running == [101, 102, 103, 104]
            assert world.log()[-2:] == HUP
            yield world.dies(READER + 1)
            assert world.running[4:] == [105, 106]

        world.play(story)

    def test_workers_are_replaced_and_logs_reopened_meanwhile(
        self, world: World
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            yield world.dies(101, by=9)
            assert world.running == [102, 103]
            world.log_path.rename(world.log_path.with_suffix(".1"))
            yield SIGUSR1
            assert world.log_path.exists()
            assert world.told == ["102 reopen", "103 reopen"]

        world.play(story)

    def test_upgrade_and_pause_wait_for_its_end(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            yield SIGUSR2
            yield SIGWINCH
            assert "changing binary" not in world.log()
            assert world.told == []
            yield world.has_read()
            assert world.log()[-4:] == [
                "signal 12 (SIGUSR2) received from 4711, changing binary",
                "changing binary",
                f"start new binary process {NEW_BINARY}",
                "signal 28 (SIGWINCH) received from 4711, stop accepting connections",
            ]
            assert world.told == [f"{pid} quit" for pid in (101, 102, 103, 104)]

        world.play(story)

    def test_that_takes_too_long_is_given_up(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            yield 59.9
            assert world.log() == []
            yield 0.2
            assert world.killed == [f"{READER} {SIGKILL:d}"]
            assert world.log() == [
                "[emerg] reading the configuration takes longer than 60 s,"
                " nothing is changed"
            ]
            assert manager.heard().count("READY") == 2
            yield world.dies(READER, by=9)
            assert world.log() == ["signal 17 (SIGCHLD) received"]
            assert (world.running, world.told) == ([101, 102], [])
            yield SIGHUP
            yield world.dies(READER + 1)
            assert world.running == [101, 102, 103, 104]

        world.notify.watchdog = None
        world.play(story)

    def test_that_crashes_changes_nothing(self, world: World, manager: Manager) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            yield world.dies(READER, by=11)
            assert world.log() == [
                f"[alert] configuration reader process {READER} exited on signal 11",
                UNREAD,
            ]
            assert (world.running, world.told) == ([101, 102], [])
            assert manager.heard() == ["READY", "RELOADING", "READY"]

        world.play(story)

    @pytest.mark.parametrize(
        ("spoil", "error"),
        [
            (lambda sheet: os.ftruncate(sheet, os.fstat(sheet).st_size // 2), None),
            (lambda sheet: os.ftruncate(sheet, 0), "EOFError"),
            (lambda sheet: rewrite(sheet, "no report"), "TypeError"),
            (lambda sheet: rewrite(sheet, {SECRET: 1}), "TypeError"),
            (lambda sheet: add_error(sheet, StubbornError(SECRET, 1)), "TypeError"),
            (lambda sheet: rewrite(sheet, RaisesError(SECRET)), "KeyError"),
        ],
        ids=["half", "empty", "text", "dictionary", "exception", "raises"],
    )
    def test_that_writes_what_cannot_be_read_changes_nothing(
        self,
        world: World,
        manager: Manager,
        spoil: Callable[[int], object],
        error: str | None,
    ) -> None:
        def story(world: World) -> Story:
            world.spoil = spoil
            yield SIGHUP
            world.log()
            yield world.has_read()
            text, unread = world.log()
            alert = f"[alert] {NAME} {READER} wrote what cannot be read ("
            assert text.startswith(alert if error is None else f"{alert}{error})")
            assert SECRET not in text
            assert unread == UNREAD
            assert (world.running, world.told) == ([101, 102], [])
            assert manager.heard() == ["READY", "RELOADING", "READY"]
            world.spoil = lambda _: None
            yield SIGHUP
            yield world.has_read()
            assert world.running == [101, 102, 103, 104]

        world.play(story)

    def test_that_cannot_begin_changes_nothing(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            world.log()
            yield SIGHUP
            assert world.log() == [
                *HUP,
                "[alert] fork() failed while spawning"
                ' "configuration reader process"'
                " (11: Resource temporarily unavailable)",
                UNREAD,
            ]
            assert manager.heard() == ["READY", "RELOADING", "READY"]
            assert len(os.listdir("/proc/self/fd")) == descriptors

        world.readers = 0
        descriptors = len(os.listdir("/proc/self/fd")) + 1  # the log
        world.play(story)

    def test_nothing_stays_open(self, world: World) -> None:
        def story(world: World) -> Story:
            before = len(os.listdir("/proc/self/fd"))
            for number in range(3):
                yield SIGHUP
                yield world.dies(READER + number, by=9 if number == 1 else 0)
                assert len(os.listdir("/proc/self/fd")) == before

        world.play(story)

    def test_bug_in_what_follows_changes_nothing(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            yield world.has_read()
            found = world.log()
            assert found[0] == "[alert] reload failed, this is a bug"
            assert found[-1] == "[alert] KeyError: 'x'"
            assert (world.running, world.told) == ([101, 102], [])

        world.loading_bug = KeyError("x")
        world.play(story)


class TestWatchdog:
    def test_is_fed_while_a_configuration_is_read(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            manager.heard()
            yield 5.0
            assert manager.heard().count("WATCHDOG") == 5

        world.play(story)

    def test_is_fed_while_workers_come_up(self, world: World, manager: Manager) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.has_read()
            manager.heard()
            yield 2.0
            assert manager.heard().count("WATCHDOG") == 2

        world.play(story)

    def test_is_fed_while_an_address_is_in_use(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            manager.heard()
            yield world.has_read()
            yield 2.5
            assert manager.heard().count("WATCHDOG") >= 4
            yield SIGTERM
            assert world.told == ["101 stop", "102 stop"], "at once"
            for pid in (101, 102):
                yield world.dies(pid)

        world.bind_rounds = 1000
        assert world.play(story) == 0
        assert world.running == []


class TestWorkersThatCannotBeForked:
    @pytest.mark.parametrize("forks", [0, 1])
    def test_after_a_reload_the_old_ones_go_on(
        self, world: World, manager: Manager, forks: int
    ) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            world.forks = forks
            yield world.has_read()
            new = [103][:forks]
            assert world.log() == [
                "start worker processes",
                *(f"start worker process {pid}" for pid in new),
                NO_FORK,
                NO_WORKERS,
            ]
            assert world.told == [f"{pid} stop" for pid in new]
            assert manager.heard() == ["READY", "RELOADING", "WATCHDOG", "READY"]
            for pid in new:
                yield world.dies(pid)
            assert world.running == [101, 102]
            yield 0.5
            assert world.log().count(NO_FORK) == 0, "nobody is missing"
            world.forks = 10
            yield SIGHUP
            yield world.dies(READER + 1)
            assert world.running[:2] == [101, 102]
            assert len(world.running) == 4
            assert world.told[-2:] == ["101 quit", "102 quit"]

        world.play(story)

    def test_the_call_that_failed_is_named(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.forks = 0
            yield world.has_read()
            assert NO_FORK.replace("fork()", "socketpair()") in world.log()

        world.call = "socketpair()"
        world.play(story)

    def test_because_there_are_too_many_processes(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGHUP
            world.log()
            yield world.has_read()
            assert world.log()[-2:] == [
                f"[alert] no more than {MAX_PROCESSES} processes can be spawned",
                NO_WORKERS,
            ]
            assert set(world.told) == {
                f"{pid} stop"
                for pid in range(101 + MAX_PROCESSES // 2 + 1, 101 + MAX_PROCESSES)
            }

        world.main = world.next_main = replace(
            world.main, worker_processes=MAX_PROCESSES // 2 + 1
        )
        world.play(story)

    def test_at_a_start_all_is_over(self, world: World, manager: Manager) -> None:
        def story(world: World) -> Story:
            yield from ()

        world.forks = 0
        assert world.play(story) == 2
        assert "[emerg] no worker process could start, exiting" in world.log()
        assert "READY" not in manager.heard()

    def test_at_a_start_one_is_enough(self, world: World, manager: Manager) -> None:
        def story(world: World) -> Story:
            assert world.running == [101]
            assert manager.heard() == ["READY"]
            world.forks = 1
            yield 1.1
            assert world.running == [101, 102]

        world.forks = 1
        world.play(story)

    def test_on_the_way_back_they_are_tried_again(
        self, world: World, manager: Manager
    ) -> None:
        """From a new binary, which has ended: there is nothing else to go back to."""

        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            for pid in (101, 102):
                yield world.dies(pid)
            manager.heard()
            world.forks = 0
            yield world.dies(NEW_BINARY)
            yield 3.0
            assert "READY" not in manager.heard()
            world.forks = 10
            yield 8.0
            assert world.running == [103, 104]
            assert "READY" in manager.heard()

        world.play(story)

    def test_beside_a_new_binary_they_are_tried_again(self, world: World) -> None:
        def story(world: World) -> Story:
            yield SIGUSR2
            yield SIGWINCH
            for pid in (101, 102):
                yield world.dies(pid)
            world.forks = 0
            yield SIGHUP
            assert world.running == []
            world.forks = 10
            yield 8.0
            assert world.running == [103, 104]

        world.play(story)


class TestWorkersThatAreSlow:
    def test_after_a_reload_the_old_ones_go_on(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            world.prompt = False
            yield SIGHUP
            yield world.has_read()
            yield world.comes_up(103)
            world.log()
            yield 29.9
            assert world.log() == []
            yield 0.2
            assert world.log() == [NO_WORKERS]
            assert world.told == ["103 stop", "104 stop"]
            assert manager.heard()[-1] == "READY"

        world.notify.watchdog = 1e6
        world.play(story)

    def test_at_a_start_ready_is_said_when_one_is_up(
        self, world: World, manager: Manager
    ) -> None:
        def story(world: World) -> Story:
            yield 31.0
            assert set(manager.heard()) <= {"WATCHDOG"}
            yield world.comes_up(102)
            assert manager.heard()[-1] == "READY"

        world.prompt = False
        world.notify.watchdog = 1e6
        world.play(story)


def test_rollback_leads_standard_error_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading has led it to the log of the new configuration."""

    def story(world: World) -> Story:
        yield SIGHUP
        world.forks = 0
        yield world.has_read()
        assert redirected == [world.log_path]

    redirected: list[Path] = []
    generation = world.generation

    def watched(main: MainSettings) -> Generation:
        made = generation(main)
        monkeypatch.setattr(
            made.logs, "redirect_stderr", lambda: redirected.append(world.log_path)
        )
        return made

    monkeypatch.setattr(world, "generation", watched)
    world.play(story)
