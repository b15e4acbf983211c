"""Health checks of the groups that have some, for all workers.

A manager begins with what the board says: what was unhealthy has to pass its probes
first. With `mandatory`, the first manager of a configuration begins with nothing at all,
or (`persistent`) only where there was nothing. One that replaces another manager of the same
configuration goes on as that has ended.

After a reload, the manager of the old configuration stays for the sessions that its workers
have. They choose no backends any more, so it probes none: else the backends would be probed
by as many managers as there are configurations with sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from mailproxy.conf.addresses import Address
from mailproxy.conf.values import lower
from mailproxy.mail.backend_tls import expected_name
from mailproxy.mail.peer_states import PeerState
from mailproxy.manager.health import Check, HealthChecks, PeerKey, WatchedPeer
from mailproxy.manager.probes.probe import Probe
from mailproxy.manager.probes.probe import run as run_probe
from mailproxy.manager.probes.tls import ProbeTls
from mailproxy.manager.services import ManagerService

if TYPE_CHECKING:
    from mailproxy.mail.peer_states import Health
    from mailproxy.mail.probing import GroupCheck
    from mailproxy.manager.groups import GroupService
    from mailproxy.manager.hub import Hub
    from mailproxy.manager.peers import ManagedGroup, ManagedPeer
    from mailproxy.manager.probes.peer import Failure
    from mailproxy.manager.probes.talk import ProbeLogin
    from mailproxy.stats.mapping import Row


FRONT_PAUSE = 1.0
"""Seconds between two looks at whether this is still the manager that counts."""


class HealthService(ManagerService):
    """See the module.

    Args:
      checks: of the groups that have some, by name in lower case.
      logins: those of `login_file`, by path. Nobody is probed with one that is missing.
      replaces: whether another manager of the same configuration was there before.
    """

    name = "health checks"

    def __init__(
        self,
        groups: GroupService,
        checks: Mapping[str, Sequence[GroupCheck]],
        logins: Mapping[str, ProbeLogin],
        *,
        replaces: bool,
    ) -> None:
        super().__init__()
        self._groups = groups
        self._logins = logins
        self._probes = {
            name: possible
            for name, found in checks.items()
            if (possible := [each for each in found if self._can_log_in(each)])
        }
        self._checks: HealthChecks | None = None
        self._had_turn = replaces
        """Whether it has counted before, or another manager of its configuration has."""
        self._known = self._peers()
        for name, found in self._probes.items():
            for peer in groups.groups[name].peers:
                peer.health = _first_health(peer, found, replaces=replaces)
        groups.followers.append(self._follow)

    def _can_log_in(self, check: GroupCheck) -> bool:
        file = check.check.login_file
        return file is None or file.path in self._logins

    async def run(self, hub: Hub) -> None:
        """Probe the peers until cancelled, while the configuration is in use."""
        if self._checks is None:
            self._checks = HealthChecks(hub.log, self._take)
            self._watch(self._checks)
        while True:
            await self._wait_until(hub.row, replaced=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._checks.run)
                await self._wait_until(hub.row, replaced=True)
                nursery.cancel_scope.cancel()
            hub.log.notice("health checks end, there is a new configuration")

    async def _wait_until(self, row: Row, *, replaced: bool) -> None:
        # Nobody is told when a number in shared memory changes.
        while self._is_replaced(row) != replaced:  # noqa: ASYNC110
            await trio.sleep(FRONT_PAUSE)

    def _is_replaced(self, row: Row) -> bool:
        """Whether the manager of another configuration counts now.

        One that has just started does not count yet, and has to probe all the same.

        Args:
          row: that of this manager.
        """
        if row.is_front:
            self._had_turn = True
        return row.is_shared and self._had_turn and not row.is_front

    def _take(self, key: PeerKey, health: Health) -> None:
        """Tell the workers what has come of a probe."""
        managed = self._groups.groups[lower(key.upstream)]
        managed.peer(key.name).health = health
        self._groups.tell(managed)

    def _follow(self, managed: ManagedGroup) -> None:
        """Watch the peers that a group has now, before workers are told of them."""
        found = self._probes.get(lower(managed.group.name))
        peers = self._peers()
        if found is None or peers == self._known:
            return
        known, self._known = dict(self._known), peers
        for peer in managed.peers:
            if known.get(PeerKey(managed.group.name, peer.name)) != peer.address:
                peer.health = _begin(found)
        if self._checks is not None:
            self._watch(self._checks)

    def _peers(self) -> list[tuple[PeerKey, Address]]:
        return [
            (PeerKey(managed.group.name, peer.name), peer.address)
            for managed, _ in self._probed()
            for peer in managed.peers
            if not peer.down
        ]

    def _probed(self) -> list[tuple[ManagedGroup, Sequence[GroupCheck]]]:
        """The groups that have health checks, and these."""
        groups = self._groups.groups
        return [(groups[name], found) for name, found in self._probes.items()]

    def _watch(self, checks: HealthChecks) -> None:
        checks.watch(
            self._watched_peer(managed, peer, found)
            for managed, found in self._probed()
            for peer in managed.peers
            if not peer.down
        )

    def _watched_peer(
        self, managed: ManagedGroup, peer: ManagedPeer, checks: Sequence[GroupCheck]
    ) -> WatchedPeer:
        return WatchedPeer(
            key=PeerKey(managed.group.name, peer.name),
            address=peer.address.text,
            checks=tuple(
                Check(
                    schedule=each.check.schedule,
                    probe=partial(
                        self._probe, managed, make_probe(each, peer, self._logins)
                    ),
                    mandatory=each.check.mandatory,
                )
                for each in checks
            ),
            health=peer.health,
        )

    async def _probe(self, managed: ManagedGroup, probe: Probe) -> Failure | None:
        failure = await run_probe(probe)
        # This manager may have become the one that writes the board meanwhile.
        self._had_turn |= self._groups.publish(managed)
        return failure


def _begin(checks: Sequence[GroupCheck]) -> Health:
    """What is known of a peer that nobody has probed."""
    mandatory = any(each.check.mandatory for each in checks)
    return "checking" if mandatory else "healthy"


def _first_health(
    peer: ManagedPeer, checks: Sequence[GroupCheck], *, replaces: bool
) -> Health:
    """What a manager that has just started knows of a peer, from the board."""
    state = peer.numbers.state
    if not state:
        return _begin(checks)
    if state == PeerState.UNHEALTHY:
        return "unhealthy"
    if state == PeerState.CHECKING:
        return _begin(checks)
    forgets = any(each.check.mandatory and not each.check.persistent for each in checks)
    return "checking" if forgets and not replaces else "healthy"


def make_probe(
    check: GroupCheck, peer: ManagedPeer, logins: Mapping[str, ProbeLogin]
) -> Probe:
    """How a health check probes a peer."""
    file = check.check.login_file
    return Probe(
        address=_at_port(peer.address, check.check.port),
        type=check.check.type,
        timeout=check.check.timeout,
        protocol=check.protocol,
        outgoing=check.server.proxy.outgoing,
        proxy_protocol=check.proxy_protocol,
        tls=_tls(check, peer),
        own_name=check.server.core.server_name,
        login=None if file is None else logins[file.path],
        match=check.match,
    )


def _tls(check: GroupCheck, peer: ManagedPeer) -> ProbeTls | None:
    settings, mode = check.server.proxy_ssl, check.mode(peer.member.ssl)
    if mode == "off":
        return None
    name = expected_name(settings, peer.member.name, peer.member.host)
    return ProbeTls(mode=mode, settings=settings, name=name)


def _at_port(address: Address, port: int) -> Address:
    """The same host, at another port if there is one."""
    at = address.sockaddr
    if not port or isinstance(at, str):
        return address
    text = f"{address.text.rpartition(':')[0]}:{port}"
    return replace(address, sockaddr=(at[0], port, *at[2:]), text=text)
