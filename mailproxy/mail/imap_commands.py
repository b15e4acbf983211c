"""CommandReader: reads an IMAP client's commands before its login (RFC 3501), with literals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.mail.commands import BadCommand, Command, redacted, too_long_command
from mailproxy.mail.imap_syntax import Field, parse_id, split_arguments
from mailproxy.mail.literals import Literal, read_literal
from mailproxy.net.lines import TooLong
from mailproxy.net.octets import CR

if TYPE_CHECKING:
    from mailproxy.mail.client import Client

MAX_ARGUMENTS = 3

_TAG = re.compile(rb"([A-Za-z0-9._-]{1,32}) +")
_COMMAND = re.compile(_TAG.pattern + rb"([A-Za-z]+)(?= |$)")
_COMMANDS = frozenset(
    (
        *(b"NOOP", b"LOGIN", b"LOGOUT", b"STARTTLS", b"CAPABILITY", b"AUTHENTICATE"),
        b"ID",
    )
)


class CommandReader:
    """Reads commands; all parts of a command share the client's buffer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._used = 0
        self._revealing = False
        self.tag = b"* "
        """Tag of the present command with its space, with which its answers begin."""
        self.fields: tuple[Field, ...] = ()
        """The fields of the present command, if it is ID."""

    async def read_command(self) -> Command:
        """Read the next command and its arguments; those of ID go to `fields`.

        Raises:
          BadCommand: the line is not a command.
          ClientError: the client left.
        """
        self.tag = b"* "
        self._used = 0
        self._revealing = False
        text = await self._read_text()
        command = _COMMAND.match(text)
        if command is None:
            self._take_tag(text)
            raise self._bad(text)
        self.tag = command[1] + b" "
        name = command[2].upper()
        if name not in _COMMANDS:
            raise self._bad(text)
        self._revealing = name in (b"LOGIN", b"AUTHENTICATE")
        rest = text[command.end() :]
        if name == b"ID":
            self.fields = await self._read_id(text, rest)
            return Command(name, [])
        return Command(name, await self._read_arguments(text, rest, MAX_ARGUMENTS))

    async def ask(self, challenge: bytes) -> list[bytes]:
        """Send a SASL challenge; returns the words of the answer.

        Raises:
          BadCommand: the answer is not a line of words.
          ClientError: the client left.
        """
        await self._client.send(b"+ %s\r\n" % challenge)
        self._revealing = True
        text = await self._read_text()
        # nginx takes the first word as it is; only the words behind it may be literals.
        first, _, more = text.partition(b" ")
        return [first, *await self._read_arguments(text, more, MAX_ARGUMENTS - 1)]

    async def _read_arguments(self, line: bytes, text: bytes, room: int) -> list[bytes]:
        """Read all arguments that begin in `text`, the rest of `line`; at most `room`."""
        arguments: list[bytes] = []
        while True:
            try:
                found = split_arguments(text, room - len(arguments))
            except BadCommand:
                raise self._bad(line) from None
            arguments += found.values
            if found.literal is None:
                break
            arguments.append(await self._ask_for_literal(found.literal))
            line = text = await self._read_text()
            if text and not text.startswith(b" "):
                raise self._bad(line)
        self._client.accepted()
        return arguments

    async def _read_id(self, line: bytes, text: bytes) -> tuple[Field, ...]:
        """Read the fields of an ID command that begin in `text`, the rest of `line`."""
        parts = [text]
        while True:
            try:
                found = parse_id(parts)
            except BadCommand:
                raise self._bad(line) from None
            if not isinstance(found, Literal):
                self._client.accepted()
                return found
            data = await self._ask_for_literal(found)
            line = await self._read_text()
            parts += [data, line]

    async def _read_text(self) -> bytes:
        """Read a line, without its end."""
        try:
            line = await self._client.lines.read_line(self._used)
        except TooLong as too_long:
            self._take_first_tag(too_long.received)
            shown = b"..." if self._revealing else redacted(too_long.received)
            raise too_long_command(self._client.server.protocol, shown) from None
        text = line[:-1].removesuffix(b"\r")
        if CR in text:
            # nginx accepts any number of CR behind the brace of a literal.
            stripped = text.rstrip(b"\r")
            if CR in stripped or not stripped.endswith(b"}"):
                self._take_first_tag(text)
                raise self._bad(text)
            text = stripped
        self._used += len(line)
        return text

    def _take_first_tag(self, line: bytes) -> None:
        """Take the tag of a bad line for the answer, if the line begins a command."""
        if not self._used:
            self._take_tag(line)

    def _take_tag(self, line: bytes) -> None:
        """Take the tag of a bad line for the answer, if it has one."""
        tag = _TAG.match(line)
        if tag is not None:
            self.tag = tag[1] + b" "

    async def _ask_for_literal(self, literal: Literal) -> bytes:
        """Read the data of a literal, and ask the client for it if the client waits."""
        data = await read_literal(self._client, literal, self._used, b"+ OK\r\n")
        self._used += literal.size
        return data

    @staticmethod
    def _bad(line: bytes) -> BadCommand:
        """The error for a bad line; it ends the session if literal data may follow."""
        return BadCommand(counted=True, close=line.endswith(b"+}"))
