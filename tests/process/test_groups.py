"""Groups of backends in several workers, and connections that lead back."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.processes import need, wait_for

GROUP = """
    upstream u { server 127.0.0.1:BACKEND PARAMETERS; }
    server { listen 127.0.0.1:PORT; protocol imap; DIRECTIVES }
"""


@pytest.fixture
def backend() -> Iterator[FakeImap]:
    with FakeImap() as backend:
        yield backend


@pytest.fixture
def auth() -> Iterator[FakeAuth]:
    """Sends everybody to the group "u"."""
    with FakeAuth(lambda _: {"Auth-Status": "OK", "Auth-Server": "u"}) as auth:
        yield auth


def configure(
    site: Site, auth: FakeAuth, backend: FakeImap, main: str = "", **words: str
) -> None:
    site.configure(
        GROUP,
        main,
        **{"PARAMETERS": "", "DIRECTIVES": "", **words},
        AUTH=auth.port,
        BACKEND=backend.port,
    )


def worker_of(site: Site, login: str) -> int:
    """The worker in which a user has logged in."""
    text = site.log_path.read_text()
    found = re.search(rf"(\d+)#\d+: \*\d+ client logged in,.* login: \"{login}\"", text)
    assert found is not None, text
    return int(found[1])


def log_in(site: Site, stack: ExitStack, user: str = "user") -> Client | None:
    """A client that is logged in; None if it is refused."""
    client = Client(site.port)
    if enters(client, user):
        return stack.enter_context(client)
    client.close()
    return None


def enters(client: Client, user: str = "user") -> bool:
    """Whether a client is let in by its backend."""
    client.socket.sendall(b"a LOGIN %s secret\r\n" % user.encode())
    line = client.line()
    assert line.startswith(b"a OK") or line == b"* BAD internal server error\r\n"
    return line.startswith(b"a OK")


class TestLimits:
    """`max_conns`."""

    LIMIT = 2
    WORKERS = 4

    def test_sessions_are_limited_over_workers(
        self, site: Site, auth: FakeAuth, backend: FakeImap
    ) -> None:
        main = f"worker_processes {self.WORKERS};"
        configure(site, auth, backend, main, PARAMETERS=f"max_conns={self.LIMIT}")
        site.start()
        with ExitStack() as stack:
            found = self.hundred_at_once(site, stack)
            assert self.LIMIT <= len(found) < self.LIMIT + self.WORKERS
        with ExitStack() as stack:
            for user in "ab":
                wait_for(
                    lambda user=user: self.tries(site, stack, user),  # type: ignore[misc]
                    "room for a session",
                )
            assert log_in(site, stack) is None
            site.wait_for_line("no live upstreams while connecting to upstream")
            self.kill_worker_of(site, "a")
            wait_for(lambda: self.tries(site, stack, "c"), "the room of the dead one")
            if worker_of(site, "b") != worker_of(site, "a"):
                assert log_in(site, stack) is None

    @staticmethod
    def tries(site: Site, stack: ExitStack, user: str) -> bool:
        with suppress(ConnectionError):  # the worker is the one that was killed
            return log_in(site, stack, user) is not None
        return False

    @staticmethod
    def hundred_at_once(site: Site, stack: ExitStack) -> list[Client]:
        found: list[Client] = []
        begin = threading.Barrier(100)

        def come() -> None:
            client = Client(site.port)
            begin.wait()
            if enters(client):
                found.append(stack.enter_context(client))
            else:
                client.close()

        threads = [threading.Thread(target=come) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    @staticmethod
    def kill_worker_of(site: Site, user: str) -> None:
        pid = worker_of(site, user)
        os.kill(pid, signal.SIGKILL)
        site.wait_for_line(f"worker process {pid} exited on signal 9")

    def test_they_are_limited_over_reloads(
        self, site: Site, auth: FakeAuth, backend: FakeImap
    ) -> None:
        configure(site, auth, backend, PARAMETERS="max_conns=1")
        site.start()
        with ExitStack() as stack:
            assert log_in(site, stack) is not None
            before = site.workers
            site.signal(signal.SIGHUP)
            site.wait_for(
                lambda: len(site.workers) == 2 and not set(before) & set(site.workers),
                "new workers",
            )
            assert log_in(site, stack) is None


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:PORT", "*:PORT", "[::]:PORT ipv6only=off"]
)
@pytest.mark.parametrize(
    "directives",
    [
        "",
        "proxy_pass 127.0.0.1:PORT;",
        "proxy_pass 127.0.0.1:PORT; proxy_bind 127.0.0.5;",
    ],
)
def test_connection_that_leads_back_ends(
    site: Site, listen: str, directives: str
) -> None:
    with FakeAuth(granted(site.port)) as auth, ExitStack() as stack:
        if directives:
            auth.answer = lambda _: {"Auth-Status": "OK"}
        server = f"server {{ listen {listen}; protocol imap; {directives} }}"
        site.configure(server, "worker_processes 1;", AUTH=auth.port)
        site.start()
        assert log_in(site, stack) is None
        (line,) = (each for each in site.log("error"))
        assert "upstream is this server itself while connecting to upstream" in line
        assert f'login: "user", upstream: 127.0.0.1:{site.port}' in line
        assert len(auth.requests) == 1


def test_connection_to_another_address_of_this_machine_ends(site: Site) -> None:
    host = address_of_this_machine()
    with FakeAuth(granted(site.port, host)) as auth, ExitStack() as stack:
        site.configure("server { listen *:PORT; protocol imap; }", AUTH=auth.port)
        site.start()
        assert log_in(site, stack) is None
        site.wait_for_line("upstream is this server itself")


def address_of_this_machine() -> str:
    """An address that is not the loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.99", 9))
        except OSError:
            need(available=False, what="a network")
        host: str = probe.getsockname()[0]
        return host


