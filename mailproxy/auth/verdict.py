"""What an auth source can answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailproxy.errors import AuthError

FORBIDDEN = frozenset(b"\r\n\0")
"""Octets that no user name and no password may have: they end a line or a string
in one of the protocols that carry them on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the backend is, and how it wants to be logged in to."""

    server: str
    """An IPv4 or IPv6 address, without brackets."""
    port: int
    """1 to 65535."""
    text: str = ""
    """Server and port as the source wrote them, for logs; empty: as above."""
    smtp_auth: bool | None = None
    """Whether an SMTP backend wants AUTH; None: as `proxy_smtp_auth` says."""

    @property
    def name(self) -> str:
        """The backend's name in logs: "127.0.0.1:143", "::1:143"."""
        return self.text or f"{self.server}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The login is good."""

    user: bytes
    """The user to log in at the backend, and to name in logs."""
    secret: bytes | None = field(repr=False)
    """The password for the backend; None if neither the client nor the source has
    supplied one."""
    route: Route | None = None
    """None if the source does not say where the backend is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The login is not good: the secret is not the user's, or the user may not log in."""

    text: bytes
    """What the client is told, without line end."""
    wait: float = 0
    """Seconds until it is told; then it may try again. With 0 the session ends."""
    code: bytes = b""
    """SMTP reply code; empty: the protocol's own."""
    sasl_error: bytes = b""
    """Base64 for an OAuth client (RFC 7628, section 3.2.2), or empty."""
    reason: str = ""
    """Why, for the log alone; empty if `text` says it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The source does not know the user, or has no say about the mechanism."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """The source gave no usable answer, which says nothing about the login.

    Attributes as those of `SessionError`.
    """

    event: str
    values: tuple[object, ...] = field(default=(), repr=False)
    """They may come from outside, and are not shown on purpose."""
    error: OSError | None = None
    level: str = "error"

    def exception(self) -> AuthError:
        """The error by which a session ends for this reason."""
        return AuthError(self.event, *self.values, error=self.error, level=self.level)


Verdict = Granted | Refused | Unknown | Unavailable
