"""The whole configuration: read, checked, and put together.

`conf` reads blocks; `mail` and `process.settings` declare what may stand in them. Here
both become one value, for a generation of workers.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, cast

from mailproxy.conf.directive import Block, Reading, Settings, declarations
from mailproxy.conf.places import BlockKind, Language
from mailproxy.conf.resolve import Interpreter
from mailproxy.conf.secret_files import SecretFile
from mailproxy.conf.tree import ConfigError
from mailproxy.frozen import Frozen
from mailproxy.log.directive import ErrorLog
from mailproxy.mail.clear_text import warn_of_clear_text
from mailproxy.mail.core import CoreSettings
from mailproxy.mail.group import GroupResolver
from mailproxy.mail.group_checks import complete_checks
from mailproxy.mail.listen import Listen
from mailproxy.mail.load_state import LoadState, Reason, load_state
from mailproxy.mail.match import close_match, open_match
from mailproxy.mail.modules import MODULES, OF_BLOCKS
from mailproxy.mail.probing import GroupCheck
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.mail.server import Server, check_server, make_server
from mailproxy.mail.upstream import (
    close_upstream,
    find_resolvers,
    open_upstream,
    warn_of_loops,
)
from mailproxy.mail.upstreams import Upstreams
from mailproxy.process.options import Options
from mailproxy.process.settings import EventsSettings, MainSettings
from mailproxy.stats.cells import CellKey

if TYPE_CHECKING:
    from mailproxy.mail.own_certificates import OwnCertificates
    from mailproxy.net.openssl.pairs import Leaf


@dataclass(frozen=True, kw_only=True)
class Messages:
    """The errors and warnings of a configuration, in nginx's order."""

    reading: tuple[ConfigError, ...] = ()
    """Before "syntax is ok"."""
    starting: tuple[ConfigError, ...] = ()
    """After it."""

    def __iter__(self) -> Iterator[ConfigError]:
        return itertools.chain(self.reading, self.starting)


class ConfigErrors(Frozen, ExceptionGroup[ConfigError]):
    """The configuration cannot be used: all errors, nginx's first one first."""

    messages: Messages
    """The errors, and the warnings among them."""
    parsed: bool
    """Whether "syntax is ok" can be said."""

    @classmethod
    def of(cls, messages: Messages, *, parsed: bool) -> Self:
        """Group the errors of `messages`."""
        errors = [message for message in messages if not message.is_warning]
        group = cls("the configuration cannot be used", errors)
        group.messages = messages
        group.parsed = parsed
        return group


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A whole configuration, ready to be used; nothing in it changes."""

    main: MainSettings
    events: EventsSettings
    servers: tuple[Server, ...]
    error_logs: tuple[tuple[ErrorLog, ...], ...]
    """The logs of mail and of each server that has its own: all are opened at start."""
    messages: Messages
    """Warnings."""
    upstreams: Upstreams
    """The groups of backends, and what this process knows of them."""
    manager: tuple[Reason, ...] = ()
    """What needs the manager process; empty: there is none."""
    group_checks: Mapping[str, tuple[GroupCheck, ...]] = field(default_factory=dict)
    """The health checks of groups, by name in lower case."""
    counted: tuple[CellKey, ...] = ()
    """The numbers that processes share, besides those that all have."""

    resolvers: Mapping[str, GroupResolver] = field(default_factory=dict)
    """How groups are looked up that have to be, by name in lower case."""

    @property
    def shares_numbers(self) -> bool:
        """Whether processes need the shared mapping."""
        return bool(self.manager or self.counted)

    @property
    def secret_files(self) -> frozenset[SecretFile]:
        """The files of secrets that workers read."""
        masters = (server.proxy.proxy_master_user for server in self.servers)
        return frozenset(each.password_file for each in masters if each is not None)

    @property
    def manager_secret_files(self) -> frozenset[SecretFile]:
        """The files of secrets that the manager reads."""
        files = (
            each.check.login_file
            for checks in self.group_checks.values()
            for each in checks
        )
        return frozenset(each for each in files if each is not None)

    @property
    def listens(self) -> tuple[Listen, ...]:
        """The addresses of all servers."""
        return tuple(each for server in self.servers for each in server.core.listen)


class _Made:
    """A server block, and the settings made from it so far."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.settings: dict[type[Settings], Settings] = {}
        self.complete = True

    @property
    def listens(self) -> tuple[Listen, ...]:
        """Where it listens; known once it is complete."""
        core = self.settings[CoreSettings]
        assert isinstance(core, CoreSettings)
        return core.listen

    def add(self, module: type[Settings], reading: Reading) -> None:
        """Make the settings of one module, if it applies and its directives are valid.

        Raises:
          ConfigError: the directives do not fit together.
        """
        if not module.applies(self.block, reading):
            return
        for around in self.block.around():
            if around.failed:
                needed = {*declarations(module), *module.depends_on}
                if not needed.isdisjoint(around.failed):
                    self.complete = False  # the error has been reported already
                    return
        try:
            self.settings[module] = module.make(self.block, reading)
        except ConfigError:
            self.complete = False
            raise


