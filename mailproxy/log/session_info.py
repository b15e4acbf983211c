"""SessionInfo: what is known of a session, in one place.

The error log takes the context of its lines from here, the auth source and the backend
are told what stands here, and the worker lists its live sessions by it. Nothing is
copied from it: what changes, changes here.
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
    """Who a session is about, and how far it has come; one session owns and changes it."""

    connection: int
    """Number of the client's connection, unique in its worker."""
    client: str
    """Address of the client without port, after `set_real_ip_from`; `unix:` for a unix
    socket."""
    client_port: int | None = None
    server: str = ""
    """Text of the `listen` address."""
    action: str | None = "sending client greeting line"
    """What the session is doing, as it reads behind "while"."""
    starttls: bool = False
    """A STARTTLS handshake has begun."""
    login: bytes = b""
    """User name: the client's, or the one that the auth source has put in its place."""
    upstream: str | None = None
    """Address of the backend, once the connection to it has been started."""
    tags: tuple[str, ...] = ()
    """Values of `error_log_user_tag`."""
    peer: str = ""
    """Address and port at the other end of the socket: the client, or a proxy."""
    protocol: str = ""
    """What the client speaks: "imap", "pop3", "smtp"."""
    accepted: float = 0.0
    """When the connection was accepted, in seconds of trio's clock."""
    phase: Phase = Phase.GREETING
    header: Header | None = None
    """The PROXY header that the client came with, whether or not it is believed."""
    helo: bytes = b""
    """SMTP: what the client last called itself."""
    method: str = ""
    """How the client wants to log in, as auth_http's `Auth-Method`; "": not yet."""
    attempts: int = 0
    """Logins that the auth source was asked about."""
    client_wire: Wire | None = None
    """The connection to the client; it counts octets, and does so after its end."""
    upstream_wire: Wire | None = None
    """The connection to the backend, once there is one."""

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
        """Octets to the backend: inside TLS, with the PROXY header that it gets."""
        return 0 if self.upstream_wire is None else self.upstream_wire.sent

    def properties(self) -> dict[str, str]:
        """The session as Angie's JSON lines and filters know it; nothing is empty."""
        properties = {
            "action": self.action,
            "client": self.client_address,
            "server": self.server,
            "starttls": "true" if self.starttls else None,
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
    def all_tags(self) -> tuple[str, ...]:
        """`mail`, then those of the configuration, each once."""
        if not self.tags:
            return ("mail",)
        return tuple(dict.fromkeys(("mail", *self.tags)))
