"""TLS with one backend: whether, how it begins, and whether it is the right one."""

from __future__ import annotations

import encodings.idna  # noqa: F401 # `ssl` looks for it, when a worker may not read files
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.errors import AuthError, BackendError
from mailproxy.mail.ssl_values import host_name
from mailproxy.net import faults, openssl

if TYPE_CHECKING:
    from mailproxy.mail.candidates import Candidate
    from mailproxy.mail.client import Client
    from mailproxy.mail.proxy_ssl import ProxySslSettings
    from mailproxy.net.openssl import ClientSession
    from mailproxy.net.resumption import Resumption
    from mailproxy.net.wire import Wire

_MISMATCHES = frozenset((62, 64))
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_NO_MATCH = 'upstream SSL certificate does not match "%s"'


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTls:
    """The TLS that there has to be with a backend.

    Attributes:
      mode: on, from the first octet; starttls, when the backend is asked for it.
      name: the name that its certificate has to have.
      where: its address.
      resumption: the TLS sessions of this worker.
    """

    mode: str
    settings: ProxySslSettings
    name: str
    where: object
    resumption: Resumption

    @property
    def _key(self) -> object:
        return self.where, self.name, self.settings.context

    async def shake_hands(self, wire: Wire) -> ClientSession | None:
        """Do the handshake, and make sure that the backend is the right one.

        Returns:
          The TLS session that the backend was asked to resume.

        Raises:
          BackendError: the handshake failed, or it is not.
        """
        settings = self.settings
        name = usable_name(self.name, settings)
        session = None
        if settings.proxy_ssl_session_reuse:
            session = self.resumption.find(self._key)
        try:
            await wire.connect_tls(
                settings.context,
                name,
                session=session,
                hide_name=name is not None and not settings.proxy_ssl_server_name,
            )
        except OSError as error:
            raise failed_handshake(error, self.name) from None
        assert wire.tls is not None
        check_pin(wire.tls, settings)
        return session

    def keep(self, wire: Wire, resumed: ClientSession | None) -> None:
        """Keep the TLS session of a backend that is the right one."""
        if self.settings.proxy_ssl_session_reuse:
            session = wire.resumable_session(resumed)
            if session is not None:
                self.resumption.keep(self._key, session)


def expected_name(settings: ProxySslSettings, own: str, host: str) -> str:
    """The name that the certificate of a backend has to have.

    Args:
      own: what `name=` says of it, if anything.
      host: its host as written.
    """
    return own or settings.proxy_ssl_name or host


def usable_name(name: str, settings: ProxySslSettings) -> str | None:
    """The name of a backend as TLS has it; None: it is no name, and need not be one.

    Raises:
      BackendError: no certificate can have it.
    """
    usable = host_name(name)
    if usable is None and settings.proxy_ssl_verify:
        raise BackendError(_NO_MATCH, name, action=None)
    return usable


def check_pin(tls: ssl.SSLSocket | ssl.SSLObject, settings: ProxySslSettings) -> None:
    """Check the key of a backend.

    Raises:
      BackendError: it is none of those that are pinned.
    """
    pins = settings.proxy_ssl_pinned_sha256
    if not pins:
        return
    digest = openssl.key_digest(tls)
    if digest not in pins:
        raise BackendError(
            "upstream SSL certificate does not match the pin, its key has %s",
            digest.hex(),
            action=None,
        )


def failed_handshake(error: OSError, name: str) -> BackendError:
    """The error for a failed handshake, in nginx's words.

    Args:
      name: the name that the certificate has to have.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        code, text = error.verify_code, error.verify_message
        if code in _MISMATCHES:
            return BackendError(_NO_MATCH, name, action=None)
        event = "upstream SSL certificate verify error: (%s:%s)"
        return BackendError(event, code, text, action=None)
    found = faults.describe("handshake", error, BackendError.level)
    return BackendError(
        found.event,
        *found.values,
        error=found.error,
        level=found.level,
        action=None,
    )


def backend_tls(client: Client, candidate: Candidate, wanted: str) -> BackendTls | None:
    """The TLS that there has to be with a candidate; None: it is spoken to in clear text.

    Args:
      wanted: on, off, starttls, as the auth source has said; empty: it was silent.

    Raises:
      AuthError: the auth source would switch TLS off.
    """
    settings = client.server.proxy_ssl
    configured = candidate.ssl or settings.proxy_ssl
    if wanted == "off" and configured != "off":
        raise AuthError('auth http server sent invalid "Auth-Server-SSL":"off"')
    mode = wanted or configured
    if mode == "off":
        return None
    return BackendTls(
        mode=mode,
        settings=settings,
        name=expected_name(settings, candidate.ssl_name, candidate.host),
        where=(candidate.family, candidate.address),
        resumption=client.network.resumption,
    )
