"""Upstreams: all groups of a configuration in this process, and what it listens on.

It is the one thing that sessions find through their server and that changes: each
process has its own, made with the configuration and inherited by fork in its first
state.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from mailproxy.conf.values import lower
from mailproxy.mail.group import Group, Member
from mailproxy.mail.peer_news import NewsReader
from mailproxy.mail.peers import LiveGroup
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import MessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mailproxy.conf.addresses import Address, IPAddress
    from mailproxy.mail.candidates import Candidate
    from mailproxy.net.listen_address import ListenAddress
    from mailproxy.net.manager_line import ManagerLine
    from mailproxy.stats.mapping import Row

MAX_HOSTS = 1024
"""Hosts named by auth sources whose failures a process remembers."""


class Upstreams:
    """The groups of a configuration, and what it listens on.

    Args:
      groups: by name in lower case.
      listens: the addresses of all servers.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        listens: Iterable[ListenAddress],
    ) -> None:
        self.groups = {name: LiveGroup(group) for name, group in groups.items()}
        self._others: dict[Group, LiveGroup] = {}
        self._hosts: dict[tuple[str, int], LiveGroup] = {}
        self._own = {at for each in listens for at in _accepted(each)}
        self._own_ports = {at[1] for at in self._own if not isinstance(at, str)}

    def count_in(self, row: Row) -> None:
        """Count sessions in a row of the mapping; a process does this at its start."""
        for live in self.groups.values():
            live.count_in(row)

    def manage(self, line: ManagerLine, clock: Callable[[], float]) -> None:
        """Hear from the manager about groups; a worker does this at its start."""
        reader = NewsReader()

        def hear(body: Mapping[str, object]) -> None:
            news = reader.read(body)
            if news is None:
                return
            live = self.groups.get(lower(news.upstream))
            if live is None:
                raise MessageError("no such group")
            live.hear(news.peers, int(clock()))

        line.subscribe(LineKind.PEERS, hear)
        for live in self.groups.values():
            live.manage(line)

    def live(self, group: Group) -> LiveGroup:
        """The state of a group of this configuration."""
        if group.position is not None:
            return self.groups[lower(group.name)]
        if group not in self._others:
            self._others[group] = LiveGroup(group)
        return self._others[group]

    def host(self, name: str, port: int, found: Sequence[Address]) -> LiveGroup:
        """The group of the addresses of a host, which were found just now.

        Addresses that were there before keep their state.
        """
        key = lower(name), port
        server = f"{name}:{port}"
        live = self._hosts.pop(key, None)
        if live is None:
            member = Member(server=server, host=name, addresses=tuple(found))
            live = LiveGroup(Group(name=server, members=(member,)))
            if len(self._hosts) >= MAX_HOSTS:
                del self._hosts[next(iter(self._hosts))]
        known = {peer.address: peer for peer in live}
        if known.keys() != set(found):
            (member,) = live.group.members
            live.renew(
                [known.get(at) or live.make_peer(at.text, member, at) for at in found]
            )
        self._hosts[key] = live  # as the last one that was used
        return live

    def is_own(self, address: Address) -> bool:
        """Whether an address is certainly one that this configuration listens on."""
        at = address.sockaddr
        if isinstance(at, str) or at[1] not in self._own_ports:
            return at in self._own
        host = _plain(at[0])
        local = host.is_loopback or host.is_unspecified
        return (str(host), at[1]) in self._own or (local and self._accepts(host, at[1]))

    def leads_back(self, candidate: Candidate, fd: int) -> bool:
        """Whether a connection leads to a listener of this program.

        Args:
          fd: the connection, which need not stand yet.
        """
        at = candidate.address
        if isinstance(at, str) or at[1] not in self._own_ports:
            return at in self._own  # which costs nothing
        host = _plain(at[0])
        if not self._accepts(host, at[1]):
            return False
        if host.is_unspecified or host.is_loopback:
            return True
        return _own_host(fd) == host

    def _accepts(self, host: IPAddress, port: int) -> bool:
        """Whether there is a listener for an address, if it is one of this machine."""
        anywhere = "0.0.0.0" if host.version == 4 else "::"  # noqa: S104 - a comparison
        return (str(host), port) in self._own or (anywhere, port) in self._own


def _plain(text: str) -> IPAddress:
    """An address without a zone, and that of IPv4 which it may stand for."""
    host = ip_address(text.partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return mapped or host


def _accepted(listen: ListenAddress) -> Iterator[tuple[str, int] | str]:
    """The addresses that a listener accepts connections to."""
    address = listen.sockaddr
    if isinstance(address, str):
        yield address
        return
    yield address[:2]
    if address[0] == "::" and listen.ipv6only is False:
        yield "0.0.0.0", address[1]  # noqa: S104 - it is what the system does


def _own_host(fd: int) -> IPAddress:
    """Our own address in a connection, which need not stand yet."""
    connection = socket.socket(fileno=fd)
    try:
        return _plain(connection.getsockname()[0])
    finally:
        connection.detach()
