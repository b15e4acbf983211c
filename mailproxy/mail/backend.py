"""Backend: the connection of one session to its mail server, before the relay.

It records for the log what the session is doing, and words its own failures. Protocols
read lines from it and send commands with it; the meaning of the lines is theirs.

A reply counts only if it answers a command. One that a backend sent too early would be
taken for the answer to the next command, so `send_command` refuses to continue (IMAP's
untagged lines may come at any time, and are checked by its own dialogue).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from mailproxy.errors import (
    READING,
    BackendError,
    LocalError,
    LoginRefused,
    UpstreamError,
)
from mailproxy.log import Phase
from mailproxy.mail.trace import backend_lines
from mailproxy.net.lines import TooLong
from mailproxy.net.network import connect_level, is_local
from mailproxy.net.outgoing import BindError
from mailproxy.net.timer import timed_out

if TYPE_CHECKING:
    from mailproxy.log import SessionInfo
    from mailproxy.mail.backend_tls import BackendTls
    from mailproxy.mail.candidates import Candidate
    from mailproxy.mail.trace import Trace
    from mailproxy.net.network import Network
    from mailproxy.net.outgoing import Outgoing
    from mailproxy.net.wire import Wire

E = TypeVar("E", bound=UpstreamError)

MAX_SUSPECT_SENDINGS = 2
"""The PROXY header, and the command whose answer may still be meant for it."""

HANDSHAKE = "SSL handshaking to upstream"
"""What a session does until there is TLS, and a login is possible in it."""

_WITHOUT_HEADER = "proxy_protocol off"
"""The setting with which a backend gets no PROXY header."""

_FAREWELL = re.compile(
    rb"""\*\ BYE(?:\ [^\n]*)?\r?\n
       | -ERR(?:\ [^\n]*)?\r?\n
       | (?:421-[^\n]*\n)*421(?:\ [^\n]*)?\r?\n""",
    re.VERBOSE | re.IGNORECASE,
)
"""The complete announcement that a backend is about to close, with its reason. It may
come at any time (RFC 3501, section 7.1.5; RFC 5321, section 3.8), and never grants a
login."""


class Backend:
    """One connection to a mail server.

    Attributes:
      wire: the connection.
      tls: the TLS that there has to be on it, or None.
      lines: the same, line by line.
      greeting: what it says of itself before the login, as its protocol keeps it.
      offers: what it announces that it can do, in upper case; None: nobody has asked.
      candidate: where it is; None if it was not connected to by `connect`.
    """

    __slots__ = (
        "_header_refusal",
        "_info",
        "_resumed",
        "_sendings",
        "_trace",
        "candidate",
        "greeting",
        "lines",
        "offers",
        "tls",
        "wire",
    )

    def __init__(
        self,
        wire: Wire,
        reply_limit: int,
        info: SessionInfo,
        trace: Trace | None = None,
    ) -> None:
        """Use a connection, which `close` closes.

        Args:
          reply_limit: octets that one reply may have.
          info: the facts of the session; its action and phase are kept up to date.
          trace: logs the dialogue, if the log is at level debug.
        """
        self.wire = wire
        gone = "upstream closed connection prematurely"
        self.lines = backend_lines(trace, wire, reply_limit, BackendError, gone)
        self.tls: BackendTls | None = None
        info.upstream_wire = wire
        self._info = info
        self._trace = trace
        self.greeting = b""
        self.offers: frozenset[bytes] | None = None
        self.candidate: Candidate | None = None
        self._header_refusal: re.Pattern[bytes] | None = None
        self._sendings = 0

    @classmethod
    def connect(
        cls,
        network: Network,
        candidate: Candidate,
        reply_limit: int,
        info: SessionInfo,
        trace: Trace | None = None,
        how: Outgoing | None = None,
    ) -> Backend:
        """Begin to connect, from where `how` says; see `wait_connected`.

        Raises:
          BackendError: connect() failed at once, or `worker_connections` are in use.
        """
        info.upstream = candidate.name
        info.action = "connecting to upstream"
        info.phase = Phase.CONNECT
        if trace is not None:
            trace.note('upstream is "%s"', candidate.name)
        try:
            wire = network.connect(candidate.family, candidate.address, how)
        except OSError as error:
            event, at = "connect() to %s failed", candidate.name
            if isinstance(error, BindError):
                event, at = "bind(%s) failed", error.text
            raise _failed_connect(event, at, error) from None
        backend = cls(wire, reply_limit, info, trace)
        backend.candidate = candidate
        return backend

    async def wait_connected(self) -> None:
        """Wait until connect() is done.

        Raises:
          BackendError: it failed.
        """
        try:
            await self.wire.wait_connected()
        except OSError as error:
            raise _failed_connect("connect() failed", None, error) from None

    def close(self, *, notify: bool = True) -> None:
        """Close the connection; a second call does nothing.

        Args:
          notify: see `Wire.close`.
        """
        self.wire.close(notify=notify)

    async def start_tls(self) -> None:
        """Do a TLS handshake, at once or after the backend has accepted STARTTLS.

        Clear text behind that acceptance may have been injected by an attacker, and
        would be taken for an answer under TLS: it ends the session. What the backend has
        said of itself in clear text is forgotten.

        Raises:
          BackendError: there is such text, the handshake failed, or it is not the right
            backend.
        """
        assert self.tls is not None
        self._info.action = HANDSHAKE
        if self.lines.buffered:
            raise BackendError(
                'upstream sent data before TLS, possible injection: "%s"',
                self.lines.take_rest().rstrip(b"\r\n"),
                level="crit",
                action=None,
            )
        self._resumed = await self.tls.shake_hands(self.wire)
        self.greeting = b""
        self.offers = None
        self.header_accepted()

    @property
    def needs_starttls(self) -> bool:
        """Whether nothing but STARTTLS may be said now."""
        return (
            self.tls is not None
            and self.tls.mode == "starttls"
            and self.wire.tls is None
        )

    @property
    def secure(self) -> bool:
        """Whether the connection is in TLS."""
        return self.wire.tls is not None

    def keep_session(self) -> None:
        """Keep the TLS session, if any, to be resumed; the backend has answered in it."""
        if self.tls is not None and self.wire.tls is not None:
            self.tls.keep(self.wire, self._resumed)

    def unfit(self, event: str, *values: object) -> BackendError:
        """The error for a backend with which there is no login in TLS."""
        return BackendError(event, *values, action=HANDSHAKE)

    def sending(self, what: str) -> None:
        """Record what is sent from now on, in nginx's words: ``sending("user name")``."""
        self._sendings += 1
        self._info.action = f"sending {what} to upstream"
        self._info.phase = Phase.BACKEND_LOGIN

    async def send_header(self, header: bytes, refusal: re.Pattern[bytes]) -> None:
        """Send a PROXY header, before anything else.

        Args:
          refusal: matches the reply of a backend that took the header for a command.

        Raises:
          BackendError: the connection broke.
        """
        self.sending("PROXY protocol header")
        self._header_refusal = refusal
        if self._trace is not None:
            self._trace.show("to upstream", header.removesuffix(b"\r\n"))
        try:
            await self.wire.send_all(header)
        except OSError as error:
            raise BackendError("send() failed", error=error, action=None) from None

    def header_accepted(self) -> None:
        """Note that a reply answers what came after the PROXY header, if there was one."""
        self._header_refusal = None

    def rejects_header(self, heard: bytes) -> bool:
        """Whether the backend rejects the PROXY header as an unknown command.

        Most backends that expect no header greet before they read it; the answer to it
        takes the place of that to the first command, or that of the greeting. Only an
        answer about an unknown command counts: a wrong password or a busy server is no
        reason to switch the header off.
        """
        refusal = self._header_refusal
        if refusal is None or self._sendings > MAX_SUSPECT_SENDINGS:
            return False
        return refusal.search(heard) is not None

    async def send_command(self, command: bytes) -> None:
        """Send a command to a backend that has sent nothing it was not asked for.

        Raises:
          BackendError: it has sent more, or the connection broke.
        """
        if self.lines.buffered:
            raise self.early_reply(self.lines.take_rest())
        await self.send(command)

    async def send(self, data: bytes) -> None:
        """Send data, even if the backend has sent something unasked.

        Raises:
          BackendError: the connection broke; it says what the backend sent before.
        """
        try:
            await self.lines.send(data)
        except BackendError as gone:
            if not isinstance(gone.error, ConnectionError):
                raise
            try:
                # The connection is closed, so this does not wait.
                said = await self.lines.read_some()
            except BackendError:
                raise gone from None
            raise self._last_words(said, gone) from None

    async def read_line(self, before: bytes = b"") -> bytes:
        """Read a line, with its LF.

        Args:
          before: lines of the same reply, which may explain why the backend closes.

        Raises:
          BackendError: the backend closed, or the reply is too long (`proxy_buffer`).
        """
        try:
            return await self.lines.read_line(len(before))
        except BackendError as gone:
            raise self._last_words(before + self.lines.take_rest(), gone) from None
        except TooLong as too_long:
            # All but the last octet, as nginx shows it.
            shown = (before + too_long.received)[:-1]
            raise BackendError(
                'upstream sent too long response line: "%s"', shown
            ) from None

    async def expect(self, start: bytes) -> bytes:
        """Read a line that begins with `start`.

        Raises:
          BackendError: the line is another one, or the backend closed.
        """
        line = await self.read_line()
        if not line.startswith(start):
            raise self.invalid_reply(line)
        return line

    def invalid_reply(
        self,
        reply: bytes,
        *,
        shown: bytes | None = None,
        command: str = "",
        remedy: str = "",
        before: bytes = b"",
    ) -> BackendError:
        """The error for an unexpected answer.

        Args:
          reply: the whole lines, for the client.
          shown: the text for the log, if that differs.
          command, remedy: see `UpstreamError`.
          before: lines before it that were skipped.
        """
        shown = reply if shown is None else shown
        return self._answered(BackendError, shown, reply, command, remedy, before)

    def unusable_reply(
        self, reply: bytes, command: str = "", remedy: str = ""
    ) -> BackendError:
        """The error for an answer to a command that the client knows nothing of.

        The client does not get to see it, unless it announces that the backend closes.

        Args:
          command, remedy: see `UpstreamError`.
        """
        found = _FAREWELL.fullmatch(reply)
        passed_on = found[0] if found and not reply.startswith(b"-ERR") else b""
        return self._answered(
            BackendError, reply, passed_on, command, remedy, before=reply
        )

    def refused(self, reply: bytes, *, shown: bytes | None = None) -> LoginRefused:
        """The error for an answer that refuses the login; see `invalid_reply`."""
        return self._answered(LoginRefused, reply if shown is None else shown, reply)

    def early_reply(self, reply: bytes, before: bytes = b"") -> BackendError:
        """The error for an answer that came before its command.

        The client does not get to see it, unless it announces that the backend closes.

        Args:
          before: lines before it that were skipped.
        """
        found = _FAREWELL.match(reply)
        passed_on = found[0] if found else b""
        return self._answered(BackendError, reply, passed_on, before=before + reply)

    def _answered(
        self,
        error: type[E],
        shown: bytes,
        reply: bytes,
        command: str = "",
        remedy: str = "",
        before: bytes = b"",
    ) -> E:
        """Make an error that says what the backend answered.

        Args:
          before: lines before `reply`, or lines that the client does not get to see.
        """
        if self.rejects_header(before + reply):
            command = f"PROXY or {command}" if command else "PROXY"
            remedy = _WITHOUT_HEADER
        return error(
            'upstream sent invalid response: "%s"',
            shown.rstrip(b"\r\n"),
            reply=reply,
            command=command,
            remedy=remedy,
        )

    def _last_words(self, said: bytes, gone: BackendError) -> BackendError:
        """The error for a backend that closed, with what it sent before, if anything.

        Args:
          said: lines that answer nothing, and possibly an incomplete one. That counts
            as whole if the backend closed in good order.
        """
        if not said:
            return gone
        whole = said if gone.error or said.endswith(b"\n") else said + b"\r\n"
        lines = whole.splitlines(keepends=True)
        found = _FAREWELL.fullmatch(whole) or _FAREWELL.fullmatch(lines[-1])
        blamed = self.rejects_header(said)
        return BackendError(
            'upstream closed connection prematurely after "%s"',
            said.rstrip(b"\r\n"),
            error=gone.error,
            reply=found[0] if found else b"",
            command="PROXY" if blamed else "",
            remedy=_WITHOUT_HEADER if blamed else "",
        )

    def expired(self) -> BackendError:
        """The error for a backend that did not answer within `timeout`."""
        if self.lines.buffered:
            self._info.action = READING
        spare = self.candidate is not None and self.candidate.spare
        level = "error" if spare else "info"
        return BackendError(
            "upstream timed out", error=timed_out(), level=level, action=None
        )


def _failed_connect(event: str, name: str | None, error: OSError) -> BackendError:
    """The error for a failed connect()."""
    kind = LocalError if is_local(error) else BackendError
    values = () if name is None else (name,)
    return kind(event, *values, error=error, level=connect_level(error), action=None)
