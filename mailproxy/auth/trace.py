"""The debug log of what an auth_http server is asked and answers, without the secrets.

Only headers that are known to hold none are shown with their values: what else stands
in an answer, or is added by `auth_http_header`, may be a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from mailproxy.log import Logger

MAX_LINES = 64
"""Lines of a request or an answer that the log shows."""
MAX_SHOWN = 1024
"""Octets of a line that the log shows; each may take four characters."""
MIN_SECRET = 4
"""Octets from which on a line is searched for a secret; see `mail.trace`."""

_HARMLESS = frozenset(
    b"host auth-method auth-user auth-protocol auth-login-attempt client-ip client-host "
    b"proxy-protocol-addr proxy-protocol-port proxy-protocol-server-addr "
    b"proxy-protocol-server-port auth-smtp-helo auth-smtp-from auth-smtp-to auth-ssl "
    b"auth-ssl-protocol auth-ssl-cipher auth-ssl-verify auth-ssl-subject auth-ssl-issuer "
    b"auth-ssl-serial auth-ssl-fingerprint connection keep-alive "
    b"auth-status auth-server auth-port auth-wait auth-error-code auth-error-sasl "
    b"auth-smtp content-length content-type transfer-encoding date server".split()
)
"""Headers, in lower case, whose values are no secrets."""


def show(log: Logger, way: str, header: bytes, secrets: Collection[bytes]) -> None:
    """Log the lines of a request or an answer, up to the empty one.

    Args:
      way: "to" or "from".
      header: from the first line on.
      secrets: what no line may show.
    """
    known = [secret for secret in secrets if len(secret) >= MIN_SECRET]
    first, *others = header.rstrip(b"\r\n").split(b"\n", MAX_LINES)
    lines = [_shown_first(first), *map(_shown, others[: MAX_LINES - 1])]
    for line in lines:
        hidden = any(secret in line for secret in known)
        text = b"..." if hidden else line.rstrip(b"\r")
        if len(text) > MAX_SHOWN:
            text = text[:MAX_SHOWN] + b"..."
        log.debug(f'{way} auth http server: "%s"', text)
    if len(others) >= MAX_LINES:
        log.debug(f'{way} auth http server: "..."')


def _shown_first(line: bytes) -> bytes:
    """A request line without its query, or a status line.

    An answer may begin with a header (HTTP/0.9, as nginx reads it).
    """
    if line.startswith(b"HTTP/"):
        return line
    method, space, rest = line.partition(b" ")
    if method != b"GET" or not space:
        return _shown(line)
    path, mark, _query = rest.rpartition(b" ")[0].partition(b"?")
    version = rest.rpartition(b" ")[2]
    return b"GET %s%s %s" % (path, b"?..." if mark else b"", version)


def _shown(line: bytes) -> bytes:
    """A header, with its value if that is harmless."""
    name, colon, _value = line.partition(b":")
    if name.strip().lower() in _HARMLESS:
        return line
    return name + b": ..." if colon else b"..."
