"""What goes wrong around a running master, and that clients are served all the same."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from signal import SIGHUP

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.tls import Certificates


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        yield auth


def test_no_descriptors_left(site: Site, auth: FakeAuth) -> None:
    """Who comes too late waits, and is served when others have gone."""
    site.configure(main="worker_processes 1; worker_rlimit_nofile 24;", AUTH=auth.port)
    site.start()
    connections = [
        socket.create_connection(("127.0.0.1", site.port)) for _ in range(24)
    ]
    site.wait_for(
        lambda: "accept4() failed (24: Too many open files)" in site.log("crit"),
        "a line in the log",
    )
    for connection in connections:
        connection.close()
    with Client(site.port) as client:
        assert client.log_in().startswith(b"a OK")
    assert len(site.workers) == 1
    assert site.log("alert") == []


def test_no_descriptors_left_for_a_login(site: Site) -> None:
    """Who logs in is told that it is not their fault; nothing is left open."""
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        main = "worker_processes 1; worker_rlimit_nofile 24;"
        server = "server { listen 127.0.0.1:PORT; protocol imap; }"
        site.configure(f"auth_http_keepalive on; {server}", main=main, AUTH=auth.port)
        site.start()
        (worker,) = site.workers

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{worker}/fd"))

        def log_in_too_late(port: int, action: str, idle: int) -> None:
            """Log in when nothing is left; `port` cannot be connected to."""
            site.forget_log()
            with ExitStack() as connections:
                client = connections.enter_context(Client(site.port))
                for _ in range(24):
                    connections.enter_context(
                        socket.create_connection(("127.0.0.1", site.port))
                    )
                site.wait_for_line("accept4() failed (24: Too many open files)")
                client.socket.sendall(b"a LOGIN user secret\r\n")
                assert client.line() == b"* BAD internal server error\r\n"
                assert client.closed
            site.wait_for(lambda: descriptors() == idle, "all to be closed")
            (line,) = [line for line in site.log("crit") if "accept4" not in line]
            assert (
                f" connect() to 127.0.0.1:{port} failed (24: Too many open files)"
                f" while {action}, client: 127.0.0.1, " in line
            )

        with Client(site.port):
            idle = descriptors() - 1
        log_in_too_late(auth.port, "in http auth state", idle)
        assert auth.requests == []
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")
        # Now a connection to the auth server is kept.
        site.wait_for(lambda: descriptors() == idle + 1, "the session to end")
        log_in_too_late(backend.port, "connecting to upstream", idle + 1)
        assert len(auth.requests) == 2
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")


@pytest.mark.proves("worker_connections")
def test_no_connections_left(site: Site) -> None:
    """Who comes too late is turned away, and nobody else notices."""
    path = site.directory / "nginx.conf"
    site.configure(main="worker_processes 1;")
    path.write_text(
        path.read_text().replace("events {", "events { worker_connections 8;")
    )
    site.start()
    with Client(site.port) as first:
        rest = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(10)]
        site.wait_for_line("8 worker_connections are not enough")
        assert rest[-1].recv(100) == b""
        assert first.ask(b"a NOOP").startswith(b"a OK")
        for connection in rest:
            connection.close()
    site.wait_for(lambda: _is_served(site.port), "a new client to be served")


def _is_served(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port)) as client:
        return client.recv(100) != b""


class TestExpiredCertificate:
    """It is used all the same, and whoever looks is told."""

    TEXT = "has expired on 2001-02-03"
    REMEDY = "clients will refuse it: renew it, then reload\n"

    @pytest.fixture
    def site(self, site: Site) -> Site:
        files = Certificates(site.directory)
        files.issue("old", ends=datetime(2001, 2, 3, tzinfo=UTC))
        return site

    def configure(self, site: Site, name: str) -> None:
        site.configure(
            "ssl_certificate NAME.pem; ssl_certificate_key NAME.key;"
            "server { listen 127.0.0.1:PORT ssl; protocol imap; }"
            "server { listen 127.0.0.2:PORT ssl; protocol pop3; }",
            main="worker_processes 1;",
            NAME=name,
        )

    def shown(self, site: Site) -> bytes | None:
        """The certificate that clients see."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", site.port)) as client,
            context.wrap_socket(client) as tls,
        ):
            assert tls.recv(100) == b"* OK IMAP4 ready\r\n"
            return tls.getpeercert(binary_form=True)

    def is_old(self, site: Site) -> bool:
        text = (site.directory / "old.pem").read_text()
        return self.shown(site) == ssl.PEM_cert_to_DER_cert(text)

    def test_at_a_start(self, site: Site) -> None:
        self.configure(site, "old")
        line = f'[warn] certificate "{site.directory / "old.pem"}" {self.TEXT}\n'
        tested = site.call("-tq")
        assert tested.returncode == 0
        said, *explanation = tested.stderr.splitlines(keepends=True)
        assert said == f"mailproxy: {line}"
        assert explanation[0] == f"  in {site.directory / 'nginx.conf'}:10\n"
        assert explanation[-1].endswith(f"^^^^^^^ {self.REMEDY}")
        started = site.call()
        assert started.returncode == 0
        assert started.stderr == tested.stderr
        assert self.TEXT in (site.directory / "startup.log").read_text()
        site.wait_for(site.has_pid, "pid file")
        assert self.is_old(site)

    def test_at_a_reload(self, site: Site) -> None:
        self.configure(site, "ec")
        site.start()
        assert not self.is_old(site)
        self.configure(site, "old")
        site.signal(SIGHUP)
        site.wait_for_line("exited with code 0")
        assert self.is_old(site)
        assert site.log("warn") == [
            f'certificate "{site.directory / "old.pem"}" {self.TEXT}',
            f"the line before is about {site.directory / 'nginx.conf'}:10",
        ]


def test_full_disk(site: Site, auth: FakeAuth) -> None:
    """Lines are lost, clients are not."""
    path = site.directory / "nginx.conf"
    site.configure(AUTH=auth.port)
    path.write_text(
        path.read_text().replace("error_log error.log", "error_log /dev/full")
    )
    pid = site.start()
    with Client(site.port) as client:
        assert client.log_in().startswith(b"a OK")
        client.ping()
    assert site.call("-s", "stop").returncode == 0
    assert site.wait_for_end(pid) == 0
