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
from collections.abc import Awaitable

from mailproxy.conf.addresses import SocketAddress
from mailproxy.net import calls, faults, openssl
from mailproxy.net.engine import Engine, Handler, Readiness
from mailproxy.net.outgoing import Outgoing

_CHUNK = 16 * 1024
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

PROBE_IDLE = 15
"""Seconds of silence after which the kernel probes for an idle peer."""
PROBE_INTERVAL = 5
"""Seconds between probes."""
PROBES = 3
"""Probes without an answer that end the connection."""


class Wire(Readiness):
    """One connected (or connecting) socket.

    Attributes:
      fd: its descriptor, non-blocking.
      tls: TLS on it, or None while in clear text.
      tls_calls: moves the octets in TLS; None in clear text, too.
      received: octets that were read from it. Octets that were only peeked at and
        dropped do not count, nor does the overhead of TLS.
      sent: octets that the kernel, or OpenSSL, has taken, without the overhead of TLS.
      closed: whether `close` was called.
      connecting: whether connect() was not done when this was last looked at.
    """

    __slots__ = (
        "_needs",
        "_socket",
        "closed",
        "connecting",
        "fd",
        "received",
        "sent",
        "tls",
        "tls_calls",
    )

    def __init__(self, engine: Engine, fd: int) -> None:
        """Take over a descriptor, which `close` closes.

        Raises:
          OSError: `worker_connections` are in use; `fd` is still the caller's.
        """
        super().__init__(engine)
        self.fd = fd
        self.tls: ssl.SSLSocket | None = None
        self.tls_calls: calls.TlsCalls | None = None
        self.closed = False
        self.connecting = False
        self.received = 0
        self.sent = 0
        self._needs = calls.READABLE
        """What the last try that did nothing has to wait for."""
        self._socket: socket.socket | None = None
        engine.register(fd, self)

    @classmethod
    def connect(
        cls,
        engine: Engine,
        family: int,
        address: SocketAddress,
        how: Outgoing | None = None,
    ) -> Wire:
        """Begin to connect; `wait_connected`, or the first receive or send, waits for
        the result.

        Raises:
          OSError: connect() failed at once, or `worker_connections` are in use; a
            `BindError` if `how` cannot be.
        """
        # The class below socket.socket: an object of that costs three times as much.
        connection = socket.SocketType(family, _STREAM)
        try:
            if how is not None:
                how.prepare(connection, family)
            failed = connection.connect_ex(address)
            if failed not in (0, errno.EINPROGRESS):
                raise OSError(failed, os.strerror(failed))
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = cls(engine, connection.fileno())
            wire.connecting = failed != 0 and not _is_connected(connection)
        except BaseException:
            connection.close()
            raise
        connection.detach()
        return wire

    @property
    def socket(self) -> socket.socket:
        """The socket as an object of Python's, made when it is first wanted."""
        if self._socket is None:
            self._socket = socket.socket(fileno=self.fd)
            self._socket.setblocking(False)
        return self._socket

    @property
    def server_name(self) -> bytes | None:
        """The name that the client asked for by SNI, unchecked; None if there is none."""
        return None if self.tls is None else openssl.server_name(self.tls)

    def receive_now(self, size: int) -> bytes | None:
        """Receive what has arrived, at most `size` octets.

        Returns:
          b"" once the peer is done; None if there is nothing yet: `wait_to_retry`.

        Raises:
          OSError: of recv(), including `ssl.SSLError`. In TLS, a broken connection
            counts as ended.
        """
        # A try that is bound to fail is costly, as it raises an exception.
        if not self.readable:
            self._needs = calls.READABLE
            return None
        if self.tls_calls is not None:
            return self._receive_tls(self.tls_calls, size)
        data = calls.receive(self.fd, size)
        if data is None:
            self.readable = False
            self._needs = calls.READABLE
            return None
        self.received += len(data)
        if len(data) == size:
            # There may be more, and more of it may come all the time: others have their
            # turn before it is read.
            self.readable = False
            self.engine.rearm(self.fd, calls.BOTH_WAYS)
        elif not self.hung_up:
            self.readable = False  # a short read empties it (epoll(7))
        return data

    def _receive_tls(self, tls: calls.TlsCalls, size: int) -> bytes | None:
        try:
            data = tls.receive(size)
        except OSError as error:
            if faults.is_end(error):
                return b""
            raise
        if data is None:
            self._needs = tls.needs
            if tls.needs == calls.READABLE:
                self.readable = False
            return None
        self.received += len(data)
        if data and not tls.pending():
            # OpenSSL holds nothing behind this record. To have the kernel look for the
            # next one costs less than a read that fails.
            self.readable = False
            self.engine.rearm(self.fd, calls.READING)
        return data

    def send_now(self, data: bytes | memoryview) -> int:
        """Send as much as there is room for.

        Returns:
          How many octets that were; -1 if there is no room: `wait_to_retry`.

        Raises:
          OSError: of send(), including `ssl.SSLError` and `UnderTlsError`.
        """
        tls = self.tls_calls
        if tls is None:
            sent = calls.send(self.fd, data)
            if sent < 0:
                self._needs = calls.WRITABLE
                return -1
        else:
            try:
                sent = tls.send(data)
            except OSError as error:
                raise faults.under_tls(error) from error
            if sent < 0:
                self._needs = tls.needs
                return -1
        self.sent += sent
        return sent

    def wait_to_retry(self) -> Awaitable[None]:
        """Wait until `receive_now` or `send_now`, which has just done nothing, may do more."""
        if self._needs == calls.WRITABLE and self.tls is not None:
            self.engine.rearm(self.fd, calls.BOTH_WAYS)
        return self.wait(self._needs)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at most `max_bytes` (16 KiB if None); b"" once the peer is done.

        Raises:
          OSError: see `receive_now`.
        """
        while True:
            data = self.receive_now(max_bytes or _CHUNK)
            if data is not None:
                return data
            await self.wait_to_retry()

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all of `data`, waiting for room as needed.

        Raises:
          OSError: see `send_now`.
        """
        while data:
            sent = self.send_now(data)
            if sent == len(data):
                return
            if sent < 0:
                await self.wait_to_retry()
            else:
                data = memoryview(data)[sent:]

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
            await self.wait(calls.READABLE)

    def _hung_up(self) -> bool:
        """Return whether no more octets will come than `peek` shows.

        The engine may have reported that before the task waited, and reports it once.
        """
        return self._polls(select.POLLRDHUP)

    def _polls(self, events: int) -> bool:
        """Return whether the kernel reports one of poll(2)'s events, or an error."""
        poll = select.poll()
        poll.register(self.fd, events)
        return bool(poll.poll(0))

    def is_quiet(self) -> bool:
        """Return whether the connection is open, and nothing waits to be received."""
        return not self._polls(select.POLLIN | select.POLLRDHUP)

    def drop(self, size: int) -> None:
        """Remove octets that `peek` has shown."""
        self.socket.recv(size)

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
        self,
        context: ssl.SSLContext,
        server_name: str | None = None,
        *,
        session: openssl.ClientSession | None = None,
        hide_name: bool = False,
    ) -> None:
        """Do the client's side of a TLS handshake, once the connection is made.

        The caller must have read everything that arrived in clear text.

        Args:
          context: a context of `PROTOCOL_TLS_CLIENT`.
          server_name: the name, or the IP address, to check the certificate against if
            the context asks for that; a name is sent as SNI (RFC 6066, section 3).
          session: the session to resume, of the same context and name.
          hide_name: do not send the name.

        Raises:
          OSError: connecting or the handshake failed; `ssl.SSLError` if TLS is the
            reason, `ssl.SSLCertVerificationError` if the certificate is.
        """
        await self.wait_connected()
        self._check_socket()
        tls = self._wrap(context, server_name=server_name)
        if session is not None:
            openssl.resume(tls, session)
        if hide_name:
            openssl.hide_name(tls)
        await self._shake_hands(tls)
        openssl.check_chain(tls)
        if not tls.pending():
            # As behind a short record: the server will greet only now, and a read that
            # fails costs more.
            self.readable = False
            self.engine.rearm(self.fd, calls.READING)

    def resumable_session(
        self, resumed: openssl.ClientSession | None
    ) -> openssl.ClientSession | None:
        """Return the TLS session with a server, if it can be resumed.

        Args:
          resumed: the session that the server was asked to resume.
        """
        tls = self.tls
        return None if tls is None else openssl.resumable_session(tls, resumed)

    async def wait_connected(self) -> None:
        """Wait until connect() is done.

        Raises:
          OSError: why it failed.
        """
        while self.connecting:
            self._check_socket()
            if _is_connected(self.socket):
                self.connecting = False
            else:
                await self.wait(calls.WRITABLE)

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
        plain, self._socket = self.socket, None
        try:
            self.tls = context.wrap_socket(
                plain,
                server_side=server_side,
                do_handshake_on_connect=False,
                server_hostname=server_name,
            )
        except OSError as error:
            # It broke just now; `ssl` has taken the descriptor and closes it.
            self.engine.forget(self.fd)
            self.fd = -1
            reset = errno.ECONNRESET
            raise ConnectionResetError(reset, os.strerror(reset)) from error
        self._socket = self.tls
        self.tls_calls = calls.TlsCalls(self.tls)
        return self.tls

    async def _shake_hands(self, tls: ssl.SSLSocket) -> None:
        """Do the handshake, on either side."""
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.wait(calls.READABLE)
            except ssl.SSLWantWriteError:
                await self.wait(calls.WRITABLE)
            else:
                # Data that came right after the handshake may be inside OpenSSL by now.
                self.readable = True
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
        """Let the engine tell `handler` instead of waking a task; see `resume`."""
        self.engine.hand_over(self.fd, handler)

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
        """Let the engine wake tasks again, after `watch`."""
        self.engine.hand_over(self.fd, self)

    def close(self, *, notify: bool = True) -> None:
        """Close the connection; a second call does nothing.

        Args:
          notify: in TLS, send close_notify first (RFC 8446, section 6.1), without
            waiting for that of the peer.
        """
        if self.closed:
            return
        self.closed = True
        self.engine.forget(self.fd)  # the kernel does so, too, as it is closed
        if self._socket is None:
            if self.fd >= 0:
                os.close(self.fd)
            return
        if self.tls_calls is not None:
            self.tls_calls.close()
        if self.tls is not None and notify:
            # The peer may be gone or slow: close_notify is only a courtesy.
            with contextlib.suppress(OSError, ValueError):
                openssl.say_goodbye(self.tls)
        self._socket.close()


def _is_connected(connection: socket.SocketType) -> bool:
    """Return whether connect() is done, and was successful.

    On the same machine that is so as soon as it has begun: a look at it is cheaper than
    to wait for the event.
    """
    try:
        connection.getpeername()
    except OSError:
        return False
    return True
