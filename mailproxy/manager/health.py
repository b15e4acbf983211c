"""Health checks: when which peer is probed, and what comes of it.

A peer may have several checks. It is unhealthy while one of them fails; and `checking`,
which also means that it gets no sessions, until each mandatory one has passed once. One
peer is probed by one check at a time, and all peers together by no more than
`MAX_PROBES`: others wait for their turn.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from mailproxy.log import Logger
    from mailproxy.mail.peer_states import Health
    from mailproxy.mail.probing import Schedule
    from mailproxy.manager.probes.peer import Failure

MAX_PROBES = 32
"""Probes at a time."""


class PeerKey(NamedTuple):
    """Which peer."""

    upstream: str
    """The name of its group."""
    name: str
    """Its name there; no other peer of the group has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One way to probe a peer."""

    schedule: Schedule
    probe: Callable[[], Awaitable[Failure | None]]
    """Probes it once, within a time of its own; returns why the peer is not healthy."""
    mandatory: bool = False
    """Whether the peer is `checking` until the first probe has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedPeer:
    """A peer, and how it is probed."""

    key: PeerKey
    address: str
    """For the log."""
    checks: tuple[Check, ...]
    health: Health = "healthy"
    """What was known of it before."""


Changed = Callable[[PeerKey, "Health"], None]


class HealthChecks:
    """Probes peers, and tells what changes.

    Args:
      changed: called when the health of a peer changes, not for the first one.
      chance: a number from 0 to 1, for `jitter`.
    """

    def __init__(
        self,
        log: Logger,
        changed: Changed,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._changed = changed
        self._chance = chance
        self._slots = trio.Semaphore(MAX_PROBES)
        self._watches: dict[PeerKey, _Watch] = {}
        self._nursery: trio.Nursery | None = None

    def health(self, key: PeerKey) -> Health:
        """What is known of a peer; one that is not watched is healthy."""
        watch = self._watches.get(key)
        return "healthy" if watch is None else watch.health

    def watch(self, peers: Iterable[WatchedPeer]) -> None:
        """Watch these peers from now on, and no others.

        One that was watched before, in the same way, goes on as it was.
        """
        before, self._watches = self._watches, {}
        for peer in peers:
            known = before.get(peer.key)
            if known is not None and known.peer.address == peer.address:
                self._watches[peer.key] = before.pop(peer.key)
                continue
            self._watches[peer.key] = watch = _Watch(peer)
            if self._nursery is not None:
                self._begin(watch, self._nursery)
        for gone in before.values():
            gone.scope.cancel()

    async def run(self) -> None:
        """Probe the peers until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for watch in self._watches.values():
                    self._begin(watch, self._nursery)
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _begin(self, watch: _Watch, nursery: trio.Nursery) -> None:
        watch.scope = trio.CancelScope()
        nursery.start_soon(self._keep_watching, watch)

    async def _keep_watching(self, watch: _Watch) -> None:
        with watch.scope:
            async with trio.open_nursery() as nursery:
                for progress in watch.progress:
                    nursery.start_soon(self._repeat, watch, progress)

    async def _repeat(self, watch: _Watch, progress: _Progress) -> None:
        schedule = progress.check.schedule
        while True:
            async with watch.lock, self._slots:
                failure = await progress.check.probe()
            self._take(watch, progress, failure)
            await trio.sleep(schedule.interval + schedule.jitter * self._chance())

    def _take(
        self, watch: _Watch, progress: _Progress, failure: Failure | None
    ) -> None:
        """Note what came of a probe."""
        if failure is not None and failure.local:
            self._say_local(watch, progress, failure)
            return
        before, told = watch.health, progress.failure
        progress.take(failure)
        health = watch.health
        peer = watch.peer
        where = peer.address, peer.key.upstream
        if health == before:
            if failure is not None and failure != told:
                event = (
                    f'health check of peer %s of upstream "%s" failed: {failure.event}'
                )
                self._log.info(event, *where, *failure.values)
            return
        if health == "unhealthy":
            assert failure is not None, "a probe has failed just now"
            event = f'peer %s of upstream "%s" is unhealthy: {failure.event}'
            self._log.warn(event, *where, *failure.values)
        elif health == "healthy":
            self._log.notice('peer %s of upstream "%s" is healthy', *where)
        self._changed(peer.key, health)

    def _say_local(self, watch: _Watch, progress: _Progress, failure: Failure) -> None:
        """Log once that this machine is at fault, which says nothing of the peer."""
        if failure != progress.fault:
            progress.fault = failure
            event = f'health check of peer %s of upstream "%s" failed: {failure.event}'
            where = watch.peer.address, watch.peer.key.upstream
            self._log.crit(event, *where, *failure.values)


class _Progress:
    """How one check of one peer has gone.

    Attributes:
      failure: why the last probe failed; None if it passed.
      fault: why this machine could not probe it the last time; None if it could.
      health: what the check says.
    """

    def __init__(self, check: Check, health: Health) -> None:
        self.check = check
        self.failure: Failure | None = None
        self.fault: Failure | None = None
        self.health: Health = health
        if health == "checking" and not check.mandatory:
            self.health = "healthy"
        self._row = 0

    def take(self, failure: Failure | None) -> None:
        """Note a probe that failed, or passed."""
        passed, was = failure is None, self.failure is None
        self._row = self._row + 1 if passed == was else 1
        self.failure, self.fault = failure, None
        schedule = self.check.schedule
        if passed and self._row >= schedule.passes:
            self.health = "healthy"
        elif not passed and self._row >= schedule.fails:
            self.health = "unhealthy"


class _Watch:
    """A peer while it is watched.

    Attributes:
      lock: whose turn it is to probe.
      scope: ends the watch.
    """

    def __init__(self, peer: WatchedPeer) -> None:
        self.peer = peer
        self.progress = [_Progress(check, peer.health) for check in peer.checks]
        self.lock = trio.Lock()
        self.scope = trio.CancelScope()

    @property
    def health(self) -> Health:
        """What all checks together say."""
        found = {progress.health for progress in self.progress}
        if "unhealthy" in found:
            return "unhealthy"
        return "checking" if "checking" in found else "healthy"
