"""Literals: strings of IMAP that are announced by their size, and follow the line.

``{5}`` at the end of a line says that 5 octets follow as soon as the other side asks for
them (RFC 3501, section 4.3); with ``{5+}`` they follow at once (LITERAL+, RFC 7888).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.mail.commands import BadCommand, too_long_command
from mailproxy.net.lines import TooLong

if TYPE_CHECKING:
    from mailproxy.mail.client import Client

MAX_LITERAL = (1 << 64) // 10
"""nginx refuses literals that could overflow its counter."""
MAX_DIGITS = len(str(MAX_LITERAL))


@dataclass(frozen=True, slots=True)
class Literal:
    """The announcement of a literal at the end of a line.

    Attributes:
      size: octets that follow.
      wait: whether the client waits to be asked for them (no LITERAL+).
    """

    size: int
    wait: bool


def parse_literal(digits: bytes, plus: bytes) -> Literal:
    """The announcement with these two parts; no digits are 0, as nginx reads them.

    Args:
      digits: between the braces.
      plus: ``+``, or nothing.

    Raises:
      BadCommand: it is larger than `MAX_LITERAL`.
    """
    digits = digits.lstrip(b"0") or b"0"
    # Python refuses to read thousands of digits.
    if len(digits) > MAX_DIGITS or int(digits) > MAX_LITERAL:
        raise BadCommand(counted=True)
    return Literal(int(digits), wait=not plus)


def announce(data: bytes, *, wait: bool) -> bytes:
    """The end of a line behind which `data` follows: ``{5}``, and without `wait` ``{5+}``."""
    return b"{%d}\r\n" % len(data) if wait else b"{%d+}\r\n" % len(data)


async def read_literal(
    client: Client, literal: Literal, used: int, prompt: bytes
) -> bytes:
    """Read what a client has announced; it is asked for it if it waits for that.

    Args:
      used: octets of the same command that were read before.
      prompt: the line that asks for it.

    Raises:
      BadCommand: it does not fit into the client's buffer; the session ends.
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
