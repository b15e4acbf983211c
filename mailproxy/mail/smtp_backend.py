"""The SMTP dialogue with backends before the relay (RFC 5321, RFC 4954).

XCLIENT (https://www.postfix.org/XCLIENT_README.html) tells the backend about the
client, with the attributes that nginx sends: ADDR, LOGIN, NAME. Then comes the login,
or the client's MAIL and RCPT.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.errors import BackendError
from mailproxy.mail.sasl.backends import format_plain

if TYPE_CHECKING:
    from mailproxy.auth.request import Envelope
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login
    from mailproxy.mail.smtp_dialogue import SmtpDialogue

_LOGGED_IN = b"235 2.0.0 OK\r\n"
_NO_EHLO = frozenset((b"500", b"501", b"502", b"504", b"550"))
"""Codes of backends that do not support EHLO (RFC 5321, section 4.1.4)."""
_NO_AUTH = frozenset((b"500", b"502", b"503", b"504"))
"""Codes of backends that do not support AUTH or the mechanism; not the user's fault."""
_NOT_UNDERSTOOD = _NO_AUTH | {b"501"}
"""Codes that refuse the command, not the login (RFC 5321, section 4.2.3)."""

HEADER_REFUSAL = re.compile(rb"\A50[023](?=[- \r\n])")
"""The answer to a PROXY header that was read as a command: unrecognized, not
implemented, or out of order before HELO (RFC 5321, section 4.2.3)."""


async def meet(backend: Backend, dialogue: SmtpDialogue) -> None:
    """Read the greeting, and say EHLO or HELO; see `Dialogue.meet`.

    Args:
      dialogue: the dialogue with the client.
    """
    await _expect(backend, b"220")
    backend.sending("HELO/EHLO")
    reply, esmtp = await _say_hello(backend, dialogue)
    backend.greeting = reply if esmtp else b""


async def learn_offers(backend: Backend, dialogue: SmtpDialogue) -> frozenset[bytes]:
    """Return what the backend offers: lines of its answer to EHLO, in upper case.

    It is asked once, and only if it was greeted by HELO.

    Args:
      dialogue: the dialogue with the client.

    Raises:
      BackendError: the backend refuses EHLO, or closed.
    """
    if backend.offers is None:
        if not backend.greeting:
            backend.sending("HELO/EHLO")
            backend.greeting = await _say_ehlo(backend, dialogue)
        backend.offers = parse_extensions(backend.greeting)
    return backend.offers


async def _say_ehlo(backend: Backend, dialogue: SmtpDialogue) -> bytes:
    """Say EHLO with the name of this server; returns the answer.

    Raises:
      BackendError: the backend refuses it.
    """
    name = dialogue.client.server.core.server_name
    await backend.send_command(b"EHLO %s\r\n" % name)
    return await _expect(backend, b"250", command="EHLO")


def parse_extensions(reply: bytes) -> frozenset[bytes]:
    """The extensions in an answer to EHLO, in upper case, with their parameters.

    The first line names the server, and offers nothing (RFC 5321, section 4.1.1.1).
    """
    _, *lines = reply.upper().splitlines()
    return frozenset(line[len(b"250-") :].rstrip(b" ") for line in lines)


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
        await _introduce(backend, dialogue, command)
    if login.envelope is not None:
        return await _pass_on(backend, login.envelope)
    if with_auth:
        backend.sending("AUTH")
        await _log_in(backend, login)
    return _LOGGED_IN


async def _say_hello(backend: Backend, dialogue: SmtpDialogue) -> tuple[bytes, bool]:
    """Send EHLO or HELO with the name of this server.

    Returns:
      The answer, and whether it answers EHLO.

    It is the client's own verb, except that XCLIENT requires EHLO. With `xclient auto`,
    a backend that does not support EHLO (RFC 5321, section 3.2) gets HELO: it does not
    support XCLIENT either.

    Raises:
      BackendError: the backend refuses it.
    """
    server = dialogue.client.server
    proxy, name = server.proxy, server.core.server_name
    ours = proxy.xclient != "off" and not dialogue.esmtp
    verb = b"EHLO" if dialogue.esmtp or ours else b"HELO"
    await backend.send_command(b"%s %s\r\n" % (verb, name))
    reply = await _read_reply(backend)
    # After a PROXY header, the first refusal may be the answer to that.
    may_fall_back = proxy.xclient == "auto" and proxy.proxy_protocol == "off"
    if ours and may_fall_back and reply[:3] in _NO_EHLO:
        verb = b"HELO"
        await backend.send_command(b"%s %s\r\n" % (verb, name))
        reply = await _read_reply(backend)
    if reply.startswith(b"250"):
        return reply, verb == b"EHLO"
    avoidable = ours and verb == b"EHLO" and reply[:3] in _NO_EHLO
    remedy = "xclient off" if avoidable else ""
    raise backend.invalid_reply(reply, command=verb.decode(), remedy=remedy)


