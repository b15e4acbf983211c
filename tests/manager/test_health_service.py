"""The manager's health checks: what a configuration says, what backends get, what is told."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from mailproxy.conf.addresses import Address
from mailproxy.log import INFO
from mailproxy.mail.peer_states import PeerState
from mailproxy.manager.groups import GroupService
from mailproxy.manager.health_service import HealthService
from mailproxy.manager.hub import Hub
from mailproxy.manager.peers import ManagedPeer
from mailproxy.manager.probes.talk import ProbeLogin
from mailproxy.process.configuration import Configuration, load
from mailproxy.process.options import Options
from mailproxy.stats.cells import Role
from mailproxy.stats.mapping import Row, Statistics
from mailproxy.stats.peers import PeerNumbers
from tests.captured_log import CapturedLog
from tests.tls import Certificates

PATIENCE = 20

Serve = Callable[[trio.SocketStream], Awaitable[None]]


class Backend:
    """A server on a port of the loopback, which answers lines.

    Attributes:
      port: where it listens.
      greeting: what it sends first.
      answers: what it sends for each line.
      got: the lines that it got, of all connections.
      probes: how many connections there were.
    """

    def __init__(self, greeting: bytes = b"* OK ready\r\n") -> None:
        self.port = 0
        self.greeting = greeting
        self.answers: dict[bytes, bytes] = {}
        self.got: list[bytes] = []
        self.probes = 0
        self._next = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.probes += 1
        self._next.set()
        self._next = trio.Event()
        await self.talk(stream)

    async def talk(self, stream: trio.abc.Stream) -> None:
        """Talk to one client; it may leave at any time."""
        buffer = b""
        try:
            await stream.send_all(self.greeting)
            while data := await stream.receive_some():
                *lines, buffer = (buffer + data).split(b"\r\n")
                for line in lines:
                    self.got.append(line)
                    await stream.send_all(self.answers.get(line, b""))
        except trio.BrokenResourceError:
            return

    async def wait_probed(self, times: int = 1) -> None:
        """Wait for so many more connections."""
        wanted = self.probes + times
        while self.probes < wanted:
            await self._next.wait()


class WantsHeader(Backend):
    """A backend that greets only after a PROXY header."""

    async def talk(self, stream: trio.abc.Stream) -> None:
        with trio.move_on_after(0.5):
            self.got.append(bytes(await stream.receive_some()))
            await super().talk(stream)


class Watched:
    """A manager that has begun to watch.

    Attributes:
      hub, groups: its parts.
      lines: what it has logged.
    """

    def __init__(self, hub: Hub, groups: GroupService, captured: CapturedLog) -> None:
        self.hub = hub
        self.groups = groups
        self.lines = captured.events
        self._told = trio.Event()
        groups.followers.append(lambda _: self._told.set())

    def states(self, upstream: str = "pool") -> list[PeerState]:
        return [peer.state for peer in self.groups.groups[upstream].peers]

    async def wait_for(self, *states: PeerState) -> None:
        """Wait until the peers are in these states."""
        with trio.fail_after(PATIENCE):
            while self.states() != [*states]:
                self._told = trio.Event()
                await self._told.wait()

    async def wait_for_line(self, text: str) -> None:
        """Wait until a line of the log begins so."""
        with trio.fail_after(PATIENCE):
            while not any(line.startswith(text) for _, line in self.lines):
                await trio.lowlevel.checkpoint()


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Configuration]:
    """Reads what stands in `mail`."""

    def read(mail: str) -> Configuration:
        text = f"events {{}} mail {{ auth_http 127.0.0.1:9; {mail} }}"
        (tmp_path / "nginx.conf").write_text(text)
        return load(Options(prefix=f"{tmp_path}/", conf_file=f"{tmp_path}/nginx.conf"))

    return read


@asynccontextmanager
async def watching(
    configuration: Configuration,
    row: Row | None = None,
    logins: Mapping[str, ProbeLogin] | None = None,
    *,
    replaces: bool = False,
) -> AsyncIterator[Watched]:
    """Run a manager's services for the length of the block."""
    row = Row() if row is None else row
    managed = [
        live.group
        for live in configuration.upstreams.groups.values()
        if live.group.is_managed
    ]
    groups = GroupService(managed, row)
    health = HealthService(
        groups, configuration.group_checks, logins or {}, replaces=replaces
    )
    captured = CapturedLog(INFO)
    hub = Hub(captured.log, row, [groups, health])
    async with trio.open_nursery() as nursery:
        hub.begin(nursery)
        yield Watched(hub, groups, captured)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(*backends: Backend) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for backend in backends:
            listeners = await nursery.start(
                partial(trio.serve_tcp, host="127.0.0.1"), backend.serve, backend.port
            )
            backend.port = listeners[0].socket.getsockname()[1]
        yield
        nursery.cancel_scope.cancel()


