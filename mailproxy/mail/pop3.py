"""ngx_mail_pop3_module: https://nginx.org/en/docs/mail/ngx_mail_pop3_module.html."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from mailproxy.conf.directive import Block, Scope, Settings, directive
from mailproxy.conf.values import choices, words


@dataclass(frozen=True, kw_only=True)
class Pop3Settings(Settings):
    """POP3 toward clients."""

    name: ClassVar[str] = "pop3"
    ports: ClassVar[tuple[int, ...]] = (110, 995)

    pop3_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"TOP", b"USER", b"UIDL"), repeats="add"
    )
    """What CAPA answers before the login; mechanisms are added to it."""

    pop3_auth: frozenset[str] = directive(
        choices("plain", "apop", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain", "login"}),
        repeats="add",
        shown="plain",
    )
    """Mechanisms of AUTH, and "apop"; USER and PASS are always possible.

    With "plain" comes "login", which cannot be written.
    """

    @classmethod
    def make(cls, block: Block, scope: Scope) -> Self:
        """The settings of a server: AUTH PLAIN brings AUTH LOGIN along."""
        settings = super().make(block, scope)
        if "plain" not in settings.pop3_auth:
            return settings
        return replace(settings, pop3_auth=settings.pop3_auth | {"login"})
