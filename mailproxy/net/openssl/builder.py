"""The choice of the builder that can make contexts with this Python."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mailproxy.net.openssl.clients import ClientBuilder
from mailproxy.net.openssl.contexts import ContextBuilder
from mailproxy.net.openssl.library import unreachable

if TYPE_CHECKING:
    from mailproxy.net.openssl.portable import PortableBuilder
    from mailproxy.net.openssl.portable_clients import PortableClientBuilder


def context_builder(protocols: Collection[str]) -> ContextBuilder | PortableBuilder:
    """Begin a context with the builder that works here.

    Args:
      protocols: as for `ContextBuilder`.

    Raises:
      OpenSSLError: TLS needs a newer OpenSSL.
    """
    if unreachable() is None:
        return ContextBuilder(protocols)
    from mailproxy.net.openssl.portable import PortableBuilder  # it is slow to import

    return PortableBuilder(protocols)


def client_builder(protocols: Collection[str]) -> ClientBuilder | PortableClientBuilder:
    """As `context_builder`, for the context of this end as a client."""
    if unreachable() is None:
        return ClientBuilder(protocols)
    from mailproxy.net.openssl.portable_clients import PortableClientBuilder  # as above

    return PortableClientBuilder(protocols)
