"""A real worker, and everything that can be thrown at its ports, all at once.

Afterwards it is the same process, has no descriptor more than before, has found no
bug, and has room for as many clients as `worker_connections` says.
"""

import os
import random
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.play import certificate
from tests.processes import (
    PATIENCE,
    Process,
    free_port,
    mailproxy_command,
    running,
    wait_for,
)
from tests.security.world import make_reset

CONNECTIONS = 64
"""`worker_connections`."""
IDLE = 28
"""Descriptors of a worker that has nothing to do, and a few connections to the auth
server."""
PORTS = {
    "imap": "protocol imap;",
    "imaps": "protocol imap; starttls on;",
    "pop3": "protocol pop3; starttls on;",
    "smtp": "protocol smtp; starttls on; smtp_auth plain none; xclient off;",
    "proxied": "protocol imap;",
}
LISTEN = {"imaps": " ssl", "proxied": " proxy_protocol"}
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512)
JUNK = [
    *(
        b"",
        b"\0",
        b"\r\n",
        b"\n" * 100,
        b"x" * 9000,
        HELLO,
        HELLO[:7],
        bytes(range(256)),
    ),
    *(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"),
    *(
        b"PROXY TCP4 1.2",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"a STARTTLS\r\n" + HELLO,
    ),
    *(b"STLS\r\n" + HELLO, b"STARTTLS\r\nSTARTTLS\r\n", b"a LOGIN {99999999999}\r\n"),
    *(
        b"a LOGIN u p\r\n",
        b"USER u\r\nPASS p\r\n",
        b"AUTH PLAIN AHUAcA==\r\n",
        b"AUTH LOGIN\r\n",
    ),
    *(
        b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n",
        b"a AUTHENTICATE PLAIN\r\n*\r\n" * 50,
    ),
]


class Site:
    """A worker and its neighbours."""

    def __init__(self, process: Process, ports: dict[str, int], log: Path) -> None:
        self.process, self.ports, self.log = process, ports, log
        self.pid = process.popen.pid

    def descriptors(self) -> int:
        """How many the worker has, but for idle connections to the auth server."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def log_in(self, stack: ExitStack) -> socket.socket:
        """A client that is relayed to its mailbox."""
        client = socket.create_connection(("127.0.0.1", self.ports["imap"]), PATIENCE)
        stack.enter_context(closing(client))
        client.sendall(b"a LOGIN u p\r\nPING\r\n")
        received = b""
        while b"PONG\r\n" not in received:
            data = client.recv(4096)
            assert data, (received, self.process.story())
            received += data
        return client

    def check(self) -> None:
        """The worker is as it was."""
        wait_for(
            lambda: self.descriptors() <= IDLE, "descriptors to be closed", self.process
        )
        lines = self.log.read_text(errors="replace").splitlines()
        severe = ("[alert]", "[emerg]", "[crit]", "Traceback", "bug")
        found = [line for line in lines if any(word in line for word in severe)]
        assert not [line for line in found if "are not enough" not in line]
        with ExitStack() as stack:
            # Each needs two descriptors, and one more while it logs in.
            for _ in range((CONNECTIONS - len(PORTS) - IDLE) // 2):
                self.log_in(stack)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("storm")
    ports = {name: free_port() for name in PORTS}
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        servers = "".join(
            f"server {{ listen 127.0.0.1:{port}{LISTEN.get(name, '')}; {PORTS[name]} }}\n"
            for name, port in ports.items()
        )
        (directory / "nginx.conf").write_text(
            f"""
            error_log error.log info;
            pid the.pid;
            events {{ worker_connections {CONNECTIONS}; }}
            mail {{
                auth_http 127.0.0.1:{auth.port}/;
                ssl_certificate {certificate()};
                ssl_certificate_key {certificate()};
                timeout 60s;
                {servers}
            }}
            """
        )
        command = mailproxy_command(directory)
        with running(command, directory, ports["imap"]) as process:
            yield Site(process, ports, directory / "error.log")


def throw(site: Site, name: str, junk: bytes, *, reset: bool) -> None:
    """Connect, say something, and leave at once."""
    with socket.create_connection(("127.0.0.1", site.ports[name]), PATIENCE) as client:
        client.sendall(junk)
        if reset:
            make_reset(client)


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_clients_that_leave_before_they_are_looked_at(site: Site, reset: bool) -> None:
    """They wait in the queues of the ports while the worker stands still."""
    for _ in range(4):
        os.kill(site.pid, signal.SIGSTOP)
        try:
            for name in PORTS:
                for junk in random.sample(JUNK, 10):
                    throw(site, name, junk, reset=reset)
        finally:
            os.kill(site.pid, signal.SIGCONT)
        site.check()


def test_everything_at_once(site: Site) -> None:
    with ExitStack() as stack:
        clients = [site.log_in(stack) for _ in range(5)]
        for junk in JUNK:
            for name in PORTS:
                throw(site, name, junk, reset=bool(random.getrandbits(1)))
        for client in clients:  # nobody has heard of it
            client.sendall(b"PING\r\n")
            assert client.recv(100) == b"PONG\r\n"
    site.check()


def test_more_clients_than_there_is_room_for(site: Site) -> None:
    """Who comes too late is turned away; who leaves makes room."""
    with ExitStack() as stack:
        for _ in range(CONNECTIONS * 2):
            client = socket.create_connection(
                ("127.0.0.1", site.ports["imap"]), PATIENCE
            )
            stack.enter_context(closing(client))
            make_reset(client)
        wait_for(
            lambda: (
                "worker_connections are not enough"
                in site.log.read_text(errors="replace")
            ),
            "the end of the room",
            site.process,
        )
    site.check()


def test_handshakes_that_stop_halfway(site: Site) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name in ("imaps", "imaps", "imaps"):
        for room in (1, 100, 300, 517, 518, 600):
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing)
            with socket.create_connection(
                ("127.0.0.1", site.ports[name]), PATIENCE
            ) as client:
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                client.sendall(outgoing.read()[:room])
                make_reset(client)
    site.check()
