"""`health_check`: how the peers of a group are probed; as in NGINX Plus' stream.

https://nginx.org/en/docs/stream/ngx_stream_upstream_hc_module.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.secret_files import secret_file
from mailproxy.conf.tree import ConfigError, Directive, Word
from mailproxy.conf.values import (
    c_string,
    one_of,
    parse_milliseconds,
    parse_number,
    parse_port,
    parse_text,
)
from mailproxy.mail.load_state import Reason, load_state
from mailproxy.mail.probing import HealthCheck, ProbeType, Schedule


def _time(text: str) -> float:
    return parse_milliseconds(text) / 1000


def _some_time(text: str) -> float:
    return _time(_some(text, parse_milliseconds))


def _count(text: str) -> int:
    return int(_some(text, parse_number))


def _some(text: str, parse: Callable[[str], int]) -> str:
    if not parse(text):
        raise ValueError("invalid value")
    return text


def _type(text: str) -> ProbeType:
    found = {each.name.lower(): each for each in ProbeType}.get(text)
    if found is None:
        raise ValueError("invalid value")
    return found


_OF_SCHEDULE: dict[str, Callable[[str], object]] = {
    "interval": _some_time,
    "jitter": _time,
    "fails": _count,
    "passes": _count,
}
_OF_PROBE: dict[str, Callable[[str], object]] = {
    "timeout": _some_time,
    "type": _type,
    "protocol": parse_text,
    "port": parse_port,
    "ssl": one_of("on", "off", "starttls"),
    "proxy_protocol": one_of("on", "off", "v2"),
    "login_file": parse_text,
    "match": parse_text,
}
_PLAIN = ("mandatory", "persistent")
_PARAMETERS = (*(f"{each}=" for each in (*_OF_SCHEDULE, *_OF_PROBE)), *_PLAIN)


def _parse(found: Directive, reading: Reading) -> tuple[HealthCheck, ...]:
    schedule: dict[str, object] = {}
    probe: dict[str, object] = {}
    for word in found.args:
        name, value = _parse_parameter(word)
        if name == "login_file":
            value = secret_file(name, reading.in_directory(str(value)), word)
        (schedule if name in _OF_SCHEDULE else probe)[name] = value
        if name == "protocol" and value not in load_state(reading).protocols:
            raise _invalid(word)
        if name == "persistent" and "mandatory" not in probe:
            raise _invalid(word, "it stands behind mandatory, about which it says more")
    load_state(reading).manager.append(Reason("health_check", found.position))
    check = HealthCheck(
        position=found.position,
        schedule=Schedule(**schedule),  # type: ignore[arg-type] # fields, by their names
        **probe,  # type: ignore[arg-type] # the same
    )
    _check_login(check, found)
    return (check,)


def _check_login(check: HealthCheck, found: Directive) -> None:
    """Check that there is a login for probes that log in, and for no others.

    Raises:
      ConfigError: that is not so.
    """
    logs_in = check.type is ProbeType.LOGIN
    if logs_in and check.login_file is None:
        raise ConfigError(
            '"type=login" needs "login_file="',
            found,
            "a file with user:password, which only the master's user may read",
        )
    if check.login_file is not None and not logs_in:
        raise ConfigError('"login_file=" needs "type=login"', found)


def _parse_parameter(word: Word) -> tuple[str, object]:
    """Parse a parameter; returns its name and value."""
    text = c_string(word.value)
    name, equals, value = text.partition("=")
    parse = _OF_SCHEDULE.get(name) or _OF_PROBE.get(name)
    if text in _PLAIN:
        return text, True
    if not equals or parse is None:
        raise _invalid(word)
    try:
        return name, parse(value)
    except ValueError:
        raise _invalid(word) from None


def _invalid(word: Word, remedy: str = "") -> ConfigError:
    known = f"parameters are {' '.join(_PARAMETERS)}"
    return ConfigError(
        f'invalid parameter "{c_string(word.value)}"', word, remedy or known
    )


@dataclass(frozen=True, kw_only=True)
class HealthCheckSettings(Settings):
    """Whether the backends of a group work is found out before sessions do."""

    health_check: tuple[HealthCheck, ...] = directive(
        Value(_parse, "[parameter ...]", least=0, most=None, parameters=_PARAMETERS),
        default=(),
        contexts="upstream",
        repeats="add",
        shown="",
        origin="NGINX Plus (stream)",
    )
    """The manager process probes each backend of the group; one that fails gets no new
    sessions. `interval=5s`: time between two probes; `jitter=0`: and as much again by
    chance, at most. `timeout=5s`: for a whole probe. `fails=1`, `passes=1`: probes in a row
    that make a backend unhealthy, and healthy again. `type=connect | greeting |
    capability | login`: how far a probe goes, each beginning with those before it;
    greeting is the default. `protocol=imap | pop3 | smtp`: that of the servers whose
    `proxy_pass` names the group, if they have one. `port=`: another one than sessions use.
    `ssl=on | off | starttls`, `proxy_protocol=on | v2 | off`: what these servers have,
    if not given; certificates are verified as theirs. `login_file=FILE`: `user:password`
    for `type=login`, in a file of root or the master's user that nobody else may read; it is
    relative to the main file, read at a start or reload by the manager process alone, and
    used in TLS or on this machine only. `match=NAME`: a block `match`, which
    is done last. `mandatory`: a backend gets no sessions before a probe has passed;
    `persistent`: but after a reload, if it was healthy before. Of several health checks,
    one that fails is enough."""


def checks_of(block: Block) -> tuple[HealthCheck, ...]:
    """The health checks in an `upstream` block."""
    given = block.given.get("health_check")
    return () if given is None else cast("tuple[HealthCheck, ...]", given.value)
