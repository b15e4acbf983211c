"""Plays scripts to a running proxy and writes down what it does."""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path

import trio

from tests.differential import log, requests
from tests.differential.channel import CLOSE, OPEN, PATIENCE, Channel, Mismatch
from tests.differential.names import Names
from tests.differential.notation import line_bytes, to_bytes
from tests.differential.script import OURS, Script, Step, groups
from tests.differential.signs import Signs

QUIET = 0.25
"""A recording takes so many seconds of silence for the end of what the proxy says."""

_EVENT = re.compile(r"⟨(close|fin|reset|tls)((?: \w+=\S+)*)⟩")
_SHORT_ANSWER = re.compile(r"OK|WAIT|NO(?: (.*))?")
_SIDE = {"C": "S", "S": "S", "A": "Q", "Q": "Q", "B": "P", "P": "P"}


class Recording(Enum):
    """Whether the proxy's words are compared, or written down."""

    NO = auto()
    AGAIN = auto()
    """The script has all steps; only their texts may have changed."""
    NEW = auto()
    """The script may lack steps: after each sending the proxy may say something."""


@dataclass(frozen=True)
class Stage:
    """A proxy that is ready for one script, and the ports of everyone."""

    proxy: str
    directory: Path
    log: log.Log
    listen: str
    """Where it listens: `127.0.0.1:143`, `[::1]:143`, `unix:/path`."""
    port: int
    auth_port: int
    auth_socket: Path
    backend_port: int
    dns_port: int
    closed_port: int
    """A port where nobody listens."""
    signs: dict[bytes, bytes] = field(default_factory=dict)
    """Texts that differ from run to run."""


@dataclass
class Playback:
    """What came of playing a script."""

    lines: list[str] = field(default_factory=list)
    """The dialogue as it went, in the language of the scripts."""
    fault: str = ""
    """Where it left the script; empty where it did not."""
    blocks: list[list[Step]] = field(default_factory=list)
    """Of a recording: what the proxy said before each sending, and at the end."""
    log: list[Step] = field(default_factory=list)


