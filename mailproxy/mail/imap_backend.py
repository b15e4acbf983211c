"""The IMAP dialogue with backends before the relay (RFC 3501): LOGIN.

Commands of our own have tags of our own, mp1 and so on; the login has the client's.

nginx sends user and password as literals, and has to be asked for each: three sendings,
where one line with quoted strings is enough. As `proxy_login` says, quoted strings are
used here where all servers understand them; what remains for literals goes out at once
to servers that offer LITERAL+.

Untagged lines may come at any time (RFC 3501, section 7) and are skipped; those in the
answer to the login go to the client with it. BYE is the exception: the backend is about
to close, and no tagged line will follow.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.mail.literals import announce

if TYPE_CHECKING:
    from mailproxy.errors import BackendError, LoginRefused
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.login import Login

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

MAX_COMMAND = 1000
"""Octets of a line with quoted strings, as RFC 2683, section 3.2.1.5, advises clients:
servers limit lines, some at 1 or 2 KiB, and literals do not count."""
_QUOTABLE = re.compile(rb"[ !#-\[\]-~]*")
"""Strings that all servers understand in quotes: printable ASCII (RFC 3501, section 9,
leaves octets from 128 on to literals), without `"` and `\\`. These could be escaped, but
some servers take the backslash for a part of the password, as DavMail long did."""


async def meet(backend: Backend) -> None:
    """Read the greeting; see `Dialogue.meet`."""
    backend.greeting = await _expect(backend, b"* OK")


async def learn_offers(backend: Backend) -> frozenset[bytes]:
    """Return what the backend offers: its capabilities, in upper case.

    It is asked once, and only if its greeting does not tell them.

    Raises:
      BackendError: the backend refused to tell, or closed.
    """
    if backend.offers is None:
        backend.offers = parse_capabilities(backend.greeting)
    if backend.offers is None:
        backend.offers = await _ask_capabilities(backend, b"mp1 ")
    return backend.offers


async def _ask_capabilities(backend: Backend, tag: bytes) -> frozenset[bytes]:
    """Ask for the capabilities.

    Raises:
      BackendError: the backend refused to tell, or closed.
    """
    backend.sending("CAPABILITY command")
    await _send(backend, b"%sCAPABILITY\r\n" % tag)
    reply = await _read_reply(backend, tag)
    offers = parse_capabilities(reply)
    if offers is None or not _is_ok(_status(reply, tag)):
        raise backend.invalid_reply(reply)
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


async def enter(backend: Backend, login: Login, proxy_login: str) -> bytes:
    """Log in at the backend; see `Dialogue.enter`.

    Args:
      proxy_login: the value of that directive.
    """
    backend.sending("LOGIN command")
    whole = None if proxy_login == "literal" else _format_whole(login, backend)
    if whole is not None:
        await _send(backend, whole)
    else:
        await _send_in_turns(backend, login)
    return await _read_answer(backend, login.tag)


def _format_whole(login: Login, backend: Backend) -> bytes | None:
    """Format LOGIN for one sending; None if the backend has to ask for literals."""
    quoted = format_quoted(login)
    if quoted is None and _offers_literal_plus(backend):
        return b"".join(_split_at_literals(login, wait=False))
    return quoted


def format_quoted(login: Login) -> bytes | None:
    """Format LOGIN with quoted strings; None if it is safer to say it with literals."""
    user, secret = login.user, login.secret or b""
    line = b'%sLOGIN "%s" "%s"\r\n' % (login.tag, user, secret)
    if len(line) > MAX_COMMAND:
        return None
    quotable = _QUOTABLE.fullmatch(user) and _QUOTABLE.fullmatch(secret)
    return line if quotable else None


def _split_at_literals(login: Login, *, wait: bool) -> tuple[bytes, bytes, bytes]:
    """LOGIN with literals, split behind the announcement of each."""
    user, secret = login.user, login.secret or b""
    return (
        b"%sLOGIN %s" % (login.tag, announce(user, wait=wait)),
        b"%s %s" % (user, announce(secret, wait=wait)),
        secret + b"\r\n",
    )


async def _send_in_turns(backend: Backend, login: Login) -> None:
    """Send LOGIN with literals, each when the backend asks for it."""
    command, user, password = _split_at_literals(login, wait=True)
    await _send(backend, command)
    await _expect(backend, b"+", login.tag)
    backend.sending("user name")
    await _send(backend, user)
    await _expect(backend, b"+", login.tag)
    backend.sending("password")
    await _send(backend, password)


def _offers_literal_plus(backend: Backend) -> bool:
    """Whether the backend has offered LITERAL+ (RFC 7888) unasked; it is not asked."""
    offers = backend.offers
    if offers is None:
        offers = parse_capabilities(backend.greeting)
    return offers is not None and b"LITERAL+" in offers


async def _send(backend: Backend, data: bytes) -> None:
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


async def _expect(backend: Backend, start: bytes, tag: bytes = b"") -> bytes:
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


async def _read_answer(backend: Backend, tag: bytes) -> bytes:
    """Read the whole answer to LOGIN: untagged lines, and the tagged OK.

    Raises:
      LoginRefused: the answer is NO.
      BackendError: the answer is another one; the log shows it without its tag, and
        BYE without the lines before it.
    """
    reply = await _read_reply(backend, tag)
    status = _status(reply, tag)
    if _is_ok(status):
        return reply
    raise _refusal(backend, reply, status)


async def _read_reply(backend: Backend, tag: bytes) -> bytes:
    """Read the whole answer to a command: untagged lines, and one with its tag.

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
        if not line.startswith(b"* "):
            raise backend.invalid_reply(reply)
        if _BYE.match(line):
            raise backend.invalid_reply(reply, shown=line)


def _status(reply: bytes, tag: bytes) -> bytes:
    """The last line of a reply, without the tag."""
    return reply[reply.rfind(b"\n", 0, -1) + 1 + len(tag) :]


def _is_ok(status: bytes) -> bool:
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
