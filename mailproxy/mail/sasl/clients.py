"""SASL mechanisms toward clients (RFC 4422).

Messages are decoded as nginx decodes them (base64 stops at the first "=", padding may
be missing), and rejected where nginx rejects them, with its texts. Beyond that, CR, LF
and NUL are rejected in user names and secrets: each of them ends a line or a string in
one of the protocols that transport them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailproxy.auth.verdict import is_clean
from mailproxy.mail.commands import BadCommand
from mailproxy.mail.login import Login

if TYPE_CHECKING:
    from mailproxy.mail.client import Client

USER_CHALLENGE = base64.b64encode(b"Username:")
PASSWORD_CHALLENGE = base64.b64encode(b"Password:")
_XOAUTH2 = re.compile(
    rb"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01", re.IGNORECASE
)

ALWAYS = frozenset(("plain", "login"))
"""Mechanisms that no directive disables, as in nginx."""
_WITHOUT_INITIAL_RESPONSE = frozenset(("cram-md5",))
CRAM_MD5_DIGITS = 32
"""Hexadecimal digits of a digest (RFC 2195, section 2)."""

Ask = Callable[[bytes], Awaitable[list[bytes]]]
"""Sends a challenge and returns the words of the answer; see `Dialogue.challenge`."""


@dataclass(frozen=True, slots=True)
class UserAndSecret:
    """A user name and its proof, from a SASL message.

    Attributes:
      user: the user name.
      secret: password, digest or token; None if the mechanism has none.
    """

    user: bytes
    secret: bytes | None = field(repr=False)


class _Exchange:
    """The messages of one AUTH or AUTHENTICATE command.

    Attributes:
      name: the name of the mechanism, in upper case.
    """

    def __init__(
        self, client: Client, name: str, initial: Sequence[bytes], ask: Ask
    ) -> None:
        self.client = client
        self.name = name
        self._initial = initial
        self._ask = ask

    async def respond(self, challenge: bytes) -> bytes:
        """Return the initial response, or else the answer to a challenge."""
        return self._initial[0] if self._initial else await self.ask(challenge)

    async def ask(self, challenge: bytes) -> bytes:
        """Send a challenge; returns the first word of the answer."""
        return (await self._ask(challenge))[0]


async def _plain(exchange: _Exchange) -> UserAndSecret:
    return parse_plain(await exchange.respond(b""))


async def _login(exchange: _Exchange) -> UserAndSecret:
    user = decode(await exchange.respond(USER_CHALLENGE), exchange.name)
    exchange.client.info.login = user
    return UserAndSecret(
        user, decode(await exchange.ask(PASSWORD_CHALLENGE), exchange.name)
    )


async def _cram_md5(exchange: _Exchange) -> UserAndSecret:
    challenge = base64.b64encode(exchange.client.salt)
    credentials = split_cram_md5(await exchange.respond(challenge))
    if len(credentials.secret or b"") != CRAM_MD5_DIGITS:
        exchange.client.info.login = credentials.user
        raise _invalid("CRAM-MD5 hash", "AUTH CRAM-MD5")
    return credentials


async def _external(exchange: _Exchange) -> UserAndSecret:
    user = decode(await exchange.respond(USER_CHALLENGE), exchange.name)
    return UserAndSecret(user, None)


async def _xoauth2(exchange: _Exchange) -> UserAndSecret:
    return parse_xoauth2(await exchange.respond(b""))


async def _oauthbearer(exchange: _Exchange) -> UserAndSecret:
    return parse_oauthbearer(await exchange.respond(b""))


_MECHANISMS: dict[str, Callable[[_Exchange], Awaitable[UserAndSecret]]] = {
    "plain": _plain,
    "login": _login,
    "cram-md5": _cram_md5,
    "external": _external,
    "xoauth2": _xoauth2,
    "oauthbearer": _oauthbearer,
}
"""All mechanisms, in the order in which nginx announces them."""


async def authenticate(
    client: Client,
    arguments: Sequence[bytes],
    enabled: Collection[str],
    ask: Ask,
    tag: bytes = b"",
) -> Login:
    """Carry out the exchange of one AUTH or AUTHENTICATE command.

    Args:
      arguments: those of the command: the mechanism, possibly an initial response.
      enabled: mechanisms of the `*_auth` directive.
      ask: sends a challenge and returns the words of the answer; the first one counts.
      tag: IMAP: the tag of the command.

    Raises:
      BadCommand: the mechanism is unknown or disabled, or an answer is not well-formed.
      ClientError: the client left.
    """
    client.info.login = b""
    mechanism = _find_mechanism(arguments, enabled)
    exchange = _Exchange(client, mechanism.upper(), arguments[1:], ask)
    found = await _MECHANISMS[mechanism](exchange)
    client.info.login = found.user
    check_credentials(found.user, found.secret, f"AUTH {exchange.name}")
    method = "plain" if mechanism == "login" else mechanism
    salt = client.salt if mechanism == "cram-md5" else b""
    return Login(
        method=method, user=found.user, secret=found.secret, tag=tag, salt=salt
    )


def _find_mechanism(arguments: Sequence[bytes], enabled: Collection[str]) -> str:
    """The mechanism that a command names, in lower case.

    Raises:
      BadCommand: it is unknown or disabled, or must not have an initial response.
    """
    mechanism = arguments[0].decode("latin-1").lower() if arguments else ""
    if mechanism not in _MECHANISMS or (
        mechanism not in enabled and mechanism not in ALWAYS
    ):
        raise BadCommand
    if len(arguments) - 1 > (mechanism not in _WITHOUT_INITIAL_RESPONSE):
        raise BadCommand
    return mechanism


def announced(enabled: Collection[str]) -> list[bytes]:
    """The enabled mechanisms as capabilities list them, in nginx's order."""
    return [each.upper().encode() for each in _MECHANISMS if each in enabled]


