"""ngx_mail_auth_http_module: https://nginx.org/en/docs/mail/ngx_mail_auth_http_module.html."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from mailproxy.auth.source import Source
from mailproxy.conf.addresses import AddressError, SocketAddress, parse_url
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive, Word
from mailproxy.conf.values import (
    MINUTE,
    c_string,
    duration,
    flag,
    lower,
    pair,
    parse_milliseconds,
    parse_number,
)
from mailproxy.net.reuse import Reuse

if TYPE_CHECKING:
    from mailproxy.auth.request import AuthRequest
    from mailproxy.auth.verdict import Verdict
    from mailproxy.log import Logger
    from mailproxy.net.network import Network
    from mailproxy.net.timer import Timer


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthUrl:
    """The address of the auth server, and the URI of requests to it."""

    text: str
    """As written, without ``http://``."""
    host: bytes
    """The value of the Host header."""
    uri: bytes
    family: int
    sockaddr: SocketAddress
    address: str
    """For logs: "127.0.0.1:80", "unix:/path"."""


def _parse_url(found: Directive, _: Reading) -> AuthUrl | None:
    text = found.values[1].removeprefix("http://")
    try:
        url = parse_url(text, 80, uri=True)
    except AddressError as error:
        secure = text.startswith("https://")
        raise ConfigError(
            f'{error} in auth_http "{text}"',
            found.words[1],
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


AUTO = Reuse(idle=0.02, parallel_idle=0.1, requests=100, yielding=True)
"""Long enough to reuse connections under load, too short to starve the other clients of
a server that serves one connection at a time."""
ON = Reuse(idle=MINUTE, requests=1000)


def _parse_keepalive(found: Directive, _: Reading) -> Reuse | None:
    mode, *parameters = found.args
    known = {"off": None, "auto": AUTO, "on": ON}
    name = lower(c_string(mode.value))
    if name not in known:
        raise ConfigError(
            f'invalid value "{c_string(mode.value)}"',
            mode,
            "accepted are off, auto, on [idle=time] [requests=number]",
        )
    if name != "on" and parameters:
        raise ConfigError(
            f'invalid parameter "{parameters[0].value}"',
            parameters[0],
            f'"{name}" has no parameters; say: on {parameters[0].value}',
        )
    reuse = ON
    seen = set()
    for word in parameters:
        parameter, changed = _parse_reuse(reuse, word)
        if parameter in seen:
            raise ConfigError(f'duplicate parameter "{word.value}"', word)
        seen.add(parameter)
        reuse = changed
    return reuse if name == "on" else known[name]


def _parse_reuse(reuse: Reuse, word: Word) -> tuple[str, Reuse]:
    """Apply a parameter to `reuse`; returns its name and the changed value.

    Raises:
      ConfigError: the parameter is unknown, or its value is invalid or 0.
    """
    name, _, value = word.value.partition("=")
    try:
        if name == "idle" and (idle := parse_milliseconds(value)):
            return name, replace(reuse, idle=idle / 1000)
        if name == "requests" and (requests := parse_number(value)):
            return name, replace(reuse, requests=requests)
    except ValueError:
        pass  # the same error as for 0
    raise ConfigError(
        f'invalid parameter "{word.value}"',
        word,
        "parameters are idle=60s and requests=1000, both more than 0; "
        "to keep no connections say: off",
    )


keepalive: Value[Reuse | None] = Value(
    _parse_keepalive,
    "off | auto | on [idle=time] [requests=number]",
    most=3,
    parameters=("off", "auto", "on", "idle=", "requests="),
)


@dataclass(frozen=True, kw_only=True)
class AuthHttpSettings(Settings, Source):
    """The auth server: who may log in, and where to."""

    name: ClassVar[str] = "auth_http"

    auth_http: AuthUrl | None = directive(url, default=None, repeats="last", shown="")
    """The auth server; every server needs one, so it is never None once loaded."""

    auth_http_timeout: float = directive(duration, default=MINUTE)
    """Time that the auth server has for its answer, in seconds."""

    auth_http_header: tuple[tuple[bytes, bytes], ...] = directive(
        pair, default=(), repeats="add", shown=""
    )
    """Header lines added to each request, as (name, value)."""

    auth_http_pass_client_cert: bool = directive(flag, default=False)
    """Whether requests carry the client's certificate, as Auth-SSL-Cert."""

    auth_http_pass_server_name: bool = directive(
        flag, default=False, origin="mailproxy"
    )
    """Whether requests carry the name that the client asked for by SNI, as
    Auth-SSL-Server-Name."""

    auth_http_keepalive: Reuse | None = directive(
        keepalive, default=AUTO, shown="auto", origin="mailproxy"
    )
    """How long a connection to the auth server is reused: "auto" keeps it for 20ms
    between two requests (100ms once the server has shown that it serves several
    connections at once, not at all for a minute once it has shown that it serves one at
    a time) and for 100 requests, "on" by default for 60s and 1000 requests. With "off",
    each request has its own connection, and is the same as nginx's, byte for byte."""

    @classmethod
    def applies(cls, block: Block, reading: Reading) -> bool:  # noqa: ARG003 # for all alike
        """Whether the server asks an auth server."""
        return block.written("auth_http")

    @cached_property
    def request_template(self) -> bytes:
        """What all requests have in common; see `http_request.make_template`."""
        from mailproxy.auth import http_request  # see `mail/dialogues.py`

        return http_request.make_template(self)

    @cached_property
    def _ask(self) -> Callable[..., Coroutine[object, object, Verdict]]:
        from mailproxy.auth import http_exchange  # see `mail/dialogues.py`

        return http_exchange.check

    def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Coroutine[object, object, Verdict]:
        return self._ask(self, request, network, timer, log)
