"""ngx_mail_imap_module: https://nginx.org/en/docs/mail/ngx_mail_imap_module.html.

The dialogues of IMAP before the login (RFC 3501), toward clients and backends.
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mailproxy.conf.directive import Settings, directive
from mailproxy.conf.values import choices, size, words
from mailproxy.mail import sasl
from mailproxy.mail.protocol import (
    BadCommand,
    Login,
    Naming,
    early_reply,
    expect_line,
    invalid_reply,
    redacted,
    too_long_command,
)
from mailproxy.net.lines import TooLong

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.net.lines import LineStream

MAX_ARGUMENTS = 3
MAX_LITERAL = (1 << 64) // 10
"""nginx refuses literals that could overflow its counter."""
MAX_DIGITS = len(str(MAX_LITERAL))

_TAG = re.compile(rb"[A-Za-z0-9._-]{1,32} +")
_COMMAND = re.compile(rb"([A-Za-z]+)(?= |$)")
_ARGUMENT = re.compile(
    rb"""\ *(?: "(?P<quoted>(?:\\.|[^"\\])*)"
            | \{(?P<size>[0-9]*)(?P<plus>\+?)\}$
            | (?P<atom>[^ "{][^ ]*) )""",
    re.VERBOSE | re.DOTALL,
)
_BLANK = re.compile(rb" *")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Literal:
    """The announcement of a literal at the end of a line.

    Attributes:
      size: octets that follow.
      wait: whether the client waits to be asked for them (no LITERAL+).
    """

    size: int
    wait: bool


def split_arguments(text: bytes, room: int) -> tuple[list[bytes], Literal | None]:
    """The arguments in a part of a command, which is a line without its end.

    Args:
      room: how many arguments there may be, a literal among them.

    Returns:
      The arguments, and the literal that follows, if any.

    Raises:
      BadCommand: there are more, or the line is not well-formed.
    """
    arguments: list[bytes] = []
    place = 0
    while not _BLANK.fullmatch(text, place):
        match = _ARGUMENT.match(text, place)
        if match is None or len(arguments) == room:
            raise BadCommand(counted=True)
        place = match.end()
        quoted, atom = match["quoted"], match["atom"]
        if atom is not None:
            arguments.append(atom)
        elif quoted is not None:
            arguments.append(_ESCAPED.sub(rb"\1", quoted))
        else:
            digits = match["size"].lstrip(b"0") or b"0"
            # Python refuses to read thousands of digits.
            if len(digits) > MAX_DIGITS or int(digits) > MAX_LITERAL:
                raise BadCommand(counted=True)
            size = int(digits)
            return arguments, Literal(size, wait=not match["plus"])
    return arguments, None


class _Reader:
    """Reads commands; all parts of one share the client's buffer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._used = 0
        self._revealing = False
        self.tag = b"* "
        """Tag of the present command with its space, as answers begin with it."""

    async def read_command(self) -> tuple[bytes, list[bytes]]:
        """The next command, in upper case, and its arguments.

        Raises:
          BadCommand: the line is not one.
          ClientError: the client left.
        """
        self.tag = b"* "
        self._used = 0
        self._revealing = False
        text = await self._read_text()
        tag = _TAG.match(text)
        if tag is None:
            raise self._bad(text)
        self.tag = tag[0].rstrip(b" ") + b" "
        command = _COMMAND.match(text, tag.end())
        if command is None or command[1].upper() not in _COMMANDS:
            raise self._bad(text)
        name = command[1].upper()
        self._revealing = name in (b"LOGIN", b"AUTHENTICATE")
        rest = text[command.end() :]
        return name, await self._read_arguments(text, rest, MAX_ARGUMENTS)

    async def ask(self, challenge: bytes) -> list[bytes]:
        """Send a SASL challenge; returns the words of the answer.

        Raises:
          BadCommand: the answer is not a line of words.
          ClientError: the client left.
        """
        await self._client.send(b"+ %s\r\n" % challenge)
        self._revealing = True
        text = await self._read_text()
        # nginx takes the first word as it is; only behind it there may be literals.
        first, _, more = text.partition(b" ")
        return [first, *await self._read_arguments(text, more, MAX_ARGUMENTS - 1)]

    async def _read_arguments(self, line: bytes, text: bytes, room: int) -> list[bytes]:
        """All arguments that begin in `text`, the rest of `line`; at most `room`."""
        arguments: list[bytes] = []
        while True:
            try:
                more, literal = split_arguments(text, room - len(arguments))
            except BadCommand:
                raise self._bad(line) from None
            arguments += more
            if literal is None:
                break
            if literal.wait:
                await self._client.send(b"+ OK\r\n")
            arguments.append(await self._read_literal(literal.size))
            line = text = await self._read_text()
            if text and not text.startswith(b" "):
                raise self._bad(line)
        self._client.accepted()
        return arguments

    async def _read_text(self) -> bytes:
        """A line without its end."""
        try:
            line = await self._client.lines.read_line(self._used)
        except TooLong as too_long:
            self._notice_tag(too_long.received)
            shown = b"..." if self._revealing else redacted(too_long.received)
            raise too_long_command(shown) from None
        text = line[:-1].removesuffix(b"\r")
        if b"\r" in text:
            # nginx takes any number of CR behind the brace of a literal.
            stripped = text.rstrip(b"\r")
            if b"\r" in stripped or not stripped.endswith(b"}"):
                self._notice_tag(text)
                raise self._bad(text)
            text = stripped
        self._used += len(line)
        return text

    def _notice_tag(self, line: bytes) -> None:
        """Have a bad line answered with its tag, if it is the first of a command."""
        tag = None if self._used else _TAG.match(line)
        if tag is not None:
            self.tag = tag[0].rstrip(b" ") + b" "

    async def _read_literal(self, size: int) -> bytes:
        try:
            data = await self._client.lines.read_exactly(size, self._used)
        except TooLong:
            raise too_long_command(b"...") from None
        self._used += size
        return data

    @staticmethod
    def _bad(line: bytes) -> BadCommand:
        """What a bad line is answered with; unknown literal data may follow it."""
        return BadCommand(counted=True, close=line.endswith(b"+}"))


_COMMANDS = frozenset(
    (b"NOOP", b"LOGIN", b"LOGOUT", b"STARTTLS", b"CAPABILITY", b"AUTHENTICATE")
)


@dataclass(frozen=True, kw_only=True)
class ImapSettings(Settings):
    """IMAP toward clients."""

    name: ClassVar[str] = "imap"
    ports: ClassVar[tuple[int, ...]] = (143, 993)

    imap_client_buffer: int = directive(
        size, default=resource.getpagesize(), shown="4k | 8k"
    )
    """Bytes that one command may have."""

    imap_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"IMAP4", b"IMAP4rev1", b"UIDPLUS"), repeats="add"
    )
    """What CAPABILITY answers before the login; mechanisms are added to it."""

    imap_auth: frozenset[str] = directive(
        choices("plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain"}),
        repeats="add",
    )
    """Mechanisms of AUTHENTICATE; LOGIN is always possible."""

    certificate_error: ClassVar[bytes] = b"* BYE SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"* BYE No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"* BAD internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.imap_client_buffer

    async def greet(self, client: Client) -> None:
        await client.send(b"* OK IMAP4 ready\r\n")

    async def read_login(self, client: Client) -> Login | None:
        reader = _Reader(client)
        while True:
            try:
                name, arguments = await reader.read_command()
                match name:
                    case b"NOOP":
                        await client.send(reader.tag + b"OK completed\r\n")
                    case b"CAPABILITY":
                        await client.send(
                            self._capabilities(client)
                            + reader.tag
                            + b"OK completed\r\n"
                        )
                    case b"LOGOUT":
                        await client.send(
                            b"* BYE\r\n" + reader.tag + b"OK completed\r\n"
                        )
                        return None
                    case b"STARTTLS":
                        if not client.may_start_tls:
                            raise BadCommand
                        await client.send(reader.tag + b"OK completed\r\n")
                        await client.start_tls("in starttls state")
                        client.context.action = "in auth state"
                    case b"LOGIN":
                        return self._login(client, reader.tag, arguments)
                    case _:
                        if not client.may_log_in:
                            raise BadCommand
                        return await sasl.authenticate(
                            client, arguments, self.imap_auth, reader.ask, reader.tag
                        )
            except BadCommand as bad:
                await client.answer_bad(bad, reader.tag + b"BAD invalid command\r\n")

    def _login(self, client: Client, tag: bytes, arguments: list[bytes]) -> Login:
        """The LOGIN command; it cannot be switched off, as in nginx."""
        if not client.may_log_in or len(arguments) != 2 or not arguments[0]:
            raise BadCommand
        user, password = arguments
        client.context.login = user
        sasl.check_credentials(user, password, "LOGIN")
        return Login("plain", user, password, tag=tag)

    def _capabilities(self, client: Client) -> bytes:
        words = [b"* CAPABILITY", *self.imap_capabilities]
        if client.may_log_in:
            words += [b"AUTH=" + each for each in sasl.announced(self.imap_auth)]
        if client.may_start_tls:
            words.append(b"STARTTLS")
            if not client.may_log_in:
                words.append(b"LOGINDISABLED")
        return b" ".join(words) + b"\r\n"

    async def challenge(self, client: Client, text: bytes) -> list[bytes]:
        return await _Reader(client).ask(text)

    def invalid(self, login: Login) -> bytes:
        return login.tag + b"BAD invalid command\r\n"

    def refusal(self, login: Login, text: bytes, _code: bytes) -> bytes:
        return b"%sNO %s\r\n" % (login.tag, text)

    async def enter(
        self, backend: LineStream, login: Login, _client: Client, sending: Naming
    ) -> bytes:
        user, secret = login.user, login.secret or b""
        greeting = await _expect(backend, b"* OK")
        if _offers_literal_plus(greeting):
            sending("LOGIN command")
            await _send(
                backend,
                b"%sLOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n"
                % (login.tag, len(user), user, len(secret), secret),
            )
            return await _expect_tagged(backend, login.tag)
        sending("LOGIN command")
        await _send(backend, b"%sLOGIN {%d}\r\n" % (login.tag, len(user)))
        await _expect(backend, b"+")
        sending("user name")
        await _send(backend, b"%s {%d}\r\n" % (user, len(secret)))
        await _expect(backend, b"+")
        sending("password")
        await _send(backend, secret + b"\r\n")
        return await _expect_tagged(backend, login.tag)


_CAPABILITIES = re.compile(rb"\* OK +\[CAPABILITY ([^\]]*)\]", re.IGNORECASE)


def _offers_literal_plus(greeting: bytes) -> bool:
    """Whether LITERAL+ (RFC 7888) is among the capabilities of a greeting.

    They stand before its text and nowhere else (RFC 3501, section 7.1); to look for
    them everywhere took the square of the line's length.
    """
    found = _CAPABILITIES.match(greeting)
    return found is not None and b"LITERAL+" in found[1].upper().split(b" ")


async def _send(backend: LineStream, data: bytes) -> None:
    """Send a part of the login, which nothing may have answered yet.

    Untagged lines may come at any time (RFC 3501, section 7). Anything else would be
    taken for the answer to `data`.

    Raises:
      BackendError: there is something else, or the connection broke.
    """
    before = b""
    while backend.buffered:
        line = await expect_line(backend, before)
        if not line.startswith(b"* "):
            raise early_reply(line)
        before += line
    await backend.send(data)


async def _expect(backend: LineStream, start: bytes) -> bytes:
    """A line that begins so; untagged lines before it are passed over.

    Raises:
      BackendError: it is another one.
    """
    before = b""
    while True:
        line = await expect_line(backend, before)
        if line.startswith(start):
            return line
        if not line.startswith(b"* ") or start == b"* OK":
            raise invalid_reply(line)
        before += line


async def _expect_tagged(backend: LineStream, tag: bytes) -> bytes:
    """The whole answer to LOGIN: untagged lines, and the tagged OK.

    Raises:
      BackendError: the answer is another one; the log shows it without its tag.
    """
    reply = b""
    while True:
        line = await expect_line(backend, reply)
        reply += line
        if line.startswith(tag):
            status = line[len(tag) :]
            if status[:2] == b"OK" and status[2:3] in (b" ", b"\r", b"\n"):
                return reply
            raise invalid_reply(reply, status)
        if not line.startswith(b"* "):
            raise invalid_reply(reply)
