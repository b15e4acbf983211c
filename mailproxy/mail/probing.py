"""How peers are probed: what `health_check` and `match` say, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.conf.secret_files import SecretFile
    from mailproxy.conf.tree import Position
    from mailproxy.mail.server import Server

Expected = bytes | re.Pattern[bytes]
"""What has to be in the octets that a peer sends: a text, or what an expression matches."""


class ProbeType(IntEnum):
    """How far a probe goes; each includes those before it."""

    CONNECT = 1
    GREETING = 2
    CAPABILITY = 3
    LOGIN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When a peer is probed, and how many probes decide."""

    interval: float = 5.0
    """Seconds between the end of a probe and the next one."""
    jitter: float = 0.0
    """Seconds that are added to `interval`, at most; by chance."""
    fails: int = 1
    """Probes that fail in a row until the peer is unhealthy."""
    passes: int = 1
    """Probes that pass in a row until it is healthy again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """A `health_check` directive, as written."""

    position: Position
    schedule: Schedule = Schedule()
    timeout: float = 5.0
    """Seconds for a whole probe."""
    type: ProbeType = ProbeType.GREETING
    protocol: str = ""
    """Empty: that of the servers whose backends the peers are."""
    port: int = 0
    """0: that of the peer."""
    ssl: str = ""
    """on, off, starttls; empty: as sessions have it."""
    proxy_protocol: str = ""
    """on, off, v2; empty: as sessions have it."""
    login_file: SecretFile | None = None
    """``user:password``, for `type` LOGIN."""
    match: str = ""
    """The name of a `match` block."""
    mandatory: bool = False
    """Whether a peer gets no sessions before a probe has passed."""
    persistent: bool = False
    """Whether that is not so after a reload, if the peer was healthy before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A `match` block."""

    name: str
    send: bytes = b""
    expect: Expected | None = None
    """None: nothing is expected."""

    def accepts(self, received: bytes) -> bool:
        """Whether this is enough of what is expected."""
        if self.expect is None:
            return True
        if isinstance(self.expect, bytes):
            return self.expect in received
        return self.expect.search(received) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCheck:
    """A health check of a group, with all that it needs."""

    check: HealthCheck
    protocol: str
    """Empty for `type` CONNECT."""
    server: Server
    """The server whose sessions lead there: the probe does as they do."""
    match: Match | None = None

    @property
    def proxy_protocol(self) -> str:
        """Which PROXY header peers get: off, on, v2."""
        return self.check.proxy_protocol or self.server.proxy.proxy_protocol

    def mode(self, member: str) -> str:
        """Whether there is TLS with a member of the group: off, on, starttls.

        Args:
          member: its `ssl=`, which may be empty.
        """
        return self.check.ssl or member or self.server.proxy_ssl.proxy_ssl
