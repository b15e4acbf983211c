"""Contexts and connections made with `ssl` alone, with facts that `ssl` drops."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from mailproxy.net.openssl.headers.x509_h import X509_V_ERR_CERT_CHAIN_TOO_LONG
from mailproxy.net.openssl.hello import Hello

if TYPE_CHECKING:
    from mailproxy.net.openssl.peers import ServerCertificate

LACKING = (
    "proxy_ssl_conf_command",
    "proxy_ssl_server_name off",
    'proxy_ssl_certificate_key "engine:..." and "store:..."',
    "certificates by name",
    "ssl_certificate_compression",
    'ssl_certificate_key "engine:..." and "store:..."',
    "ssl_conf_command",
    "ssl_ecdh_curve with several names, or with one that is no EC curve",
    "ssl_engine",
    "ssl_session_cache off, shared, and builtin with a size",
    "ssl_session_ticket_key",
    "ssl_session_timeout",
    "ssl_verify_client optional_no_ca",
)
"""Directives that are rejected if the functions of OpenSSL cannot be called."""

_MAX_SESSIONS = 20 * 1024
"""TLS sessions that OpenSSL keeps for a context by default."""


class PortableSocket(ssl.SSLSocket):
    """A connection of a `PortableContext`."""

    hello: Hello = Hello()
    """The client's hello, which was read before the handshake."""


class PortableContext(ssl.SSLContext):
    """A context, with facts that `ssl` does not keep."""

    sslsocket_class = PortableSocket

    alpn: bytes = b""
    """The protocol that clients must offer if they offer any; empty: any is good."""
    depth: int | None = None
    """Most CA certificates between a client's certificate and a trusted one; None:
    clients are not asked for certificates."""
    own: tuple[ServerCertificate | None, ...] = ()
    """The server's certificates; None for one that is unreadable."""

    def __init__(self, protocol: int) -> None:
        del protocol  # __new__ has taken it
        super().__init__()
        self._too_deep: dict[bytes, None] = {}

    def judge_chain(self, tls: ssl.SSLSocket | ssl.SSLObject) -> tuple[int, str]:
        """Limit the length of a client's chain, as `ssl` cannot make OpenSSL do that.

        OpenSSL has verified the chain already, or the handshake would have failed.
        It keeps no chain for a resumed TLS session. There are no tickets if clients
        are asked for certificates, so a session is resumed from the memory of the
        worker that began it: this method remembers the bad ones as long as OpenSSL.

        Returns:
          OpenSSL's number and text for the verdict: 0 for a good certificate or none.
        """
        # `ssl` has a public method only since 3.13.
        chain = tls._sslobj.get_verified_chain() or ()  # type: ignore[union-attr] # noqa: SLF001
        if self.depth is not None and len(chain) - 2 > self.depth:
            self._too_deep[_session_id(tls)] = None
            if len(self._too_deep) > _MAX_SESSIONS:
                del self._too_deep[next(iter(self._too_deep))]
        elif not (tls.session_reused and _session_id(tls) in self._too_deep):
            return 0, "ok"
        return X509_V_ERR_CERT_CHAIN_TOO_LONG, "certificate chain too long"


def _session_id(tls: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    session = tls.session
    return b"" if session is None else session.id


ALERT = b"\x15\x03\x03\x00\x02\x02\x78"
"""no_application_protocol, fatal, in clear text (RFC 7301, section 3.2)."""


def refusal(context: ssl.SSLContext, hello: Hello) -> ssl.SSLError | None:
    """Return OpenSSL's error for a client that offers only other protocols, or None."""
    wanted = context.alpn if isinstance(context, PortableContext) else b""
    if not wanted or not hello.protocols or wanted in hello.protocols:
        return None
    name = "NO_APPLICATION_PROTOCOL"
    text = name.lower().replace("_", " ")
    error = ssl.SSLError(ssl.SSL_ERROR_SSL, f"[SSL: {name}] {text}")
    error.library, error.reason = "SSL", name
    return error
