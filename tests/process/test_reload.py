"""A reload: what changes, what stays, and what a failure leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGQUIT

import pytest
import trustme

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Load, Site
from tests.processes import answers, free_port

RELOADED = "exited with code 0"
"""Of the last old worker."""


def reload(site: Site, old: int = 2) -> None:
    """Reload, and wait until the old workers without sessions are gone."""
    site.forget_log()
    site.signal(SIGHUP)
    site.wait_for_line(RELOADED, old)


def failed_reload(site: Site) -> list[str]:
    """Reload something that cannot be; what is logged at emerg."""
    before = site.workers
    site.forget_log()
    site.signal(SIGHUP)
    site.wait_for(lambda: bool(site.log("emerg")), "an error in the log")
    site.wait_for(lambda: site.workers == before, "the old workers alone")
    assert answers(site.port)
    return site.log("emerg")


@pytest.fixture
def mail() -> Iterator[tuple[FakeAuth, FakeImap]]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        yield auth, backend


class TestThatSucceeds:
    def test_workers_are_new_and_the_master_is_not(self, site: Site) -> None:
        pid = site.start()
        before = site.workers
        site.configure(main="worker_processes 3;")
        reload(site)
        assert site.pid == pid
        assert len(site.workers) == 3
        assert not set(before) & set(site.workers)
        site.no_complaints()

    def test_listeners_come_and_go(self, site: Site) -> None:
        other = free_port()
        path = site.directory / "imap.sock"
        site.configure(
            "server { listen 127.0.0.1:PORT; listen unix:PATH; protocol imap; }",
            PATH=path,
        )
        site.start()
        kept = _inode(site.port)
        site.configure(
            "server { listen 127.0.0.1:PORT; listen 127.0.0.1:OTHER; protocol imap; }",
            OTHER=other,
        )
        reload(site)
        assert answers(other)
        assert _inode(site.port) == kept
        assert not path.exists()
        assert site.log("warn") == [f"deleting socket {path}"]
        site.configure()
        reload(site)
        assert not answers(other)
        assert answers(site.port)

    def test_sessions_stay_with_the_old_workers(
        self, site: Site, mail: tuple[FakeAuth, FakeImap]
    ) -> None:
        auth, _ = mail
        site.configure(AUTH=auth.port)
        site.start()
        with Client(site.port) as relayed, Client(site.port) as waiting:
            assert relayed.log_in().startswith(b"a OK")
            old = site.workers
            site.configure(
                "server { listen 127.0.0.1:PORT; protocol imap;"
                " imap_capabilities NEW; }",
                AUTH=auth.port,
            )
            site.forget_log()
            site.signal(SIGHUP)
            site.wait_for_line("gracefully shutting down", 2)
            with Client(site.port) as new:
                new.socket.sendall(b"c CAPABILITY\r\n")
                assert b" NEW" in new.line()
            relayed.ping()
            waiting.socket.sendall(b"c CAPABILITY\r\n")
            assert b"NEW" not in waiting.line()
            assert waiting.line().startswith(b"c OK")
            assert waiting.log_in().startswith(b"a OK")
            waiting.ping()
            leaving = [pid for pid in old if os.path.exists(f"/proc/{pid}")]
            assert leaving
        site.wait_for_line(RELOADED, 2)
        site.no_complaints()

    @pytest.mark.proves("pid")
    def test_log_file_and_pid_file_move(self, site: Site) -> None:
        pid = site.start()
        path = site.directory / "nginx.conf"
        path.write_text(
            path.read_text()
            .replace("pid the.pid", "pid moved.pid")
            .replace("error_log error.log", "error_log moved.log")
        )
        site.signal(SIGHUP)
        moved = site.directory / "moved.log"
        site.wait_for(
            lambda: moved.exists() and moved.read_text().count(RELOADED) == 2, "reload"
        )
        assert not site.pid_path.exists()
        assert (site.directory / "moved.pid").read_text() == f"{pid}\n"
        assert site.log().count("start worker processes") == 1, "the rest is there"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(moved)

    def test_descriptors_do_not_pile_up(self, site: Site) -> None:
        pid = site.start()
        reload(site)
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(3):
            reload(site)
        assert len(os.listdir(f"/proc/{pid}/fd")) == before

    def test_memory_stays_flat(self, site: Site) -> None:
        certificate = trustme.CA().issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(
            str(site.directory / "both.pem")
        )
        site.configure(
            "server { listen 127.0.0.1:PORT ssl; protocol imap;"
            " ssl_certificate both.pem; ssl_certificate_key both.pem; }",
            main="worker_processes 1;",
        )
        pid = site.start()
        for _ in range(10):
            reload(site, 1)
        before = _memory(pid)
        for _ in range(20):
            reload(site, 1)
        assert _memory(pid) - before < 256


class TestThatFails:
    """One and the same master survives all this."""

    @pytest.fixture
    def site(self, running: Site) -> Iterator[Site]:
        yield running
        running.configure()

    def test_broken_configuration(self, site: Site) -> None:
        site.configure("server { listen 127.0.0.1:PORT; protocol imapx; }")
        (line,) = failed_reload(site)
        assert line.startswith('unknown protocol "imapx" in ')

    def test_missing_configuration(self, site: Site) -> None:
        path = site.directory / "nginx.conf"
        path.unlink()
        assert failed_reload(site) == [
            f'open() "{path}" failed (2: No such file or directory)'
        ]

    def test_vanished_certificate(self, site: Site) -> None:
        site.configure(
            "server { listen 127.0.0.1:PORT ssl; protocol imap;"
            " ssl_certificate gone.pem; ssl_certificate_key gone.pem; }"
        )
        failed_reload(site)
        site.wait_for(lambda: len(site.log("emerg")) == 2, "the place of the error")
        line, place = site.log("emerg")
        assert line.startswith(
            f'cannot load certificate "{site.directory / "gone.pem"}"'
        )
        assert place.startswith("the line before is about")
        assert f"{site.directory / 'nginx.conf'}:" in place

    def test_vanished_ticket_key(self, site: Site) -> None:
        certificate = trustme.CA().issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(
            str(site.directory / "both.pem")
        )
        site.configure(
            "\nssl_session_ticket_key gone;\nserver { listen 127.0.0.1:PORT ssl;"
            " protocol imap; ssl_certificate both.pem; ssl_certificate_key both.pem; }\n"
        )
        failed_reload(site)
        site.wait_for(lambda: len(site.log("emerg")) == 2, "the place of the error")
        line, place = site.log("emerg")
        assert line.startswith(f'open() "{site.directory / "gone"}" failed (2: ')
        assert place.startswith("the line before is about")
        named = re.findall(r"nginx\.conf:(\d+)", f"{line} {place}")
        assert int(named[0]) > int(named[1])

    def test_address_that_cannot_be_had(self, site: Site) -> None:
        other = free_port()
        site.configure(
            "server { listen 127.0.0.1:PORT; listen 127.0.0.1:OTHER;"
            " listen 192.0.2.1:OTHER; protocol imap; }",
            OTHER=other,
        )
        assert failed_reload(site) == [
            f"bind() to 192.0.2.1:{other} failed (99: Cannot assign requested address)"
        ]
        assert not answers(other)
        site.configure()
        reload(site)

    def test_log_directory_that_vanished(self, site: Site) -> None:
        site.configure(main="error_log gone/error.log;")
        path = site.directory / "gone/error.log"
        assert failed_reload(site) == [
            f'open() "{path}" failed (2: No such file or directory)'
        ]

    def test_pid_file_that_cannot_be_written(self, site: Site) -> None:
        pid = site.pid
        path = site.directory / "nginx.conf"
        path.write_text(path.read_text().replace("pid the.pid", "pid gone/the.pid"))
        (line,) = failed_reload(site)
        assert line.startswith(f'open() "{site.directory / "gone/the.pid"}" failed')
        assert site.pid == pid

    def test_workers_that_cannot_work(self, site: Site) -> None:
        other = free_port()
        site.configure(
            "server { listen 127.0.0.1:PORT; listen 127.0.0.1:OTHER; protocol imap; }",
            main="working_directory /missing;",
            OTHER=other,
        )
        assert failed_reload(site) == [
            "new worker processes do not start, nothing is changed"
        ]
        site.wait_for(lambda: not answers(other), "the new listener to be closed")
        site.configure()
        reload(site)


class TestWithoutMaster:
    def test_new_clients_are_served_anew(
        self, site: Site, mail: tuple[FakeAuth, FakeImap]
    ) -> None:
        auth, _ = mail
        other = free_port()
        site.configure(main="master_process off;", AUTH=auth.port)
        pid = site.start()
        with Client(site.port) as old:
            site.configure(
                "server { listen 127.0.0.1:PORT; listen 127.0.0.1:OTHER;"
                " protocol imap; imap_capabilities NEW; }",
                main="master_process off;",
                AUTH=auth.port,
                OTHER=other,
            )
            site.signal(SIGHUP)
            site.wait_for(lambda: answers(other), "the new listener")
            for port in (site.port, other):
                with Client(port) as new:
                    new.socket.sendall(b"c CAPABILITY\r\n")
                    assert b" NEW" in new.line()
            old.socket.sendall(b"c CAPABILITY\r\n")
            assert b" NEW" not in old.line()
            assert old.line().startswith(b"c OK")
            old.log_in()
            old.ping()
            site.configure("server { listen 127.0.0.1:OTHER; }", OTHER=other)
            site.signal(SIGHUP)
            site.wait_for(lambda: bool(site.log("emerg")), "an error")
            assert answers(site.port)
            site.configure(main="master_process off;", AUTH=auth.port)
            site.signal(SIGHUP)
            site.wait_for(lambda: not answers(other), "the listener to go")
            old.ping()
            site.signal(SIGQUIT)
            site.wait_for(lambda: not answers(site.port), "refusal of new clients")
            old.ping()
        assert site.wait_for_end(pid) == 0
        assert not site.pid_path.exists()


def test_storm_of_reloads_is_not_noticed_by_clients(
    site: Site, mail: tuple[FakeAuth, FakeImap]
) -> None:
    auth, _ = mail
    site.configure(main="worker_processes 1;", AUTH=auth.port)
    site.start()
    with Load(site.port) as load:
        for number in range(1, 51):
            site.signal(SIGHUP)
            site.wait_for_line("gracefully shutting down", number)
            assert load.failures == []
    site.wait_for_line(RELOADED, 50)
    site.no_complaints()


def _memory(pid: int) -> int:
    """Resident memory of a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def _inode(port: int) -> str:
    """What the kernel calls the socket that listens on a port."""
    local = f"0100007F:{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1] == local and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"nobody listens on {port}")


