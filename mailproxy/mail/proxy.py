"""ngx_mail_proxy_module: https://nginx.org/en/docs/mail/ngx_mail_proxy_module.html."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

from mailproxy.conf.directive import Reading, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive
from mailproxy.conf.values import (
    HOUR,
    MINUTE,
    c_string,
    choice,
    duration,
    flag,
    lower,
    number,
    size,
)


def _parse_xclient(found: Directive, _: Reading) -> str:
    word = found.words[1]
    text = lower(c_string(word.value))
    if text in ("on", "off", "auto"):
        return text
    raise ConfigError(
        f'invalid value "{c_string(word.value)}" in "xclient" directive, '
        'it must be "on" or "off"',
        word,
        "or auto, for backends of which not all offer XCLIENT",
    )


xclient: Value[str] = Value(
    _parse_xclient, "on | off | auto", parameters=("on", "off", "auto")
)


@dataclass(frozen=True, kw_only=True)
class ProxySettings(Settings):
    """How sessions are passed on to backends."""

    proxy: bool = directive(flag, default=False, accepted=True)
    """Accepted; as in every version of nginx, sessions are always proxied."""

    proxy_buffer: int | None = directive(size, default=None, shown="4k | 8k")
    """Bytes that one direction of a relayed session may buffer; None: not set."""

    proxy_timeout: float = directive(duration, default=24 * HOUR)
    """Idle time after which a relayed session is closed, in seconds."""

    proxy_connect_timeout: float = directive(
        duration, default=MINUTE, origin="nginx's stream module"
    )
    """Time for a connection to a backend to be made, in seconds; then `timeout` begins
    for its greeting and the login."""

    proxy_next_upstream: bool = directive(
        flag, default=True, origin="nginx's stream module"
    )
    """Whether another backend of the group is tried if one cannot be reached, or does
    not greet as its protocol requires."""

    proxy_next_upstream_tries: int = directive(
        number, default=0, origin="nginx's stream module"
    )
    """Backends that are tried for one login, at most; 0: all."""

    proxy_next_upstream_timeout: float = directive(
        duration, default=0.0, origin="nginx's stream module"
    )
    """Time after which no further backend is tried, in seconds; 0: no limit."""

    proxy_pass_error_message: bool = directive(flag, default=False)
    """Whether a client gets the backend's own message when the login there failed."""

    xclient: str = directive(xclient, default="on")
    """Whether SMTP backends are told about the client by XCLIENT; auto: only backends
    that offer it, with the attributes that they offer."""

    proxy_smtp_auth: bool = directive(flag, default=False)
    """Whether to log in at SMTP backends with AUTH; `Auth-SMTP: yes` or `no` in the
    answer of the auth server overrides it for a session."""

    proxy_login: str = directive(
        choice("quoted", "literal"), default="quoted", origin="mailproxy"
    )
    """How IMAP backends are told user and password: "quoted" in one line, as quoted
    strings, and as literals only if not every server would understand that (octets
    outside printable ASCII, `"`, `\\`, a line of more than 1000 bytes); "literal" always
    as literals, byte for byte as nginx does it."""

    proxy_protocol: str = directive(choice("off", "on", "v2"), default="off")
    """Whether backends get a PROXY header, and its version: on is version 1."""

    @property
    def next_upstream_timeout(self) -> float:
        """`proxy_next_upstream_timeout`, as a number of seconds that may be inf."""
        return self.proxy_next_upstream_timeout or math.inf

    @property
    def reply_limit(self) -> int:
        """Octets that one reply of a backend may have before the relay begins."""
        if self.proxy_buffer is None:
            return resource.getpagesize()
        return self.proxy_buffer
