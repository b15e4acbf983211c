"""Probing an SMTP server (RFC 5321, RFC 3207, RFC 4954)."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from mailproxy.manager.probes.peer import check_size
from mailproxy.manager.probes.talk import Talk

if TYPE_CHECKING:
    from mailproxy.manager.probes.talk import ProbeLogin

_LINE = re.compile(rb"[2-5][0-9][0-9](?=[- \r\n])")
MAX_AUTH = 512
"""Octets of a command line (RFC 5321, section 4.5.3.1.4)."""


class SmtpTalk(Talk):
    """EHLO, AUTH PLAIN."""

    protocol = "smtp"
    goodbye = b"QUIT\r\n"

    async def read_greeting(self) -> None:
        lines = await self._reply("a greeting")
        if not lines[-1].startswith(b"220"):
            raise self.peer.invalid("greeting", lines[-1])

    async def ask_starttls(self) -> None:
        if b"STARTTLS" not in await self._hello():
            raise self.not_offered()
        await self.peer.ask(b"STARTTLS\r\n", "STARTTLS")
        lines = await self._reply("STARTTLS")
        if not lines[-1].startswith(b"220"):
            raise self.starttls_refused(lines[-1])

    async def ask_capabilities(self) -> None:
        await self._hello()

    async def log_in(self, login: ProbeLogin) -> None:
        message = base64.b64encode(b"\0%s\0%s" % (login.user, login.password))
        command = b"AUTH PLAIN %s\r\n" % message
        if len(command) > MAX_AUTH:
            await self.peer.ask(b"AUTH PLAIN\r\n", "AUTH")
            lines = await self._reply("AUTH")
            if not lines[-1].startswith(b"334"):
                raise self.login_refused(lines[-1])
            command = message + b"\r\n"
        await self.peer.ask(command, "AUTH")
        lines = await self._reply("AUTH")
        if not lines[-1].startswith(b"235"):
            raise self.login_refused(lines[-1])

    async def _hello(self) -> frozenset[bytes]:
        """Say EHLO; returns the lines behind the first, in upper case."""
        await self.peer.ask(b"EHLO %s\r\n" % self.name, "EHLO")
        lines = await self._reply("EHLO")
        if not lines[-1].startswith(b"250"):
            raise self.peer.invalid("answer to EHLO", lines[-1])
        return frozenset(line[4:].strip().upper() for line in lines[1:])

    async def _reply(self, what: str) -> list[bytes]:
        """Read a whole reply, of one line or several.

        Args:
          what: what it is the reply to.
        """
        lines: list[bytes] = []
        while True:
            line = await self.peer.read_line()
            if not _LINE.match(line):
                raise self.peer.invalid(f"reply to {what}", line)
            lines.append(line)
            if line[3:4] != b"-":
                return lines
            check_size(lines, what)