class TestWithFewDescriptors:
    """Workers of a new configuration may have too few descriptors to work."""

    def test_old_workers_leave_only_for_such_as_serve(self, site: Site) -> None:
        """However many there are: clients are served, and the log says what lacks."""
        pid = site.start()
        reloaded = []
        for count in range(9, 41):
            before = site.workers
            site.configure(main=f"worker_rlimit_nofile {count};")
            site.forget_log()
            site.signal(SIGHUP)
            site.wait_for(lambda: _is_over(site, before), f"the end with {count}")  # noqa: B023
            reloaded.append(_have_left(site, before))
            if reloaded[-1]:
                assert len(site.workers) == 2
                site.no_complaints()
            else:
                site.wait_for(lambda: site.workers == before, "the old workers")  # noqa: B023
                assert all(SHORT.fullmatch(line) for line in site.log("emerg"))
            with Client(site.port) as client:
                assert client.ask(b"a NOOP").startswith(b"a OK")
        assert site.pid == pid
        assert reloaded == sorted(reloaded), "what is enough stays enough"
        assert {*reloaded} == {False, True}


SHORT = re.compile(
    r"\w+(\.run)?\(\) failed \(24: Too many open files\)"
    r"|new worker processes do not start, nothing is changed"
)


def _is_over(site: Site, old: list[int]) -> bool:
    """Whether a reload has failed, or the old workers have left."""
    failed = any("nothing is changed" in line for line in site.log("emerg"))
    return failed or _have_left(site, old)


def _have_left(site: Site, old: list[int]) -> bool:
    log = site.log()
    return all(f"worker process {pid} {RELOADED}" in log for pid in old)
