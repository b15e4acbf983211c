"""What a running proxy loads: nothing that only the demo or the tests need."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.processes import wait_for
from tests.tls import Certificates

TOLD = {"PYTHONPROFILEIMPORTTIME": "1"}
"""Has Python and its forks say on stderr what they import (python(1))."""
IMPORT = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)

NEEDLESS = ("mailproxy.demo", "trustme", "http.server", "urllib.request")
"""The demo, its certificates, and servers and clients that are not ours."""
ONLY_FOR_TLS = ("cryptography", "_cffi_backend", "email")
"""As slow to import as all the rest: where no certificate is read, it is not loaded."""

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
