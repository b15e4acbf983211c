"""A worker: one trio.run with services, a nursery per listener, and how it leaves.

    services     the engine, expiry of relayed sessions, orders and signals …
      serving    ends when the last listener has no session left
        listener   accepting, and its sessions (see `accepting`)

To leave is to stop accepting and wait for the sessions, but not longer than
`worker_shutdown_timeout` for relayed ones. To stop is to cancel `serving`. Sessions end
before the relay and the engine, which they need in order to end.
"""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import trio

from mailproxy.errors import StartError, needed
from mailproxy.log import Logger, Logs
from mailproxy.mail.listen import Listen
from mailproxy.net.engine import Engine
from mailproxy.net.listening import Listener
from mailproxy.net.network import Network
from mailproxy.process import services
from mailproxy.process.accepting import AcceptLoop, Admission
from mailproxy.process.configuration import Configuration
from mailproxy.process.services import Service
from mailproxy.process.settings import MainSettings
from mailproxy.stats.mapping import Row

GARBAGE_THRESHOLD = 20_000
"""Objects between two garbage collections: a session makes a few hundred, and hardly
any that only the collector can free."""


class Worker:
    """Serves clients until it is told to leave.

    Args:
      configuration: has the servers that clients connect to.
      listeners: the sockets to accept from; they stay open.
      logs: the open logs of the configuration.
      hosted: the services to run (see `worker_services`).
      retitle: sets the process title.
      row: its row in the statistics; None: it counts for itself.
      manager: its end of the line to the manager process; None: there is none.
      secrets: what was read from files of secrets, by path.

    Attributes:
      network: what its sessions need to reach clients, backends and auth sources.
      configuration: the one that it accepts for.
      replaced: is set once that has another one in its place.
      told_to_leave: is set once it no longer accepts clients.
    """

    def __init__(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
        hosted: Sequence[Service],
        retitle: Callable[[str], None] = lambda _: None,
        row: Row | None = None,
        manager: socket.socket | None = None,
        secrets: Mapping[str, bytes] | None = None,
    ) -> None:
        self.network = Network(Engine(configuration.events.worker_connections), row)
        self.network.manager.connect(manager, lambda: self.log)
        self.told_to_leave = trio.Event()
        self.replaced = trio.Event()
        self._services = hosted
        self._retitle = retitle
        self._serving = trio.CancelScope()
        self._exit_code = 0
        self._begun = False
        self._old_logs: list[Logs] = []
        self.network.secrets.update(secrets or {})
        self._use(configuration, listeners, logs)

    def _use(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
    ) -> None:
        self.configuration = configuration
        self._main = configuration.main
        self._logs = logs
        configuration.upstreams.count_in(self.network.row)
        engine = self.network.engine
        configuration.upstreams.manage(self.network.manager, lambda: engine.time())
        admission = Admission(configuration, logs, self.network)
        self._loops = [AcceptLoop(listener, admission) for listener in listeners]

    @property
    def log(self) -> Logger:
        """The log of the configuration that it accepts for."""
        return self._logs.main

    @property
    def main(self) -> MainSettings:
        """Settings of that configuration."""
        return self._main

    @property
    def leaving(self) -> bool:
        """Whether it has stopped accepting clients."""
        return self.told_to_leave.is_set()

    # Life

    def run(self) -> int:
        """Serve; returns the exit code, which is that of the process.

        Raises:
          StartError: something is missing before it could begin.
        """
        gc.set_threshold(GARBAGE_THRESHOLD)
        gc.freeze()
        try:
            code = trio.run(self.serve, clock=self.network.engine.clock)
        except OSError as error:
            if self._begun:
                raise
            raise StartError("trio.run()", error) from error
        self.log.notice("exit")
        return code

    async def serve(self) -> int:
        """Serve in trio's loop, from accepting to the end of the last session.

        All that may fail for lack of descriptors or memory is opened first: services
        answer the master, who then counts on this worker.

        Returns the exit code: 0, or 1 if a vital service failed.

        Raises:
          StartError: something cannot be opened, or nothing is left for a session.
        """
        self._begun = True
        with self._connected(), services.opened(self._services, self):
            for loop in self._loops:
                loop.open()
            _see_room()
            async with services.running(self._services, self):
                with self._serving:
                    async with trio.open_nursery() as self._nursery:
                        for loop in self._loops:
                            self._nursery.start_soon(loop.run)
                        # Even without a listener it stays until it is told to leave.
                        await self.told_to_leave.wait()
                self.log.notice("exiting")
        return self._exit_code

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.network.close()
            self.network.engine.close()

    # What it is told

    def stop(self) -> None:
        """Close everything at once."""
        self._serving.cancel()

    def fail(self) -> None:
        """Close everything at once, because a vital service failed."""
        self._exit_code = 1
        self.stop()

    def leave(self) -> None:
        """Stop accepting, and exit when the last session is over."""
        if self.leaving:
            return
        self.log.notice("gracefully shutting down")
        self._retitle("worker process is shutting down")
        for loop in self._loops:
            loop.stop(close_socket=True)
        self.told_to_leave.set()
        self.network.idle.stop_keeping()

    def reopen_logs(self) -> None:
        """Open the log files again, those of former configurations among them."""
        self.log.notice("reopening logs")
        for logs in (*self._old_logs, self._logs):
            logs.reopen()
        self._logs.redirect_stderr()

    # Another configuration

    async def serve_instead(
        self,
        configuration: Configuration,
        listeners: Sequence[Listener[Listen]],
        logs: Logs,
        secrets: Mapping[str, bytes] | None = None,
    ) -> None:
        """Accept for another configuration from now on; sessions keep theirs.

        The logs of the old configuration are closed once no session needs them.
        """
        replaced, old_logs = self._loops, self._logs
        for old in replaced:
            old.stop(close_socket=False)
        for old in replaced:
            await old.stopped.wait()
        self.network.secrets.update(secrets or {})
        self._use(configuration, listeners, logs)
        self.replaced.set()
        self.replaced = trio.Event()
        self.network.idle.clear()  # the new servers may ask another auth server
        if self.leaving:  # since a moment ago
            for new in self._loops:
                new.stop(close_socket=True)
        self._old_logs.append(old_logs)
        self._nursery.start_soon(self._close_logs, old_logs, replaced)
        for loop in self._loops:
            loop.open()
            self._nursery.start_soon(loop.run)

    async def _close_logs(self, logs: Logs, used_by: Sequence[AcceptLoop]) -> None:
        """Close the logs of an old configuration after its last session."""
        for loop in used_by:
            await loop.finished.wait()
        self._old_logs.remove(logs)
        logs.close()


def _see_room() -> None:
    """See that there are descriptors for one session: a client and its server.

    Raises:
      StartError: there are not; the worker could never serve anybody.
    """
    with ExitStack() as stack, needed("socket()"):
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX))