class Player:
    """One play: the clients, the auth server and the backend of a script."""

    def __init__(self, script: Script, stage: Stage, *, bytewise: bool = False, record: Recording = Recording.NO) -> None:
        self.script, self.stage = script, stage
        self.bytewise, self.record = bytewise, record
        self.recording = record is not Recording.NO
        self.steps = script.steps_for(stage.proxy)
        self.playback = Playback()
        ports = {
            "listen": stage.port,
            "auth": stage.auth_port,
            "backend": stage.backend_port,
            "dns": stage.dns_port,
            "closed": stage.closed_port,
        }
        self.signs = Signs(ports)
        self.signs.texts.update(stage.signs)
        self.signs.texts[bytes(stage.auth_socket)] = "⟨socket⟩".encode()
        self.channels: dict[tuple[str, int], Channel] = {}
        self.arrived: dict[str, list[Channel]] = {"Q": [], "P": []}
        self.arrival = trio.Event()
        self.left: list[Channel] = []
        self.leaving = False
        self.said_before = len(stage.log.entries(stage.listen))

    async def play(self) -> Playback:
        """Play all of it. Nothing that the proxy does raises."""
        async with trio.open_nursery() as self.nursery:
            await self._open()
            try:
                await self.channel("S", 1)
                await self._perform()
                self._note_rest()
            except Mismatch as mismatch:
                self.playback.fault = str(mismatch)
                await trio.sleep(QUIET)  # what still comes is for the reader of the report
                self._note_rest()
            await self._leave()
            await self._check_log()
            self.nursery.cancel_scope.cancel()
        return self.playback

    async def _open(self) -> None:
        """Listen, as auth server and as backend."""
        listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stage.auth_socket.unlink(missing_ok=True)
        await listening.bind(str(self.stage.auth_socket))
        listening.listen()
        self.nursery.start_soon(self._accept, "Q", trio.SocketListener(listening))
        (listener,) = await trio.open_tcp_listeners(self.stage.auth_port, host="127.0.0.1")
        self.nursery.start_soon(self._accept, "Q", listener)
        for host in ("127.0.0.1", "::1"):
            (listener,) = await trio.open_tcp_listeners(self.stage.backend_port, host=host)
            self.nursery.start_soon(self._accept, "P", listener)
        if self.script.dns:
            names = Names(self.script.dns)
            await names.bind(self.stage.dns_port)
            self.nursery.start_soon(names.serve)

    async def _accept(self, side: str, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                channel = Channel(await listener.accept())
                if self.leaving:
                    channel.close()
                    continue
                self.nursery.start_soon(channel.pump)
                self.arrived[side].append(channel)
                self.arrival.set()
                self.arrival = trio.Event()

    async def channel(self, kind: str, label: int, *, fresh: bool = False) -> Channel:
        """The connection a step speaks of; a client connects now, others are awaited.

        `fresh`: not one that has been answered already.
        """
        key = (_SIDE[kind], label)
        known = self.channels.get(key)
        if known is None or (fresh and known.answered):
            if known is not None:
                self.left.append(known)
            self.channels[key] = await (self._connect() if key[0] == "S" else self._arrival(key[0]))
        return self.channels[key]

    async def _connect(self) -> Channel:
        if self.script.address == "unix":
            stream = await trio.open_unix_socket(self.stage.listen.removeprefix("unix:"))
        else:
            stream = await trio.open_tcp_stream(self.script.address, self.stage.port)
            number = sum(name.startswith("client") for name in self.signs.ports) + 1
            name = "client" if number == 1 else f"client{number}"
            self.signs.ports[name] = stream.socket.getsockname()[1]
        channel = Channel(stream)
        self.nursery.start_soon(channel.pump)
        return channel

    async def _arrival(self, side: str) -> Channel:
        with trio.move_on_after(PATIENCE):
            while not self.arrived[side]:
                await self.arrival.wait()
            return self.arrived[side].pop(0)
        whom = "auth server" if side == "Q" else "backend"
        raise Mismatch(f"waited {PATIENCE:.0f} s for a connection to the {whom}")

    async def _perform(self) -> None:
        awaited: list[Step] = []
        for group in groups(self.steps):
            first = group[0]
            if first.kind == "L":
                continue
            if first.kind in "SPQ" and first.text != OPEN:
                if not self.recording:
                    await self._receive(group)
                    continue
                awaited += group
                if first.kind == "S":
                    await self.channel("S", first.label)
                continue
            if awaited or (self.record is Recording.NEW and first.kind != "pause"):
                await self._record(awaited)
                awaited = []
            if first.text == OPEN:
                await self.channel(first.kind, first.label)
                self.playback.lines.append(str(first))
            elif first.kind == "pause":
                self.playback.lines.append(f"pause: {first.text}")
                await trio.sleep(float(first.text.removesuffix("s")))
            else:
                await self._send(group)
        if self.recording:
            await self._record(awaited)

    async def _send(self, group: list[Step]) -> None:
        first = group[0]
        channel = await self.channel(first.kind, first.label)
        channel.answered = True
        self.playback.lines += map(str, group)
        event = _EVENT.fullmatch(first.text)
        if event is None:
            data = self._answer(group) if first.kind == "A" else self._segment(group)
            await channel.send(data, bytewise=self.bytewise)
        elif event[1] == "tls":
            arguments = dict(word.split("=", 1) for word in event[2].split())
            await channel.start_tls(arguments, self.stage.directory)
            self.nursery.start_soon(channel.pump)
        elif event[1] == "fin":
            channel.finish_sending()
        else:
            channel.close(reset=event[1] == "reset")

    def _segment(self, steps: Sequence[Step]) -> bytes:
        return b"".join(line_bytes(self.signs.fill_in(step.text)) for step in steps)

    def _answer(self, group: list[Step]) -> bytes:
        short = _SHORT_ANSWER.fullmatch(group[0].text)
        if short is None:
            return self._segment(group)
        status = to_bytes(short[1] or "") if group[0].text.startswith("NO") else short[0].encode()
        headers = self._segment(group[1:])
        if status == b"OK":
            where = {b"Auth-Server": b"127.0.0.1", b"Auth-Port": b"%d" % self.signs.ports["backend"]}
            for name, value in where.items():
                headers += b"" if name in headers else b"%s: %s\r\n" % (name, value)
        return b"HTTP/1.0 200 OK\r\nAuth-Status: %s\r\n%s\r\n" % (status, headers)

    async def _receive(self, group: list[Step]) -> None:
        first = group[0]
        if first.kind == "Q" and first.text != CLOSE:
            await self._receive_request(await self.channel("Q", first.label, fresh=True), group)
            return
        channel = await self.channel(first.kind, first.label)
        for step in group:
            expected = line_bytes(step.text)
            if step.text.endswith("…"):
                got = await channel.take_exactly(len(expected))
            else:
                got = await channel.take_line()
            self._compare(step, got)

    def _compare(self, step: Step, got: bytes | str) -> None:
        text = got if isinstance(got, str) else self.signs.text(got)
        shown = replace(step, text=text)
        same = got == step.text if isinstance(got, str) else self.signs.put(got) == line_bytes(step.text)
        self.playback.lines.append(str(step if same else shown))
        if not same:
            raise Mismatch(f"expected {step}\n     got {shown}")

    async def _receive_request(self, channel: Channel, group: list[Step]) -> None:
        got = await channel.take_request()
        if isinstance(got, str):
            self._compare(group[0], got)
            return
        expected = [line for step in group for line in self._expand(step.text)]
        wanted = b"".join(map(line_bytes, [*expected, ""]))
        if self._request(got) == wanted:
            self.playback.lines += map(str, group)
            return
        self.playback.lines += map(str, self._questions(got, group[0].label))
        raise Mismatch("expected another auth request: " + "\n    ".join(expected))

    def _request(self, data: bytes) -> bytes:
        if self.stage.proxy == OURS:  # which asks to keep the connection; all else must be equal
            data = data.replace(b"Connection: keep-alive\r\n", b"", 1)
        return self.signs.put(data)

    def _expand(self, text: str) -> list[str]:
        found = re.fullmatch(r"(.*) #(\d+)", text)
        attempt = int(found[2]) if found else 1
        return requests.expand(found[1] if found else text, self.script.protocol, attempt)

    def _questions(self, data: bytes, label: int) -> list[Step]:
        """A received request as steps, in the short form where there is one."""
        lines = [self.signs.text(line) for line in split_lines(self._request(data))]
        if lines[-1] == "":
            lines.pop()
        found = re.search(r"^Auth-Login-Attempt: (\d+)$", "\n".join(lines), re.MULTILINE)
        attempt = int(found[1]) if found else 1
        texts = requests.shorten(lines, self.script.protocol, attempt)
        if len(texts) < len(lines) and attempt > 1:
            texts[0] += f" #{attempt}"
        return [Step("Q", text, label, joined=index > 0) for index, text in enumerate(texts)]

    def _rest(self, *, closes: str) -> list[Step]:
        """What has been received and was not asked for; `closes`: sides whose end counts."""
        for side, arrived in self.arrived.items():
            for channel in arrived:
                free = (n for n in range(1, 99) if self.channels.get((side, n)) is None or self.channels[side, n].answered and side == "Q")
                self.channels[side, next(free)] = channel
            arrived.clear()
        steps = []
        for (side, label), channel in self.channels.items():
            data = bytes(channel.buffer)
            channel.buffer.clear()
            if side == "Q" and data:
                steps += self._questions(data, label)
            else:
                steps += [Step(side, self.signs.text(line), label) for line in split_lines(data)]
            steps += [Step(side, text, label) for text in channel.events]
            channel.events.clear()
            if channel.ended and not channel.told and side in closes:
                channel.told = True
                steps.append(Step(side, CLOSE, label))
        return steps

    def _note_rest(self) -> None:
        rest = self._rest(closes="S")
        self.playback.lines += map(str, rest)
        if rest and not self.playback.fault:
            self.playback.fault = f"not expected: {rest[0]}"

    async def _record(self, awaited: Sequence[Step]) -> None:
        """Take what the proxy says: what is awaited, or all until it is silent."""
        block: list[Step] = []
        while not block or by_side(block) != by_side(awaited):
            with trio.move_on_after(QUIET if len(block) >= len(awaited) else PATIENCE / 2):
                while not (news := self._rest(closes="SP")):
                    await trio.sleep(0.01)
                block += news
                continue
            break
        self.playback.blocks.append(block)
        self.playback.lines += map(str, block)

    async def _leave(self) -> None:
        """End all connections, the client's last, so that the log is complete."""
        self.leaving = True
        clients = [channel for (side, _), channel in self.channels.items() if side == "S"]
        others = [*self.left, *(c for (side, _), c in self.channels.items() if side != "S")]
        for channel in clients:
            channel.finish_sending()
        for channel in [*others, *self.arrived["Q"], *self.arrived["P"]]:
            channel.close()
        for channel in clients:
            try:
                await channel.wait_until(lambda channel=channel: channel.ended, "the proxy to close")
            except Mismatch as mismatch:
                self.playback.fault = self.playback.fault or f"{mismatch} after the client did"
            channel.close()

    async def _check_log(self) -> None:
        if self.script.log != "yes":
            return
        expected = log.wanted(self.steps)
        with trio.move_on_after(0 if self.playback.fault or self.recording else 2):
            while len(self._log()) < len(expected):
                await trio.sleep(0.01)
        lines = list(map(str, self._log()))
        if self.stage.proxy == OURS:
            lines = log.without_more(lines, expected)
        self.playback.lines += lines
        if list(map(to_bytes, lines)) != list(map(to_bytes, expected)) and not self.playback.fault:
            self.playback.fault = "another log expected:\n    " + "\n    ".join(expected)

    def _log(self) -> list[Step]:
        entries = self.stage.log.entries(self.stage.listen)[self.said_before :]
        self.playback.log = log.steps(entries, self.stage.listen, self.signs)
        return self.playback.log


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their ends, which are LF; the last may have none."""
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", data)


def by_side(steps: Sequence[Step]) -> list[str]:
    """Steps as text, each connection's in its order, the connections in one."""
    return [str(replace(step, proxy="")) for step in sorted(steps, key=lambda step: (step.kind, step.label))]
