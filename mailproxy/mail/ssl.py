"""ngx_mail_ssl_module: https://nginx.org/en/docs/mail/ngx_mail_ssl_module.html.

A server that uses TLS gets an `SSLContext` when the configuration is loaded: in the
master, so that -t finds the same errors as a start, and all workers have the same
ticket keys. Servers with the same settings share one context.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

from mailproxy.conf.directive import Block, Reading, Settings, directive
from mailproxy.conf.tree import ConfigError, Position
from mailproxy.conf.values import choice, choices, flag, number, seconds, shown, text
from mailproxy.mail.listen import Listen
from mailproxy.mail.load_state import load_state
from mailproxy.mail.ssl_values import (
    NO_CACHE,
    Key,
    PasswordFile,
    SessionCache,
    certificate_cache,
    certificates,
    commands,
    directories,
    file,
    files,
    has_variable,
    keys,
    password_file,
    session_cache,
    ssl_flag,
    starttls,
)
from mailproxy.net.certificate_cache import NO_CERTIFICATE_CACHE, CacheLimits

if TYPE_CHECKING:
    from ssl import SSLContext

    from mailproxy.mail.own_certificates import OwnCertificates

DEFAULT_CIPHERS = "HIGH:!aNULL:!MD5"


@dataclass(frozen=True, kw_only=True)
class SslSettings(Settings):
    """TLS with clients: certificates, protocols, sessions, client certificates."""

    starttls: str = directive(starttls, default="off")
    """Whether clients may (on) or must (only) begin TLS by STARTTLS or STLS."""

    ssl: bool = directive(ssl_flag, default=False, origin="nginx before 1.25.1")
    """Old form of ``listen … ssl``, for all addresses of a server."""

    ssl_certificate: tuple[str, ...] = directive(
        certificates, default=(), repeats="add"
    )
    """Certificates in PEM, each with its chain; one for each kind of key. With
    ``$ssl_server_name`` in the name of the file (since nginx 1.27 in other modules), the
    worker reads it when a client asks for that name by SNI."""

    ssl_certificate_key: tuple[Key, ...] = directive(keys, default=(), repeats="add")
    """The private keys of the certificates, in the same order."""

    ssl_certificate_directory: tuple[str, ...] = directive(
        directories, default=(), repeats="add", origin="mailproxy"
    )
    """Directories with certificates and their keys, in any layout: a client gets the
    one for the name that it asks for by SNI; see docs/certificates.md."""

    ssl_certificate_cache: CacheLimits = directive(
        certificate_cache, default=NO_CERTIFICATE_CACHE, origin="nginx in other modules"
    )
    """How many certificates with ``$ssl_server_name`` in their names each worker keeps;
    unused ones for ``inactive`` (10s), without a look at the file for ``valid`` (60s)."""

    ssl_reject_handshake: bool = directive(
        flag, default=False, origin="nginx in other modules"
    )
    """Whether clients are rejected that ask for a name that no certificate is for."""

    ssl_password_file: PasswordFile | None = directive(
        password_file, default=None, shown=""
    )
    """Passwords of the private keys, one per line, tried in turn."""

    ssl_certificate_compression: bool = directive(
        flag, default=False, origin="nginx since 1.29.1, Angie"
    )
    """Whether certificates are sent compressed; needs OpenSSL 3.2."""

    ssl_dhparam: str = directive(file, default="")
    """Parameters for DHE ciphers, which are not used without them."""

    ssl_ecdh_curve: str = directive(text, default="auto")
    """Groups for the key exchange, separated by colons."""

    ssl_protocols: frozenset[str] = directive(
        choices("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
        default=frozenset({"TLSv1.2", "TLSv1.3"}),
    )
    """Versions of TLS. Today's OpenSSL supports neither SSLv2 nor SSLv3."""

    ssl_ciphers: str = directive(text, default=DEFAULT_CIPHERS)
    """Ciphers of TLS 1.2 and older, in OpenSSL's format."""

    ssl_prefer_server_ciphers: bool = directive(flag, default=False)
    """Whether the server's order of ciphers takes precedence over the client's."""

    ssl_session_cache: SessionCache = directive(
        session_cache,
        default=NO_CACHE,
        repeats="last",
    )
    """Where TLS sessions are kept for resumption: in each worker, in shared memory."""

    ssl_session_tickets: bool = directive(flag, default=True)
    """Whether clients get session tickets, with which they keep the TLS session."""

    ssl_session_ticket_key: tuple[str, ...] = directive(
        files, default=(), repeats="add"
    )
    """Files of 48 or 80 bytes; the first encrypts new tickets, all are accepted."""

    ssl_session_timeout: float = directive(seconds, default=300.0)
    """Time for which a TLS session can be resumed, in seconds."""

    ssl_verify_client: str = directive(
        choice("off", "on", "optional", "optional_no_ca"), default="off"
    )
    """Whether clients are asked for a certificate, and whether it must be valid."""

    ssl_verify_depth: int = directive(number, default=1)
    """Maximum number of CA certificates in a client's chain."""

    ssl_client_certificate: str = directive(file, default="")
    """Trusted CA certificates, whose names are sent to clients."""

    ssl_trusted_certificate: str = directive(file, default="")
    """Trusted CA certificates, whose names are not sent."""

    ssl_crl: str = directive(file, default="")
    """Lists of revoked client certificates."""

    ssl_conf_command: tuple[tuple[str, str], ...] = directive(
        commands, default=(), repeats="add"
    )
    """Commands of OpenSSL's configuration language, applied last."""

    context: SSLContext | None = None
    """The TLS context of this server; None if it does not use TLS."""

    own: OwnCertificates | None = None
    """The certificates that clients get; None if it does not use TLS."""

    depends_on: ClassVar[tuple[str, ...]] = ("listen",)

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of a server, with its context.

        Raises:
          ConfigError: a certificate or key is missing, or OpenSSL rejects a setting; in
            nginx's words.
        """
        settings = super().make(block, reading)
        cache = _inherited_cache(block)
        if cache is not settings.ssl_session_cache:
            settings = replace(settings, ssl_session_cache=cache)
        mode, position = _mode(block, settings)
        if not mode:
            return settings
        settings.check_certificates(mode, position)
        return settings.with_context(block, reading)

    def with_context(self, block: Block, reading: Reading) -> Self:
        """Add the context, which servers with the same settings share."""
        state = load_state(reading)
        protocol = state.protocol.get(block)
        name = state.server_names.get(block) if self.by_name else None
        # Servers that inherit all their settings have the same object.
        known = state.with_context.get((id(self), protocol, name))
        if known is not None:
            return cast("Self", known[1])
        contexts = state.contexts
        key = replace(self, starttls="", ssl=False), protocol, name
        if key not in contexts:
            from mailproxy.mail.ssl_context import build  # loads OpenSSL

            contexts[key] = build(self, block, reading)
        own = contexts[key]
        complete = replace(self, context=own.context, own=own)
        state.with_context[id(self), protocol, name] = self, complete
        return complete

    @property
    def by_name(self) -> bool:
        """Whether it depends on the client's SNI which certificate it gets."""
        return bool(
            self.ssl_certificate_directory
            or self.ssl_reject_handshake
            or any(map(has_variable, self.ssl_certificate))
        )

    def check_certificates(self, mode: str, position: Position | None) -> None:
        """Check that there is a certificate, and a key for each certificate.

        Args:
          mode: the directive that enables TLS.
          position: the place that nginx names for it.

        Raises:
          ConfigError: one is missing.
        """
        where = f'the "{mode}" directive'
        if not self.ssl_certificate:
            if self.ssl_certificate_directory:
                return  # it is read before it is known what is in it
            raise ConfigError(f'no "ssl_certificate" is defined for {where}', position)
        missing = 'no "ssl_certificate_key" is defined for '
        if not self.ssl_certificate_key:
            raise ConfigError(missing + where, position)
        if len(self.ssl_certificate_key) < len(self.ssl_certificate):
            last = shown(self.ssl_certificate[-1])
            raise ConfigError(f'{missing}certificate "{last}" and {where}', position)


def _mode(block: Block, settings: SslSettings) -> tuple[str, Position | None]:
    """The directive that enables TLS, and the place that nginx names for it."""
    listen = block.given.get("listen")
    listens = cast("Iterable[Listen]", () if listen is None else listen.value)
    positions = [each.position for each in listens if each.ssl]
    if positions:
        return "listen ... ssl", positions[-1]
    if not settings.ssl and settings.starttls == "off":
        return "", None
    mode = "ssl" if settings.ssl else "starttls"
    for level in block.around():
        for name, given in reversed(level.given.items()):
            if name in ("ssl", "starttls"):
                return mode, given.position
    return mode, None


def _inherited_cache(block: Block) -> SessionCache:
    """Both parts of `ssl_session_cache`, each from the innermost block that sets it."""
    cache = None
    for level in block.around():
        given = level.given.get("ssl_session_cache")
        if given is not None:
            outer = cast("SessionCache", given.value)
            cache = outer if cache is None else cache.within(outer)
    return NO_CACHE if cache is None else cache.within(NO_CACHE)