def mail(backend: Backend, check: str, protocol: str = "imap", more: str = "") -> str:
    return f"""
        upstream pool {{
            server 127.0.0.1:{backend.port};
            health_check interval=20ms {check};
        }}
        server {{
            listen 127.0.0.1:9143;
            protocol {protocol};
            server_name proxy.example;
            proxy_pass pool;
            {more}
        }}
        """


Read = Callable[[str], Configuration]
UP, UNHEALTHY, CHECKING = PeerState.UP, PeerState.UNHEALTHY, PeerState.CHECKING
DIALOGUES = {
    "imap": (
        b"* OK ready\r\n",
        b"h1 CAPABILITY",
        b"* CAPABILITY IMAP4rev1\r\nh1 OK\r\n",
    ),
    "pop3": (b"+OK ready\r\n", b"CAPA", b"+OK\r\n.\r\n"),
    "smtp": (b"220 ready\r\n", b"EHLO proxy.example", b"250 mail.example\r\n"),
}


@pytest.mark.parametrize("protocol", DIALOGUES)
async def test_a_probe_speaks_the_protocol_of_the_servers(
    protocol: str, read: Read
) -> None:
    greeting, command, answer = DIALOGUES[protocol]
    backend = Backend(greeting)
    backend.answers[command] = b"500 no\r\n"
    async with listening(backend):
        configuration = read(mail(backend, "type=capability", protocol))
        async with watching(configuration) as watched:
            await watched.wait_for(UNHEALTHY)
            assert command in backend.got
            backend.answers[command] = answer
            await watched.wait_for(UP)


@pytest.mark.proves("health_check", "protocol=")
async def test_a_probe_speaks_another_protocol(read: Read) -> None:
    backend = Backend(b"+OK ready\r\n")
    async with listening(backend):
        async with watching(read(mail(backend, "protocol=pop3"))) as watched:
            await backend.wait_probed(2)
            assert watched.states() == [UP]
        async with watching(read(mail(backend, ""))) as watched:
            await watched.wait_for(UNHEALTHY)


@pytest.mark.proves("health_check", "type=")
async def test_a_probe_goes_as_far_as_its_type(read: Read) -> None:
    backend = Backend(b"* NO\r\n")
    async with listening(backend):
        async with watching(read(mail(backend, "type=connect"))) as watched:
            await backend.wait_probed(3)
            assert watched.states() == [UP]
        async with watching(read(mail(backend, "type=greeting"))) as watched:
            await watched.wait_for(UNHEALTHY)
        backend.greeting = b"* OK ready\r\n"
        async with watching(read(mail(backend, "type=greeting"))) as watched:
            await backend.wait_probed(3)
            assert watched.states() == [UP]
        backend.answers[b"h1 CAPABILITY"] = b"h1 OK nothing\r\n"
        async with watching(read(mail(backend, "type=capability"))) as watched:
            await watched.wait_for(UNHEALTHY)


@pytest.mark.proves("health_check", "port=")
async def test_another_port_is_probed(read: Read) -> None:
    backend, probed = Backend(), Backend(b"* NO\r\n")
    async with listening(backend, probed):
        configuration = read(mail(backend, f"port={probed.port}"))
        async with watching(configuration) as watched:
            await watched.wait_for(UNHEALTHY)
            probed.greeting = b"* OK\r\n"
            await watched.wait_for(UP)
        assert backend.probes == 0
        line = f'peer 127.0.0.1:{backend.port} of upstream "pool" is healthy'
        assert watched.lines[-1] == ("notice", line)


@pytest.mark.proves("health_check", "proxy_protocol=")
async def test_a_backend_gets_the_header_that_sessions_send(read: Read) -> None:
    backend = WantsHeader()
    v1, v2 = rb"PROXY UNKNOWN\r\n", rb"\r\n\r\n\0\r\nQUIT\n\x20(?s:.*)"
    for check, server, header in (
        ("", "proxy_protocol on;", v1),
        ("", "proxy_protocol v2;", v2),
        ("proxy_protocol=on", "proxy_protocol v2;", v1),
        ("proxy_protocol=v2", "", v2),
    ):
        async with listening(backend):
            configuration = read(mail(backend, check, more=server))
            async with watching(configuration) as watched:
                await backend.wait_probed(2)
                assert watched.states() == [UP]
                assert re.fullmatch(header, backend.got[0])
        backend = WantsHeader()


