"""Network: what the sessions of a worker use to reach other hosts."""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import Final

from mailproxy.conf.addresses import SocketAddress
from mailproxy.log import SessionInfo
from mailproxy.net.dns import Resolver
from mailproxy.net.dns_transport import NameServers
from mailproxy.net.engine import Engine
from mailproxy.net.idle import IdleConnections
from mailproxy.net.manager_line import ManagerLine
from mailproxy.net.outgoing import Outgoing
from mailproxy.net.relay import Relay
from mailproxy.net.resolver_settings import ResolverSettings
from mailproxy.net.resumption import Resumption
from mailproxy.net.timer import Timer
from mailproxy.net.wire import Wire
from mailproxy.stats.mapping import Row

_NOT_REACHED: Final = frozenset((
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT,
    errno.EAGAIN,  # the queue of a unix socket is full
))  # fmt: skip
"""System errors that mean that the peer cannot be reached (ngx_event_connect_peer)."""


def connect_level(error: OSError) -> str:
    """Return nginx's log level for a failed connect(): "error" if the peer cannot be
    reached, else "crit"."""
    return "error" if error.errno in _NOT_REACHED else "crit"


def is_local(error: OSError) -> bool:
    """Whether a failed connect() is the fault of this machine, and not of the peer.

    Where there is no unix socket, nobody listens, although nginx's level is "crit".
    """
    return error.errno not in _NOT_REACHED and error.errno != errno.ENOENT


class Network:
    """The engine, the relay, the resolvers, and idle connections to auth servers.

    Tests derive a network of memory streams from this class.

    Attributes:
      sessions: the live sessions of this worker, by the number of the client's
        connection, from accept to close.
      manager: the line to the manager process, which may have none.
      row: the numbers of this worker, and its view of those of all others.
      secrets: the first lines of the files of secrets that sessions need, by path.
      resumption: the TLS sessions with backends.
    """

    def __init__(self, engine: Engine, row: Row | None = None) -> None:
        self.engine = engine
        self.relay = Relay(engine)
        self.idle = IdleConnections(engine)
        self.manager = ManagerLine(engine)
        self.sessions: dict[int, SessionInfo] = {}
        self.row = Row() if row is None else row
        self.secrets: dict[str, bytes] = {}
        self._life = f"{int(time.time() * 1000):x}.{os.getpid():x}"
        self.resumption = Resumption()
        self._numbers = itertools.count(1)
        self._transport = NameServers(engine)
        self._resolvers: dict[tuple[ResolverSettings, float], Resolver] = {}

    def timer(self) -> Timer:
        """Return the timer of the session that runs (see `driven`)."""
        task = self.engine.current
        assert task is not None, "sessions are driven tasks"
        return task

    def next_number(self) -> int:
        """Return a connection number for the log, unique in this worker.

        As in nginx, connections to auth servers and backends take numbers as well.
        """
        return next(self._numbers)

    def session_id(self, connection: int) -> str:
        """Return the name of a session, which no other one has, here or elsewhere.

        It has three hexadecimal numbers: when this worker started, in milliseconds since
        1970, its pid, and the number of the client's connection.
        """
        return f"{self._life}.{connection:x}"

    def make_room(self) -> bool:
        """Return whether another connection may be opened; evict an idle one if needed.

        That is a connection to an auth server, or else a socket for a name server.
        """
        return not self.engine.full or self.idle.evict() or self._transport.make_room()

    def connect(
        self, family: int, address: SocketAddress, how: Outgoing | None = None
    ) -> Wire:
        """Begin to connect.

        Raises:
          OSError: connect() failed at once, or `worker_connections` are in use; a
            `BindError` if `how` cannot be.
        """
        self.next_number()
        self.make_room()
        return Wire.connect(self.engine, family, address, how)

    def resolver(self, settings: ResolverSettings, timeout: float) -> Resolver:
        """Return the resolver of a `resolver` directive, with its cache.

        Args:
          timeout: `resolver_timeout`, in seconds.
        """
        key = settings, timeout
        if key not in self._resolvers:
            self._resolvers[key] = Resolver(settings, timeout, self._transport.ask)
        return self._resolvers[key]

    def close(self) -> None:
        """Close everything idle; the sessions must have ended."""
        self.idle.stop_keeping()
        self._transport.close()
        self.relay.close()
