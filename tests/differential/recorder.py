"""Writes down what nginx does, and puts it into the scripts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import trio

from tests.differential.channel import CLOSE, OPEN
from tests.differential.neighbours import Stage
from tests.differential.notation import to_bytes
from tests.differential.player import Player
from tests.differential.script import NGINX, Script, Step, groups

_PATIENCE = 5.0
_QUIET = 0.25
"""Seconds of silence that are taken for the end of what the proxy says."""

_Block = tuple[list[Step], list[Step]]
"""What the proxy says according to the script, and what we do then."""


def _blocks(script: Script, *, new: bool) -> Iterator[_Block]:
    """The steps that hold for nginx, cut where something of the proxy may come."""
    said: list[Step] = []
    for group in groups(script.steps_for(NGINX)):
        first = group[0]
        if first.kind in "SPQ" and first.text != OPEN:
            said += group
        elif first.kind != "L":
            if said or (new and first.kind != "pause"):
                yield said, group
                said = []
            else:
                yield [], group
    yield said, []


class Recorder(Player):
    """Plays a script, and takes down whatever the proxy says.

    Args:
      new: the script may lack steps, so the proxy is listened to after each sending;
        otherwise only where it says something now.
    """

    def __init__(self, script: Script, stage: Stage, *, new: bool) -> None:
        super().__init__(script, stage)
        self._new = new
        self.said: list[list[Step]] = []

    async def perform(self) -> None:
        for awaited, group in _blocks(self.script, new=self._new):
            for step in awaited:
                if step.kind == "S":
                    await self.around.channel("S", step.label)
            listen = awaited or not group or (self._new and group[0].kind != "pause")
            self.said.append(await self._listen(awaited) if listen else [])
            if group:
                await self.act(group)

    async def _listen(self, awaited: Sequence[Step]) -> list[Step]:
        """What the proxy says: what is awaited, or all until it is silent."""
        said: list[Step] = []
        closes = "SPQ" if any(str(step) == f"Q: {CLOSE}" for step in awaited) else "SP"
        while not said or by_side(said) != by_side(awaited):
            patience = _QUIET if len(said) >= len(awaited) else _PATIENCE
            with trio.move_on_after(patience) as scope:
                # Nothing tells of silence.
                while not (news := self.take_rest(closes=closes, lines=True)):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                said += news
            if scope.cancelled_caught:
                if not (news := self.take_rest(closes=closes)):
                    break
                said += news
        return said

    async def check_log(self) -> None:
        self.read_log()

    def put(self, lines: list[list[str]]) -> None:
        """Put what was said into `lines`, for each line of the file what replaces it."""
        anchor = self.script.head
        for (old, group), said in zip(
            _blocks(self.script, new=self._new), self.said, strict=False
        ):
            self._replace(old, said, anchor, lines)
            anchor = group[-1].number if group else anchor
        old = [step for step in self.steps if step.kind == "L"]
        last = max((step.number for step in self.script.steps), default=anchor)
        self._replace(old, self.playback.log, last, lines)

    def _replace(
        self, old: list[Step], said: list[Step], anchor: int, lines: list[list[str]]
    ) -> None:
        if by_side(old) == by_side(said):
            return
        if any(step.inserted or step.proxy for step in old):
            texts = "\n  ".join(map(str, said))
            sys.stderr.write(f"{self.script.name}: nginx says\n  {texts}\n")
            return
        for step in old:
            lines[step.number] = []
        if old:
            lines[old[0].number] = list(map(str, said))
        else:
            lines[anchor] += list(map(str, said))


def rewrite(recorders: Sequence[Recorder]) -> None:
    """Write what was said into the files."""
    for file in dict.fromkeys(recorder.script.file for recorder in recorders):
        lines = [[line] for line in file.read_text(encoding="utf-8").split("\n")]
        for recorder in recorders:
            if recorder.script.file == file:
                recorder.put(lines)
        text = "\n".join(line for replaced in lines for line in replaced)
        file.write_text(text, encoding="utf-8")


def by_side(steps: Sequence[Step]) -> list[bytes]:
    """Steps as bytes, each connection's in its order, the connections in one."""
    ordered = sorted(steps, key=lambda step: (step.kind, step.label))
    return [to_bytes(str(replace(step, proxy=""))) for step in ordered]
