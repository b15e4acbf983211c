"""ngx_mail_pop3_module: https://nginx.org/en/docs/mail/ngx_mail_pop3_module.html.

The dialogues are in `mail/pop3_dialogue.py` and `mail/pop3_backend.py`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

from mailproxy.conf.directive import Block, Reading, directive
from mailproxy.conf.values import choices, size, words
from mailproxy.mail.protocol import Dialogue, MailProtocol

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.mail.pop3_dialogue import Pop3Dialogue


@dataclass(frozen=True, kw_only=True)
class Pop3Settings(MailProtocol):
    """POP3 toward clients."""

    name: ClassVar[str] = "pop3"
    ports: ClassVar[tuple[int, ...]] = (110, 995)
    harmless: ClassVar[frozenset[bytes]] = frozenset(
        (
            b"USER QUIT CAPA NOOP STLS STAT LIST RETR DELE RSET TOP UIDL UTF8 LANG"
        ).split()
    )

    pop3_client_buffer: int = directive(
        size,
        default=resource.getpagesize(),
        shown="4k | 8k",
        origin="Zimbra's nginx",
    )
    """Bytes that one command may have; nginx allows 128, too few for tokens and many
    passwords."""

    pop3_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"TOP", b"USER", b"UIDL"), repeats="add"
    )
    """Capabilities before the login, as CAPA lists them; mechanisms are added."""

    pop3_auth: frozenset[str] = directive(
        choices("plain", "apop", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain", "login"}),
        repeats="add",
        shown="plain",
    )
    """Mechanisms of AUTH, and "apop"; USER and PASS are always possible.

    "plain" enables "login" as well, which cannot be written.
    """

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of a server: AUTH PLAIN enables AUTH LOGIN as well."""
        settings = super().make(block, reading)
        if "plain" not in settings.pop3_auth:
            return settings
        return replace(settings, pop3_auth=settings.pop3_auth | {"login"})

    certificate_error: ClassVar[bytes] = b"-ERR SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"-ERR No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"-ERR internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.pop3_client_buffer

    @cached_property
    def _dialogue(self) -> type[Pop3Dialogue]:
        from mailproxy.mail.pop3_dialogue import Pop3Dialogue  # see `mail/dialogues.py`

        return Pop3Dialogue

    def dialogue(self, client: Client) -> Dialogue:
        return self._dialogue(client, self)
