"""SASL toward backends (RFC 4422): messages, the choice of a mechanism, and the exchange.

    C: AUTH M [message]     with the first message, if the protocol allows it here
    S: challenge            without it, an empty one comes first
    C: message              and so on, until there is no other
    S: final reply

OAuth mechanisms have one step more if the backend refuses the token: the challenge tells
the reason, and only after a dummy message comes the final reply (RFC 7628, section
3.2.3; https://developers.google.com/workspace/gmail/imap/xoauth2-protocol).

Challenges are not looked at: LOGIN has any text in them, and those of the other
mechanisms are empty.
"""

from __future__ import annotations

import base64
import binascii
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.auth.verdict import is_clean
from mailproxy.errors import BackendError, LoginRefused

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.candidates import Candidate
    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login

MAX_REASON = 100
"""Octets of each part of a refusal's reason that the log shows."""

_SEPARATOR = b"\x01"
"""Ends a field of the messages of OAuth."""


# Messages


def format_plain(user: bytes, password: bytes, identity: bytes = b"") -> bytes:
    """Format the message of PLAIN (RFC 4616), base64.

    Args:
      user, password, identity: contain no NUL.
      identity: the authorization identity: whom `user` logs in as, if that is another
        one.
    """
    return base64.b64encode(b"%s\0%s\0%s" % (identity, user, password))


def format_xoauth2(user: bytes, token: bytes) -> bytes:
    """Format the message of XOAUTH2, base64.

    Args:
      user, token: contain no octet 1.
    """
    return base64.b64encode(b"user=%s\x01auth=Bearer %s\x01\x01" % (user, token))


def format_oauthbearer(
    user: bytes, token: bytes, host: bytes = b"", port: int | None = None
) -> bytes:
    """Format the message of OAUTHBEARER (RFC 7628, section 3.1), base64.

    Args:
      user, token: contain no octet 1.
      host, port: where the backend was connected to; without them for a unix socket.
    """
    name = user.replace(b"=", b"=3D").replace(b",", b"=2C")
    fields = [b"n,a=%s," % name]
    if host:
        fields.append(b"host=%s" % host)
    if port is not None:
        fields.append(b"port=%d" % port)
    fields.append(b"auth=Bearer %s" % token)
    return base64.b64encode(b"".join(field + _SEPARATOR for field in fields) + b"\x01")


# Mechanisms


Messages = Callable[["Login", "Candidate | None"], tuple[bytes, ...]]
"""Formats what the client of a mechanism says, in base64; there is at least one message."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """A mechanism, from its client's side."""

    name: bytes
    """In upper case."""
    messages: Messages
    initial: bool = True
    """Whether the first message may come with the command."""
    dummy: bytes | None = None
    """OAuth: what follows the reason of a refusal."""


def _plain(login: Login, _: Candidate | None) -> tuple[bytes, ...]:
    return (format_plain(login.name, login.secret or b"", login.identity),)


def _login(login: Login, _: Candidate | None) -> tuple[bytes, ...]:
    return base64.b64encode(login.name), base64.b64encode(login.secret or b"")


def _xoauth2(login: Login, _: Candidate | None) -> tuple[bytes, ...]:
    return (format_xoauth2(login.name, login.secret or b""),)


def _oauthbearer(login: Login, candidate: Candidate | None) -> tuple[bytes, ...]:
    host, port = b"", None
    if candidate is not None and isinstance(candidate.address, tuple):
        name, port = candidate.address[:2]
        host = (candidate.host or name).encode()
    return (format_oauthbearer(login.name, login.secret or b"", host, port),)


PLAIN = Mechanism(b"PLAIN", _plain)
LOGIN = Mechanism(b"LOGIN", _login, initial=False)
XOAUTH2 = Mechanism(b"XOAUTH2", _xoauth2, dummy=b"")
OAUTHBEARER = Mechanism(b"OAUTHBEARER", _oauthbearer, dummy=b"AQ==")

_BY_SETTING = {
    "plain": (PLAIN,),
    "login": (LOGIN,),
    "xoauth2": (XOAUTH2,),
    "oauthbearer": (OAUTHBEARER,),
}
_FOR_PASSWORDS = PLAIN, LOGIN
_FOR_TOKENS = OAUTHBEARER, XOAUTH2


def choose_mechanism(
    setting: str, login: Login, offered: frozenset[bytes], *, command: bool
) -> Mechanism | None:
    """Choose how to log in; None: by the protocol's own command.

    Args:
      setting: the value of `proxy_auth_mech`.
      offered: the mechanisms that the backend announces, in upper case.
      command: whether it also announces the command, for `auto`.

    Raises:
      BackendError: it announces nothing that may be used.
    """
    if setting == "command":
        return None
    auto = _FOR_TOKENS if login.has_token else _FOR_PASSWORDS
    accepted = _BY_SETTING.get(setting, auto)
    for each in accepted:
        if each.name in offered:
            return each
    if setting == "auto" and command and not login.has_token:
        return None
    names = " or ".join(each.name.decode() for each in accepted)
    raise BackendError("upstream does not offer AUTH %s", names, action=None)


