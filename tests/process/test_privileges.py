"""What a worker does with itself, each time in a process of its own."""

from __future__ import annotations

import grp
import json
import os
import pwd
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from mailproxy.process.privileges import (
    UnfitError,
    become_worker,
    cpus_of,
    environment,
    set_environment,
)
from mailproxy.process.settings import Affinity, MainSettings, User
from tests.captured_log import CapturedLog

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")

DAEMON = User("daemon", pwd.getpwnam("daemon").pw_uid, grp.getgrnam("daemon").gr_gid)
MAIN = MainSettings(user=DAEMON if os.geteuid() == 0 else None)

Events = list[list[str]]


def in_child(work: Callable[[], object]) -> object:
    """What `work` returns, in a process of its own."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writable, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, encoding="utf-8") as output:
        text = output.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def become(
    main: MainSettings, ask: Callable[[], object] = lambda: None, slot: int = 0
) -> tuple[object, Events]:
    """Become a worker; the answer, "unfit" instead if it cannot, and the log."""

    def work() -> object:
        captured = CapturedLog()
        try:
            become_worker(main, slot, captured.log)
            answer = ask()
        except UnfitError:
            answer = "unfit"
        return answer, captured.events

    return cast("tuple[object, Events]", tuple(cast("list[object]", in_child(work))))


@as_root
def test_rights_are_those_of_the_user() -> None:
    def ask() -> object:
        return os.getresuid(), os.getresgid(), os.getgroups()

    answer, log = become(MAIN, ask)
    groups = os.getgrouplist(DAEMON.name, DAEMON.gid)
    assert answer == [[DAEMON.uid] * 3, [DAEMON.gid] * 3, groups]
    assert log == []


@as_root
def test_rights_that_cannot_be_given_up_end_the_worker() -> None:
    nobody = User("nobody", 2**32 - 1, 2**32 - 1)  # -1, which is no id
    assert become(replace(MAIN, user=nobody)) == (
        "unfit",
        [["emerg", f"setgid({2**32 - 1}) failed (22: Invalid argument)"]],
    )


@as_root
def test_limits_are_set_before_the_rights_are_gone() -> None:
    def ask() -> object:
        return (
            resource.getrlimit(resource.RLIMIT_NOFILE),
            resource.getrlimit(resource.RLIMIT_CORE),
            os.getpriority(os.PRIO_PROCESS, 0),
        )

    main = replace(
        MAIN, worker_rlimit_nofile=1234, worker_rlimit_core=5678, worker_priority=-5
    )
    assert become(main, ask) == ([[1234, 1234], [5678, 5678], -5], [])


@as_root
def test_what_is_not_permitted_is_said_and_no_more() -> None:
    main = replace(MAIN, user=None, worker_priority=-5, worker_rlimit_nofile=2**40)

    def work() -> object:
        os.setuid(DAEMON.uid)
        captured = CapturedLog()
        become_worker(main, 0, captured.log)
        return captured.events

    assert in_child(work) == [
        ["alert", "setpriority(-5) failed (13: Permission denied)"],
        [
            "alert",
            f"setrlimit(RLIMIT_NOFILE, {2**40}) failed (1: Operation not permitted)",
        ],
    ]


def test_directory_is_changed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    main = replace(MAIN, user=None, working_directory="/")
    if os.geteuid() == 0:
        main = replace(main, user=DAEMON)
    assert become(main, os.getcwd) == ("/", [])


def test_directory_that_is_missing_ends_the_worker() -> None:
    answer, log = become(replace(MAIN, working_directory="/missing"))
    assert answer == "unfit"
    assert log == [["alert", 'chdir("/missing") failed (2: No such file or directory)']]


@pytest.mark.proves("worker_cpu_affinity")
def test_cpus_are_set_by_slot() -> None:
    masks = (frozenset({0}), frozenset({0, 1}))
    main = replace(MAIN, worker_cpu_affinity=Affinity(auto=False, masks=masks))

    def ask() -> object:
        return sorted(os.sched_getaffinity(0))

    assert become(main, ask) == (
        [0],
        [["notice", "sched_setaffinity(): using cpu #0"]],
    )


def test_cpu_that_is_missing_is_said() -> None:
    masks = (frozenset({1023}),)
    main = replace(MAIN, worker_cpu_affinity=Affinity(auto=False, masks=masks))
    _, log = become(main)
    assert log == [
        ["notice", "sched_setaffinity(): using cpu #1023"],
        ["alert", "sched_setaffinity() failed (22: Invalid argument)"],
    ]


@pytest.mark.parametrize(
    ("affinity", "expected"),
    [
        (Affinity(False, (frozenset({0}), frozenset({1}))), [{0}, {1}, {1}, {1}]),
        (Affinity(True, ()), [{0}, {1}, {2}, {0}]),
        (Affinity(True, (frozenset({0, 2}),)), [{0}, {2}, {0}, {2}]),
        (Affinity(True, (frozenset(),)), [set(), set(), set(), set()]),
    ],
)
def test_cpus_are_chosen_as_nginx_does(
    affinity: Affinity, expected: list[set[int]]
) -> None:
    assert [cpus_of(affinity, slot, 3) for slot in range(4)] == expected


@pytest.mark.proves("env")
def test_environment_has_what_is_named() -> None:
    start = {"TZ": "UTC", "PATH": "/bin", "LANG": "C", "EMPTY": ""}
    entries = (
        ("PATH", None),
        ("LANG", "de"),
        ("LANG", "fr"),
        ("MISSING", None),
        ("EMPTY", None),
        ("", "nameless"),
        ("", None),
    )
    assert environment(entries, start) == {
        "PATH": "/bin",
        "LANG": "de",
        "EMPTY": "",
        "TZ": "UTC",
    }
    assert environment((("TZ", "CET"),), start) == {"TZ": "CET"}
    assert environment((), {}) == {}


def test_environment_is_replaced() -> None:
    def work() -> object:
        set_environment({"TZ": "Etc/GMT-14"})
        import time

        return dict(os.environ), time.timezone

    assert in_child(work) == [{"TZ": "Etc/GMT-14"}, -14 * 3600]
