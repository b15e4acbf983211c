"""The answers of auth sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mailproxy.errors import AuthError
from mailproxy.net.octets import CR, LF, NUL


def is_clean(text: bytes) -> bool:
    """Whether a user name or password contains no CR, LF or NUL.

    Each of them ends a line or a string in one of the protocols that transport it.
    """
    return not (LF in text or CR in text or NUL in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destinations:
    """What a source may name instead of the address of a backend."""

    groups: frozenset[str] = frozenset()
    """The names of the groups of backends (`upstream`), in lower case."""
    hosts: bool = False
    """Whether names of hosts are looked up (`resolver`)."""
    default: bool = False
    """Whether it may name nothing (`proxy_pass`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the backend is, and how to log in there."""

    kind: Literal["address", "group", "host", "default"] = "address"
    """What `server` is. "default" is what the server is configured for."""
    server: str
    """An IPv4 or IPv6 address, without brackets; the name of a group, in lower case; the
    name of a host; or empty."""
    port: int
    """1 to 65535; 0 for a group."""
    text: str = ""
    """Server and port as the source wrote them, for logs; empty: use both fields."""
    ssl: str = ""
    """Whether there is TLS to the backend: on, off, starttls; empty: as the configuration
    says."""
    smtp_auth: bool | None = None
    """Whether an SMTP backend requires AUTH; None: as `proxy_smtp_auth` says."""
    master: bytes = b""
    """The master user who logs in there with the secret that the source has supplied;
    empty: as `proxy_master_user` says."""

    @property
    def name(self) -> str:
        """The backend's name in logs: "127.0.0.1:143", "::1:143"."""
        return self.text or f"{self.server}:{self.port}"


CONFIGURED = Route(kind="default", server="", port=0)
"""The route of a login about whose backend the source says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The login is good."""

    user: bytes
    """The user to log in at the backend, and to name in logs."""
    secret: bytes | None = field(repr=False)
    """The password for the backend; None if neither the client nor the source supplied
    one."""
    route: Route | None = None
    """None if the source does not name a backend."""
    checked: bool = True
    """Whether the source has made sure who the client is. If it has not, only the client's
    own secret may be sent to the backend, which then decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The login is not good: the secret is not the user's, or the user may not log in."""

    text: bytes
    """The text sent to the client, without line end."""
    wait: float = 0
    """Seconds until the text is sent; then the client may try again. With 0 the session
    ends."""
    code: bytes = b""
    """SMTP reply code; empty: the protocol's default."""
    sasl_error: bytes = b""
    """Base64 for an OAuth client (RFC 7628, section 3.2.2), or empty."""
    reason: str = ""
    """The reason, for the log only; empty if `text` says it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The source does not know the user, or does not handle the mechanism."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The source gave no usable answer, which says nothing about the login.

    The attributes are those of `SessionError`.
    """

    event: str
    values: tuple[object, ...] = field(default=(), repr=False)
    """Kept out of the repr, because they may come from outside."""
    error: OSError | None = None
    level: str = "error"

    def exception(self) -> AuthError:
        """The error with which the session ends."""
        return AuthError(self.event, *self.values, error=self.error, level=self.level)


Verdict = Granted | Refused | Unknown | Unavailable
