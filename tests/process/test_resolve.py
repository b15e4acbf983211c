"""Members that are looked up while running, at a real name server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGHUP, SIGKILL
from typing import Self

import pytest

from tests.fakes import FakeAuth, FakeImap
from tests.process.site import Client, Site, children, title
from tests.processes import Process, free_port, need_program, wait_for

MAIL = """
    upstream u { resolver 127.0.0.1:NAMES valid=1s ipv6=off; resolver_timeout 2s; SERVER }
    server { listen 127.0.0.1:PORT; protocol imap; }
"""


class Dnsmasq:
    """A name server for the zone "test".

    Attributes:
      port: where it answers.
    """

    def __init__(self, directory: Path, services: tuple[str, ...]) -> None:
        self.port = free_port()
        self._hosts = directory / "hosts"
        self._directory = directory
        self._services = [f"--srv-host={each}" for each in services]
        self._process: Process | None = None

    def has(self, **names: str) -> None:
        """Let it know these names, which have addresses, and no others."""
        lines = [
            f"{address} {name}.test"
            for name, addresses in names.items()
            for address in addresses.split()
        ]
        self._hosts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._hosts.chmod(0o644)
        if self._process is not None:
            self._process.popen.send_signal(SIGHUP)

    def start(self) -> None:
        """Answer."""
        self._process = Process(
            [
                need_program("dnsmasq"),
                *("--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
                *(f"--port={self.port}", "--listen-address=127.0.0.1"),
                *("--bind-interfaces", f"--addn-hosts={self._hosts}", "--user="),
                *("--local=/test/", "--local-ttl=1", *self._services),
            ],
            self._directory,
        )
        self._process.wait_for_port(self.port)

    def stop(self) -> None:
        """Be dead."""
        if self._process is not None:
            self._process.stop()
            self._process = None


class Backends:
    """Mail servers at several addresses and one port; and where sessions have gone."""

    def __init__(self, *addresses: str) -> None:
        self.port = free_port()
        self._all = {each: FakeImap(self.port, each) for each in addresses}

    def __enter__(self) -> Self:
        for each in self._all.values():
            each.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self._all.values():
            each.__exit__()


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Callable[..., Dnsmasq]]:
    servers: list[Dnsmasq] = []

    def make(*services: str) -> Dnsmasq:
        directory = tmp_path / "names"
        directory.mkdir()
        directory.chmod(0o755)
        servers.append(Dnsmasq(directory, services))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    """Sends everybody to the group."""
    with FakeAuth(lambda _: {"Auth-Status": "OK", "Auth-Server": "u"}) as auth:
        yield auth


def upstreams(site: Site) -> set[str]:
    """Where the sessions of the log have gone."""
    return {
        line.rpartition("upstream: ")[2].rpartition(":")[0]
        for line in site.log("info")
        if "client logged in" in line
    }


def log_in(site: Site, times: int = 6) -> set[str]:
    """Log in some times; returns where the sessions went."""
    site.forget_log()
    for _ in range(times):
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")
    return upstreams(site)


def go_to(site: Site, *addresses: str) -> None:
    """Wait until sessions go there, and nowhere else: workers hear of it in a moment."""
    site.wait_for(lambda: log_in(site, 4) == {*addresses}, f"sessions at {addresses}")


@pytest.mark.proves("server", "resolve")
@pytest.mark.proves("resolver", "valid=")
def test_members_come_and_go_without_a_reload(
    site: Site, names: Callable[..., Dnsmasq], auth: FakeAuth
) -> None:
    zone = names()
    zone.has(mail="127.0.0.1 127.0.0.2")
    zone.start()
    with Backends("127.0.0.1", "127.0.0.2", "127.0.0.3") as backends:
        site.configure(
            MAIL,
            SERVER=f"server mail.test:{backends.port} resolve;",
            NAMES=zone.port,
            AUTH=auth.port,
        )
        site.start()
        workers = site.workers
        assert log_in(site) == {"127.0.0.1", "127.0.0.2"}
        with Client(site.port) as first, Client(site.port) as second:
            for client in (first, second):
                assert client.log_in().startswith(b"a OK")
            zone.has(mail="127.0.0.3")
            site.wait_for_line('upstream "u": mail.test resolved to 127.0.0.3')
            go_to(site, "127.0.0.3")
            first.ping()
            second.ping()
        zone.has()
        site.wait_for_line("mail.test could not be resolved (3: Host not found)")
        assert log_in(site) == {"127.0.0.3"}, "what was known stays"
        zone.stop()
        site.wait_for_line("mail.test could not be resolved (110")
        assert log_in(site) == {"127.0.0.3"}
        site.forget_log()
        site.signal(SIGHUP)
        site.wait_for_line("gracefully shutting down", 2)
        assert log_in(site) == {"127.0.0.3"}, "over a reload, too"
        os.kill(_manager(site), SIGKILL)
        site.wait_for_line("start manager process")
        assert log_in(site) == {"127.0.0.3"}
        zone.has(mail="127.0.0.1")
        zone.start()
        site.wait_for_line('upstream "u": mail.test resolved to 127.0.0.1')
        go_to(site, "127.0.0.1")
        assert set(workers).isdisjoint(site.workers)


@pytest.mark.proves("server", "service=")
def test_a_service_has_servers_and_spares(
    site: Site, names: Callable[..., Dnsmasq], auth: FakeAuth
) -> None:
    with Backends("127.0.0.2") as spare, FakeImap(0, "127.0.0.1") as first:
        zone = names(
            f"_imap._tcp.mail.test,first.test,{first.port},10,5",
            f"_imap._tcp.mail.test,spare.test,{spare.port},20,5",
        )
        zone.has(first="127.0.0.1", spare="127.0.0.2")
        zone.start()
        site.configure(
            MAIL,
            SERVER="server mail.test service=imap resolve;",
            NAMES=zone.port,
            AUTH=auth.port,
        )
        site.start()
        assert log_in(site) == {"127.0.0.1"}
        first.__exit__()
        assert log_in(site) == {"127.0.0.2"}, "it has a larger priority value"


@pytest.mark.proves("resolver_timeout")
def test_a_start_does_not_wait_long_for_a_silent_server(
    site: Site, auth: FakeAuth
) -> None:
    site.configure(
        MAIL, SERVER="server mail.test:143 resolve;", NAMES=9, AUTH=auth.port
    )
    site.start()
    wait_for(lambda: len(site.workers) == 2, "workers")
    with Client(site.port) as client:
        client.socket.sendall(b"a LOGIN user secret\r\n")
        assert client.line() == b"* BAD internal server error\r\n"
    site.wait_for_line("no live upstreams while connecting to upstream")
    site.wait_for_line("mail.test could not be resolved")


def _manager(site: Site) -> int:
    return next(
        pid for pid in children(site.pid) if title(pid).endswith("manager process")
    )
