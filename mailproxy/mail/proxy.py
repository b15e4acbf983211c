"""ngx_mail_proxy_module: https://nginx.org/en/docs/mail/ngx_mail_proxy_module.html."""

from __future__ import annotations

import math
import re
import resource
import socket
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from mailproxy.conf.addresses import Address, ipv4, ipv6
from mailproxy.conf.directive import Block, Reading, Settings, Value, directive
from mailproxy.conf.hints import nearest
from mailproxy.conf.tree import ConfigError, Directive, Word
from mailproxy.conf.values import (
    HOUR,
    c_string,
    choice,
    choices,
    duration,
    flag,
    lower,
    number,
    parse_number,
    size,
)
from mailproxy.mail.group import (
    Group,
    implicit,
    is_path,
    no_port,
    read_address,
    read_port,
)
from mailproxy.mail.load_state import LoadState, load_state
from mailproxy.mail.master_user import MasterUser, master_user
from mailproxy.net.outgoing import Outgoing


def _parse_xclient(found: Directive, _: Reading) -> str:
    word = found.words[1]
    text = lower(c_string(word.value))
    if text in ("on", "off", "auto"):
        return text
    raise ConfigError(
        f'invalid value "{c_string(word.value)}" in "xclient" directive, '
        'it must be "on" or "off"',
        word,
        "or auto, for backends of which not all offer XCLIENT",
    )


def _parse_forward(found: Directive, reading: Reading) -> frozenset[str]:
    chosen = _ways.parse(found, reading)
    if "off" not in chosen:
        return chosen
    if len(chosen) > 1:
        raise ConfigError(f'"off" conflicts with other values of "{found.name}"', found)
    return frozenset()


xclient: Value[str] = Value(
    _parse_xclient, "on | off | auto", parameters=("on", "off", "auto")
)
_ways = choices("off", "id", "xclient")
forward: Value[frozenset[str]] = Value(
    _parse_forward, "off | id | xclient ...", most=3, parameters=_ways.parameters
)


@dataclass(frozen=True, slots=True)
class PassTarget:
    """What `proxy_pass` names."""

    text: str
    """As written."""
    group: Group | None = field(default=None, repr=False)
    """None until the whole configuration is read."""

    def __str__(self) -> str:
        return self.text


def _parse_pass(found: Directive, _: Reading) -> PassTarget | None:
    word = found.words[1]
    if "$" in word.value:
        raise ConfigError(
            '"proxy_pass" cannot have variables',
            word,
            "name the server in the answer of the auth source",
        )
    return PassTarget(c_string(word.value))


_PORT = re.compile(r":[^:\]]*\Z")


def _find_target(word: Word, state: LoadState) -> Group | None:
    """Find what an argument of `proxy_pass` names: a group, or a host.

    Returns:
      None for a group whose block has an error.

    Raises:
      ConfigError: there is no such group, or host.
    """
    text = word.value
    port = None if is_path(text) else _PORT.search(text)
    name = text if port is None else text[: port.start()]
    if lower(name) in state.group_names:
        if port is not None:
            raise ConfigError(
                f'upstream "{name}" may not have port {read_port(port[0][1:], word)}',
                word,
                f"proxy_pass {name}; its servers have ports",
            )
        return state.groups.get(lower(name))
    if port is None and text and not is_path(text):
        near = nearest(text, state.group_names)
        raise no_port(word, f'did you mean "{near}"?' if near else "")
    return implicit(text, read_address(word))


proxy_pass: Value[PassTarget | None] = Value(
    _parse_pass,
    "name | host:port | unix:path",
    parameters=("unix:",),
    means_dollar=lambda _: True,  # nobody means it literally: see the error
)

_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::([0-9]+))?")


