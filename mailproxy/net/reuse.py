"""For how long connections are used again (see `net/idle.py`), as a directive sets it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """How long a connection may be used again."""

    idle: float
    """Seconds between two requests, at most; more than 0."""
    parallel_idle: float = 0.0
    """The same, if it is more, for a server that serves several connections at once."""
    requests: int
    """Requests on one connection, at most; at least 1."""
    yielding: bool = False
    """Whether it is given up for the other requests of a server that seems blocked."""
