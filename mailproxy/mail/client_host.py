"""Host names of SMTP clients, for the auth source and XCLIENT.

A name is accepted if it resolves back to the client's address (RFC 1912, section 2.1;
nginx: ngx_mail_smtp_handler.c).
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

from mailproxy.net.dns import TIMED_OUT
from mailproxy.net.dns_messages import (
    FORMAT_ERROR,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    REFUSED,
    SERVER_FAILURE,
    Answer,
    is_host_name,
    packed,
)

if TYPE_CHECKING:
    from mailproxy.conf.addresses import IPAddress
    from mailproxy.log import Logger, SessionInfo
    from mailproxy.net.dns import Resolver

UNAVAILABLE = b"[UNAVAILABLE]"
"""The client has no name, or the name does not resolve back to it; a value of Postfix's
XCLIENT (https://www.postfix.org/XCLIENT_README.html)."""
TEMPUNAVAIL = b"[TEMPUNAVAIL]"
"""The lookup failed."""

_TEXTS = {
    FORMAT_ERROR: "Format error",
    SERVER_FAILURE: "Server failure",
    NOT_FOUND: "Host not found",
    NOT_IMPLEMENTED: "Unimplemented",
    REFUSED: "Operation refused",
    TIMED_OUT: "Operation timed out",
}
"""nginx's words (ngx_resolver_strerror)."""


async def find_client_host(resolver: Resolver, info: SessionInfo, log: Logger) -> bytes:
    """Look up the name of a client, in two lookups of `resolver_timeout` each.

    Args:
      info: has the client's address; its action is kept up to date.
      log: the logger of the session, bound to `info`.

    Returns:
      The name in lower case, or `UNAVAILABLE` or `TEMPUNAVAIL`.
    """
    client = info.client
    if client == "unix:":
        return TEMPUNAVAIL
    address = _parse(client)
    info.action = "in resolving client address"
    answer = await resolver.find_name(address)
    if answer.code:
        log.error("%s could not be resolved (%s: %s)", client, *reason(answer))
        return _unknown(answer)
    name = answer.values[0]
    if not is_host_name(name):
        log.error('%s resolved to invalid host name "%s"', client, name)
        return TEMPUNAVAIL
    info.action = "in resolving client hostname"
    answer = await resolver.find_addresses(name, address)
    if answer.code:
        log.error('"%s" could not be resolved (%s: %s)', name, *reason(answer))
        return _unknown(answer)
    return name if packed(address) in answer.values else UNAVAILABLE


def _parse(text: str) -> IPAddress:
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def reason(answer: Answer) -> tuple[int, str]:
    """The code of a failed lookup, and nginx's words for it."""
    return answer.code, _TEXTS.get(answer.code, "Unknown error")


def _unknown(answer: Answer) -> bytes:
    return UNAVAILABLE if answer.code == NOT_FOUND else TEMPUNAVAIL