# The exchange


class Exchange(ABC):
    """One AUTH or AUTHENTICATE command at a backend, as its protocol words it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @abstractmethod
    def command(self, mechanism: Mechanism, message: bytes | None = None) -> bytes:
        """Format the command, with its line end.

        Args:
          message: the initial response, if there is one.
        """

    @abstractmethod
    def allows(self, mechanism: Mechanism, command: bytes) -> bool:
        """Whether a command may have its initial response."""

    @abstractmethod
    async def send(self, line: bytes) -> None:
        """Send a line.

        Raises:
          BackendError: the backend has sent something unasked, or the connection broke.
        """

    @abstractmethod
    async def read(self) -> tuple[bytes, bytes | None]:
        """Read a reply.

        Returns:
          The reply, and its challenge (base64, or empty); None if the reply is final,
          and grants the login.

        Raises:
          LoginRefused: the backend refuses the login.
          BackendError: it closed, or answered something else.
        """


async def authenticate(
    exchange: Exchange, mechanism: Mechanism, login: Login, client: Client
) -> bytes:
    """Log in at a backend; returns its reply.

    Args:
      client: its log shows why a token is refused, and no message of the exchange.

    Raises:
      LoginRefused: the backend refuses the login.
      BackendError: the login cannot be sent, or the backend answers something else.
    """
    _check(login, mechanism)
    backend = exchange.backend
    messages = mechanism.messages(login, backend.candidate)
    client.secrets.remember_messages(messages)
    reply, challenge, left = await _begin(exchange, mechanism, messages)
    for message in left:
        if challenge is None:
            raise backend.invalid_reply(reply)
        await exchange.send(message + b"\r\n")
        reply, challenge = await exchange.read()
    if challenge is not None and mechanism.dummy is not None:
        _log_reason(challenge, client)
        await exchange.send(mechanism.dummy + b"\r\n")
        reply, challenge = await exchange.read()
    if challenge is not None:
        raise backend.invalid_reply(reply)
    return reply


async def _begin(
    exchange: Exchange, mechanism: Mechanism, messages: tuple[bytes, ...]
) -> tuple[bytes, bytes | None, tuple[bytes, ...]]:
    """Send the command, with the first message if that is possible.

    Returns:
      The reply, its challenge, and the messages that are still to be sent.

    Raises:
      LoginRefused: the backend refuses the login.
      BackendError: it refuses a command without a message, which says nothing about the
        login, or answers something else.
    """
    if mechanism.initial:
        command = exchange.command(mechanism, messages[0])
        if exchange.allows(mechanism, command):
            await exchange.send(command)
            return (*await exchange.read(), messages[1:])
    await exchange.send(exchange.command(mechanism))
    try:
        return (*await exchange.read(), messages)
    except LoginRefused as refused:
        raise BackendError(
            refused.event, *refused.values, reply=refused.reply
        ) from None


def _check(login: Login, mechanism: Mechanism) -> None:
    """Check that nothing in a login ends a line or a field of the messages.

    Raises:
      BackendError: something does, or there is no secret.
    """
    if login.secret is None:
        raise BackendError("no password available", action=None)
    texts = login.name, login.identity, login.secret
    clean = all(map(is_clean, texts))
    if mechanism.dummy is not None:
        clean = clean and not any(_SEPARATOR in text for text in texts)
    if not clean:
        raise BackendError(
            'login of "%s" has octets that AUTH %s cannot transport',
            login.user,
            mechanism.name.decode(),
            action=None,
        )


def _log_reason(challenge: bytes, client: Client) -> None:
    """Log why a backend refuses a token: status and scope (RFC 7628, section 3.2.2)."""
    reason = parse_reason(challenge)
    hidden = client.secrets.hidden
    event = "upstream refused the token"
    if reason:
        event += ": " + " ".join(f'{name}="%s"' for name in reason)
    client.log.info(event, *(hidden(text)[:MAX_REASON] for text in reason.values()))


def parse_reason(challenge: bytes) -> dict[str, bytes]:
    """Find status and scope in the reason of a refusal; both may be missing.

    Args:
      challenge: base64 of a JSON object, if the backend does as it should.
    """
    try:
        found = json.loads(binascii.a2b_base64(challenge))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: str(found[name]).encode("utf-8", "surrogatepass")
        for name in ("status", "scope")
        if isinstance(found.get(name), str | int)
    }
