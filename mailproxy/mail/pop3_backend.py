"""The POP3 dialogue with backends before the relay (RFC 1939): USER and PASS."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.errors import BackendError, LoginRefused
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login

_TEMPORARY = re.compile(rb"-ERR +\[(?:SYS/[^\]]*|IN-USE|LOGIN-DELAY)\]", re.IGNORECASE)
"""Refusals for reasons that are not the user's fault (RFC 2449, section 8.1; RFC
3206)."""

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
    """Read the greeting; see `Dialogue.meet`."""
    backend.greeting = await backend.expect(b"+OK")


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
        raise backend.invalid_reply(line)
    backend.header_accepted()
    lines: list[bytes] = []
    while True:
        line = await backend.read_line(reply)
        reply += line
        text = line.rstrip(b"\r\n")
        if text == b".":
            return frozenset(lines)
        lines.append(text.removeprefix(b".").upper())


async def enter(backend: Backend, login: Login) -> bytes:
    """Log in at the backend; see `Dialogue.enter`."""
    backend.sending("user name")
    await backend.send_command(b"USER %s\r\n" % login.user)
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
