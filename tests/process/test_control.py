"""`-s`, beside the real nginx: the same words, the same codes, the same signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mailproxy.process import control
from tests.captured_log import CapturedLog
from tests.process.site import LINE, Site
from tests.processes import find_program

NO_PROCESS = 2**22 - 1
"""A pid beyond what the kernel gives out here."""

PID_FILES = [
    None,
    "",
    "abc\n",
    "12x\n",
    "12 \n",
    "-1\n",
    "123456789012345678901234567890\n",
    f"{NO_PROCESS}\n",
    f"{NO_PROCESS}",
    f"{NO_PROCESS}\r\n",
]


@pytest.mark.parametrize("pid", PID_FILES)
def test_errors_are_those_of_nginx(nginx_site: Site, pid: str | None) -> None:
    site = nginx_site
    if pid is not None:
        site.pid_path.write_text(pid)
    done = site.call("-s", "reload")
    logged = LINE.findall((site.directory / "startup.log").read_text())
    theirs = [(level, message) for level, _, message in logged]
    assert send("reload", site.pid_path) == (done.returncode, theirs)
    assert done.returncode == 1


def test_errors_reach_the_terminal_as_nginx_s_do(site: Site, nginx_site: Site) -> None:
    said = []
    for each in (site, nginx_site):
        done = each.call("-s", "reload")
        said.append(
            (
                done.returncode,
                done.stderr.replace(str(each.directory), "DIR").split(": ", 1)[1],
            )
        )
    assert said[0] == said[1]


def test_broken_configuration_sends_nothing(site: Site) -> None:
    site.configure("broken")
    site.pid_path.write_text(f"{os.getpid()}\n")
    done = site.call("-s", "stop")
    assert done.returncode == 1
    assert done.stderr.startswith("mailproxy: [emerg] ")


def send(order: str, path: Path | None) -> tuple[int, list[tuple[str, str]]]:
    captured = CapturedLog()
    return control.send(
        order, str(path) if path else None, captured.log
    ), captured.events


@pytest.mark.parametrize(
    ("order", "number"),
    [
        ("stop", signal.SIGTERM),
        ("quit", signal.SIGQUIT),
        ("reopen", signal.SIGUSR1),
        ("reload", signal.SIGHUP),
    ],
)
def test_each_order_has_its_signal(
    tmp_path: Path, order: str, number: signal.Signals
) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getpid()}\n")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        assert send(order, path) == (0, [("notice", "signal process started")])
        assert signal.sigwaitinfo([number]).si_pid == os.getpid()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_zero_is_nobody(tmp_path: Path) -> None:
    """kill(2) would take it for "everybody in my process group", and nginx does."""
    path = tmp_path / "pid"
    path.write_text("0\n")
    code, events = send("stop", path)
    assert (code, events[1]) == (1, ("error", f'invalid PID number "0" in "{path}"'))


def test_without_pid_file_there_is_nobody_to_tell() -> None:
    assert send("reload", None) == (
        1,
        [("notice", "signal process started"), ("error", "no PID file configured")],
    )


@pytest.mark.skipif(find_program("nginx") is None, reason="nginx is not installed")
def test_nginx_is_told_by_us_and_we_by_nginx(site: Site, nginx_site: Site) -> None:
    """An init script may call either: only the pid file counts."""
    nginx_site.start()
    pid = nginx_site.pid
    site.install_nginx(site.directory / "real")
    nginx_site.install(nginx_site.directory / "ours")
    done = nginx_site.call("-s", "quit", program=nginx_site.directory / "ours")
    assert (done.returncode, done.stderr) == (0, "")
    assert nginx_site.wait_for_end(pid) == 0
    pid = site.start()
    assert site.call("-s", "quit", program=site.directory / "real").returncode == 0
    assert site.wait_for_end(pid) == 0
