"""The POP3 dialogue with backends before the relay (RFC 1939): XCLIENT, then the login.

XCLIENT tells the backend about the client. Dovecot, from which it is, announces it in its
greeting, and reads it from `login_trusted_networks`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.mail import forward
from mailproxy.mail.sasl.backends import Exchange, authenticate, choose_mechanism

if TYPE_CHECKING:
    from mailproxy.errors import BackendError, LoginRefused
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login
    from mailproxy.mail.protocol import Dialogue
    from mailproxy.mail.sasl.backends import Mechanism

MAX_AUTH = 255
"""Octets of an AUTH command (RFC 5034, section 4)."""

_TEMPORARY = re.compile(rb"-ERR +\[(?:SYS/[^\]]*|IN-USE|LOGIN-DELAY)\]", re.IGNORECASE)
"""Refusals for reasons that are not the user's fault (RFC 2449, section 8.1; RFC
3206)."""

_XCLIENT = re.compile(rb"\+OK +\[XCLIENT\]", re.IGNORECASE)
"""The beginning of a greeting that announces XCLIENT."""
HEADER_REFUSAL = re.compile(
    rb"""^-ERR\ (?!\ *\[)[^\r\n]*?\b(?:
         (?:unknown|unrecogni[sz]ed|invalid|illegal|bad|unsupported|unimplemented)\ commands?
       | command\ (?:is\ )?(?:unknown|unrecogni[sz]ed|invalid|unsupported|unimplemented
           | not\ (?:known|recogni[sz]ed|valid|supported|implemented)) )\b""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
"""What servers answer to an unknown command. POP3 has no response code for that, and an
answer with a code (RFC 2449, section 8) is about something else."""


async def meet(backend: Backend) -> None:
    """Read the greeting, and have TLS begin; see `Dialogue.meet`."""
    backend.greeting = await backend.expect(b"+OK")
    if backend.needs_starttls:
        xclient = _XCLIENT.match(backend.greeting)
        await _start_tls(backend)
        if xclient is not None:
            # The one thing to be remembered: there is no other greeting. If somebody has
            # forged it, the backend refuses XCLIENT.
            backend.greeting = xclient[0]


async def _start_tls(backend: Backend) -> None:
    """Say STLS (RFC 2595, section 4).

    A backend that does not know CAPA is asked, too.

    Raises:
      BackendError: the backend does not offer it, or refuses, or the handshake failed.
    """
    offers = await learn_offers(backend)
    if offers and b"STLS" not in offers:
        raise backend.unfit("upstream does not offer STARTTLS")
    backend.sending("STLS command")
    await backend.send_command(b"STLS\r\n")
    reply = await backend.read_line()
    if not reply.startswith(b"+OK"):
        raise backend.unfit('upstream refused STARTTLS: "%s"', reply.rstrip(b"\r\n"))
    await backend.start_tls()


async def learn_offers(backend: Backend) -> frozenset[bytes]:
    """Return what the backend offers: the lines of its answer to CAPA, in upper case.

    There are none if it does not know CAPA (RFC 2449, section 5). It is asked once.

    Raises:
      BackendError: the answer is another one, or the backend closed.
    """
    if backend.offers is None:
        backend.sending("CAPA command")
        await backend.send_command(b"CAPA\r\n")
        backend.offers = await _read_list(backend)
    return backend.offers


async def _read_list(backend: Backend) -> frozenset[bytes]:
    """Read the answer to CAPA.

    Raises:
      BackendError: it is neither -ERR nor +OK, or the backend closed.
    """
    reply = line = await backend.read_line()
    if not line.startswith(b"+OK"):
        unknown = line.startswith(b"-ERR") and not _TEMPORARY.match(line)
        if unknown and not backend.rejects_header(line):
            return frozenset()
        raise backend.unusable_reply(line, "CAPA")
    backend.header_accepted()
    lines: list[bytes] = []
    while True:
        line = await backend.read_line(reply)
        reply += line
        text = line.rstrip(b"\r\n")
        if text == b".":
            return frozenset(lines)
        lines.append(text.removeprefix(b".").upper())


async def enter(backend: Backend, login: Login, dialogue: Dialogue) -> bytes:
    """Log in at the backend; see `Dialogue.enter`.

    Args:
      dialogue: the dialogue with the client.
    """
    proxy = dialogue.client.server.proxy
    if "xclient" in proxy.proxy_forward and _XCLIENT.match(backend.greeting):
        await _introduce(backend, dialogue)
    if proxy.proxy_auth_mech == "command":
        return await _log_in(backend, login)
    mechanism = _choose(proxy.proxy_auth_mech, login, await learn_offers(backend))
    if mechanism is None:
        return await _log_in(backend, login)
    backend.sending("AUTH command")
    return await authenticate(_Auth(backend), mechanism, login, dialogue.client)


async def _introduce(backend: Backend, dialogue: Dialogue) -> None:
    """Tell the backend of the client by XCLIENT.

    Raises:
      BackendError: the backend refuses it, or closed.
    """
    told = forward.describe(dialogue)
    backend.sending("XCLIENT")
    await backend.send_command(forward.format_attributes(told))
    reply = await backend.read_line()
    if not reply.startswith(b"+OK"):
        raise backend.unusable_reply(reply, "XCLIENT", "proxy_forward off")


def _choose(setting: str, login: Login, offers: frozenset[bytes]) -> Mechanism | None:
    """Choose how to log in; see `choose_mechanism`."""
    lines = (each for each in offers if each.startswith(b"SASL "))
    offered = frozenset(word for line in lines for word in line.split()[1:])
    # A server without CAPA has USER and PASS (RFC 1939, section 7).
    command = not offers or b"USER" in offers
    return choose_mechanism(setting, login, offered, command=command)


class _Auth(Exchange):
    """The AUTH command (RFC 5034)."""

    def command(self, mechanism: Mechanism, message: bytes | None = None) -> bytes:
        initial = b"" if message is None else b" " + message
        return b"AUTH %s%s\r\n" % (mechanism.name, initial)

    def allows(self, mechanism: Mechanism, command: bytes) -> bool:
        # Exchange Online closes the connection on XOAUTH2 in one line.
        return mechanism.dummy is None and len(command) <= MAX_AUTH

    async def send(self, line: bytes) -> None:
        await self.backend.send_command(line)

    async def read(self) -> tuple[bytes, bytes | None]:
        line = await self.backend.read_line()
        if line.startswith(b"+OK"):
            return line, None
        if line.startswith(b"+"):
            return line, line[1:].strip()
        raise _refusal(self.backend, line)


async def _log_in(backend: Backend, login: Login) -> bytes:
    """Log in with USER and PASS; returns the answer to PASS."""
    backend.sending("user name")
    await backend.send_command(b"USER %s\r\n" % login.name)
    await _expect_ok(backend)
    backend.sending("password")
    await backend.send_command(b"PASS %s\r\n" % (login.secret or b""))
    return await _expect_ok(backend)


async def _expect_ok(backend: Backend) -> bytes:
    """Read the answer to USER or PASS, which must be +OK.

    Raises:
      LoginRefused: the backend refuses the user or the password.
      BackendError: the answer is another one.
    """
    line = await backend.read_line()
    if not line.startswith(b"+OK"):
        raise _refusal(backend, line)
    return line


def _refusal(backend: Backend, line: bytes) -> BackendError | LoginRefused:
    """The error for an answer that is not +OK."""
    if line.startswith(b"-ERR") and not _TEMPORARY.match(line):
        return backend.refused(line)
    return backend.invalid_reply(line)