async def test_a_backend_that_wants_a_header_is_unhealthy_without_one(
    read: Read,
) -> None:
    backend = WantsHeader()
    async with listening(backend):
        check = "proxy_protocol=off timeout=100ms"
        configuration = read(mail(backend, check, more="proxy_protocol on;"))
        async with watching(configuration) as watched:
            await watched.wait_for(UNHEALTHY)


@pytest.mark.proves("health_check", "timeout=")
async def test_a_silent_backend_is_unhealthy(read: Read) -> None:
    backend = Backend(b"")
    async with listening(backend):
        async with watching(read(mail(backend, "timeout=50ms"))) as watched:
            await watched.wait_for(UNHEALTHY)
            assert watched.lines[-1][1].endswith(
                "is unhealthy: timed out while waiting for the greeting"
            )


@pytest.mark.proves("health_check", "fails=", "passes=")
async def test_fails_and_passes_decide(read: Read) -> None:
    backend = Backend(b"* NO\r\n")
    async with listening(backend):
        async with watching(read(mail(backend, "fails=3 passes=4"))) as watched:
            await watched.wait_for(UNHEALTHY)
            assert backend.probes == 3
            backend.greeting = b"* OK\r\n"
            await watched.wait_for(UP)
            assert backend.probes == 7


@pytest.mark.proves("health_check", "interval=", "jitter=")
def test_times_are_read(read: Read) -> None:
    text = mail(Backend(), "interval=1m jitter=30s timeout=2s").replace(":0;", ":1;")
    (found,) = read(text).group_checks["pool"]
    schedule = found.check.schedule
    assert (schedule.interval, schedule.jitter) == (60, 30)


@pytest.mark.proves("health_check", "match=")
@pytest.mark.proves("send")
@pytest.mark.proves("expect")
async def test_a_backend_is_sent_what_match_says(read: Read) -> None:
    backend = Backend()
    backend.answers[b"x NOOP"] = b"x OK done\r\n"
    for expect, state in (
        (r'"x OK"', UP),
        (r'"\x78\x20OK"', UP),
        (r'~ "OK d(o|u)ne"', UP),
        (r'~* "X ok"', UP),
        (r'~ "X ok"', UNHEALTHY),
        ('"never"', UNHEALTHY),
        ('"* OK ready"', UP),
    ):
        block = rf'match word {{ send "x NOOP\r\n"; expect {expect}; }}'
        async with listening(backend):
            configuration = read(mail(backend, "match=word timeout=200ms") + block)
            async with watching(configuration) as watched:
                await backend.wait_probed(2)
                await watched.wait_for(state)
            assert b"x NOOP" in backend.got
        backend.port = 0


@pytest.mark.proves("health_check", "login_file=")
async def test_a_probe_logs_in(read: Read, tmp_path: Path) -> None:
    backend = Backend()
    backend.answers = {
        b"h1 CAPABILITY": b"* CAPABILITY IMAP4rev1\r\nh1 OK\r\n",
        b"h2 LOGIN {8}": b"+ \r\n",
        b"watchdog {11}": b"+ \r\n",
        b"secret word": b"h2 NO who is watchdog?\r\n",
    }
    file = tmp_path / "login"
    file.write_text("watchdog:secret word\n")
    file.chmod(0o600)
    logins = {str(file): ProbeLogin(b"watchdog", b"secret word")}
    async with listening(backend):
        configuration = read(mail(backend, f"type=login login_file={file}"))
        assert {str(each) for each in configuration.manager_secret_files} == {str(file)}
        async with watching(configuration, logins=logins) as watched:
            await watched.wait_for(UNHEALTHY)
            backend.answers[b"secret word"] = b"h2 OK hello watchdog\r\n"
            await watched.wait_for(UP)
    assert 'refused the login: "..."' in watched.lines[0][1]
    assert not any("watchdog" in line for _, line in watched.lines)


async def test_without_its_login_nobody_is_probed(read: Read, tmp_path: Path) -> None:
    """As in a manager that replaces another one after its configuration was replaced."""
    backend, (file, row) = Backend(), (tmp_path / "login", Row())
    file.write_text("watchdog:secret word\n")
    file.chmod(0o600)
    async with listening(backend):
        configuration = read(mail(backend, f"type=login mandatory login_file={file}"))
        async with watching(configuration, row) as watched:
            await trio.testing.wait_all_tasks_blocked()
            assert watched.states() == [UP]
    assert backend.probes == 0


