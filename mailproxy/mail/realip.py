"""ngx_mail_realip_module: https://nginx.org/en/docs/mail/ngx_mail_realip_module.html."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.addresses import Network, cidr
from mailproxy.conf.directive import Settings, Value, directive

networks: Value[tuple[Network | str, ...]] = Value(cidr, "address | CIDR | unix:")


@dataclass(frozen=True, kw_only=True)
class RealipSettings(Settings):
    """Which peers are believed when their PROXY header names another client."""

    set_real_ip_from: tuple[Network | str, ...] = directive(
        networks, default=(), repeats="add", shown=""
    )
    """Trusted networks; the text "unix:" stands for all unix sockets."""
