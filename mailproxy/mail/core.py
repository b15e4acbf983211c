"""ngx_mail_core_module: https://nginx.org/en/docs/mail/ngx_mail_core_module.html."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from typing import Self

from mailproxy import outside
from mailproxy.conf.addresses import (
    Address,
    AddressError,
    SocketAddress,
    parse_url,
)
from mailproxy.conf.directive import Block, Scope, Settings, Value, directive
from mailproxy.conf.syntax import ConfigError, Directive, Position, Word, decode
from mailproxy.conf.values import (
    KIB,
    MINUTE,
    c_string,
    duration,
    flag,
    lower,
    number,
    octets,
    parse_number,
    parse_seconds,
    parse_size,
)
from mailproxy.log.directive import Address as LogAddress
from mailproxy.log.directive import ErrorLog, parse_error_log

BACKLOG = 511
"""nginx's default on Linux."""


class Protocols(dict[str, tuple[int, ...]]):
    """The known protocols, each with the ports that mean it; filled by modules.py."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The `so_keepalive` parameter; None leaves a value to the system."""

    on: bool
    idle: int | None = None
    """Seconds before the first probe."""
    interval: int | None = None
    """Seconds between probes."""
    count: int | None = None
    """Probes that may go unanswered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listen:
    """One address that a server listens on."""

    address: str
    """For logs and the auth source: "127.0.0.1:143", "[::1]:143", "unix:/path"."""
    family: int
    sockaddr: SocketAddress
    wildcard: bool
    """Whether it takes connections to any address of the machine."""
    ssl: bool = False
    """TLS from the first byte."""
    proxy_protocol: bool = False
    """A PROXY header comes first."""
    bind: bool = False
    """It has a socket of its own, even beside a wildcard of the same port."""
    backlog: int = BACKLOG
    rcvbuf: int | None = None
    sndbuf: int | None = None
    ipv6only: bool | None = None
    so_keepalive: Keepalive | None = None
    multipath: bool = False
    position: Position
    """Where the directive stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolverSettings:
    """The `resolver` directive."""

    servers: tuple[Address, ...]
    """At least one; asked in turn."""
    valid: float | None = None
    """Seconds for which answers are kept, instead of their own time."""
    ipv4: bool = True
    ipv6: bool = True


class _Taken(set[tuple[int, SocketAddress]]):
    """The addresses that a `listen` directive has taken."""


class _Guesses(dict[Block, str]):
    """By server block, the protocol that its first well-known port stands for."""


def _parse_listen(found: Directive, scope: Scope) -> tuple[Listen, ...]:
    word = found.words[1]
    try:
        url = parse_url(word.value, listen=True)
    except AddressError as error:
        raise ConfigError(
            f'{error} in "{word.value}" of the "listen" directive',
            word,
            "nginx accepts 143, 127.0.0.1:143, [::1]:143, *:143, name:143, unix:/path",
        ) from None
    for name, ports in scope.shared(Protocols).items():
        if url.port in ports:
            scope.shared(_Guesses).setdefault(scope.block, name)
    parameters: dict[str, object] = {}
    for parameter in found.words[2:]:
        name, value = _parse_parameter(parameter)
        parameters[name] = value
        if name not in ("ssl", "proxy_protocol"):
            parameters["bind"] = True
    taken = scope.shared(_Taken)
    listens = []
    for address in url.addresses:
        key = address.family, address.sockaddr
        if key in taken:
            raise ConfigError(f'duplicate "{address.text}" address and port pair', word)
        taken.add(key)
        listens.append(
            Listen(
                address=address.text,
                family=address.family,
                sockaddr=address.sockaddr,
                wildcard=address.sockaddr[0] in ("0.0.0.0", "::"),  # noqa: S104 - a comparison
                position=found.position,
                **parameters,  # type: ignore[arg-type] # _parse_parameter knows the fields
            )
        )
    return tuple(listens)


_RESOLV_CONF_LIMIT = 64 * KIB
_PLAIN_PARAMETERS = frozenset({"bind", "ssl", "proxy_protocol", "multipath"})
_PARAMETERS = (
    "backlog=",
    "bind",
    "ipv6only=",
    "multipath",
    "proxy_protocol",
    "rcvbuf=",
    "sndbuf=",
    "so_keepalive=",
    "ssl",
)


