"""Addresses and networks as nginx reads them (src/core/ngx_inet.c).

Names are resolved when the configuration is read, so a running proxy never waits
for them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from mailproxy import outside
from mailproxy.conf.directive import Reading
from mailproxy.conf.tree import ConfigError, Directive, Word
from mailproxy.conf.values import c_string, lower, parse_number
from mailproxy.frozen import Frozen

SocketAddress = tuple[str, int] | tuple[str, int, int, int] | str
"""What bind() and connect() take; a path for unix sockets."""
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_UNIX_PATH = 107
"""Bytes of a unix socket's path: `sun_path` without its NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class Address:
    """One socket address."""

    family: int
    sockaddr: SocketAddress
    text: str
    """For logs: "127.0.0.1:143", "[::1]:143", "unix:/path"."""

    @property
    def is_local(self) -> bool:
        """Whether what is sent there certainly stays on this machine."""
        at = self.sockaddr
        return isinstance(at, str) or at[0] == "::1" or at[0].startswith("127.")


@dataclass(frozen=True, slots=True)
class Url:
    """An address argument, taken apart and resolved."""

    host: str
    """As written, IPv6 in brackets; the path of a unix socket."""
    port: int
    """The first port of a range, or the default port."""
    uri: str
    addresses: tuple[Address, ...]
    """At least one; all addresses of one port come before those of the next."""


class AddressError(Frozen, ValueError):
    """An address is wrong, for nginx's reason: "no host", "invalid port" …

    Attributes:
      remedy: what to do about it; empty if the form of the address is at fault.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


def ipv4(text: str) -> str | None:
    """A dotted quad in canonical form, or None if nginx takes it for a name."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return _unusual_ipv4(text)
    return None if text == "255.255.255.255" else text


def _unusual_ipv4(text: str) -> str | None:
    """The same for what inet_pton(3) refuses: octets that are empty, or begin with 0."""
    octets = text.split(".")
    if len(octets) != 4:
        return None
    values = []
    for octet in octets:
        if octet and not (octet.isascii() and octet.isdigit()):
            return None
        value = int(octet[:8] or "0") if len(octet) < 8 else _octet(octet)
        if value > 255:
            return None
        values.append(value)
    quad = ".".join(map(str, values))
    return None if quad == "255.255.255.255" else quad


def _octet(digits: str) -> int:
    return int(digits.lstrip("0")[:4] or "0")


def ipv6(text: str) -> str | None:
    """An IPv6 address in canonical form, or None if `text` is not one."""
    try:
        return socket.inet_ntop(
            socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text)
        )
    except (OSError, ValueError):
        return None


def _at(family: int, host: str, port: int) -> Address:
    if family == socket.AF_INET6:
        return Address(family, (host, port, 0, 0), f"[{host}]:{port}")
    return Address(family, (host, port), f"{host}:{port}")


def lookup(host: str, *, listen: bool = False) -> list[tuple[int, str]]:
    """Look up the addresses of a name, as (family, text), without duplicates.

    Raises:
      AddressError: the name has none.
    """
    name = c_string(host).encode("utf-8", "surrogateescape")
    flags = socket.AI_ADDRCONFIG | (socket.AI_PASSIVE if listen else 0)
    try:
        answers = outside.addresses(name, flags)
    except (OSError, UnicodeError) as error:
        raise _not_found(host, error) from None
    found = {
        (family, address.partition("%")[0]): None
        for family, address in answers
        if family in (socket.AF_INET, socket.AF_INET6)
    }
    if not found:
        raise _not_found(host)
    return list(found)


_NAME = re.compile(r"(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+)+")


def _not_found(host: str, error: Exception | None = None) -> AddressError:
    """Make the error for a host without addresses, with a remedy if one is known."""
    remedy = ""
    if _NAME.fullmatch(host):
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        remedy = (
            f"the name has no address on this machine{reason}:"
            " look at DNS and /etc/hosts, or write the address"
        )
    elif _NUMBERS.fullmatch(host):
        remedy = "an IPv4 address has four numbers of 0 to 255"
    return AddressError("host not found", remedy)


_PATH = re.compile(r"[/?].*", re.DOTALL)


def parse_url(
    text: str, default_port: int = 0, *, listen: bool = False, uri: bool = False
) -> Url:
    """Parse an address argument and resolve its host (ngx_parse_url).

    Args:
      text: the argument.
      default_port: the port if `text` has none.
      listen: allow a port alone, a range of ports, and ``*``.
      uri: allow ``/path`` and ``?args`` after it (``:path`` for unix sockets).

    Raises:
      AddressError: `text` is not an address, or the host cannot be resolved.
    """
    if lower(text[:5]) == "unix:":
        return _parse_unix(text[5:], uri=uri)
    rest, path = text, ""
    bracket = text.find("]") if text.startswith("[") else 0
    if bracket < 0:
        raise AddressError("invalid host")
    found = _PATH.search(text, bracket)
    if found is not None:
        if listen or not uri:
            raise AddressError("invalid host")
        rest, path = text[: found.start()], found[0]
    if text.startswith("["):
        return _parse_ipv6(rest, bracket, default_port, path, listen=listen)
    return _parse_ipv4_or_name(rest, default_port, path, listen=listen)


