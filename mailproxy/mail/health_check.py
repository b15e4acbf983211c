"""`health_check`: how the peers of a group are probed, as a configuration says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.conf.tree import Position
    from mailproxy.mail.match import Match


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
    """A `health_check` directive."""

    position: Position
    schedule: Schedule = Schedule()
    timeout: float = 5.0
    """Seconds for a whole probe."""
    type: ProbeType = ProbeType.GREETING
    protocol: str = ""
    """Empty for `type` CONNECT."""
    port: int = 0
    """0: that of the peer."""
    ssl: str = ""
    """on, off, starttls; empty: as sessions have it."""
    proxy_protocol: str = ""
    """on, off, v2; empty: as sessions have it."""
    login_file: str = ""
    mandatory: bool = False
    """Whether a peer gets no sessions before the first probe has passed."""
    persistent: bool = False
    """Whether that is not so after a reload, if the peer was healthy before it."""
    match: Match | None = None
