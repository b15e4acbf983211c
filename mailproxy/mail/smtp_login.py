"""The login at SMTP backends: XCLIENT, then AUTH, or the client's MAIL and RCPT.

XCLIENT (https://www.postfix.org/XCLIENT_README.html) tells the backend about the client.
`xclient` sends the attributes that nginx sends, ADDR, LOGIN and NAME, and
`proxy_forward xclient` all that the backend lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.errors import BackendError, LoginRefused
from mailproxy.mail import forward
from mailproxy.mail.sasl.backends import (
    Exchange,
    authenticate,
    choose_mechanism,
    format_plain,
)
from mailproxy.mail.smtp_backend import (
    expect,
    learn_offers,
    parse_extensions,
    read_reply,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mailproxy.auth.request import Envelope
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login
    from mailproxy.mail.sasl.backends import Mechanism
    from mailproxy.mail.smtp_dialogue import SmtpDialogue

MAX_COMMAND = 512
"""Octets of a command with an initial response (RFC 4954, section 4)."""

_LOGGED_IN = b"235 2.0.0 OK\r\n"
_NO_AUTH = frozenset((b"500", b"502", b"503", b"504"))
"""Codes of backends that do not support AUTH or the mechanism; not the user's fault."""
_NOT_UNDERSTOOD = _NO_AUTH | {b"501"}
"""Codes that refuse the command, not the login (RFC 5321, section 4.2.3)."""


async def enter(backend: Backend, login: Login, dialogue: SmtpDialogue) -> bytes:
    """Introduce a client to its backend, and log in; see `Dialogue.enter`.

    Args:
      dialogue: the dialogue with the client.
    """
    with_auth = login.smtp_auth
    if with_auth is None:
        with_auth = dialogue.client.server.proxy.proxy_smtp_auth
    user = b"" if with_auth else login.user
    command = _xclient(dialogue, user, backend.greeting)
    if command:
        await _introduce(backend, dialogue, command, with_auth=with_auth)
    if login.envelope is not None:
        return await _pass_on(backend, login.envelope)
    if with_auth:
        await _log_in(backend, login, dialogue)
    return _LOGGED_IN


def _xclient(dialogue: SmtpDialogue, login: bytes, hello: bytes) -> bytes:
    """The XCLIENT command for a client, or empty; see `xclient` and `proxy_forward`.

    Args:
      hello: the backend's answer to EHLO.
    """
    client = dialogue.client
    address, host = client.info.client, dialogue.host
    proxy = client.server.proxy
    if proxy.xclient == "off":
        return b""
    if "xclient" in proxy.proxy_forward:
        more = forward.describe(dialogue)
        return format_xclient(address, login, host, offered_attributes(hello), more)
    offered = offered_attributes(hello) if proxy.xclient == "auto" else None
    return format_xclient(address, login, host, offered)


async def _introduce(
    backend: Backend, dialogue: SmtpDialogue, command: bytes, *, with_auth: bool
) -> None:
    """Send an XCLIENT command, then the client's own HELO or EHLO.

    XCLIENT begins the dialogue anew. If a mechanism will be chosen, the backend is
    greeted by EHLO in any case, and what it offered before is forgotten.

    Raises:
      BackendError: the backend refuses one of them.
    """
    backend.sending("XCLIENT")
    await backend.send_command(command)
    await expect(backend, b"220", b"250", command="XCLIENT", remedy="xclient off")
    client = dialogue.client
    chooses = with_auth and client.server.proxy.proxy_auth_mech != "command"
    helo = client.info.helo
    if not helo and chooses:
        helo = client.server.core.server_name
    if not helo:
        return
    backend.sending("client HELO/EHLO")
    verb = b"EHLO" if dialogue.esmtp or chooses else b"HELO"
    await backend.send_command(b"%s %s\r\n" % (verb, helo))
    reply = await expect(backend, b"250", command=f"the client's {verb.decode()}")
    if chooses:
        backend.offers = parse_extensions(reply)


async def _pass_on(backend: Backend, envelope: Envelope) -> bytes:
    """Send MAIL and RCPT of a client that does not log in; returns the answer to RCPT."""
    backend.sending("MAIL FROM")
    await backend.send_command(envelope.mail + b"\r\n")
    await expect(backend, b"250")
    backend.sending("RCPT TO")
    await backend.send_command(envelope.rcpt + b"\r\n")
    return await read_reply(backend)


