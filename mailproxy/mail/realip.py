"""ngx_mail_realip_module: https://nginx.org/en/docs/mail/ngx_mail_realip_module.html."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, cast

from mailproxy.conf.addresses import IPNetwork, cidr
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailproxy.mail.listen import Listen

networks: Value[tuple[IPNetwork | str, ...]] = Value(
    cidr, "address | CIDR | unix:", parameters=("unix:",)
)


@dataclass(frozen=True, kw_only=True)
class RealipSettings(Settings):
    """Which peers are believed when their PROXY header names another client."""

    set_real_ip_from: tuple[IPNetwork | str, ...] = directive(
        networks, default=(), repeats="add", shown=""
    )
    """Trusted networks; the text "unix:" stands for all unix sockets."""

    depends_on: ClassVar[tuple[str, ...]] = ("listen",)

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of a server.

        Warn if the server expects PROXY headers but trusts no peer; nginx does not.
        """
        settings = super().make(block, reading)
        listen = block.given.get("listen")
        listens = cast("Iterable[Listen]", () if listen is None else listen.value)
        wanted = [each for each in listens if each.proxy_protocol]
        if wanted and not settings.set_real_ip_from:
            reading.warn(
                'PROXY headers do not tell who the client is without "set_real_ip_from"',
                wanted[0].position,
                "name the proxies that are believed: set_real_ip_from NETWORK;",
            )
        return settings

    def believes(self, peer: str) -> bool:
        """Whether the peer is trusted to name the client by a PROXY header.

        Args:
          peer: an IP address, or "unix:".
        """
        if peer == "unix:":
            return peer in self.set_real_ip_from
        address = ipaddress.ip_address(peer)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(
            not isinstance(each, str) and address in each
            for each in self.set_real_ip_from
        )
