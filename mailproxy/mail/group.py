"""Groups of backends, as a configuration has them: `upstream NAME { … }`.

What becomes of their members while a worker runs is in `mail/peers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mailproxy.conf.addresses import Address, AddressError, Url, ipv4, parse_url
from mailproxy.conf.tree import ConfigError, Position, Word
from mailproxy.conf.values import parse_port
from mailproxy.net.dns_messages import is_host_name
from mailproxy.net.resolver_settings import ResolverSettings

if TYPE_CHECKING:
    from mailproxy.mail.probing import HealthCheck

MethodName = Literal["round_robin", "least_conn", "hash", "consistent_hash", "random"]
"""How one of the members is chosen."""
VARIABLES = ("auth_user", "auth_domain", "remote_addr", "binary_remote_addr")
"""The variables of a `hash` key."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in a `hash` key, by one of `VARIABLES`."""

    name: str


Key = tuple[bytes | Variable, ...]
"""A `hash` key: texts and variables, which are joined for each session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How a group chooses one of its members."""

    name: MethodName
    key: Key = ()
    """Of `hash`."""
    two: bool = False
    """Whether `random` chooses the better one of two."""

    @property
    def refuses(self) -> frozenset[str]:
        """The parameters of `server` that it has no use for."""
        if self.name in ("round_robin", "least_conn"):
            return frozenset()
        return frozenset(("backup", "slow_start"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One `server` of a group, which may have several addresses."""

    server: str
    """The address as written."""
    host: str
    """Its host as written, for SNI and verification: without brackets, empty for a unix
    socket."""
    addresses: tuple[Address, ...]
    """Empty if it is looked up while running."""
    port: int = 0
    """If it is looked up while running; 0: the service says."""
    resolve: bool = False
    """Whether the name is looked up while running."""
    service: str = ""
    """The service that is looked up, instead of addresses."""
    weight: int = 1
    max_conns: int = 0
    """Sessions that it may have at once, of all workers together; 0: no limit."""
    max_fails: int = 1
    """Failures within `fail_timeout` that make it unavailable; 0: none does."""
    fail_timeout: int = 10
    """Seconds."""
    slow_start: int = 0
    """Seconds in which the weight of a member grows after it was unavailable."""
    backup: bool = False
    down: bool = False
    drain: bool = False
    ssl: str = ""
    """Whether there is TLS to it: on, off, starttls; empty: as `proxy_ssl` says."""
    name: str = ""
    """The name for SNI and verification; empty: `host`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """Backends of which each session gets one."""

    name: str
    """As written; compared without regard to case."""
    members: tuple[Member, ...]
    """At least one of them is no backup."""
    method: Method = Method(name="round_robin")
    zone: str = ""
    """The name of the zone in which workers share what they find out; empty: none."""
    health_checks: tuple[HealthCheck, ...] = ()
    """How its peers are probed."""
    position: Position | None = None
    """Where it is defined; None if it is not."""

    @property
    def is_managed(self) -> bool:
        """Whether the manager tells workers about it."""
        return bool(self.zone or self.health_checks or self.is_resolved)

    @property
    def is_resolved(self) -> bool:
        """Whether members are looked up while running."""
        return any(member.resolve for member in self.members)

    @property
    def counts_over_workers(self) -> bool:
        """Whether a choice depends on the sessions of other workers."""
        method = self.method
        return (
            method.name == "least_conn"
            or method.two
            or any(member.max_conns for member in self.members)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResolver:
    """How the members of a group are looked up while running."""

    settings: ResolverSettings
    timeout: float
    """Seconds for each lookup."""


def read_address(word: Word) -> Url:
    """Parse and resolve the address of a backend.

    Raises:
      ConfigError: it is invalid, has no port, or its host is not found.
    """
    text = word.value
    try:
        url = parse_url(text)
    except AddressError as error:
        raise ConfigError(
            f'{error} in upstream "{text}"', word, error.remedy or None
        ) from None
    if not url.port and not is_path(text):
        raise no_port(word)
    return url


def read_name(word: Word, *, service: bool) -> tuple[str, int] | None:
    """Parse an address that is to be looked up while running; returns name and port.

    Returns:
      None if it is no name, so there is nothing to look up.

    Raises:
      ConfigError: it is no name, and a service has to have one; its port is missing,
        wrong or too many; or no name server can be asked for it.
    """
    text = word.value
    host, colon, digits = text.partition(":")
    if is_path(text) or text.startswith("[") or ipv4(host) is not None:
        if service:
            raise ConfigError(f'service upstream "{text}" requires domain name', word)
        return None
    if service and colon:
        raise ConfigError(f'service upstream "{text}" may not have port', word)
    if not is_host_name(host.encode("utf-8", "surrogateescape")):
        reason = "invalid host" if host else "no host"
        raise ConfigError(f'{reason} in upstream "{text}"', word)
    if service:
        return host, 0
    if not colon:
        raise no_port(word)
    return host, read_port(digits, word)


def read_port(digits: str, word: Word) -> int:
    """Parse the port of an address.

    Raises:
      ConfigError: it is none.
    """
    try:
        return parse_port(digits)
    except ValueError:
        raise ConfigError(f'invalid port in upstream "{word.value}"', word) from None


def no_port(word: Word, remedy: str = "") -> ConfigError:
    """The error for a backend without a port; there is no default."""
    text = word.value
    message = f'no port in upstream "{text}"'
    return ConfigError(message, word, remedy or f"server {text}:143;")


def is_path(text: str) -> bool:
    """Whether an address is that of a unix socket."""
    return text[:5].lower() == "unix:"


def host_of(url: Url, text: str) -> str:
    """The host of a backend for SNI and verification; empty for a unix socket."""
    return "" if is_path(text) else url.host.strip("[]")


def implicit(text: str, url: Url) -> Group:
    """The group of all addresses of one host, which `proxy_pass` names."""
    member = Member(server=text, host=host_of(url, text), addresses=url.addresses)
    return Group(name=text, members=(member,))
