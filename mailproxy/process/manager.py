"""A manager, from its birth to its end: one trio.run with its services and lines.

It obeys the orders of the master, and says that it is alive once its services are made.
It outlives its master, as workers do, and then leaves with the last of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress

import trio

from mailproxy.log import Logger, Logs
from mailproxy.manager.groups import GroupService
from mailproxy.manager.health_service import HealthService
from mailproxy.manager.hub import Hub
from mailproxy.manager.probes.talk import ProbeLogin
from mailproxy.manager.resolve import ResolveService
from mailproxy.manager.services import ManagerService
from mailproxy.net.messages import MAX_FRAME, Complaints, MessageError
from mailproxy.process.managers import ManagerPlace, WorkerLine
from mailproxy.process.messages import Order, read_order, write_order
from mailproxy.process.secret_files import SecretError
from mailproxy.process.signals import Received, SignalDescriptor
from mailproxy.stats.mapping import Row

MAX_PREPARATION = 5.0
"""Seconds that a manager waits for what its services want to know before it says that it
is alive: workers begin with that. The master would wait three times as long."""
MAX_DESCRIPTORS = 256
"""Descriptors that come with one order."""


def run(
    place: ManagerPlace,
    logs: Logs,
    orders: socket.socket,
    secrets: Mapping[str, bytes],
) -> int:
    """Run as a manager until told to end; returns the exit code.

    Args:
      secrets: what was read from files of secrets, by path.

    Raises:
      SecretError: one of them is not what it has to be.
    """
    services = services_of(place, secrets)
    manager = Manager(logs, place.row, services, orders, place.lines)
    trio.run(manager.serve)
    logs.main.notice("exit")
    return 0


def services_of(
    place: ManagerPlace, secrets: Mapping[str, bytes]
) -> list[ManagerService]:
    """Make what the configuration needs a manager for; see `run`."""
    configuration = place.generation.configuration
    groups = [
        live.group
        for live in configuration.upstreams.groups.values()
        if live.group.is_managed
    ]
    if not groups:
        return []
    service = GroupService(groups, place.row)
    services: list[ManagerService] = [service]
    if configuration.resolvers:
        # Before health checks, which look at the peers that there are.
        services.append(ResolveService(service, configuration.resolvers, place.row))
    checks = configuration.group_checks
    if not checks:
        return services
    logins = {path: _read_login(path, secret) for path, secret in secrets.items()}
    # Lines come from a manager that was there before, in the same generation.
    replaces = bool(place.lines)
    return [*services, HealthService(service, checks, logins, replaces=replaces)]


def _read_login(path: str, secret: bytes) -> ProbeLogin:
    """Read a `login_file`.

    Raises:
      SecretError: there is no login in it.
    """
    user, colon, password = secret.partition(b":")
    if not (user and colon and password):
        raise SecretError(f'there is no user:password in the first line of "{path}"')
    return ProbeLogin(user, password)


class Manager:
    """Hosts services for the workers of a generation.

    Args:
      orders: the line to the master, non-blocking.
      lines: those to living workers, from another manager.
    """

    def __init__(
        self,
        logs: Logs,
        row: Row,
        services: Sequence[ManagerService],
        orders: socket.socket,
        lines: Sequence[WorkerLine] = (),
    ) -> None:
        self._logs = logs
        self._orders = orders
        self._lines = lines
        self._is_prepared = False
        self._pings: list[int] = []
        self._complaints = Complaints(trio.current_time)
        self.hub = Hub(logs.main, row, services)

    @property
    def _log(self) -> Logger:
        return self._logs.main

    async def serve(self) -> None:
        """Work until told to end."""
        with closing(SignalDescriptor()) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.hub.begin(nursery)
                for line in self._lines:
                    self.hub.join(line.row, line.pid, line.socket, inherited=True)
                nursery.start_soon(self._take_signals, signals)
                nursery.start_soon(self._prepare)
                await self._obey_orders()
                await self.hub.wait_deserted()
                self._end()

    async def _prepare(self) -> None:
        """Say that it is alive once services are ready, or have had enough time."""
        with trio.move_on_after(MAX_PREPARATION):
            for service in self.hub.services:
                await service.wait_ready()
        self._is_prepared = True
        while self._pings:
            self._answer(self._pings.pop())

    def _answer(self, request: int) -> None:
        with suppress(OSError):  # the master is gone meanwhile
            self._orders.send(write_order(Order.ALIVE, request))

    def _end(self) -> None:
        self._log.notice("exiting")
        self._nursery.cancel_scope.cancel()

    # Orders

    async def _obey_orders(self) -> None:
        """Obey the master until it has gone."""
        while True:
            try:
                frame, descriptors, _, _ = socket.recv_fds(
                    self._orders, MAX_FRAME + 1, MAX_DESCRIPTORS
                )
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._orders)
                continue
            except OSError:
                return
            if not frame:  # the master sends no empty messages
                return
            self._hear(frame, descriptors)
            await trio.lowlevel.checkpoint()

    def _hear(self, frame: bytes, descriptors: list[int]) -> None:
        try:
            order, message = read_order(frame)
            self._obey(order, message.request, message.body, descriptors)
        except MessageError:
            if self._complaints.is_due():
                self._log.alert("the master sent an invalid message")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _obey(
        self,
        order: Order,
        request: int,
        body: Mapping[str, object],
        descriptors: list[int],
    ) -> None:
        match order:
            case Order.STOP | Order.QUIT:
                self._end()
            case Order.REOPEN:
                self._reopen_logs(body, descriptors)
            case Order.PING if self._is_prepared:
                self._answer(request)
            case Order.PING:
                self._pings.append(request)
            case Order.WORKER:
                self._join(body, descriptors)
            case Order.ALIVE | Order.UNMANAGED:
                raise MessageError("not an order for a manager")

    def _reopen_logs(self, body: Mapping[str, object], descriptors: list[int]) -> None:
        """Write to what the master has opened, or open the files by name."""
        self._log.notice("reopening logs")
        names = body.get("files", [])
        if not isinstance(names, list) or len(names) != len(descriptors):
            raise MessageError("not a descriptor for each file")
        for name, descriptor in zip(names, descriptors, strict=True):
            self._logs.adopt(str(name), os.dup(descriptor))
        if not names:
            self._logs.reopen()
        self._logs.redirect_stderr()

    def _join(self, body: Mapping[str, object], descriptors: list[int]) -> None:
        row, pid = body.get("row"), body.get("pid")
        if (
            not isinstance(row, int)
            or not isinstance(pid, int)
            or len(descriptors) != 1
        ):
            raise MessageError("not a line to a worker")
        line = socket.socket(fileno=os.dup(descriptors[0]))
        line.setblocking(False)
        self.hub.join(row, pid, line, inherited=False)

    # Signals

    async def _take_signals(self, signals: SignalDescriptor) -> None:
        while True:
            await trio.lowlevel.wait_readable(signals.fileno())
            for received in signals.read():
                self._take(received)

    def _take(self, received: Received) -> None:
        match received.number.name:
            case "SIGTERM" | "SIGINT" | "SIGQUIT":
                self._log.notice(received.text("exiting"))
                self._end()
            case "SIGUSR1":
                self._log.notice(received.text("reopening logs"))
                self._reopen_logs({}, [])
            case "SIGHUP" | "SIGUSR2" | "SIGWINCH":
                self._log.notice(received.text("ignoring"))
            case _:
                pass  # SIGCHLD, SIGIO: the master's business
