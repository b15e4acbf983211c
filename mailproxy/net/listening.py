"""Listening sockets: open, keep, inherit and close them.

One bound socket may serve several `listen` addresses: with ``*:143`` and
``127.0.0.1:143`` only the first is bound, and the address that a connection
arrived at says which of the two it belongs to (`Listener.choose`). A specific
address with an option that concerns its socket (`bind`, `backlog=` ...) gets a
socket of its own.

Sockets outlive configurations. A reload adopts those it still wants, by address,
so that they never stop listening; opens the new ones; and closes the others when
the new generation stands. A binary upgrade and systemd hand theirs over by
number. What goes wrong is said here, in the log, in nginx's words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mailproxy.conf.addresses import SocketAddress
from mailproxy.frozen import Frozen
from mailproxy.log import Logger
from mailproxy.net.listen_address import ListenAddress

MAX_BIND_TRIES = 5
"""How often bind() is tried while an address is in use, as nginx does."""
BIND_PAUSE = 0.5
"""Seconds between two rounds."""

_UNIX_MODE = 0o666
_NO_MPTCP = (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL)

Key = tuple[int, bytes, int]
"""What makes two addresses the same: family, packed address or path, port."""


class ListenError(Frozen, Exception):
    """The sockets cannot be opened; why is in the log."""


L = TypeVar("L", bound=ListenAddress)


@dataclass(frozen=True, eq=False)
class Held:
    """A socket that listens already: of the generation before, or handed over."""

    socket: socket.socket
    key: Key
    inherited: bool = False
    """Whether another process opened it, which may own its file (unix:) too."""


@dataclass(frozen=True, eq=False)
class Listener(Held, Generic[L]):
    """A listening socket and the `listen` addresses that it serves."""

    listen: L = field(kw_only=True)
    """The address that is bound."""
    specific: Mapping[bytes, L] = field(kw_only=True, default_factory=dict)
    """By packed address, those which this wildcard socket serves besides."""

    def choose(self, local: SocketAddress) -> L:
        """The `listen` address of a connection whose getsockname() is `local`."""
        if not self.specific:
            return self.listen
        return self.specific.get(_packed(self.listen.family, local), self.listen)


def inherit(numbers: Iterable[int], log: Logger) -> dict[Key, Held]:
    """Take over listening sockets by their numbers; what is none is skipped."""
    held: dict[Key, Held] = {}
    for number in numbers:
        try:
            # Not from the number: the constructor asks the kernel what it is.
            inherited = socket.socket(fileno=number)
        except OSError as error:
            log.crit(
                f"getsockname() of the inherited socket #{number} failed", error=error
            )
            continue
        if inherited.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            log.crit(f"the inherited socket #{number} has unsupported protocol family")
            inherited.detach()
            continue
        if inherited.type != socket.SOCK_STREAM or not inherited.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            log.crit(f"the inherited socket #{number} does not listen")
            inherited.detach()
            continue
        inherited.setblocking(False)
        inherited.set_inheritable(False)
        found = _key(inherited.family, inherited.getsockname())
        held[found] = Held(inherited, found, inherited=True)
    return held


def adopt(
    held: Mapping[Key, Held],
    wanted: Sequence[L],
    log: Logger,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Listener[L], ...]:
    """Listen at all `wanted` addresses, keeping of `held` what they need.

    An address in use is tried again, for two and a half seconds in all.

    Raises:
      ListenError: it cannot be done; what was opened is closed again, and what
        was held is as before.
    """
    plan = _plan(wanted)
    sockets = {key: each.socket for key, each in held.items()}
    with contextlib.ExitStack() as undo:
        for _ in range(MAX_BIND_TRIES):
            in_use = False
            for listen, _ in plan:
                key = _key(listen.family, listen.sockaddr)
                if key in sockets:
                    continue
                try:
                    sockets[key] = _open(listen, log)
                except _OpenError as failure:
                    log.emerg(str(failure), error=failure.error)
                    if failure.error.errno != errno.EADDRINUSE:
                        raise ListenError from failure
                    in_use = True
                else:
                    undo.callback(_discard, sockets[key], listen)
            if not in_use:
                break
            log.notice(f"try again to bind() after {BIND_PAUSE * 1000:.0f}ms")
            pause(BIND_PAUSE)
        else:
            log.emerg("still could not bind()")
            raise ListenError
        undo.pop_all()
    listeners = []
    for listen, specific in plan:
        key = _key(listen.family, listen.sockaddr)
        _configure(sockets[key], listen, log)
        inherited = key in held and held[key].inherited
        listeners.append(
            Listener(sockets[key], key, inherited, listen=listen, specific=specific)
        )
    return tuple(listeners)


def by_key(held: Iterable[Held]) -> dict[Key, Held]:
    """What is held, as `adopt` wants it."""
    return {each.key: each for each in held}


def close(unwanted: Iterable[Held], log: Logger, *, files: bool, say: bool) -> None:
    """Stop listening; what is closed already counts, too.

    Args:
      files: remove the files of unix sockets, too.
      say: and log that as a warning, as nginx does on reload.
    """
    for held in unwanted:
        held.socket.close()
        family, path, _ = held.key
        if family == socket.AF_UNIX and files:
            shown = os.fsdecode(path)
            if say:
                log.warn(f"deleting socket {shown}")
            try:
                os.unlink(path)
            except OSError as error:
                log.emerg(f"unlink() {shown} failed", error=error)


def test(wanted: Sequence[L], log: Logger) -> bool:
    """Whether a start could listen at `wanted` (`-t`); nothing stays open.

    An address in use is taken for that of our own, running instance.
    """
    with contextlib.ExitStack() as undo:
        for listen, _ in _plan(wanted):
            try:
                undo.callback(_discard, _open(listen, log), listen)
            except _OpenError as failure:
                if failure.error.errno != errno.EADDRINUSE:
                    log.emerg(str(failure), error=failure.error)
                    return False
    return True


def _key(family: int, address: SocketAddress) -> Key:
    return family, _packed(family, address), _port(address)


def _packed(family: int, address: SocketAddress) -> bytes:
    """An address without port (and without the zone that getsockname() names)."""
    if isinstance(address, str):
        return os.fsencode(address)
    return socket.inet_pton(family, address[0].partition("%")[0])


def _port(address: SocketAddress) -> int:
    return 0 if isinstance(address, str) else address[1]


def _plan(wanted: Sequence[L]) -> list[tuple[L, dict[bytes, L]]]:
    """The addresses to bind, each with the specific ones it serves besides."""
    ports: dict[tuple[int, int], list[L]] = {}
    for listen in wanted:
        ports.setdefault((listen.family, _port(listen.sockaddr)), []).append(listen)
    plan: list[tuple[L, dict[bytes, L]]] = []
    for (family, _), listens in ports.items():
        wildcards = [listen for listen in listens if listen.wildcard]
        bound = [listen for listen in listens if not listen.wildcard]
        specific: dict[bytes, L] = {}
        if wildcards:
            specific = {
                _packed(family, listen.sockaddr): listen
                for listen in bound
                if not listen.bind
            }
            bound = [listen for listen in bound if listen.bind]
        plan += [(listen, {}) for listen in bound]
        plan += [(listen, specific) for listen in wildcards]
    return plan


class _OpenError(Frozen, Exception):
    """Which call failed for a listening socket; `error` says why."""

    def __init__(self, message: str, error: OSError) -> None:
        super().__init__(message)
        self.error = error


def _open(listen: ListenAddress, log: Logger) -> socket.socket:
    address = listen.address
    failing = f"socket() {address} failed"
    with contextlib.ExitStack() as undo:
        try:
            opened = undo.enter_context(_socket(listen, log))
            failing = f"setsockopt(SO_REUSEADDR) {address} failed"
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if listen.family == socket.AF_INET6:
                failing = f"setsockopt(IPV6_V6ONLY) {address} failed"
                only = listen.ipv6only is not False  # on by default, as in nginx
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            failing = f"bind() to {address} failed"
            # No chmod(2): by then somebody may have put a link in its place.
            mask = os.umask(0o777 & ~_UNIX_MODE)
            try:
                opened.bind(listen.sockaddr)
            finally:
                os.umask(mask)
            undo.callback(_unlink, listen)
            failing = f"listen() to {address}, backlog {listen.backlog} failed"
            opened.listen(listen.backlog)
        except OSError as error:
            raise _OpenError(failing, error) from error
        undo.pop_all()
        return opened


def _socket(listen: ListenAddress, log: Logger) -> socket.socket:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    if listen.multipath:
        try:
            return socket.socket(listen.family, kind, socket.IPPROTO_MPTCP)
        except OSError as error:
            if error.errno not in _NO_MPTCP:
                raise
            log.warn(
                f"Multipath TCP is not available, {listen.address} takes TCP only",
                error=error,
            )
    return socket.socket(listen.family, kind)


def _discard(opened: socket.socket, listen: ListenAddress) -> None:
    opened.close()
    _unlink(listen)


def _unlink(listen: ListenAddress) -> None:
    """Remove the file that bind() made for a unix socket."""
    if isinstance(listen.sockaddr, str):
        with contextlib.suppress(OSError):
            os.unlink(listen.sockaddr)


def _configure(opened: socket.socket, listen: ListenAddress, log: Logger) -> None:
    """Apply what may change while a socket listens."""
    options: list[tuple[str, int, int, int | None]] = [
        ("SO_RCVBUF", socket.SOL_SOCKET, socket.SO_RCVBUF, listen.rcvbuf),
        ("SO_SNDBUF", socket.SOL_SOCKET, socket.SO_SNDBUF, listen.sndbuf),
    ]
    keepalive = listen.so_keepalive
    if keepalive is not None:
        tcp = socket.IPPROTO_TCP
        options += [
            ("SO_KEEPALIVE", socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive.on)),
            ("TCP_KEEPIDLE", tcp, socket.TCP_KEEPIDLE, keepalive.idle),
            ("TCP_KEEPINTVL", tcp, socket.TCP_KEEPINTVL, keepalive.interval),
            ("TCP_KEEPCNT", tcp, socket.TCP_KEEPCNT, keepalive.count),
        ]
    for name, level, option, value in options:
        if value is None:
            continue
        try:
            opened.setsockopt(level, option, value)
        except OSError as error:
            log.alert(
                f"setsockopt({name}, {value}) {listen.address} failed, ignored",
                error=error,
            )
    try:
        opened.listen(listen.backlog)  # again: this is how a backlog is changed
    except OSError as error:
        log.alert(
            f"listen() to {listen.address}, backlog {listen.backlog} failed, ignored",
            error=error,
        )
