"""A listener of a worker: connections are accepted, and become sessions.

AcceptLoop   accepts from one socket, and outlives its sessions
Admission    turns connections into sessions of one configuration
"""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address

import trio

from mailproxy.conf.addresses import SocketAddress
from mailproxy.errors import needed
from mailproxy.log import Logger, Logs, SessionInfo
from mailproxy.mail import session
from mailproxy.mail.listen import Listen
from mailproxy.mail.server import Server
from mailproxy.net import driven
from mailproxy.net.engine import ListeningWire
from mailproxy.net.listening import Listener
from mailproxy.net.network import Network
from mailproxy.net.wire import Wire
from mailproxy.process.configuration import Configuration

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Admission:
    """Starts the sessions of new connections.

    Attributes:
      network: the worker's.
      log: the configuration's main log, for what belongs to no server.
    """

    def __init__(
        self, configuration: Configuration, logs: Logs, network: Network
    ) -> None:
        self.network = network
        self.log = logs.main
        self._events = configuration.events
        self._served: dict[int, tuple[Server, Logger]] = {
            id(listen): (server, logs.logger(server.core.error_log))
            for server in configuration.servers
            for listen in server.core.listen
        }

    def begin(
        self,
        listener: Listener[Listen],
        fd: int,
        address: object,
        sessions: trio.Nursery,
    ) -> None:
        """Start the session of a new connection, if there is room for it.

        Args:
          fd: the connection, which is closed if there is none.
          address: of the peer, as accept() gives it.
        """
        network = self.network
        if not network.make_room():
            os.close(fd)
            self.log.alert(
                "%s worker_connections are not enough", self._events.worker_connections
            )
            return
        listen = listener.listen
        if listener.specific:
            listen = listener.choose(_own_address(fd))
        server, log = self._served[id(listen)]
        info = SessionInfo(
            network.next_number(),
            "unix:",
            server=listen.address,
            tags=server.core.error_log_user_tag,
            protocol=server.protocol.name,
            accepted=network.engine.now,
        )
        if isinstance(address, tuple):
            info.client, info.client_port = address[:2]
        info.peer = info.client_address
        if self._events.debug_connection and self._is_debugged(info.client):
            log = log.at_debug()
        try:
            wire = Wire(network.engine, fd)
        except OSError as error:
            os.close(fd)
            self.log.alert("epoll_ctl() failed", error=error)
            return
        sessions.start_soon(
            driven.run,
            network.engine,
            session.run,
            wire,
            server,
            listen,
            network,
            log,
            info,
            name="session",
        )

    def _is_debugged(self, client: str) -> bool:
        networks = self._events.debug_connection
        if client == "unix:":
            return client in networks
        address = ip_address(client)
        return any(not isinstance(each, str) and address in each for each in networks)

    async def explain(self, error: OSError) -> None:
        """Log an error of accept(), and pause if trying again at once would not help."""
        if error.errno in _NO_DESCRIPTORS:
            self.log.crit("accept4() failed", error=error)
            await trio.sleep(self._events.accept_mutex_delay)
        elif error.errno == errno.ECONNABORTED:
            self.log.error("accept4() failed", error=error)
        else:
            self.log.alert("accept4() failed", error=error)
            await trio.sleep(self._events.accept_mutex_delay)


def _own_address(fd: int) -> SocketAddress:
    """Return the address that the client of a connection has connected to."""
    connection = socket.socket(fileno=fd)
    try:
        local: SocketAddress = connection.getsockname()
        return local
    finally:
        connection.detach()


class AcceptLoop:
    """Accepts the clients of one listener until told to stop.

    `open` comes first, and then `run`.

    Attributes:
      stopped: is set once it no longer accepts.
      finished: is set once its last session has ended, too.
    """

    def __init__(self, listener: Listener[Listen], admission: Admission) -> None:
        self.stopped = trio.Event()
        self.finished = trio.Event()
        self._listener = listener
        self._admission = admission
        self._scope = trio.CancelScope()
        self._close_socket = False
        self._acceptor: ListeningWire | None = None

    def open(self) -> None:
        """Have the engine watch the socket; clients wait until `run`.

        Raises:
          StartError: it cannot.
        """
        with needed("epoll_ctl()"):
            self._acceptor = ListeningWire(
                self._admission.network.engine, self._listener.socket
            )

    def stop(self, *, close_socket: bool) -> None:
        """Accept no more; sessions go on.

        Args:
          close_socket: close the socket, because nothing else in this process accepts
            from it: left open, it would take connections that nothing accepts.
        """
        self._close_socket = self._close_socket or close_socket
        self._scope.cancel()

    async def run(self) -> None:
        """Accept, and wait for the last session."""
        listening = self._acceptor
        assert listening is not None, "it is open"
        async with trio.open_nursery() as sessions:
            try:
                if not self._scope.cancel_called:
                    with self._scope:
                        await self._accept(listening, sessions)
            finally:
                listening.close()
            if self._close_socket:
                self._listener.socket.close()
            self.stopped.set()
        # It was a driven task that ended; what goes on now may be others.
        self._admission.network.engine.woke = True
        self.finished.set()

    async def _accept(self, listening: ListeningWire, sessions: trio.Nursery) -> None:
        admission = self._admission

        def begin(fd: int, address: object) -> None:
            admission.begin(self._listener, fd, address, sessions)

        while True:
            await admission.explain(await listening.serve(begin))
