"""ngx_mail_proxy_module: https://nginx.org/en/docs/mail/ngx_mail_proxy_module.html."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.directive import Settings, directive
from mailproxy.conf.values import HOUR, choice, duration, flag, size


@dataclass(frozen=True, kw_only=True)
class ProxySettings(Settings):
    """How sessions are passed on to backends."""

    proxy: bool = directive(flag, default=False)
    """Without effect, as in every version of nginx: sessions are always proxied."""

    proxy_buffer: int | None = directive(size, default=None, shown="4k | 8k")
    """Bytes that one direction of a relayed session may hold; None: no bound is set."""

    proxy_timeout: float = directive(duration, default=24 * HOUR)
    """Idle time after which a relayed session is closed, in seconds."""

    proxy_pass_error_message: bool = directive(flag, default=False)
    """Whether a client sees what its backend said when the login there failed."""

    xclient: bool = directive(flag, default=True)
    """Whether SMTP backends are told about the client by XCLIENT."""

    proxy_smtp_auth: bool = directive(flag, default=False)
    """Whether SMTP backends are logged in to with AUTH."""

    proxy_protocol: str = directive(choice("off", "on", "v2"), default="off")
    """Whether backends get a PROXY header, and of which version: off, on (1), v2."""
