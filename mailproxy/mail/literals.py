"""Literals: IMAP strings that follow a line which announces their size.

``{5}`` at the end of a line says that 5 octets follow as soon as the other side asks
for them (RFC 3501, section 4.3); with ``{5+}`` they follow at once (LITERAL+, RFC
7888).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.mail.commands import BadCommand, too_long_command
from mailproxy.net.lines import TooLong

if TYPE_CHECKING:
    from mailproxy.mail.client import Client

MAX_LITERAL = (1 << 64) // 10
"""Octets of a literal; nginx refuses larger ones, which could overflow its counter."""
MAX_DIGITS = len(str(MAX_LITERAL))
"""Digits of the size of a literal, without leading zeros."""


@dataclass(frozen=True, slots=True)
class Literal:
    """The announcement of a literal at the end of a line.

    Attributes:
      size: octets that follow.
      wait: whether the client waits to be asked for them (without LITERAL+).
    """

    size: int
    wait: bool


def parse_literal(digits: bytes, plus: bytes) -> Literal:
    """Parse the two parts of an announcement; no digits mean 0, as in nginx.

    Args:
      digits: the digits between the braces.
      plus: ``+``, or nothing.

    Raises:
      BadCommand: the size exceeds `MAX_LITERAL`.
    """
    digits = digits.lstrip(b"0") or b"0"
    # Python refuses to read thousands of digits.
    if len(digits) > MAX_DIGITS or int(digits) > MAX_LITERAL:
        raise BadCommand(counted=True)
    return Literal(int(digits), wait=not plus)


def announce(data: bytes, *, wait: bool) -> bytes:
    """The end of the line before `data`: ``{5}``, or without `wait` ``{5+}``."""
    return b"{%d}\r\n" % len(data) if wait else b"{%d+}\r\n" % len(data)


async def read_literal(
    client: Client, literal: Literal, used: int, prompt: bytes
) -> bytes:
    """Read a literal that a client has announced, and ask for it if the client waits.

    Args:
      used: octets of the same command that were read before.
      prompt: the line that asks for it.

    Raises:
      BadCommand: the literal does not fit into the client's buffer; the session ends.
      ClientError: the client left.
    """
    if literal.wait:
        await client.send(prompt)
    try:
        return await client.lines.read_exactly(literal.size, used)
    except TooLong:
        raise too_long_command(
            client.server.protocol, b"...", used + literal.size
        ) from None
