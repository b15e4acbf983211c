"""The lists of modules, and the whole configuration made of them."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar, cast

from mailproxy.conf.directive import Block, Scope, Settings, declarations
from mailproxy.conf.resolve import BlockKind, Language, Reader
from mailproxy.conf.syntax import ConfigError, Position
from mailproxy.log.directive import ErrorLog
from mailproxy.mail.auth.http import AuthHttpSettings
from mailproxy.mail.core import CoreSettings, Listen, Protocols
from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.proxy import ProxySettings
from mailproxy.mail.realip import RealipSettings
from mailproxy.mail.smtp import SmtpSettings
from mailproxy.mail.ssl import Alpn, SslSettings

M = TypeVar("M", bound=Settings)
E = TypeVar("E", bound=Settings)

ProtocolSettings = ImapSettings | Pop3Settings | SmtpSettings
PROTOCOLS: tuple[type[ProtocolSettings], ...] = (
    ImapSettings,
    Pop3Settings,
    SmtpSettings,
)
"""The mail protocols. To add one: its settings class here and in the line above."""

MODULES: tuple[type[Settings], ...] = (
    CoreSettings,
    SslSettings,
    Pop3Settings,
    ImapSettings,
    SmtpSettings,
    AuthHttpSettings,
    ProxySettings,
    RealipSettings,
)
"""All modules of mail, in the order in which nginx checks them."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One `server` block: the settings of each module."""

    core: CoreSettings
    ssl: SslSettings
    proxy: ProxySettings
    auth: AuthHttpSettings
    realip: RealipSettings
    protocol: ProtocolSettings
    """Of the protocol that it speaks."""
    position: Position
    """Where the block begins."""


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What there is to say about a configuration, in the order in which nginx says it."""

    reading: tuple[ConfigError, ...] = ()
    """Before "syntax is ok"."""
    starting: tuple[ConfigError, ...] = ()
    """After it."""

    def __iter__(self) -> Iterator[ConfigError]:
        return itertools.chain(self.reading, self.starting)


class ConfigErrors(ExceptionGroup[ConfigError]):
    """The configuration cannot be used: all errors, nginx's first one first."""

    messages: Messages
    """The errors, and the warnings among them."""
    parsed: bool
    """Whether "syntax is ok" can be said."""

    @classmethod
    def of(cls, messages: Messages, *, parsed: bool) -> Self:
        """Group the errors of `messages`."""
        errors = [message for message in messages if message.level != "warn"]
        group = cls("the configuration cannot be used", errors)
        group.messages = messages
        group.parsed = parsed
        return group


@dataclass(frozen=True, kw_only=True)
class Configuration(Generic[M, E]):
    """A whole configuration, ready to be used; nothing in it changes."""

    main: M
    events: E
    servers: tuple[Server, ...]
    error_logs: tuple[tuple[ErrorLog, ...], ...]
    """The logs of mail and of each server that has its own: all are opened at start."""
    messages: Messages
    """Warnings."""

    @property
    def listens(self) -> tuple[Listen, ...]:
        """The addresses of all servers."""
        return tuple(each for server in self.servers for each in server.core.listen)


