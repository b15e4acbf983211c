"""What a mail protocol has to say, and what a dialogue knows of its client."""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Protocol

import trio

from mailproxy.errors import BackendError, ClientError, SessionError
from mailproxy.net import openssl
from mailproxy.net.lines import LineStream, TooLong

if TYPE_CHECKING:
    from mailproxy.log import Logger, MailContext
    from mailproxy.mail.core import Listen
    from mailproxy.mail.modules import Server
    from mailproxy.net.network import Network
    from mailproxy.net.proxy_protocol import Header
    from mailproxy.net.wire import Wire

FORBIDDEN = frozenset(b"\r\n\0")
"""Octets that no user name and no password may have: they end a line or a string
in one of the protocols that carry them on."""

UNTRUSTED = frozenset((18, 19, 20, 21, 27))
"""Results of OpenSSL's verification that `ssl_verify_client optional_no_ca` forgives:
the certificate may be good, but nobody that we know vouches for it."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The SMTP commands of a client that does not log in (`smtp_auth none`).

    Attributes:
      mail: the whole ``MAIL FROM:…`` line, without line end.
      rcpt: the whole ``RCPT TO:…`` line.
    """

    mail: bytes
    rcpt: bytes


@dataclass(frozen=True, slots=True)
class Login:
    """What a client offered to log in.

    Attributes:
      method: the value of auth_http's ``Auth-Method``.
      user: the user name; free of CR, LF and NUL.
      secret: password, digest or token, free of the same; None if the method has none.
      tag: IMAP: the tag of the command, with its space.
      salt: what the client made its digest with.
      envelope: SMTP: what the client wants instead of logging in.
    """

    method: str
    user: bytes
    secret: bytes | None = field(default=None, repr=False)
    tag: bytes = b""
    salt: bytes = b""
    envelope: Envelope | None = None


class BadCommand(Exception):  # noqa: N818 - an event of the dialogue, not a fault
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


class MailProtocol(Protocol):
    """A settings class of `mail/imap.py` and its like, as a session sees it."""

    name: ClassVar[str]
    certificate_error: ClassVar[bytes]
    """Sent, before closing, to a client whose certificate does not verify."""
    certificate_missing: ClassVar[bytes]
    internal_error: ClassVar[bytes]
    """Sent, before closing, when the auth source or the backend fails."""

    @property
    def client_buffer(self) -> int:
        """Octets that one command of a client may have."""
        ...

    async def greet(self, client: Client) -> None:
        """Say the first words, on a new connection."""
        ...

    async def read_login(self, client: Client) -> Login | None:
        """Answer commands until one of them is a login; None: the client said goodbye.

        Raises:
          ClientError: the client left or broke a limit; it has been told.
        """
        ...

    async def challenge(self, client: Client, text: bytes) -> list[bytes]:
        """Send a SASL challenge (base64, or empty) and return the answer's words.

        There is at least one; it is empty if the line is, or begins with a space.

        Raises:
          BadCommand: the answer is not a line of words.
        """
        ...

    def invalid(self, login: Login) -> bytes:
        """The line that refuses `login` as an invalid command."""
        ...

    def refusal(self, login: Login, text: bytes, code: bytes, /) -> bytes:
        """The line that says that `login` is not good.

        Args:
          text: why, from the auth source.
          code: SMTP: reply code, or empty for the protocol's own.
        """
        ...

    async def enter(
        self, backend: LineStream, login: Login, client: Client, sending: Naming, /
    ) -> bytes:
        """Log in at the backend; returns what the client is to see of its answer.

        Args:
          login: with the user and the secret for the backend.
          sending: is called with what is sent next, in nginx's words, for the log.

        Raises:
          BackendError: the backend left, or answered something else.
        """
        ...


class Timer:
    """The one timer of a session until its login, and what it means when it goes off.

    A phase begins with `limit`, which ends the phase before. That is one cancel scope
    for all phases: three of them would be a tenth of what a login costs.
    """

    __slots__ = ("_expired", "_scope")

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._expired: Callable[[], SessionError] = client_timed_out

    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        """Begin a phase of `seconds`; at its end, what `expired` returns is raised.

        It is raised by the `with` statement of this timer. Without `expired`, the
        client is to blame.
        """
        self._expired = expired or client_timed_out
        self._scope.deadline = trio.current_time() + seconds

    def stop(self) -> None:
        """Begin a phase without limit, or one that limits itself."""
        self._scope.deadline = math.inf

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise self._expired()


