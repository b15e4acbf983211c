"""The dialogue of SMTP with backends before the relay (RFC 5321, RFC 4954).

A backend is told who the client is by XCLIENT
(https://www.postfix.org/XCLIENT_README.html), with the attributes that nginx sends:
ADDR, LOGIN, NAME. Then it is logged in to, or hears the client's MAIL and RCPT.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from mailproxy.errors import BackendError
from mailproxy.mail.protocol import (
    Login,
    Naming,
    expect_line,
    invalid_reply,
    send_command,
)

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.net.lines import LineStream

_LOGGED_IN = b"235 2.0.0 OK\r\n"
_NO_EHLO = frozenset((b"500", b"501", b"502", b"504", b"550"))
"""The backend does not know EHLO (RFC 5321, section 4.1.4)."""
_NO_AUTH = frozenset((b"500", b"502", b"503", b"504"))
"""The backend does not know AUTH, or not this kind; the user is not to blame."""


async def enter(
    backend: LineStream, login: Login, client: Client, sending: Naming
) -> bytes:
    """Bring a client to its backend; see `MailProtocol.enter`."""
    proxy = client.server.proxy
    with_auth = login.smtp_auth
    if with_auth is None:
        with_auth = proxy.proxy_smtp_auth
    await _expect(backend, b"220")
    sending("HELO/EHLO")
    reply = await _say_hello(backend, client)
    if proxy.xclient != "off":
        command = format_xclient(
            client.info.client,
            b"" if with_auth else login.user,
            client.host,
            offered_attributes(reply) if proxy.xclient == "auto" else None,
        )
        if command:
            await _introduce(backend, client, command, sending)
    if login.envelope is not None:
        sending("MAIL FROM")
        await send_command(backend, login.envelope.mail + b"\r\n")
        await _expect(backend, b"250")
        sending("RCPT TO")
        await send_command(backend, login.envelope.rcpt + b"\r\n")
        return await _read_reply(backend)
    if with_auth:
        sending("AUTH")
        await _log_in(backend, login)
    return _LOGGED_IN


async def _say_hello(backend: LineStream, client: Client) -> bytes:
    """Say EHLO or HELO in the name of this server; returns the answer.

    It is the client's own verb, but that XCLIENT needs EHLO. With `xclient auto` a
    backend that knows no EHLO (RFC 5321, section 3.2) knows no XCLIENT either, and
    HELO will do.

    Raises:
      BackendError: the backend refuses it.
    """
    proxy, name = client.server.proxy, client.server.core.server_name
    ours = proxy.xclient != "off" and not client.esmtp
    verb = b"EHLO" if client.esmtp or ours else b"HELO"
    await send_command(backend, b"%s %s\r\n" % (verb, name))
    # Behind a PROXY header, the first refusal may be meant for that.
    if ours and proxy.xclient == "auto" and proxy.proxy_protocol == "off":
        reply = await _read_reply(backend)
        if reply.startswith(b"250"):
            return reply
        if reply[:3] not in _NO_EHLO:
            raise invalid_reply(reply, command="EHLO")
        verb = b"HELO"
        await send_command(backend, b"%s %s\r\n" % (verb, name))
    remedy = "xclient off" if ours and verb == b"EHLO" else ""
    return await _expect(backend, b"250", command=verb.decode(), remedy=remedy)


async def _introduce(
    backend: LineStream, client: Client, command: bytes, sending: Naming
) -> None:
    """Send an XCLIENT command, then what the client called itself.

    Raises:
      BackendError: the backend refuses one of them.
    """
    sending("XCLIENT")
    await send_command(backend, command)
    await _expect(backend, b"220", b"250", command="XCLIENT", remedy="xclient off")
    if client.info.helo:
        sending("client HELO/EHLO")
        verb = b"EHLO" if client.esmtp else b"HELO"
        await send_command(backend, b"%s %s\r\n" % (verb, client.info.helo))
        await _expect(backend, b"250", command=f"the client's {verb.decode()}")


async def _log_in(backend: LineStream, login: Login) -> None:
    """Log in with AUTH PLAIN (RFC 4954, RFC 4616).

    Raises:
      BackendError: the backend does not let the client in, or there is no password.
    """
    if login.secret is None:
        raise BackendError("no password available", action=None)
    message = b"\0%s\0%s" % (login.user, login.secret)
    await send_command(backend, b"AUTH PLAIN %s\r\n" % base64.b64encode(message))
    reply = await _read_reply(backend)
    if reply[:3] in _NO_AUTH:
        remedy = "Auth-SMTP: no" if login.smtp_auth else "proxy_smtp_auth off"
        raise invalid_reply(reply, command="AUTH", remedy=remedy)
    if not reply.startswith(b"235"):
        raise invalid_reply(reply)


_NOT_XTEXT = re.compile(rb"[^!-*,-<>-~]")
_OFFER = re.compile(
    rb"^250[- ]XCLIENT(?: ([^\r\n]*))?\r?$", re.IGNORECASE | re.MULTILINE
)


def offered_attributes(reply: bytes) -> frozenset[bytes]:
    """The attributes of XCLIENT that a backend offers, in upper case.

    Args:
      reply: the whole answer to EHLO, a line each: ``250-XCLIENT NAME ADDR LOGIN``.
        The first line names the server, and offers nothing.
    """
    _, _, extensions = reply.partition(b"\n")
    offers = _OFFER.findall(extensions)
    return frozenset(word.upper() for offer in offers for word in offer.split())


def format_xclient(
    address: str, login: bytes, host: bytes, offered: frozenset[bytes] | None = None
) -> bytes:
    """The XCLIENT command, with its line end.

    Args:
      address: of the client, without port; "unix:" for a unix socket.
      login: the user name, or empty; it is written as xtext (RFC 3461, section 4).
      host: the client's name, or why there is none.
      offered: attributes that the backend knows, as `offered_attributes` names them;
        None: all. Others are left out, and the command is empty if none is left.
    """
    is_ipv6 = ":" in address and address != "unix:"
    values = [(b"ADDR", (b"IPV6:" if is_ipv6 else b"") + address.encode())]
    if login:
        xtext = _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], login)
        values.append((b"LOGIN", xtext))
    values.append((b"NAME", host))
    words = [
        b"%s=%s" % (name, value)
        for name, value in values
        if offered is None or name in offered
    ]
    return b"XCLIENT %s\r\n" % b" ".join(words) if words else b""


async def _read_reply(backend: LineStream) -> bytes:
    """A whole reply (RFC 5321, section 4.2.1), all of its lines.

    Raises:
      BackendError: the backend left, or the reply is too long.
    """
    reply = line = await expect_line(backend)
    while line[3:4] == b"-":
        line = await expect_line(backend, reply)
        reply += line
    return reply


async def _expect(
    backend: LineStream, *codes: bytes, command: str = "", remedy: str = ""
) -> bytes:
    """A reply with one of the codes.

    Args:
      command: what it answers.
      remedy: the setting that helps if the backend refuses that command for good.

    Raises:
      BackendError: it has another one.
    """
    reply = await _read_reply(backend)
    if not reply.startswith(codes):
        for_good = reply.startswith(b"5")
        raise invalid_reply(reply, command=command, remedy=remedy if for_good else "")
    return reply
