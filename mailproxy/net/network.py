"""Network: how the sessions of a worker reach the world."""

from __future__ import annotations

import errno
import itertools
from collections import defaultdict
from collections.abc import Hashable

from mailproxy.net.dns import Resolver, ResolverSettings
from mailproxy.net.dns_transport import Transport
from mailproxy.net.engine import READABLE, Engine
from mailproxy.net.relay import Relay
from mailproxy.net.wire import SockAddress, Wire

_NOT_REACHED = frozenset(
    (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT)
)
IDLE_CONNECTIONS = 64
"""Connections to one auth server that a worker keeps open while nobody needs them."""


def connect_level(error: OSError) -> str:
    """nginx's log level for a connect() that failed: "error" if the peer is not there,
    "crit" if the fault is on this side."""
    return "error" if error.errno in _NOT_REACHED else "crit"


class Network:
    """The engine, the relay, resolvers, and idle connections to auth servers.

    Tests derive a network of memory streams from it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.relay = Relay(engine)
        self._idle: defaultdict[Hashable, list[Wire]] = defaultdict(list)
        self._numbers = itertools.count(1)
        self._transport = Transport(engine)
        self._resolvers: dict[tuple[ResolverSettings, float], Resolver] = {}

    def next_number(self) -> int:
        """A connection number for the log; unique in this worker.

        As in nginx, connections to auth servers and backends advance it as well.
        """
        return next(self._numbers)

    def make_room(self) -> bool:
        """Whether one more connection may be had; an idle one makes room for it.

        That is a connection to an auth server, or else a socket for name servers.
        """
        if not self.engine.full:
            return True
        for idle in self._idle.values():
            if idle:
                idle.pop(0).close()
                return True
        return self._transport.make_room()

    def connect(self, family: int, address: SockAddress) -> Wire:
        """Begin to connect.

        Raises:
          OSError: connect() failed at once, or `worker_connections` are in use.
        """
        self.next_number()
        self.make_room()
        return Wire.connect(self.engine, family, address)

    def resolver(self, settings: ResolverSettings, timeout: float) -> Resolver:
        """The resolver of a `resolver` directive; it remembers answers.

        Args:
          timeout: `resolver_timeout`.
        """
        key = settings, timeout
        if key not in self._resolvers:
            self._resolvers[key] = Resolver(settings, timeout, self._transport.ask)
        return self._resolvers[key]

    def take_idle(self, key: Hashable) -> Wire | None:
        """A connection that `keep` was given under `key` and that is still open.

        Nothing waits in it that would be taken for the next answer.
        """
        idle = self._idle[key]
        while idle:
            wire = idle.pop()
            if wire.is_quiet():
                wire.resume()
                return wire
            wire.close()
        return None

    def keep(self, key: Hashable, wire: Wire) -> None:
        """Keep an open connection for later; the last kept is the first taken.

        One that the peer closes, or sends unasked bytes on, is thrown away at once.
        """
        idle = self._idle[key]
        if len(idle) >= IDLE_CONNECTIONS:
            wire.close()
            return

        def changed(events: int) -> None:
            if events & READABLE:
                idle.remove(wire)
                wire.close()

        idle.append(wire)
        self.engine.hand_over(wire.socket.fileno(), changed)

    def close(self) -> None:
        """Close what is idle; the sessions have ended."""
        for idle in self._idle.values():
            for wire in idle:
                wire.close()
        self._idle.clear()
        self._transport.close()
        self.relay.close()
