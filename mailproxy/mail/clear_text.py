"""Warnings of backends that get passwords in clear text, over a network."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mailproxy.mail.load_state import load_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mailproxy.conf.addresses import Address
    from mailproxy.conf.directive import Block, Reading
    from mailproxy.conf.tree import Directive, Position
    from mailproxy.mail.group import Group
    from mailproxy.mail.server import Server


def warn_of_clear_text(servers: Mapping[Block, Server], reading: Reading) -> None:
    """Warn once of each group, and of each `proxy_pass` to a host.

    An answer of an auth source may name any group, so one server without `proxy_ssl` is
    enough.
    """
    modes = {server.proxy_ssl.proxy_ssl for server in servers.values()}
    for group in load_state(reading).groups.values():
        if _gets_clear_text(group, modes):
            _warn(group.name, group.position, reading)
    said = set()
    for block, server in servers.items():
        target, given = server.proxy.proxy_pass, block.find("proxy_pass")
        if target is None or target.group is None or given is None:
            continue
        group, mode = target.group, server.proxy_ssl.proxy_ssl
        named = group.position is not None
        if named or given.directive in said or not _gets_clear_text(group, {mode}):
            continue
        said.add(given.directive)
        _warn(group.name, given.directive, reading)


def _warn(name: str, where: Position | Directive | None, reading: Reading) -> None:
    reading.warn(
        f'passwords go to "{name}" in clear text',
        where,
        "proxy_ssl on; or proxy_ssl starttls;",
    )


def _gets_clear_text(group: Group, modes: Iterable[str]) -> bool:
    """Whether a session with one of these `proxy_ssl` may send a password over a network."""
    return any(
        (member.ssl == "off" or (not member.ssl and "off" in modes))
        and (member.resolve or any(map(_is_elsewhere, member.addresses)))
        for member in group.members
    )


def _is_elsewhere(address: Address) -> bool:
    """Whether an address may be another machine's."""
    if address.family == socket.AF_UNIX or isinstance(address.sockaddr, str):
        return False
    return not ip_address(address.sockaddr[0].partition("%")[0]).is_loopback
