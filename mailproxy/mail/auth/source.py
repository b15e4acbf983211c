"""What answers whether a login is good, and where its mailbox is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mailproxy.conf.addresses import SocketAddress

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login


@dataclass(frozen=True, slots=True)
class Granted:
    """The login is good.

    Attributes:
      family, address: where the backend is.
      name: the backend's name in logs.
      user, secret: what to log in with at the backend; the secret is None if
        nobody knows one.
      smtp_auth: whether an SMTP backend wants AUTH; None: as `proxy_smtp_auth` says.
    """

    family: int
    address: SocketAddress
    name: str
    user: bytes
    secret: bytes | None = field(repr=False)
    smtp_auth: bool | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The login is not good.

    Attributes:
      text: what the client is told, without line end.
      wait: seconds to wait before that; then the client may try again, and with 0
        the session ends.
      code: SMTP reply code, or empty for the protocol's own.
      sasl_error: base64 text for an OAuth client (RFC 7628, section 3.2.2), or empty.
    """

    text: bytes
    wait: float = 0
    code: bytes = b""
    sasl_error: bytes = b""


class AuthSource(Protocol):
    """One of `mail/auth`."""

    async def check(self, login: Login, client: Client) -> Granted | Refused:
        """Ask about one login, within a limit that it sets on `client.timer`.

        Raises:
          AuthError: there is no usable answer.
        """
        ...
