"""The lists of modules, whose settings a server has."""

from __future__ import annotations

from mailproxy.auth.http import AuthHttpSettings
from mailproxy.conf.directive import Settings
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.health_check import HealthCheckSettings
from mailproxy.mail.match import MatchSettings
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.ssl import SslSettings
from mailproxy.mail.upstream import UpstreamSettings

SOURCES: tuple[type[Settings], ...] = (AuthHttpSettings,)
"""The auth sources: settings classes that are a `Source`, too. A server needs one."""

MODULES: tuple[type[Settings], ...] = (
    CoreSettings,
    SslSettings,
    *PROTOCOLS,
    *SOURCES,
    ProxySettings,
    ProxySslSettings,
    RealipSettings,
)
"""All modules of mail, in the order in which nginx checks them."""

OF_BLOCKS: tuple[type[Settings], ...] = (
    UpstreamSettings,
    HealthCheckSettings,
    MatchSettings,
)
"""The modules whose directives stand in blocks of their own, not in a server."""
