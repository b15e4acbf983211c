"""The lists of modules: which protocols there are, and which settings a server has."""

from __future__ import annotations

from mailproxy.auth.http import AuthHttpSettings
from mailproxy.conf.directive import Settings
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.protocol import MailProtocol
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.smtp import SmtpSettings
from mailproxy.mail.ssl import SslSettings

PROTOCOLS: tuple[type[MailProtocol], ...] = (
    Pop3Settings,
    ImapSettings,
    SmtpSettings,
)
"""The mail protocols. To add one, write its file and add its settings class here."""

SOURCES: tuple[type[Settings], ...] = (AuthHttpSettings,)
"""The auth sources: settings classes that are a `Source`, too. A server needs one."""

MODULES: tuple[type[Settings], ...] = (
    CoreSettings,
    SslSettings,
    *PROTOCOLS,
    *SOURCES,
    ProxySettings,
    RealipSettings,
)
"""All modules of mail, in the order in which nginx checks them."""
