"""Client: what a dialogue knows of its client, from accept to the login."""

from __future__ import annotations

import secrets as random
import time
from typing import TYPE_CHECKING

from mailproxy.errors import ClientError
from mailproxy.log import Phase
from mailproxy.mail.commands import BadCommand, redacted, split_words, too_long_command
from mailproxy.mail.trace import client_lines, make_trace
from mailproxy.net import faults, openssl
from mailproxy.net.lines import TooLong
from mailproxy.net.octets import CR

if TYPE_CHECKING:
    from mailproxy.log import Logger, SessionInfo
    from mailproxy.mail.listen import Listen
    from mailproxy.mail.server import Server
    from mailproxy.mail.trace import Secrets
    from mailproxy.net.network import Network
    from mailproxy.net.wire import Wire


class Client:
    """One client, from accept to the end of its login.

    Attributes:
      wire: its connection.
      lines: the same, line by line.
      send: sends octets, as `LineStream.send` does.
      secrets: of its logins, which the log must not show.
      trace: logs the dialogue, if the log is at level debug.
      server, listen: the server, and the address that the client connected to.
      info: the facts of its session.
      timer: limits the current phase.
    """

    def __init__(
        self,
        wire: Wire,
        server: Server,
        listen: Listen,
        network: Network,
        info: SessionInfo,
        log: Logger,
        secrets: Secrets,
    ) -> None:
        self.wire = wire
        self.secrets = secrets
        self.trace = make_trace(log, info, server.protocol, self.secrets)
        self.lines = client_lines(
            self.trace,
            wire,
            server.protocol.client_buffer,
            ClientError,
            "client closed connection",
        )
        self.send = self.lines.send
        self.server = server
        self.listen = listen
        self.network = network
        self.info = info
        self.log = log
        self.timer = network.timer()
        self._errors = 0
        self._commands = 0
        self._salt = b""

    @property
    def secure(self) -> bool:
        """Whether the connection is in TLS."""
        return self.wire.tls is not None

    @property
    def may_log_in(self) -> bool:
        """Whether logins are allowed now; with `starttls only`, they require TLS."""
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
                random.randbelow(1 << 31),
                int(time.time()),
                self.server.core.server_name,
            )
        return self._salt

    async def read_text(self, *, secret: bool = False) -> bytes:
        """Read the next line of POP3 or SMTP, without its end.

        Args:
          secret: the whole line may be a secret, so the log must not show it.

        Raises:
          BadCommand: it contains a CR, or does not fit into the buffer.
          ClientError: the client left.
        """
        try:
            line = await self.lines.read_line()
        except TooLong as too_long:
            shown = b"..." if secret else redacted(too_long.received)
            raise too_long_command(self.server.protocol, shown) from None
        text = line[:-1].removesuffix(b"\r")
        if CR in text:
            raise BadCommand(counted=True)
        return text

    async def ask(self, prompt: bytes, room: int) -> list[bytes]:
        """Send a SASL challenge of POP3 or SMTP; returns the words of the answer.

        Args:
          prompt: the whole line.
          room: the maximum number of words in the answer.

        Raises:
          BadCommand: the answer is not a line of words, or the client has sent too many
            commands.
          ClientError: the client left.
        """
        await self.send(prompt)
        text = await self.read_text(secret=True)
        # The text before the first space is a word, even if it is empty.
        first, _, more = text.partition(b" ")
        words = [first, *split_words(more, room - 1)]
        self.accepted()
        return words

    def accepted(self) -> None:
        """Count a command that the parser accepted.

        Raises:
          BadCommand: the client sent more than `max_commands`; the session ends.
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

        Clear text that was received and not yet read is dropped.

        Args:
          action: nginx's words for the handshake, for the log.

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
            self._note_name()
            raise faults.broken(ClientError, "handshake", error) from None
        self._note_name()
        if self.trace is not None and self.wire.tls is not None:
            self.trace.note_tls(self.wire.tls)
        info.phase = phase
        if self.server.ssl.ssl_verify_client != "off":
            await self._check_certificate()

    def _note_name(self) -> None:
        """Note the name that the client asked for, and log what was found for it.

        Raises:
          ClientError: there is none for it, so the handshake has failed.
        """
        if self.wire.tls is None or not self.server.ssl.by_name:
            return
        self.info.sni = self.wire.server_name or b""
        for note in openssl.handshake_notes(self.wire.tls):
            if note.bug is not None:
                self.log.exception(note.event, *note.values, exception=note.bug)
                raise ClientError
            if note.refusal:
                raise ClientError(note.event, *note.values, level=note.level)
            self.log.log(note.level, note.event, *note.values, error=note.error)

    async def _check_certificate(self) -> None:
        """Check the client's certificate; after the handshake, so that it is told why.

        Raises:
          ClientError: the certificate is bad or missing; the client has been told.
        """
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
