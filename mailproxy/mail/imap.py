"""ngx_mail_imap_module: https://nginx.org/en/docs/mail/ngx_mail_imap_module.html.

The dialogues of IMAP before the login (RFC 3501), toward clients and backends.
"""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mailproxy.conf.directive import directive
from mailproxy.conf.values import choices, size, words
from mailproxy.mail import sasl
from mailproxy.mail.imap_commands import Reader
from mailproxy.mail.protocol import (
    BadCommand,
    Login,
    MailProtocol,
    Naming,
    early_reply,
    expect_line,
    invalid_reply,
    send,
)

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.net.lines import LineStream


@dataclass(frozen=True, kw_only=True)
class ImapSettings(MailProtocol):
    """IMAP toward clients."""

    name: ClassVar[str] = "imap"
    ports: ClassVar[tuple[int, ...]] = (143, 993)
    tagged: ClassVar[bool] = True
    harmless: ClassVar[frozenset[bytes]] = frozenset(
        (
            b"NOOP CAPABILITY ID LOGOUT STARTTLS "
            b"ENABLE NAMESPACE SELECT EXAMINE CREATE DELETE RENAME "
            b"SUBSCRIBE UNSUBSCRIBE LIST LSUB STATUS CHECK CLOSE "
            b"EXPUNGE SEARCH FETCH STORE COPY MOVE UID IDLE"
        ).split()
    )

    imap_client_buffer: int = directive(
        size, default=resource.getpagesize(), shown="4k | 8k"
    )
    """Bytes that one command may have."""

    imap_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"IMAP4", b"IMAP4rev1", b"UIDPLUS"), repeats="add"
    )
    """What CAPABILITY answers before the login; mechanisms are added to it."""

    imap_auth: frozenset[str] = directive(
        choices("plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain"}),
        repeats="add",
    )
    """Mechanisms of AUTHENTICATE; LOGIN is always possible."""

    certificate_error: ClassVar[bytes] = b"* BYE SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"* BYE No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"* BAD internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.imap_client_buffer

    async def greet(self, client: Client) -> None:
        await client.send(b"* OK IMAP4 ready\r\n")

    async def read_login(self, client: Client) -> Login | None:
        reader = Reader(client)
        while True:
            try:
                name, arguments = await reader.read_command()
                match name:
                    case b"NOOP":
                        await client.send(reader.tag + b"OK completed\r\n")
                    case b"CAPABILITY":
                        await client.send(
                            self._capabilities(client)
                            + reader.tag
                            + b"OK completed\r\n"
                        )
                    case b"ID":
                        client.identify(reader.fields)
                        await client.send(
                            b"* ID NIL\r\n" + reader.tag + b"OK completed\r\n"
                        )
                    case b"LOGOUT":
                        await client.send(
                            b"* BYE\r\n" + reader.tag + b"OK completed\r\n"
                        )
                        return None
                    case b"STARTTLS":
                        if not client.may_start_tls:
                            raise BadCommand
                        await client.send(reader.tag + b"OK completed\r\n")
                        await client.start_tls("in starttls state")
                        client.info.action = "in auth state"
                    case b"LOGIN":
                        return self._login(client, reader.tag, arguments)
                    case _:
                        if not client.may_log_in:
                            raise BadCommand
                        return await sasl.authenticate(
                            client, arguments, self.imap_auth, reader.ask, reader.tag
                        )
            except BadCommand as bad:
                await client.answer_bad(bad, reader.tag + b"BAD invalid command\r\n")

    def _login(self, client: Client, tag: bytes, arguments: list[bytes]) -> Login:
        """The LOGIN command; it cannot be switched off, as in nginx."""
        if not client.may_log_in or len(arguments) != 2 or not arguments[0]:
            raise BadCommand
        user, password = arguments
        client.info.login = user
        sasl.check_credentials(user, password, "LOGIN")
        return Login("plain", user, password, tag=tag)

    def _capabilities(self, client: Client) -> bytes:
        words = [b"* CAPABILITY", *self.imap_capabilities]
        if client.may_log_in:
            words += [b"AUTH=" + each for each in sasl.announced(self.imap_auth)]
        if client.may_start_tls:
            words.append(b"STARTTLS")
            if not client.may_log_in:
                words.append(b"LOGINDISABLED")
        return b" ".join(words) + b"\r\n"

    async def challenge(self, client: Client, text: bytes) -> list[bytes]:
        return await Reader(client).ask(text)

    def invalid(self, login: Login) -> bytes:
        return login.tag + b"BAD invalid command\r\n"

    def refusal(self, login: Login, text: bytes, _code: bytes) -> bytes:
        return b"%sNO %s\r\n" % (login.tag, text)

    async def enter(
        self, backend: LineStream, login: Login, _client: Client, sending: Naming
    ) -> bytes:
        user, secret = login.user, login.secret or b""
        greeting = await _expect(backend, b"* OK")
        if _offers_literal_plus(greeting):
            sending("LOGIN command")
            await _send(
                backend,
                b"%sLOGIN {%d+}\r\n%s {%d+}\r\n%s\r\n"
                % (login.tag, len(user), user, len(secret), secret),
            )
            return await _expect_tagged(backend, login.tag)
        sending("LOGIN command")
        await _send(backend, b"%sLOGIN {%d}\r\n" % (login.tag, len(user)))
        await _expect(backend, b"+")
        sending("user name")
        await _send(backend, b"%s {%d}\r\n" % (user, len(secret)))
        await _expect(backend, b"+")
        sending("password")
        await _send(backend, secret + b"\r\n")
        return await _expect_tagged(backend, login.tag)


