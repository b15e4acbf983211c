"""The SMTP dialogue with clients before the login (RFC 5321, RFC 4954).

The one with backends is in `mail/smtp_backend.py` and `mail/smtp_login.py`. With `smtp_auth none`, MAIL and RCPT
may replace a login: the auth source sees them, and they are repeated to the backend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from mailproxy.auth.request import Envelope
from mailproxy.errors import ClientError
from mailproxy.mail import forward, smtp_backend, smtp_login
from mailproxy.mail.client_host import UNAVAILABLE, find_client_host
from mailproxy.mail.commands import MAX_ANSWERS, BadCommand, redacted, split_words
from mailproxy.mail.login import Login
from mailproxy.mail.protocol import Dialogue
from mailproxy.mail.sasl import clients as sasl
from mailproxy.net.octets import NUL

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.client import Client
    from mailproxy.mail.smtp import SmtpSettings

MAX_ARGUMENTS = 11

_COMMANDS = frozenset(
    (
        *(b"HELO", b"EHLO", b"QUIT", b"AUTH", b"NOOP", b"MAIL", b"RSET", b"RCPT"),
        *(b"VRFY", b"EXPN", b"HELP", b"STARTTLS"),
    )
)
_OK = b"250 2.0.0 OK\r\n"
_BYE = b"221 2.0.0 Bye\r\n"
_START_TLS = b"220 2.0.0 Start TLS\r\n"
_INVALID = b"500 5.5.1 Invalid command\r\n"
_INVALID_ARGUMENT = b"501 5.5.4 Invalid argument\r\n"
_BAD_SEQUENCE = b"503 5.5.1 Bad sequence of commands\r\n"
_TOO_EARLY = b"503 5.5.0 Improper use of SMTP command pipelining\r\n"
_LOGIN_REQUIRED = b"530 5.7.1 Authentication required\r\n"
_TLS_REQUIRED = b"530 5.7.0 Must issue a STARTTLS command first\r\n"


@dataclass(frozen=True, slots=True)
class _Command:
    """A command of a client.

    Attributes:
      name: in upper case.
      arguments: at most `MAX_ARGUMENTS`; none if the line contains a NUL, which headers
        of auth requests cannot transport.
      text: the whole line, without its end and the spaces before that.
    """

    name: bytes
    arguments: list[bytes] = field(repr=False)
    text: bytes = field(repr=False)


async def _read_command(client: Client) -> _Command:
    """Read the next command.

    Raises:
      BadCommand: the line is not a command.
      ClientError: the client left.
    """
    text = await client.read_text()
    word, _, rest = text.partition(b" ")
    name = word.upper()
    if name not in _COMMANDS and not (name == b"XCLIENT" and _accepts_xclient(client)):
        raise BadCommand(counted=True)
    arguments = split_words(rest, MAX_ARGUMENTS)
    client.accepted()
    if NUL in text:
        arguments = []
    return _Command(name, arguments, text.rstrip(b" "))


def _accepts_xclient(client: Client) -> bool:
    """Whether the client is a proxy whose XCLIENT is read; see `mail/forward.py`."""
    return "xclient" in client.server.proxy.proxy_forward and forward.accepts(client)


class SmtpDialogue(Dialogue):
    """The dialogue of one SMTP session.

    Attributes:
      esmtp: whether the client last introduced itself by EHLO.
      mail: the MAIL command of a transaction that it has begun (`smtp_auth none`), or
        empty.
    """

    header_refusal = smtp_backend.HEADER_REFUSAL

    def __init__(self, client: Client, settings: SmtpSettings) -> None:
        super().__init__(client)
        self.host: bytes = UNAVAILABLE
        self.esmtp = False
        self.mail = b""
        self._settings = settings

    def forget(self) -> None:
        self.client.info.helo = b""
        self.esmtp = False
        self.mail = b""

    async def greet(self) -> None:
        client = self.client
        core = client.server.core
        if core.resolver is not None:
            client.timer.stop()  # lookups have their own limits
            resolver = client.network.resolver(core.resolver, core.resolver_timeout)
            self.host = await client.timer.in_trio(
                find_client_host, resolver, client.info, client.log
            )
        if self._settings.smtp_greeting_delay:
            client.timer.stop()
            await self._delay()
        client.timer.limit(core.timeout)
        await client.send(_greeting(client))

    async def _delay(self) -> None:
        """Delay the greeting; a client that does not wait for it is likely a spammer.

        Raises:
          ClientError: the client left, or talked first and has been told.
        """
        client = self.client
        client.info.action = "in delay pipelining state"
        early = b""
        with client.timer.at_most(self._settings.smtp_greeting_delay):
            early = await client.lines.read_some()
        if early:
            client.log.info(
                'client was rejected before greeting: "%s"', _one_line(early)
            )
            client.timer.limit(client.server.core.timeout)
            await client.send(_TOO_EARLY)
            raise ClientError

    async def read_login(self) -> Login | None:
        client = self.client
        while True:
            try:
                command = await _read_command(client)
                match command.name:
                    case b"QUIT":
                        await client.send(_BYE)
                        return None
                    case b"STARTTLS" if client.may_start_tls:
                        await client.send(_START_TLS)
                        await self.start_tls()
                    case b"AUTH" if client.may_log_in and command.arguments:
                        mechanisms = self._settings.smtp_auth
                        return await sasl.authenticate(
                            client, command.arguments, mechanisms, self.challenge
                        )
                    case b"RCPT" if self.mail and command.arguments:
                        envelope = Envelope(mail=self.mail, rcpt=command.text)
                        return Login(method="none", user=b"", envelope=envelope)
                    case _:
                        await client.send(self._answer(command))
            except BadCommand as bad:
                await client.answer_bad(bad, _INVALID)

    def _answer(self, command: _Command) -> bytes:
        """The answer to a command that does not complete a login.

        Raises:
          BadCommand: the command is not allowed now.
        """
        match command.name:
            case b"EHLO" | b"HELO":
                return self._hello(command)
            case b"MAIL":
                return self._mail(command)
            case b"RCPT" if not self.mail:
                return _BAD_SEQUENCE
            case b"RCPT":
                return _INVALID_ARGUMENT
            case b"AUTH" if self.client.may_log_in:
                return _INVALID_ARGUMENT
            case b"NOOP":
                return _OK
            case b"XCLIENT" if not self.mail:
                self.forget()
                self.ttl = forward.find_ttl(command.arguments)
                return _greeting(self.client)
            case b"RSET":
                self.mail = b""
                return _OK
            case _:
                raise BadCommand

    def _hello(self, command: _Command) -> bytes:
        """The answer to EHLO or HELO."""
        if len(command.arguments) != 1:
            return _INVALID_ARGUMENT
        client, settings = self.client, self._settings
        client.info.helo = command.arguments[0]
        self.esmtp = command.name == b"EHLO"
        self.mail = b""
        if not self.esmtp:
            return b"250 %s\r\n" % client.server.core.server_name
        capabilities = settings.smtp_capabilities
        if _accepts_xclient(client):
            capabilities = (*capabilities, b"XCLIENT TTL")
        return _answer_to_ehlo(
            client.server.core.server_name,
            capabilities,
            settings.smtp_auth if client.may_log_in else frozenset(),
            client.may_start_tls,
        )

    def _mail(self, command: _Command) -> bytes:
        """The answer to the MAIL command of a client that has not logged in."""
        client = self.client
        if "none" not in self._settings.smtp_auth:
            client.log.info(
                'client was rejected: "%s"', _one_line(command.text + b"\r\n")
            )
            return _LOGIN_REQUIRED
        if not client.may_log_in:
            # nginx accepts it: there, `starttls only` is about passwords.
            return _TLS_REQUIRED
        if self.mail:
            return _BAD_SEQUENCE
        if not command.arguments:
            return _INVALID_ARGUMENT
        self.mail = command.text
        client.info.login = b""
        return _OK

    async def challenge(self, text: bytes) -> list[bytes]:
        return await self.client.ask(b"334 %s\r\n" % text, MAX_ARGUMENTS)

    def invalid(self, _login: Login) -> bytes:
        return _INVALID

    def refusal(self, _login: Login, text: bytes, code: bytes) -> bytes:
        return b"%s %s\r\n" % (code or b"535 5.7.0", text)

    async def meet(self, backend: Backend) -> None:
        await smtp_backend.meet(backend, self)

    async def enter(self, backend: Backend, login: Login) -> bytes:
        return await smtp_login.enter(backend, login, self)


@lru_cache(MAX_ANSWERS)
def _answer_to_ehlo(
    name: bytes,
    capabilities: tuple[bytes, ...],
    mechanisms: frozenset[str],
    starttls: bool,
) -> bytes:
    """The answer of a server to EHLO.

    Args:
      name: its name.
      mechanisms: those that the client may use now.
      starttls: whether STARTTLS is allowed.
    """
    lines = [name, *capabilities]
    announced = sasl.announced(mechanisms)
    if announced:
        lines.append(b" ".join((b"AUTH", *announced)))
    if starttls:
        lines.append(b"STARTTLS")
    first = b"".join(b"250-%s\r\n" % line for line in lines[:-1])
    return first + b"250 %s\r\n" % lines[-1]


def _greeting(client: Client) -> bytes:
    return b"220 %s ESMTP ready\r\n" % client.server.core.server_name


def _one_line(text: bytes) -> bytes:
    """A client's lines as one line for the log, without anything behind AUTH."""
    lines = text.split(b"\n")
    for place, line in enumerate(lines):
        shown = redacted(line)
        if shown != line:
            lines[place:] = [shown]
            break
    return b"\n".join(lines).replace(b"\r", b"_").replace(b"\n", b"_")