@pytest.mark.proves("health_check", "mandatory")
async def test_a_backend_that_nobody_has_probed_is_not_used(read: Read) -> None:
    backend = Backend(b"")
    async with listening(backend):
        async with watching(read(mail(backend, "mandatory timeout=9s"))) as watched:
            await backend.wait_probed()
            assert watched.states() == [CHECKING]
        async with watching(read(mail(backend, "timeout=9s"))) as watched:
            await backend.wait_probed()
            assert watched.states() == [UP]


FIRST_STATES = [
    ("", False, None, UP),
    ("", False, UP, UP),
    ("", False, UNHEALTHY, UNHEALTHY),
    ("", False, PeerState.UNAVAILABLE, UP),
    ("mandatory", False, None, CHECKING),
    ("mandatory", False, UP, CHECKING),
    ("mandatory", False, CHECKING, CHECKING),
    ("mandatory", False, UNHEALTHY, UNHEALTHY),
    ("mandatory", True, UP, UP),
    ("mandatory", True, CHECKING, CHECKING),
    ("mandatory persistent", False, None, CHECKING),
    ("mandatory persistent", False, UP, UP),
    ("mandatory persistent", False, CHECKING, CHECKING),
    ("mandatory persistent", False, UNHEALTHY, UNHEALTHY),
]


@pytest.mark.proves("health_check", "mandatory", "persistent")
@pytest.mark.parametrize(("check", "replaces", "before", "first"), FIRST_STATES)
async def test_a_manager_begins_with_what_the_board_says(
    check: str, replaces: bool, before: PeerState | None, first: PeerState, read: Read
) -> None:
    backend = Backend(b"")
    async with listening(backend):
        configuration = read(mail(backend, f"{check} timeout=9s"))
        statistics = Statistics()
        assert not statistics.need(configuration.counted, 1)
        row = statistics.take_row(Role.MANAGER)
        statistics.set_front(row)
        if before is not None:
            name = f"127.0.0.1:{backend.port}"
            PeerNumbers(row, "pool", name).publish(before, 1)
        async with watching(configuration, row, replaces=replaces) as watched:
            assert watched.states() == [first]


async def test_what_changes_is_put_on_the_board(read: Read) -> None:
    backend = Backend(b"* NO\r\n")
    async with listening(backend):
        configuration = read(mail(backend, ""))
        statistics = Statistics()
        statistics.need(configuration.counted, 1)
        row = statistics.take_row(Role.MANAGER)
        statistics.set_front(row)
        async with watching(configuration, row) as watched:
            await watched.wait_for(UNHEALTHY)
            await trio.testing.wait_all_tasks_blocked()
            (peer,) = watched.groups.groups["pool"].peers
            assert peer.numbers.state == UNHEALTHY