class Assembly:
    """Makes the servers once the mail block is complete."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.blocks: list[Block] = []
        self.upstreams = Upstreams({}, ())

    def close_server(self, block: Block, _: Reading) -> Iterator[ConfigError]:
        """Check at the end of a server that it listens."""
        if not block.written("listen"):
            block.failed.add("listen")
            yield ConfigError(
                'no "listen" is defined for server',
                block.directive,
                "add: listen 143; or another address",
            )

    def close_mail(self, mail: Block, reading: Reading) -> Iterator[ConfigError]:
        """Make the servers at the end of mail: module by module, then server by server."""
        self.blocks = [each for each in mail.blocks if each.context == "server"]
        blocks = [_Made(block) for block in self.blocks]
        said: set[str] = set()
        for module in MODULES:
            for made in blocks:
                try:
                    made.add(module, reading)
                except ConfigError as error:
                    inherited = error.position is None or error.cause is not None
                    if inherited and error.text in said:
                        continue  # of a certificate that several servers share
                    said.add(error.text)
                    yield error
        for made in blocks:
            try:
                check_server(made.block, reading)
            except ConfigError as error:
                made.complete = False
                yield error
        complete = [made for made in blocks if made.complete]
        listens = [each for made in complete for each in made.listens]
        self.upstreams = Upstreams(load_state(reading).groups, listens)
        self.servers = [
            make_server(made.block, made.settings, self.upstreams) for made in complete
        ]
        warn_of_loops(reading, self.upstreams.is_own)
        pairs = zip((made.block for made in complete), self.servers, strict=True)
        warn_of_clear_text(dict(pairs), reading)
        if self.servers and len(complete) == len(blocks):
            yield from complete_checks(self.servers, reading)
        yield from find_resolvers(mail, reading)


class Loader:
    """Reads one configuration; its attributes then show where each value comes from.

    Attributes:
      interpreter: has the files and the blocks that were read.
      assembly: has the server blocks, and the servers made from them.
    """

    def __init__(self, *, prefix: str, path: str, name: str) -> None:
        """Prepare to read.

        Args:
          prefix: P/, with its slash.
          path: the main file.
          name: the name that the program was called by.
        """
        directory, slash, _ = path.rpartition("/")
        self.path = path
        state = LoadState(protocols={each.name: each.ports for each in PROTOCOLS})
        self.reading = Reading(
            prefix, directory + slash if slash else prefix, name, state
        )
        self.assembly = Assembly()
        self.interpreter = Interpreter(language(self.assembly), self.reading)

    def load(self, globals_text: str = "") -> Configuration:
        """Read the text of -g and the main file, with all that they include.

        Raises:
          ConfigErrors: something is wrong with them.
        """
        collecting = gc.isenabled()
        gc.disable()  # There is no garbage yet; looking for it takes a third more time.
        try:
            return self._load(globals_text)
        finally:
            if collecting:
                gc.enable()

    def _load(self, globals_text: str) -> Configuration:
        messages = self.reading.messages
        complete = self.interpreter.read(self.path, globals_text)
        read = len(messages)
        parsed = complete and all(message.is_warning for message in messages)
        main = events = None
        if complete:
            main, events = self._start(parsed=parsed)
            if all(message.is_warning for message in messages):
                self._warn_of_idleness()
                self._warn_of_certificates(main)
        said = Messages(reading=tuple(messages[:read]), starting=tuple(messages[read:]))
        if any(not message.is_warning for message in messages):
            raise ConfigErrors.of(said, parsed=parsed)
        assert main is not None
        assert events is not None
        state = load_state(self.reading)
        shares = state.shares_numbers or state.manager
        return Configuration(
            main=main,
            events=events,
            servers=tuple(self.assembly.servers),
            error_logs=tuple(self._error_logs()),
            messages=said,
            upstreams=self.assembly.upstreams,
            manager=tuple(state.manager),
            group_checks=dict(state.group_checks),
            resolvers=dict(state.resolvers),
            counted=tuple(state.counted) if shares else (),
        )

    def _warn_of_idleness(self) -> None:
        """Warn if nothing will be served, which nginx does not do."""
        if self.assembly.servers:
            return
        mail = next(
            (b for b in self.interpreter.main.blocks if b.context == "mail"), None
        )
        missing = (
            'there is no "mail" block' if mail is None else "there is no mail server"
        )
        self.reading.statement = None
        self.reading.warn(
            f"{missing}, nothing will be served",
            None if mail is None else mail.directive,
            "write one: mail { server { listen 143; protocol imap; auth_http URL; } }",
        )

    def _warn_of_certificates(self, main: MainSettings | None) -> None:
        """Warn of certificates in use that expire soon, or that clients may not like.

        Of those of `ssl_certificate` that have expired, there was a warning before.
        """
        found = list(certificates_in_use(self.assembly.servers))
        if main is None or not found:
            return
        from mailproxy.process.expiry import Expiry

        self.reading.statement = None
        warned = {message.message for message in self.reading.messages}
        for remark in Expiry(main.ssl_certificate_warning).due(
            found, datetime.now(UTC)
        ):
            if remark.text not in warned:
                self.reading.warn(remark.text, remedy=remark.remedy)
        for file in dict.fromkeys(file for file, leaf in found if leaf.must_staple):
            self.reading.warn(
                f'certificate "{file}" wants OCSP stapling, which mail does not have',
                remedy="order it without must-staple",
            )

    def _error_logs(self) -> Iterator[tuple[ErrorLog, ...]]:
        for mail in self.interpreter.main.blocks:
            for block in (mail, *mail.blocks):
                given = block.given.get("error_log")
                if given is not None:
                    yield cast("tuple[ErrorLog, ...]", given.value)

    def _start(
        self, *, parsed: bool
    ) -> tuple[MainSettings | None, EventsSettings | None]:
        """Check what nginx checks between reading and applying a configuration."""
        reading = self.reading
        top = self.interpreter.main
        blocks = {block.context: block for block in top.blocks}
        main = events = None
        if parsed:
            try:
                main = MainSettings.make(top, reading)
            except ConfigError as error:
                reading.messages.append(error)
        if main is not None and not main.master_process:
            self._refuse_manager()
        if "events" not in blocks:
            if "events" not in top.failed:
                reading.messages.append(
                    ConfigError(
                        'no "events" section in configuration',
                        remedy="nginx wants one: events {}",
                    )
                )
        elif parsed:
            events = EventsSettings.make(blocks["events"], reading)
            self._check_connections(events.worker_connections)
        return main, events

    def _refuse_manager(self) -> None:
        """Check that nothing needs a manager, which only a master starts."""
        for reason in load_state(self.reading).manager[:1]:
            self.reading.messages.append(
                ConfigError(
                    f'"{reason.directive}" needs "master_process on"', reason.position
                )
            )

    def _check_connections(self, connections: int) -> None:
        """Check that a worker may have more connections than it has listening sockets."""
        listens = [
            each for server in self.assembly.servers for each in server.core.listen
        ]
        wildcards = {_port(each) for each in listens if each.wildcard}
        sockets = sum(
            each.wildcard or each.bind or _port(each) not in wildcards
            for each in listens
        )
        if connections < sockets + 1:
            self.reading.messages.append(
                ConfigError(
                    f"{connections} worker_connections are not enough "
                    f"for {sockets} listening sockets"
                )
            )


def own_certificates(servers: Iterable[Server]) -> list[OwnCertificates]:
    """Return the certificates of each TLS context, in an order that all processes know."""
    found = {id(own): own for each in servers if (own := each.ssl.own) is not None}
    return list(found.values())


def certificates_in_use(servers: Iterable[Server]) -> Iterator[tuple[str, Leaf]]:
    """Yield the certificates that clients may get, with their files."""
    for own in own_certificates(servers):
        yield from own.in_use()


def _port(listen: Listen) -> tuple[int, int]:
    port = 0 if isinstance(listen.sockaddr, str) else listen.sockaddr[1]
    return listen.family, port


def language(assembly: Assembly | None = None) -> Language:
    """Return all directives and blocks, and where they may stand."""
    assembly = Assembly() if assembly is None else assembly
    return Language(
        settings=(MainSettings, EventsSettings, *MODULES, *OF_BLOCKS),
        blocks=(
            BlockKind(name="events", parent="main"),
            BlockKind(
                name="mail", parent="main", repeats="merge", close=assembly.close_mail
            ),
            BlockKind(
                name="server", parent="mail", repeats="add", close=assembly.close_server
            ),
            BlockKind(
                name="upstream",
                parent="mail",
                repeats="add",
                arguments=1,
                open=open_upstream,
                close=close_upstream,
            ),
            BlockKind(
                name="match",
                parent="mail",
                repeats="add",
                arguments=1,
                open=open_match,
                close=close_match,
            ),
        ),
    )


def load(options: Options) -> Configuration:
    """Read and check the configuration that the command line names.

    Raises:
      ConfigErrors: it cannot be used.
    """
    return make_loader(options).load(options.globals_text)


def make_loader(options: Options) -> Loader:
    """Make the loader that `load` uses, for callers that ask where values come from."""
    return Loader(prefix=options.prefix, path=options.conf_file, name=options.name)