async def _log_in(backend: Backend, login: Login, dialogue: SmtpDialogue) -> None:
    """Log in with AUTH (RFC 4954), as `proxy_auth_mech` says.

    Raises:
      LoginRefused: the backend refuses the user or the password.
      BackendError: there is no password, or the backend answers something else.
    """
    setting = dialogue.client.server.proxy.proxy_auth_mech
    exchange = _Auth(backend, login)
    if setting != "command":
        offers = await learn_offers(backend, dialogue)
        mechanism = choose_mechanism(setting, login, _mechanisms(offers), command=False)
        assert mechanism is not None, "SMTP has no other command"
        backend.sending("AUTH")
        await authenticate(exchange, mechanism, login, dialogue.client)
        return
    backend.sending("AUTH")
    if login.secret is None:
        raise BackendError("no password available", action=None)
    message = format_plain(login.name, login.secret)
    await exchange.send(b"AUTH PLAIN %s\r\n" % message)
    reply, challenge = await exchange.read()
    if challenge is not None:
        raise backend.invalid_reply(reply)


def _mechanisms(offers: frozenset[bytes]) -> frozenset[bytes]:
    """The mechanisms among the lines of an answer to EHLO.

    Some servers say "AUTH=", as before RFC 4954.
    """
    lines = (each for each in offers if each.startswith((b"AUTH ", b"AUTH=")))
    return frozenset(word for line in lines for word in line[len(b"AUTH ") :].split())


class _Auth(Exchange):
    """The AUTH command."""

    def __init__(self, backend: Backend, login: Login) -> None:
        super().__init__(backend)
        self._forced = bool(login.smtp_auth)

    def command(self, mechanism: Mechanism, message: bytes | None = None) -> bytes:
        initial = b"" if message is None else b" " + message
        return b"AUTH %s%s\r\n" % (mechanism.name, initial)

    def allows(self, _mechanism: Mechanism, command: bytes) -> bool:
        return len(command) <= MAX_COMMAND

    async def send(self, line: bytes) -> None:
        await self.backend.send_command(line)

    async def read(self) -> tuple[bytes, bytes | None]:
        reply = await read_reply(self.backend)
        if reply.startswith(b"235"):
            return reply, None
        if reply.startswith(b"334"):
            return reply, reply[len(b"334 ") :].strip()
        raise self._refusal(reply)

    def _refusal(self, reply: bytes) -> BackendError | LoginRefused:
        """The error for a reply that neither grants the login nor asks for more."""
        if reply[:3] in _NO_AUTH:
            remedy = "Auth-SMTP: no" if self._forced else "proxy_smtp_auth off"
            return self.backend.invalid_reply(reply, command="AUTH", remedy=remedy)
        if reply.startswith(b"5") and reply[:3] not in _NOT_UNDERSTOOD:
            return self.backend.refused(reply)
        return self.backend.invalid_reply(reply)


_NOT_XTEXT = re.compile(rb"[^!-*,-<>-~]")
_OFFER = re.compile(
    rb"^250[- ]XCLIENT(?: ([^\r\n]*))?\r?$", re.IGNORECASE | re.MULTILINE
)


def offered_attributes(reply: bytes) -> frozenset[bytes]:
    """The attributes of XCLIENT that a backend offers, in upper case.

    Args:
      reply: the whole answer to EHLO, with lines such as ``250-XCLIENT NAME ADDR
        LOGIN``. The first line names the server, and offers nothing.
    """
    _, _, extensions = reply.partition(b"\n")
    offers = _OFFER.findall(extensions)
    return frozenset(word.upper() for offer in offers for word in offer.split())


def format_xclient(
    address: str,
    login: bytes,
    host: bytes,
    offered: frozenset[bytes] | None = None,
    more: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Format the XCLIENT command, with its line end.

    Args:
      address: the client's address, without port; "unix:" for a unix socket.
      login: the user name, or empty; it is encoded as xtext (RFC 3461, section 4).
      host: the client's name, ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``.
      offered: attributes that the backend supports, from `offered_attributes`; None:
        all. Others are omitted, and the command is empty if none remains.
      more: from `forward.describe`, attributes behind these.
    """
    is_ipv6 = ":" in address and address != "unix:"
    words = [b"ADDR=IPV6:" if is_ipv6 else b"ADDR="]
    words[0] += address.encode()
    if login:
        words.append(b"LOGIN=" + _xtext(login))
    words.append(b"NAME=" + host)
    for name, value in (more or {}).items():
        if name != b"ADDR":
            ipv6 = name == b"DESTADDR" and b":" in value
            words.append(b"%s=%s%s" % (name, b"IPV6:" if ipv6 else b"", _xtext(value)))
    if offered is not None:
        words = [word for word in words if word.partition(b"=")[0] in offered]
    return b"XCLIENT %s\r\n" % b" ".join(words) if words else b""


def _xtext(text: bytes) -> bytes:
    """Encode as xtext (RFC 3461, section 4)."""
    if _NOT_XTEXT.search(text) is None:
        return text
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], text)
