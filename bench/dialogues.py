"""What clients say until they are logged in, and how they leave.

All log in as the same user; the fake servers let nobody in who says anything else.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from dataclasses import dataclass

from bench.loop import SessionError, Waiting, Wire

USER = b"user@example.com"
PASSWORD = b"password"


@dataclass(frozen=True)
class Exchange:
    """A command, and how the last line of its reply has to begin."""

    command: bytes
    reply: bytes


@dataclass(frozen=True)
class Dialogue:
    """One protocol, from the client's side."""

    greeting: bytes
    """How the proxy's first line has to begin; the fake servers have others."""
    starttls: tuple[Exchange, ...]
    login: tuple[Exchange, ...]
    logout: bytes


_EHLO = Exchange(b"EHLO client.example.com\r\n", b"250 ")
_PLAIN = b64encode(b"\0%s\0%s" % (USER, PASSWORD))

DIALOGUES = {
    "imap": Dialogue(
        greeting=b"* OK IMAP4 ready",
        starttls=(Exchange(b"s STARTTLS\r\n", b"s OK"),),
        login=(Exchange(b"a LOGIN %s %s\r\n" % (USER, PASSWORD), b"a OK"),),
        logout=b"z LOGOUT\r\n",
    ),
    "pop3": Dialogue(
        greeting=b"+OK POP3 ready",
        starttls=(Exchange(b"STLS\r\n", b"+OK"),),
        login=(
            Exchange(b"USER %s\r\n" % USER, b"+OK"),
            Exchange(b"PASS %s\r\n" % PASSWORD, b"+OK"),
        ),
        logout=b"QUIT\r\n",
    ),
    "smtp": Dialogue(
        greeting=b"220 bench.example.com ",
        starttls=(_EHLO, Exchange(b"STARTTLS\r\n", b"220 ")),
        login=(_EHLO, Exchange(b"AUTH PLAIN %s\r\n" % _PLAIN, b"235 ")),
        logout=b"QUIT\r\n",
    ),
}
"""By the protocols' names in nginx.conf."""


def log_in(
    wire: Wire,
    dialogue: Dialogue,
    starttls: ssl.SSLContext | None = None,
    resume: ssl.SSLSession | None = None,
) -> Waiting[None]:
    """Say everything up to the login, from the greeting on.

    Args:
      starttls: for the handshake, if the dialogue shall have one.

    Raises:
      SessionError: a reply is another one.
    """
    yield from expect(wire, dialogue.greeting)
    if starttls is not None:
        for exchange in dialogue.starttls:
            wire.send(exchange.command)
            yield from expect(wire, exchange.reply)
        yield from wire.start_tls(starttls, resume)
    for exchange in dialogue.login:
        wire.send(exchange.command)
        yield from expect(wire, exchange.reply)


def log_out(wire: Wire, dialogue: Dialogue) -> Waiting[None]:
    """Say goodbye, and wait until the server closes."""
    wire.send(dialogue.logout)
    while (yield from wire.receive()):
        pass


def expect(wire: Wire, reply: bytes) -> Waiting[None]:
    """Read a reply, up to a line that begins with `reply`.

    Before it there may be IMAP's untagged lines, or SMTP's that say that more follow.

    Raises:
      SessionError: something else came.
    """
    heard = b""
    while True:
        data = yield from wire.receive()
        heard += data
        if heard.endswith(b"\r\n"):
            last = heard[heard.rfind(b"\n", 0, -1) + 1 :]
            if last.startswith(reply):
                return
            if not last.startswith(b"* ") and last[3:4] != b"-":
                raise SessionError(f"expected {reply!r}, got {last[:200]!r}")
        if not data:
            raise SessionError(f"expected {reply!r}, the proxy closed after {heard!r}")
