"""From the answer of an auth source to the backends that a session may connect to."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from mailproxy.conf.addresses import Address
from mailproxy.errors import BackendError
from mailproxy.mail.candidates import Candidate, OneCandidate
from mailproxy.mail.client_host import reason
from mailproxy.mail.group_choice import GroupChoice, make_key

if TYPE_CHECKING:
    from mailproxy.auth.verdict import Route
    from mailproxy.mail.candidates import Choice
    from mailproxy.mail.client import Client
    from mailproxy.mail.peers import LiveGroup


async def choose(route: Route, client: Client) -> Choice:
    """Find the backends of a route.

    Raises:
      BackendError: the host that it names has no address.
    """
    upstreams = client.server.upstreams
    if route.kind == "default":
        target = client.server.proxy.proxy_pass
        assert target is not None, "the chain has looked"
        assert target.group is not None, "the configuration was checked for it"
        return _choose_in(upstreams.live(target.group), client)
    if route.kind == "group":
        return _choose_in(upstreams.groups[route.server], client)
    if route.kind == "host":
        found = await _look_up(route, client)
        return _choose_in(upstreams.host(route.server, route.port, found), client)
    family = socket.AF_INET6 if ":" in route.server else socket.AF_INET
    return OneCandidate(
        Candidate(
            family,
            (route.server, route.port),
            route.name,
            host=route.server,
        )
    )


def _choose_in(live: LiveGroup, client: Client) -> GroupChoice:
    key = live.group.method.key
    text = make_key(key, client.info.login, client.info.client) if key else b""
    return GroupChoice(live, text, client.timer, client.log)


async def _look_up(route: Route, client: Client) -> list[Address]:
    """Look up the addresses of a host that an auth source has named.

    Raises:
      BackendError: it has none.
    """
    core, info = client.server.core, client.info
    assert core.resolver is not None, "only then names are accepted"
    info.upstream = route.name
    info.action = "connecting to upstream"
    client.timer.stop()  # each lookup has its own limit
    resolver = client.network.resolver(core.resolver, core.resolver_timeout)
    answer = await client.timer.in_trio(resolver.find_all, route.server.encode())
    if answer.code:
        raise BackendError(
            "%s could not be resolved (%s: %s)",
            route.server,
            *reason(answer),
            action=None,
        )
    return [_address(each, route.port) for each in dict.fromkeys(answer.values)]


def _address(packed: bytes, port: int) -> Address:
    host = ip_address(packed)
    if host.version == 6:
        return Address(socket.AF_INET6, (str(host), port, 0, 0), f"[{host}]:{port}")
    return Address(socket.AF_INET, (str(host), port), f"{host}:{port}")
