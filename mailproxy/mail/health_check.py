"""`health_check`: how the peers of a group are probed."""

from __future__ import annotations

from enum import IntEnum


class ProbeType(IntEnum):
    """How far a probe goes; each includes those before it."""

    CONNECT = 1
    GREETING = 2
    CAPABILITY = 3
    LOGIN = 4
