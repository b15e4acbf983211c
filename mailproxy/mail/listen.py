"""The `listen` directive: https://nginx.org/en/docs/mail/ngx_mail_core_module.html#listen."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.conf.addresses import Address, AddressError, parse_url
from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.tree import ConfigError, Directive, Position, Word
from mailproxy.conf.values import c_string, parse_number, parse_seconds, parse_size
from mailproxy.mail.load_state import LoadState, load_state
from mailproxy.net.listen_address import Keepalive, ListenAddress

_ONE_SERVER = (
    "one server per address: it shows a certificate per name with "
    "ssl_certificate_directory"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listen(ListenAddress):
    """One address that a server listens on."""

    ssl: bool = False
    """TLS from the first byte."""
    proxy_protocol: bool = False
    """Clients send a PROXY header first."""
    position: Position
    """The place of the directive."""


def _parse_listen(found: Directive, reading: Reading) -> tuple[Listen, ...]:
    text = found.values[1]
    try:
        url = parse_url(text, listen=True)
    except AddressError as error:
        raise ConfigError(
            f'{error} in "{text}" of the "listen" directive',
            found.words[1],
            error.remedy
            or "nginx accepts 143, 127.0.0.1:143, [::1]:143, *:143, name:143, unix:/path",
        ) from None
    state = load_state(reading)
    for name, ports in state.protocols.items():
        if url.port in ports:
            state.guesses.setdefault(reading.block, name)
    parameters: dict[str, object] = {}
    for parameter in found.words[2:] if len(found.values) > 2 else ():
        name, value = _parse_parameter(parameter)
        parameters[name] = value
        if name not in ("ssl", "proxy_protocol"):
            parameters["bind"] = True
    return tuple([_take(each, found, parameters, state) for each in url.addresses])


def _take(
    address: Address,
    found: Directive,
    parameters: dict[str, object],
    state: LoadState,
) -> Listen:
    """Reserve an address for this server.

    Args:
      parameters: fields of `Listen`, as `_parse_parameter` names them.

    Raises:
      ConfigError: the address is already in use by a server.
    """
    key = address.family, address.sockaddr
    if key in state.taken:
        raise ConfigError(
            f'duplicate "{address.text}" address and port pair',
            found.words[1],
            _ONE_SERVER,
        )
    state.taken.add(key)
    return Listen(
        address=address.text,
        family=address.family,
        sockaddr=address.sockaddr,
        wildcard=address.sockaddr[0] in ("0.0.0.0", "::"),  # noqa: S104 - a comparison
        position=found.position,
        **parameters,  # type: ignore[arg-type] # _parse_parameter knows the fields
    )


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
    """Parse a parameter of `listen`; returns the field of `Listen`, and its value."""
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


listen: Value[tuple[Listen, ...]] = Value(
    _parse_listen, "address [parameter ...]", most=None, parameters=_PARAMETERS
)
