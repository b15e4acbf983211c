"""Plays dialogues as RFCs write them, in memory and in virtual time.

A script says who sends what, in the order in which it happens:

    C: client to proxy         S: proxy to client
    B: backend to proxy        P: proxy to backend
    A: auth server to proxy    Q: proxy to auth server
    L: the next line of the log, from level info on

`C| ` continues the segment of the line before. `⟨close⟩ ⟨reset⟩ ⟨tls⟩ ⟨silence⟩` are
events; other signs are those of `differential.notation`. Auth requests and answers
have a short form (`Q: plain u p`, `Q: ⟨any⟩`, `A: OK`, `A: NO text`). Time
passes when nothing else can happen: `wait 3` waits, `at 60` tells how many seconds
have passed since the start.
"""

from __future__ import annotations

import atexit
import errno
import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.auth.http import AuthHttpSettings, AuthUrl
from mailproxy.log import INFO, SessionInfo
from mailproxy.mail import session
from mailproxy.net.dns import Resolver
from mailproxy.process.configuration import Loader
from tests.captured_log import CapturedLog
from tests.differential import requests
from tests.differential.notation import line_bytes, to_bytes
from tests.differential.signs import Signs
from tests.memory import MemoryNetwork, MemoryWire

if TYPE_CHECKING:
    from mailproxy.conf.addresses import SocketAddress
    from mailproxy.mail.server import Server

CLIENT = "127.0.0.1"
BACKEND = ("127.0.0.1", 9143)
"""Where answers `A: OK` lead to."""
FOREVER = 10_000_000
"""Seconds; whoever waits longer than this hangs."""
OPENINGS = {
    "imap": "S: * OK IMAP4 ready\nC: a LOGIN u p\nQ: plain u p\nA: OK",
    "pop3": "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS p\nQ: plain u p\nA: OK",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcA==\nQ: plain u p\nA: OK",
}
"""A client that is let in, by protocol; what follows is said to its backend."""
INTERNAL_ERRORS = {
    "imap": "* BAD internal server error",
    "pop3": "-ERR internal server error",
    "smtp": "451 4.3.2 Internal server error",
}
FAILED = {name: f"S: {text}\nS: ⟨close⟩" for name, text in INTERNAL_ERRORS.items()}
"""What a client sees of a failure behind the proxy."""
_USUAL = f", client: {CLIENT}, server: 127.0.0.1:1143"
_STEP = re.compile(r"([CSBPAQL])([:|]) ?(.*)|(wait|at) ([\d.]+)")
_ANSWER = re.compile(r"OK|WAIT|NO(?: (.*))?")


