"""ngx_mail_core_module: https://nginx.org/en/docs/mail/ngx_mail_core_module.html."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from mailproxy import outside
from mailproxy.conf.addresses import (
    Address,
    AddressError,
    parse_url,
)
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive, Word, decode
from mailproxy.conf.values import (
    KIB,
    MINUTE,
    c_string,
    duration,
    flag,
    lower,
    number,
    octets,
    parse_seconds,
)
from mailproxy.log.directive import ErrorLog, ErrorLogError, parse_error_log
from mailproxy.mail.listen import Listen, listen
from mailproxy.mail.load_state import load_state
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.net.listen_address import Keepalive
from mailproxy.net.resolver_settings import ResolverSettings

MAX_RESOLV_CONF = 64 * KIB
"""Octets of a resolv.conf."""


def _parse_protocol(found: Directive, reading: Reading) -> str:
    text = found.values[1]
    known = load_state(reading).protocols
    name = c_string(text)
    if name not in known:
        raise ConfigError(
            f'unknown protocol "{text}"',
            found.words[1],
            f"known are {', '.join(known)}",
        )
    return name


def _parse_resolver(found: Directive, _: Reading) -> ResolverSettings | None:
    if c_string(found.words[1].value) == "off":
        return None
    servers: list[Address] = []
    valid: float | None = None
    families = {"ipv4": True, "ipv6": True}
    for word in found.args:
        name, equals, value = word.value.partition("=")
        if name == "valid" and equals:
            valid = _parse_valid(value, word)
        elif name in families and equals:
            if value not in ("on", "off"):
                raise ConfigError(f"invalid parameter: {word.value}", word)
            families[name] = value == "on"
        elif name == "status_zone" and equals:
            continue
        elif name == "conf":
            servers += _system_servers(value or "/etc/resolv.conf", word)
        else:
            servers += _parse_name_server(word)
    if not any(families.values()):
        raise ConfigError('"ipv4" and "ipv6" cannot both be "off"', found)
    if not servers:
        raise ConfigError("no name servers defined", found)
    return ResolverSettings(servers=tuple(servers), valid=valid, **families)


def _parse_valid(value: str, word: Word) -> float:
    try:
        return float(parse_seconds(value))
    except ValueError:
        raise ConfigError(f"invalid parameter: {word.value}", word) from None


def _parse_name_server(word: Word) -> Sequence[Address]:
    try:
        return parse_url(word.value, 53).addresses
    except AddressError as error:
        raise ConfigError(
            f'{error} in resolver "{word.value}"', word, error.remedy
        ) from None


def _system_servers(path: str, word: Word) -> list[Address]:
    """Read the name servers of a resolv.conf (Angie).

    Raises:
      ConfigError: the file cannot be read, or an address in it is invalid.
    """
    try:
        content = outside.read(path, MAX_RESOLV_CONF)
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
            raise ConfigError(
                f'{error} in resolver "{host}"', word, error.remedy
            ) from None
    return servers


def _parse_error_log(found: Directive, reading: Reading) -> tuple[ErrorLog, ...]:
    where = found.position
    try:
        value = parse_error_log(
            [word.value for word in found.args],
            path=reading.in_prefix,
            address=_syslog_address,
            file=where.file,
            line=where.end,
        )
    except ErrorLogError as error:
        wrong = (word for word in found.args[1:] if word.value == error.word)
        raise ConfigError(
            str(error), next(wrong, found.words[1]), error.remedy
        ) from None
    return (value,)


def _syslog_address(text: str, port: int) -> Address:
    return parse_url(text, port).addresses[0]


error_log: Value[tuple[ErrorLog, ...]] = Value(
    _parse_error_log,
    "file | stderr | syslog:... | memory:size [level ...] [format=json] "
    "[filter=part:pattern] [rate=number]",
    most=None,
    parameters=("stderr", "syslog:", "memory:", "rate=", "filter=", "format="),
    means_dollar=lambda word: word.startswith("filter="),
)
_names = tuple(sorted(each.name for each in PROTOCOLS))
protocol: Value[str] = Value(_parse_protocol, " | ".join(_names), parameters=_names)
resolver: Value[ResolverSettings | None] = Value(
    _parse_resolver,
    "address ... [conf[=file]] [valid=time] [ipv4=on | off] [ipv6=on | off] | off",
    most=None,
    parameters=("valid=", "ipv4=", "ipv6=", "conf=", "off"),
)
tags: Value[tuple[str, ...]] = Value(lambda found, _: (found.words[1].value,), "string")


def hostname() -> bytes:
    """The name of the machine, in lower case as in nginx."""
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
    """The protocol of the server; ports 143, 993, 110, 995, 25, 465, 587 imply it."""

    server_name: bytes = directive(octets, default=b"", shown="name of the machine")
    """The name in greetings, challenges and toward SMTP backends."""

    timeout: float = directive(duration, default=MINUTE)
    """Time from the start of a session to its first login attempt, in seconds."""

    max_errors: int = directive(number, default=5)
    """Protocol errors after which a session is closed."""

    max_commands: int = directive(number, default=1000, origin="Angie, freenginx")
    """Commands before the login after which a session is closed."""

    resolver: ResolverSettings | None = directive(
        resolver, default=None, contexts="mail server upstream", shown="off"
    )
    """Name servers for the names of SMTP clients, for host names that auth sources name,
    and for `resolve` in `upstream`."""

    resolver_timeout: float = directive(
        duration, default=30.0, contexts="mail server upstream"
    )
    """Time for each lookup, in seconds."""

    error_log: tuple[ErrorLog, ...] = directive(
        error_log, default=(), repeats="add", shown="of main"
    )
    """Where the log of sessions goes; the innermost block that sets it counts."""

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
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings of a server: its protocol is known, its name never empty.

        Raises:
          ConfigError: neither `protocol` nor a port says which protocol it is.
        """
        values = dict(block.values(cls))
        state = load_state(reading)
        if not values.get("server_name"):
            values["server_name"] = hostname()
        protocol = values.get("protocol") or state.guesses.get(block)
        if protocol is None:
            raise ConfigError(
                "unknown mail protocol for server",
                block.directive,
                f"add: protocol {' | '.join(state.protocols)};",
            )
        values["protocol"] = protocol
        settings = cls(**values)  # type: ignore[arg-type] # they are fields
        if settings.so_keepalive:
            listen = tuple(
                each
                if each.so_keepalive
                else replace(each, so_keepalive=Keepalive(True), bind=True)
                for each in settings.listen
            )
            settings = replace(settings, listen=listen)
        state.protocol[block] = settings.protocol
        state.server_names[block] = settings.server_name
        return settings
