"""Secrets that a peer repeats: a backend that quotes the failed command, an auth server
that names the wrong password. The log must not show them, whatever their spelling.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

HIDDEN = b"..."
"""Replaces text that the log does not show."""
MIN_SECRET = 4
"""Octets of the shortest secret that texts are searched for. A shorter one is in too
many texts by chance, and the gaps in the log would reveal it."""


def spellings(secret: bytes, user: bytes = b"") -> tuple[bytes, ...]:
    """List the forms in which a secret may appear in a reply, in lower case.

    As it is; quoted as in IMAP (RFC 3501, section 4.3); percent-encoded as in requests to
    the auth server; and in base64, alone or in a message of SASL PLAIN (RFC 4616).

    Args:
      user: the user name that goes with it.
    """
    if len(secret) < MIN_SECRET:
        return ()
    quoted = secret.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    message = b"\0%s\0%s" % (user, secret)
    encoded = base64.b64encode(secret), base64.b64encode(message)
    forms = secret, quoted, quote_from_bytes(secret).encode(), *encoded
    return tuple({form.lower() for form in forms})


def repeats(text: bytes, forms: Iterable[bytes]) -> bool:
    """Whether a text contains one of the `spellings` of a secret, in any case."""
    lower = text.lower()
    return any(form in lower for form in forms)
