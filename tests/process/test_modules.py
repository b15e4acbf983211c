"""What a running proxy loads: nothing that only the demo or the tests need."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.fakes import FakeAuth, FakeImap, _Handler, granted
from tests.process.site import Client, Site
from tests.processes import PATIENCE, free_port, wait_for
from tests.tls import Certificates

TOLD = {"PYTHONPROFILEIMPORTTIME": "1"}
"""Has Python and its forks say on stderr what they import (python(1))."""
IMPORT = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)

NEEDLESS = ("mailproxy.demo", "trustme", "http.server", "urllib.request")
"""The demo, its certificates, and servers and clients that are not ours."""
ONLY_FOR_TLS = ("cryptography", "_cffi_backend", "email")
"""As slow to import as all the rest: where no certificate is read, it is not loaded."""
ONLY_TO_SERVE = (
    *("trio", "structlog", "asyncio"),
    *("mailproxy.mail.dialogues", "mailproxy.mail.commands", "mailproxy.mail.session"),
    *("mailproxy.net.engine", "mailproxy.net.wire", "mailproxy.process.start"),
)
"""The event loop, the log of a running proxy, and what sessions need."""
OPENSSL = ("ssl", "_ssl", "ctypes")

STDERR = "error_log stderr info;"
TLS = """
    ssl_certificate ec.pem; ssl_certificate_key ec.key;
    server { listen 127.0.0.1:PORT; protocol imap; starttls on; }
"""


def loaded(site: Site) -> list[str]:
    """The modules that were imported, by all processes of the site."""
    return IMPORT.findall((site.directory / "stderr").read_text(errors="replace"))


def among(names: list[str], unwanted: tuple[str, ...]) -> set[str]:
    """Which of `names` are unwanted packages, or inside them."""
    return {
        name
        for name in names
        if f"{name}.".startswith(tuple(f"{each}." for each in unwanted))
    }


def mapped(pid: int) -> set[str]:
    """The names of the shared objects in the memory of a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[-1]).name for line in lines}


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as server:
        yield server


def log_in(site: Site, *, starttls: bool) -> None:
    """Take a session through its login, to the relay."""
    with Client(site.port) as client:
        if starttls:
            assert client.ask(b"s STARTTLS").startswith(b"s OK")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client.file.close()
            client.socket = context.wrap_socket(client.socket)
            client.file = client.socket.makefile("rb")
        assert client.log_in() == b"a OK logged in\r\n"
        client.ping()


@pytest.mark.parametrize("tls", [False, True], ids=["clear text", "TLS"])
def test_a_running_proxy_loads_nothing_needless(
    site: Site, auth: FakeAuth, tls: bool
) -> None:
    Certificates(site.directory)
    site.configure(TLS if tls else "", main=STDERR, AUTH=auth.port)
    with site.foreground(TOLD):
        wait_for(lambda: site.has_pid() and len(site.workers) == 2, "the workers")
        log_in(site, starttls=tls)
        found = loaded(site)
        assert {"trio", "mailproxy.mail.session", "mailproxy.process.worker"} <= {
            *found
        }
        assert not among(found, NEEDLESS)
        if not tls:
            assert not among(found, ONLY_FOR_TLS)
            for pid in (site.pid, *site.workers):
                objects = mapped(pid)
                assert any(name.startswith("_ctypes.") for name in objects)
                assert not any(
                    name.startswith(("_rust.", "_cffi_")) for name in objects
                )


class Backend(FakeImap):
    """A mail server that answers every line in the same way.

    Args:
      header: a PROXY header of version 2 comes first.
    """

    def __init__(self, greeting: bytes, reply: bytes, *, header: bool) -> None:
        super().__init__()
        self.greeting = greeting
        self.reply = reply
        self.header = header

    def serve(self, connection: _Handler) -> None:
        if self.header:
            size = connection.rfile.read(16)[-2:]
            connection.rfile.read(int.from_bytes(size, "big"))
        connection.wfile.write(self.greeting)
        while self.read(connection):
            connection.wfile.write(self.reply)


ALL_PROTOCOLS = """
    resolver 127.0.0.1:9; resolver_timeout 10ms; auth_http_pass_client_cert on;
    server { listen 127.0.0.1:PORT; protocol imap; }
    server { listen 127.0.0.2:PORT; protocol pop3; }
    server { listen 127.0.0.3:PORT; protocol smtp; }
"""
WITH_TLS = """
    ssl_certificate ec.pem; ssl_certificate_key ec.key; starttls on;
    ssl_verify_client optional_no_ca; proxy_protocol v2;
"""
SESSIONS = [
    ("127.0.0.1", b"a STARTTLS", [b"a CAPABILITY", b"a LOGIN u p"], b"a OK"),
    ("127.0.0.2", b"STLS", [b"NOOP", b"USER u", b"PASS p"], b"+OK"),
    ("127.0.0.3", b"STARTTLS", [b"HELO c", b"AUTH PLAIN AHUAcA=="], b"235"),
]
"""For each protocol: address, command that starts TLS, what leads to a login, its answer."""


