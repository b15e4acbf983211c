"""TLS with backends; the directives are those of ngx_stream_proxy_module.

https://nginx.org/en/docs/stream/ngx_stream_proxy_module.html

Unlike there, the certificate of a backend is verified unless the configuration says
otherwise. The context is made when the configuration is loaded; servers with the same
settings share one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

from mailproxy.conf.directive import Block, Reading, Settings, directive
from mailproxy.conf.tree import ConfigError, Directive
from mailproxy.conf.values import choice, choices, flag, number, shown, text
from mailproxy.mail.load_state import load_state
from mailproxy.mail.ssl_values import (
    Key,
    PasswordFile,
    alpn,
    certificate,
    commands,
    file,
    key,
    name,
    password_file,
    pins,
)

if TYPE_CHECKING:
    from ssl import SSLContext

_STREAM = "nginx's stream module"


@dataclass(frozen=True, kw_only=True)
class ProxySslSettings(Settings):
    """TLS with backends: whether, and who a backend has to be."""

    proxy_ssl: str = directive(
        choice("on", "off", "starttls"), default="off", origin=_STREAM
    )
    """Whether sessions with backends are in TLS: from the first octet on (on), or by
    STARTTLS or STLS (starttls), without which nothing is said to a backend.
    `Auth-Server-SSL` in the answer of the auth server counts more, but cannot switch TLS
    off."""

    proxy_ssl_certificate: str = directive(certificate, default="", origin=_STREAM)
    """The certificate by which backends know this proxy, in PEM, with its chain."""

    proxy_ssl_certificate_key: Key | None = directive(
        key, default=None, shown="", origin=_STREAM
    )
    """The private key of that certificate."""

    proxy_ssl_password_file: PasswordFile | None = directive(
        password_file, default=None, shown="", origin=_STREAM
    )
    """Passwords of that key, one per line, tried in turn."""

    proxy_ssl_verify: bool = directive(flag, default=True, origin=_STREAM)
    """Whether the certificate of a backend has to be valid, and to have the name that
    `proxy_ssl_name` says. In nginx the default is off."""

    proxy_ssl_server_name: bool = directive(flag, default=True, origin=_STREAM)
    """Whether that name is sent by SNI; IP addresses never are. In nginx the default is
    off."""

    proxy_ssl_name: str = directive(
        name, default="", shown="the host of the backend", origin=_STREAM
    )
    """The name of backends in their certificates; the default is what stands in
    `Auth-Server`, which is an IP address. One of the certificate's DNS names has to be
    the same, of which the leftmost label may be `*` (RFC 9525); the common name does not
    count."""

    proxy_ssl_trusted_certificate: str = directive(
        file, default="", shown="the system's", origin=_STREAM
    )
    """Trusted CA certificates, in place of those of the system."""

    proxy_ssl_crl: str = directive(file, default="", origin=_STREAM)
    """Lists of revoked certificates; each CA of a chain must have one."""

    proxy_ssl_verify_depth: int = directive(number, default=3, origin=_STREAM)
    """Maximum number of CA certificates in a backend's chain. In nginx the default is
    1."""

    proxy_ssl_pinned_sha256: frozenset[bytes] = directive(
        pins, default=frozenset(), repeats="add", origin="mailproxy"
    )
    """SHA-256 of the keys that backends may have, in hexadecimal: of the
    SubjectPublicKeyInfo in the certificate of the backend itself. With
    `proxy_ssl_verify off` that alone counts."""

    proxy_ssl_protocols: frozenset[str] = directive(
        choices("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
        default=frozenset({"TLSv1.2", "TLSv1.3"}),
        origin=_STREAM,
    )
    """Versions of TLS."""

    proxy_ssl_ciphers: str = directive(text, default="DEFAULT", origin=_STREAM)
    """Ciphers of TLS 1.2 and older, in OpenSSL's format."""

    proxy_ssl_conf_command: tuple[tuple[str, str], ...] = directive(
        commands, default=(), repeats="add", origin=_STREAM
    )
    """Commands of OpenSSL's configuration language, applied last."""

    proxy_ssl_alpn: tuple[bytes, ...] = directive(alpn, default=(), origin=_STREAM)
    """Protocols to offer by ALPN; the default is not to offer any."""

    proxy_ssl_session_reuse: bool = directive(flag, default=True, origin=_STREAM)
    """Whether TLS sessions are resumed: each worker keeps the last one with each address
    and name, for an hour at most. The certificate is verified when a session begins."""

    loaded: SSLContext | None = None
    """The context, if one was made when the configuration was loaded."""

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of a server, with its context if a directive or group wants one.

        Raises:
          ConfigError: a key is missing, nobody is trusted, or OpenSSL rejects a setting;
            in nginx's words.
        """
        settings = super().make(block, reading)
        given = any(level.sets(cls) for level in block.around())
        silent = not given or (settings.proxy_ssl == "off" and settings.is_default)
        if silent and load_state(reading).group_with_tls is None:
            return settings
        _check(settings, block)
        contexts = load_state(reading).backend_contexts
        key = settings.of_context
        if key not in contexts:
            from mailproxy.mail.proxy_ssl_context import build  # loads OpenSSL

            contexts[key] = build(settings, block, reading)
        _warn_of_anyone(settings, block, reading)
        return replace(settings, loaded=contexts[key])

    @property
    def is_default(self) -> bool:
        """Whether nothing but `proxy_ssl` is set."""
        return replace(self, proxy_ssl="off", loaded=None) == type(self)()

    @property
    def of_context(self) -> Self:
        """What decides about the context, and so about which TLS sessions are alike."""
        return replace(
            self,
            proxy_ssl="off",
            proxy_ssl_name="",
            proxy_ssl_session_reuse=True,
            loaded=None,
        )

    @cached_property
    def context(self) -> SSLContext:
        """The context, which an auth source may want where no directive does."""
        if self.loaded is not None:
            return self.loaded
        from mailproxy.mail.proxy_ssl_context import default_context

        assert self.is_default
        return default_context(self.of_context)


def _check(settings: ProxySslSettings, block: Block) -> None:
    """Check that the certificate has a key.

    Raises:
      ConfigError: it has none.
    """
    if settings.proxy_ssl_certificate and settings.proxy_ssl_certificate_key is None:
        name = shown(settings.proxy_ssl_certificate)
        raise ConfigError(
            f'no "proxy_ssl_certificate_key" is defined for certificate "{name}"',
            _statement(block, "proxy_ssl_certificate"),
            "add: proxy_ssl_certificate_key FILE;",
        )


def _statement(block: Block, directive: str) -> Directive | None:
    given = block.find(directive)
    return None if given is None else given.directive


def _warn_of_anyone(settings: ProxySslSettings, block: Block, reading: Reading) -> None:
    """Warn if any backend is believed, once for each directive that says so."""
    statement = _statement(block, "proxy_ssl_verify")
    if settings.proxy_ssl_verify or settings.proxy_ssl_pinned_sha256:
        return
    said = load_state(reading).unverified
    if statement is not None and statement not in said:
        said.add(statement)
        reading.warn(
            '"proxy_ssl_verify off" without "proxy_ssl_pinned_sha256" '
            "accepts any server",
            statement,
            "proxy_ssl_verify on; or proxy_ssl_pinned_sha256 HEX;",
        )
