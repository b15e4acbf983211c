"""Health checks of real processes: what stops gets no sessions, until it is back."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGHUP, SIGKILL

import pytest

from tests.fakes import FakeAuth, FakeImap, _Handler
from tests.process.site import Client, Site, children, title
from tests.process.test_alone import open_files
from tests.process.test_secret_files import memory_has
from tests.processes import free_port
from tests.tls import Certificates

INTERVAL = 0.2
TIMEOUT = 1.0
SLACK = 2.0
"""Seconds that a busy machine takes longer."""


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    """Lets everybody in, and names no backend."""
    with FakeAuth(lambda _request: {"Auth-Status": "OK"}) as auth:
        yield auth


def configure(
    site: Site, auth: FakeAuth, *ports: int, check: str = "", more: str = ""
) -> None:
    servers = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)
    site.configure(
        f"upstream pool {{ {servers} health_check interval=200ms timeout=1s {check}; }}"
        f"{more}"
        "server { listen 127.0.0.1:PORT; protocol imap; proxy_pass pool; }",
        AUTH=auth.port,
    )


def managers(site: Site) -> list[int]:
    """The manager processes."""
    found = children(site.pid)
    return [pid for pid in found if title(pid).endswith(": manager process")]


def manager(site: Site) -> int:
    """The only one."""
    (found,) = managers(site)
    return found


def log_in(site: Site) -> bytes:
    with Client(site.port) as client:
        return client.log_in()


def unhealthy(port: int, reason: str = "") -> str:
    return f'peer 127.0.0.1:{port} of upstream "pool" is unhealthy: {reason}'


def healthy(port: int) -> str:
    return f'peer 127.0.0.1:{port} of upstream "pool" is healthy'


@pytest.mark.proves("health_check", "interval=", "timeout=")
def test_a_backend_that_stops_gets_no_sessions_until_it_returns(
    site: Site, auth: FakeAuth
) -> None:
    port = free_port()
    with FakeImap() as stays:
        with FakeImap(port):
            configure(site, auth, port, stays.port)
            site.start()
            assert log_in(site).startswith(b"a OK")
            assert log_in(site).startswith(b"a OK")
        stopped = time.monotonic()
        site.wait_for_line(unhealthy(port))
        assert time.monotonic() - stopped < INTERVAL + TIMEOUT + SLACK
        site.forget_log()
        for _ in range(8):
            assert log_in(site).startswith(b"a OK")
        assert site.log("error") == []  # nobody has tried it
        with FakeImap(port) as back:
            site.wait_for_line(healthy(port))
            while not any(line.startswith(b"a LOGIN") for line in lines(back)):
                assert log_in(site).startswith(b"a OK")


def test_a_backend_that_hangs_gets_no_sessions_either(
    site: Site, auth: FakeAuth
) -> None:
    class MayHang(FakeImap):
        hangs = False

        def let_in(self, connection: _Handler) -> bool:
            if self.hangs:
                connection.rfile.read()  # to the end
                return False
            return super().let_in(connection)

    with MayHang() as hangs, FakeImap() as works:
        configure(site, auth, hangs.port, works.port)
        site.start()
        assert log_in(site).startswith(b"a OK")
        hangs.hangs = True
        stopped = time.monotonic()
        site.wait_for_line(
            unhealthy(hangs.port, "timed out while waiting for the greeting")
        )
        assert time.monotonic() - stopped < INTERVAL + TIMEOUT + SLACK
        site.forget_log()
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert site.log("error") == []


def lines(backend: FakeImap) -> list[bytes]:
    """What a backend has been told since the last time."""
    found = []
    while not backend.lines.empty():
        found.append(backend.lines.get())
    return found


def test_a_probe_greets_and_says_goodbye(site: Site, auth: FakeAuth) -> None:
    with FakeImap() as backend:
        configure(site, auth, backend.port)
        site.start()
        assert [backend.lines.get() for _ in range(3)] == [b"h9 LOGOUT"] * 3


def test_relayed_sessions_stay(site: Site, auth: FakeAuth) -> None:
    class MayRefuse(FakeImap):
        refuses = False

        def let_in(self, connection: _Handler) -> bool:
            if self.refuses:
                connection.wfile.write(b"* BYE not now\r\n")
                return False
            return super().let_in(connection)

    with MayRefuse() as backend:
        configure(site, auth, backend.port)
        site.start()
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")
            backend.refuses = True
            site.wait_for_line(
                unhealthy(backend.port, 'invalid greeting: "* BYE not now"')
            )
            client.ping()
            with Client(site.port) as another:
                another.socket.sendall(b"a LOGIN user secret\r\n")
                assert another.line() == b"* BAD internal server error\r\n"
            client.ping()
        site.wait_for_line("no live upstreams while connecting to upstream")


@pytest.mark.proves("health_check", "mandatory")
def test_a_backend_is_not_used_before_it_has_passed(site: Site, auth: FakeAuth) -> None:
    port = free_port()
    with FakeImap() as works:
        configure(site, auth, port, works.port, check="mandatory")
        site.start()
        site.wait_for_line(unhealthy(port))
        site.wait_for_line(healthy(works.port))
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert not any("connect() failed" in line for line in site.log("error"))


def test_what_is_known_outlives_a_reload(site: Site, auth: FakeAuth) -> None:
    """The new manager begins with the board, and probes only later."""
    port = free_port()
    with FakeImap() as works:
        configure(site, auth, port, works.port)
        site.start()
        site.wait_for_line(unhealthy(port))
        site.wait_for(lambda: log_in(site).startswith(b"a OK"), "a login")
        configure(site, auth, port, works.port, check="fails=1000 passes=2")
        site.forget_log()
        before = manager(site)
        site.signal(SIGHUP)
        site.wait_for_line("exited with code 0", count=3)
        assert manager(site) != before
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert site.log("error") == []
        assert not any("is unhealthy" in line for line in site.log())
        with FakeImap(port):
            site.wait_for_line(healthy(port))


def test_only_the_manager_of_the_new_configuration_probes(
    site: Site, auth: FakeAuth
) -> None:
    """Although the old one stays as long as an old session."""
    port = free_port()
    with FakeImap() as works:
        with FakeImap(port):
            configure(site, auth, port, works.port)
            site.start()
            with Client(site.port) as client:
                assert client.log_in().startswith(b"a OK")
                site.signal(SIGHUP)
                site.wait_for_line("health checks end, there is a new configuration")
                assert len(managers(site)) == 2
                lines(works)
        site.wait_for_line(unhealthy(port))
        with FakeImap(port):
            site.wait_for_line(healthy(port))
        assert sum(unhealthy(port) in line for line in site.log()) == 1
        assert sum(healthy(port) in line for line in site.log()) == 1


def test_what_is_known_outlives_the_manager(site: Site, auth: FakeAuth) -> None:
    port = free_port()
    with FakeImap() as works:
        configure(site, auth, port, works.port, check="mandatory")
        site.start()
        site.wait_for_line(unhealthy(port))
        site.wait_for_line(healthy(works.port))
        site.forget_log()
        killed = manager(site)
        site.signal(SIGKILL, killed)
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")  # while there is none
        site.wait_for_line("exited on signal 9")
        site.wait_for(lambda: managers(site) not in ([], [killed]), "another manager")
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert not any("is healthy" in line for line in site.log())
        assert not any("connect() failed" in line for line in site.log("error"))


class TlsImap(FakeImap):
    """A mail server with TLS from the first octet.

    Attributes:
      context: its certificate.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.context = context

    def serve(self, connection: _Handler) -> None:
        try:
            tls = self.context.wrap_socket(connection.connection, server_side=True)
        except OSError:  # it does not believe us
            return
        with tls:
            connection.rfile = tls.makefile("rb")
            connection.wfile = tls.makefile("wb", 0)  # type: ignore[assignment]
            super().serve(connection)


