"""Auth servers that serve one connection at a time, the plainest there are.

While we hold a connection to one of them, nobody else is served: not our other
connections, and not those of other workers.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import pytest

from mailproxy.net.idle import STALL
from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.processes import Process, free_port, need, need_program

LOGINS = 8

PYTHON = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Auth-Status", "OK")
        self.send_header("Auth-Server", "127.0.0.1")
        self.send_header("Auth-Port", sys.argv[2])
        self.send_header("Content-Length", "0")
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""The example of http.server's manual, with connections that stay open."""

PERL = """
use strict;
use HTTP::Daemon;
use HTTP::Response;
my ($port, $backend) = @ARGV;
my $daemon = HTTP::Daemon->new(
    LocalAddr => '127.0.0.1', LocalPort => $port, ReuseAddr => 1) or die;
while (my $connection = $daemon->accept) {
    while (my $request = $connection->get_request) {
        $connection->send_response(HTTP::Response->new(200, 'OK', [
            'Auth-Status' => 'OK', 'Auth-Server' => '127.0.0.1',
            'Auth-Port' => $backend, 'Content-Length' => 0]));
    }
    $connection->close;
}
"""
"""The loop of HTTP::Daemon's manual."""


def interpreter(language: str) -> str:
    """The program that runs a script, with what the script needs."""
    if language != PERL:
        return sys.executable
    perl = need_program("perl")
    tried = subprocess.run([perl, "-MHTTP::Daemon", "-e", "1"], check=False)
    need(tried.returncode == 0, "Perl's HTTP::Daemon")
    return perl


@contextmanager
def blocking_auth(language: str, backend: int, directory: Path) -> Iterator[int]:
    """An auth server that lets everyone in to `backend`; returns its port."""
    directory.mkdir()
    script = directory / "script"
    script.write_text(language)
    port = free_port()
    command = [interpreter(language), str(script), str(port), str(backend)]
    process = Process(command, directory)
    try:
        process.wait_for_port(port)
        yield port
    finally:
        process.stop()


@pytest.mark.proves("auth_http_keepalive", "auto")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("language", [PYTHON, PERL], ids=["python", "perl"])
def test_logins_at_once_are_all_served(
    language: str, workers: int, site: Site, tmp_path: Path
) -> None:
    with (
        FakeImap() as backend,
        blocking_auth(language, backend.port, tmp_path / "auth") as auth,
        ExitStack() as leaving,
    ):
        site.configure(main=f"worker_processes {workers};", AUTH=auth)
        site.start()
        for _ in range(2):
            clients = [leaving.enter_context(Client(site.port)) for _ in range(LOGINS)]
            for client in clients:
                client.socket.sendall(b"a LOGIN user secret\r\n")
            assert [client.line() for client in clients] == [b"a OK logged in\r\n"] * 8
    site.no_complaints()


MANY = 200
WITH_ROOM = PYTHON.replace(
    "class Handler",
    "HTTPServer.request_queue_size = 1024\n\nclass Handler",
).replace(
    "        self.end_headers()\n",
    """        self.end_headers()
        self.answered = time.monotonic()

    def finish(self):
        if hasattr(self, "answered"):
            with open(sys.argv[0] + ".held", "a") as held:
                print(time.monotonic() - self.answered, file=held)
        super().finish()

import time
""",
)
"""With a queue that no burst overflows: the kernel would repeat connect() only after
1, 3, 7 ... seconds, for whatever proxy. It notes for how many seconds each connection
stayed open after the last answer."""


@pytest.mark.parametrize("workers", [1, 2])
def test_many_logins_at_once_are_all_served(
    workers: int, site: Site, tmp_path: Path
) -> None:
    """Those that wait must not wait for idle connections, each for its 20 ms."""
    with (
        FakeImap() as backend,
        blocking_auth(WITH_ROOM, backend.port, tmp_path / "auth") as auth,
        ExitStack() as leaving,
    ):
        site.configure(main=f"worker_processes {workers};", AUTH=auth)
        site.start()
        clients = [leaving.enter_context(Client(site.port)) for _ in range(MANY)]
        for client in clients:
            client.socket.sendall(b"a LOGIN user secret\r\n")
        assert [client.line() for client in clients] == [b"a OK logged in\r\n"] * MANY
        held = [float(n) for n in (tmp_path / "auth/script.held").read_text().split()]
        assert median(held) < STALL / 2
    site.no_complaints()


def test_a_worker_that_leaves_keeps_nothing(site: Site) -> None:
    """Its sessions go on, and do not need the auth server any more."""
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        site.configure(
            "auth_http_keepalive on; server { listen 127.0.0.1:PORT; protocol imap; }",
            main="worker_processes 1;",
            AUTH=auth.port,
        )
        site.start()
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")
            client.ping()
            (connection,) = auth.connections
            assert connection.fileno() != -1
            site.signal(signal.SIGHUP)
            site.wait_for(lambda: connection.fileno() == -1, "the connection to close")
            client.ping()
