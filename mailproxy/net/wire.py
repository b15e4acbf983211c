"""Wire: a non-blocking socket on the engine; receive, send, TLS in place, close.

This is the one place that owns the rule of edge triggering: try until the kernel
(or OpenSSL) says that it would block, and only then wait. A `Wire` belongs to one
task, which makes one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl

from mailproxy.conf.addresses import SocketAddress
from mailproxy.net import faults, openssl
from mailproxy.net.engine import READABLE, WRITABLE, Engine, Handler, Readiness

_CHUNK = 16 * 1024

PROBE_IDLE = 15
"""Seconds of silence after which the kernel probes for an idle peer."""
PROBE_INTERVAL = 5
"""Seconds between probes."""
PROBES = 3
"""Probes without an answer that end the connection."""


class Wire:
    """One connected (or connecting) socket.

    Attributes:
      socket: the socket, an `ssl.SSLSocket` after `start_tls`.
      tls: the same `ssl.SSLSocket`, or None while in clear text.
      received: octets that were read from it. Octets that were only peeked at and
        dropped do not count, nor does the overhead of TLS.
      sent: octets that the kernel, or OpenSSL, has taken, without the overhead of TLS.
      closed: whether `close` was called.
    """

    __slots__ = (
        "_readiness",
        "closed",
        "engine",
        "received",
        "sent",
        "socket",
        "tls",
    )

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self.engine = engine
        self.socket = connection
        self.tls: ssl.SSLSocket | None = None
        self.closed = False
        self.received = 0
        self.sent = 0
        self._readiness = Readiness(engine)
        engine.register(connection.fileno(), self._readiness.ready)

    @classmethod
    def connect(cls, engine: Engine, family: int, address: SocketAddress) -> Wire:
        """Begin to connect; the first receive or send waits for the result.

        As in nginx, a refused connection shows as a failed recv().

        Raises:
          OSError: connect() failed at once, or `worker_connections` are in use.
        """
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            failed = connection.connect_ex(address)
            if failed not in (0, errno.EINPROGRESS):
                raise OSError(failed, os.strerror(failed))
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return cls(engine, connection)
        except BaseException:
            connection.close()
            raise

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at most `max_bytes` (16 KiB if None); b"" once the peer is done.

        Raises:
          OSError: of recv(), including `ssl.SSLError`. In TLS, a broken connection
            counts as ended.
        """
        size = max_bytes or _CHUNK
        readiness = self._readiness
        while True:
            # A try that is bound to fail is costly, as it raises an exception.
            if not readiness.readable:
                await readiness.wait(READABLE)
            try:
                data = self.socket.recv(size)
            except (BlockingIOError, ssl.SSLWantReadError):
                readiness.readable = False
                continue
            except ssl.SSLWantWriteError:
                await readiness.wait(WRITABLE)
                continue
            except OSError as error:
                if self.tls is not None and faults.is_end(error):
                    return b""
                raise
            self.received += len(data)
            if len(data) < size and self.tls is None and not readiness.hung_up:
                readiness.readable = False  # a short read empties it (epoll(7))
            return data

    async def peek(self, size: int, seen: int) -> bytes:
        """Return at most `size` octets that have arrived, without removing them.

        For a header before TLS, after which nothing must be read.

        Args:
          seen: wait until there are more octets than this, or no more will come.

        Raises:
          OSError: of recv().
        """
        while True:
            try:
                data = self.socket.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                pass
            else:
                if len(data) > seen or not data or self._hung_up():
                    return data
            await self._readiness.wait(READABLE)

    def _hung_up(self) -> bool:
        """Return whether no more octets will come than `peek` shows.

        The engine may have reported that before the task waited, and reports it once.
        """
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def is_quiet(self) -> bool:
        """Return whether the connection is open, and nothing waits to be received."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def drop(self, size: int) -> None:
        """Remove octets that `peek` has shown."""
        self.socket.recv(size)

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all of `data`, waiting for room as needed.

        Raises:
          OSError: of send(), including `ssl.SSLError` and `UnderTlsError`.
        """
        while data:
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._readiness.wait(WRITABLE)
            except ssl.SSLWantReadError:
                await self._readiness.wait(READABLE)
            except OSError as error:
                if self.tls is not None:
                    raise faults.under_tls(error) from error
                raise
            else:
                self.sent += sent
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the server's side of a TLS handshake on this connection.

        The caller must have dropped what arrived in clear text.

        Raises:
          OSError: the handshake failed; `ssl.SSLError` if TLS is the reason.
        """
        # `ssl` turns a broken connection into a closed one: ask for the error first,
        # while the descriptor is ours.
        self._check_socket()
        portable = isinstance(context, openssl.PortableContext)
        hello = await self._see_hello(context) if portable else None
        tls = self._wrap(context, server_side=True)
        if hello is not None and isinstance(tls, openssl.PortableSocket):
            tls.hello = hello
        await self._shake_hands(tls)

    async def connect_tls(
        self, context: ssl.SSLContext, server_name: str | None = None
    ) -> None:
        """Do the client's side of a TLS handshake, once the connection is made.

        The caller must have read everything that arrived in clear text.

        Args:
          context: a context of `PROTOCOL_TLS_CLIENT`.
          server_name: the name, or the IP address, to check the certificate against if
            the context asks for that; a name is sent as SNI (RFC 6066, section 3).

        Raises:
          OSError: connecting or the handshake failed; `ssl.SSLError` if TLS is the
            reason, `ssl.SSLCertVerificationError` if the certificate is.
        """
        await self._wait_connected()
        await self._shake_hands(self._wrap(context, server_name=server_name))

    async def _wait_connected(self) -> None:
        """Wait until connect() is done.

        Raises:
          OSError: why it failed.
        """
        while True:
            self._check_socket()
            try:
                self.socket.getpeername()
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
                await self._readiness.wait(WRITABLE)
            else:
                return

    def _check_socket(self) -> None:
        """Raise the pending error of the socket (SO_ERROR), if any."""
        broken = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if broken:
            raise OSError(broken, os.strerror(broken))

    def _wrap(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_name: str | None = None,
    ) -> ssl.SSLSocket:
        """Put TLS on the socket.

        Raises:
          ConnectionResetError: the connection broke just now.
        """
        fd = self.socket.fileno()
        try:
            self.tls = context.wrap_socket(
                self.socket,
                server_side=server_side,
                do_handshake_on_connect=False,
                server_hostname=server_name,
            )
        except OSError as error:
            # It broke just now; `ssl` has taken the descriptor and closes it.
            self.engine.forget(fd)
            reset = errno.ECONNRESET
            raise ConnectionResetError(reset, os.strerror(reset)) from error
        self.socket = self.tls
        return self.tls

    async def _shake_hands(self, tls: ssl.SSLSocket) -> None:
        """Do the handshake, on either side."""
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._readiness.wait(READABLE)
            except ssl.SSLWantWriteError:
                await self._readiness.wait(WRITABLE)
            else:
                # Data that came right after the handshake may be inside OpenSSL by now.
                self._readiness.readable = True
                return

    def probe_peer(self) -> None:
        """Make the kernel find out whether an idle peer is still there (tcp(7)).

        A dead connection ends after `PROBE_IDLE` seconds and `PROBES` probes.
        """
        connection = self.socket
        if connection.family == socket.AF_UNIX:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)

    def abandon(self) -> None:
        """End the connection for a task that waits, as if the peer had closed it."""
        with contextlib.suppress(OSError):  # it has ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def watch(self, handler: Handler) -> None:
        """Let the engine call `handler` instead of waking this wire; see `resume`."""
        self.engine.hand_over(self.socket.fileno(), handler)

    async def _see_hello(self, context: ssl.SSLContext) -> openssl.Hello:
        """Peek at the client's hello, before OpenSSL reads it.

        Raises:
          ssl.SSLError: the client offers only other protocols; it was sent an alert.
          OSError: the connection broke.
        """
        seen = b""
        while (hello := openssl.read_hello(seen)) is None:
            data = await self.peek(openssl.MAX_HELLO, len(seen))
            if len(data) <= len(seen):
                return openssl.Hello()  # the client left
            seen = data
            if len(seen) == openssl.MAX_HELLO:
                return openssl.read_hello(seen) or openssl.Hello()
        refused = openssl.refusal(context, hello)
        if refused is not None:
            self.drop(
                len(seen)
            )  # unread data would reset the connection, alert and all
            with contextlib.suppress(OSError):
                self.socket.send(openssl.ALERT)
            raise refused
        return hello

    def resume(self) -> None:
        """Let the engine wake this wire again, after `watch`."""
        self.engine.hand_over(self.socket.fileno(), self._readiness.ready)

    def close(self, *, notify: bool = True) -> None:
        """Close the connection; a second call does nothing.

        Args:
          notify: in TLS, send close_notify first (RFC 8446, section 6.1), without
            waiting for that of the peer.
        """
        if self.closed:
            return
        self.closed = True
        self.engine.unregister(self.socket.fileno())
        if self.tls is not None and notify:
            # The peer may be gone or slow: close_notify is only a courtesy.
            with contextlib.suppress(OSError, ValueError):
                self.tls.unwrap()
        self.socket.close()