class SpeaksTls(Backend):
    """A backend with TLS from the first octet, or behind mp2 STARTTLS.

    Attributes:
      context: its certificate.
      at_once: whether it begins with TLS.
    """

    def __init__(self, context: ssl.SSLContext, *, at_once: bool) -> None:
        super().__init__(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n")
        self.context = context
        self.at_once = at_once

    async def talk(self, stream: trio.abc.Stream) -> None:
        try:
            if not self.at_once:
                await stream.send_all(self.greeting)
                assert await stream.receive_some() == b"mp2 STARTTLS\r\n"
                await stream.send_all(b"mp2 OK\r\n")
            tls = trio.SSLStream(
                stream, self.context, server_side=True, https_compatible=True
            )
            await tls.do_handshake()
            await (super().talk(tls) if self.at_once else tls.receive_some())
        except trio.BrokenResourceError:  # it does not believe us
            return


def server_context(certificates: Certificates, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(
        certificates.path(f"{name}.pem"), certificates.path(f"{name}.key")
    )
    return context


@pytest.mark.proves("health_check", "ssl=")
@pytest.mark.parametrize(
    ("check", "member", "server", "at_once"),
    [
        ("", "", "proxy_ssl on;", True),
        ("", "", "proxy_ssl starttls;", False),
        ("", "ssl=on", "proxy_ssl starttls;", True),
        ("", "ssl=starttls", "", False),
        ("ssl=on", "ssl=starttls", "", True),
        ("ssl=starttls", "", "proxy_ssl on;", False),
    ],
)
async def test_certificates_are_verified_as_sessions_do_it(
    check: str, member: str, server: str, at_once: bool, read: Read, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    now = datetime.now(UTC)
    certificates.issue("old", begins=now - timedelta(2), ends=now - timedelta(1))
    backend = SpeaksTls(server_context(certificates, "ec"), at_once=at_once)
    async with listening(backend):
        trusted = f"proxy_ssl_trusted_certificate {certificates.path('ca.pem')};"
        text = mail(backend, check, more=server).replace(
            f":{backend.port};", f":{backend.port} name=localhost {member};"
        )
        async with watching(read(trusted + text)) as watched:
            await backend.wait_probed(3)
            assert watched.states() == [UP]
            backend.context = server_context(certificates, "old")
            await watched.wait_for(UNHEALTHY)
            assert watched.lines[-1][1].endswith(
                "upstream SSL certificate verify error: (10:certificate has expired)"
            )
            backend.context = server_context(certificates, "ec")
            await watched.wait_for(UP)
        elsewhere = text.replace("name=localhost", "name=elsewhere")
        async with watching(read(trusted + elsewhere)) as watched:
            await watched.wait_for(UNHEALTHY)
            assert watched.lines[-1][1].endswith(
                'upstream SSL certificate does not match "elsewhere"'
            )


async def test_a_manager_that_writes_the_board_only_later_says_what_it_knows(
    read: Read,
) -> None:
    """At a reload, the old one writes it until the new workers are up."""
    backend = Backend(b"* NO\r\n")
    async with listening(backend):
        configuration = read(mail(backend, ""))
        statistics = Statistics()
        statistics.need(configuration.counted, 1)
        row = statistics.take_row(Role.MANAGER)
        async with watching(configuration, row) as watched:
            await watched.wait_for(UNHEALTHY)
            await backend.wait_probed(2)
            (peer,) = watched.groups.groups["pool"].peers
            assert peer.numbers.state == 0
            statistics.set_front(row)
            await backend.wait_probed(2)
            assert peer.numbers.state == UNHEALTHY


async def test_the_manager_of_an_old_configuration_does_not_probe(read: Read) -> None:
    backend = Backend()
    async with listening(backend):
        configuration = read(mail(backend, ""))
        statistics = Statistics()
        statistics.need(configuration.counted, 1)
        row, other = (statistics.take_row(Role.MANAGER) for _ in range(2))
        statistics.set_front(other)
        async with watching(configuration, row) as watched:
            await backend.wait_probed(3)  # it will count soon
            statistics.set_front(row)
            await backend.wait_probed(3)
            statistics.set_front(other)
            await watched.wait_for_line("health checks end")
            before = backend.probes
            statistics.set_front(row)
            await backend.wait_probed()
            assert backend.probes <= before + 2
        async with watching(configuration, row, replaces=True) as watched:
            await backend.wait_probed()
        statistics.set_front(other)
        before = backend.probes
        async with watching(configuration, row, replaces=True) as watched:
            await trio.testing.wait_all_tasks_blocked()
            assert backend.probes == before
        async with watching(configuration, Row(), replaces=True):
            await backend.wait_probed()  # nobody can tell


def test_health_checks_are_why_there_is_a_manager(read: Read) -> None:
    text = mail(Backend(), "", more="").replace(":0;", ":1;")
    (reason,) = read(text).manager
    assert re.fullmatch(r"health_check in /.*/nginx.conf:4", str(reason))


async def test_peers_that_are_found_later_are_probed(read: Read) -> None:
    backend, comes = Backend(), Backend()
    async with listening(backend, comes):
        configuration = read(mail(backend, "mandatory"))
        async with watching(configuration) as watched:
            await watched.wait_for(UP)
            managed = watched.groups.groups["pool"]
            (first,) = managed.peers
            at = Address(socket.AF_INET, ("127.0.0.1", comes.port), "new")
            numbers = PeerNumbers(Row(), "pool", "new")
            managed.peers.append(ManagedPeer("new", 0, first.member, at, numbers))
            watched.groups.tell(managed)
            assert watched.states() == [UP, CHECKING]
            await watched.wait_for(UP, UP)
            comes.greeting = b"* NO\r\n"
            await watched.wait_for(UP, UNHEALTHY)
            del managed.peers[0]
            watched.groups.tell(managed)
            before = backend.probes
            await comes.wait_probed(3)
            assert backend.probes <= before + 1
            assert watched.states() == [UNHEALTHY]


async def test_members_that_are_down_are_not_probed(read: Read) -> None:
    backend, away = Backend(), Backend()
    async with listening(backend, away):
        text = mail(backend, "").replace(
            "health_check", f"server 127.0.0.1:{away.port} down; health_check"
        )
        async with watching(read(text)):
            await backend.wait_probed(3)
    assert away.probes == 0
