"""What backends are told of a client besides its login (`proxy_forward`).

The names are Dovecot's, which reads them from `login_trusted_networks`: fields of ID in
IMAP (RFC 2971), attributes of XCLIENT in the other protocols. A client that says such
things itself is not believed, and nothing of it is passed on, with one exception: a proxy
in front, among the peers of `set_real_ip_from`, may say how many more proxies a session
may go through. So sessions that are sent in a circle come to an end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.errors import BackendError
from mailproxy.net import openssl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mailproxy.mail.client import Client
    from mailproxy.mail.protocol import Dialogue

FIRST_TTL = 7
"""How many backends in a row a session may have, this one included."""
MAX_LINE = 1024
"""Octets of an XCLIENT command."""

_TELLABLE = re.compile(rb"[!#-\[\]-~]+")
"""Values that need no escapes in any protocol; others are left out."""
_TTL = re.compile(rb"[0-9]{1,3}")

_FIELDS = {
    b"x-session-id": b"SESSION",
    b"x-originating-ip": b"ADDR",
    b"x-originating-port": b"PORT",
    b"x-connected-ip": b"DESTADDR",
    b"x-connected-port": b"DESTPORT",
    b"x-proxy-ttl": b"TTL",
    b"x-client-transport": b"CLIENT-TRANSPORT",
    b"x-connected-name": b"DESTNAME",
}
"""The fields of ID, by the names of XCLIENT."""
_ATTRIBUTES = (
    *(b"ADDR", b"PORT", b"DESTADDR", b"DESTPORT"),
    *(b"SESSION", b"TTL", b"CLIENT-TRANSPORT", b"DESTNAME"),
)
"""The order of attributes in XCLIENT."""


def describe(dialogue: Dialogue) -> dict[bytes, bytes]:
    """What there is to tell of a client, by the attributes of XCLIENT, in their order."""
    client = dialogue.client
    info, tls = client.info, client.wire.tls
    ttl = FIRST_TTL if dialogue.ttl is None else dialogue.ttl - 1
    found = {
        b"SESSION": client.network.session_id(info.connection).encode(),
        b"TTL": b"%d" % ttl,
        b"CLIENT-TRANSPORT": b"insecure" if tls is None else b"TLS",
    }
    if info.client_port is not None:
        found[b"ADDR"] = info.client.encode()
        found[b"PORT"] = b"%d" % info.client_port
        found |= _local(client)
    if tls is not None:
        found[b"DESTNAME"] = openssl.server_name(tls) or b""
    return {
        name: found[name]
        for name in _ATTRIBUTES
        if name in found and _TELLABLE.fullmatch(found[name])
    }


def _local(client: Client) -> dict[bytes, bytes]:
    """The address that the client has connected to."""
    local = client.wire.socket.getsockname()
    if not isinstance(local, tuple):
        return {}
    return {b"DESTADDR": local[0].encode(), b"DESTPORT": b"%d" % local[1]}


def format_id(told: Mapping[bytes, bytes]) -> bytes:
    """Format the fields of ID, in parentheses.

    Args:
      told: from `describe`.
    """
    words = [
        b'"%s" "%s"' % (field, told[name])
        for field, name in _FIELDS.items()
        if name in told
    ]
    return b"(%s)" % b" ".join(words)


def format_attributes(told: Mapping[bytes, bytes]) -> bytes:
    """Format an XCLIENT command, with its line end; what does not fit is left out.

    Args:
      told: from `describe`.
    """
    line = b"XCLIENT"
    for name, value in told.items():
        word = b" %s=%s" % (name, value)
        if len(line) + len(word) + 2 <= MAX_LINE:
            line += word
    return line + b"\r\n"


def check_loop(dialogue: Dialogue) -> None:
    """Check that the session may have a backend at all.

    Raises:
      BackendError: it has gone through too many proxies.
    """
    if dialogue.ttl is not None and dialogue.ttl <= 1:
        raise BackendError("proxy loop", action="connecting to upstream")


def accepts(client: Client) -> bool:
    """Whether the peer is a proxy that is believed to say how far a session has come."""
    if not client.server.proxy.proxy_forward:
        return False
    return client.server.realip.believes(client.info.peer_address)


def parse_ttl(value: bytes | None) -> int | None:
    """Parse a received TTL; None if it is missing or no number.

    It is `FIRST_TTL` at most: behind a proxy that speaks no mail protocol, the client
    itself may have sent it.
    """
    if value is None or not _TTL.fullmatch(value):
        return None
    return min(int(value), FIRST_TTL)


def find_ttl(words: Iterable[bytes]) -> int | None:
    """Find the TTL in the arguments of XCLIENT; see `parse_ttl`."""
    for word in b" ".join(words).split():
        name, _, value = word.partition(b"=")
        if name.upper() == b"TTL":
            return parse_ttl(value)
    return None