def _parse_unix(path: str, *, uri: bool) -> Url:
    rest = ""
    if uri:
        path, _, rest = path.partition(":")
    if not path:
        raise AddressError("no path in the unix domain socket")
    if len(path.encode("utf-8", "surrogateescape")) > _MAX_UNIX_PATH:
        raise AddressError(
            "too long path in the unix domain socket",
            f"the system takes {_MAX_UNIX_PATH} bytes",
        )
    address = Address(socket.AF_UNIX, path, f"unix:{path}")
    return Url(path, 0, rest, (address,))


def _parse_ports(text: str, *, listen: bool) -> tuple[int, int]:
    """Parse a port or, for `listen`, a range of ports; returns the first and the last."""
    first, dash, last = text.partition("-") if listen else (text, "", "")
    high = _port(last) if dash else 0
    low = _port(first)
    if high and low > high:
        raise AddressError("invalid port range", "the first port must be the lower one")
    return low, high or low


def _port(text: str) -> int:
    try:
        port = parse_number(text)
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise AddressError("invalid port", "a port is a number of 1 to 65535")
    return port


def _parse_ipv6(
    text: str, bracket: int, default_port: int, uri: str, *, listen: bool
) -> Url:
    rest = text[bracket + 1 :]
    ports = (default_port, default_port)
    if rest:
        if not rest.startswith(":"):
            raise AddressError("invalid host")
        ports = _parse_ports(rest[1:], listen=listen)
    if bracket == 1:
        raise AddressError("no host")
    host = ipv6(text[1:bracket])
    if host is None:
        raise AddressError("invalid IPv6 address")
    return _url(text[: bracket + 1], ports, uri, [(socket.AF_INET6, host)])


def _parse_ipv4_or_name(text: str, default_port: int, uri: str, *, listen: bool) -> Url:
    host, colon, port = text.partition(":")
    ports = (default_port, default_port)
    if colon:
        ports = _parse_ports(port, listen=listen)
    elif listen and not uri:
        alone = _port_alone(host)
        if alone is not None:
            return _url("", alone, "", [(socket.AF_INET, "0.0.0.0")])  # noqa: S104 - what is written
    if not host:
        raise AddressError("no host")
    if listen and host == "*":
        return _url(host, ports, uri, [(socket.AF_INET, "0.0.0.0")])  # noqa: S104 - what is written
    quad = ipv4(host)
    found = [(int(socket.AF_INET), quad)] if quad else lookup(host, listen=listen)
    return _url(host, ports, uri, found)


def _port_alone(text: str) -> tuple[int, int] | None:
    """Parse ``143`` or ``143-145``; None if `text` must be a name."""
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return None
    return _parse_ports(text, listen=True)


def _url(
    host: str, ports: tuple[int, int], uri: str, found: list[tuple[int, str]]
) -> Url:
    first, last = ports
    addresses = [
        _at(family, address, port)
        for port in range(first, last + 1)
        for family, address in found
    ]
    return Url(host, first, uri, tuple(addresses))


def cidr(
    found: Directive, reading: Reading, *, unix: bool = True
) -> tuple[IPNetwork | str, ...]:
    """The networks that an argument stands for: CIDR, address, name, or ``unix:``.

    Raises:
      ConfigError: the argument is a name without addresses.
    """
    word = found.words[1]
    if unix and c_string(word.value) == "unix:":
        return ("unix:",)
    network = _network(word, reading)
    if network is not None:
        return (network,)
    try:
        return tuple(ipaddress.ip_network(host) for _, host in lookup(word.value))
    except AddressError as error:
        raise ConfigError(
            f'{error} in {found.name} "{word.value}"',
            word,
            error.remedy or "a network is like 10.0.0.0/8 or fd00::/8",
        ) from None


def _network(word: Word, reading: Reading) -> IPNetwork | None:
    host, slash, mask = word.value.partition("/")
    address = ipv4(host) or ipv6(host)
    if address is None:
        return None
    if not slash:
        return ipaddress.ip_network(address)
    try:
        bits = parse_number(mask)
    except ValueError:
        return None
    if bits > (128 if ":" in address else 32):
        return None
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    if network.network_address != ipaddress.ip_address(address):
        reading.warn(
            f"low address bits of {word.value} are meaningless", word, f"{network}"
        )
    return network
