"""Members of groups that are looked up while running: `resolve`, `service`.

Each such `server` has a task, which looks it up again when the answer is no longer valid. What
is found replaces what it had; if nothing is, it keeps what it has. A manager begins with what
its predecessor has put on the board, so a name server that is down during a reload
does no harm.
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import trio

from mailproxy.conf.addresses import Address
from mailproxy.conf.values import HOUR
from mailproxy.mail.client_host import reason
from mailproxy.mail.group import GroupResolver, Member
from mailproxy.manager import dns_client
from mailproxy.manager.groups import GroupService
from mailproxy.manager.hub import Hub
from mailproxy.manager.peers import Found, ManagedGroup
from mailproxy.manager.services import ManagerService
from mailproxy.net.dns import Ask, Resolver
from mailproxy.net.dns_messages import (
    NOT_FOUND,
    Answer,
    ServiceRecord,
    is_host_name,
    read_service,
)
from mailproxy.stats.mapping import Row
from mailproxy.stats.peers import MAX_RESOLVED, PeerPlace, Place, resolved_name

RETRY_PAUSE = 5.0
"""Seconds until a lookup that has failed is tried again."""
MIN_PAUSE = 1.0
"""Seconds between two lookups of a name, at least."""
MAX_PAUSE = 1.0 * HOUR
"""The same, at most."""


class ResolveService(ManagerService):
    """See the module.

    Args:
      resolvers: of the groups that have to be looked up, by name in lower case.
      ask: asks a name server.
    """

    name = "resolve"

    def __init__(
        self,
        groups: GroupService,
        resolvers: Mapping[str, GroupResolver],
        row: Row,
        ask: Ask = dns_client.ask,
    ) -> None:
        super().__init__()
        self._groups = groups
        self._followed = [
            _Followed(groups.groups[name], server, found, ask)
            for name, found in resolvers.items()
            for server, member in enumerate(groups.groups[name].group.members)
            if member.resolve
        ]
        self._boards = {
            managed: [
                (name, PeerPlace(row, managed.group.name, name))
                for name in map(resolved_name, range(MAX_RESOLVED))
            ]
            for managed in {each.managed for each in self._followed}
        }
        self._take_over()
        groups.followers.append(self._publish)
        self._hub: Hub | None = None

    async def wait_ready(self) -> None:
        """Return once each name was looked up, or could not be."""
        for each in self._followed:
            await each.tried.wait()

    async def run(self, hub: Hub) -> None:
        """Look up all names again and again."""
        self._hub = hub
        async with trio.open_nursery() as nursery:
            for each in self._followed:
                nursery.start_soon(self._follow, each, hub)

    async def _follow(self, followed: _Followed, hub: Hub) -> None:
        upstream = followed.managed.group.name
        failure = 0
        while True:
            found, answer = await followed.look_up()
            if answer.code:
                log = hub.log.info if answer.code == failure else hub.log.error
                log("%s could not be resolved (%s: %s)", followed.name, *reason(answer))
                failure, pause = answer.code, RETRY_PAUSE
            else:
                failure, pause = 0, followed.pause(answer)
                if followed.managed.replace(followed.server, found):
                    texts = ", ".join(each.address.text for each in found)
                    hub.log.notice(
                        f'upstream "{upstream}": %s resolved to {texts}', followed.name
                    )
                    self._groups.tell(followed.managed)
            followed.tried.set()
            await trio.sleep(pause)

    # The board

    def _publish(self, managed: ManagedGroup) -> None:
        """Put on the board where the peers of a group are."""
        if self._hub is None or not self._hub.row.is_front:
            return
        peers = {peer.name: peer for peer in managed.peers}
        for name, board in self._boards.get(managed, ()):
            peer = peers.get(name)
            if peer is None:
                board.write(None)
                continue
            host, _, port = peer.address.text.rpartition(":")
            board.write(
                Place(
                    _origin(managed.group.members[peer.server]),
                    ip_address(host.strip("[]")).packed,
                    int(port),
                    peer.member.weight,
                    peer.member.backup,
                )
            )

    def _take_over(self) -> None:
        """Begin with what another manager has put on the board."""
        for followed in self._followed:
            origin = _origin(followed.member)
            found = [
                Found(
                    _address(place.address, place.port),
                    place.weight,
                    place.backup,
                    name,
                )
                for name, board in self._boards[followed.managed]
                if (place := board.read()) is not None and place.origin == origin
            ]
            followed.managed.replace(followed.server, found)
            if found:
                followed.tried.set()


class _Followed:
    """A `server` that is looked up.

    Attributes:
      tried: is set when it was looked up for the first time.
    """

    def __init__(
        self, managed: ManagedGroup, server: int, resolver: GroupResolver, ask: Ask
    ) -> None:
        self.managed = managed
        self.server = server
        self.member = managed.group.members[server]
        self.tried = trio.Event()
        self._valid = resolver.settings.valid
        self._resolver = Resolver(resolver.settings, resolver.timeout, ask)

    @property
    def name(self) -> str:
        """The name that is asked about."""
        host, service = self.member.host, self.member.service
        if not service:
            return host
        return f"{service}.{host}" if "." in service else f"_{service}._tcp.{host}"

    def pause(self, answer: Answer) -> float:
        """Seconds for which an answer is valid."""
        seconds = float(answer.ttl) if self._valid is None else self._valid
        return min(max(seconds, MIN_PAUSE), MAX_PAUSE)

    async def look_up(self) -> tuple[list[Found], Answer]:
        """Look it up; returns what was found, and the answer that says how long that holds,
        or the code of a failure."""
        if self.member.service:
            return await self._find_services()
        answer = await self._resolver.find_all(self.name.encode())
        return self._found(answer, self.member.port, self.member.weight), answer

    def _found(
        self, answer: Answer, port: int, weight: int, *, backup: bool = False
    ) -> list[Found]:
        addresses = [_address(packed, port) for packed in sorted(answer.values)]
        return [
            Found(address, weight, backup)
            for address in sorted(addresses, key=lambda each: each.family)
        ]

    async def _find_services(self) -> tuple[list[Found], Answer]:
        """Look up a service and its servers (RFC 2782).

        A server that has no address is left out. If one could not be looked up, the
        whole lookup has failed: it may be there still.
        """
        answer = await self._resolver.find_services(self.name.encode())
        services = sorted(map(read_service, answer.values))
        # A zone may say anything: a name must be fit to be asked about (RFC 2782: "." if
        # there is no such service).
        services = [each for each in services if each.port and is_host_name(each.host)]
        if answer.code or not services:
            return [], answer if answer.code else Answer(NOT_FOUND)
        hosts: dict[bytes, Answer] = {}
        async with trio.open_nursery() as nursery:
            for host in {each.host for each in services}:
                nursery.start_soon(self._find_host, host, hosts)
        failed = [each for each in hosts.values() if each.code not in (0, NOT_FOUND)]
        if failed:
            return [], failed[0]
        found = self._all_of(services, hosts)
        if not found:
            return [], Answer(NOT_FOUND)
        ttl = min(answer.ttl, *(each.ttl for each in hosts.values() if not each.code))
        return found, Answer(0, ttl=ttl)

    async def _find_host(self, host: bytes, hosts: dict[bytes, Answer]) -> None:
        hosts[host] = await self._resolver.find_all(host)

    def _all_of(
        self, services: Sequence[ServiceRecord], hosts: Mapping[bytes, Answer]
    ) -> list[Found]:
        """The servers of a service; those of the first priority are primaries."""
        first = services[0].priority
        found: dict[Address, Found] = {}
        for each in services:
            weight = max(1, each.weight)
            backup = each.priority > first
            for one in self._found(hosts[each.host], each.port, weight, backup=backup):
                found.setdefault(one.address, one)
        return [*found.values()]


def _origin(member: Member) -> int:
    """What tells on the board from which `server` a peer comes."""
    text = f"{member.host}:{member.port}:{member.service}".lower()
    return zlib.crc32(text.encode("utf-8", "surrogateescape")) & 0xFFFFFFF


def _address(packed: bytes, port: int) -> Address:
    host = ip_address(packed)
    if host.version == 6:
        return Address(socket.AF_INET6, (str(host), port, 0, 0), f"[{host}]:{port}")
    return Address(socket.AF_INET, (str(host), port), f"{host}:{port}")
