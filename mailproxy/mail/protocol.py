"""What a mail protocol has to say, and the words that all of them share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from mailproxy.conf.directive import Block, Scope, Settings
from mailproxy.errors import BackendError
from mailproxy.mail.load_state import load_state
from mailproxy.net.lines import LineStream, TooLong

if TYPE_CHECKING:
    from mailproxy.auth.request import Envelope
    from mailproxy.mail.client import Client

KIB = 1024
USUAL_BUFFER = 4 * KIB
"""Octets of the `*_client_buffer` that configurations without one have."""
MAX_ADVICE = 64 * KIB
"""The largest buffer that the log advises; what is longer is not a login."""
MAX_SHOWN = 400
"""Octets that the log shows of a command that is too long. Lines are cut at 2048, and
each octet may become four; the advice behind it has to fit as well."""


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
      smtp_auth: SMTP: whether the backend is logged in to with AUTH; None: as
        `proxy_smtp_auth` says.
    """

    method: str
    user: bytes
    secret: bytes | None = field(default=None, repr=False)
    tag: bytes = b""
    salt: bytes = b""
    envelope: Envelope | None = None
    smtp_auth: bool | None = None


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


@dataclass(frozen=True, kw_only=True)
class MailProtocol(Settings, ABC):
    """The settings of a protocol, which are also what speaks it, toward both sides."""

    name: ClassVar[str]
    """What `protocol` calls it."""
    ports: ClassVar[tuple[int, ...]]
    """The ports that mean it where `protocol` is not written."""
    needs_password: ClassVar[bool] = True
    """Whether a client cannot be logged in at a backend without a password."""
    names_clients: ClassVar[bool] = False
    """Whether auth sources are told the client's name in the DNS."""
    harmless: ClassVar[frozenset[bytes]] = frozenset()
    """Commands without secrets, in upper case: the debug log shows them whole, and of
    all others no arguments."""
    tagged: ClassVar[bool] = False
    """Whether a command has a tag before its name."""
    certificate_error: ClassVar[bytes]
    """Sent, before closing, to a client whose certificate does not verify."""
    certificate_missing: ClassVar[bytes]
    internal_error: ClassVar[bytes]
    """Sent, before closing, when the auth source or the backend fails."""

    @property
    @abstractmethod
    def client_buffer(self) -> int:
        """Octets that one command of a client may have."""

    @classmethod
    def applies(cls, block: Block, scope: Scope) -> bool:
        """Whether the server speaks this protocol."""
        return load_state(scope).protocol.get(block) == cls.name

    @abstractmethod
    async def greet(self, client: Client) -> None:
        """Say the first words, on a new connection."""

    @abstractmethod
    async def read_login(self, client: Client) -> Login | None:
        """Answer commands until one of them is a login; None: the client said goodbye.

        Raises:
          ClientError: the client left or broke a limit; it has been told.
        """

    @abstractmethod
    async def challenge(self, client: Client, text: bytes) -> list[bytes]:
        """Send a SASL challenge (base64, or empty) and return the answer's words.

        There is at least one; it is empty if the line is, or begins with a space.

        Raises:
          BadCommand: the answer is not a line of words.
        """

    @abstractmethod
    def invalid(self, login: Login) -> bytes:
        """The line that refuses `login` as an invalid command."""

    @abstractmethod
    def refusal(self, login: Login, text: bytes, code: bytes, /) -> bytes:
        """The line that says that `login` is not good.

        Args:
          text: why, from the auth source.
          code: SMTP: reply code, or empty for the protocol's own.
        """

    @abstractmethod
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


class Naming(Protocol):
    """Names the present action: ``sending("user name")``, for the log."""

    def __call__(self, what: str, /) -> None: ...


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


_REVEALING = re.compile(
    rb"\s*(?:\S+\s+)??(?:LOGIN|AUTHENTICATE|AUTH|PASS|APOP)(?!\S)", re.IGNORECASE
)


async def expect_line(backend: LineStream, before: bytes = b"") -> bytes:
    """One line of a backend, with its LF.

    Args:
      before: lines that were read before and may explain why it leaves.

    Raises:
      BackendError: it left, or the reply is too long (`proxy_buffer`).
    """
    try:
        return await backend.read_line(len(before))
    except BackendError as gone:
        raise _last_words(before + backend.take_rest(), gone) from None
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
    await send(backend, command)


async def send(backend: LineStream, data: bytes) -> None:
    """Send something to a backend, whatever it has said.

    Raises:
      BackendError: the connection broke; with what the backend said before.
    """
    try:
        await backend.send(data)
    except BackendError as gone:
        if not isinstance(gone.error, ConnectionError):
            raise
        try:
            # The connection is closed, so this does not wait.
            said = await backend.read_some()
        except BackendError:
            raise gone from None
        raise _last_words(said, gone) from None


_FAREWELL = re.compile(
    rb"""\*\ BYE(?:\ [^\n]*)?\r?\n
       | -ERR(?:\ [^\n]*)?\r?\n
       | (?:421-[^\n]*\n)*421(?:\ [^\n]*)?\r?\n""",
    re.VERBOSE | re.IGNORECASE,
)
"""Why a backend is about to close, complete. It may say so at any time (RFC 3501,
section 7.1.5; RFC 5321, section 3.8), and lets nobody in by that."""


def _last_words(said: bytes, gone: BackendError) -> BackendError:
    """The error for a backend that left; it tells what it said before, if anything.

    Args:
      said: lines that were no answer, and a line without its end: a backend that
        closes in good order does not break off within one.
    """
    if not said:
        return gone
    whole = said if gone.error or said.endswith(b"\n") else said + b"\r\n"
    lines = whole.splitlines(keepends=True)
    found = _FAREWELL.fullmatch(whole) or _FAREWELL.fullmatch(lines[-1])
    return BackendError(
        'upstream closed connection prematurely after "%s"',
        said.rstrip(b"\r\n"),
        error=gone.error,
        reply=found[0] if found else b"",
    )


def early_reply(reply: bytes) -> BackendError:
    """The error for an answer to what was not said yet; no client may see it.

    But it may see that the backend is about to close.
    """
    error = invalid_reply(reply)
    found = _FAREWELL.match(reply)
    error.reply = found[0] if found else b""
    return error


def invalid_reply(
    reply: bytes, shown: bytes | None = None, command: str = "", remedy: str = ""
) -> BackendError:
    """The error for an answer that is not the expected one.

    Args:
      reply: the whole lines, for the client.
      shown: the same for the log, where that differs.
      command, remedy: see `BackendError`.
    """
    return BackendError(
        'upstream sent invalid response: "%s"',
        (reply if shown is None else shown).rstrip(b"\r\n"),
        reply=reply,
        command=command,
        remedy=remedy,
    )
