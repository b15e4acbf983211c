"""TLS of a probe: on a stream of trio's, with the contexts of sessions.

trio's own `SSLStream` keeps the TLS connection to itself, and what is known of it (the
chain, its verdict, the key) has to be asked there.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from mailproxy.errors import BackendError
from mailproxy.mail.backend_tls import check_pin, failed_handshake, usable_name
from mailproxy.manager.probes.peer import ProbeError
from mailproxy.net import openssl

if TYPE_CHECKING:
    from mailproxy.mail.proxy_ssl import ProxySslSettings

T = TypeVar("T")

_END = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
_CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTls:
    """The TLS that there has to be with a peer."""

    mode: str
    """on, from the first octet; starttls, when the peer is asked for it."""
    settings: ProxySslSettings
    name: str
    """The name that its certificate has to have."""

    async def begin(self, stream: trio.abc.Stream) -> TlsStream:
        """Do the handshake, and make sure that the peer is the right one.

        Raises:
          ProbeError: the handshake failed, or it is not.
        """
        try:
            return await self._begin(stream)
        except trio.BrokenResourceError:
            raise ProbeError("peer closed connection in SSL handshake") from None
        except BackendError as error:
            raise ProbeError(error.event, *error.values) from None

    async def _begin(self, stream: trio.abc.Stream) -> TlsStream:
        """Do as sessions do; see `BackendTls`.

        Raises:
          BackendError, trio.BrokenResourceError: that fails.
        """
        settings = self.settings
        name = usable_name(self.name, settings)
        begun = TlsStream(stream, settings.context, name)
        if name is not None and not settings.proxy_ssl_server_name:
            openssl.hide_name(begun.tls)
        try:
            await begun.do_handshake()
            openssl.check_chain(begun.tls)
        except OSError as error:  # also an SSLError
            raise failed_handshake(error, self.name) from None
        check_pin(begun.tls, settings)
        return begun


class TlsStream(trio.abc.Stream):
    """TLS over another stream, which it closes.

    Attributes:
      tls: the TLS connection.
    """

    def __init__(
        self, stream: trio.abc.Stream, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        """Begin as a client; see `do_handshake`.

        Args:
          server_name: for SNI, and for what the context verifies.
        """
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_name
        )

    async def do_handshake(self) -> None:
        """Do the handshake.

        Raises:
          ssl.SSLError: it failed.
          trio.BrokenResourceError: the connection broke.
        """
        await self._do(self.tls.do_handshake)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send data; see `do_handshake` for errors, which become one of trio's."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await self._do(partial(self.tls.write, rest)) :]
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive data; empty once the peer has ended, with a goodbye or without."""
        size = _CHUNK if max_bytes is None else max_bytes
        try:
            return await self._do(partial(self.tls.read, size))
        except _END:
            return b""
        except ssl.SSLError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until it is sensible to send."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the connection, without a goodbye."""
        await self._stream.aclose()

    async def _do(self, step: Callable[[], T]) -> T:
        """Do a step of TLS, with all that has to be sent or received for it."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._stream.receive_some(_CHUNK)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError:
                await self._flush()  # the alert, which tells the peer why
                raise
            else:
                await self._flush()
                return done

    async def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            await self._stream.send_all(data)
