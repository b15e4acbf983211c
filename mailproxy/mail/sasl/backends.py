"""SASL messages to backends."""

from __future__ import annotations

import base64


def format_plain(user: bytes, password: bytes) -> bytes:
    """Format the message of PLAIN (RFC 4616), base64, without an authorization identity.

    Args:
      user, password: contain no NUL.
    """
    return base64.b64encode(b"\0%s\0%s" % (user, password))
