"""ngx_mail_auth_http_module: https://nginx.org/en/docs/mail/ngx_mail_auth_http_module.html."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mailproxy.conf.addresses import AddressError, SocketAddress, parse_url
from mailproxy.conf.directive import Block, Scope, Settings, Value, directive
from mailproxy.conf.syntax import ConfigError, Directive
from mailproxy.conf.values import MINUTE, duration, flag, pair
from mailproxy.mail.auth import exchange

if TYPE_CHECKING:
    from mailproxy.mail.auth.source import Granted, Refused
    from mailproxy.mail.client import Client
    from mailproxy.mail.protocol import Login


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthUrl:
    """Where the auth server is, and what it is asked for."""

    text: str
    """As written, without ``http://``."""
    host: bytes
    """The value of the Host header."""
    uri: bytes
    family: int
    sockaddr: SocketAddress
    address: str
    """For logs: "127.0.0.1:80", "unix:/path"."""


def _parse_url(found: Directive, _: Scope) -> AuthUrl | None:
    word = found.words[1]
    text = word.value.removeprefix("http://")
    try:
        url = parse_url(text, 80, uri=True)
    except AddressError as error:
        secure = text.startswith("https://")
        raise ConfigError(
            f'{error} in auth_http "{text}"',
            word,
            "an auth server is asked by http:// only"
            if secure
            else error.remedy or "nginx accepts host[:port][/uri] or unix:/path[:/uri]",
        ) from None
    first = url.addresses[0]
    host = "localhost" if first.family == socket.AF_UNIX else url.host
    return AuthUrl(
        text=text,
        host=host.encode("utf-8", "surrogateescape"),
        uri=(url.uri or "/").encode("utf-8", "surrogateescape"),
        family=first.family,
        sockaddr=first.sockaddr,
        address=first.text,
    )


url: Value[AuthUrl | None] = Value(_parse_url, "url", parameters=("unix:",))


@dataclass(frozen=True, kw_only=True)
class AuthHttpSettings(Settings):
    """The auth server: who may log in, and where to."""

    auth_http: AuthUrl | None = directive(url, default=None, repeats="last", shown="")
    """The auth server; every server needs one, so it is never None once loaded."""

    auth_http_timeout: float = directive(duration, default=MINUTE)
    """Time for its answer, in seconds."""

    auth_http_header: tuple[tuple[bytes, bytes], ...] = directive(
        pair, default=(), repeats="add", shown=""
    )
    """Header lines added to each request, as (name, value)."""

    auth_http_pass_client_cert: bool = directive(flag, default=False)
    """Whether requests carry the client's certificate, as Auth-SSL-Cert."""

    @classmethod
    def make(cls, block: Block, scope: Scope) -> Self:
        """The settings of a server.

        Raises:
          ConfigError: it has no `auth_http`.
        """
        if not block.written("auth_http"):
            raise ConfigError(
                'no "auth_http" is defined for server',
                block.directive,
                "add: auth_http URL; to the server, or to mail {}",
            )
        return super().make(block, scope)

    async def check(self, login: Login, client: Client) -> Granted | Refused:
        """Ask the auth server.

        Raises:
          AuthError: it cannot be reached, or its answer is not a decision.
        """
        return await exchange.check(self, login, client)
