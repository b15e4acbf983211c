"""Health checks of real processes: what stops gets no sessions, until it is back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from signal import SIGHUP, SIGKILL

import pytest

from tests.fakes import FakeAuth, FakeImap, _Handler
from tests.process.site import Client, Site, children, title
from tests.processes import free_port

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


def manager(site: Site) -> int:
    """The manager process."""
    (found,) = (
        pid for pid in children(site.pid) if title(pid).endswith(": manager process")
    )
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
        site.wait_for(
            lambda: any(
                title(pid).endswith("manager process") and pid != killed
                for pid in children(site.pid)
            ),
            "another manager",
        )
        for _ in range(4):
            assert log_in(site).startswith(b"a OK")
        assert not any("is healthy" in line for line in site.log())
        assert not any("connect() failed" in line for line in site.log("error"))


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
