"""A real master whose configuration cannot be read at once, and one without resources."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGTERM, SIGUSR1
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives import serialization

from mailproxy.process.reader import NAME
from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site, children, title
from tests.process.test_systemd import Manager
from tests.processes import PATIENCE, answers, as_user, need, need_python_for_all
from tests.tls import Certificates

UNREAD = "the configuration could not be read, nothing is changed"
NO_WORKERS = "new worker processes do not start, nothing is changed"
ALONE = "master_process off;"


class Passwords:
    """A FIFO with the password of the key; who reads it waits for `tell`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.path = site.directory / "passwords"
        os.mkfifo(self.path)
        self.files = Certificates(site.directory)
        key = site.directory / "ec.key"
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        self.writing = -1

    def configure(self, main: str = "") -> None:
        """Ask for the FIFO."""
        self.site.configure(
            "ssl_password_file passwords;"
            "ssl_certificate ec.pem; ssl_certificate_key ec.key;"
            "server { listen 127.0.0.1:PORT ssl; protocol imap; }",
            main=main,
        )

    def wait_for_reader(self) -> None:
        """Wait until it has been opened; then its reader waits for us."""

        def opened() -> bool:
            self.writing = _open_for_writing(self.path)
            return self.writing >= 0

        self.site.wait_for(opened, "a reader of the FIFO")

    def tell(self, password: bytes = b"secret") -> None:
        """Write the password."""
        os.write(self.writing, password + b"\n")
        self.close()

    def close(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


@pytest.fixture
def passwords(site: Site) -> Iterator[Passwords]:
    passwords = Passwords(site)
    yield passwords
    passwords.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


def speaks_tls(site: Site) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", site.port), PATIENCE) as client,
        context.wrap_socket(client) as tls,
    ):
        return tls.recv(100) == b"* OK IMAP4 ready\r\n"


@pytest.mark.parametrize("main", ["", ALONE])
class TestSlowFile:
    """A FIFO that is written to late; with a master and without one."""

    def begin(self, site: Site, passwords: Passwords, main: str) -> int:
        """Begin a reload that has to wait; returns the pid of the program."""
        site.configure(main=main)
        pid = site.start()
        passwords.configure(main)
        site.signal(SIGHUP)
        passwords.wait_for_reader()
        return pid

    def test_its_content_is_used(
        self, site: Site, passwords: Passwords, main: str
    ) -> None:
        self.begin(site, passwords, main)
        with Client(site.port) as client:
            assert client.ask(b"a NOOP").startswith(b"a OK")
        passwords.tell()
        site.wait_for_line('using the "epoll" event method', 2)
        site.wait_for(lambda: _speaks_tls_now(site), "the new configuration")
        site.no_complaints()

    def test_its_content_is_wrong(
        self, site: Site, passwords: Passwords, main: str
    ) -> None:
        self.begin(site, passwords, main)
        passwords.tell(b"wrong")
        site.wait_for(lambda: bool(site.log("emerg")), "an error")
        site.wait_for_line("the line before is about")
        line, place = site.log("emerg")
        assert line.startswith('cannot load certificate key "')
        assert place.startswith(f"the line before is about {site.directory}")
        with Client(site.port) as client:
            assert client.ask(b"a NOOP").startswith(b"a OK")

    @pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
    def test_a_stop_is_obeyed_meanwhile(
        self, site: Site, passwords: Passwords, main: str, number: int
    ) -> None:
        pid = self.begin(site, passwords, main)
        os.kill(pid, number)
        assert site.wait_for_end(pid) == 0
        assert not answers(site.port)
        assert not site.pid_path.exists()
        site.wait_for(lambda: not _is_read(passwords), "the end of the reader")
        site.no_complaints()

    def test_a_second_signal_leads_to_a_second_reload(
        self, site: Site, passwords: Passwords, main: str
    ) -> None:
        self.begin(site, passwords, main)
        site.signal(SIGHUP)
        passwords.tell(b"wrong")
        site.wait_for_line("cannot load certificate key")
        passwords.wait_for_reader()
        passwords.tell()
        site.wait_for(lambda: _speaks_tls_now(site), "the second try")
        lines = site.log("emerg")
        assert len([each for each in lines if "cannot load" in each]) == 1

    def test_logs_are_reopened_meanwhile(
        self, site: Site, passwords: Passwords, main: str
    ) -> None:
        self.begin(site, passwords, main)
        site.log_path.rename(site.directory / "rotated")
        site.signal(SIGUSR1)
        site.wait_for(site.log_path.exists, "a new log")

    def test_clients_do_not_notice(
        self, site: Site, passwords: Passwords, main: str
    ) -> None:
        with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
            site.configure(main=main, AUTH=auth.port)
            site.start()
            with Client(site.port) as client:
                passwords.configure(main)
                site.signal(SIGHUP)
                passwords.wait_for_reader()
                assert client.log_in().startswith(b"a OK")
                client.ping()
            # What is closed here is closed, though the reader was forked with it.
            site.wait_for_line("proxied session done")
            with socket.create_connection(("127.0.0.1", site.port)) as client_socket:
                client_socket.settimeout(PATIENCE)
                assert client_socket.recv(100) == b"* OK IMAP4 ready\r\n"


