"""What is said to backends to log in there."""

from __future__ import annotations

import base64


def format_plain(user: bytes, password: bytes) -> bytes:
    """The message of PLAIN (RFC 4616) in base64, without an authorization identity.

    Args:
      user, password: free of NUL.
    """
    return base64.b64encode(b"\0%s\0%s" % (user, password))
