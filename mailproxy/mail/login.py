"""What a client logs in with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.auth.request import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a client offers to log in, or what is offered to its backend.

    Attributes:
      method: the value of auth_http's ``Auth-Method``.
      user: the user name; free of CR, LF and NUL.
      secret: password, digest or token, free of the same; None if the method has none.
      tag: IMAP: the tag of the command, with its space.
      salt: what the client made its digest with.
      envelope: SMTP: what the client wants instead of logging in.
      smtp_auth: SMTP: whether the backend is logged in to with AUTH; None: as
        `proxy_smtp_auth` says.
    """

    method: str
    user: bytes
    secret: bytes | None = field(default=None, repr=False)
    tag: bytes = b""
    salt: bytes = b""
    envelope: Envelope | None = None
    smtp_auth: bool | None = None

    def at_backend(
        self, *, user: bytes, secret: bytes | None, smtp_auth: bool | None
    ) -> Login:
        """The same with what the auth source says that the backend is to get."""
        return Login(
            method=self.method,
            user=user,
            secret=secret,
            tag=self.tag,
            envelope=self.envelope,
            smtp_auth=smtp_auth,
        )
