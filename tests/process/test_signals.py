"""Signals to real masters and workers, and what happens to the clients."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from signal import (
    SIGCONT,
    SIGHUP,
    SIGKILL,
    SIGQUIT,
    SIGSTOP,
    SIGTERM,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
)

import pytest

from mailproxy.process import signals
from mailproxy.process.signals import Received, SignalDescriptor
from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site, children, title
from tests.processes import answers, wait_for


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has had its effect (proc(5), stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        yield auth


class TestStop:
    def test_fast(self, site: Site, auth: FakeAuth) -> None:
        site.configure(AUTH=auth.port)
        pid = site.start()
        with Client(site.port) as client, Client(site.port) as relayed:
            relayed.log_in()
            assert site.call("-s", "stop").returncode == 0
            assert client.closed
            assert relayed.closed
        assert site.wait_for_end(pid) == 0
        assert not site.pid_path.exists()
        site.no_complaints()

    def test_graceful(self, site: Site, auth: FakeAuth) -> None:
        path = site.directory / "imap.sock"
        site.configure(
            "server { listen 127.0.0.1:PORT; listen unix:PATH; protocol imap; }",
            AUTH=auth.port,
            PATH=path,
        )
        pid = site.start()
        with Client(site.port) as client, Client(site.port) as relayed:
            relayed.log_in()
            assert site.call("-s", "quit").returncode == 0
            site.wait_for(lambda: not answers(site.port), "refusal of new clients")
            site.wait_for_line("gracefully shutting down", 2)
            leaving = "mailproxy: worker process is shutting down"
            assert leaving in map(title, children(pid))
            assert not path.exists()
            relayed.ping()
            assert client.log_in().startswith(b"a OK")
            client.ping()
        assert site.wait_for_end(pid) == 0
        assert not site.pid_path.exists()
        site.no_complaints()

    def test_fast_after_graceful(self, site: Site) -> None:
        path = site.directory / "imap.sock"
        site.configure("server { listen unix:PATH; protocol imap; }", PATH=path)
        pid = site.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.recv(100) == b"* OK IMAP4 ready\r\n"
            site.signal(SIGQUIT)
            site.wait_for(lambda: not path.exists(), "the socket to go")
            site.signal(SIGTERM)
            assert client.recv(100) == b""
        assert site.wait_for_end(pid) == 0
        site.no_complaints()

    @pytest.mark.proves("worker_shutdown_timeout")
    def test_graceful_for_so_long(self, site: Site, auth: FakeAuth) -> None:
        site.configure(main="worker_shutdown_timeout 100ms;", AUTH=auth.port)
        pid = site.start()
        with Client(site.port) as relayed:
            relayed.log_in()
            site.signal(SIGQUIT)
            assert relayed.closed
        assert site.wait_for_end(pid) == 0
        assert any("shutdown timeout" in line for line in site.log("info"))

    def test_stuck_worker_does_not_hold_up_a_stop(self, site: Site) -> None:
        site.configure(main="worker_processes 1;")
        pid = site.start()
        (worker,) = site.workers
        os.kill(worker, signal.SIGSTOP)
        site.signal(SIGTERM)
        assert site.wait_for_end(pid) == 0
        assert f"worker process {worker} exited on signal 9" in site.log("alert")


class TestWorker:
    @staticmethod
    def client_of(worker: int, other: int, site: Site) -> Client:
        """Log in at `worker`, as the other one cannot accept meanwhile."""
        site.signal(SIGSTOP, other)
        wait_for(lambda: is_stopped(other), f"{other} to stop")
        client = Client(site.port)
        assert client.log_in().startswith(b"a OK")
        site.signal(SIGCONT, other)
        return client

    def test_that_is_killed_is_replaced_and_others_keep_their_sessions(
        self, site: Site, auth: FakeAuth
    ) -> None:
        site.configure(AUTH=auth.port)
        site.start()
        victim, other = site.workers
        with self.client_of(other, victim, site) as stays:
            goes = self.client_of(victim, other, site)
            site.signal(SIGKILL, victim)
            assert goes.closed
            goes.close()
            site.wait_for_line("start worker process", 4)
            # It has its title a moment later.
            site.wait_for(lambda: len(site.workers) == 2, "the new worker")
            assert other in site.workers
            stays.ping()
            with Client(site.port) as new:
                assert new.log_in().startswith(b"a OK")
        assert site.log("alert") == [f"worker process {victim} exited on signal 9"]

    @pytest.mark.parametrize(
        ("number", "action"), [(SIGTERM, "exiting"), (SIGQUIT, "shutting down")]
    )
    def test_that_is_signalled_leaves_and_is_replaced(
        self, site: Site, number: signal.Signals, action: str
    ) -> None:
        site.start()
        victim = site.workers[0]
        site.signal(number, victim)
        site.wait_for_line(f"worker process {victim} exited with code 0")
        site.wait_for_line("start worker process ", 3)
        sender = os.getpid()
        line = f"signal {number:d} ({number.name}) received from {sender}, {action}"
        assert line in site.log()
        site.no_complaints()

    def test_ignores_what_is_for_the_master(self, site: Site) -> None:
        site.start()
        before = site.workers
        for number in (SIGHUP, SIGUSR2):
            site.signal(number, before[0])
            site.wait_for_line(
                f"signal {number:d} ({number.name}) received from"
                f" {os.getpid()}, ignoring"
            )
        assert site.workers == before

    def test_outlives_a_master_that_was_killed(self, site: Site) -> None:
        pid = site.start()
        workers = site.workers
        site.signal(SIGKILL)
        assert site.wait_for_end(pid) == -9
        assert answers(site.port)
        assert [title(pid) for pid in workers] == ["mailproxy: worker process"] * 2
        for worker in workers:
            site.signal(SIGQUIT, worker)
            assert site.wait_for_end(worker) == 0


class TestReopen:
    def test_every_process_writes_to_the_new_file(self, site: Site) -> None:
        site.start()
        rotated = site.directory / "error.log.1"
        site.log_path.rename(rotated)
        site.signal(SIGUSR1)
        site.wait_for(lambda: rotated.read_text().count(": reopening logs\n") == 3, "")
        site.wait_for(site.log_path.exists, "a new log")
        assert site.log_path.read_text() == ""
        with Client(site.port):
            site.wait_for_line(f"connected to 127.0.0.1:{site.port}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
    def test_workers_own_the_new_file(self, site: Site) -> None:
        site.configure(main="user daemon;")
        site.start()
        site.log_path.rename(site.directory / "error.log.1")
        site.signal(SIGUSR1)
        site.wait_for(site.log_path.exists, "a new log")
        uid = pwd.getpwnam("daemon").pw_uid
        site.wait_for(lambda: site.log_path.stat().st_uid == uid, "its owner")
        assert site.log_path.stat().st_gid == 0
        assert stat.S_IMODE(site.log_path.stat().st_mode) == 0o644

    def test_vanished_directory_keeps_the_old_file(self, site: Site) -> None:
        logs = site.directory / "logs"
        logs.mkdir()
        site.configure(main="error_log logs/more.log notice;")
        site.start()
        logs.rename(site.directory / "away")
        site.signal(SIGUSR1)
        said = f'open() "{logs}/more.log" failed (2: No such file or directory)'
        site.wait_for_line(said, 3)
        more = site.directory / "away/more.log"
        site.wait_for(lambda: more.read_text().count(said) == 3, "the old file")


class TestWinch:
    def test_workers_leave_and_come_back(self, site: Site) -> None:
        pid = site.start()
        site.signal(SIGWINCH)
        site.wait_for(lambda: not children(pid), "workers to leave")
        site.forget_log()
        site.signal(SIGHUP)
        site.wait_for_line("start worker process ", 2)
        assert answers(site.port)
        site.no_complaints()


class TestReceived:
    def test_is_told_as_nginx_tells_it(self) -> None:
        assert Received(SIGHUP, 7).text("reconfiguring") == (
            "signal 1 (SIGHUP) received from 7, reconfiguring"
        )
        assert Received(signal.SIGCHLD).text() == "signal 17 (SIGCHLD) received"

    def test_sender_is_known_to_who_waits(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [SIGUSR1])
        try:
            assert signals.wait(0, [SIGUSR1]) is None
            os.kill(os.getpid(), SIGUSR1)
            assert signals.wait(None, [SIGUSR1]) == Received(SIGUSR1, os.getpid())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def test_sender_is_known_to_who_reads(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [SIGUSR1, SIGWINCH])
        descriptor = SignalDescriptor()
        try:
            assert descriptor.read() == []
            os.kill(os.getpid(), SIGWINCH)
            os.kill(os.getpid(), SIGUSR1)
            assert set(descriptor.read()) == {
                Received(SIGUSR1, os.getpid()),
                Received(SIGWINCH, os.getpid()),
            }
        finally:
            descriptor.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _children(pid: int) -> list[int]:
    from tests.process.site import children

    return children(pid)
