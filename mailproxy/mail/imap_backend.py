"""The IMAP dialogue with backends before the login (RFC 3501): greeting, capabilities.

What the login itself says is in `mail/imap_login.py`. Commands of our own have tags of our
own, mp1 and so on; the login has the client's.

Untagged lines may come at any time (RFC 3501, section 7) and are skipped; those in the
answer to the login go to the client with it. BYE is the exception: the backend is about
to close, and no tagged line will follow.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.errors import BackendError, LoginRefused
    from mailproxy.mail.backend import Backend

_CAPABILITIES = re.compile(
    rb"\* CAPABILITY +([^\r\n]*)|[^ ]+ OK +\[CAPABILITY ([^\]\r\n]*)\]", re.IGNORECASE
)
"""The two places of capabilities: their own line, and the code of an answer (RFC 3501,
section 7.1), which can only be in front of its text: a search of the whole line would
take quadratic time."""
HEADER_REFUSAL = re.compile(
    rb"^(?:\* BAD|(?:PROXY|QUIT) (?:BAD|NO))(?=[ \r\n])", re.IGNORECASE | re.MULTILINE
)
"""The answer to a PROXY header that was read as a command (RFC 3501, section 7.1.3):
its tag is the first word of a line of the header, version 1 or 2, or is missing."""
_BYE = re.compile(rb"\* BYE(?=[ \r\n])", re.IGNORECASE)
_REFUSAL = re.compile(
    rb"""NO(?=[ \r\n])(?!\ +\[
         (?:UNAVAILABLE|SERVERBUG|LIMIT|INUSE|CONTACTADMIN|PRIVACYREQUIRED)[\ \]])""",
    re.VERBOSE | re.IGNORECASE,
)
"""NO, except for reasons that are not the user's fault (RFC 5530, section 3)."""


async def meet(backend: Backend) -> None:
    """Read the greeting, and have TLS begin; see `Dialogue.meet`."""
    backend.greeting = await expect(backend, b"* OK")
    if backend.needs_starttls:
        await _start_tls(backend)
    if backend.secure:
        _check_login_allowed(backend)


async def _start_tls(backend: Backend) -> None:
    """Say STARTTLS (RFC 3501, section 6.2.1), and ask for the capabilities anew.

    Raises:
      BackendError: the backend does not offer it, or refuses, or the handshake failed.
    """
    if b"STARTTLS" not in await learn_offers(backend):
        raise backend.unfit("upstream does not offer STARTTLS")
    backend.sending("STARTTLS command")
    await send(backend, b"mp2 STARTTLS\r\n")
    status = status_of(await read_reply(backend, b"mp2 ", own=True), b"mp2 ")
    if not is_ok(status):
        raise backend.unfit('upstream refused STARTTLS: "%s"', status.rstrip(b"\r\n"))
    await backend.start_tls()
    backend.offers = await _ask_capabilities(backend, b"mp3 ")


def _check_login_allowed(backend: Backend) -> None:
    """Check that logins are possible in TLS, as far as the backend has told.

    Raises:
      BackendError: it has said that they are not (RFC 3501, section 6.2.3).
    """
    if b"LOGINDISABLED" in (known_offers(backend) or ()):
        raise backend.unfit("upstream does not allow logins")


async def learn_offers(backend: Backend) -> frozenset[bytes]:
    """Return what the backend offers: its capabilities, in upper case.

    It is asked once, and only if its greeting does not tell them.

    Raises:
      BackendError: the backend refused to tell, or closed.
    """
    offers = known_offers(backend)
    if offers is None:
        offers = await _ask_capabilities(backend, b"mp1 ")
    backend.offers = offers
    return offers


def known_offers(backend: Backend) -> frozenset[bytes] | None:
    """Return what the backend has said that it offers; None: nothing, so far."""
    if backend.offers is not None:
        return backend.offers
    return parse_capabilities(backend.greeting)