def _parse_parameter(word: Word) -> tuple[str, object]:
    """A parameter of `listen`: the field of `Listen`, and its value."""
    text = word.value
    name, equals, value = text.partition("=")
    if not equals and c_string(text) in _PLAIN_PARAMETERS:
        return c_string(text), True
    try:
        if name == "backlog" and equals:
            backlog = parse_number(value)
            if backlog == 0:
                raise ValueError("invalid number")
            return name, backlog
        if name in ("rcvbuf", "sndbuf") and equals:
            return name, parse_size(value)
    except ValueError:
        raise ConfigError(f'invalid {name} "{text}"', word) from None
    if name == "ipv6only" and value.startswith("o"):
        if c_string(value) not in ("on", "off"):
            raise ConfigError(f'invalid ipv6only flags "{c_string(value)}"', word)
        return name, c_string(value) == "on"
    if name == "so_keepalive" and equals:
        return name, _parse_keepalive(value, word)
    raise ConfigError(
        f'invalid parameter "{text}"', word, f"parameters are {' '.join(_PARAMETERS)}"
    )


def _parse_keepalive(text: str, word: Word) -> Keepalive:
    if c_string(text) in ("on", "off"):
        return Keepalive(c_string(text) == "on")
    idle, _, rest = text.partition(":")
    interval, _, count = rest.partition(":")
    try:
        values = (
            parse_seconds(idle) if idle else 0,
            parse_seconds(interval) if interval else 0,
            parse_number(count) if count else 0,
        )
    except ValueError:
        values = (0, 0, 0)
    if not any(values):
        raise ConfigError(
            f'invalid so_keepalive value: "{c_string(text)}"',
            word,
            "nginx accepts on, off, or IDLE:INTERVAL:COUNT with parts left out",
        )
    return Keepalive(True, *(value or None for value in values))


def _parse_protocol(found: Directive, scope: Scope) -> str:
    word = found.words[1]
    known = scope.shared(Protocols)
    if c_string(word.value) not in known:
        raise ConfigError(
            f'unknown protocol "{word.value}"', word, f"known are {', '.join(known)}"
        )
    return c_string(word.value)


def _parse_resolver(found: Directive, _: Scope) -> ResolverSettings | None:
    if c_string(found.words[1].value) == "off":
        return None
    servers: list[Address] = []
    valid: float | None = None
    families = {"ipv4": True, "ipv6": True}
    for word in found.args:
        name, equals, value = word.value.partition("=")
        if name == "valid" and equals:
            try:
                valid = float(parse_seconds(value))
            except ValueError:
                raise ConfigError(f"invalid parameter: {word.value}", word) from None
        elif name in families and equals:
            if value not in ("on", "off"):
                raise ConfigError(f"invalid parameter: {word.value}", word)
            families[name] = value == "on"
        elif name == "status_zone" and equals:
            continue
        elif name == "conf":
            servers += _system_servers(value or "/etc/resolv.conf", word)
        else:
            try:
                servers += parse_url(word.value, 53).addresses
            except AddressError as error:
                raise ConfigError(f'{error} in resolver "{word.value}"', word) from None
    if not any(families.values()):
        raise ConfigError('"ipv4" and "ipv6" cannot both be "off"', found)
    if not servers:
        raise ConfigError("no name servers defined", found)
    return ResolverSettings(servers=tuple(servers), valid=valid, **families)


def _system_servers(path: str, word: Word) -> list[Address]:
    """The name servers of a resolv.conf (Angie)."""
    try:
        content = outside.read(path, _RESOLV_CONF_LIMIT)
    except outside.FileError as error:
        raise ConfigError(
            f'{error.call}() "{path}" failed', word, error=error
        ) from None
    parts = [line.split() for line in decode(content).splitlines()]
    hosts = [part[1] for part in parts if len(part) > 1 and part[0] == "nameserver"]
    servers: list[Address] = []
    for host in hosts:
        bracketed = f"[{host}]" if ":" in host else host
        try:
            servers += parse_url(bracketed, 53).addresses
        except AddressError as error:
            raise ConfigError(f'{error} in resolver "{host}"', word) from None
    return servers


