"""Servers that share a port: one is at all addresses, others at some of them."""

from __future__ import annotations

import socket
from pathlib import Path
from signal import SIGHUP

import pytest

from tests.process.site import Client, Site
from tests.processes import PATIENCE

SERVERS = """
    server {
        listen *:PORT; protocol imap; imap_capabilities EVERYWHERE;
    }
    server {
        listen 127.0.0.2:PORT; protocol imap; imap_capabilities SECOND;
    }
    server {
        listen 127.0.0.3:PORT; listen unix:PATH; protocol smtp; smtp_auth none;
        server_name third.test;
    }
    """


def listening(port: int) -> list[str]:
    """The addresses at which somebody listens on a port, as /proc shows them."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        local.partition(":")[0]
        for _, local, _, state, *_ in rows
        if state == "0A" and int(local.partition(":")[2], 16) == port
    ]


def talk(address: tuple[str, int] | str, command: bytes) -> bytes:
    """The greeting, and the first line of an answer."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        with client.makefile("rb") as file:
            greeting = file.readline()
            client.sendall(command)
            return greeting + file.readline()


def imap(capabilities: bytes) -> bytes:
    return b"* OK IMAP4 ready\r\n* CAPABILITY %s AUTH=PLAIN\r\n" % capabilities


SMTP = b"220 third.test ESMTP ready\r\n250 third.test\r\n"
HELO = b"HELO client.test\r\n"
CAPABILITY = b"a CAPABILITY\r\n"


@pytest.mark.parametrize("main", ["worker_processes 2;", "master_process off;"])
def test_the_most_specific_address_decides(site: Site, main: str) -> None:
    path = site.directory / "smtp.sock"
    site.configure(SERVERS, main=main, PATH=path)
    site.start()
    assert listening(site.port) == ["00000000"]
    port = site.port
    assert talk(("127.0.0.1", port), CAPABILITY) == imap(b"EVERYWHERE")
    assert talk(("127.0.0.2", port), CAPABILITY) == imap(b"SECOND")
    assert talk(("127.0.0.3", port), HELO) == SMTP
    assert talk(("127.0.0.4", port), CAPABILITY) == imap(b"EVERYWHERE")
    assert talk(str(path), HELO) == SMTP
    for server in ("0.0.0.0", "127.0.0.2", "127.0.0.3"):
        site.wait_for_line(f"connected to {server}:{port}")
    site.wait_for_line(f"client unix: connected to unix:{path}")
    site.no_complaints()


def test_a_reload_changes_who_serves_an_address(site: Site) -> None:
    """The socket stays; sessions keep the server that they came to."""
    everywhere = "server { listen *:PORT; protocol imap; imap_capabilities NEW; }"
    here = ("127.0.0.2", site.port)
    site.configure(SERVERS, PATH=site.directory / "smtp.sock")
    site.start()
    with Client(site.port, "127.0.0.2") as old:
        for servers, capability in ((everywhere, b"NEW"), (SERVERS, b"SECOND")):
            site.configure(servers, PATH=site.directory / "smtp.sock")
            site.forget_log()
            site.signal(SIGHUP)
            site.wait_for_line("gracefully shutting down", 2)
            assert listening(site.port) == ["00000000"]
            assert talk(here, CAPABILITY) == imap(capability)
        old.socket.sendall(CAPABILITY)
        assert old.line() == b"* CAPABILITY SECOND AUTH=PLAIN\r\n"
