"""TLS of this end as a client: contexts, and the TLS sessions that servers may resume.

What `ssl` does about sessions is not used: it encodes and decodes one whenever it hands
it out or takes it, which costs more than the full handshake that a session spares.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from time import monotonic

from mailproxy.net.openssl.contexts import ContextBuilder
from mailproxy.net.openssl.headers import ssl_h, x509_h
from mailproxy.net.openssl.headers.types import SSL_SESSION
from mailproxy.net.openssl.library import ssl_of, unreachable
from mailproxy.net.openssl.plain import PortableContext

MAX_AGE = 3600.0
"""Seconds after its full handshake for which a TLS session is resumed, however often.
The server's certificate is not looked at again before that."""

_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""The name of a CA's file (openssl-rehash(1))."""


class ClientBuilder(ContextBuilder):
    """Makes a context that verifies servers, with the steps of `ContextBuilder`.

    Names are checked as RFC 9525 says: one of the certificate's DNS names, perhaps with
    one wildcard for its leftmost label, or its IP addresses, and no common name.
    """

    _role = ssl.PROTOCOL_TLS_CLIENT

    def verify_server(self, depth: int) -> None:
        """Verify the server's certificate, and that it is that of the name in question.

        Args:
          depth: how many CA certificates a chain may have, as nginx counts.
        """
        self.context.hostname_checks_common_name = False
        ssl_h.SSL_CTX_set_verify_depth(self._ctx, depth)

    def believe(self) -> None:
        """Accept any certificate."""
        believe(self.context)

    def offer(self, protocols: Sequence[bytes]) -> None:
        """Offer protocols by ALPN (RFC 7301)."""
        self.context.set_alpn_protocols([each.decode() for each in protocols])

    def hide_names(self) -> None:
        """The names of servers are not sent by SNI; see `hide_name`."""


def believe(context: ssl.SSLContext) -> None:
    """Have a client's context accept any certificate."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE


def trust_system(context: ssl.SSLContext) -> bool:
    """Trust the CAs of this machine, where its OpenSSL looks for them.

    Those of a directory are read when a certificate names them.

    Returns:
      Whether there are any.
    """
    found = ssl.get_default_verify_paths()
    context.set_default_verify_paths()
    if found.cafile:
        return True
    return bool(found.capath) and any(
        _HASHED.fullmatch(name) for name in os.listdir(found.capath)
    )


def hide_name(tls: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Do not send the name of the server by SNI; before the handshake."""
    ssl_h.SSL_ctrl(
        ssl_of(tls),
        ssl_h.SSL_CTRL_SET_TLSEXT_HOSTNAME,
        ssl_h.TLSEXT_NAMETYPE_host_name,
        None,
    )


class ClientSession:
    """A TLS session that a server may resume.

    Attributes:
      began: when its full handshake was, by the monotonic clock.
    """

    __slots__ = ("_free", "began", "pointer")

    def __init__(self, pointer: SSL_SESSION, began: float) -> None:
        self.pointer = pointer
        self.began = began
        self._free = ssl_h.SSL_SESSION_free

    def __del__(self) -> None:
        self._free(self.pointer)

    @property
    def usable(self) -> bool:
        """Whether it is young enough."""
        return monotonic() - self.began < MAX_AGE


def resume(tls: ssl.SSLSocket, session: ClientSession) -> None:
    """Ask the server to resume a session of the same context; before the handshake."""
    ssl_h.SSL_set_session(ssl_of(tls), session.pointer)


def resumable_session(
    tls: ssl.SSLSocket, resumed: ClientSession | None
) -> ClientSession | None:
    """Return the session of a connection, if its server has made it resumable.

    With TLS 1.3 that is so once something was read after the handshake.

    Args:
      resumed: the session that the server was asked to resume.
    """
    if unreachable() is not None or isinstance(tls.context, PortableContext):
        return None
    began = monotonic()
    if resumed is not None and tls.session_reused:
        began = resumed.began
    # OpenSSL spoils it if the connection breaks, or ends without a close_notify.
    pointer = ssl_h.SSL_get1_session(ssl_of(tls))
    if not pointer:
        return None
    session = ClientSession(pointer, began)
    return session if ssl_h.SSL_SESSION_is_resumable(pointer) else None


_CHAIN_TOO_LONG = x509_h.X509_V_ERR_CERT_CHAIN_TOO_LONG


def check_chain(tls: ssl.SSLSocket | ssl.SSLObject) -> None:
    """Check what `ssl` alone cannot make OpenSSL check during the handshake.

    Raises:
      ssl.SSLCertVerificationError: the chain is too long.
    """
    context = tls.context
    if not isinstance(context, PortableContext) or context.depth is None:
        return
    code, text = context.judge_chain(tls)
    if code:
        error = ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, text)
        error.verify_code, error.verify_message = code, text
        raise error