def server_context(certificates: Certificates, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(
        certificates.path(f"{name}.pem"), certificates.path(f"{name}.key")
    )
    return context


def test_sessions_avoid_a_backend_whose_certificate_expires(
    site: Site, auth: FakeAuth
) -> None:
    certificates = Certificates(site.directory)
    now = datetime.now(UTC)
    certificates.issue("old", begins=now - timedelta(9), ends=now - timedelta(1))
    good = server_context(certificates, "ec")
    with TlsImap(good) as first, TlsImap(good) as second:
        configure(
            site,
            auth,
            first.port,
            second.port,
            more=f"""
                proxy_ssl on;
                proxy_ssl_name localhost;
                proxy_ssl_trusted_certificate {certificates.path("ca.pem")};
                """,
        )
        site.start()
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        first.context = server_context(certificates, "old")
        reason = "upstream SSL certificate verify error: (10:certificate has expired)"
        site.wait_for_line(unhealthy(first.port, reason))
        site.forget_log()
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert site.log("error") == []
        first.context = good
        site.wait_for_line(healthy(first.port))


class KnowsOne(FakeImap):
    """A mail server that knows who may log in.

    Attributes:
      password: that of everybody.
    """

    password = b"watchdog's own secret"

    def let_in(self, connection: _Handler) -> bool:
        connection.wfile.write(self.greeting)
        while line := self.read(connection):
            tag, _, command = line.partition(b" ")
            if command == b"CAPABILITY":
                connection.wfile.write(b"* CAPABILITY IMAP4rev1\r\n%s OK\r\n" % tag)
            elif command.startswith(b"LOGIN {"):
                connection.wfile.write(b"+\r\n")
                user = self.read(connection).split()[0]
                connection.wfile.write(b"+\r\n")
                known = self.read(connection) == self.password
                answer = b"OK" if known else b"NO [AUTHENTICATIONFAILED]"
                connection.wfile.write(b"%s %s %s\r\n" % (tag, answer, user))
            else:
                connection.wfile.write(b"%s OK logged in\r\n" % tag)
                return True
        return False


@pytest.fixture
def login_file(site: Site) -> Path:
    path = site.directory / "watchdog"
    path.write_bytes(b"watchdog:%s\n" % KnowsOne.password)
    path.chmod(0o600)
    return path


@pytest.mark.proves("health_check", "type=", "login_file=")
def test_sessions_avoid_a_backend_that_refuses_the_login(
    site: Site, auth: FakeAuth, login_file: Path
) -> None:
    with KnowsOne() as first, KnowsOne() as second:
        check = f"type=login login_file={login_file}"
        configure(site, auth, first.port, second.port, check=check)
        site.start()
        site.wait_for(lambda: b"h9 LOGOUT" in lines(first), "a probe that has passed")
        first.password = b"another one"
        site.wait_for_line(unhealthy(first.port, 'upstream refused the login: "..."'))
        site.forget_log()
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert site.log("error") == []
        first.password = KnowsOne.password
        site.wait_for_line(healthy(first.port))
    assert KnowsOne.password.decode() not in site.log_path.read_text()
    assert "watchdog" not in site.log_path.read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may look into processes")
def test_only_the_manager_knows_the_login(
    site: Site, auth: FakeAuth, login_file: Path
) -> None:
    with KnowsOne() as backend:
        check = f"type=login login_file={login_file}"
        configure(site, auth, backend.port, check=check)
        text = (site.directory / "nginx.conf").read_text()
        (site.directory / "nginx.conf").write_text(f"user nobody nogroup; {text}")
        master = site.start()
        site.wait_for(lambda: b"h9 LOGOUT" in lines(backend), "a probe that has passed")
        for count in range(3):
            knows, (first, second) = manager(site), site.workers
            assert memory_has(knows, KnowsOne.password), count
            for pid in (master, first, second):
                assert not memory_has(pid, KnowsOne.password), count
            for pid in (knows, first, second):
                assert open_files(pid, login_file) == 0, count
            site.wait_for(lambda: open_files(master, login_file) == 1, "one file")
            site.forget_log()
            site.signal(SIGHUP)
            site.wait_for_line("exited with code 0", count=3)
        # The master has it open, so another manager can read it, whatever became of it.
        login_file.unlink()
        killed = manager(site)
        site.forget_log()
        site.signal(SIGKILL, killed)
        site.wait_for_line("exited on signal 9")
        site.wait_for(lambda: managers(site) not in ([], [killed]), "another manager")
        lines(backend)
        site.wait_for(lambda: b"h9 LOGOUT" in lines(backend), "a probe that has passed")
        assert memory_has(manager(site), KnowsOne.password)
        assert not any("unhealthy" in line for line in site.log())


@pytest.mark.parametrize(
    "content", [b"watchdog\n", b":secret\n", b"watchdog:\n", b"\n"]
)
def test_without_a_login_there_is_no_start(
    content: bytes, site: Site, auth: FakeAuth, login_file: Path
) -> None:
    login_file.write_bytes(content)
    configure(site, auth, 9, check=f"type=login login_file={login_file}")
    with site.foreground() as process:
        assert process.wait() != 0
    what = "secret" if content == b"\n" else "user:password"
    site.wait_for_line(f'there is no {what} in the first line of "{login_file}"')
    site.wait_for_line("manager process does not start")


def test_a_reload_without_a_login_changes_nothing(
    site: Site, auth: FakeAuth, login_file: Path
) -> None:
    with KnowsOne() as backend:
        configure(site, auth, backend.port, check=f"type=login login_file={login_file}")
        site.start()
        site.wait_for(lambda: b"h9 LOGOUT" in lines(backend), "a probe that has passed")
        login_file.write_bytes(b"nobody\n")
        before = manager(site)
        site.signal(SIGHUP)
        site.wait_for_line("new manager process does not start, nothing is changed")
        assert manager(site) == before
        assert log_in(site).startswith(b"a OK")


def test_a_group_that_an_auth_server_names_is_probed(site: Site) -> None:
    port = free_port()
    with FakeImap() as works:
        answer = {"Auth-Status": "OK", "Auth-Server": "pool"}
        with FakeAuth(lambda _request: answer) as auth:
            site.configure(
                f"upstream pool {{ server 127.0.0.1:{port}; server 127.0.0.1:{works.port};"
                " health_check interval=200ms protocol=imap; }"
                "server { listen 127.0.0.1:PORT; protocol imap; }",
                AUTH=auth.port,
            )
            site.start()
            site.wait_for_line(unhealthy(port))
            site.forget_log()
            for _ in range(4):
                assert log_in(site).startswith(b"a OK")
            assert site.log("error") == []
