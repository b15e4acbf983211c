"""The far end of a connection, with TLS in memory: a test decides what goes out together.

No module with prototypes of C functions can have annotations from __future__.
"""

import contextlib
import socket
import ssl

from mailproxy.net.openssl.headers.prototype import prototype
from mailproxy.net.openssl.headers.types import SSL, Int
from mailproxy.net.openssl.library import ssl_of

KEY_UPDATE_NOT_REQUESTED = 0
KEY_UPDATE_REQUESTED = 1


@prototype
def SSL_key_update(connection: SSL, kind: Int) -> Int: ...  # type: ignore[empty-body] # noqa: N802
@prototype
def SSL_renegotiate(connection: SSL) -> Int: ...  # type: ignore[empty-body] # noqa: N802


class FarTls:
    """A peer that speaks TLS over a non-blocking socket.

    Attributes:
      socket: the connection.
      tls: TLS on it.
      ended: how the other side has ended: by close_notify, or without (b""), if it has.
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
    ) -> None:
        self.socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else "mx.test",
        )
        self.ended = ""

    def shake(self, behind: bytes = b"") -> bool:
        """Go on with the handshake; return whether it is done.

        Args:
          behind: is sent together with the end of the handshake.
        """
        self._fetch()
        try:
            self.tls.do_handshake()
            if behind:
                self.tls.write(behind)
        except ssl.SSLWantReadError:
            return False
        finally:
            self._post()
        return True

    def record(self, data: bytes) -> bytes:
        """The octets of `data` on the line, which are not sent."""
        self.tls.write(data)
        return self._outgoing.read()

    def key_update(self, kind: int) -> bytes:
        """The octets of a KeyUpdate (RFC 8446, section 4.6.3), which are not sent."""
        assert SSL_key_update(ssl_of(self.tls), kind) == 1
        self.tls.do_handshake()
        return self._outgoing.read()

    def renegotiation(self) -> bytes:
        """The octets of a wish for another handshake, which are not sent."""
        assert SSL_renegotiate(ssl_of(self.tls)) == 1
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """The octets of a closure alert, which are not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        """Send `data` in records of its own."""
        self.socket.sendall(self.record(data))

    def receive(self) -> bytes:
        """Everything that has arrived; also answer what TLS itself wants answered."""
        self._fetch()
        received = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                try:
                    data = self.tls.read(1 << 16)
                except ssl.SSLEOFError:
                    self.ended = "without"
                    break
                except ssl.SSLZeroReturnError:
                    data = b""
                if not data:
                    self.ended = "close_notify"
                    break
                received += data
        self._post()
        return bytes(received)

    def _fetch(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self.socket.recv(1 << 16):
                self._incoming.write(data)
            self._incoming.write_eof()

    def _post(self) -> None:
        if self._outgoing.pending:
            with contextlib.suppress(BrokenPipeError):
                self.socket.sendall(self._outgoing.read())