def test_connection_to_a_unix_socket_of_ours_ends(site: Site) -> None:
    path = site.directory / "mail.sock"
    with FakeAuth(lambda _: {"Auth-Status": "OK"}) as auth, ExitStack() as stack:
        server = f"""server {{
            listen 127.0.0.1:PORT; listen unix:{path}; protocol imap;
            proxy_pass unix:{path};
        }}"""
        site.configure(server, AUTH=auth.port)
        site.start()
        assert log_in(site, stack) is None
        site.wait_for_line("upstream is this server itself")


def test_same_port_elsewhere_is_no_loop(site: Site, auth: FakeAuth) -> None:
    with FakeImap(site.port, "127.0.0.3"), ExitStack() as stack:
        auth.answer = granted(site.port, "127.0.0.3")
        site.configure(
            "server { listen 127.0.0.1:PORT; protocol imap; }", AUTH=auth.port
        )
        site.start()
        assert log_in(site, stack) is not None


@pytest.mark.proves("proxy_bind")
def test_backends_see_the_address_to_come_from(
    site: Site, auth: FakeAuth, backend: FakeImap
) -> None:
    configure(site, auth, backend, DIRECTIVES="proxy_bind 127.0.0.2;")
    site.start()
    with ExitStack() as stack:
        assert log_in(site, stack) is not None
        assert backend.connections[-1].getpeername()[0] == "127.0.0.2"


@pytest.mark.proves("proxy_bind", "off")
def test_they_see_any_address_where_that_is_off(
    site: Site, auth: FakeAuth, backend: FakeImap
) -> None:
    configure(site, auth, backend, DIRECTIVES="proxy_bind off;")
    path = site.directory / "nginx.conf"
    path.write_text(path.read_text().replace("mail {", "mail { proxy_bind 127.0.0.2;"))
    site.start()
    with ExitStack() as stack:
        assert log_in(site, stack) is not None
        assert backend.connections[-1].getpeername()[0] == "127.0.0.1"


def test_address_that_is_not_ours_is_no_failure_of_backends(
    site: Site, auth: FakeAuth, backend: FakeImap
) -> None:
    configure(
        site,
        auth,
        backend,
        PARAMETERS="; server 127.0.0.1:BACKEND",
        DIRECTIVES="proxy_bind 192.0.2.1;",
    )
    site.start()
    with ExitStack() as stack:
        assert log_in(site, stack) is None
    lines = [line for line in site.log("crit") if "bind(" in line]
    assert len(lines) == 2
    assert (
        "bind(192.0.2.1) failed (99: Cannot assign requested address) while connecting "
        "to upstream" in lines[0]
    )
    assert not site.log("warn")


@pytest.mark.proves("proxy_socket_keepalive")
@pytest.mark.parametrize("value", ["on", "off"])
def test_silent_backends_are_probed(
    site: Site, auth: FakeAuth, backend: FakeImap, value: str
) -> None:
    configure(site, auth, backend, DIRECTIVES=f"proxy_socket_keepalive {value};")
    site.start()
    with ExitStack() as stack:
        assert log_in(site, stack) is not None
        assert (timer_toward(backend.port) == "02") is (value == "on")


def timer_toward(port: int) -> str:
    """The timer of the one connection to a port: 02 is that of keepalive (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (timer,) = (
        row[5] for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"
    )
    return timer.partition(":")[0]