def _xclient(dialogue: SmtpDialogue, login: bytes, hello: bytes) -> bytes:
    """The XCLIENT command for a client, or empty, as `xclient` says.

    Args:
      hello: the backend's answer to EHLO.
    """
    client = dialogue.client
    mode = client.server.proxy.xclient
    if mode == "off":
        return b""
    offered = offered_attributes(hello) if mode == "auto" else None
    return format_xclient(client.info.client, login, dialogue.host, offered)


async def _introduce(backend: Backend, dialogue: SmtpDialogue, command: bytes) -> None:
    """Send an XCLIENT command, then the client's own HELO or EHLO.

    Raises:
      BackendError: the backend refuses one of them.
    """
    backend.sending("XCLIENT")
    await backend.send_command(command)
    await _expect(backend, b"220", b"250", command="XCLIENT", remedy="xclient off")
    helo = dialogue.client.info.helo
    if helo:
        backend.sending("client HELO/EHLO")
        verb = b"EHLO" if dialogue.esmtp else b"HELO"
        await backend.send_command(b"%s %s\r\n" % (verb, helo))
        await _expect(backend, b"250", command=f"the client's {verb.decode()}")


async def _pass_on(backend: Backend, envelope: Envelope) -> bytes:
    """Send MAIL and RCPT of a client that does not log in; returns the answer to RCPT."""
    backend.sending("MAIL FROM")
    await backend.send_command(envelope.mail + b"\r\n")
    await _expect(backend, b"250")
    backend.sending("RCPT TO")
    await backend.send_command(envelope.rcpt + b"\r\n")
    return await _read_reply(backend)


async def _log_in(backend: Backend, login: Login) -> None:
    """Log in with AUTH PLAIN (RFC 4954, RFC 4616).

    Raises:
      LoginRefused: the backend refuses the user or the password.
      BackendError: there is no password, or the backend answers something else.
    """
    if login.secret is None:
        raise BackendError("no password available", action=None)
    message = format_plain(login.user, login.secret)
    await backend.send_command(b"AUTH PLAIN %s\r\n" % message)
    reply = await _read_reply(backend)
    if reply[:3] in _NO_AUTH:
        remedy = "Auth-SMTP: no" if login.smtp_auth else "proxy_smtp_auth off"
        raise backend.invalid_reply(reply, command="AUTH", remedy=remedy)
    if reply.startswith(b"5") and reply[:3] not in _NOT_UNDERSTOOD:
        raise backend.refused(reply)
    if not reply.startswith(b"235"):
        raise backend.invalid_reply(reply)


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
    address: str, login: bytes, host: bytes, offered: frozenset[bytes] | None = None
) -> bytes:
    """Format the XCLIENT command, with its line end.

    Args:
      address: the client's address, without port; "unix:" for a unix socket.
      login: the user name, or empty; it is encoded as xtext (RFC 3461, section 4).
      host: the client's name, ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``.
      offered: attributes that the backend supports, from `offered_attributes`; None:
        all. Others are omitted, and the command is empty if none remains.
    """
    is_ipv6 = ":" in address and address != "unix:"
    words = [b"ADDR=IPV6:" if is_ipv6 else b"ADDR="]
    words[0] += address.encode()
    if login:
        words.append(b"LOGIN=" + _xtext(login))
    words.append(b"NAME=" + host)
    if offered is not None:
        words = [word for word in words if word.partition(b"=")[0] in offered]
    return b"XCLIENT %s\r\n" % b" ".join(words) if words else b""


def _xtext(text: bytes) -> bytes:
    """Encode as xtext (RFC 3461, section 4)."""
    if _NOT_XTEXT.search(text) is None:
        return text
    return _NOT_XTEXT.sub(lambda match: b"+%02X" % match[0][0], text)


async def _read_reply(backend: Backend) -> bytes:
    """Read a whole reply (RFC 5321, section 4.2.1), all of its lines.

    Raises:
      BackendError: the backend closed, or the reply is too long.
    """
    reply = line = await backend.read_line()
    while line[3:4] == b"-":
        line = await backend.read_line(reply)
        reply += line
    return reply


async def _expect(
    backend: Backend, *codes: bytes, command: str = "", remedy: str = ""
) -> bytes:
    """Read a reply with one of the codes.

    Args:
      command: the command that it answers, for the log.
      remedy: the setting that avoids that command, if the backend refuses it for good.

    Raises:
      BackendError: the reply has another code.
    """
    reply = await _read_reply(backend)
    if not reply.startswith(codes):
        for_good = reply.startswith(b"5")
        raise backend.invalid_reply(
            reply, command=command, remedy=remedy if for_good else ""
        )
    return reply
