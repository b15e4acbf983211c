"""Probing a POP3 server (RFC 1939, RFC 2449, RFC 2595)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.manager.probes.peer import check_size
from mailproxy.manager.probes.talk import Talk

if TYPE_CHECKING:
    from mailproxy.manager.probes.talk import ProbeLogin


class Pop3Talk(Talk):
    """CAPA, USER, PASS."""

    protocol = "pop3"
    goodbye = b"QUIT\r\n"

    async def read_greeting(self) -> None:
        line = await self.peer.read_line()
        if not line.startswith(b"+OK"):
            raise self.peer.invalid("greeting", line)

    async def ask_starttls(self) -> None:
        await self.peer.ask(b"CAPA\r\n", "CAPA")
        line = await self.peer.read_line()
        # A server that does not know CAPA may know STLS.
        if not line.startswith(b"-ERR") and b"STLS" not in await self._list(line):
            raise self.not_offered()
        await self.peer.ask(b"STLS\r\n", "STLS")
        line = await self.peer.read_line()
        if not line.startswith(b"+OK"):
            raise self.starttls_refused(line)

    async def ask_capabilities(self) -> None:
        await self.peer.ask(b"CAPA\r\n", "CAPA")
        await self._list(await self.peer.read_line())

    async def log_in(self, login: ProbeLogin) -> None:
        for what, word in ((b"USER", login.user), (b"PASS", login.password)):
            await self.peer.ask(b"%s %s\r\n" % (what, word), what.decode())
            line = await self.peer.read_line()
            if not line.startswith(b"+OK"):
                raise self.login_refused(line)

    async def _list(self, first: bytes) -> frozenset[bytes]:
        """Read the rest of the answer to CAPA.

        Args:
          first: its first line.
        """
        if not first.startswith(b"+OK"):
            raise self.peer.invalid("answer to CAPA", first)
        lines: list[bytes] = []
        while True:
            line = await self.peer.read_line()
            text = line.rstrip(b"\r\n")
            if text == b".":
                return frozenset(lines)
            lines.append(text.removeprefix(b".").upper())
            check_size(lines, "CAPA")
