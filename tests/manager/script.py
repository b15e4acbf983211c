"""Probes over streams in memory: B is what the backend sends, P what the probe does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from trio.testing import memory_stream_pair

from mailproxy.manager.probes.peer import Failure
from mailproxy.manager.probes.probe import Probe, run

Connect = Callable[[Probe], Awaitable[trio.abc.Stream]]


def lines(script: str) -> list[tuple[str, bytes]]:
    """The lines of a script as (sign, octets), with the ends of lines."""
    found = []
    for line in filter(None, map(str.strip, script.splitlines())):
        sign, _, text = line.partition(":")
        octets = (
            text.removeprefix(" ").encode().decode("unicode_escape").encode("latin-1")
        )
        found.append((sign, octets + b"\r\n"))
    return found


class Backend:
    """The other end of a probe's connection.

    Attributes:
      sent: all that the probe has sent.
    """

    def __init__(self, script: str, *, closes: bool = False) -> None:
        """Args:
        closes: whether it closes at the end of the script, and not with the probe.
        """
        self.sent = b""
        self._script = lines(script)
        self._closes = closes

    async def play(self, stream: trio.abc.Stream) -> None:
        """Play all lines, and close the connection."""
        await self.play_on(stream)
        if not self._closes:
            while data := await stream.receive_some():
                self.sent += data
        await stream.aclose()

    async def play_on(self, stream: trio.abc.Stream) -> None:
        """Play all lines, and leave the connection open."""
        buffer = b""
        for sign, octets in self._script:
            if sign == "B":
                await stream.send_all(octets)
                continue
            while len(buffer) < len(octets):
                data = await stream.receive_some()
                assert data, f"the probe has not sent {octets!r}"
                self.sent += data
                buffer += data
            assert buffer[: len(octets)] == octets
            buffer = buffer[len(octets) :]


async def play(probe: Probe, script: str, *, closes: bool = False) -> Failure | None:
    """Run a probe against a script, every line of which has to be played."""
    backend = Backend(script, closes=closes)
    ours, theirs = memory_stream_pair()

    async def connect(_: Probe) -> trio.abc.Stream:
        return ours

    found: list[Failure | None] = []

    async def probe_it() -> None:
        found.append(await run(probe, connect))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.play, theirs)
        nursery.start_soon(probe_it)
    return found[0]
