"""How long certificates by name are kept (see `net/openssl/variable_files.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The `ssl_certificate_cache` directive."""

    most: int = 0
    """Certificates that each worker keeps; 0: none."""
    inactive: float = 10.0
    """Seconds without a handshake after which one is dropped."""
    valid: float = 60.0
    """Seconds after which its file is looked at again."""

    def __str__(self) -> str:
        if not self.most:
            return "off"
        return f"max={self.most} inactive={self.inactive:.0f}s valid={self.valid:.0f}s"


NO_CERTIFICATE_CACHE = CacheLimits()
"""The default."""
