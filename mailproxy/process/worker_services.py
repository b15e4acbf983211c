"""The services of workers: a class for each, and the lists of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from mailproxy.errors import needed
from mailproxy.net.messages import MAX_FRAME, Complaints, MessageError
from mailproxy.net.watched import PacketWire, Watched
from mailproxy.process import certificate_orders
from mailproxy.process.messages import Order, read_order, write_order
from mailproxy.process.renewal import Renewal
from mailproxy.process.services import Service
from mailproxy.process.signals import Received, SignalDescriptor

if TYPE_CHECKING:
    from mailproxy.process.worker import Worker

MAX_DESCRIPTORS = 1
"""Descriptors that come with an order of the master."""

Reconfigure = Callable[["Worker"], Awaitable[None]]
"""Reloads without a master, at a HUP; calls `Worker.serve_instead`."""


def of_worker(orders: socket.socket) -> list[Service]:
    """The services of a worker that a master has started.

    Args:
      orders: the worker's end of the line to the master (see `children`).
    """
    return [*_of_any(), ManagerConnection(), Signals(), Orders(orders)]


def of_single_process(reconfigure: Reconfigure) -> list[Service]:
    """The services of a worker without a master (`master_process off`)."""
    reloads = Reloads(reconfigure)
    return [*_of_any(), Signals(reloads), reloads, Certificates()]


def _of_any() -> list[Service]:
    return [EngineRounds(), RelayTimeouts(), IdleTimeouts(), ShutdownTimeout()]


class EngineRounds(Service):
    """Waits for all sockets; without it no session can go on."""

    name = "engine"
    vital = True

    async def run(self, worker: Worker) -> None:
        await worker.network.engine.run()


class RelayTimeouts(Service):
    """Ends sessions without traffic for `proxy_timeout`."""

    name = "relay timeouts"

    async def run(self, worker: Worker) -> None:
        await worker.network.relay.expire()


class IdleTimeouts(Service):
    """Closes connections to auth servers that have not been used for a while."""

    name = "idle connections"

    async def run(self, worker: Worker) -> None:
        await worker.network.idle.expire()


class ShutdownTimeout(Service):
    """Ends relayed sessions `worker_shutdown_timeout` after the worker began to leave."""

    name = "shutdown timeout"

    async def run(self, worker: Worker) -> None:
        await worker.told_to_leave.wait()
        timeout = worker.main.worker_shutdown_timeout
        if timeout:
            await trio.sleep(timeout)
            worker.network.relay.shutdown()


class ManagerConnection(Service):
    """Has the line to the manager process open, if there is one; the engine drives it."""

    name = "line to the manager"
    vital = True

    @contextmanager
    def opened(self, worker: Worker) -> Iterator[None]:
        with needed("epoll_ctl()"):
            worker.network.manager.open()
        with closing(worker.network.manager):
            yield

    async def run(self, worker: Worker) -> None:
        """Nothing is left to do."""


class Reloads(Service):
    """Reloads on request, and once more if it was requested again meanwhile."""

    name = "reload"

    def __init__(self, reconfigure: Reconfigure) -> None:
        self._reconfigure = reconfigure
        self._wanted = trio.Event()

    def request(self) -> None:
        """Ask for a reload."""
        self._wanted.set()

    async def run(self, worker: Worker) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if not worker.leaving:
                await self._reconfigure(worker)


class Orders(Service):
    """Obeys the master's orders.

    Args:
      line: the non-blocking line to the master; it stays open.
    """

    name = "orders"
    vital = True

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._wire: PacketWire | None = None
        self._complaints = Complaints(trio.current_time)

    @contextmanager
    def opened(self, worker: Worker) -> Iterator[None]:
        with needed("epoll_ctl()"):
            wire = PacketWire(worker.network.engine, self._line)
        with closing(wire):
            self._wire = wire
            yield

    async def run(self, worker: Worker) -> None:
        wire = self._wire
        assert wire is not None, "it is open"
        while True:
            frame, descriptors = await self._receive(wire)
            try:
                if frame is None:
                    return
                order, message = read_order(frame)
                self._obey(order, message.request, worker, wire, descriptors)
            except MessageError:
                if self._complaints.is_due():
                    worker.log.alert("the master sent an invalid message")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    async def _receive(self, wire: PacketWire) -> tuple[bytes | None, list[int]]:
        """Return the next frame, and the descriptors with it.

        The frame is None if the master is gone, which workers outlive.
        """
        try:
            return await wire.receive_with_descriptors(MAX_FRAME + 1, MAX_DESCRIPTORS)
        except OSError:
            return None, []

    def _obey(
        self,
        order: Order,
        request: int,
        worker: Worker,
        wire: PacketWire,
        descriptors: Sequence[int],
    ) -> None:
        match order:
            case Order.STOP:
                worker.stop()
            case Order.QUIT:
                worker.leave()
            case Order.REOPEN:
                worker.reopen_logs()
            case Order.PING:
                with suppress(OSError):  # the master is gone meanwhile
                    wire.send(write_order(Order.ALIVE, request))
            case Order.UNMANAGED:
                worker.network.manager.lost()
            case Order.CERTIFICATES if len(descriptors) == 1:
                taken = _take_certificates(worker, descriptors[0])
                answer = Order.CERTIFICATES_OK if taken else Order.CERTIFICATES_FAILED
                with suppress(OSError):
                    wire.send(write_order(answer, request))
            case _:
                raise MessageError("not an order for a worker")


def _take_certificates(worker: Worker, sheet: int) -> bool:
    """Use new certificates; False, and a log line, if that is not possible."""
    try:
        change = certificate_orders.read_sheet(sheet)
        certificate_orders.apply(change, worker.configuration, datetime.now(UTC))
    except Exception as error:  # a bug must not end the sessions
        worker.log.exception(
            "new certificates cannot be used, this is a bug", exception=error
        )
        return False
    return True


class Certificates(Service):
    """Renews certificates, and says when they expire, in a process without a master."""

    name = "certificates"

    async def run(self, worker: Worker) -> None:
        while True:
            replaced = worker.replaced
            renewal = Renewal(
                worker.configuration,
                worker.log,
                lambda _: None,
                clock=trio.current_time,
            )
            while not replaced.is_set():
                with trio.move_on_after(renewal.until_next()):
                    await replaced.wait()
                if not replaced.is_set():
                    renewal.catch_up()


class Signals(Service):
    """Obeys signals that were sent to this very process.

    Args:
      reloads: obeys HUP; None with a master, whose workers ignore that signal.
    """

    name = "signals"
    vital = True

    def __init__(self, reloads: Reloads | None = None) -> None:
        self._reloads = reloads
        self._source: tuple[SignalDescriptor, Watched] | None = None

    @contextmanager
    def opened(self, worker: Worker) -> Iterator[None]:
        with needed("signalfd()"):
            descriptor = SignalDescriptor()
        with closing(descriptor):
            with needed("epoll_ctl()"):
                watched = Watched(worker.network.engine, descriptor.fileno())
            with closing(watched):
                self._source = descriptor, watched
                yield

    async def run(self, worker: Worker) -> None:
        assert self._source is not None, "it is open"
        descriptor, watched = self._source
        while True:
            arrived = descriptor.read()
            if not arrived:
                await watched.wait_readable()
            for received in arrived:
                self._take(received, worker)

    def _take(self, received: Received, worker: Worker) -> None:
        log = worker.log
        match received.number.name:
            case "SIGTERM" | "SIGINT":
                log.notice(received.text("exiting"))
                worker.stop()
            case "SIGQUIT":
                log.notice(received.text("shutting down"))
                worker.leave()
            case "SIGWINCH" if worker.main.daemon:
                log.notice(received.text("shutting down"))
                worker.leave()
            case "SIGUSR1":
                log.notice(received.text("reopening logs"))
                worker.reopen_logs()
            case "SIGWINCH":
                log.notice(received.text())
            case "SIGHUP" if self._reloads is not None:
                log.notice(received.text("reconfiguring"))
                self._reloads.request()
            case "SIGHUP" | "SIGUSR2":
                log.notice(received.text("ignoring"))
            case _:
                pass  # SIGCHLD, SIGIO: the master's business
