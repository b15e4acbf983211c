"""The lists of modules, and the whole configuration made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from mailproxy.conf.directive import Settings
from mailproxy.conf.syntax import ConfigError, Position
from mailproxy.mail.auth.http import AuthHttpSettings
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.smtp import SmtpSettings
from mailproxy.mail.ssl import SslSettings

M = TypeVar("M", bound=Settings)
E = TypeVar("E", bound=Settings)

ProtocolSettings = ImapSettings | Pop3Settings | SmtpSettings
PROTOCOLS: tuple[type[ProtocolSettings], ...] = (
    ImapSettings,
    Pop3Settings,
    SmtpSettings,
)
"""The mail protocols. To add one: its settings class here and in the line above."""

MODULES: tuple[type[Settings], ...] = (
    CoreSettings,
    SslSettings,
    Pop3Settings,
    ImapSettings,
    SmtpSettings,
    AuthHttpSettings,
    ProxySettings,
    RealipSettings,
)
"""All modules of mail, in the order in which nginx checks them."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One `server` block: the settings of each module."""

    core: CoreSettings
    ssl: SslSettings
    proxy: ProxySettings
    auth: AuthHttpSettings
    realip: RealipSettings
    protocol: ProtocolSettings
    """Of the protocol that it speaks."""
    position: Position
    """Where the block begins."""


@dataclass(frozen=True, kw_only=True)
class Configuration(Generic[M, E]):
    """A whole configuration, ready to be used; nothing in it changes."""

    main: M
    events: E
    servers: tuple[Server, ...]
    warnings: tuple[ConfigError, ...]
    """In the order in which nginx prints them."""
    files: Mapping[str, str]
    """The files that were read, by name as nginx prints it, for -T."""
