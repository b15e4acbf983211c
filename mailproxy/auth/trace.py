"""The debug log of requests to an auth_http server and its answers, without secrets.

Only headers that are known to contain no secrets are shown with their values: any other
header of an answer, or one added by `auth_http_header`, may contain a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.log.secrets import HIDDEN, repeats

if TYPE_CHECKING:
    from collections.abc import Collection

    from mailproxy.log import Logger

MAX_LINES = 64
"""Lines of a request or an answer that the log shows."""
MAX_SHOWN = 1024
"""Octets of a line that the log shows; an escaped octet takes four characters."""

_HARMLESS = frozenset(
    b"host auth-method auth-user auth-protocol auth-login-attempt client-ip client-host "
    b"proxy-protocol-addr proxy-protocol-port proxy-protocol-server-addr "
    b"proxy-protocol-server-port auth-smtp-helo auth-smtp-from auth-smtp-to auth-ssl "
    b"auth-ssl-protocol auth-ssl-cipher auth-ssl-verify auth-ssl-subject auth-ssl-issuer "
    b"auth-ssl-serial auth-ssl-fingerprint connection keep-alive "
    b"auth-status auth-server auth-port auth-wait auth-error-code auth-error-sasl "
    b"auth-smtp content-length content-type transfer-encoding date server".split()
)
"""Headers, in lower case, whose values are not secret."""


def show(log: Logger, way: str, header: bytes, secrets: Collection[bytes]) -> None:
    """Log the lines of a request or an answer, up to the empty line.

    Args:
      way: "to" or "from".
      header: request line or status line, and headers.
      secrets: `spellings` that no line may show.
    """
    first, *others = header.rstrip(b"\r\n").split(b"\n", MAX_LINES)
    lines = [_shown_first(first), *map(_shown, others[: MAX_LINES - 1])]
    for line in lines:
        text = HIDDEN if repeats(line, secrets) else line.rstrip(b"\r")
        if len(text) > MAX_SHOWN:
            text = text[:MAX_SHOWN] + b"..."
        log.debug(f'{way} auth http server: "%s"', text)
    if len(others) >= MAX_LINES:
        log.debug(f'{way} auth http server: "..."')


def _shown_first(line: bytes) -> bytes:
    """The first line as the log shows it: a request line without its query, or a status line.

    An answer may begin with a header instead (HTTP/0.9, as nginx reads it).
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
    """A header line as the log shows it, with its value if that is harmless."""
    name, colon, _value = line.partition(b":")
    if name.strip().lower() in _HARMLESS:
        return line
    return name + b": ..." if colon else b"..."