def _parse_bind(found: Directive, _: Reading) -> Address | None:
    word = found.words[1]
    text = c_string(word.value)
    if text == "off":
        return None
    address = _parse_local(text)
    if address is None:
        raise ConfigError(
            f'invalid address "{text}"', word, "an address of this machine is wanted"
        )
    for parameter in found.words[2:]:
        if c_string(parameter.value) != "transparent":
            raise ConfigError(f'invalid parameter "{parameter.value}"', parameter)
        raise ConfigError(
            '"transparent" of "proxy_bind" is not supported',
            parameter,
            "use proxy_protocol",
        )
    return address


def _parse_local(text: str) -> Address | None:
    """Parse ``ADDRESS[:PORT]`` (ngx_parse_addr_port); None if it is none."""
    found = _WITH_PORT.fullmatch(text)
    alone = ipv6(text)
    if alone is not None:
        return Address(socket.AF_INET6, (alone, 0, 0, 0), f"[{alone}]")
    if found is None:
        return None
    inside, outside, digits = found.groups()
    port = parse_number(digits) if digits and len(digits) < 10 else 0
    if digits is not None and not 1 <= port <= 65535:
        return None
    end = f":{port}" if port else ""
    host = ipv4(outside) if inside is None else ipv6(inside)
    if host is None:
        return None
    if inside is None:
        return Address(socket.AF_INET, (host, port), f"{host}{end}")
    return Address(socket.AF_INET6, (host, port, 0, 0), f"[{host}]{end}")


proxy_bind: Value[Address | None] = Value(
    _parse_bind, "address[:port] | off", most=2, parameters=("off",)
)


