"""ngx_mail_smtp_module: https://nginx.org/en/docs/mail/ngx_mail_smtp_module.html."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import ClassVar

from mailproxy.conf.directive import Settings, directive
from mailproxy.conf.values import choices, duration, size, words


@dataclass(frozen=True, kw_only=True)
class SmtpSettings(Settings):
    """SMTP toward clients."""

    name: ClassVar[str] = "smtp"
    ports: ClassVar[tuple[int, ...]] = (25, 465, 587)

    smtp_client_buffer: int = directive(
        size, default=resource.getpagesize(), shown="4k | 8k"
    )
    """Bytes that one command may have."""

    smtp_greeting_delay: float = directive(duration, default=0.0)
    """Seconds before the greeting; who talks earlier is refused."""

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
    """Mechanisms of AUTH; "none" lets clients through without."""
