"""What the directives of one configuration share while it is read.

The loader makes one and hands it to the `Reading`, where the parsers and settings
classes of mail find it. Nothing of it is needed once the settings are
made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

    from mailproxy.conf.addresses import SocketAddress
    from mailproxy.conf.directive import Block, Reading
    from mailproxy.conf.tree import Word


@dataclass(kw_only=True)
class LoadState:
    """Everything that several directives of mail have to know of each other."""

    protocols: Mapping[str, tuple[int, ...]]
    """The known protocols, each with the ports that mean it."""
    taken: set[tuple[int, SocketAddress]] = field(default_factory=set)
    """The addresses that a `listen` directive has taken, with their families."""
    guesses: dict[Block, str] = field(default_factory=dict)
    """By server block, the protocol that its first well-known port stands for."""
    protocol: dict[Block, str] = field(default_factory=dict)
    """By server block, the protocol that is spoken; known once its core settings are."""
    zone_sizes: dict[str, int] = field(default_factory=dict)
    """The size of each session zone that was named, in octets."""
    contexts: dict[object, SSLContext] = field(default_factory=dict)
    """TLS contexts: one for all servers with the same settings, which are the key."""
    refused_protocols: set[Word] = field(default_factory=set)
    """The arguments of `ssl_protocols` that a warning has said to name refused ones."""
    outdated: set[str] = field(default_factory=set)
    """The certificates that a warning has said to be out of date."""


def load_state(reading: Reading) -> LoadState:
    """The state that the loader of a mail configuration has given to its reading."""
    state = reading.state
    assert isinstance(state, LoadState), "configurations of mail are read with one"
    return state