@dataclass(frozen=True, kw_only=True)
class ProxySettings(Settings):
    """How sessions are passed on to backends."""

    proxy: bool = directive(flag, default=False, accepted=True)
    """Accepted; as in every version of nginx, sessions are always proxied."""

    proxy_buffer: int | None = directive(size, default=None, shown="4k | 8k")
    """Bytes that one direction of a relayed session may buffer; None: not set."""

    proxy_timeout: float = directive(duration, default=24 * HOUR)
    """Idle time after which a relayed session is closed, in seconds."""

    proxy_pass: PassTarget | None = directive(
        proxy_pass, default=None, shown="", origin="nginx's stream module"
    )
    """Where sessions go if the auth source does not say: a group (see `upstream`), or a
    server, whose addresses are looked up when the configuration is read."""

    proxy_bind: Address | None = directive(
        proxy_bind, default=None, shown="off", origin="nginx's stream module"
    )
    """The address that connections to backends come from; off: the system chooses."""

    proxy_socket_keepalive: bool = directive(
        flag, default=False, origin="nginx's stream module"
    )
    """Whether the kernel finds out that a silent backend is gone (SO_KEEPALIVE)."""

    proxy_connect_timeout: float | None = directive(
        duration, default=None, shown="that of timeout", origin="nginx's stream module"
    )
    """Time for a connection to a backend to be made, in seconds; then `timeout` begins
    for its greeting and the login. Without it, `timeout` is for both together."""

    proxy_next_upstream: bool = directive(
        flag, default=True, origin="nginx's stream module"
    )
    """Whether another backend of the group is tried if one cannot be reached, or does
    not greet as its protocol requires."""

    proxy_next_upstream_tries: int = directive(
        number, default=0, origin="nginx's stream module"
    )
    """Backends that are tried for one login, at most; 0: all."""

    proxy_next_upstream_timeout: float = directive(
        duration, default=0.0, origin="nginx's stream module"
    )
    """Time after which no further backend is tried, in seconds; 0: no limit."""

    proxy_pass_error_message: bool = directive(flag, default=False)
    """Whether a client gets the backend's own message when the login there failed."""

    xclient: str = directive(xclient, default="on")
    """Whether SMTP backends are told about the client by XCLIENT; auto: only backends
    that offer it, with the attributes that they offer."""

    proxy_smtp_auth: bool = directive(flag, default=False)
    """Whether to log in at SMTP backends with AUTH; `Auth-SMTP: yes` or `no` in the
    answer of the auth server overrides it for a session."""

    proxy_login: str = directive(
        choice("quoted", "literal"), default="quoted", origin="mailproxy"
    )
    """How IMAP backends are told user and password: "quoted" in one line, as quoted
    strings, and as literals only if not every server would understand that (octets
    outside printable ASCII, `"`, `\\`, a line of more than 1000 bytes); "literal" always
    as literals, byte for byte as nginx does it."""

    proxy_auth_mech: str = directive(
        choice("command", "plain", "login", "xoauth2", "oauthbearer", "auto"),
        default="command",
        origin="mailproxy",
    )
    """How to log in at backends: "command" by LOGIN in IMAP, USER and PASS in POP3,
    AUTH PLAIN in SMTP, as nginx does; "auto" by the first mechanism that the backend
    announces, OAUTHBEARER or XOAUTH2 if the client has sent a token, else PLAIN, LOGIN
    or the command; or always by this mechanism. SMTP also needs `proxy_smtp_auth on`."""

    proxy_master_user: MasterUser | None = directive(
        master_user, default=None, origin="mailproxy", shown="off"
    )
    """The user who logs in at backends in the place of each client, whose login the auth
    source has checked: by `proxy_auth_mech plain` with the client's user as authorization
    identity, or, with a separator, as USER, separator and NAME by any mechanism. The
    password is the first line of the file, which nobody but root and the user that
    starts mailproxy may read. `Auth-Master-User` and `Auth-Pass` in the answer of the
    auth server override it for a session."""

    proxy_forward: frozenset[str] = directive(
        forward, default=frozenset(), repeats="add", origin="mailproxy", shown="off"
    )
    """What backends that announce it are told of the client: by "id", ID in IMAP; by
    "xclient", XCLIENT in POP3, and in SMTP, where it does not replace `xclient off`, with
    all the attributes that the backend lists."""

    proxy_protocol: str = directive(choice("off", "on", "v2"), default="off")
    """Whether backends get a PROXY header, and its version: on is version 1."""

    @classmethod
    def make(cls, block: Block, reading: Reading) -> Self:
        """Make the settings that apply in a block.

        Raises:
          ConfigError: `proxy_pass` names nothing that there is, or no mechanism
            transports both names of a login by a master user.
        """
        settings = super().make(block, reading)
        _check_master(settings, block, reading)
        given = block.find("proxy_pass")
        if given is None or settings.proxy_pass is None:
            return settings
        state, statement = load_state(reading), given.directive
        if statement not in state.targets:
            group = _find_target(statement.words[1], state)
            state.targets[statement] = group
            if group is not None and group.position is None:
                found = group.members[0].addresses
                state.reached += [(each, statement) for each in found]
        target = replace(settings.proxy_pass, group=state.targets[statement])
        return replace(settings, proxy_pass=target)

    @cached_property
    def outgoing(self) -> Outgoing | None:
        """The options of connections to backends; None: there are none."""
        if self.proxy_bind is None and not self.proxy_socket_keepalive:
            return None
        return Outgoing(self.proxy_bind, self.proxy_socket_keepalive)

    @property
    def next_upstream_timeout(self) -> float:
        """`proxy_next_upstream_timeout`, as a number of seconds that may be inf."""
        return self.proxy_next_upstream_timeout or math.inf

    @property
    def reply_limit(self) -> int:
        """Octets that one reply of a backend may have before the relay begins."""
        if self.proxy_buffer is None:
            return resource.getpagesize()
        return self.proxy_buffer


def _check_master(settings: ProxySettings, block: Block, reading: Reading) -> None:
    """Check that a mechanism transports both names of a login by a master user.

    Raises:
      ConfigError: it does not.
    """
    master = settings.proxy_master_user
    if master is None or master.separator or settings.proxy_auth_mech == "plain":
        return
    given = block.find("proxy_master_user")
    assert given is not None, "its default is None"
    if given.directive in (told := load_state(reading).unfit):
        return  # it is an error already, of another server
    told.add(given.directive)
    raise ConfigError(
        '"proxy_master_user" without "separator=" needs "proxy_auth_mech plain"',
        given.directive,
        "add: proxy_auth_mech plain; or separator=*, if the backend knows that",
    )
