"""State that the directives of one configuration share while it is read.

The loader makes one and hands it to the `Reading`, where the parsers and settings
classes of mail find it. Once the settings are made, it is not needed any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

    from mailproxy.conf.addresses import Address, SocketAddress
    from mailproxy.conf.directive import Block, Reading
    from mailproxy.conf.tree import Directive, Position, Word
    from mailproxy.mail.group import Group, GroupResolver, Method
    from mailproxy.mail.own_certificates import OwnCertificates
    from mailproxy.mail.probing import GroupCheck, Match
    from mailproxy.mail.ssl import SslSettings
    from mailproxy.net.openssl.choice import Shelf
    from mailproxy.stats.cells import CellKey


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a configuration needs a manager process."""

    directive: str
    position: Position | None

    def __str__(self) -> str:
        return f"{self.directive} in {self.position}"


@dataclass(kw_only=True)
class LoadState:
    """Everything that directives of mail have to know of each other."""

    protocols: Mapping[str, tuple[int, ...]]
    """The known protocols, each with its well-known ports."""
    taken: set[tuple[int, SocketAddress]] = field(default_factory=set)
    """The addresses of all `listen` directives so far, with their families."""
    guesses: dict[Block, str] = field(default_factory=dict)
    """By server block, the protocol of its first well-known port."""
    protocol: dict[Block, str] = field(default_factory=dict)
    """By server block, its protocol; known once its core settings are made."""
    server_names: dict[Block, bytes] = field(default_factory=dict)
    """By server block, its `server_name`; known once its core settings are made."""
    group_names: dict[str, Position] = field(default_factory=dict)
    """Where each `upstream` is, by its name in lower case."""
    methods: dict[Block, Method] = field(default_factory=dict)
    """By `upstream` block, how it chooses; missing if it does not say."""
    groups: dict[str, Group] = field(default_factory=dict)
    """The complete groups, by name in lower case."""
    matches: dict[str, Match | None] = field(default_factory=dict)
    """The `match` blocks, by name; None for one that has an error."""
    group_checks: dict[str, tuple[GroupCheck, ...]] = field(default_factory=dict)
    """By the name of a group in lower case, its health checks."""
    resolvers: dict[str, GroupResolver] = field(default_factory=dict)
    """How groups are looked up that have to be, by name in lower case."""
    targets: dict[Directive, Group | None] = field(default_factory=dict)
    """What each `proxy_pass` names; None if that has an error."""
    reached: list[tuple[Address, Directive]] = field(default_factory=list)
    """The addresses of backends, and the directives that have them."""
    zone_sizes: dict[str, int] = field(default_factory=dict)
    """By name, the size of each session zone, in octets."""
    contexts: dict[object, OwnCertificates] = field(default_factory=dict)
    """TLS contexts by settings: servers with the same settings share one."""
    backend_contexts: dict[object, SSLContext] = field(default_factory=dict)
    """TLS contexts for backends, by settings."""
    shelves: dict[object, Shelf] = field(default_factory=dict)
    """What directories of certificates have, by their names and the passwords."""
    with_context: dict[
        tuple[int, str | None, bytes | None], tuple[SslSettings, SslSettings]
    ] = field(default_factory=dict)
    """By `id`, protocol and, if that matters, name: settings without their context, and
    with it."""
    refused_protocols: set[Word] = field(default_factory=set)
    """Arguments of `ssl_protocols` for which a warning about refused versions was given."""
    said_of_certificates: set[tuple[str, str]] = field(default_factory=set)
    """Remarks about directories of certificates, and their places: servers share them."""
    unfit: set[Directive] = field(default_factory=set)
    """Statements that do not fit to others, already reported for one server."""
    unverified: set[Directive] = field(default_factory=set)
    """Directives ``proxy_ssl_verify off`` that were already warned of."""
    outdated: set[str] = field(default_factory=set)
    """Certificates that are expired or not yet valid, already warned of."""
    manager: list[Reason] = field(default_factory=list)
    """What needs the manager process, in the order of the file; empty: there is none."""
    counted: list[CellKey] = field(default_factory=list)
    """The numbers of the peers of all groups that are used."""
    shares_numbers: bool = False
    """Whether one of these groups needs the numbers of all workers."""

    @property
    def group_with_tls(self) -> Group | None:
        """The first group with TLS of its own (`ssl=`), whatever servers say; or None."""
        for group in self.groups.values():
            if any(member.ssl not in ("", "off") for member in group.members):
                return group
        return None


def load_state(reading: Reading) -> LoadState:
    """The state that the loader of a mail configuration handed to its reading."""
    state = reading.state
    assert isinstance(state, LoadState), "configurations of mail are read with one"
    return state
