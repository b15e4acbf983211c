"""`match`: what a health check sends, and expects."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A `match` block."""

    name: str
    send: bytes = b""
    expect: bytes | re.Pattern[bytes] | None = None
    """A text or an expression that has to be found in what the peer sends; None:
    nothing has to be."""

    def accepts(self, received: bytes) -> bool:
        """Whether this is enough of what is expected."""
        if self.expect is None:
            return True
        if isinstance(self.expect, bytes):
            return self.expect in received
        return self.expect.search(received) is not None
