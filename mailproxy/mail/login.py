"""Login: what a client offers in order to log in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.auth.request import Envelope

OAUTH = frozenset(("xoauth2", "oauthbearer"))
"""Methods whose secret is a token."""
PLAIN = "plain"
"""The method of a password that the auth source has given for the backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What a client offers in order to log in, or what its backend is offered.

    Attributes:
      method: the value of auth_http's ``Auth-Method``; at the backend "plain" if the
        auth source has replaced the secret.
      user: the user name, without CR, LF and NUL.
      secret: password, digest or token, without CR, LF and NUL; None if the method has
        none.
      tag: IMAP: the tag of the command, with its space.
      salt: the challenge from which the client made its digest.
      envelope: SMTP: the commands of a client that sends mail without a login.
      smtp_auth: SMTP: whether to log in at the backend with AUTH; None: as
        `proxy_smtp_auth` says.
      master: who logs in at the backend as `user`; then `secret` is theirs.
      separator: between user and master, for backends that want both in one name.
    """

    method: str
    user: bytes
    secret: bytes | None = field(default=None, repr=False)
    tag: bytes = b""
    salt: bytes = b""
    envelope: Envelope | None = None
    smtp_auth: bool | None = None
    master: bytes = b""
    separator: bytes = b""

    @property
    def name(self) -> bytes:
        """The name whose secret the backend is told."""
        if not self.master:
            return self.user
        if not self.separator:
            return self.master
        return b"%s%s%s" % (self.user, self.separator, self.master)

    @property
    def identity(self) -> bytes:
        """Whom `name` logs in as (RFC 4616: authzid); empty: as itself."""
        return self.user if self.master and not self.separator else b""

    @property
    def has_token(self) -> bool:
        """Whether the secret is an OAuth token."""
        return self.method in OAUTH

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
            method=self.method if secret == self.secret else PLAIN,
            user=user,
            secret=secret,
            tag=self.tag,
            envelope=self.envelope,
            smtp_auth=smtp_auth,
        )

    def by_master(self, name: bytes, secret: bytes, separator: bytes) -> Login:
        """The login for the backend by a master user, who logs in as this one."""
        return Login(
            method=PLAIN,
            user=self.user,
            secret=secret,
            tag=self.tag,
            envelope=self.envelope,
            smtp_auth=self.smtp_auth,
            master=name,
            separator=separator,
        )