def hold_session(
    address: tuple[str, int],
    start_tls: bytes | None,
    commands: list[bytes],
    last: bytes,
) -> None:
    """Take a session of any protocol through its login."""
    with socket.create_connection(address, timeout=PATIENCE) as plain:
        assert plain.recv(1000).endswith(b"\r\n")
        client = plain
        if start_tls is not None:
            client.sendall(start_tls + b"\r\n")
            assert client.recv(1000).endswith(b"\r\n")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client = context.wrap_socket(client)
        with client:
            for command in commands:
                client.sendall(command + b"\r\n")
                answer = client.recv(1000)
            assert answer.startswith(last), answer


@pytest.mark.parametrize("tls", [False, True], ids=["clear text", "TLS"])
def test_a_worker_imports_nothing(site: Site, tls: bool) -> None:
    """All that sessions need is imported before the first fork."""
    Certificates(site.directory)
    with (
        Backend(b"* OK [CAPABILITY LITERAL+]\r\n", b"a OK\r\n", header=tls) as imap,
        Backend(b"+OK\r\n", b"+OK\r\n", header=tls) as pop3,
        Backend(b"220 b\r\n", b"250 b\r\n", header=tls) as smtp,
        FakeAuth(
            lambda request: {
                "Auth-Status": "OK",
                "Auth-Server": "127.0.0.1",
                "Auth-Port": str(ports[request.headers["Auth-Protocol"]]),
            }
        ) as auth,
    ):
        ports = {"imap": imap.port, "pop3": pop3.port, "smtp": smtp.port}
        site.configure(
            (WITH_TLS if tls else "") + ALL_PROTOCOLS, main=STDERR, AUTH=auth.port
        )
        with site.foreground(TOLD):
            wait_for(lambda: site.has_pid() and len(site.workers) == 2, "the workers")
            for host, start_tls, commands, last in SESSIONS:
                begin = start_tls if tls else None
                hold_session((host, site.port), begin, commands, last)
            told = (site.directory / "stderr").read_text(errors="replace")
    before, started, after = told.partition("start worker process ")
    assert started
    assert IMPORT.search(before)
    assert IMPORT.findall(after) == []


@contextmanager
def imap_over_tls(directory: Path) -> Iterator[int]:
    """A mail server that serves one client, over TLS; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "ec.pem", directory / "ec.key")

    def serve() -> None:
        with (
            listening.accept()[0] as plain,
            context.wrap_socket(plain, server_side=True) as client,
        ):
            client.sendall(b"* OK\r\n")
            while client.recv(1000):
                client.sendall(b"a OK\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        thread = Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


GROUP = """
    upstream u {
        hash $auth_user consistent;
        server 127.0.0.1:DEAD; server 127.0.0.1:LIVE; zone u;
    }
    proxy_ssl on; proxy_ssl_verify off; proxy_ssl_name mx.test;
    server { listen 127.0.0.1:PORT; protocol imap; proxy_pass u; }
"""


def test_a_worker_imports_nothing_for_groups_and_tls(site: Site) -> None:
    """Also where a member is dead, and the other one has a name."""
    Certificates(site.directory)
    with (
        FakeAuth(lambda _: {"Auth-Status": "OK"}) as auth,
        imap_over_tls(site.directory) as live,
    ):
        site.configure(GROUP, main=STDERR, AUTH=auth.port, DEAD=free_port(), LIVE=live)
        with site.foreground(TOLD):
            wait_for(lambda: site.has_pid() and len(site.workers) == 2, "the workers")
            _, _, commands, last = SESSIONS[0]
            hold_session(("127.0.0.1", site.port), None, commands, last)
            told = (site.directory / "stderr").read_text(errors="replace")
    before, started, after = told.partition("start worker process ")
    assert started
    assert IMPORT.search(before)
    assert "mailproxy.mail.backend_tls" in IMPORT.findall(before)
    assert IMPORT.findall(after) == []


@pytest.mark.parametrize("tls", [False, True], ids=["clear text", "TLS"])
def test_a_test_of_a_configuration_loads_little(
    site: Site, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Certificates(site.directory)
    # A warning goes to the log of -e, too.
    site.configure((WITH_TLS if tls else "") + ALL_PROTOCOLS, main="http { }")
    for name, value in TOLD.items():
        monkeypatch.setitem(os.environ, name, value)
    done = site.call("-t")
    assert done.returncode == 0, done.stderr
    assert "is skipped" in (site.directory / "startup.log").read_text()
    found = loaded(site)
    assert "mailproxy.mail.modules" in found
    assert not among(found, (*ONLY_TO_SERVE, "lark"))
    if not tls:
        assert not among(found, OPENSSL)


@pytest.mark.parametrize("option", ["-t", "-v", "-V", "-h"])
def test_a_short_call_loads_nothing_needless(
    site: Site, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TOLD.items():
        monkeypatch.setitem(os.environ, name, value)
    assert site.call(option).returncode == 0
    found = loaded(site)
    assert "mailproxy.cli" in found
    assert not among(found, NEEDLESS + ONLY_FOR_TLS)
