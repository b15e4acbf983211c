"""LineStream: read lines and literals of bounded size from any simple stream."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from mailproxy.errors import SessionError
from mailproxy.frozen import Frozen
from mailproxy.net import faults


class Stream(Protocol):
    """What a dialogue needs from a connection; see `Wire`.

    To try and then to wait, in two calls, spares each line two coroutines.
    """

    def receive_now(self, size: int, /) -> bytes | None: ...

    def send_now(self, data: bytes, /) -> int: ...

    def wait_to_retry(self) -> Awaitable[None]: ...

    async def send_all(self, data: bytes, /) -> None: ...


class TooLong(Frozen, Exception):  # noqa: N818 - it is an event of the dialogue, not a fault
    """The buffer is full, but the line or literal in it is incomplete.

    Attributes:
      received: the content of the buffer. It may hold a password: redact it before
        logging.
    """

    def __init__(self, received: bytes) -> None:
        super().__init__("the line is longer than its buffer")
        self.received = received


class LineStream:
    """A stream that is read line by line.

    It never buffers more than `limit` octets: it reads the stream only when the caller
    wants a line that is not complete yet, and only as much as there is room for.

    Args:
      stream: where bytes come from and go to.
      limit: octets that one command may have, including its literals.
      fault: the class of exception to raise when the peer left or the connection broke.
      gone: what the log says when the peer closes while more is expected.
    """

    __slots__ = ("_buffer", "_searched", "fault", "gone", "limit", "stream")

    def __init__(
        self,
        stream: Stream,
        limit: int,
        fault: type[SessionError],
        gone: str = "",
    ) -> None:
        self.stream = stream
        self.limit = limit
        self.fault = fault
        self.gone = gone
        self._buffer = bytearray()
        self._searched = 0

    async def read_line(self, used: int = 0) -> bytes:
        """Read the next line, including its LF.

        Args:
          used: octets of the same command that the caller has read before.

        Raises:
          TooLong: `used` and the line together exceed `limit`.
          SessionError: of class `fault`: the peer left or the connection broke.
        """
        buffer = self._buffer
        while True:
            end = buffer.find(b"\n", self._searched) + 1
            if end and used + end <= self.limit:
                line = bytes(buffer[:end])
                del buffer[:end]
                self._searched = 0
                return line
            self._searched = len(buffer)
            if end or used + len(buffer) >= self.limit:
                self._searched = 0
                raise TooLong(bytes(buffer[: max(self.limit - used, 0)]))
            # The same as `_receive`, without a coroutine for each line.
            room = self.limit - used - len(buffer)
            stream = self.stream
            try:
                while (data := stream.receive_now(room)) is None:
                    await stream.wait_to_retry()
            except OSError as error:
                raise faults.broken(self.fault, "recv", error) from error
            if not data:
                raise self.fault(self.gone)
            if not buffer and data.find(b"\n") == len(data) - 1:
                self._searched = 0
                return data  # a line in one piece, as most are
            buffer += data

    async def read_exactly(self, size: int, used: int = 0) -> bytes:
        """Read exactly `size` octets, e.g. an IMAP literal (RFC 3501, section 4.3).

        Raises:
          TooLong: `used` and `size` together exceed `limit`; raised once the buffer is
            full.
          SessionError: of class `fault`: the peer left or the connection broke.
        """
        buffer = self._buffer
        while len(buffer) < size:
            if used + len(buffer) >= self.limit:
                raise TooLong(bytes(buffer))
            buffer += await self._receive(self.limit - used - len(buffer))
        if used + size > self.limit:
            raise TooLong(bytes(buffer[: self.limit - used]))
        data = bytes(buffer[:size])
        del buffer[:size]
        self._searched = 0
        return data

    async def read_some(self) -> bytes:
        """Read what has arrived, at least one octet and at most `limit`.

        Raises:
          SessionError: of class `fault`: the peer left or the connection broke.
        """
        if not self._buffer:
            return await self._receive(self.limit)
        return self.take_rest()

    async def _receive(self, room: int) -> bytes:
        """Receive at least one octet, and at most `room`."""
        stream = self.stream
        try:
            while (data := stream.receive_now(room)) is None:
                await stream.wait_to_retry()
        except OSError as error:
            raise faults.broken(self.fault, "recv", error) from error
        if not data:
            raise self.fault(self.gone)
        return data

    async def send(self, data: bytes) -> None:
        """Send `data`; return when it is on its way or in the kernel.

        Raises:
          SessionError: of class `fault`: the connection broke.
        """
        try:
            sent = self.stream.send_now(data)
            if sent < len(data):
                await self.stream.send_all(data[max(sent, 0) :])
        except OSError as error:
            raise faults.broken(self.fault, "send", error) from error

    @property
    def buffered(self) -> bool:
        """Whether there are received octets that no caller has read."""
        return bool(self._buffer)

    def take_rest(self) -> bytes:
        """Remove and return all octets that were received but not read."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest
