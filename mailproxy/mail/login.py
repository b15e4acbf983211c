"""Login: what a client offers in order to log in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.auth.request import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a client offers in order to log in, or what its backend is offered.

    Attributes:
      method: the value of auth_http's ``Auth-Method``.
      user: the user name, without CR, LF and NUL.
      secret: password, digest or token, without CR, LF and NUL; None if the method has
        none.
      tag: IMAP: the tag of the command, with its space.
      salt: the challenge from which the client made its digest.
      envelope: SMTP: the commands of a client that sends mail without a login.
      smtp_auth: SMTP: whether to log in at the backend with AUTH; None: as
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
        """The login for the backend, with the values that the auth source decided on.

        Without the salt, which is for the auth source.
        """
        if (user, secret, smtp_auth, b"") == (
            self.user,
            self.secret,
            self.smtp_auth,
            self.salt,
        ):
            return self
        return Login(
            method=self.method,
            user=user,
            secret=secret,
            tag=self.tag,
            envelope=self.envelope,
            smtp_auth=smtp_auth,
        )
