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
    """Make a server.

    Args:
      block: the `server` block, which `check_server` has accepted.
      made: the settings of all modules that apply to it, by class.
      upstreams: the groups of the whole configuration.
    """
    assert block.position is not None, "a server block is written somewhere"
    core, ssl = _one(made, CoreSettings), _one(made, SslSettings)
    if ssl.ssl:
        core = replace(core, listen=tuple(replace(a, ssl=True) for a in core.listen))
    proxy = _one(made, ProxySettings)
    default = proxy.proxy_pass is not None
    sources = tuple(each for each in made.values() if isinstance(each, Source))
    return Server(
        core=core,
        ssl=ssl,
        proxy=proxy,
        auth=Chain(sources, needs_route=not default),
        realip=_one(made, RealipSettings),
        protocol=next(each for each in made.values() if isinstance(each, MailProtocol)),
        position=block.position,
        upstreams=upstreams,
        destinations=Destinations(
            groups=frozenset(upstreams.groups),
            hosts=core.resolver is not None,
            default=default,
        ),
    )


def _one(made: Mapping[type[Settings], Settings], kind: type[S]) -> S:
    return cast("S", made[kind])
