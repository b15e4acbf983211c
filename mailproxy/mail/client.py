"""What a dialogue knows of its client: one connection from accept to its login."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from mailproxy.errors import ClientError
from mailproxy.log import DEBUG, Phase
from mailproxy.mail.commands import BadCommand, redacted, split_words, too_long_command
from mailproxy.mail.trace import Trace, client_lines
from mailproxy.net import faults, openssl
from mailproxy.net.lines import TooLong
from mailproxy.net.timer import Timer

if TYPE_CHECKING:
    from mailproxy.log import Logger, SessionInfo
    from mailproxy.mail.listen import Listen
    from mailproxy.mail.server import Server
    from mailproxy.net.network import Network
    from mailproxy.net.wire import Wire


class Client:
    """One client, from accept to the end of its login: what dialogues know of it.

    Attributes:
      wire: its connection.
      lines: the same, line by line.
      trace: logs the dialogue, if the log is at level debug.
      server, listen: who serves it, and which address it came to.
      info: who it is, and how far it has come.
      timer: limits what is going on.
    """

    def __init__(
        self,
        wire: Wire,
        server: Server,
        listen: Listen,
        network: Network,
        info: SessionInfo,
        log: Logger,
    ) -> None:
        self.wire = wire
        self.trace = Trace(log, info, server.protocol) if log.level >= DEBUG else None
        self.lines = client_lines(
            self.trace,
            wire,
            server.protocol.client_buffer,
            ClientError,
            "client closed connection",
        )
        self.server = server
        self.listen = listen
        self.network = network
        self.info = info
        self.log = log
        self.timer = Timer()
        self._errors = 0
        self._commands = 0
        self._salt = b""

    @property
    def secure(self) -> bool:
        """Whether the connection is in TLS."""
        return self.wire.tls is not None

    @property
    def may_log_in(self) -> bool:
        """Whether logins are allowed as things are (`starttls only`)."""
        return self.secure or self.server.ssl.starttls != "only"

    @property
    def may_start_tls(self) -> bool:
        """Whether STARTTLS is allowed and announced."""
        return not self.secure and self.server.ssl.starttls != "off"

    @property
    def salt(self) -> bytes:
        """``<random.time@server_name>``, the same for the whole connection."""
        if not self._salt:
            self._salt = b"<%d.%d@%s>" % (
                secrets.randbelow(1 << 31),
                int(time.time()),
                self.server.core.server_name,
            )
        return self._salt

    async def send(self, data: bytes) -> None:
        """Send `data`.

        Raises:
          ClientError: the connection broke.
        """
        await self.lines.send(data)

    async def read_text(self, *, secret: bool = False) -> bytes:
        """The next line of POP3 or SMTP, without its end.

        Args:
          secret: the line may be a secret as a whole, so the log must not show it.

        Raises:
          BadCommand: a CR stands in it, or it does not fit into the buffer.
          ClientError: the client left.
        """
        try:
            line = await self.lines.read_line()
        except TooLong as too_long:
            shown = b"..." if secret else redacted(too_long.received)
            raise too_long_command(self.server.protocol, shown) from None
        text = line[:-1].removesuffix(b"\r")
        if b"\r" in text:
            raise BadCommand(counted=True)
        return text

    async def ask(self, prompt: bytes, room: int) -> list[bytes]:
        """Send a SASL challenge of POP3 or SMTP; returns the words of the answer.

        Args:
          prompt: the whole line.
          room: how many words the answer may have.

        Raises:
          BadCommand: it is not a line of words, or too many commands were sent.
        """
        await self.send(prompt)
        text = await self.read_text(secret=True)
        # What stands before the first space is a word, even if nothing does.
        first, _, more = text.partition(b" ")
        words = [first, *split_words(more, room - 1)]
        self.accepted()
        return words

    def accepted(self) -> None:
        """Count a command that the parser accepted.

        Raises:
          BadCommand: there were more than `max_commands`; the session ends.
        """
        self._commands += 1
        if self._commands > self.server.core.max_commands:
            raise BadCommand("client sent too many commands", close=True)

    async def answer_bad(self, bad: BadCommand, line: bytes) -> None:
        """Answer a bad command with `line`.

        Raises:
          ClientError: the session ends.
        """
        if bad.event:
            self.log.info(bad.event, *bad.values)
        self._errors += bad.counted
        too_many = bad.counted and self._errors >= self.server.core.max_errors
        if too_many:
            self.log.info("client sent too many invalid commands")
        await self.send(line)
        if bad.close or too_many:
            raise ClientError

    async def start_tls(self, action: str) -> None:
        """Do a TLS handshake, and check the client's certificate.

        What arrived in clear text and was not read is dropped.

        Args:
          action: the handshake in nginx's words, for the log.

        Raises:
          ClientError: the handshake failed, or the certificate is bad.
        """
        context = self.server.ssl.context
        assert context is not None, "the configuration was checked for it"
        self.lines.take_rest()
        info = self.info
        info.login = b""
        phase, info.phase = info.phase, Phase.TLS
        info.starttls = not self.listen.ssl
        info.action = action
        try:
            await self.wire.start_tls(context)
        except OSError as error:
            raise faults.broken(ClientError, "handshake", error) from None
        if self.trace is not None and self.wire.tls is not None:
            self.trace.note_tls(self.wire.tls)
        info.phase = phase
        if self.server.ssl.ssl_verify_client != "off":
            await self._check_certificate()

    async def _check_certificate(self) -> None:
        """Check after the handshake, as nginx does, so that the client hears why."""
        tls = self.wire.tls
        assert tls is not None
        wanted = self.server.ssl.ssl_verify_client
        protocol = self.server.protocol
        code, text = openssl.verify_result(tls)
        if code and not (wanted == "optional_no_ca" and code in openssl.UNTRUSTED):
            openssl.remove_session(tls)
            self.log.info("client SSL certificate verify error: (%s:%s)", code, text)
            await self.send(protocol.certificate_error)
            raise ClientError
        if wanted == "on" and openssl.peer_certificate(tls) is None:
            openssl.remove_session(tls)
            self.log.info("client sent no required SSL certificate")
            await self.send(protocol.certificate_missing)
            raise ClientError