def timed_out() -> OSError:
    """The system error of a timer that went off, as the log shows it."""
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def client_timed_out() -> ClientError:
    """The client let `timeout` pass."""
    return ClientError("client timed out", error=timed_out())


class Naming(Protocol):
    """Names the present action: ``sending("user name")``, for the log."""

    def __call__(self, what: str, /) -> None: ...


class Client:
    """One client, from accept to the end of its login: what dialogues know of it.

    Attributes:
      wire: its connection.
      lines: the same, line by line.
      server, listen: who serves it, and which address it came to.
      address, port: where it comes from, after `set_real_ip_from`; a client of a
        unix socket has the address "unix:" and no port.
      header: the PROXY header it came with, if any.
      host: SMTP: its name in the DNS, or why there is none.
      helo: SMTP: what it called itself.
      esmtp: SMTP: its last greeting was EHLO.
      mail: SMTP: its MAIL command, if that is under way (`smtp_auth none`).
      attempts: how many logins it has tried.
      timer: limits what is going on.
    """

    def __init__(
        self,
        wire: Wire,
        server: Server,
        listen: Listen,
        network: Network,
        context: MailContext,
        log: Logger,
    ) -> None:
        self.wire = wire
        self.lines = LineStream(
            wire, server.protocol.client_buffer, ClientError, "client closed connection"
        )
        self.server = server
        self.listen = listen
        self.network = network
        self.context = context
        self.log = log
        self.address = context.client
        self.port = context.client_port
        self.header: Header | None = None
        self.host = b"[UNAVAILABLE]"
        self.helo = b""
        self.esmtp = False
        self.mail = b""
        self.attempts = 0
        self.timer = Timer()
        self._errors = 0
        self._commands = 0
        self._salt = b""

    @property
    def secure(self) -> bool:
        """Whether the connection is in TLS."""
        return self.wire.tls is not None

    @property
    def may_log_in(self) -> bool:
        """Whether logins are allowed as things are (`starttls only`)."""
        return self.secure or self.server.ssl.starttls != "only"

    @property
    def may_start_tls(self) -> bool:
        """Whether STARTTLS is allowed and announced."""
        return not self.secure and self.server.ssl.starttls != "off"

    @property
    def salt(self) -> bytes:
        """``<random.time@server_name>``, the same for the whole connection."""
        if not self._salt:
            self._salt = b"<%d.%d@%s>" % (
                secrets.randbelow(1 << 31),
                int(time.time()),
                self.server.core.server_name,
            )
        return self._salt

    async def send(self, data: bytes) -> None:
        """Send `data`.

        Raises:
          ClientError: the connection broke.
        """
        await self.lines.send(data)

    async def read_text(self, *, secret: bool = False) -> bytes:
        """The next line of POP3 or SMTP, without its end.

        Args:
          secret: the line may be a secret as a whole, so the log must not show it.

        Raises:
          BadCommand: a CR stands in it, or it does not fit into the buffer.
          ClientError: the client left.
        """
        try:
            line = await self.lines.read_line()
        except TooLong as too_long:
            raise too_long_command(
                b"..." if secret else redacted(too_long.received)
            ) from None
        text = line[:-1].removesuffix(b"\r")
        if b"\r" in text:
            raise BadCommand(counted=True)
        return text

    async def ask(self, prompt: bytes, room: int) -> list[bytes]:
        """Send a SASL challenge of POP3 or SMTP; returns the words of the answer.

        Args:
          prompt: the whole line.
          room: how many words the answer may have.

        Raises:
          BadCommand: it is not a line of words, or too many commands were sent.
        """
        await self.send(prompt)
        text = await self.read_text(secret=True)
        # What stands before the first space is a word, even if nothing does.
        first, _, more = text.partition(b" ")
        words = [first, *split_words(more, room - 1)]
        self.accepted()
        return words

    def accepted(self) -> None:
        """Count a command that the parser accepted.

        Raises:
          BadCommand: there were more than `max_commands`; the session ends.
        """
        self._commands += 1
        if self._commands > self.server.core.max_commands:
            raise BadCommand("client sent too many commands", close=True)

    async def answer_bad(self, bad: BadCommand, line: bytes) -> None:
        """Answer a bad command with `line`.

        Raises:
          ClientError: the session ends.
        """
        if bad.event:
            self.log.info(bad.event, *bad.values)
        await self.send(line)
        if bad.counted:
            self._errors += 1
            if self._errors >= self.server.core.max_errors:
                raise ClientError("client sent too many invalid commands")
        if bad.close:
            raise ClientError

    async def start_tls(self, action: str) -> None:
        """Do a TLS handshake, and check the client's certificate.

        What arrived in clear text, and all that was said in it, is dropped.

        Args:
          action: the handshake in nginx's words, for the log.

        Raises:
          ClientError: the handshake failed, or the certificate is bad.
        """
        context = self.server.ssl.context
        assert context is not None, "the configuration was checked for it"
        self.lines.take_rest()
        self.helo = b""
        self.esmtp = False
        self.mail = b""
        self.context.login = b""
        self.context.starttls = not self.listen.ssl
        self.context.action = action
        try:
            await self.wire.start_tls(context)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise ClientError("peer closed connection in SSL handshake") from None
        except ssl.SSLError as error:
            raise ClientError(
                "SSL_do_handshake() failed (SSL: %s)",
                openssl.error_text(error),
                level=openssl.error_level(error),
            ) from None
        except OSError as error:
            raise ClientError(
                "peer closed connection in SSL handshake", error=error
            ) from None
        if self.server.ssl.ssl_verify_client != "off":
            await self._check_certificate()

    async def _check_certificate(self) -> None:
        """Check after the handshake, as nginx does, so that the client hears why."""
        tls = self.wire.tls
        assert tls is not None
        wanted = self.server.ssl.ssl_verify_client
        protocol = self.server.protocol
        code, text = openssl.verify_result(tls)
        if code and not (wanted == "optional_no_ca" and code in UNTRUSTED):
            openssl.remove_session(tls)
            await self.send(protocol.certificate_error)
            raise ClientError(
                "client SSL certificate verify error: (%s:%s)", code, text
            )
        if wanted == "on" and openssl.peer_certificate(tls) is None:
            openssl.remove_session(tls)
            await self.send(protocol.certificate_missing)
            raise ClientError("client sent no required SSL certificate")


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


