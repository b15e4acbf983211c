"""Which name servers are asked, and for what, as a directive sets it (see `net/dns.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.addresses import Address


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolverSettings:
    """The `resolver` directive."""

    servers: tuple[Address, ...]
    """At least one; asked in turn."""
    valid: float | None = None
    """Seconds for which answers are cached; None: their own TTL."""
    ipv4: bool = True
    """Whether to ask for A records."""
    ipv6: bool = True
    """Whether to ask for AAAA records."""
