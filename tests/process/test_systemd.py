"""What systemd is told, and the sockets it hands over."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGTERM, SIGUSR2

import pytest

from mailproxy.process.notify import Notify, activated
from tests.process.site import Site
from tests.processes import PATIENCE, answers


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)

    def hear(self, *, but: str = "") -> dict[str, str]:
        """The next message, by variable; those that have `but` are left out."""
        while True:
            message = self.socket.recv(4096).decode()
            found = dict(line.split("=", 1) for line in message.split("\n"))
            if but not in found:
                return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


class TestNotify:
    def test_start_reload_and_stop_are_told(self, site: Site, manager: Manager) -> None:
        with site.foreground(manager.environment) as process:
            ready = {
                "READY": "1",
                "MAINPID": str(process.pid),
                "STATUS": "2 worker processes",
            }
            assert manager.hear() == ready
            assert len(site.workers) == 2
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            site.signal(SIGHUP)
            message = manager.hear()
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert message["RELOADING"] == "1"
            assert before <= int(message["MONOTONIC_USEC"]) <= after
            assert manager.hear() == ready
            site.configure("broken")
            site.signal(SIGHUP)
            assert manager.hear()["RELOADING"] == "1"
            assert manager.hear() == ready
            site.signal(SIGQUIT)
            assert manager.hear()["STOPPING"] == "1"
            assert process.wait(PATIENCE) == 0

    def test_single_process_tells_too(self, site: Site, manager: Manager) -> None:
        site.configure(main="master_process off;")
        with site.foreground(manager.environment) as process:
            assert manager.hear()["MAINPID"] == str(process.pid)

    def test_stuck_worker_is_killed_in_the_time_of_the_watchdog(
        self, site: Site, manager: Manager
    ) -> None:
        environment = {**manager.environment, "WATCHDOG_USEC": "800000"}
        with site.foreground(environment):
            assert "READY" in manager.hear(but="WATCHDOG")
            assert manager.hear() == {"WATCHDOG": "1"}
            stuck, other = site.workers
            os.kill(stuck, signal.SIGSTOP)
            site.wait_for_line(f"worker process {stuck} exited on signal 9")
            site.wait_for_line("start worker process ", 3)
            assert other in site.workers
            assert any(
                re.fullmatch(
                    rf"worker process {stuck} is stuck: no answer for \d s, killing it",
                    line,
                )
                for line in site.log("alert")
            )
            assert "WATCHDOG" in manager.hear(but="READY")

    def test_without_a_manager_nothing_is_said(self) -> None:
        notify = Notify({})
        notify.ready("fine")
        assert notify.watchdog is None
        assert notify.variables == {}

    def test_watchdog_of_another_process_is_not_ours(self) -> None:
        assert (
            Notify({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog is None
        )
        assert Notify({"WATCHDOG_USEC": "1500000"}).watchdog == 1.5

    def test_manager_may_have_an_abstract_address(self) -> None:
        name = f"mailproxy-test-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{name}")
            environment = {"NOTIFY_SOCKET": f"@{name}"}
            notify = Notify(environment)
            assert environment == {}
            notify.ready("fine")
            assert manager.recv(100).startswith(b"READY=1\n")
            assert notify.variables == {"NOTIFY_SOCKET": f"@{name}"}
            notify.close()

    def test_vanished_manager_is_no_reason_to_fail(self, manager: Manager) -> None:
        notify = Notify(dict(manager.environment))
        os.unlink(manager.environment["NOTIFY_SOCKET"])
        notify.ready("fine")
        notify.close()


class TestSocketActivation:
    def test_sockets_are_taken_over(self, site: Site, manager: Manager) -> None:
        path = site.directory / "imap.sock"
        site.configure(
            "server { listen 127.0.0.1:PORT; listen unix:PATH; protocol imap; }",
            PATH=path,
        )
        with (
            socket.create_server(("127.0.0.1", site.port)) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            unix.bind(str(path))
            unix.listen()
            with socket.create_connection(("127.0.0.1", site.port)) as early:
                process = _activate(site, manager, tcp, unix)
                assert "READY" in manager.hear()
                early.settimeout(PATIENCE)
                assert early.recv(100) == b"* OK IMAP4 ready\r\n"
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                assert client.recv(100) == b"* OK IMAP4 ready\r\n"
            site.signal(SIGUSR2)
            site.wait_for(lambda: site.has_pid() and site.pid != process, "new master")
            new = site.pid
            assert "READY" in manager.hear()
            site.signal(SIGTERM, new)
            site.wait_for(lambda: site.has_pid() and site.pid == process, "the old one")
            assert manager.hear(but="STOPPING")["MAINPID"] == str(process)
            site.no_complaints()
            site.signal(SIGTERM)
            assert site.wait_for_end(process) == 0
            assert path.exists(), "it is systemd's"
        assert not answers(site.port)

    def test_numbers_are_for_the_process_that_is_named(self) -> None:
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "TZ": "UTC"}
        assert activated(environment) == [3, 4]
        assert environment == {"TZ": "UTC"}
        assert activated({"LISTEN_PID": "1", "LISTEN_FDS": "2"}) == []
        assert activated({"LISTEN_FDS": "2"}) == []
        assert activated({}) == []


def _activate(site: Site, manager: Manager, *sockets: socket.socket) -> int:
    """Start as systemd does it: descriptors from 3 on, and the pid in LISTEN_PID."""
    pid = os.fork()
    if pid == 0:
        try:
            for number, each in enumerate(sockets, 100):
                os.dup2(each.fileno(), number)
            for number in range(len(sockets)):
                os.dup2(100 + number, 3 + number)
            environment = {
                **manager.environment,
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(sockets)),
                "LISTEN_FDNAMES": "imap.socket:other.socket",
            }
            command = [sys.executable, *site.command("-g", "daemon off;")]
            os.execve(command[0], command, environment)
        finally:
            os._exit(127)
    return pid
