"""The connection of one probe: lines within bounds, and what is said when it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mailproxy.frozen import Frozen
from mailproxy.log import escape
from mailproxy.log.secrets import HIDDEN, MIN_SECRET, repeats, spellings

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LINE = 8 * 1024
"""Octets of a line."""
MAX_REPLY = 64 * 1024
"""Octets of an answer of several lines."""
MAX_SHOWN = 200
"""Octets of a peer's text in a reason."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a probe has failed.

    Attributes:
      event, values: a message, as the methods of a `Logger` take it.
      local: whether this machine is at fault, so that nothing is known of the peer.
    """

    event: str
    values: tuple[object, ...] = ()
    local: bool = False

    @property
    def text(self) -> str:
        """The whole sentence; what the peer sent is escaped in it."""
        return self.event % tuple(map(escape, self.values))


class ProbeError(Frozen, Exception):
    """A probe has failed.

    Attributes:
      failure: why.
    """

    def __init__(self, event: str, *values: object, local: bool = False) -> None:
        # The values may come from outside, so they are kept out of the text.
        super().__init__(event)
        self.failure = Failure(event, values, local)


class ProbedPeer:
    """A peer that is being probed.

    Attributes:
      stream: the connection.
      doing: what the probe does or waits for, to say when it fails: "connecting".
      encrypted: whether there is TLS.
      received: what the peer has sent, since TLS began if it did: the first `MAX_LINE`
        octets.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.doing = "connecting"
        self.encrypted = False
        self.received = bytearray()
        self._buffer = bytearray()
        self._secrets: tuple[bytes, ...] = ()
        self._short = self._mute = False

    def use_tls(self, stream: trio.abc.Stream) -> None:
        """Go on in TLS; what was received in clear text is forgotten."""
        self.stream = stream
        self.encrypted = True
        self.received.clear()
        self._buffer.clear()

    @property
    def unread(self) -> bytes:
        """What the peer has sent behind the last line that was read."""
        return bytes(self._buffer)

    def hide(self, user: bytes, password: bytes) -> None:
        """Keep a login out of what is shown, which the peer may know from before."""
        self._secrets = (*spellings(user), *spellings(password, user))
        self._short = min(len(user), len(password)) < MIN_SECRET

    def begin_login(self) -> None:
        """Note that the peer gets to know the login now.

        One that is too short to be looked for could be in anything that it says then.
        """
        self._mute = self._short

    def shown(self, text: bytes) -> bytes:
        """What may be said of a text of the peer."""
        if self._mute or repeats(text, self._secrets):
            return HIDDEN
        return text.rstrip(b"\r\n")[:MAX_SHOWN]

    def invalid(self, what: str, text: bytes) -> ProbeError:
        """The error for an answer that is not what it has to be: "greeting"."""
        return ProbeError(f'invalid {what}: "%s"', self.shown(text))

    async def send(self, data: bytes) -> None:
        """Send data.

        Raises:
          ProbeError: the connection broke.
        """
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise self._broken(error) from None

    async def ask(self, command: bytes, what: str) -> None:
        """Send a command, whose answer is read next.

        Args:
          what: the command in a sentence: "CAPABILITY".

        Raises:
          ProbeError: the connection broke, or the peer answers before it is asked.
        """
        if self._buffer:
            raise self.invalid(f"answer before {what}", self.unread)
        self.doing = f"waiting for the answer to {what}"
        await self.send(command)

    async def read_line(self) -> bytes:
        """Read a line, with its LF.

        Raises:
          ProbeError: the peer closed, or the line is too long.
        """
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched) + 1
            if 0 < end <= MAX_LINE:
                line = bytes(self._buffer[:end])
                del self._buffer[:end]
                return line
            if len(self._buffer) > MAX_LINE:
                raise ProbeError('too long line: "%s"', self.shown(self.unread))
            searched = len(self._buffer)
            await self.receive()

    async def receive(self) -> None:
        """Receive more octets.

        Raises:
          ProbeError: the peer closed, or the connection broke.
        """
        try:
            data = await self.stream.receive_some(MAX_LINE)
        except trio.BrokenResourceError as error:
            raise self._broken(error) from None
        if not data:
            raise self._closed()
        self._buffer += data
        self.received += data[: MAX_LINE - len(self.received)]

    def _closed(self) -> ProbeError:
        event, values = "closed connection while %s", (self.doing,)
        if self._buffer:  # a line without an end may say why
            return ProbeError(f'{event} after "%s"', *values, self.shown(self.unread))
        return ProbeError(event, *values)

    def _broken(self, error: trio.BrokenResourceError) -> ProbeError:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno is not None:
            return ProbeError(
                "connection broke while %s (%s: %s)",
                self.doing,
                cause.errno,
                cause.strerror,
            )
        return ProbeError("connection broke while %s", self.doing)


def check_size(lines: Iterable[bytes], what: str) -> None:
    """Check the size of an answer of several lines.

    Raises:
      ProbeError: it has more than `MAX_REPLY` octets.
    """
    if sum(map(len, lines)) > MAX_REPLY:
        raise ProbeError("too long answer to %s", what)
