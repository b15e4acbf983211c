"""What the commands of clients have in common, in whatever protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailproxy.frozen import Frozen

if TYPE_CHECKING:
    from mailproxy.mail.protocol import MailProtocol

KIB = 1024
USUAL_BUFFER = 4 * KIB
"""Octets of the `*_client_buffer` that configurations without one have."""
MAX_ADVICE = 64 * KIB
"""The largest buffer that the log advises; what is longer is not a login."""
MAX_SHOWN = 400
"""Octets that the log shows of a command that is too long. Lines are cut at 2048, and
each octet may become four; the advice behind it has to fit as well."""

_REVEALING = re.compile(
    rb"\s*(?:\S+\s+)??(?:LOGIN|AUTHENTICATE|AUTH|PASS|APOP)(?!\S)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a client.

    Attributes:
      name: in upper case.
      arguments: what stands behind it; there may be secrets among them.
    """

    name: bytes
    arguments: list[bytes] = field(repr=False)


class BadCommand(Frozen, Exception):  # noqa: N818 - an event of the dialogue, not a fault
    """A command is answered with the protocol's line for invalid commands.

    Attributes:
      event, values: what the log says of it, if anything.
      counted: it counts for `max_errors`: the parser rejected it. A well-formed
        command which is refused does not count.
      close: the session ends with the answer.
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
    """The words of a text, which has spaces between them, before and behind.

    Raises:
      BadCommand: there are more than `room`.
    """
    words = [word for word in text.split(b" ") if word]
    if len(words) > room:
        raise BadCommand(counted=True)
    return words


def redacted(command: bytes) -> bytes:
    """A command as the log may show it: never with what may be a secret."""
    found = _REVEALING.match(command)
    return command if found is None else found[0] + b" ..."


def too_long_command(
    protocol: MailProtocol, shown: bytes, needed: int = 0
) -> BadCommand:
    """The buffer is full and the command is not complete; the session ends.

    Tokens of OAuth may need a larger buffer than the usual one, so the log says which
    directive has to be raised, and how far, up to `MAX_ADVICE`.

    Args:
      shown: what the log shows of the command.
      needed: octets that the command is known to have; it may be more.
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
