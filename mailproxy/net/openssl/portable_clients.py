"""PortableClientBuilder: `ClientBuilder` for Pythons with OpenSSL inside.

TLS sessions are not resumed then: see `clients.py`.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from mailproxy.net.openssl.clients import believe
from mailproxy.net.openssl.portable import PortableBuilder


class PortableClientBuilder(PortableBuilder):
    """Makes a context step by step, as `ClientBuilder`, which says what each does."""

    _role = ssl.PROTOCOL_TLS_CLIENT
    _prefix = "proxy_"

    def verify_server(self, depth: int) -> None:
        self.context.hostname_checks_common_name = False
        self.context.depth = depth

    def believe(self) -> None:
        believe(self.context)

    def offer(self, protocols: Sequence[bytes]) -> None:
        self.context.set_alpn_protocols([each.decode() for each in protocols])

    def hide_names(self) -> None:
        raise self._needs_openssl("server_name")
