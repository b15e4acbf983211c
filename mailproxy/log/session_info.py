"""SessionInfo: what is known of a session, in one place.

The error log takes the context of its lines from here, requests to the auth source and
the backend take their facts from here, and the worker lists its live sessions by it.
Nothing is copied from it, so a change needs to be made only here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.net.proxy_protocol import Header
    from mailproxy.net.wire import Wire


class Phase(IntEnum):
    """How far a session has come."""

    PROXY_HEADER = 1
    """The PROXY header of the client is being read."""
    TLS = 2
    """A TLS handshake with the client, at once or after STARTTLS."""
    GREETING = 3
    """From the names of an SMTP client to the greeting."""
    LOGIN = 4
    """Commands, until one of them is a login."""
    AUTH = 5
    """The auth source is asked."""
    CONNECT = 6
    """A connection to the backend has been started."""
    BACKEND_LOGIN = 7
    """The first octets have been sent to the backend."""
    RELAYED = 8
    """Logged in; octets are passed on."""


@dataclass(slots=True, eq=False)
class SessionInfo:
    """Who the client of a session is, and how far it has come; only the session changes it."""

    connection: int
    """Number of the client's connection, unique in its worker."""
    client: str
    """Address of the client without port, after `set_real_ip_from`; `unix:` for a unix
    socket."""
    client_port: int | None = None
    server: str = ""
    """Text of the `listen` address."""
    action: str | None = "sending client greeting line"
    """What the session is doing, worded to follow "while"."""
    starttls: bool = False
    """A STARTTLS handshake has begun."""
    login: bytes = b""
    """User name: the client's, or the one that the auth source replaced it with."""
    sni: bytes = b""
    """The name that the client asked for by SNI, if that has chosen its certificate."""
    upstream: str | None = None
    """Address of the backend, once the connection to it has been started."""
    tags: tuple[str, ...] = ()
    """Values of `error_log_user_tag`."""
    peer: str = ""
    """Address and port at the other end of the socket: the client, or a proxy."""
    protocol: str = ""
    """The client's protocol: "imap", "pop3", "smtp"."""
    accepted: float = 0.0
    """When the connection was accepted, in seconds of trio's clock."""
    phase: Phase = Phase.GREETING
    header: Header | None = None
    """The PROXY header that came before the client's data, whether trusted or not."""
    helo: bytes = b""
    """SMTP: the name of the client in its last HELO or EHLO."""
    method: str = ""
    """How the client wants to log in, as auth_http's `Auth-Method`; empty before that."""
    attempts: int = 0
    """Logins that the auth source was asked about."""
    client_wire: Wire | None = None
    """The connection to the client, whose counters can be read after it is closed."""
    upstream_wire: Wire | None = None
    """The connection to the backend; None before there is one."""

    @property
    def received(self) -> int:
        """Octets from the client: inside TLS, without the PROXY header."""
        return 0 if self.client_wire is None else self.client_wire.received

    @property
    def sent(self) -> int:
        """Octets to the client: inside TLS, and accepted by the kernel."""
        return 0 if self.client_wire is None else self.client_wire.sent

    @property
    def upstream_received(self) -> int:
        """Octets from the backend, inside TLS."""
        return 0 if self.upstream_wire is None else self.upstream_wire.received

    @property
    def upstream_sent(self) -> int:
        """Octets to the backend: inside TLS, with the PROXY header sent to it."""
        return 0 if self.upstream_wire is None else self.upstream_wire.sent

    def properties(self) -> dict[str, str]:
        """The session as Angie's JSON lines and filters show it; no value is empty."""
        properties = {
            "action": self.action,
            "client": self.client_address,
            "server": self.server,
            "starttls": "true" if self.starttls else None,
            "ssl_server_name": self.sni.decode("utf-8", "surrogateescape"),
            "login": self.login.decode("utf-8", "surrogateescape"),
            "upstream": self.upstream,
        }
        if self.peer != properties["client"]:
            properties["peer"] = self.peer
        return {name: value for name, value in properties.items() if value}

    @property
    def client_address(self) -> str:
        """Address and port of the client."""
        if self.client_port is None:
            return self.client
        if ":" in self.client:
            return f"[{self.client}]:{self.client_port}"
        return f"{self.client}:{self.client_port}"

    @property
    def peer_address(self) -> str:
        """Address of `peer`, without its port."""
        if self.peer == "unix:":
            return self.peer
        return self.peer.rpartition(":")[0].strip("[]")

    @property
    def all_tags(self) -> tuple[str, ...]:
        """`mail`, then the tags of the configuration, without duplicates."""
        if not self.tags:
            return ("mail",)
        return tuple(dict.fromkeys(("mail", *self.tags)))
