"""SASL mechanisms, once for all protocols (RFC 4422).

What a client sends is decoded here as nginx decodes it (base64 stops at the first
"=", padding may be missing), and refused where nginx refuses it, with its texts.
Beyond that, CR, LF and NUL are refused in user names and secrets: each of them ends
a line or a string in a protocol that carries them on.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING

from mailproxy.mail.protocol import FORBIDDEN, BadCommand, Login

if TYPE_CHECKING:
    from mailproxy.mail.client import Client

USER_CHALLENGE = base64.b64encode(b"Username:")
PASSWORD_CHALLENGE = base64.b64encode(b"Password:")
_ALPHABET = re.compile(rb"[A-Za-z0-9+/]*")
_XOAUTH2 = re.compile(
    rb"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01", re.IGNORECASE
)
OAUTH = frozenset(("xoauth2", "oauthbearer"))

ALWAYS = frozenset(("plain", "login"))
"""Mechanisms that no directive switches off, as in nginx."""
_WITHOUT_INITIAL_RESPONSE = frozenset(("cram-md5",))


async def authenticate(
    client: Client,
    arguments: Sequence[bytes],
    enabled: Collection[str],
    ask: Callable[[bytes], Awaitable[list[bytes]]],
    tag: bytes = b"",
) -> Login:
    """Have the dialogue of one AUTH or AUTHENTICATE command.

    Args:
      arguments: of the command: the mechanism, perhaps an initial response.
      enabled: mechanisms of the `*_auth` directive.
      ask: sends a challenge (base64, or empty) and returns the words of the answer;
        the first one counts.
      tag: IMAP: the tag of the command.

    Raises:
      BadCommand: unknown or disabled mechanism, or an answer that cannot be read.
    """
    mechanism = arguments[0].decode("latin-1").lower() if arguments else ""
    initial = arguments[1:]
    client.context.login = b""
    if mechanism not in _ORDER or (
        mechanism not in enabled and mechanism not in ALWAYS
    ):
        raise BadCommand
    if len(initial) > (mechanism not in _WITHOUT_INITIAL_RESPONSE):
        raise BadCommand

    async def response(challenge: bytes) -> bytes:
        """The initial response, or else the answer to a challenge."""
        return initial[0] if initial else (await ask(challenge))[0]

    name = mechanism.upper()
    salt = b""
    user: bytes
    secret: bytes | None
    match mechanism:
        case "plain":
            user, secret = parse_plain(await response(b""))
        case "login":
            user = decode(await response(USER_CHALLENGE), name)
            client.context.login = user
            secret = decode((await ask(PASSWORD_CHALLENGE))[0], name)
        case "cram-md5":
            salt = client.salt
            user, secret = split_cram_md5(await response(base64.b64encode(salt)))
            if len(secret) != 32:
                client.context.login = user
                raise _invalid("CRAM-MD5 hash", "AUTH CRAM-MD5")
        case "external":
            user, secret = decode(await response(USER_CHALLENGE), name), None
        case "xoauth2":
            user, secret = parse_xoauth2(await response(b""))
        case _:
            user, secret = parse_oauthbearer(await response(b""))
    client.context.login = user
    check_credentials(user, secret, f"AUTH {name}")
    method = "plain" if mechanism == "login" else mechanism
    return Login(method, user, secret, tag=tag, salt=salt)


_ORDER = ("plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer")


def announced(enabled: Collection[str]) -> list[bytes]:
    """The enabled mechanisms as capabilities list them, in nginx's order."""
    return [each.upper().encode() for each in _ORDER if each in enabled]


def check_credentials(user: bytes, secret: bytes | None, command: str) -> None:
    """Refuse what could end a line or a string on its way to the backend.

    Raises:
      BadCommand: CR, LF or NUL is in it.
    """
    if not FORBIDDEN.isdisjoint(user):
        raise _invalid("login", command)
    if secret and not FORBIDDEN.isdisjoint(secret):
        raise _invalid("password", command)


def _invalid(what: str, command: str) -> BadCommand:
    return BadCommand(f"client sent invalid {what} in {command} command")


def decode(text: bytes, mechanism: str) -> bytes:
    """Decode base64 (RFC 4648, section 4), stopping at the first "=".

    Raises:
      BadCommand: an octet outside the alphabet, or a length that cannot be.
    """
    digits = text.partition(b"=")[0]
    if not _ALPHABET.fullmatch(digits) or len(digits) % 4 == 1:
        raise _invalid("base64 encoding", f"AUTH {mechanism}")
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))
    except binascii.Error as error:
        raise _invalid("base64 encoding", f"AUTH {mechanism}") from error


def parse_plain(response: bytes) -> tuple[bytes, bytes]:
    """User and password of PLAIN (RFC 4616); the authorization identity is dropped.

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
    return user, password


def split_cram_md5(response: bytes) -> tuple[bytes, bytes]:
    """User and digest of CRAM-MD5 (RFC 2195); both empty without a space.

    Raises:
      BadCommand: it is not base64.
    """
    user, space, digest = decode(response, "CRAM-MD5").partition(b" ")
    return (user, digest) if space else (b"", b"")


def parse_xoauth2(response: bytes) -> tuple[bytes, bytes]:
    """User and token of XOAUTH2, in the one order Google documents.

    Raises:
      BadCommand: it is not "user=U^Aauth=Bearer T^A^A".
    """
    message = decode(response, "XOAUTH2")
    if not message[:5].lower() == b"user=" or b"\x01" not in message:
        raise _invalid("login", "AUTH XOAUTH2")
    match = _XOAUTH2.fullmatch(message)
    if match is None:
        raise _invalid("token", "AUTH XOAUTH2")
    return match[1], match[2]


def parse_oauthbearer(response: bytes) -> tuple[bytes, bytes]:
    """User and token of OAUTHBEARER (RFC 7628, section 3.1).

    Raises:
      BadCommand: the header has no "a=user", or no field is "auth=Bearer token".
    """
    header, *fields = decode(response, "OAUTHBEARER").split(b"\x01")
    names = [n for n in header.split(b",")[1:-1] if n[:2].lower() == b"a=" and n[2:]]
    user = _unescape(names[0][2:]) if names else None
    if user is None:
        raise _invalid("login", "AUTH OAUTHBEARER")
    for field in fields[:-1]:
        if field[:12].lower() == b"auth=bearer " and field[12:]:
            return user, field[12:]
    raise _invalid("token", "AUTH OAUTHBEARER")


def _unescape(name: bytes) -> bytes | None:
    """A saslname (RFC 5801, section 4) in clear; None if it has a stray "="."""
    if _STRAY.search(name):
        return None
    return _ESCAPED.sub(lambda match: b"," if match[0][1:2] == b"2" else b"=", name)


_ESCAPED = re.compile(rb"=(2C|3D)", re.IGNORECASE)
_STRAY = re.compile(rb"=(?!2C|3D)", re.IGNORECASE)


def accepts_failure(method: str, answer: Sequence[bytes]) -> bool:
    """Whether the words are what a client must say to Auth-Error-SASL (RFC 7628, 3.2.3)."""
    if len(answer) > 1:
        return False
    return not answer[0] if method == "xoauth2" else answer[0][:4] == b"AQ=="
