"""A worker: one trio.run with a nursery per listener, and how it leaves.

    background   the engine, expiry of relayed sessions, orders and signals
      serving    ends when the last listener has no session left
        listener   accepting, and its sessions

Leaving means: stop accepting, and wait for the sessions, those that are relayed no
longer than `worker_shutdown_timeout`. Stopping means: cancel `serving`. Sessions end
before the relay and the engine do, which they need to end.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import trio

from mailproxy.log import Logger, Logs, SessionInfo
from mailproxy.mail import session
from mailproxy.mail.listen import Listen
from mailproxy.mail.server import Server
from mailproxy.net.engine import READABLE, Acceptor, Engine, Readiness
from mailproxy.net.listening import Listener
from mailproxy.net.network import Network
from mailproxy.net.wire import Wire
from mailproxy.process import signals
from mailproxy.process.children import ALIVE, PING, QUIT, REOPEN, STOP
from mailproxy.process.configuration import Configuration
from mailproxy.process.signals import Received

CONNECTIONS_IN_A_ROW = 16
"""Connections that one listener accepts before others have their turn."""
GARBAGE_THRESHOLD = 20_000
"""Objects between two garbage collections: a session makes a few hundred, and hardly
any that only the collector can free."""

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Accepting:
    """A listener, and the end of accepting from it.

    Attributes:
      over: is set when nothing accepts from it any more.
      served: is set when its last session has ended, too.
    """

    def __init__(self, listener: Listener[Listen]) -> None:
        self.listener = listener
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self.served = trio.Event()


class Worker:
    """Serves clients until it is told to leave.

    Args:
      configuration: whose servers the clients come to.
      listeners: the sockets to accept from; they stay open.
      logs: of the configuration; open.
      orders: the worker's end of the line to the master (see `children`), None if
        there is no master.
      retitle: sets the process title.
      reconfigure: without a master, what a HUP leads to: it calls `serve_instead`.
    """

    def __init__(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
        orders: socket.socket | None = None,
        retitle: Callable[[str], None] = lambda _: None,
        reconfigure: Callable[[Worker], Awaitable[None]] | None = None,
    ) -> None:
        self._orders = orders
        self._retitle = retitle
        self._reconfigure = reconfigure
        self._serving = trio.CancelScope()
        self._shutdown = trio.CancelScope(deadline=float("inf"))
        self._told_to_leave = trio.Event()
        self._told_to_reconfigure = trio.Event()
        self._old_logs: list[Logs] = []
        self._use(configuration, listeners, logs)

    def _use(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
    ) -> None:
        self._main = configuration.main
        self._events = configuration.events
        self._logs = logs
        self._log = logs.main
        self._served: dict[int, tuple[Server, Logger]] = {
            id(listen): (server, logs.logger(server.core.error_log))
            for server in configuration.servers
            for listen in server.core.listen
        }
        self._accepting = [_Accepting(listener) for listener in listeners]

    @property
    def leaving(self) -> bool:
        """Whether it accepts nobody any more."""
        return self._told_to_leave.is_set()

    async def serve_instead(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
    ) -> None:
        """From now on accept for another configuration; sessions keep theirs.

        The logs of the configuration so far are closed when no session needs them.
        """
        replaced, old_logs = self._accepting, self._logs
        for old in replaced:
            old.scope.cancel()
        for old in replaced:
            await old.over.wait()
        self._use(configuration, listeners, logs)
        self._network.idle.clear()  # the new servers may ask somebody else
        if self.leaving:  # since a moment ago
            for new in self._accepting:
                new.scope.cancel()
        self._old_logs.append(old_logs)
        self._nursery.start_soon(self._close_logs, old_logs, replaced)
        for accepting in self._accepting:
            self._nursery.start_soon(self._serve, accepting)

    async def _close_logs(self, logs: Logs, used_by: Sequence[_Accepting]) -> None:
        """Close the logs of an old configuration after its last session."""
        for each in used_by:
            await each.served.wait()
        self._old_logs.remove(logs)
        logs.close()

    def run(self) -> int:
        """Serve; returns the exit code."""
        gc.set_threshold(GARBAGE_THRESHOLD)
        gc.freeze()
        trio.run(self.serve)
        self._log.notice("exit")
        return 0

    async def serve(self) -> None:
        """What `run` runs: from accepting to the end of the last session."""
        # nginx counts the line to the master as a connection, too; signals are ours.
        engine = Engine(self._events.worker_connections + 1)
        trio.lowlevel.add_instrument(engine)
        self._network = Network(engine)
        async with trio.open_nursery() as background:
            background.start_soon(engine.run)
            background.start_soon(self._network.relay.expire)
            background.start_soon(self._network.idle.expire)
            background.start_soon(self._end_relayed_sessions)
            background.start_soon(self._take_signals)
            if self._reconfigure is not None:
                background.start_soon(self._reload_when_told, self._reconfigure)
            if self._orders is not None:
                background.start_soon(self._take_orders, self._orders)
            with self._serving:
                async with trio.open_nursery() as self._nursery:
                    for accepting in self._accepting:
                        self._nursery.start_soon(self._serve, accepting)
                    # Without a listener, too, it stays until it is told to leave.
                    await self._told_to_leave.wait()
            self._log.notice("exiting")
            background.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(engine)
        self._network.close()
        engine.close()

    async def _serve(self, accepting: _Accepting) -> None:
        """Accept clients of one listener until told to leave; wait for the last one."""
        async with trio.open_nursery() as sessions:
            with accepting.scope:
                await self._accept(accepting.listener, sessions)
            if self.leaving:
                # A socket that only we still have would keep clients waiting.
                accepting.listener.socket.close()
            accepting.over.set()
        accepting.served.set()

    async def _accept(self, listener: Listener[Listen], sessions: trio.Nursery) -> None:
        acceptor = Acceptor(self._network.engine, listener.socket)
        in_a_row = 0
        try:
            while True:
                try:
                    connection, address = await acceptor.accept()
                except OSError as error:
                    await self._explain(error)
                    continue
                self._begin(listener, connection, address, sessions)
                in_a_row += 1
                if in_a_row == CONNECTIONS_IN_A_ROW:
                    in_a_row = 0
                    await trio.lowlevel.checkpoint()
        finally:
            acceptor.close()

    async def _explain(self, error: OSError) -> None:
        """Log what accept() says, and pause where trying again would not help."""
        if error.errno in _NO_DESCRIPTORS:
            self._log.crit("accept4() failed", error=error)
            await trio.sleep(self._events.accept_mutex_delay)
        elif error.errno == errno.ECONNABORTED:
            self._log.error("accept4() failed", error=error)
        else:
            self._log.alert("accept4() failed", error=error)
            await trio.sleep(self._events.accept_mutex_delay)

    def _begin(
        self,
        listener: Listener[Listen],
        connection: socket.socket,
        address: object,
        sessions: trio.Nursery,
    ) -> None:
        """Start the session of a new connection."""
        network = self._network
        if not network.make_room():
            connection.close()
            self._log.alert(
                "%s worker_connections are not enough", self._events.worker_connections
            )
            return
        listen = listener.listen
        if listener.specific:
            listen = listener.choose(connection.getsockname())
        server, log = self._served[id(listen)]
        info = SessionInfo(
            network.next_number(),
            "unix:",
            server=listen.address,
            tags=server.core.error_log_user_tag,
            protocol=server.protocol.name,
            accepted=trio.current_time(),
        )
        if isinstance(address, tuple):
            info.client, info.client_port = address[:2]
        info.peer = info.client_address
        if self._events.debug_connection and self._is_debugged(info.client):
            log = log.at_debug()
        try:
            wire = Wire(network.engine, connection)
        except OSError as error:
            connection.close()
            self._log.alert("epoll_ctl() failed", error=error)
            return
        sessions.start_soon(session.run, wire, server, listen, network, log, info)

    def _is_debugged(self, client: str) -> bool:
        networks = self._events.debug_connection
        if client == "unix:":
            return client in networks
        address = ip_address(client)
        return any(not isinstance(each, str) and address in each for each in networks)

    async def _take_orders(self, orders: socket.socket) -> None:
        """Do what the master says; without a master, leave."""
        readiness = Readiness(self._network.engine)
        self._network.engine.register(orders.fileno(), readiness.ready)
        while True:
            try:
                order = orders.recv(16)
            except BlockingIOError:
                await readiness.wait(READABLE)
                continue
            except OSError:
                order = b""
            if order == STOP:
                self._stop()
            elif order == QUIT:
                self._leave()
            elif order == REOPEN:
                self._reopen()
            elif order == PING:
                with contextlib.suppress(OSError):  # the master is gone meanwhile
                    orders.send(ALIVE)
            elif not order:
                # As in nginx, workers outlive a master that was killed.
                return

    async def _take_signals(self) -> None:
        """Do what signals say that somebody sent to this very process."""
        descriptor = signals.Descriptor()
        readiness = Readiness(self._network.engine)
        self._network.engine.register(
            descriptor.fileno(), readiness.ready, listening=True
        )
        try:
            while True:
                arrived = descriptor.read()
                if not arrived:
                    await readiness.wait(READABLE)
                for received in arrived:
                    self._take(received)
        finally:
            self._network.engine.unregister(descriptor.fileno())
            descriptor.close()

    async def _reload_when_told(
        self, reconfigure: Callable[[Worker], Awaitable[None]]
    ) -> None:
        """Reload, and once more if a signal has asked for it meanwhile."""
        while True:
            await self._told_to_reconfigure.wait()
            self._told_to_reconfigure = trio.Event()
            if not self.leaving:
                await reconfigure(self)

    def _take(self, received: Received) -> None:
        match received.number.name:
            case "SIGTERM" | "SIGINT":
                self._log.notice(received.text("exiting"))
                self._stop()
            case "SIGQUIT":
                self._log.notice(received.text("shutting down"))
                self._leave()
            case "SIGWINCH" if self._main.daemon:
                self._log.notice(received.text("shutting down"))
                self._leave()
            case "SIGUSR1":
                self._log.notice(received.text("reopening logs"))
                self._reopen()
            case "SIGWINCH":
                self._log.notice(received.text())
            case "SIGHUP" if self._reconfigure is not None:
                self._log.notice(received.text("reconfiguring"))
                self._told_to_reconfigure.set()
            case "SIGHUP" | "SIGUSR2":
                self._log.notice(received.text("ignoring"))
            case _:
                pass  # SIGCHLD, SIGIO: the master's business

    def _stop(self) -> None:
        """Close everything at once."""
        self._serving.cancel()

    def _leave(self) -> None:
        """Stop accepting; go when the last session is over."""
        if self.leaving:
            return
        self._log.notice("gracefully shutting down")
        self._retitle("worker process is shutting down")
        for accepting in self._accepting:
            accepting.scope.cancel()
        self._told_to_leave.set()
        self._network.idle.stop_keeping()
        if self._main.worker_shutdown_timeout:
            self._shutdown.deadline = (
                trio.current_time() + self._main.worker_shutdown_timeout
            )

    async def _end_relayed_sessions(self) -> None:
        """End what is relayed still, `worker_shutdown_timeout` after leaving began."""
        with self._shutdown:
            await trio.sleep_forever()
        self._network.relay.shutdown()

    def _reopen(self) -> None:
        self._log.notice("reopening logs")
        for logs in (*self._old_logs, self._logs):
            logs.reopen()
        self._logs.redirect_stderr()