def test_connections_that_a_reader_inherits_are_closed_at_their_end(
    site: Site, passwords: Passwords
) -> None:
    site.configure(main=ALONE)
    site.start()
    with Client(site.port) as client:
        passwords.configure(ALONE)
        site.signal(SIGHUP)
        passwords.wait_for_reader()
        assert client.ask(b"a LOGOUT").startswith(b"a OK")
        assert client.closed


def test_the_watchdog_is_fed_meanwhile(
    site: Site, passwords: Passwords, manager: Manager
) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "800000"}
    with site.foreground(environment) as process:
        assert "READY" in manager.hear(but="WATCHDOG")
        passwords.configure()
        site.signal(SIGHUP)
        passwords.wait_for_reader()
        assert "RELOADING" in manager.hear(but="WATCHDOG")
        for _ in range(5):
            assert manager.hear() == {"WATCHDOG": "1"}
        passwords.tell()
        assert "READY" in manager.hear(but="WATCHDOG")
        assert speaks_tls(site)
        site.signal(SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_worker_that_starts_meanwhile_does_not_get_what_is_read(
    site: Site, passwords: Passwords
) -> None:
    pid = site.start()
    passwords.configure()
    site.signal(SIGHUP)
    passwords.wait_for_reader()
    assert any("memfd:configuration" in link for link in _links(pid))
    old, other = site.workers
    os.kill(old, 9)
    site.wait_for_line("start worker process ", 3)
    site.wait_for(lambda: len(site.workers) == 2, "a new worker")
    (new,) = set(site.workers) - {other}
    site.wait_for(
        lambda: not any("memfd" in link for link in _links(new)), "the sheet's end"
    )
    passwords.tell()
    site.wait_for_line('using the "epoll" event method', 2)
    site.wait_for(lambda: not any("memfd" in link for link in _links(pid)), "its end")


def test_reader_that_is_killed_changes_nothing(
    site: Site, passwords: Passwords
) -> None:
    pid = site.start()
    before = site.workers
    passwords.configure()
    site.signal(SIGHUP)
    passwords.wait_for_reader()
    (reader,) = set(children(pid)) - set(before)
    assert title(reader) == f"mailproxy: {NAME}"
    os.kill(reader, 9)
    site.wait_for_line(UNREAD)
    assert site.log("alert") == [f"{NAME} {reader} exited on signal 9"]
    assert site.workers == before
    passwords.close()
    site.configure()
    site.signal(SIGHUP)
    site.wait_for_line("exited with code 0", 2)


class TestDescriptors:
    """Of the master, only so many are left."""

    @contextmanager
    def left(self, pid: int, count: int) -> Iterator[None]:
        """Have the process find `count` free numbers, and no more."""
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        limit = 0
        while sum(number not in used for number in range(limit)) < count:
            limit += 1
        limit = max(limit, max(used) + 1) if count == 0 else limit
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        yield
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    @pytest.mark.parametrize(
        ("count", "what"),
        [
            (0, UNREAD),
            (2, NO_WORKERS),  # one for the log, and one that is no pair
            (3, NO_WORKERS),  # of two workers, one can be started
            (4, NO_WORKERS),  # two can be, but not work
        ],
    )
    def test_old_workers_stay(self, site: Site, count: int, what: str) -> None:
        pid = site.start()
        before = site.workers
        with self.left(pid, count):
            site.signal(SIGHUP)
            site.wait_for_line(what)
        site.wait_for(lambda: site.workers == before, "the old workers alone")
        new = [
            line.rpartition(" ")[2]
            for line in site.log()
            if re.search(r"start worker process \d+$", line)
        ][len(before) :]
        for each in new:  # what is said of them is said before the log is emptied
            site.wait_for_line(f"worker process {each} exited")
        with Client(site.port) as client:
            assert client.ask(b"a NOOP").startswith(b"a OK")
        assert any("Too many open files" in line for line in site.log())
        assert not any("this is a bug" in line for line in site.log())
        site.forget_log()
        site.signal(SIGHUP)
        site.wait_for_line("exited with code 0", 2)
        assert len(site.workers) == 2
        assert not set(site.workers) & set(before)
        site.no_complaints()


class TestProcesses:
    """Of the user, only so many may run (RLIMIT_NPROC, as pids.max does it)."""

    @pytest.fixture
    def site(self, site: Site) -> Iterator[Site]:
        """In a directory that every user can enter; pytest's are closed at times."""
        with TemporaryDirectory() as directory:
            place = Site(Path(directory), site.port)
            place.configure()
            yield place

    @pytest.fixture
    def user(self) -> int:
        """Somebody who has no other processes."""
        return random.randrange(1 << 30, 1 << 31)

    @pytest.fixture
    def manager(self, site: Site) -> Iterator[Manager]:
        path = site.directory / "notify"
        manager = Manager(path)
        path.chmod(0o777)
        with manager.socket:
            yield manager

    def limit(self, process: subprocess.Popen[str], user: int, count: int) -> None:
        """Change the limit of a process; only its own user may do that to others."""

        def change() -> None:
            _, most = resource.prlimit(process.pid, resource.RLIMIT_NPROC)
            resource.prlimit(process.pid, resource.RLIMIT_NPROC, (count, most))

        as_user(user, user, change)

    @pytest.fixture
    def process(
        self, site: Site, manager: Manager, user: int
    ) -> Iterator[subprocess.Popen[str]]:
        need(os.geteuid() == 0, "root, to be another user")
        need_python_for_all()
        site.directory.chmod(0o777)
        with subprocess.Popen(
            site.command("-g", "daemon off;"),
            env={**os.environ, **manager.environment},
            user=user,
            group=user,
            extra_groups=(),
            text=True,
        ) as process:
            yield process
            process.kill()

    @pytest.mark.parametrize(("count", "what"), [(3, UNREAD), (4, NO_WORKERS)])
    def test_old_workers_stay(
        self,
        site: Site,
        manager: Manager,
        process: subprocess.Popen[str],
        user: int,
        count: int,
        what: str,
    ) -> None:
        assert "READY" in manager.hear()
        before = site.workers
        assert len(before) == 2
        self.limit(process, user, count)
        site.signal(SIGHUP)
        assert "RELOADING" in manager.hear()
        assert "READY" in manager.hear()
        assert what in site.log("emerg")
        assert all(
            "(11: Resource temporarily unavailable)" in line
            for line in site.log("alert")
        )
        site.wait_for(lambda: site.workers == before, "the old workers alone")
        with Client(site.port) as client:
            assert client.ask(b"a NOOP").startswith(b"a OK")
        self.limit(process, user, resource.prlimit(0, resource.RLIMIT_NPROC)[1])
        site.signal(SIGHUP)
        site.wait_for_line("exited with code 0", 2)
        assert not set(site.workers) & set(before)


def _speaks_tls_now(site: Site) -> bool:
    try:
        return speaks_tls(site)
    except (ssl.SSLError, OSError):
        return False


def _links(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    links = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return links


def _is_read(passwords: Passwords) -> bool:
    """Whether somebody has the FIFO open for reading."""
    passwords.close()
    passwords.writing = _open_for_writing(passwords.path)
    return passwords.writing >= 0


def _open_for_writing(fifo: Path) -> int:
    """A descriptor to write; -1 if nobody reads."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return -1
