"""The POP3 dialogue with clients before the login (RFC 1939, RFC 5034).

The one with backends is in `mail/pop3_backend.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from mailproxy.mail import forward, pop3_backend
from mailproxy.mail.commands import MAX_ANSWERS, BadCommand, Command, split_words
from mailproxy.mail.login import Login
from mailproxy.mail.protocol import Dialogue
from mailproxy.mail.sasl import clients as sasl

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.client import Client
    from mailproxy.mail.pop3 import Pop3Settings

MAX_ARGUMENTS = 3

_COMMANDS = frozenset(
    (b"USER", b"PASS", b"APOP", b"QUIT", b"CAPA", b"AUTH", b"NOOP", b"STLS")
)
_OK = b"+OK\r\n"
_INVALID = b"-ERR invalid command\r\n"


async def _read_command(client: Client) -> Command:
    """Read the next command.

    Raises:
      BadCommand: the line is not a command.
      ClientError: the client left.
    """
    word, _, rest = (await client.read_text()).partition(b" ")
    name = word.upper()
    forwarded = name == b"XCLIENT" and _accepts_xclient(client)
    if name not in _COMMANDS and not forwarded:
        raise BadCommand(counted=True)
    if forwarded or name in (b"USER", b"PASS"):
        # Names and passwords may contain spaces.
        rest = rest.lstrip(b" ")
        arguments = [rest] if rest else []
    else:
        arguments = split_words(rest, MAX_ARGUMENTS)
    client.accepted()
    return Command(name, arguments)


def _accepts_xclient(client: Client) -> bool:
    """Whether the client is a proxy whose XCLIENT is read; see `mail/forward.py`."""
    return "xclient" in client.server.proxy.proxy_forward and forward.accepts(client)


class Pop3Dialogue(Dialogue):
    """The dialogue of one POP3 session."""

    header_refusal = pop3_backend.HEADER_REFUSAL

    def __init__(self, client: Client, settings: Pop3Settings) -> None:
        super().__init__(client)
        self._settings = settings
        self._user = b""
        """The argument of USER, which PASS must follow; empty before USER."""

    def forget(self) -> None:
        self._user = b""

    async def greet(self) -> None:
        client = self.client
        announced = b"[XCLIENT] " if _accepts_xclient(client) else b""
        if self._settings.pop3_auth.isdisjoint(("apop", "cram-md5")):
            await client.send(b"+OK %sPOP3 ready\r\n" % announced)
        else:
            await client.send(b"+OK %sPOP3 ready %s\r\n" % (announced, client.salt))

    async def read_login(self) -> Login | None:
        client = self.client
        self._user = b""
        while True:
            try:
                command = await _read_command(client)
                match command.name:
                    case b"QUIT":
                        await client.send(_OK)
                        return None
                    case b"STLS" if not self._user and client.may_start_tls:
                        await client.send(_OK)
                        await self.start_tls()
                    case b"PASS" | b"APOP" | b"AUTH" if command.arguments:
                        return await self._log_in(command)
                    case _:
                        await client.send(self._answer(command))
            except BadCommand as bad:
                self._user = b""
                await client.answer_bad(bad, _INVALID)

    def _answer(self, command: Command) -> bytes:
        """The answer to a command that does not complete a login.

        Raises:
          BadCommand: the command is not allowed now.
        """
        match command.name:
            case b"NOOP":
                return _OK
            case b"XCLIENT" if not self._user:
                self.ttl = forward.find_ttl(command.arguments)
                return _OK
            case b"CAPA":
                return self._capabilities()
            case _ if self._user or not self.client.may_log_in:
                raise BadCommand
            case b"USER" if command.arguments:
                self.client.info.login = command.arguments[0]
                sasl.check_credentials(command.arguments[0], None, "USER")
                self._user = command.arguments[0]
                return _OK
            case b"AUTH" if not command.arguments:
                return _listed(
                    b"+OK methods supported:", sasl.announced(self._settings.pop3_auth)
                )
            case _:
                raise BadCommand

    async def _log_in(self, command: Command) -> Login:
        """The login that PASS, APOP or AUTH, with arguments, offer.

        Raises:
          BadCommand: the command is not allowed now, or not well-formed.
        """
        client, arguments = self.client, command.arguments
        if command.name == b"PASS" and self._user:
            sasl.check_credentials(self._user, arguments[0], "PASS")
            return Login(method="plain", user=self._user, secret=arguments[0])
        if command.name == b"PASS" or self._user or not client.may_log_in:
            raise BadCommand
        if command.name == b"APOP":
            return self._apop(arguments)
        return await sasl.authenticate(
            client, arguments, self._settings.pop3_auth, self.challenge
        )

    def _apop(self, arguments: list[bytes]) -> Login:
        """The login of an APOP command; the auth source verifies its digest.

        Raises:
          BadCommand: APOP is not enabled, or the command is not well-formed.
        """
        if "apop" not in self._settings.pop3_auth or len(arguments) != 2:
            raise BadCommand
        user, digest = arguments
        self.client.info.login = user
        sasl.check_credentials(user, digest, "APOP")
        return Login(method="apop", user=user, secret=digest, salt=self.client.salt)

    def _capabilities(self) -> bytes:
        """The answer to CAPA (RFC 2449); between USER and PASS, STLS is refused."""
        client, settings = self.client, self._settings
        return _answer_to_capa(
            settings.pop3_capabilities,
            settings.pop3_auth if client.may_log_in else None,
            client.may_start_tls and not self._user,
        )

    async def challenge(self, text: bytes) -> list[bytes]:
        return await self.client.ask(b"+ %s\r\n" % text, MAX_ARGUMENTS)

    def invalid(self, _login: Login) -> bytes:
        return _INVALID

    def refusal(self, _login: Login, text: bytes, _code: bytes) -> bytes:
        return b"-ERR %s\r\n" % text

    async def meet(self, backend: Backend) -> None:
        await pop3_backend.meet(backend)
        if self.client.server.proxy.proxy_auth_mech != "command":
            await pop3_backend.learn_offers(backend)

    async def enter(self, backend: Backend, login: Login) -> bytes:
        return await pop3_backend.enter(backend, login, self)


@lru_cache(MAX_ANSWERS)
def _answer_to_capa(
    capabilities: tuple[bytes, ...], mechanisms: frozenset[str] | None, stls: bool
) -> bytes:
    """The answer of a server to CAPA.

    Args:
      mechanisms: None if the client may not log in now.
      stls: whether STLS is allowed.
    """
    lines = list(capabilities)
    if mechanisms is None:
        lines = [each for each in lines if each.upper() != b"USER"]
    elif announced := sasl.announced(mechanisms):
        # nginx sends an empty line if there is none, which RFC 2449 forbids.
        lines.append(b" ".join((b"SASL", *announced)))
    if stls:
        lines.append(b"STLS")
    return _listed(b"+OK Capability list follows", lines)


def _listed(first: bytes, lines: list[bytes]) -> bytes:
    """A multi-line answer."""
    return b"\r\n".join((first, *lines, b".", b""))