_CAPABILITIES = re.compile(rb"\* OK +\[CAPABILITY ([^\]]*)\]", re.IGNORECASE)


def _offers_literal_plus(greeting: bytes) -> bool:
    """Whether LITERAL+ (RFC 7888) is among the capabilities of a greeting.

    They stand before its text and nowhere else (RFC 3501, section 7.1); to look for
    them everywhere took the square of the line's length.
    """
    found = _CAPABILITIES.match(greeting)
    return found is not None and b"LITERAL+" in found[1].upper().split(b" ")


_BYE = re.compile(rb"\* BYE(?=[ \r\n])", re.IGNORECASE)


async def _send(backend: LineStream, data: bytes) -> None:
    """Send a part of the login, which nothing may have answered yet.

    Untagged lines may come at any time (RFC 3501, section 7). Anything else would be
    taken for the answer to `data`.

    Raises:
      BackendError: there is something else, or the connection broke.
    """
    before = b""
    while backend.buffered:
        line = await expect_line(backend, before)
        if not line.startswith(b"* ") or _BYE.match(line):
            raise early_reply(line)
        before += line
    await send(backend, data)


async def _expect(backend: LineStream, start: bytes) -> bytes:
    """A line that begins so; untagged lines before it are passed over.

    Raises:
      BackendError: it is another one.
    """
    before = b""
    while True:
        line = await expect_line(backend, before)
        if line.startswith(start):
            return line
        if not line.startswith(b"* ") or start == b"* OK" or _BYE.match(line):
            raise invalid_reply(line)
        before += line


async def _expect_tagged(backend: LineStream, tag: bytes) -> bytes:
    """The whole answer to LOGIN: untagged lines, and the tagged OK.

    Raises:
      BackendError: the answer is another one; the log shows it without its tag, and
        BYE without the lines before it.
    """
    reply = b""
    while True:
        line = await expect_line(backend, reply)
        reply += line
        if line.startswith(tag):
            status = line[len(tag) :]
            if status[:2] == b"OK" and status[2:3] in (b" ", b"\r", b"\n"):
                return reply
            raise invalid_reply(reply, status)
        if not line.startswith(b"* "):
            raise invalid_reply(reply)
        if _BYE.match(line):
            # The backend is about to close (RFC 3501, section 7.1.5); waiting for a
            # tagged line would be waiting for its end.
            raise invalid_reply(reply, line)