@functools.cache
def _directory() -> Path:
    """For the files of this run."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory)
    return Path(directory)


@functools.cache
def certificate() -> Path:
    """A file with a key and a certificate for mx.test."""
    path = _directory() / "mx.test.pem"
    issued = trustme.CA().issue_cert("mx.test")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


_DEFAULTS = {
    "listen": "127.0.0.1:1143",
    "auth_http": "127.0.0.1:9000/auth",
    "server_name": "mx.test",
}


@functools.cache
def load_server(directives: str, around: str = "") -> Server:
    """A server with these directives; `⟨cert⟩` is a file with key and certificate.

    Args:
      around: directives of mail.
    """
    if "⟨cert⟩" in directives:
        directives = directives.replace("⟨cert⟩", str(certificate()))
    for name, value in _DEFAULTS.items():
        if f"{name} " not in directives:
            directives += f" {name} {value};"
    path = _directory() / "nginx.conf"
    path.write_text(f"events {{}} mail {{ {around} server {{ {directives} }} }}")
    loader = Loader(prefix="/", path=str(path), name="mailproxy")
    (server,) = loader.load().servers
    return server


def auth_http(server: Server) -> AuthHttpSettings:
    """The auth source of a server that has no other one."""
    (source,) = server.auth.sources
    assert isinstance(source, AuthHttpSettings)
    return source


def auth_url(server: Server) -> AuthUrl:
    """The auth server of such a server."""
    url = auth_http(server).auth_http
    assert url is not None
    return url


@dataclass(frozen=True)
class Step:
    """A line of a script, with those that continue it."""

    kind: str
    texts: tuple[str, ...]
    number: int

    @property
    def text(self) -> str:
        return self.texts[0]


def parse(script: str) -> list[Step]:
    """The steps of a script; empty lines are passed over."""
    steps: list[Step] = []
    for number, line in enumerate(script.splitlines(), 1):
        if not line.strip():
            continue
        found = _STEP.fullmatch(line.lstrip())
        assert found is not None, f"line {number} is no step: {line}"
        kind, mark, text, word, seconds = found.groups()
        if mark == "|":
            assert steps[-1].kind == kind, f"line {number} continues another step"
            steps[-1] = Step(kind, (*steps[-1].texts, text), steps[-1].number)
        else:
            steps.append(Step(kind or word, (text or seconds or "",), number))
    return steps


@dataclass
class Stage:
    """A session and everyone it talks to.

    Attributes:
      server: who serves the client.
      failing: see `MemoryNetwork`.
      client: address of the client.
      resolver: answers if the server asks for names.
      level: the most verbose level of the log.
      requests: what the auth server was asked.
    """

    server: Server
    failing: Mapping[str, int] = field(default_factory=dict)
    client: str = CLIENT
    resolver: Resolver | None = None
    level: int = INFO

    def __post_init__(self) -> None:
        self.log = CapturedLog(self.level)
        self.signs = Signs({}, {})
        self.wire = MemoryWire(self._news)
        self.network = MemoryNetwork(self._auth_address(), self._news)
        self.network.failing.update(self.failing)
        self.network.known = self.resolver
        self.requests: list[bytes] = []
        self._changed: trio.Event | None = None
        self._logged = 0
        self._strict = False

    def _auth_address(self) -> SocketAddress | None:
        """Where the auth server is, if the sources are not of another kind."""
        for source in self.server.auth.sources:
            if isinstance(source, AuthHttpSettings):
                return auth_url(self.server).sockaddr
        return None

    def _news(self) -> None:
        if self._changed is not None:
            self._changed.set()

    async def run_session(self) -> None:
        """The session, from accept to close."""
        listen = self.server.core.listen[0]
        port = None if self.client == "unix:" else 40000
        self.info = SessionInfo(1, self.client, port, server=listen.address)
        self.info.tags = self.server.core.error_log_user_tag
        self.info.protocol = self.server.protocol.name
        self.info.peer = self.info.client_address
        await session.run(
            self.wire, self.server, listen, self.network, self.log.log, self.info
        )

    async def _run_worker(self) -> None:
        """The session, and what goes on beside it in a worker."""
        async with trio.open_nursery() as background:
            background.start_soon(self.network.idle.expire)
            await self.run_session()
            background.cancel_scope.cancel()

    async def perform(self, steps: list[Step]) -> None:
        """Play the steps; then everyone leaves, and the session has to end."""
        failure: AssertionError | None = None
        with trio.move_on_after(FOREVER) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_worker)
                self._start = trio.current_time()
                try:
                    for step in steps:
                        await self._play(step)
                    await wait_all_tasks_blocked()
                    self._check_rest()
                except AssertionError as raised:
                    failure = raised
                    nursery.cancel_scope.cancel()
                everyone = self.wire, *self.network.wires["P"], *self.network.wires["Q"]
                for wire in everyone:
                    wire.finish()
        if failure is not None:
            raise failure
        assert not patience.cancelled_caught, "the session does not end"
        self.network.close()
        assert not self.network.sessions
        assert all(wire.closed for wire in everyone)
        self.check_sanity()

    def check_sanity(self) -> None:
        """Nothing was logged that only a bug can cause; attacks are none."""
        for level, text in self.log.events:
            fault = "failed (" in text or "possible injection" in text
            assert level not in {"emerg", "alert", "crit"} or fault, text

    def _check_rest(self) -> None:
        sides = {"S": [self.wire], **self.network.wires}
        rest = [
            f"{side}: {bytes(wire.outgoing)!r}"
            for side, wires in sides.items()
            for wire in wires
            if wire.outgoing and not (wire.ended and side != "S")
        ]
        assert not rest, f"not expected: {rest}"
        if self._strict:
            assert not self._log_lines(), f"not expected: {self._log_lines()}"

    async def _play(self, step: Step) -> None:
        match step.kind:
            case "C" | "B" | "A":
                await self._send(step)
            case "S" | "P":
                for text in step.texts:
                    await self._receive(step, text)
            case "Q":
                await self._receive_request(step)
            case "L":
                await wait_all_tasks_blocked()
                self._strict = True
                self._same(step, step.text, (self._log_lines() or ["⟨silence⟩"])[0])
                self._logged += 1
            case "wait":
                await trio.sleep(float(step.text))
            case _:
                passed = trio.current_time() - self._start
                self._same(step, float(step.text), round(passed, 3))

    def _log_lines(self) -> list[str]:
        lines = [
            f"[{level}] {text.replace(_USUAL, ', …')}"
            for level, text in self.log.events[1:]
        ]
        return lines[self._logged :]

    def _same(self, step: Step, wanted: object, got: object) -> None:
        log = "\n    ".join(text for _, text in self.log.events)
        assert wanted == got, (
            f"line {step.number}, {step.kind}\n  wanted {wanted}\n  got    {got}"
            f"\n  log:\n    {log}"
        )

    async def _wire(self, kind: str) -> MemoryWire:
        """The connection that a step is about; awaited if it is not there yet."""
        if kind in "CS":
            return self.wire
        wires = self.network.wires["Q" if kind in "QA" else "P"]
        await self._until(lambda: bool(wires))
        return wires[-1]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    async def _send(self, step: Step) -> None:
        wire = await self._wire(step.kind)
        match step.text:
            case "⟨close⟩":
                wire.finish()
            case "⟨reset⟩":
                wire.finish(errno.ECONNRESET)
            case "⟨refused⟩":
                wire.finish(errno.ECONNREFUSED)
            case "⟨connected⟩":
                wire.establish()
            case "⟨tls⟩":
                wire.shake()
            case _ if step.kind == "A":
                wire.put(answer(step.texts))
            case _:
                wire.put(b"".join(map(line_bytes, step.texts)))
        await wait_all_tasks_blocked()

    async def _receive(self, step: Step, text: str) -> None:
        wire = await self._wire(step.kind)
        data = wire.outgoing
        if text == "⟨silence⟩":
            await wait_all_tasks_blocked()
            self._same(step, (b"", False), (bytes(data), wire.closed))
            return
        wanted = b"" if text == "⟨close⟩" else line_bytes(text)
        if text.endswith("…"):
            await self._until(lambda: len(data) >= len(wanted) or wire.closed)
            end = len(wanted)
        else:
            await self._until(lambda: b"\n" in data or wire.closed)
            end = data.find(b"\n") + 1
        got = bytes(data[:end])
        del data[:end]
        if not got and wire.closed:
            self._same(step, text, "⟨close⟩")
        self._same(step, wanted, self.signs.put(got))

    async def _receive_request(self, step: Step) -> None:
        await self._wire("Q")
        wires = self.network.wires["Q"]

        def asked() -> list[MemoryWire]:
            return [wire for wire in wires if b"\r\n\r\n" in wire.outgoing]

        await self._until(lambda: bool(asked()))
        wire = asked()[-1]
        wires.remove(wire)
        wires.append(wire)  # it is the one that answers
        got = bytes(wire.outgoing)
        wire.outgoing.clear()
        self.requests.append(got)
        if step.text == "⟨any⟩":
            return
        lines = requests.expand(step.text, self.server.protocol.name)
        lines += step.texts[1:]
        if auth_http(self.server).auth_http_keepalive is not None:
            assert b"\r\nConnection: keep-alive\r\n" in got
            got = got.replace(b"Connection: keep-alive\r\n", b"", 1)
        got = self.signs.put(got)
        self._same(step, b"".join(map(line_bytes, [*lines, ""])), got)


def answer(texts: tuple[str, ...]) -> bytes:
    """What the auth server says, from the short form or as it stands."""
    short = _ANSWER.fullmatch(texts[0])
    if short is None:
        return b"".join(map(line_bytes, texts))
    status = texts[0][3:] if texts[0].startswith("NO") else texts[0]
    headers = b"".join(map(line_bytes, texts[1:]))
    if status == "OK":
        where = {b"Auth-Server": BACKEND[0].encode(), b"Auth-Port": b"%d" % BACKEND[1]}
        headers += b"".join(
            b"%s: %s\r\n" % each
            for each in where.items()
            if each[0] + b":" not in headers
        )
    return b"HTTP/1.0 200 OK\r\nAuth-Status: %s\r\n%s\r\n" % (to_bytes(status), headers)


def play(script: str, directives: str, **options: object) -> Stage:
    """Play a script with a server of these directives; returns the stage as it is left.

    Args:
      options: of `Stage`.
    """
    stage = Stage(load_server(directives), **options)  # type: ignore[arg-type] # as there
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))
    return stage
