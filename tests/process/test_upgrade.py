"""The binary upgrade: sockets go from one program to the next, and back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGTERM, SIGUSR2, SIGWINCH

import pytest

from mailproxy.process import upgrade
from tests.captured_log import CapturedLog
from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Load, Site, children, title
from tests.processes import answers


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        yield auth


def change_binary(site: Site) -> tuple[int, int]:
    """Upgrade; returns the old and the new master, both serving."""
    old = site.pid
    oldbin = Path(f"{site.pid_path}.oldbin")
    site.signal(SIGUSR2)
    site.wait_for(
        lambda: oldbin.exists() and site.has_pid() and site.pid != old,
        "a new master",
    )
    assert int(oldbin.read_text()) == old
    site.wait_for(lambda: len(site.workers) == 2, "new workers")
    return old, site.pid


def retire(site: Site, old: int) -> None:
    """Have the old master leave, its workers first."""
    site.signal(SIGWINCH, old)
    site.wait_for(lambda: not _workers(old), "the old workers to leave")
    site.signal(SIGQUIT, old)
    assert site.wait_for_end(old) == 0
    assert not Path(f"{site.pid_path}.oldbin").exists()


def _workers(master: int) -> list[int]:
    return [pid for pid in children(master) if "worker process" in title(pid)]


class TestToOurselves:
    def test_sessions_and_listeners_go_on(self, site: Site, auth: FakeAuth) -> None:
        path = site.directory / "imap.sock"
        site.configure(
            "server { listen 127.0.0.1:PORT; listen unix:PATH; protocol imap; }",
            AUTH=auth.port,
            PATH=path,
        )
        site.start()
        with Client(site.port) as relayed:
            relayed.log_in()
            old, new = change_binary(site)
            assert title(new) == title(old)
            assert len(_workers(old)) == 2, "both serve"
            assert (site.directory / "startup.log").read_text().count(
                'using inherited sockets from "'
            ) == 1
            site.signal(SIGWINCH, old)
            site.wait_for_line("gracefully shutting down", 2)
            assert answers(site.port)
            relayed.ping()
        retire(site, old)
        assert path.exists(), "it is the new master's"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(100) == b"* OK IMAP4 ready\r\n"
        site.signal(SIGTERM)
        assert site.wait_for_end(new) == 0
        assert not path.exists()
        site.no_complaints()

    def test_old_master_takes_over_again(self, site: Site) -> None:
        site.start()
        old, new = change_binary(site)
        site.signal(SIGWINCH, old)
        site.wait_for(lambda: not _workers(old), "the old workers to leave")
        site.signal(SIGHUP, old)
        site.wait_for(lambda: len(_workers(old)) == 2, "old workers again")
        site.signal(SIGQUIT, new)
        site.wait_for_line(f"new binary process {new} exited with code 0")
        site.wait_for(lambda: site.has_pid() and site.pid == old, "pid file")
        assert answers(site.port)
        site.no_complaints()

    def test_second_upgrade_has_to_wait(self, site: Site) -> None:
        site.start()
        old, new = change_binary(site)
        for master in (old, new):
            site.forget_log()
            site.signal(SIGUSR2, master)
            site.wait_for_line("the changing binary signal is ignored")
            ignored = f"signal 12 (SIGUSR2) received from {os.getpid()}, ignoring"
            assert ignored in site.log()

    def test_new_program_that_fails_changes_nothing(self, site: Site) -> None:
        pid = site.start()
        site.configure("broken")
        site.signal(SIGUSR2)
        site.wait_for_line("exited with code 1")
        site.wait_for(site.has_pid, "pid file")
        assert site.pid == pid
        site.program.unlink()
        site.forget_log()
        site.signal(SIGUSR2)
        site.wait_for_line("exited with code 1")
        assert site.log("alert") == [
            "execve() failed while executing new binary process"
            f' "{site.program}" (2: No such file or directory)'
        ]
        assert len(site.workers) == 2

    def test_no_client_notices(self, site: Site, auth: FakeAuth) -> None:
        site.configure(AUTH=auth.port)
        site.start()
        with Load(site.port):
            old, _ = change_binary(site)
            site.signal(SIGWINCH, old)
            site.wait_for_line("gracefully shutting down", 2)
        retire(site, old)
        site.no_complaints()


class TestFromAndToNginx:
    def test_there_and_back(self, nginx_site: Site, auth: FakeAuth) -> None:
        site = nginx_site
        site.configure(AUTH=auth.port)
        site.start()
        with Client(site.port) as relayed:
            relayed.log_in()
            site.install(site.program)
            nginx, ours = change_binary(site)
            assert title(ours).startswith("nginx: master process")
            assert Path(f"/proc/{ours}/exe").resolve().name.startswith("python")
            site.signal(SIGWINCH, nginx)
            site.wait_for_line("gracefully shutting down", 2)
            assert answers(site.port)
            relayed.ping()
        retire(site, nginx)
        with Client(site.port) as relayed:
            relayed.log_in()
            site.install_nginx(site.program)
            _, back = change_binary(site)
            assert Path(f"/proc/{back}/exe").resolve() == site.program
            relayed.ping()
        retire(site, ours)
        assert answers(site.port)
        assert site.log("alert") == []


class TestInheritedSockets:
    def inherited(self, variables: MutableMapping[str, str]) -> list[int] | None:
        self.captured = CapturedLog()
        return upgrade.inherited(variables, self.captured.log)

    def test_are_named_by_nginx(self) -> None:
        variables = {"NGINX": "5;6;", "TZ": "UTC"}
        assert self.inherited(variables) == [5, 6]
        assert variables == {"TZ": "UTC"}
        assert self.captured.events == [
            ("notice", 'using inherited sockets from "5;6;"')
        ]

    def test_are_named_by_angie(self) -> None:
        assert self.inherited({"ANGIE": "5:6;"}) == [5, 6]

    def test_may_be_none(self) -> None:
        assert self.inherited({}) is None
        assert self.inherited({"NGINX": ""}) == []

    def test_broken_number_ends_the_list(self) -> None:
        assert self.inherited({"NGINX": "5;x;7;"}) == [5]
        assert self.captured.events[1] == (
            "emerg",
            'invalid socket number "x;7;" in NGINX environment variable,'
            " ignoring the rest of the variable",
        )

    def test_unfinished_number_is_ignored(self) -> None:
        assert self.inherited({"NGINX": "5;6"}) == [5]
        assert self.captured.events[1] == (
            "emerg",
            'invalid socket number "6" in NGINX environment variable, ignoring',
        )