async def _ask_capabilities(backend: Backend, tag: bytes) -> frozenset[bytes]:
    """Ask for the capabilities.

    Raises:
      BackendError: the backend refused to tell, or closed.
    """
    backend.sending("CAPABILITY command")
    await send(backend, b"%sCAPABILITY\r\n" % tag)
    reply = await read_reply(backend, tag, own=True)
    offers = parse_capabilities(reply)
    if offers is None or not is_ok(status_of(reply, tag)):
        raise backend.unusable_reply(reply)
    return offers


def parse_capabilities(reply: bytes) -> frozenset[bytes] | None:
    """Find the capabilities in the lines of a reply, in upper case; None: there are none.

    The last ones count, if there are several.
    """
    for line in reversed(reply.splitlines()):
        found = _CAPABILITIES.match(line)
        if found is not None:
            return frozenset((found[1] or found[2]).upper().split())
    return None


async def send(backend: Backend, data: bytes) -> None:
    """Send a part of the login, unless the backend has answered it already.

    Any received line that is not untagged would be taken for the answer to `data`.

    Raises:
      BackendError: there is such a line, or the connection broke.
    """
    before = b""
    while backend.lines.buffered:
        line = await backend.read_line(before)
        if not line.startswith(b"* ") or _BYE.match(line):
            raise backend.early_reply(line, before)
        before += line
    await backend.send(data)


async def expect(backend: Backend, start: bytes, tag: bytes = b"") -> bytes:
    """Read a line that begins with `start`; untagged lines before it are skipped.

    Args:
      tag: that of the command that was sent, if any.

    Raises:
      BackendError: the line is another one.
    """
    before = b""
    while True:
        line = await backend.read_line(before)
        if line.startswith(start):
            return line
        if tag and line.startswith(tag):
            backend.header_accepted()
        if not line.startswith(b"* ") or start == b"* OK" or _BYE.match(line):
            raise backend.invalid_reply(line, before=before)
        before += line


async def read_answer(backend: Backend, tag: bytes, *, asks: bool = False) -> bytes:
    """Read the whole answer to the login: untagged lines, and the tagged OK.

    Args:
      asks: as of `read_reply`.

    Raises:
      LoginRefused: the answer is NO.
      BackendError: the answer is another one; the log shows it without its tag, and
        BYE without the lines before it.
    """
    reply = await read_reply(backend, tag, asks=asks)
    if asks and reply.startswith(b"+"):
        return reply
    status = status_of(reply, tag)
    if is_ok(status):
        return reply
    raise _refusal(backend, reply, status)


async def read_reply(
    backend: Backend, tag: bytes, *, asks: bool = False, own: bool = False
) -> bytes:
    """Read the whole answer to a command: untagged lines, and one with its tag.

    Args:
      asks: the backend may ask for more instead, with a line that begins with "+", and
        is returned without the lines before it.
      own: the command is not the client's, so the client must not see the answer.

    Raises:
      BackendError: the backend sent another line, or BYE.
    """
    reply = b""
    while True:
        line = await backend.read_line(reply)
        reply += line
        if line.startswith(tag):
            backend.header_accepted()
            return reply
        if asks and line.startswith(b"+"):
            return line
        if own and (_BYE.match(line) or not line.startswith(b"* ")):
            raise backend.unusable_reply(line)
        if not line.startswith(b"* "):
            raise backend.invalid_reply(reply)
        if _BYE.match(line):
            raise backend.invalid_reply(reply, shown=line)


def status_of(reply: bytes, tag: bytes) -> bytes:
    """The last line of a reply, without the tag."""
    return reply[reply.rfind(b"\n", 0, -1) + 1 + len(tag) :]


def is_ok(status: bytes) -> bool:
    """Whether a status says that the command is completed."""
    return status[:2] == b"OK" and status[2:3] in (b" ", b"\r", b"\n")


def _refusal(
    backend: Backend, reply: bytes, status: bytes
) -> BackendError | LoginRefused:
    """The error for a tagged answer that is not OK.

    Args:
      reply: the whole answer.
      status: its last line, without the tag.
    """
    if _REFUSAL.match(status):
        return backend.refused(reply, shown=status)
    return backend.invalid_reply(reply, shown=status)
