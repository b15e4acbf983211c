"""Listening sockets: open, keep, inherit and close them.

One bound socket may serve several `listen` addresses: with ``*:143`` and
``127.0.0.1:143`` only the first is bound, and the local address of a connection says
which of the two it belongs to (`Listener.choose`). A specific address with an option
for its socket (`bind`, `backlog=` ...) gets its own socket.

Sockets outlive configurations. A reload adopts those that it still needs, by address,
so that they never stop listening; opens the new ones; and closes the others when the
new generation is running. A binary upgrade and systemd pass their sockets by number.
Errors are logged here, in nginx's words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from mailproxy.conf.addresses import SocketAddress
from mailproxy.frozen import Frozen
from mailproxy.net.listen_address import ListenAddress

if TYPE_CHECKING:
    from mailproxy.log import Logger

MAX_BIND_TRIES = 5
"""How often bind() is tried while an address is in use, as in nginx."""
BIND_PAUSE = 0.5
"""Seconds between two tries."""

_UNIX_MODE = 0o666
_NO_MPTCP = (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL)

Key = tuple[int, bytes, int]
"""What identifies an address: family, packed address or path, port."""


class ListenError(Frozen, Exception):
    """The sockets cannot be opened; the log has the reason."""


L = TypeVar("L", bound=ListenAddress)


@dataclass(frozen=True, eq=False)
class Held:
    """A socket that listens already, opened by the previous generation or passed on."""

    socket: socket.socket
    key: Key
    inherited: bool = False
    """Whether another process opened it; that one may own its file (unix:) as well."""


@dataclass(frozen=True, eq=False)
class Listener(Held, Generic[L]):
    """A listening socket and the `listen` addresses that it serves."""

    listen: L = field(kw_only=True)
    """The address that is bound."""
    specific: Mapping[bytes, L] = field(kw_only=True, default_factory=dict)
    """Further addresses that this wildcard socket serves, by packed address."""

    def choose(self, local: SocketAddress) -> L:
        """Return the `listen` address of a connection accepted at `local`."""
        if not self.specific:
            return self.listen
        return self.specific.get(_packed(self.listen.family, local), self.listen)


def inherit(numbers: Iterable[int], log: Logger) -> dict[Key, Held]:
    """Take over listening sockets by their numbers; skip those that do not listen."""
    held: dict[Key, Held] = {}
    for number in numbers:
        try:
            # Given a number alone, the constructor asks the kernel for the family.
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
    """Listen on all `wanted` addresses, using the sockets in `held` where they match.

    An address in use is tried again, for two and a half seconds in all.

    Raises:
      ListenError: a socket cannot be opened; those opened here are closed again, and
        those in `held` are unchanged.
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
                    sockets[key] = _open(listen, lambda: log)
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
    """Return sockets in the form that `adopt` takes."""
    return {each.key: each for each in held}


def close(unwanted: Iterable[Held], log: Logger, *, files: bool, say: bool) -> None:
    """Stop listening on sockets, which may be closed already.

    Args:
      files: whether to remove the files of unix sockets as well.
      say: whether to log that as a warning, as nginx does on reload.
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


def test(wanted: Sequence[L], log: Callable[[], Logger]) -> bool:
    """Return whether a start could listen on `wanted` (`-t`); nothing stays open.

    An address in use is assumed to be that of our own, running instance.

    Args:
      log: returns the log, if there is something to say.
    """
    with contextlib.ExitStack() as undo:
        for listen, _ in _plan(wanted):
            try:
                undo.callback(_discard, _open(listen, log), listen)
            except _OpenError as failure:
                if failure.error.errno != errno.EADDRINUSE:
                    log().emerg(str(failure), error=failure.error)
                    return False
    return True


def _key(family: int, address: SocketAddress) -> Key:
    return family, _packed(family, address), _port(address)


def _packed(family: int, address: SocketAddress) -> bytes:
    """Pack an address without its port and the zone that getsockname() adds."""
    if isinstance(address, str):
        return os.fsencode(address)
    return socket.inet_pton(family, address[0].partition("%")[0])


def _port(address: SocketAddress) -> int:
    return 0 if isinstance(address, str) else address[1]


def _plan(wanted: Sequence[L]) -> list[tuple[L, dict[bytes, L]]]:
    """Return the addresses to bind, each with the specific ones that it also serves."""
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
    """The call that failed for a listening socket; `error` has the reason."""

    def __init__(self, message: str, error: OSError) -> None:
        super().__init__(message)
        self.error = error


def _open(listen: ListenAddress, log: Callable[[], Logger]) -> socket.socket:
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
            # No chmod(2): by then another user may have put a link in its place.
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


def _socket(listen: ListenAddress, log: Callable[[], Logger]) -> socket.socket:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    if listen.multipath:
        try:
            return socket.socket(listen.family, kind, socket.IPPROTO_MPTCP)
        except OSError as error:
            if error.errno not in _NO_MPTCP:
                raise
            log().warn(
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
    """Set the options that may change while a socket listens."""
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
        opened.listen(listen.backlog)  # a second call changes the backlog
    except OSError as error:
        log.alert(
            f"listen() to {listen.address}, backlog {listen.backlog} failed, ignored",
            error=error,
        )
