"""Server: the settings of all modules for one `server` block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

from mailproxy.auth.source import Chain, Source
from mailproxy.auth.verdict import Destinations
from mailproxy.conf.directive import Block, Reading, Settings
from mailproxy.conf.tree import ConfigError, Position
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.modules import SOURCES
from mailproxy.mail.protocol import MailProtocol
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.ssl import SslSettings
from mailproxy.mail.upstreams import Upstreams

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Server:
    """One `server` block: the settings of each module."""

    core: CoreSettings
    ssl: SslSettings
    proxy: ProxySettings
    proxy_ssl: ProxySslSettings
    auth: Chain
    """The auth sources, which decide whether a login is good."""
    realip: RealipSettings
    protocol: MailProtocol
    """The settings of its protocol."""
    position: Position
    """The beginning of the block."""
    upstreams: Upstreams = field(repr=False)
    """The groups of the whole configuration; all servers share them."""
    destinations: Destinations
    """What an auth source may name as backend, beside an address."""


def check_server(block: Block, reading: Reading) -> None:
    """Check that a server has an auth source.

    Raises:
      ConfigError: none is configured.
    """
    if not any(source.applies(block, reading) for source in SOURCES):
        raise ConfigError(
            'no "auth_http" is defined for server',
            block.directive,
            "add: auth_http URL; to the server, or to mail {}",
        )


def make_server(
    block: Block, made: Mapping[type[Settings], Settings], upstreams: Upstreams
) -> Server:
    """Make a server from a block that `check_server` has accepted.

    Args:
      made: the settings of all modules that apply to it, by class.
    """
    assert block.position is not None, "a server block is written somewhere"
    core, ssl = _one(made, CoreSettings), _one(made, SslSettings)
    if ssl.ssl:
        core = replace(core, listen=tuple(replace(a, ssl=True) for a in core.listen))
    proxy = _one(made, ProxySettings)
    destinations = _destinations(core, proxy, upstreams)
    return Server(
        core=core,
        ssl=ssl,
        proxy=proxy,
        proxy_ssl=_one(made, ProxySslSettings),
        auth=Chain(
            tuple(each for each in made.values() if isinstance(each, Source)),
            needs_route=not destinations.default,
        ),
        realip=_one(made, RealipSettings),
        protocol=next(each for each in made.values() if isinstance(each, MailProtocol)),
        position=block.position,
        upstreams=upstreams,
        destinations=destinations,
    )


def _destinations(
    core: CoreSettings, proxy: ProxySettings, upstreams: Upstreams
) -> Destinations:
    return Destinations(
        groups=frozenset(upstreams.groups),
        hosts=core.resolver is not None,
        default=proxy.proxy_pass is not None,
    )


def _one(made: Mapping[type[Settings], Settings], kind: type[S]) -> S:
    return cast("S", made[kind])
