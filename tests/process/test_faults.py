"""What goes wrong around a running master, and that clients are served all the same."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site


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
