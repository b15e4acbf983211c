"""One end of a connection with the proxy: what arrives is kept until it is asked for."""

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

PATIENCE = 60.0
"""Seconds after which an awaited byte counts as missing, on however busy a machine."""

_SINGLE = 5000
"""Bytes of a segment that are sent one by one, at most; socket buffers hold few of them."""

OPEN, CLOSE = "⟨open⟩", "⟨close⟩"


_TABLES = {
    socket.AF_INET: Path("/proc/net/tcp"),
    socket.AF_INET6: Path("/proc/net/tcp6"),
}


class MismatchError(Exception):
    """The proxy did something else than the script says."""


class Channel:
    """A connection of a script, with a task (`pump`) that receives."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream
        self.stream: trio.abc.Stream = stream
        self.buffer = bytearray()
        self.events: list[str] = []
        self.ended = False
        self.told = False
        """Whether the script knows that it has ended, or ended it itself."""
        self.answered = False
        """Whether something was sent on it (auth server)."""
        self._changed = trio.Event()
        self._pumping = trio.CancelScope()
        self._stopped = trio.Event()

    async def pump(self) -> None:
        """Receive until the end of the connection, or until TLS starts."""
        with self._pumping:
            try:
                while data := await self.stream.receive_some(65536):
                    self.buffer += data
                    self._change()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # a reset is a close here: which of them it is depends on timing
            self.ended = True
            self._change()
        self._stopped.set()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for bytes or the end of the connection.

        Raises:
          MismatchError: `condition` does not come true in time.
        """
        with trio.move_on_after(PATIENCE):
            while not condition():
                await self._changed.wait()
            return
        raise MismatchError(f"waited {PATIENCE:.0f} s for {what}")

    async def wait_for_end(self) -> None:
        """Wait until the proxy closes, too."""
        await self.wait_until(lambda: self.ended, "the proxy to close")

    async def take_line(self) -> bytes | str:
        """The next line, or the name of an event."""
        await self.wait_until(
            lambda: b"\n" in self.buffer or bool(self.events) or self.ended, "a line"
        )
        if self.buffer:
            return self._take(self.buffer.find(b"\n") + 1 or len(self.buffer))
        return self._event()

    async def take_exactly(self, size: int) -> bytes | str:
        """The next `size` bytes, or fewer before an event."""
        await self.wait_until(
            lambda: len(self.buffer) >= size or bool(self.events) or self.ended,
            f"{size} bytes",
        )
        return self._take(size) if self.buffer else self._event()

    async def take_request(self) -> bytes | str:
        """All up to and with an empty line, or the name of an event."""
        await self.wait_until(
            lambda: b"\r\n\r\n" in self.buffer or self.ended, "an auth request"
        )
        if not self.buffer:
            return self._event()
        return self._take(
            self.buffer.find(b"\r\n\r\n") + 4
            if b"\r\n\r\n" in self.buffer
            else len(self.buffer)
        )

    def take_all(self, *, lines: bool = False) -> tuple[bytes, list[str]]:
        """Everything that is there: bytes (or only whole `lines`), and then events."""
        size = self.buffer.rfind(b"\n") + 1 if lines else len(self.buffer)
        data = self._take(size)
        events = [] if self.buffer else self.events
        self.events = self.events[len(events) :]
        return data, events

    def is_news_that_it_ended(self) -> bool:
        """Whether it has ended and nobody knows; now somebody does."""
        news = self.ended and not self.told and not self.buffer
        self.told = self.told or news
        return news

    def _event(self) -> str:
        if self.events:
            return self.events.pop(0)
        self.told = True
        return CLOSE

    def _take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def send(self, data: bytes, *, bytewise: bool = False) -> None:
        """Send a segment, or its bytes one by one; what no login needs, in small pieces."""
        pieces = [data]
        if bytewise:
            pieces = [data[i : i + 1] for i in range(min(len(data), _SINGLE))]
            pieces += [data[i : i + 997] for i in range(_SINGLE, len(data), 997)]
        try:
            for piece in pieces:
                await self.stream.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the proxy has closed already; the script tells whether it may

    async def wait_until_read(self) -> None:
        """Wait until the proxy has read what was sent.

        Raises:
          MismatchError: it leaves it there.
        """
        with trio.move_on_after(PATIENCE):
            # The kernel tells nobody that another process has read.
            while _unread(self.socket.socket):  # noqa: ASYNC110
                await trio.sleep(0.01)
            return
        raise MismatchError(f"waited {PATIENCE:.0f} s for the proxy to read")

    def finish_sending(self) -> None:
        """Send a FIN."""
        self.told = True
        with suppress(OSError):  # it is closed already
            self.socket.socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close, with a RST where asked for."""
        self.told = self.ended = True
        if reset and self.socket.socket.fileno() >= 0:
            linger = struct.pack("ii", 1, 0)
            self.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._pumping.cancel()
        self.socket.socket.close()

    async def start_tls(self, arguments: dict[str, str], directory: Path) -> None:
        """Shake hands as a client; the result becomes an event. `pump` has to be started again."""
        self._pumping.cancel()
        await self._stopped.wait()
        self._pumping, self._stopped = trio.CancelScope(), trio.Event()
        context = ssl.create_default_context(cafile=directory / "ca.pem")
        context.check_hostname = False
        if version := arguments.get("version"):
            context.maximum_version = ssl.TLSVersion[f"TLSv1_{version[2:]}"]
        if alpn := arguments.get("alpn"):
            context.set_alpn_protocols(alpn.split(","))
        if certificate := arguments.get("cert"):
            context.load_cert_chain(directory / f"{certificate}.pem")
        stream = trio.SSLStream(
            self.socket, context, server_hostname="mx.test", https_compatible=True
        )
        try:
            with trio.fail_after(PATIENCE):
                await stream.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError):
            self.events.append("⟨no tls⟩")
        except trio.TooSlowError:
            raise MismatchError(f"waited {PATIENCE:.0f} s for TLS") from None
        else:
            self.stream = stream
            self.events.append("⟨tls⟩")


def _unread(connection: trio.socket.SocketType) -> int:
    """How many octets the other end of a connection, on this machine, has not read.

    Of unix sockets that cannot be known.
    """
    table = _TABLES.get(connection.family)
    try:
        ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    except OSError:
        return 0  # it is over
    unread = 0
    for line in table.read_text().splitlines()[1:] if table else ():
        _, local, remote, _, queues, *_ = line.split()
        ends = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        sending, receiving = queues.split(":")
        if ends == (ours, theirs):
            unread += int(sending, 16)
        elif ends == (theirs, ours):
            unread += int(receiving, 16)
    return unread
