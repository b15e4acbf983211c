"""Plays a script to a running proxy, and compares what it does with what it should do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import trio

from tests.differential import log, requests
from tests.differential.channel import CLOSE, OPEN, Channel, MismatchError
from tests.differential.neighbours import Neighbours, Stage
from tests.differential.notation import line_bytes, split_lines, to_bytes
from tests.differential.script import NGINX, OURS, Script, Step, groups

_LOG_PATIENCE = 20.0
"""Seconds after which a line that is not in the log is missing; it was written before the end."""

_EVENT = re.compile(r"⟨(close|fin|reset|tls)((?: \w+=\S+)*)⟩")
_SHORT_ANSWER = re.compile(r"OK|WAIT|NO(?: (.*))?")


@dataclass
class Playback:
    """What came of playing a script."""

    lines: list[str] = field(default_factory=list)
    """The dialogue as it went, in the language of the scripts."""
    fault: str = ""
    """Where it left the script; empty where it did not."""
    log: list[Step] = field(default_factory=list)


class Player:
    """One play of one script."""

    def __init__(self, script: Script, stage: Stage, *, bytewise: bool = False) -> None:
        self.script, self.stage, self.bytewise = script, stage, bytewise
        self.steps = script.steps_for(stage.proxy)
        self.playback = Playback()
        self.signs = stage.signs()
        self.around = Neighbours(script, stage, self.signs)
        self._said_before = len(stage.log.entries(stage.listen))

    async def play(self) -> Playback:
        """Play all of it. Nothing that the proxy does raises."""
        async with trio.open_nursery() as nursery:
            try:
                await self.around.open(nursery)
                await self.perform()
            except MismatchError as mismatch:
                self._fail(str(mismatch))
                await trio.sleep(
                    0.2
                )  # what still comes is for the reader of the report
            self._note_rest()
            try:
                await self.around.leave()
            except MismatchError as mismatch:
                self._fail(f"{mismatch} after the client did")
            await self.check_log()
            nursery.cancel_scope.cancel()
        return self.playback

    def _fail(self, fault: str) -> None:
        self.playback.fault = self.playback.fault or fault

    async def perform(self) -> None:
        """Go through the steps.

        Raises:
          MismatchError: the proxy does something else.
        """
        for group in groups(self.steps):
            if group[0].kind in "SPQ" and group[0].text != OPEN:
                await self._receive(group)
            elif group[0].kind != "L":
                await self.act(group)

    async def act(self, group: list[Step]) -> None:
        """Do what a step that is not the proxy's says."""
        first = group[0]
        self.playback.lines += map(str, group)
        if first.kind == "pause":
            await trio.sleep(float(first.text.removesuffix("s")))
            return
        channel = await self.around.channel(first.kind, first.label)
        if first.text == OPEN:
            return
        channel.answered = True
        event = _EVENT.fullmatch(first.text)
        if event is None:
            data = self._answer(group) if first.kind == "A" else self._segment(group)
            await channel.send(data, bytewise=self.bytewise)
        elif event[1] == "tls":
            arguments = dict(word.split("=", 1) for word in event[2].split())
            await channel.start_tls(arguments, self.stage.directory)
            self.around.pump(channel)
        else:
            if self.stage.proxy == NGINX:
                # When an end comes with the data before it, nginx may miss it, and wait
                # for its timeout. For us the order must make no difference.
                await channel.wait_until_read()
            if event[1] == "fin":
                channel.finish_sending()
            else:
                channel.close(reset=event[1] == "reset")

    def _segment(self, steps: Sequence[Step]) -> bytes:
        return b"".join(line_bytes(self.signs.fill_in(step.text)) for step in steps)

    def _answer(self, group: list[Step]) -> bytes:
        short = _SHORT_ANSWER.fullmatch(group[0].text)
        if short is None:
            return self._segment(group)
        refused = short[0].startswith("NO")
        status = to_bytes(short[1] or "") if refused else short[0].encode()
        headers = self._segment(group[1:])
        if status == b"OK":
            port = b"%d" % self.stage.backend_port
            for name, value in {
                b"Auth-Server": b"127.0.0.1",
                b"Auth-Port": port,
            }.items():
                headers += b"" if name in headers else b"%s: %s\r\n" % (name, value)
        return b"HTTP/1.0 200 OK\r\nAuth-Status: %s\r\n%s\r\n" % (status, headers)

    async def _receive(self, group: list[Step]) -> None:
        first = group[0]
        if first.kind == "Q" and first.text != CLOSE:
            channel = await self.around.channel("Q", first.label, fresh=True)
            await self._receive_request(channel, group)
            return
        channel = await self.around.channel(first.kind, first.label)
        for step in group:
            if step.text.endswith("…"):
                got = await channel.take_exactly(len(line_bytes(step.text)))
            else:
                got = await channel.take_line()
            self._compare(step, got)

    def _compare(self, step: Step, got: bytes | str) -> None:
        if isinstance(got, str):
            same, text = got == step.text, got
        else:
            same = self.signs.put(got) == line_bytes(step.text)
            text = self.signs.text(got)
        shown = replace(step, text=text)
        self.playback.lines.append(str(step if same else shown))
        if not same:
            raise MismatchError(f"expected {step}\n     got {shown}")

    async def _receive_request(self, channel: Channel, group: list[Step]) -> None:
        got = await channel.take_request()
        if isinstance(got, str):
            self._compare(group[0], got)
            return
        protocol = self.script.protocol
        expected = [
            line for step in group for line in requests.expand(step.text, protocol)
        ]
        if self._request(got) == b"".join(map(line_bytes, [*expected, ""])):
            self.playback.lines += map(str, group)
            return
        self.playback.lines += map(str, self.questions(got, group[0].label))
        raise MismatchError(
            "\n    ".join(["expected another auth request:", *expected])
        )

    def _request(self, data: bytes) -> bytes:
        kept = "auth_http_keepalive off" not in self.script.directives(OURS)
        if self.stage.proxy == OURS and kept:
            # It asks to keep the connection; all else is equal.
            data = data.replace(b"Connection: keep-alive\r\n", b"", 1)
        return self.signs.put(data)

    def questions(self, data: bytes, label: int) -> list[Step]:
        """A received request as steps, in the short form where there is one."""
        lines = [self.signs.text(line) for line in split_lines(self._request(data))]
        if lines[-1] == "":
            lines.pop()
        texts = requests.shorten(lines, self.script.protocol)
        return [
            Step("Q", text, label, joined=index > 0) for index, text in enumerate(texts)
        ]

    def take_rest(self, *, closes: str, lines: bool = False) -> list[Step]:
        """What has been received and was not asked for.

        Args:
          closes: sides whose end counts.
          lines: only whole lines.
        """
        self.around.label_arrived()
        steps = []
        for (side, label), channel in self.around.channels.items():
            data, events = channel.take_all(lines=lines)
            if side == "Q" and data:
                steps += self.questions(data, label)
            else:
                texts = [self.signs.text(line) for line in split_lines(data)]
                steps += [Step(side, text, label) for text in texts]
            steps += [Step(side, text, label) for text in events]
            if side in closes and channel.is_news_that_it_ended():
                steps.append(Step(side, CLOSE, label))
        return steps

    def _note_rest(self) -> None:
        rest = self.take_rest(closes="S")
        self.playback.lines += map(str, rest)
        if rest:
            self._fail(f"not expected: {rest[0]}")

    async def check_log(self) -> None:
        """Compare the log; its last lines may still be on their way."""
        if self.script.log != "yes":
            return
        expected = log.wanted(self.steps)
        with trio.move_on_after(0 if self.playback.fault else _LOG_PATIENCE):
            # A file tells nobody that it grew.
            while len(self.read_log()) < len(expected):  # noqa: ASYNC110
                await trio.sleep(0.01)
        lines = list(map(str, self.read_log()))
        if self.stage.proxy == OURS:
            lines = log.without_more(lines, expected)
        self.playback.lines += lines
        if list(map(to_bytes, lines)) != list(map(to_bytes, expected)):
            self._fail("\n    ".join(["another log expected:", *expected]))

    def read_log(self) -> list[Step]:
        """What the log says of this play."""
        entries = self.stage.log.entries(self.stage.listen)[self._said_before :]
        self.playback.log = log.steps(entries, self.stage.listen, self.signs)
        return self.playback.log
