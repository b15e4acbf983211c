"""The IMAP dialogue with clients before the login (RFC 3501).

The one with backends is in `mail/imap_backend.py` and `mail/imap_login.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from mailproxy.mail import forward, imap_backend, imap_login
from mailproxy.mail.commands import MAX_ANSWERS, BadCommand, Command
from mailproxy.mail.imap_commands import CommandReader
from mailproxy.mail.login import Login
from mailproxy.mail.protocol import Dialogue
from mailproxy.mail.sasl import clients as sasl

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.client import Client
    from mailproxy.mail.imap import ImapSettings
    from mailproxy.mail.imap_syntax import Field

_LOGGED_FIELDS = (b"name", b"version", b"vendor", b"os", b"os-version")
"""Fields of ID that the log shows (RFC 2971, section 3.3)."""


class ImapDialogue(Dialogue):
    """The dialogue of one IMAP session.

    Attributes:
      fields: the fields of the client's first ID command; at most 30.
    """

    header_refusal = imap_backend.HEADER_REFUSAL

    def __init__(self, client: Client, settings: ImapSettings) -> None:
        super().__init__(client)
        self.fields: tuple[Field, ...] = ()
        self._settings = settings

    def forget(self) -> None:
        self.fields = ()

    async def greet(self) -> None:
        await self.client.send(b"* OK IMAP4 ready\r\n")

    async def read_login(self) -> Login | None:
        client = self.client
        reader = CommandReader(client)
        while True:
            try:
                command = await reader.read_command()
                match command.name:
                    case b"LOGOUT":
                        await client.send(b"* BYE\r\n" + _completed(reader))
                        return None
                    case b"STARTTLS" if client.may_start_tls:
                        await client.send(_completed(reader))
                        await self.start_tls()
                    case b"LOGIN":
                        return self._login(command, reader.tag)
                    case b"AUTHENTICATE" if client.may_log_in:
                        mechanisms = self._settings.imap_auth
                        return await sasl.authenticate(
                            client,
                            command.arguments,
                            mechanisms,
                            reader.ask,
                            reader.tag,
                        )
                    case _:
                        await client.send(self._answer(command, reader))
            except BadCommand as bad:
                await client.answer_bad(bad, reader.tag + _INVALID)

    def _answer(self, command: Command, reader: CommandReader) -> bytes:
        """The answer to a command that does not change what the session is doing.

        Raises:
          BadCommand: the command is not allowed now.
        """
        match command.name:
            case b"NOOP":
                return _completed(reader)
            case b"CAPABILITY":
                return self._capabilities() + _completed(reader)
            case b"ID":
                self._identify(reader.fields)
                return b"* ID NIL\r\n" + _completed(reader)
            case _:
                raise BadCommand

    def _login(self, command: Command, tag: bytes) -> Login:
        """The login of a LOGIN command, which cannot be disabled, as in nginx.

        Raises:
          BadCommand: it is not allowed now, or not well-formed.
        """
        arguments = command.arguments
        if not self.client.may_log_in or len(arguments) != 2 or not arguments[0]:
            raise BadCommand
        user, password = arguments
        self.client.info.login = user
        sasl.check_credentials(user, password, "LOGIN")
        return Login(method="plain", user=user, secret=password, tag=tag)

    def _capabilities(self) -> bytes:
        client, settings = self.client, self._settings
        return _capability_line(
            settings.imap_capabilities,
            settings.imap_auth if client.may_log_in else None,
            client.may_start_tls,
        )

    def _identify(self, fields: tuple[Field, ...]) -> None:
        """Keep the fields of the first ID command, and log those that help in support.

        A proxy in front may tell in them how far the session has come. Later ID commands are ignored, so that a client cannot fill the log.

        Args:
          fields: no two have the same name.
        """
        if self.fields or not fields:
            return
        self.fields = fields
        values = {name.lower(): value for name, value in fields}
        if forward.accepts(self.client):
            self.ttl = forward.parse_ttl(values.get(b"x-proxy-ttl"))
        shown = {name: values[name] for name in _LOGGED_FIELDS if values.get(name)}
        if shown:
            event = " ".join(f'{name.decode()}="%s"' for name in shown)
            self.client.log.info(f"client id: {event}", *shown.values())

    async def challenge(self, text: bytes) -> list[bytes]:
        return await CommandReader(self.client).ask(text)

    def invalid(self, login: Login) -> bytes:
        return login.tag + _INVALID

    def refusal(self, login: Login, text: bytes, _code: bytes) -> bytes:
        return b"%sNO %s\r\n" % (login.tag, text)

    async def meet(self, backend: Backend) -> None:
        await imap_backend.meet(backend)
        if imap_login.needs_offers(self.client.server.proxy):
            await imap_backend.learn_offers(backend)

    async def enter(self, backend: Backend, login: Login) -> bytes:
        return await imap_login.enter(backend, login, self)


@lru_cache(MAX_ANSWERS)
def _capability_line(
    capabilities: tuple[bytes, ...], mechanisms: frozenset[str] | None, starttls: bool
) -> bytes:
    """The answer of a server to CAPABILITY, up to the line that completes the command.

    Args:
      mechanisms: None if the client may not log in now.
      starttls: whether STARTTLS is allowed.
    """
    words = [b"* CAPABILITY", *capabilities]
    if mechanisms is not None:
        words += [b"AUTH=" + each for each in sasl.announced(mechanisms)]
    if starttls:
        words.append(b"STARTTLS")
        if mechanisms is None:
            words.append(b"LOGINDISABLED")
    return b" ".join(words) + b"\r\n"


_INVALID = b"BAD invalid command\r\n"


def _completed(reader: CommandReader) -> bytes:
    """The line that completes the present command."""
    return reader.tag + b"OK completed\r\n"
