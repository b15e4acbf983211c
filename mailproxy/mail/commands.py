"""What the clients' commands have in common in all protocols."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailproxy.frozen import Frozen

if TYPE_CHECKING:
    from mailproxy.mail.protocol import MailProtocol

KIB = 1024
USUAL_BUFFER = 4 * KIB
"""Octets of a default `*_client_buffer` on most machines."""
MAX_ADVICE = 64 * KIB
"""The largest buffer that the log advises; a longer command is not a login."""
MAX_SHOWN = 400
"""Octets of a too long command that the log shows. Log lines are cut at 2048, an
escaped octet takes four, and the advice behind the command has to fit as well."""

MAX_ANSWERS = 256
"""Lists of capabilities that a worker remembers: four at most for each server's."""

_REVEALING = re.compile(
    rb"\s*(?:\S+\s+)??(?:LOGIN|AUTHENTICATE|AUTH|PASS|APOP)(?!\S)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a client.

    Attributes:
      name: in upper case.
      arguments: the words behind it; there may be secrets among them.
    """

    name: bytes
    arguments: list[bytes] = field(repr=False)


class BadCommand(Frozen, Exception):  # noqa: N818 - an event of the dialogue, not a fault
    """A command that is answered with the protocol's line for invalid commands.

    Attributes:
      event, values: the log line about it, if any.
      counted: whether it counts towards `max_errors`, because the parser rejected it. A
        well-formed command that is refused does not count.
      close: whether the session ends after the answer.
    """

    def __init__(
        self,
        event: str = "",
        *values: object,
        counted: bool = False,
        close: bool = False,
    ) -> None:
        super().__init__(event)
        self.event = event
        self.values = values
        self.counted = counted
        self.close = close


def split_words(text: bytes, room: int) -> list[bytes]:
    """Split a text at its spaces, any number of which may surround each word.

    Raises:
      BadCommand: there are more than `room` words.
    """
    words = text.split(b" ")
    if b"" in words:
        words = [word for word in words if word]
    if len(words) > room:
        raise BadCommand(counted=True)
    return words


def redacted(command: bytes) -> bytes:
    """A command as the log may show it: without anything that may be a secret."""
    found = _REVEALING.match(command)
    return command if found is None else found[0] + b" ..."


def too_long_command(
    protocol: MailProtocol, shown: bytes, needed: int = 0
) -> BadCommand:
    """The error for a command that does not fit into the buffer; it ends the session.

    OAuth tokens may need a larger buffer than the default, so the log says which
    directive to increase, and how far, up to `MAX_ADVICE`.

    Args:
      shown: the part of the command for the log.
      needed: octets that the command is known to have, at least.
    """
    event = 'client sent too long command "%s"'
    if len(shown) > MAX_SHOWN:
        shown = shown[:MAX_SHOWN] + b"..."
    advice = 1 << max(protocol.client_buffer, needed, USUAL_BUFFER).bit_length()
    if advice > MAX_ADVICE:
        return BadCommand(event, shown, close=True)
    directive = f"{protocol.name}_client_buffer"
    return BadCommand(
        f"{event} (increase %s to %sk)", shown, directive, advice // KIB, close=True
    )
