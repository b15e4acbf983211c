"""The SMTP dialogue with backends before the login (RFC 5321): greeting, EHLO or HELO.

What follows is in `mail/smtp_login.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.proxy import ProxySettings
    from mailproxy.mail.smtp_dialogue import SmtpDialogue

_NO_EHLO = frozenset((b"500", b"501", b"502", b"504", b"550"))
"""Codes of backends that do not support EHLO (RFC 5321, section 4.1.4)."""
HEADER_REFUSAL = re.compile(rb"\A50[023](?=[- \r\n])")
"""The answer to a PROXY header that was read as a command: unrecognized, not
implemented, or out of order before HELO (RFC 5321, section 4.2.3)."""


async def meet(backend: Backend, dialogue: SmtpDialogue) -> None:
    """Read the greeting, say EHLO or HELO, have TLS begin; see `Dialogue.meet`.

    Args:
      dialogue: the dialogue with the client.
    """
    await expect(backend, b"220")
    if backend.needs_starttls:
        await _start_tls(backend, dialogue)
        return
    backend.sending("HELO/EHLO")
    reply, esmtp = await _say_hello(backend, dialogue)
    backend.greeting = reply if esmtp else b""


async def _start_tls(backend: Backend, dialogue: SmtpDialogue) -> None:
    """Say EHLO and STARTTLS, and EHLO again (RFC 3207, section 4.2).

    Raises:
      BackendError: the backend does not offer it, or refuses, or the handshake failed.
    """
    if b"STARTTLS" not in await learn_offers(backend, dialogue):
        raise backend.unfit("upstream does not offer STARTTLS")
    backend.sending("STARTTLS")
    await backend.send_command(b"STARTTLS\r\n")
    reply = await read_reply(backend)
    if not reply.startswith(b"220"):
        raise backend.unfit('upstream refused STARTTLS: "%s"', reply.rstrip(b"\r\n"))
    await backend.start_tls()
    await learn_offers(backend, dialogue)


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
    return await expect(backend, b"250", command="EHLO")


def parse_extensions(reply: bytes) -> frozenset[bytes]:
    """The extensions in an answer to EHLO, in upper case, with their parameters.

    The first line names the server, and offers nothing (RFC 5321, section 4.1.1.1).
    """
    _, *lines = reply.upper().splitlines()
    return frozenset(line[len(b"250-") :].rstrip(b" ") for line in lines)


async def _say_hello(backend: Backend, dialogue: SmtpDialogue) -> tuple[bytes, bool]:
    """Send EHLO or HELO with the name of this server.

    Returns:
      The answer, and whether it answers EHLO.

    It is the client's own verb, except that XCLIENT and mechanisms require EHLO. With
    `xclient auto`, a backend that does not support EHLO (RFC 5321, section 3.2) gets
    HELO: it does not support XCLIENT either.

    Raises:
      BackendError: the backend refuses it.
    """
    server = dialogue.client.server
    proxy, name = server.proxy, server.core.server_name
    chooses = proxy.proxy_auth_mech != "command"
    ours = (proxy.xclient != "off" or chooses) and not dialogue.esmtp
    verb = b"EHLO" if dialogue.esmtp or ours else b"HELO"
    await backend.send_command(b"%s %s\r\n" % (verb, name))
    reply = await read_reply(backend)
    if ours and _may_fall_back(proxy) and reply[:3] in _NO_EHLO:
        verb = b"HELO"
        await backend.send_command(b"%s %s\r\n" % (verb, name))
        reply = await read_reply(backend)
    if reply.startswith(b"250"):
        return reply, verb == b"EHLO"
    avoidable = ours and not chooses and verb == b"EHLO" and reply[:3] in _NO_EHLO
    remedy = "xclient off" if avoidable else ""
    raise backend.invalid_reply(reply, command=verb.decode(), remedy=remedy)


def _may_fall_back(proxy: ProxySettings) -> bool:
    """Whether nothing is lost by HELO.

    After a PROXY header, the first refusal may be the answer to that.
    """
    auto = proxy.xclient == "auto" or "xclient" in proxy.proxy_forward
    return auto and proxy.proxy_auth_mech == "command" and proxy.proxy_protocol == "off"


async def read_reply(backend: Backend) -> bytes:
    """Read a whole reply (RFC 5321, section 4.2.1), all of its lines.

    Raises:
      BackendError: the backend closed, or the reply is too long.
    """
    reply = line = await backend.read_line()
    while line[3:4] == b"-":
        line = await backend.read_line(reply)
        reply += line
    return reply


async def expect(
    backend: Backend, *codes: bytes, command: str = "", remedy: str = ""
) -> bytes:
    """Read a reply with one of the codes.

    Args:
      command: the command that it answers, for the log.
      remedy: the setting that avoids that command, if the backend refuses it for good.

    Raises:
      BackendError: the reply has another code.
    """
    reply = await read_reply(backend)
    if not reply.startswith(codes):
        for_good = reply.startswith(b"5")
        raise backend.invalid_reply(
            reply, command=command, remedy=remedy if for_good else ""
        )
    return reply
