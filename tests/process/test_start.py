"""The program starts, and what it says when it cannot."""

from __future__ import annotations

import os
import pwd
import socket
import stat
from pathlib import Path

import pytest

from tests.process.site import Site, children, title

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")


class TestInTheBackground:
    def test_returns_when_all_is_ready(self, site: Site) -> None:
        done = site.call()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(site.workers) == 2
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            assert client.recv(100) == b"* OK IMAP4 ready\r\n"
        site.no_complaints()

    def test_called_nginx_it_is_nginx(self, site: Site) -> None:
        program = site.directory / "nginx"
        program.symlink_to(site.program)
        pid = site.start(program=program)
        assert title(pid).startswith(f"nginx: master process {program} ")
        assert title(site.workers[0]) == "nginx: worker process"
        assert Path(f"/proc/{pid}/comm").read_text() == "nginx\n"

    @pytest.mark.proves("error_log", "stderr", context="main")
    def test_error_log_stderr_keeps_descriptor_2(self, site: Site) -> None:
        site.configure(main="error_log stderr crit;")
        pid = site.start()
        assert os.readlink(f"/proc/{pid}/fd/2") == str(site.directory / "stderr")

    @pytest.mark.proves("user")
    @as_root
    def test_workers_run_as_the_user(self, site: Site) -> None:
        site.configure(main="user daemon;")
        site.start()
        status = Path(f"/proc/{site.workers[0]}/status").read_text()
        uid = pwd.getpwnam("daemon").pw_uid
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
        assert stat.S_IMODE(site.pid_path.stat().st_mode) == 0o644
        assert stat.S_IMODE(site.log_path.stat().st_mode) == 0o644

    @pytest.mark.proves("working_directory")
    def test_workers_have_a_clean_environment(self, site: Site) -> None:
        site.configure(
            "server { listen 127.0.0.1:PORT; protocol imap; }",
            main="env LANG=C; working_directory /;",
        )
        site.start()
        assert os.readlink(f"/proc/{site.workers[0]}/cwd") == "/"

    @pytest.mark.proves("worker_processes")
    def test_no_workers_is_possible(self, site: Site) -> None:
        site.configure(main="worker_processes 0;")
        pid = site.start()
        assert children(pid) == []
        site.call("-s", "stop")
        assert site.wait_for_end(pid) == 0

    @pytest.mark.proves("pid", "off")
    def test_pid_off_writes_no_file(self, site: Site) -> None:
        text = (site.directory / "nginx.conf").read_text()
        (site.directory / "nginx.conf").write_text(
            text.replace("pid the.pid", "pid off")
        )
        assert site.call().returncode == 0
        assert not list(site.directory.glob("*.pid"))
        done = site.call("-s", "reload")
        assert done.returncode == 1
        assert done.stderr.endswith("no PID file configured\n")


class TestProcesses:
    def test_titles_name_the_program_and_its_arguments(self, running: Site) -> None:
        pid = running.pid
        arguments = " ".join(running.command())
        assert title(pid) == f"mailproxy: master process {arguments}"
        assert [title(pid) for pid in running.workers] == [
            "mailproxy: worker process"
        ] * 2
        for each in (pid, *running.workers):
            assert Path(f"/proc/{each}/comm").read_text() == "mailproxy\n"

    def test_has_a_session_of_its_own_and_no_terminal(self, running: Site) -> None:
        pid = running.pid
        assert os.getsid(pid) == pid
        for fd in (0, 1):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == os.devnull
        assert os.readlink(f"/proc/{pid}/fd/2") == str(running.log_path)
        assert "Umask:\t0000" in Path(f"/proc/{pid}/status").read_text()
        assert os.readlink(f"/proc/{pid}/cwd") == os.getcwd()


class TestInTheForeground:
    @pytest.mark.proves("daemon")
    def test_daemon_off_keeps_the_process(self, site: Site) -> None:
        with site.foreground() as process:
            site.wait_for_line("start worker process ", 2)
            assert site.pid == process.pid
            site.wait_for(lambda: len(site.workers) == 2, "workers")
            process.terminate()
            assert process.wait(20) == 0
        assert not site.pid_path.exists()

    @pytest.mark.proves("master_process")
    def test_master_process_off_is_one_process(self, site: Site) -> None:
        site.configure(main="master_process off;")
        with site.foreground() as process:
            site.wait_for(lambda: site.pid_path.exists(), "pid file")
            with socket.create_connection(("127.0.0.1", site.port)) as client:
                assert client.recv(100) == b"* OK IMAP4 ready\r\n"
            assert children(process.pid) == []
            assert title(process.pid).endswith("-g daemon off;")
            process.terminate()
            assert process.wait(20) == 0
        assert not site.pid_path.exists()
        assert site.log()[-1] == "exit"

    def test_master_process_off_in_the_background(self, site: Site) -> None:
        site.configure(main="master_process off;")
        pid = site.start()
        assert children(pid) == []
        site.call("-s", "quit")
        assert site.wait_for_end(pid) == 0


class TestThatFails:
    def failed(self, site: Site, code: int = 1) -> str:
        """Start, and return what is said about the failure."""
        done = site.call()
        assert done.returncode == code
        return done.stderr

    def test_broken_configuration(self, site: Site) -> None:
        site.configure("server { listen 127.0.0.1:PORT; protocol imapx; }")
        first = self.failed(site).splitlines()[0]
        assert first.startswith('mailproxy: [emerg] unknown protocol "imapx" in ')

    def test_port_that_is_taken(self, site: Site) -> None:
        pid = site.start()
        site.forget_log()
        line = (
            f"mailproxy: [emerg] bind() to 127.0.0.1:{site.port} failed"
            " (98: Address already in use)\n"
        )
        said = self.failed(site)
        assert said == line * 5 + "mailproxy: [emerg] still could not bind()\n"
        assert site.log().count("try again to bind() after 500ms") == 5
        assert site.pid == pid, "the first one is left alone"
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            assert client.recv(100) == b"* OK IMAP4 ready\r\n"

    def test_log_that_cannot_be_opened(self, site: Site) -> None:
        site.configure(main="error_log missing/error.log;")
        path = site.directory / "missing/error.log"
        assert self.failed(site) == (
            f'mailproxy: [emerg] open() "{path}" failed'
            " (2: No such file or directory)\n"
        )

    def test_pid_file_that_cannot_be_written(self, site: Site) -> None:
        text = (site.directory / "nginx.conf").read_text()
        (site.directory / "nginx.conf").write_text(
            text.replace("pid the.pid", "pid missing/the.pid")
        )
        path = site.directory / "missing/the.pid"
        line = f'open() "{path}" failed (2: No such file or directory)'
        assert self.failed(site) == f"mailproxy: [emerg] {line}\n"
        assert site.log("emerg") == [line]

    def test_workers_that_cannot_work(self, site: Site) -> None:
        site.configure(main="working_directory /missing;")
        self.failed(site, code=2)
        assert site.log("alert")[0] == (
            'chdir("/missing") failed (2: No such file or directory)'
        )
        assert any(
            line.endswith("exited with fatal code 2 and cannot be respawned")
            for line in site.log("alert")
        )
        assert site.log()[-2:] == ["no worker process could start, exiting", "exit"]
        assert not site.pid_path.exists()