def check_credentials(user: bytes, secret: bytes | None, command: str) -> None:
    """Check that nothing in user or secret ends a line or a string toward the backend.

    Raises:
      BadCommand: one of them contains CR, LF or NUL.
    """
    if not is_clean(user):
        raise _invalid("login", command)
    if secret and not is_clean(secret):
        raise _invalid("password", command)


def _invalid(what: str, command: str) -> BadCommand:
    return BadCommand(f"client sent invalid {what} in {command} command")


def decode(text: bytes, mechanism: str) -> bytes:
    """Decode base64 (RFC 4648, section 4), stopping at the first "=".

    Raises:
      BadCommand: an octet is outside the alphabet, or the length is impossible.
    """
    digits = text.partition(b"=")[0]
    padding = b"=" * (-len(digits) % 4)
    try:
        return binascii.a2b_base64(digits + padding, strict_mode=True)
    except binascii.Error as error:
        raise _invalid("base64 encoding", f"AUTH {mechanism}") from error


def parse_plain(response: bytes) -> UserAndSecret:
    """Parse user and password of PLAIN (RFC 4616); the authorization identity is dropped.

    Raises:
      BadCommand: it is not "identity NUL user NUL password".
    """
    message = decode(response, "PLAIN")
    _identity, nul, rest = message.partition(b"\0")
    if not nul or not rest:
        raise _invalid("login", "AUTH PLAIN")
    user, nul, password = rest.partition(b"\0")
    if not nul:
        raise _invalid("password", "AUTH PLAIN")
    return UserAndSecret(user, password)


def split_cram_md5(response: bytes) -> UserAndSecret:
    """Parse user and digest of CRAM-MD5 (RFC 2195); both are empty without a space.

    Raises:
      BadCommand: it is not base64.
    """
    user, space, digest = decode(response, "CRAM-MD5").partition(b" ")
    return UserAndSecret(user, digest) if space else UserAndSecret(b"", b"")


def parse_xoauth2(response: bytes) -> UserAndSecret:
    """Parse user and token of XOAUTH2, in the only order that Google documents.

    Raises:
      BadCommand: it is not "user=U^Aauth=Bearer T^A^A".
    """
    message = decode(response, "XOAUTH2")
    if not message[:5].lower() == b"user=" or b"\x01" not in message:
        raise _invalid("login", "AUTH XOAUTH2")
    match = _XOAUTH2.fullmatch(message)
    if match is None:
        raise _invalid("token", "AUTH XOAUTH2")
    return UserAndSecret(match[1], match[2])


def parse_oauthbearer(response: bytes) -> UserAndSecret:
    """Parse user and token of OAUTHBEARER (RFC 7628, section 3.1).

    Raises:
      BadCommand: the header has no "a=user", or no field is "auth=Bearer token".
    """
    header, *fields = decode(response, "OAUTHBEARER").split(b"\x01")
    names = [n for n in header.split(b",")[1:-1] if n[:2].lower() == b"a=" and n[2:]]
    user = _unescape(names[0][2:]) if names else None
    if user is None:
        raise _invalid("login", "AUTH OAUTHBEARER")
    for each in fields[:-1]:
        if each[:12].lower() == b"auth=bearer " and each[12:]:
            return UserAndSecret(user, each[12:])
    raise _invalid("token", "AUTH OAUTHBEARER")


def _unescape(name: bytes) -> bytes | None:
    """Decode a saslname (RFC 5801, section 4); returns None if it has a stray "="."""
    if _STRAY.search(name):
        return None
    return _ESCAPED.sub(lambda match: b"," if match[0][1:2] == b"2" else b"=", name)


_ESCAPED = re.compile(rb"=(2C|3D)", re.IGNORECASE)
_STRAY = re.compile(rb"=(?!2C|3D)", re.IGNORECASE)


def accepts_failure(method: str, answer: Sequence[bytes]) -> bool:
    """Whether a client answers Auth-Error-SASL as it must (RFC 7628, section 3.2.3).

    Args:
      answer: the words of its answer.
    """
    if len(answer) > 1:
        return False
    return not answer[0] if method == "xoauth2" else answer[0][:4] == b"AQ=="
