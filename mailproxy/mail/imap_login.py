"""The login at IMAP backends (RFC 3501): ID, then LOGIN or AUTHENTICATE.

nginx sends user and password as literals, and has to be asked for each: three sendings,
where one line with quoted strings is enough. As `proxy_login` says, quoted strings are
used here where all servers understand them; what remains for literals goes out at once
to servers that offer LITERAL+.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.mail import forward
from mailproxy.mail.imap_backend import (
    expect,
    is_ok,
    learn_offers,
    parse_capabilities,
    read_answer,
    read_reply,
    send,
    status_of,
)
from mailproxy.mail.literals import announce
from mailproxy.mail.sasl.backends import Exchange, authenticate, choose_mechanism

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login
    from mailproxy.mail.protocol import Dialogue
    from mailproxy.mail.proxy import ProxySettings
    from mailproxy.mail.sasl.backends import Mechanism

_ID_TAG = b"mp4 "

MAX_COMMAND = 1000
"""Octets of a line with quoted strings, as RFC 2683, section 3.2.1.5, advises clients:
servers limit lines, some at 1 or 2 KiB, and literals do not count."""
_QUOTABLE = re.compile(rb"[ !#-\[\]-~]*")
"""Strings that all servers understand in quotes: printable ASCII (RFC 3501, section 9,
leaves octets from 128 on to literals), without `"` and `\\`. These could be escaped, but
some servers take the backslash for a part of the password, as DavMail long did."""


def needs_offers(proxy: ProxySettings) -> bool:
    """Whether the login depends on what the backend announces."""
    return proxy.proxy_auth_mech != "command" or "id" in proxy.proxy_forward


async def enter(backend: Backend, login: Login, dialogue: Dialogue) -> bytes:
    """Log in at the backend; see `Dialogue.enter`.

    Args:
      dialogue: the dialogue with the client.
    """
    proxy = dialogue.client.server.proxy
    if needs_offers(proxy):
        offers = await learn_offers(backend)
        if "id" in proxy.proxy_forward and b"ID" in offers:
            await _identify(backend, dialogue)
        mechanism = _choose(proxy.proxy_auth_mech, login, offers)
        if mechanism is not None:
            backend.sending("AUTHENTICATE command")
            exchange = _Authenticate(backend, login.tag)
            return await authenticate(exchange, mechanism, login, dialogue.client)
    return await _log_in(backend, login, proxy.proxy_login)


async def _identify(backend: Backend, dialogue: Dialogue) -> None:
    """Tell the backend of the client by ID (RFC 2971).

    Raises:
      BackendError: the backend refuses it, or closed.
    """
    told = forward.describe(dialogue)
    backend.sending("ID command")
    await send(backend, b"%sID %s\r\n" % (_ID_TAG, forward.format_id(told)))
    reply = await read_reply(backend, _ID_TAG, own=True)
    if not is_ok(status_of(reply, _ID_TAG)):
        raise backend.unusable_reply(reply, "ID", "proxy_forward off")


def _choose(setting: str, login: Login, offers: frozenset[bytes]) -> Mechanism | None:
    """Choose how to log in; see `choose_mechanism`."""
    prefix = b"AUTH="
    offered = frozenset(
        each[len(prefix) :] for each in offers if each.startswith(prefix)
    )
    command = b"LOGINDISABLED" not in offers
    return choose_mechanism(setting, login, offered, command=command)


class _Authenticate(Exchange):
    """The AUTHENTICATE command."""

    def __init__(self, backend: Backend, tag: bytes) -> None:
        super().__init__(backend)
        self._tag = tag

    def command(self, mechanism: Mechanism, message: bytes | None = None) -> bytes:
        initial = b"" if message is None else b" " + message
        return b"%sAUTHENTICATE %s%s\r\n" % (self._tag, mechanism.name, initial)

    def allows(self, _mechanism: Mechanism, _command: bytes) -> bool:
        offers = self.backend.offers
        return offers is not None and b"SASL-IR" in offers  # RFC 4959

    async def send(self, line: bytes) -> None:
        await send(self.backend, line)

    async def read(self) -> tuple[bytes, bytes | None]:
        reply = await read_answer(self.backend, self._tag, asks=True)
        return reply, reply[1:].strip() if reply.startswith(b"+") else None


async def _log_in(backend: Backend, login: Login, proxy_login: str) -> bytes:
    """Log in with LOGIN, as the directive `proxy_login` says; returns the answer."""
    backend.sending("LOGIN command")
    whole = None if proxy_login == "literal" else _format_whole(login, backend)
    if whole is not None:
        await send(backend, whole)
    else:
        await _send_in_turns(backend, login)
    return await read_answer(backend, login.tag)


def _format_whole(login: Login, backend: Backend) -> bytes | None:
    """Format LOGIN for one sending; None if the backend has to ask for literals."""
    quoted = format_quoted(login)
    if quoted is None and _offers_literal_plus(backend):
        return b"".join(_split_at_literals(login, wait=False))
    return quoted


def format_quoted(login: Login) -> bytes | None:
    """Format LOGIN with quoted strings; None if it is safer to say it with literals."""
    user, secret = login.name, login.secret or b""
    line = b'%sLOGIN "%s" "%s"\r\n' % (login.tag, user, secret)
    if len(line) > MAX_COMMAND:
        return None
    quotable = _QUOTABLE.fullmatch(user) and _QUOTABLE.fullmatch(secret)
    return line if quotable else None


def _split_at_literals(login: Login, *, wait: bool) -> tuple[bytes, bytes, bytes]:
    """LOGIN with literals, split behind the announcement of each."""
    user, secret = login.name, login.secret or b""
    return (
        b"%sLOGIN %s" % (login.tag, announce(user, wait=wait)),
        b"%s %s" % (user, announce(secret, wait=wait)),
        secret + b"\r\n",
    )


async def _send_in_turns(backend: Backend, login: Login) -> None:
    """Send LOGIN with literals, each when the backend asks for it."""
    command, user, password = _split_at_literals(login, wait=True)
    await send(backend, command)
    await expect(backend, b"+", login.tag)
    backend.sending("user name")
    await send(backend, user)
    await expect(backend, b"+", login.tag)
    backend.sending("password")
    await send(backend, password)


def _offers_literal_plus(backend: Backend) -> bool:
    """Whether the backend has offered LITERAL+ (RFC 7888) unasked; it is not asked."""
    offers = backend.offers
    if offers is None:
        offers = parse_capabilities(backend.greeting)
    return offers is not None and b"LITERAL+" in offers
