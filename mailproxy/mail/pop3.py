"""ngx_mail_pop3_module: https://nginx.org/en/docs/mail/ngx_mail_pop3_module.html.

The dialogues of POP3 before the login (RFC 1939, RFC 5034), toward clients and
backends. Clients may log in in many ways; backends see USER and PASS only.
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self

from mailproxy.conf.directive import Block, Scope, directive
from mailproxy.conf.values import choices, size, words
from mailproxy.mail import sasl
from mailproxy.mail.protocol import (
    BadCommand,
    Login,
    MailProtocol,
    Naming,
    expect_line,
    invalid_reply,
    send_command,
    split_words,
)

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.net.lines import LineStream

MAX_ARGUMENTS = 3

_COMMAND = re.compile(rb"([A-Za-z]{4})(?: +|$)(.*)", re.DOTALL)
_COMMANDS = frozenset(
    (b"USER", b"PASS", b"APOP", b"QUIT", b"CAPA", b"AUTH", b"NOOP", b"STLS")
)
_OK = b"+OK\r\n"
_INVALID = b"-ERR invalid command\r\n"


async def _read_command(client: Client) -> tuple[bytes, list[bytes]]:
    """The next command, in upper case, and its arguments.

    Raises:
      BadCommand: the line is not one.
      ClientError: the client left.
    """
    match = _COMMAND.fullmatch(await client.read_text())
    if match is None or (name := match[1].upper()) not in _COMMANDS:
        raise BadCommand(counted=True)
    if name in (b"USER", b"PASS"):
        # Spaces may be a part of names and passwords.
        arguments = [match[2]] if match[2] else []
    else:
        arguments = split_words(match[2], MAX_ARGUMENTS)
    client.accepted()
    return name, arguments


@dataclass(frozen=True, kw_only=True)
class Pop3Settings(MailProtocol):
    """POP3 toward clients."""

    name: ClassVar[str] = "pop3"
    ports: ClassVar[tuple[int, ...]] = (110, 995)
    harmless: ClassVar[frozenset[bytes]] = frozenset(
        (
            b"USER QUIT CAPA NOOP STLS STAT LIST RETR DELE RSET TOP UIDL UTF8 LANG"
        ).split()
    )

    pop3_client_buffer: int = directive(
        size,
        default=resource.getpagesize(),
        shown="4k | 8k",
        origin="Zimbra's nginx",
    )
    """Bytes that one command may have; 128 in nginx, which is too short for tokens and
    many passwords."""

    pop3_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"TOP", b"USER", b"UIDL"), repeats="add"
    )
    """What CAPA answers before the login; mechanisms are added to it."""

    pop3_auth: frozenset[str] = directive(
        choices("plain", "apop", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain", "login"}),
        repeats="add",
        shown="plain",
    )
    """Mechanisms of AUTH, and "apop"; USER and PASS are always possible.

    With "plain" comes "login", which cannot be written.
    """

    @classmethod
    def make(cls, block: Block, scope: Scope) -> Self:
        """The settings of a server: AUTH PLAIN brings AUTH LOGIN along."""
        settings = super().make(block, scope)
        if "plain" not in settings.pop3_auth:
            return settings
        return replace(settings, pop3_auth=settings.pop3_auth | {"login"})

    certificate_error: ClassVar[bytes] = b"-ERR SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"-ERR No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"-ERR internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.pop3_client_buffer

    async def greet(self, client: Client) -> None:
        if self.pop3_auth.isdisjoint(("apop", "cram-md5")):
            await client.send(b"+OK POP3 ready\r\n")
        else:
            await client.send(b"+OK POP3 ready %s\r\n" % client.salt)

    async def read_login(self, client: Client) -> Login | None:
        user = b""  # of USER, which must be followed by PASS
        while True:
            try:
                name, arguments = await _read_command(client)
                match name:
                    case b"NOOP":
                        await client.send(_OK)
                    case b"CAPA":
                        await client.send(self._capabilities(client, not user))
                    case b"QUIT":
                        await client.send(_OK)
                        return None
                    case b"PASS" if user and arguments:
                        sasl.check_credentials(user, arguments[0], "PASS")
                        return Login("plain", user, arguments[0])
                    case _ if user:
                        raise BadCommand
                    case b"STLS" if client.may_start_tls:
                        await client.send(_OK)
                        await client.start_tls("in starttls state")
                        client.info.action = "in auth state"
                    case _ if not client.may_log_in:
                        raise BadCommand
                    case b"USER" if arguments:
                        client.info.login = arguments[0]
                        sasl.check_credentials(arguments[0], None, "USER")
                        user = arguments[0]
                        await client.send(_OK)
                    case b"APOP":
                        return self._apop(client, arguments)
                    case b"AUTH" if not arguments:
                        await client.send(self._mechanisms())
                    case b"AUTH":
                        return await sasl.authenticate(
                            client,
                            arguments,
                            self.pop3_auth,
                            partial(self.challenge, client),
                        )
                    case _:
                        raise BadCommand
            except BadCommand as bad:
                user = b""
                await client.answer_bad(bad, _INVALID)

    def _apop(self, client: Client, arguments: list[bytes]) -> Login:
        """The APOP command; whether the digest is good, the auth source knows."""
        if "apop" not in self.pop3_auth or len(arguments) != 2:
            raise BadCommand
        user, digest = arguments
        client.info.login = user
        sasl.check_credentials(user, digest, "APOP")
        return Login("apop", user, digest, salt=client.salt)

    def _capabilities(self, client: Client, at_start: bool) -> bytes:
        """The answer to CAPA (RFC 2449).

        Args:
          at_start: it is not between USER and PASS, where STLS is refused.
        """
        lines = list(self.pop3_capabilities)
        if client.may_log_in:
            mechanisms = sasl.announced(self.pop3_auth)
            if mechanisms:  # nginx sends an empty line, which RFC 2449 forbids
                lines.append(b" ".join((b"SASL", *mechanisms)))
        else:
            lines = [each for each in lines if each.upper() != b"USER"]
        if client.may_start_tls and at_start:
            lines.append(b"STLS")
        return _listed(b"+OK Capability list follows", lines)

    def _mechanisms(self) -> bytes:
        """The answer to AUTH without a mechanism."""
        return _listed(b"+OK methods supported:", sasl.announced(self.pop3_auth))

    async def challenge(self, client: Client, text: bytes) -> list[bytes]:
        return await client.ask(b"+ %s\r\n" % text, MAX_ARGUMENTS)

    def invalid(self, _login: Login) -> bytes:
        return _INVALID

    def refusal(self, _login: Login, text: bytes, _code: bytes) -> bytes:
        return b"-ERR %s\r\n" % text

    async def enter(
        self, backend: LineStream, login: Login, _client: Client, sending: Naming
    ) -> bytes:
        await _expect_ok(backend)
        sending("user name")
        await send_command(backend, b"USER %s\r\n" % login.user)
        await _expect_ok(backend)
        sending("password")
        await send_command(backend, b"PASS %s\r\n" % (login.secret or b""))
        return await _expect_ok(backend)


def _listed(first: bytes, lines: list[bytes]) -> bytes:
    """A multi-line answer."""
    return b"\r\n".join((first, *lines, b".", b""))


async def _expect_ok(backend: LineStream) -> bytes:
    """A line that says yes.

    Raises:
      BackendError: it says something else.
    """
    line = await expect_line(backend)
    if not line.startswith(b"+OK"):
        raise invalid_reply(line)
    return line
