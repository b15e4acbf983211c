"""The list of mail protocols."""

from __future__ import annotations

from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.protocol import MailProtocol
from mailproxy.mail.smtp import SmtpSettings

PROTOCOLS: tuple[type[MailProtocol], ...] = (
    Pop3Settings,
    ImapSettings,
    SmtpSettings,
)
"""In the order in which nginx checks them. To add one, write its file and add its settings
class here: `protocol` then knows its name, `listen` its ports."""