class _Assembly:
    """Makes the servers, when the block of mail is complete."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.blocks: list[Block] = []

    def close_server(self, block: Block, _: Scope) -> Iterator[ConfigError]:
        """At the end of a server: it must listen."""
        if not block.written("listen"):
            block.failed.add("listen")
            yield ConfigError(
                'no "listen" is defined for server',
                block.directive,
                "add: listen 143; or another address",
            )

    def close_mail(self, mail: Block, scope: Scope) -> Iterator[ConfigError]:
        """At the end of mail: module by module, then server by server."""
        self.blocks = mail.blocks
        made: list[dict[type[Settings], Settings]] = [{} for _ in mail.blocks]
        said: set[str] = set()
        for module in MODULES:
            concerned = set(declarations(module))
            if module is SslSettings:
                concerned.add("listen")
            for block, found in zip(mail.blocks, made, strict=True):
                protocol = getattr(module, "name", None)
                if protocol is not None and _protocol(found) != protocol:
                    continue
                if not all(concerned.isdisjoint(b.failed) for b in block.around()):
                    continue  # said already
                try:
                    found[module] = module.make(block, scope)
                    if module is CoreSettings:
                        scope.shared(Alpn)[block] = _protocol(found)
                except ConfigError as error:
                    inherited = error.position is None or error.cause is not None
                    if inherited and error.text in said:
                        continue  # of a certificate that several servers share
                    said.add(error.text)
                    yield error
        self.servers = [
            _server(block, found)
            for block, found in zip(mail.blocks, made, strict=True)
            if len(found) == len(MODULES) - len(PROTOCOLS) + 1
        ]
        for server in self.servers:
            _warn_of_disbelief(server, scope)


def _warn_of_disbelief(server: Server, scope: Scope) -> None:
    """Say that PROXY headers are wanted but not believed, which nginx does not say."""
    listens = [each for each in server.core.listen if each.proxy_protocol]
    if listens and not server.realip.set_real_ip_from:
        scope.warn(
            'PROXY headers do not tell who the client is without "set_real_ip_from"',
            listens[0].position,
            "name the proxies that are believed: set_real_ip_from NETWORK;",
        )


def _protocol(found: Mapping[type[Settings], Settings]) -> str:
    core = found.get(CoreSettings)
    return core.protocol if isinstance(core, CoreSettings) else ""


def _server(block: Block, found: Mapping[type[Settings], Settings]) -> Server:
    protocol = next(cls for cls in PROTOCOLS if cls in found)
    assert block.position is not None
    core = cast("CoreSettings", found[CoreSettings])
    ssl = cast("SslSettings", found[SslSettings])
    if ssl.ssl:
        core = replace(core, listen=tuple(replace(a, ssl=True) for a in core.listen))
    return Server(
        core=core,
        ssl=ssl,
        proxy=cast("ProxySettings", found[ProxySettings]),
        auth=cast("AuthHttpSettings", found[AuthHttpSettings]),
        realip=cast("RealipSettings", found[RealipSettings]),
        protocol=cast("ProtocolSettings", found[protocol]),
        position=block.position,
    )


class Loader(Generic[M, E]):
    """Reads one configuration; what it leaves tells where each value comes from."""

    def __init__(
        self, main: type[M], events: type[E], *, prefix: str, path: str, name: str
    ) -> None:
        """Prepare to read.

        Args:
          main, events: the settings of the main context and of events, which are
            those of whoever runs the servers.
          prefix: P/, with its slash.
          path: the main file.
          name: what the program was called as.
        """
        directory, slash, _ = path.rpartition("/")
        self.path = path
        self.scope = Scope(prefix, directory + slash if slash else prefix, name)
        self.assembly = _Assembly()
        self._main, self._events = main, events
        self.scope.shared(Protocols).update(
            {protocol.name: protocol.ports for protocol in PROTOCOLS}
        )
        self.reader = Reader(language(main, events, self.assembly), self.scope)

    def load(self, globals_text: str = "") -> Configuration[M, E]:
        """Read the text of -g and the main file, with all that they include.

        Raises:
          ConfigErrors: something is wrong with them.
        """
        collecting = gc.isenabled()
        gc.disable()  # All that is made stays; looking for garbage costs a third more.
        try:
            return self._load(globals_text)
        finally:
            if collecting:
                gc.enable()

    def _load(self, globals_text: str) -> Configuration[M, E]:
        messages = self.scope.messages
        complete = self.reader.read(self.path, globals_text)
        read = len(messages)
        parsed = complete and all(message.level == "warn" for message in messages)
        main = events = None
        if complete:
            main, events = self._start(parsed=parsed)
        said = Messages(reading=tuple(messages[:read]), starting=tuple(messages[read:]))
        if any(message.level != "warn" for message in messages):
            raise ConfigErrors.of(said, parsed=parsed)
        assert main is not None
        assert events is not None
        return Configuration(
            main=main,
            events=events,
            servers=tuple(self.assembly.servers),
            error_logs=tuple(self._error_logs()),
            messages=said,
        )

    def _error_logs(self) -> Iterator[tuple[ErrorLog, ...]]:
        for mail in self.reader.main.blocks:
            for block in (mail, *mail.blocks):
                given = block.given.get("error_log")
                if given is not None:
                    yield cast("tuple[ErrorLog, ...]", given.value)

    def _start(self, *, parsed: bool) -> tuple[M | None, E | None]:
        """What nginx checks between reading and applying a configuration."""
        scope = self.scope
        top = self.reader.main
        blocks = {block.context: block for block in top.blocks}
        main = events = None
        if parsed:
            try:
                main = self._main.make(top, scope)
            except ConfigError as error:
                scope.messages.append(error)
        if "events" not in blocks:
            if "events" not in top.failed:
                scope.messages.append(
                    ConfigError(
                        'no "events" section in configuration',
                        remedy="nginx wants one: events {}",
                    )
                )
        elif parsed:
            events = self._events.make(blocks["events"], scope)
            self._count(events)
        return main, events

    def _count(self, events: E) -> None:
        """Whether a worker may have as many connections as there are sockets."""
        connections = getattr(events, "worker_connections", 0)
        listens = [
            each for server in self.assembly.servers for each in server.core.listen
        ]
        wildcards = {_port(each) for each in listens if each.wildcard}
        sockets = sum(
            each.wildcard or each.bind or _port(each) not in wildcards
            for each in listens
        )
        if connections < sockets + 1:
            self.scope.messages.append(
                ConfigError(
                    f"{connections} worker_connections are not enough "
                    f"for {sockets} listening sockets"
                )
            )


def _port(listen: Listen) -> tuple[int, int]:
    port = 0 if isinstance(listen.sockaddr, str) else listen.sockaddr[1]
    return listen.family, port


def language(
    main: type[Settings], events: type[Settings], assembly: _Assembly | None = None
) -> Language:
    """All directives, and where they may stand."""
    assembly = _Assembly() if assembly is None else assembly
    return Language(
        settings=(main, events, *MODULES),
        blocks=(
            BlockKind(name="events", parent="main"),
            BlockKind(
                name="mail", parent="main", repeats="merge", close=assembly.close_mail
            ),
            BlockKind(
                name="server", parent="mail", repeats="add", close=assembly.close_server
            ),
        ),
    )