def _parse_error_log(found: Directive, scope: Scope) -> tuple[ErrorLog, ...]:
    where = found.position
    try:
        value = parse_error_log(
            [word.value for word in found.args],
            path=scope.in_prefix,
            address=_syslog_address,
            file=where.file,
            line=where.end,
        )
    except ValueError as error:
        message = str(error)
        wrong = (word for word in found.args[1:] if f'"{word.value}"' in message)
        raise ConfigError(
            message,
            next(wrong, found.words[1]),
            "levels are emerg alert crit error warn notice info debug",
        ) from None
    return (value,)


def _syslog_address(text: str, port: int) -> LogAddress:
    address = parse_url(text, port).addresses[0]
    return address.family, address.sockaddr, address.text


error_log: Value[tuple[ErrorLog, ...]] = Value(
    _parse_error_log,
    "file | stderr | syslog:... | memory:size [level ...] [format=json] "
    "[filter=part:pattern] [rate=number]",
    most=None,
    parameters=("stderr", "syslog:", "memory:", "rate=", "filter=", "format="),
)
listen: Value[tuple[Listen, ...]] = Value(
    _parse_listen, "address [parameter ...]", most=None, parameters=_PARAMETERS
)
protocol: Value[str] = Value(
    _parse_protocol, "imap | pop3 | smtp", parameters=("imap", "pop3", "smtp")
)
resolver: Value[ResolverSettings | None] = Value(
    _parse_resolver,
    "address ... [conf[=file]] [valid=time] [ipv4=on | off] [ipv6=on | off] | off",
    most=None,
    parameters=("valid=", "ipv4=", "ipv6=", "conf=", "off"),
)
tags: Value[tuple[str, ...]] = Value(lambda found, _: (found.words[1].value,), "string")


def hostname() -> bytes:
    """The name of the machine, in lower case, as nginx has it."""
    return lower(socket.gethostname()).encode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class CoreSettings(Settings):
    """Where a server listens, and what it allows before the login."""

    listen: tuple[Listen, ...] = directive(
        listen, default=(), contexts="server", repeats="add"
    )
    """Addresses to listen on; every server needs one."""

    protocol: str = directive(
        protocol, default="", contexts="server", repeats="last", shown="by the port"
    )
    """The protocol that is spoken; 143, 993, 110, 995, 25, 465, 587 tell by themselves."""

    server_name: bytes = directive(octets, default=b"", shown="name of the machine")
    """The name in greetings, challenges and toward SMTP backends."""

    timeout: float = directive(duration, default=MINUTE)
    """Time from the start of a session to its first login attempt, in seconds."""

    max_errors: int = directive(number, default=5)
    """Protocol errors after which a session is closed."""

    max_commands: int = directive(number, default=1000, origin="Angie, freenginx")
    """Commands before the login after which a session is closed."""

    resolver: ResolverSettings | None = directive(resolver, default=None, shown="off")
    """Name servers for the names of SMTP clients."""

    resolver_timeout: float = directive(duration, default=30.0)
    """Time for each lookup, in seconds."""

    error_log: tuple[ErrorLog, ...] = directive(
        error_log, default=(), repeats="add", shown="of main"
    )
    """Where the log of sessions goes; the innermost level that has any counts."""

    error_log_user_tag: tuple[str, ...] = directive(
        tags, default=(), repeats="add", origin="Angie"
    )
    """Tags of log lines, which ``filter=tag:…`` of `error_log` selects by."""

    so_keepalive: bool = directive(
        flag,
        default=False,
        origin="nginx before 1.9.1",
    )
    """Old form of ``listen … so_keepalive=on``, for all addresses of a server."""

    @classmethod
    def make(cls, block: Block, scope: Scope) -> Self:
        """The settings of a server: its protocol known, its name never empty.

        Raises:
          ConfigError: neither `protocol` nor a port says which protocol it is.
        """
        settings = super().make(block, scope)
        changes: dict[str, object] = {}
        if not settings.server_name:
            changes["server_name"] = hostname()
        if not settings.protocol:
            guess = scope.shared(_Guesses).get(block)
            if guess is None:
                raise ConfigError(
                    "unknown mail protocol for server",
                    block.directive,
                    f"add: protocol {' | '.join(scope.shared(Protocols))};",
                )
            changes["protocol"] = guess
        if settings.so_keepalive:
            changes["listen"] = tuple(
                each
                if each.so_keepalive
                else replace(each, so_keepalive=Keepalive(True), bind=True)
                for each in settings.listen
            )
        return replace(settings, **changes)  # type: ignore[arg-type] # they are fields
