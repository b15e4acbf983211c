"""The account of the demo, and the mailbox that its three mail servers share."""

import email.utils
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from mailproxy.errors import BackendError, SessionError
from mailproxy.net.lines import LineStream, TooLong

USER = b"alice"
PASSWORD = b"wonderland"

KIB = 1024
MAX_LINE = 1024 * KIB
"""Octets of a line that the demo's servers read."""

WELCOME = """\
From: The proxy <proxy@example.com>
To: Alice <alice@example.com>
Subject: Welcome
Date: {date}
DemoMessage-ID: <welcome@example.com>

This letter came to you through mailproxy. Your client talked to the proxy; the
proxy asked an auth_http server whether your password is good and where your
mailbox is, logged in there for you, and passes the bytes since.
"""

HOW_TO = """\
From: The proxy <proxy@example.com>
To: Alice <alice@example.com>
Subject: Four things to try
Date: {date}
DemoMessage-ID: <how-to@example.com>

1. Log in with a wrong password, and look at the log.
2. Send yourself a letter through the SMTP port; it arrives in this mailbox.
3. Edit nginx.conf in the demo's directory, and reload.
4. Press 1 in the demo's terminal: one of the two mail servers is gone, and you
   can still log in. The log says how that came.
"""


@dataclass(eq=False)
class DemoMessage:
    """One letter.

    Attributes:
      uid: its permanent number (RFC 3501, section 2.3.1.1).
      data: header and text, lines ended by CR LF.
      flags: IMAP flags without the backslash, e.g. "Seen".
      received: seconds since the epoch.
    """

    uid: int
    data: bytes = field(repr=False)
    flags: set[str] = field(default_factory=set)
    received: float = field(default_factory=time.time)

    @property
    def header(self) -> bytes:
        """The header with the empty line that ends it."""
        return self.data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    @property
    def text(self) -> bytes:
        """The part after the header."""
        return self.data.partition(b"\r\n\r\n")[2]


class Mailbox:
    """The letters of the one account, for IMAP, POP3 and SMTP alike."""

    def __init__(self) -> None:
        self.messages: list[DemoMessage] = []
        self.arrival = trio.Condition()
        self._next_uid = 1
        for letter in (WELCOME, HOW_TO):
            text = letter.format(date=email.utils.formatdate(localtime=True))
            self._append(text.replace("\n", "\r\n").encode())

    def _append(self, data: bytes) -> None:
        self.messages.append(DemoMessage(self._next_uid, data))
        self._next_uid += 1

    async def deliver(self, data: bytes) -> None:
        """Append a letter and wake the tasks that wait for one."""
        self._append(data)
        async with self.arrival:
            self.arrival.notify_all()

    def remove(self, uids: set[int]) -> None:
        """Delete the letters with these numbers."""
        self.messages = [
            message for message in self.messages if message.uid not in uids
        ]


class TrioStream:
    """A stream of trio's as `LineStream` wants it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._size = 0
        self._received: bytes | None = None

    def receive_now(self, size: int) -> bytes | None:
        self._size = size
        received, self._received = self._received, None
        return received

    async def wait_to_retry(self) -> None:
        self._received = bytes(await self._stream.receive_some(self._size))

    def send_now(self, _data: bytes) -> int:
        return -1

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)


Session = Callable[[LineStream], Awaitable[None]]
"""What a server does with one connection."""


async def serve(
    session: Session,
    *,
    port: int = 0,
    context: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[int],
) -> None:
    """Serve `session` on a port of the loopback; tells the port when it listens.

    Args:
      context: for TLS from the first octet on; None: there is none.

    Raises:
      OSError: the port cannot be used, or the system has no room for one more client.
    """
    [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
    task_status.started(listener.socket.getsockname()[1])
    # trio.serve_listeners would log a traceback and try for ever where files are short.
    async with listener, trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(_one, session, await listener.accept(), context)


async def _one(
    session: Session, stream: trio.abc.Stream, context: ssl.SSLContext | None
) -> None:
    if context is not None:
        stream = trio.SSLStream(
            stream, context, server_side=True, https_compatible=True
        )
    try:
        await session(LineStream(TrioStream(stream), MAX_LINE, BackendError))
    except* (SessionError, TooLong, trio.BrokenResourceError, IndexError, ValueError):
        pass  # the peer left, or sent nonsense: this session ends, no other
    finally:
        await trio.aclose_forcefully(stream)
