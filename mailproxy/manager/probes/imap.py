"""Probing an IMAP server (RFC 3501, RFC 9051)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.manager.probes.peer import ProbeError, check_size
from mailproxy.manager.probes.talk import Talk

if TYPE_CHECKING:
    from mailproxy.manager.probes.talk import ProbeLogin

_OK = re.compile(rb"OK(?=[ \r\n])")  # in capitals, as sessions want it
_GREETING = re.compile(rb"\* OK(?=[ \r\n])")
_BYE = re.compile(rb"\* BYE(?=[ \r\n])", re.IGNORECASE)
_CODE = re.compile(rb"\* OK +\[CAPABILITY ([^\]]*)\]", re.IGNORECASE)
_CAPABILITY = re.compile(rb"\* CAPABILITY ([^\r\n]*)", re.IGNORECASE)
_VERSIONS = frozenset((b"IMAP4REV1", b"IMAP4REV2"))


class ImapTalk(Talk):
    """LOGIN says user and password in literals, so that they may have any octets."""

    protocol = "imap"
    goodbye = b"h9 LOGOUT\r\n"

    _offers: frozenset[bytes] | None = None

    async def read_greeting(self) -> None:
        line = await self.peer.read_line()
        if not _GREETING.match(line):
            raise self.peer.invalid("greeting", line)
        found = _CODE.match(line)
        self._offers = None if found is None else _words(found[1])

    async def ask_starttls(self) -> None:
        offers = self._offers
        if offers is None:
            offers = await self._capabilities(b"mp1")
        if b"STARTTLS" not in offers:
            raise self.not_offered()
        await self._ask(b"mp2 STARTTLS\r\n", "STARTTLS")
        line = await self._tagged(b"mp2", [])
        if not _OK.match(line):
            raise self.starttls_refused(line)

    async def ask_capabilities(self) -> None:
        offers = self._offers = await self._capabilities(b"h1")
        if offers.isdisjoint(_VERSIONS):
            raise ProbeError(
                'neither IMAP4rev1 nor IMAP4rev2 is among its capabilities: "%s"',
                self.peer.shown(b" ".join(sorted(offers))),
            )

    async def log_in(self, login: ProbeLogin) -> None:
        if self._offers is not None and b"LOGINDISABLED" in self._offers:
            raise ProbeError("upstream does not allow logins")
        user, password = login.user, login.password
        await self._ask(b"h2 LOGIN {%d}\r\n" % len(user), "LOGIN")
        await self._continued()
        await self._ask(b"%s {%d}\r\n" % (user, len(password)), "LOGIN")
        await self._continued()
        await self._ask(b"%s\r\n" % password, "LOGIN")
        line = await self._tagged(b"h2", [])
        if not _OK.match(line):
            raise self.login_refused(line)

    async def _ask(self, command: bytes, what: str) -> None:
        """Send a command; untagged lines may have come before it."""
        while self.peer.unread.startswith(b"* ") and b"\n" in self.peer.unread:
            line = await self.peer.read_line()
            if _BYE.match(line):
                raise self.peer.invalid(f"answer before {what}", line)
        await self.peer.ask(command, what)

    async def _capabilities(self, tag: bytes) -> frozenset[bytes]:
        await self._ask(b"%s CAPABILITY\r\n" % tag, "CAPABILITY")
        lines: list[bytes] = []
        status = await self._tagged(tag, lines)
        if not _OK.match(status):
            raise self.peer.invalid("answer to CAPABILITY", status)
        found = [_CAPABILITY.match(line) for line in lines]
        return frozenset().union(*(_words(each[1]) for each in found if each))

    async def _tagged(self, tag: bytes, before: list[bytes]) -> bytes:
        """Read to the tagged line, and return that without the tag.

        Args:
          before: gets the untagged lines before it.
        """
        while True:
            line = await self.peer.read_line()
            if line.startswith(b"%s " % tag):
                return line[len(tag) + 1 :]
            if not line.startswith(b"* ") or _BYE.match(line):
                raise self.peer.invalid("answer", line)
            before.append(line)
            check_size(before, "a command")

    async def _continued(self) -> None:
        """Read to the line that asks for a literal."""
        before: list[bytes] = []
        while True:
            line = await self.peer.read_line()
            if line.startswith(b"+"):
                return
            if line.startswith(b"h2 "):
                raise self.login_refused(line.removeprefix(b"h2 "))
            if not line.startswith(b"* ") or _BYE.match(line):
                raise self.peer.invalid("answer to LOGIN", line)
            before.append(line)
            check_size(before, "LOGIN")


def _words(text: bytes) -> frozenset[bytes]:
    return frozenset(text.upper().split())
