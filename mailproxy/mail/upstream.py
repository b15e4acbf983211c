"""`upstream`, as in nginx's stream: https://nginx.org/en/docs/stream/ngx_stream_upstream_module.html."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from mailproxy.conf.addresses import Address
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.tree import ConfigError, Directive, Word, encode
from mailproxy.conf.values import (
    c_string,
    lower,
    one_of,
    parse_number,
    parse_seconds,
    parse_size,
    parse_text,
)
from mailproxy.mail.group import (
    VARIABLES,
    Group,
    GroupResolver,
    Key,
    Member,
    Method,
    MethodName,
    Variable,
    host_of,
    read_address,
    read_name,
)
from mailproxy.mail.health_check import checks_of
from mailproxy.mail.load_state import LoadState, Reason, load_state
from mailproxy.mail.peers import named_peers
from mailproxy.net.dns_messages import is_service_name
from mailproxy.net.resolver_settings import ResolverSettings
from mailproxy.stats.peers import peer_keys, resolved_keys

MAX_WEIGHT = 65535
"""The largest weight; `hash … consistent` needs 160 points for each unit."""
MIN_ZONE = 8 * resource.getpagesize()
"""Octets of the smallest zone."""


def _parse_weight(text: str) -> int:
    weight = parse_number(text)
    if not 1 <= weight <= MAX_WEIGHT:
        raise ValueError("invalid value")
    return weight


def _parse_service(text: str) -> str:
    if not is_service_name(text.encode("utf-8", "surrogateescape")):
        raise ValueError("invalid value")
    return text


_VALUED: dict[str, Callable[[str], object]] = {
    "weight": _parse_weight,
    "max_conns": parse_number,
    "max_fails": parse_number,
    "fail_timeout": parse_seconds,
    "slow_start": parse_seconds,
    "ssl": one_of("on", "off", "starttls"),
    "name": parse_text,
    "service": _parse_service,
}
"""Parameters with a value, and how it is read."""
_PLAIN = ("backup", "down", "drain", "resolve")
_PARAMETERS = (*(f"{name}=" for name in _VALUED), *_PLAIN)


def _parse_server(found: Directive, reading: Reading) -> tuple[Member, ...]:
    parameters = dict(map(_parse_parameter, found.words[2:]))
    word, text = found.words[1], c_string(found.values[1])
    name = _name_to_resolve(word, parameters)
    if name is not None:
        load_state(reading).manager.append(Reason("resolve", found.position))
        addresses: tuple[Address, ...] = ()
        host, port = name
    else:
        url = read_address(word)
        load_state(reading).reached += [(each, found) for each in url.addresses]
        addresses, host, port = url.addresses, host_of(url, text), 0
    parameters["resolve"] = name is not None
    return (
        Member(
            server=text,
            host=host,
            port=port,
            addresses=addresses,
            **parameters,  # type: ignore[arg-type] # _parse_parameter knows the fields
        ),
    )


def _name_to_resolve(
    word: Word, parameters: Mapping[str, object]
) -> tuple[str, int] | None:
    """The name and the port of a server that is to be looked up while running."""
    service = "service" in parameters
    if "resolve" in parameters:
        return read_name(word, service=service)
    if service:
        raise ConfigError(
            f'service upstream "{word.value}" requires "resolve" parameter',
            word,
            f"server {word.value} service={parameters['service']} resolve;",
        )
    return None


def _parse_parameter(word: Word) -> tuple[str, object]:
    """Parse a parameter of `server`; returns the field of `Member`, and its value."""
    text = c_string(word.value)
    name, equals, value = text.partition("=")
    if text in _PLAIN:
        return text, True
    if text == "service=":
        raise ConfigError("service is empty", word)
    try:
        if equals and name in _VALUED:
            return name, _VALUED[name](value)
    except ValueError:
        pass  # the same error as for an unknown one
    raise ConfigError(
        f'invalid parameter "{text}"', word, f"parameters are {' '.join(_PARAMETERS)}"
    )


def _parse_zone(found: Directive, reading: Reading) -> str:
    name = c_string(found.values[1])
    if not name:
        raise ConfigError('invalid zone name ""', found.words[1])
    for word in found.words[2:]:
        try:
            octets = parse_size(word.value)
        except ValueError:
            raise ConfigError(f'invalid zone size "{word.value}"', word) from None
        if octets < MIN_ZONE:
            raise ConfigError(
                f'zone "{name}" is too small',
                word,
                f"it is {MIN_ZONE // 1024}k at least",
            )
    load_state(reading).manager.append(Reason("zone", found.position))
    return name


_PART = re.compile(r"\$\{(\w+)\}|\$(\w+)|([^$]+)", re.ASCII)
_OPEN = re.compile(r"\$\{(\w+)(?!\w|\})", re.ASCII)


def _parse_key(word: Word) -> Key:
    """Parse the key of `hash`.

    Raises:
      ConfigError: it has a ``$`` that begins no known variable.
    """
    parts: list[bytes | Variable] = []
    text, at = word.value, 0
    while at < len(text):
        found = _PART.match(text, at)
        if found is None:
            unclosed = _OPEN.match(text, at)
            message = "invalid variable name"
            if unclosed is not None:
                message = f'the closing bracket in "{unclosed[1]}" variable is missing'
            raise ConfigError(message, word)
        at = found.end()
        name = found[1] or found[2]
        parts.append(_variable(name, word) if name else encode(found[3]))
    return tuple(parts)


def _variable(name: str, word: Word) -> Variable:
    if lower(name) not in VARIABLES:
        known = " ".join(f"${each}" for each in VARIABLES)
        raise ConfigError(f'unknown "{name}" variable', word, f"variables are {known}")
    return Variable(lower(name))


def _parse_hash(found: Directive, reading: Reading) -> Method:
    key = _parse_key(found.words[1])
    _expect(found.words[2:], "consistent")
    name: MethodName = "consistent_hash" if len(found.values) > 2 else "hash"
    return _take(Method(name=name, key=key), found, reading)


def _parse_least_conn(found: Directive, reading: Reading) -> bool:
    _take(Method(name="least_conn"), found, reading)
    return True


def _parse_random(found: Directive, reading: Reading) -> Method:
    _expect(found.words[1:], "two", "least_conn")
    two = len(found.values) > 1
    return _take(Method(name="random", two=two), found, reading)


def _expect(words: list[Word], *accepted: str) -> None:
    """Check that words are the accepted ones, in this order."""
    for word, wanted in zip(words, accepted, strict=False):
        if c_string(word.value) != wanted:
            raise ConfigError(
                f'invalid parameter "{word.value}"', word, f"accepted is {wanted}"
            )


def _take(method: Method, found: Directive, reading: Reading) -> Method:
    """Note the method of the block; of several, the last one counts."""
    methods = load_state(reading).methods
    if reading.block in methods:
        reading.warn("load balancing method redefined", found.words[0])
    methods[reading.block] = method
    return method


server: Value[tuple[Member, ...]] = Value(
    _parse_server, "address [parameter ...]", most=None, parameters=_PARAMETERS
)
zone: Value[str] = Value(_parse_zone, "name [size]", most=2)
hash_key: Value[Method | None] = Value(
    _parse_hash,
    "key [consistent]",
    most=2,
    parameters=("consistent",),
    means_dollar=lambda _: True,
)
least_conn: Value[bool] = Value(_parse_least_conn, "", least=0, most=0)
random_choice: Value[Method | None] = Value(
    _parse_random, "[two [least_conn]]", least=0, most=2, parameters=("two",)
)


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings(Settings):
    """Groups of backends: `upstream NAME { … }`, of which each session gets one."""

    server: tuple[Member, ...] = directive(
        server,
        default=(),
        contexts="upstream",
        repeats="add",
        shown="",
        origin="nginx's stream module, NGINX Plus, Angie",
    )
    """A backend of the group: HOST:PORT or unix:/path, with all its addresses. `weight=1`:
    its share. `max_conns=0`: sessions that all workers together may have with it; 0: no
    limit. `max_fails=1` and `fail_timeout=10s`: so many failures within that time
    make it unavailable for that time. `slow_start=0`: time in which its weight grows from
    1 after it was unavailable. `backup`: used if no other one can be. `down`: not used.
    `drain`: gets no new sessions. `resolve`: the name is looked up while running, by the
    manager process. `service=S`: SRV records of `_S._tcp.NAME` are looked up (of `S.NAME` if
    S has a dot), and those with a larger priority value are backups. `ssl=on | off | starttls` instead of `proxy_ssl`.
    `name=HOST`: for SNI and verification. A group of one has no failures."""

    zone: str = directive(
        zone, default="", contexts="upstream", shown="", origin="nginx's stream module"
    )
    """Workers share what they find out about backends. The size is not needed."""

    hash: Method | None = directive(
        hash_key,
        default=None,
        contexts="upstream",
        repeats="last",
        shown="",
        origin="nginx's stream module",
    )
    """The same key leads to the same backend. Variables are `$auth_user` (at the
    backend), `$auth_domain` (what is behind its last `@`), `$remote_addr`,
    `$binary_remote_addr`. consistent: few keys move when backends come and go (ketama).
    An empty key has no choice of its own, and takes turns."""

    least_conn: bool = directive(
        least_conn,
        default=False,
        contexts="upstream",
        repeats="last",
        origin="nginx's stream module",
    )
    """The backend with the fewest sessions for its weight."""

    random: Method | None = directive(
        random_choice,
        default=None,
        contexts="upstream",
        repeats="last",
        shown="",
        origin="nginx's stream module",
    )
    """A backend at random, by weight; two: of two, that with fewer sessions for its
    weight."""


def open_upstream(block: Block, reading: Reading) -> None:
    """Check at the beginning of a group that its name is new.

    Raises:
      ConfigError: it is not.
    """
    assert block.directive is not None, "it is written somewhere"
    word = block.directive.words[1]
    groups = load_state(reading).group_names
    key = lower(word.value)
    if key in groups:
        first = groups[key]
        raise ConfigError(
            f'duplicate upstream "{word.value}"',
            word,
            f"the first is in {first.file}:{first.line}",
        )
    groups[key] = word.position


def close_upstream(block: Block, reading: Reading) -> Iterator[ConfigError]:
    """Make the group at the end of its block."""
    statement = block.directive
    assert statement is not None, "it is written somewhere"
    given = block.given.get("server")
    if given is None:
        if "server" not in block.failed:
            yield ConfigError("no servers are inside upstream", statement.closing)
        return
    state = load_state(reading)
    method = state.methods.get(block, Method(name="round_robin"))
    members = cast("tuple[Member, ...]", given.value)
    refused = list(_refused(given.statements, method))
    yield from refused
    name = statement.values[1]
    if all(member.backup for member in members) and not refused:
        yield ConfigError(
            f'no servers in upstream "{name}"', statement, "not all can be backups"
        )
    zone = block.given.get("zone")
    state.groups[lower(name)] = group = Group(
        name=name,
        members=members,
        method=method,
        zone="" if zone is None else cast("str", zone.value),
        health_checks=checks_of(block),
        position=statement.position,
    )
    _count(group, state)


def _refused(statements: Iterable[Directive], method: Method) -> Iterator[ConfigError]:
    """The errors for parameters of servers that a method has no use for."""
    for statement in statements:
        for word in statement.words[2:]:
            if word.value.partition("=")[0] in method.refuses:
                yield ConfigError(
                    f'balancing method does not support parameter "{word.value}"',
                    word.position._replace(end=statement.position.end),
                )


def _count(group: Group, state: LoadState) -> None:
    """Note which numbers of a group workers may have to share."""
    state.shares_numbers |= group.counts_over_workers
    for peer, _, _ in named_peers(group):
        state.counted += peer_keys(group.name, peer)
    if group.is_resolved:
        state.counted += resolved_keys(group.name)


def find_resolvers(mail: Block, reading: Reading) -> Iterator[ConfigError]:
    """Note at the end of mail which name servers look up the members of groups."""
    state = load_state(reading)
    for block in mail.blocks:
        if block.context != "upstream" or block.directive is None:
            continue
        group = state.groups.get(lower(block.directive.values[1]))
        if group is None or not group.is_resolved:
            continue
        given = block.find("resolver")
        if given is None or given.value is None:
            yield ConfigError(
                "no resolver defined to resolve names at run time in upstream"
                f' "{group.name}"',
                block.directive,
                "resolver 127.0.0.53;",
            )
            continue
        timeout = block.find("resolver_timeout")
        state.resolvers[lower(group.name)] = GroupResolver(
            settings=cast("ResolverSettings", given.value),
            timeout=30.0 if timeout is None else cast("float", timeout.value),
        )


def warn_of_loops(reading: Reading, is_own: Callable[[Address], bool]) -> None:
    """Warn of backends at addresses that this configuration listens on.

    Args:
      is_own: whether it does.
    """
    for address, statement in load_state(reading).reached:
        if is_own(address):
            reading.warn(
                f'upstream server "{address.text}" is an address that this '
                "configuration listens on",
                statement,
                "a session would come back here, and end",
            )
