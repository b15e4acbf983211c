"""ngx_mail_smtp_module: https://nginx.org/en/docs/mail/ngx_mail_smtp_module.html.

The dialogues are in `mail/smtp_dialogue.py` and `mail/smtp_backend.py`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from mailproxy.conf.directive import directive
from mailproxy.conf.values import choices, duration, size, words
from mailproxy.mail.protocol import Dialogue, MailProtocol

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.mail.smtp_dialogue import SmtpDialogue


@dataclass(frozen=True, kw_only=True)
class SmtpSettings(MailProtocol):
    """SMTP toward clients."""

    name: ClassVar[str] = "smtp"
    ports: ClassVar[tuple[int, ...]] = (25, 465, 587)
    needs_password: ClassVar[bool] = False
    harmless: ClassVar[frozenset[bytes]] = frozenset(
        (
            b"HELO EHLO QUIT NOOP MAIL RCPT RSET VRFY EXPN HELP "
            b"STARTTLS DATA BDAT ETRN XCLIENT"
        ).split()
    )

    smtp_client_buffer: int = directive(
        size, default=resource.getpagesize(), shown="4k | 8k"
    )
    """Bytes that one command may have."""

    smtp_greeting_delay: float = directive(duration, default=0.0)
    """Seconds before the greeting; clients that talk first are rejected."""

    smtp_capabilities: tuple[bytes, ...] = directive(
        words, default=(), repeats="add", shown=""
    )
    """Lines of the answer to EHLO; mechanisms are added to them."""

    smtp_auth: frozenset[str] = directive(
        choices(
            "plain", "login", "cram-md5", "external", "none", "xoauth2", "oauthbearer"
        ),
        default=frozenset({"plain", "login"}),
        repeats="add",
        shown="plain login",
    )
    """Mechanisms of AUTH; "none" allows mail from clients that do not log in."""

    certificate_error: ClassVar[bytes] = b"421 4.7.1 SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"421 4.7.1 No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"451 4.3.2 Internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.smtp_client_buffer

    @cached_property
    def _dialogue(self) -> type[SmtpDialogue]:
        from mailproxy.mail.smtp_dialogue import SmtpDialogue  # see `mail/dialogues.py`

        return SmtpDialogue

    def dialogue(self, client: Client) -> Dialogue:
        return self._dialogue(client, self)