def too_long_command(shown: bytes) -> BadCommand:
    """The buffer is full and the command is not complete; the session ends."""
    return BadCommand('client sent too long command "%s"', shown, close=True)


_REVEALING = re.compile(
    rb"\s*(?:\S+\s+)??(?:LOGIN|AUTHENTICATE|AUTH|PASS|APOP)(?!\S)", re.IGNORECASE
)


async def expect_line(backend: LineStream, before: bytes = b"") -> bytes:
    """One line of a backend, with its LF.

    Args:
      before: lines of the same reply that were read before.

    Raises:
      BackendError: it left, or the reply is too long (`proxy_buffer`).
    """
    try:
        return await backend.read_line(len(before))
    except TooLong as too_long:
        # All but the last octet, as nginx shows it.
        shown = (before + too_long.received)[:-1]
        raise BackendError(
            'upstream sent too long response line: "%s"', shown
        ) from None


async def send_command(backend: LineStream, command: bytes) -> None:
    """Send a command to a backend that has said no more than it was asked for.

    What it sent before its turn would be taken for the answer to this command.

    Raises:
      BackendError: there is more, or the connection broke.
    """
    if backend.buffered:
        raise early_reply(backend.take_rest())
    await backend.send(command)


def early_reply(reply: bytes) -> BackendError:
    """The error for an answer to what was not said yet; no client may see it."""
    error = invalid_reply(reply)
    error.reply = b""
    return error


def invalid_reply(reply: bytes, shown: bytes | None = None) -> BackendError:
    """The error for an answer that is not the expected one.

    Args:
      reply: the whole lines, for the client.
      shown: the same for the log, where that differs.
    """
    text = (reply if shown is None else shown).rstrip(b"\r\n")
    return BackendError('upstream sent invalid response: "%s"', text, reply=reply)
