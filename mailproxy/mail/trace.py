"""The debug log of a dialogue: every line in both directions, without its secrets.

A session whose log is at level debug reads and writes through `TracedLines`; others use
plain `LineStream`s, at no cost.

Secrets are not guessed. A command is shown whole only if its protocol lists it as
harmless. For any other, the log shows that there was one, and its name if it is a login
command; it does not show a length, which could be that of a password. So a password
appears neither in its own place nor in a wrong one, such as behind a rejected AUTH or
in an unknown command. The continuation of a command (an answer to a challenge, a
literal, and the text behind it) is never shown. Replies are shown, unless they repeat
the secret of the login.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.log import DEBUG
from mailproxy.log.secrets import HIDDEN, repeats, spellings
from mailproxy.net.lines import LineStream, TooLong

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from mailproxy.errors import SessionError
    from mailproxy.log import Logger, SessionInfo
    from mailproxy.mail.login import Login
    from mailproxy.mail.protocol import MailProtocol
    from mailproxy.net.lines import Stream

MAX_SHOWN = 1024
"""Octets of a line that the log shows; an escaped octet takes four characters."""
MAX_LOGINS = 8
"""Logins whose secrets are searched for: a client may try several, and the auth source
may replace each."""

_NAME = re.compile(rb"([A-Za-z]+)(?= |\Z)")
_TAGGED_NAME = re.compile(rb"[A-Za-z0-9._-]{1,32} +([A-Za-z]+)(?= |\Z)")
_REVEALING = frozenset((b"LOGIN", b"AUTHENTICATE", b"AUTH", b"PASS", b"APOP"))
"""Commands with secrets in their arguments, whose names are not secret."""
_MECHANISM = re.compile(
    rb" +(?:PLAIN|LOGIN|CRAM-MD5|EXTERNAL|XOAUTH2|OAUTHBEARER)(?= |\Z)", re.IGNORECASE
)
_PROMPT = re.compile(rb"\+(?!OK)|334", re.IGNORECASE)
"""A reply that asks for the rest of a command (RFC 3501, section 7.5; RFC 4954; RFC
5034)."""


def shown(command: bytes, protocol: MailProtocol) -> bytes:
    """A command as the log may show it, without its line end.

    Args:
      command: one line, from its beginning.
    """
    command = command.rstrip(b"\r\n")
    found = _TAGGED_NAME.match(command) if protocol.tagged else _NAME.match(command)
    name = found[1].upper() if found is not None else b""
    if not command or name in protocol.harmless:
        return command
    if found is None or name not in _REVEALING:
        return HIDDEN
    end = found.end()
    if name in (b"AUTH", b"AUTHENTICATE"):
        mechanism = _MECHANISM.match(command, end)
        end = end if mechanism is None else mechanism.end()
    return command if end == len(command) else command[:end] + b" " + HIDDEN


class Secrets:
    """The secrets of the last logins of a session, which no log line may show."""

    def __init__(self) -> None:
        self._logins: tuple[Login, ...] = ()
        self._messages: tuple[bytes, ...] = ()

    def remember(self, login: Login) -> None:
        """From now on, hide texts that contain the secret of `login`."""
        self._logins = (*self._logins[1 - MAX_LOGINS :], login)

    def remember_messages(self, messages: Iterable[bytes]) -> None:
        """From now on, hide texts that contain one of these messages of SASL (base64).

        They are those of the login at the backend, of which there is one.
        """
        self._messages = tuple(each.lower() for each in messages)

    def hidden(self, text: bytes) -> bytes:
        """Return a text that a peer has sent as the log may show it."""
        if repeats(text, self._messages):
            return HIDDEN
        for login in self._logins:
            if login.secret and repeats(text, spellings(login.secret, login.name)):
                return HIDDEN
        return text


class Trace:
    """The debug log of one session.

    Args:
      info: the facts of the session, with its current action.
      secrets: the secrets that its lines must not show.
    """

    def __init__(
        self, log: Logger, info: SessionInfo, protocol: MailProtocol, secrets: Secrets
    ) -> None:
        self.protocol = protocol
        self._log = log
        self._info = info
        self._secrets = secrets

    def show(self, way: str, line: bytes) -> None:
        """Log one line.

        Args:
          way: "from client", "to client", "from upstream" or "to upstream".
        """
        line = self._secrets.hidden(line)
        if len(line) > MAX_SHOWN:
            line = line[:MAX_SHOWN] + b"..."
        self.note(f'{way}: "%s"', line)

    def note(self, event: str, *values: object) -> None:
        """Log a step of the session, and its current action."""
        action = self._info.action
        doing = "" if action is None else f" while {action}"
        self._log.debug(event + doing, *values)

    def note_tls(self, tls: ssl.SSLSocket) -> None:
        """Log the TLS version and cipher that were negotiated with the client."""
        cipher = tls.cipher()
        self.note(
            'client speaks "%s", "%s"', tls.version(), cipher[0] if cipher else "-"
        )


def make_trace(
    log: Logger, info: SessionInfo, protocol: MailProtocol, secrets: Secrets
) -> Trace | None:
    """Make the trace of a session if its log is at level debug."""
    return Trace(log, info, protocol, secrets) if log.level >= DEBUG else None


class TracedLines(LineStream):
    """A stream that logs every line, after reading or before sending it.

    Args:
      peer: "client", which sends commands, or "upstream", which gets them.
    """

    __slots__ = ("_continues", "_serves", "_trace", "peer")

    def __init__(
        self,
        stream: Stream,
        limit: int,
        fault: type[SessionError],
        gone: str = "",
        *,
        trace: Trace,
        peer: str,
    ) -> None:
        super().__init__(stream, limit, fault, gone)
        self.peer = peer
        self._trace = trace
        self._serves = peer == "client"
        self._continues = False
        """Whether the next line continues a command."""

    async def read_line(self, used: int = 0) -> bytes:
        try:
            line = await super().read_line(used)
        except TooLong:
            self._trace.show(f"from {self.peer}", HIDDEN)
            raise
        self._read(line)
        return line

    async def read_exactly(self, size: int, used: int = 0) -> bytes:
        data = await super().read_exactly(size, used)
        self._trace.show(f"from {self.peer}", HIDDEN)
        self._continues = True
        return data

    async def read_some(self) -> bytes:
        data = await super().read_some()
        self._read(data)
        return data

    async def send(self, data: bytes) -> None:
        if self._serves:
            self._replies("to", data)
        else:
            self._commands("to", data)
        await super().send(data)

    def _read(self, data: bytes) -> None:
        if self._serves:
            self._commands("from", data)
        else:
            self._replies("from", data)

    def _commands(self, way: str, data: bytes) -> None:
        """Log one command, a part of one, or several."""
        for line in data.splitlines(keepends=True):
            text = HIDDEN if self._continues else shown(line, self._trace.protocol)
            # Lines behind a command that is not shown may belong to it.
            self._continues = text != line.rstrip(b"\r\n")
            self._trace.show(f"{way} {self.peer}", text)
        self._continues = False

    def _replies(self, way: str, data: bytes) -> None:
        for line in data.splitlines():
            self._trace.show(f"{way} {self.peer}", line)
            self._continues = _PROMPT.match(line) is not None


def client_lines(
    trace: Trace | None,
    stream: Stream,
    limit: int,
    fault: type[SessionError],
    gone: str,
) -> LineStream:
    """Make the stream of a client's lines, which are logged if there is a trace."""
    if trace is None:
        return LineStream(stream, limit, fault, gone)
    return TracedLines(stream, limit, fault, gone, trace=trace, peer="client")


def backend_lines(
    trace: Trace | None,
    stream: Stream,
    limit: int,
    fault: type[SessionError],
    gone: str,
) -> LineStream:
    """Make the stream of a backend's lines, which are logged if there is a trace."""
    if trace is None:
        return LineStream(stream, limit, fault, gone)
    return TracedLines(stream, limit, fault, gone, trace=trace, peer="upstream")
