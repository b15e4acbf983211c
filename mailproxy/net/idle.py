"""Connections that wait for their next request to the same server.

Keeping one spares the next request a connect(), and costs the server something: one
that serves a single connection at a time is blocked while we hold it, and one behind
a NAT or a firewall may be gone without a word. So each connection is kept for a limited
idle time and a limited number of requests, and closed as soon as the time is over, even
if nobody asks for it any more.

A server shows by itself that it is not blocked: it answers on one connection while
another one, on which it has answered before, is open and idle. A server that serves one
at a time cannot do that. So `auto` has two idle times, and the longer one is for servers
that have shown it: sessions under load ask in bursts, as the worker and the server take
turns on the CPU, and the next burst comes later than a blocked server could wait.

The clock costs nothing while nothing is kept, and next to nothing under load: one
cancel scope for all connections sleeps until the first of them may be due. A connection
that is used again meanwhile makes it look once in vain.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import trio

from mailproxy.net.engine import READABLE
from mailproxy.net.wire import Wire

IDLE_CONNECTIONS = 64
"""Connections to one server that a worker keeps open while nobody needs them."""
SWEEP_SLACK = 0.002
"""Seconds by which an idle time may be cut short, so that connections that are due one
after another are closed together."""
LAST_CHANCES = 2
"""Rounds of tasks before connections that are due are closed: in the first the engine
hands out what has arrived, in the second sessions ask. A worker that had to wait for a
CPU would else close connections at the moment when it needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """How long a connection may be used again."""

    idle: float
    """Seconds between two requests, at most; more than 0."""
    parallel_idle: float = 0.0
    """The same, if it is more, for a server that serves several connections at once."""
    requests: int
    """Requests on one connection, at most; at least 1."""


class Connection:
    """A connection to a server that answers one request after another.

    Attributes:
      wire: the connection itself; whoever has taken it closes or keeps it.
      answered: how many requests were answered on it.
      since: when it was last kept, in trio's time.
      until: when it has to be closed, if nobody takes it before; once it is taken,
        when it has to have answered.
      silent: it has not answered by then.
    """

    __slots__ = ("answered", "silent", "since", "until", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.answered = 0
        self.since = -math.inf
        self.until = -math.inf
        self.silent = False


class IdleConnections:
    """The connections of a worker that nobody uses at the moment, by server."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[Connection]] = {}
        """The last kept stands last, and is the first taken."""
        self._asked: set[Connection] = set()
        """Those that were taken and have not answered yet."""
        self._parallel: set[Hashable] = set()
        """Servers that have answered on one connection while another one, on which they
        had answered before, was open: who serves one at a time does not."""
        self._sweep = trio.CancelScope()
        self._keeping = True

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, server: Hashable, patience: float = math.inf) -> Connection | None:
        """A connection that `keep` was given for `server` and that is still open.

        Nothing waits in it that would be taken for the next answer.

        Args:
          patience: seconds until the caller has to have called `heard`. Else the
            connection counts as dead: it is `silent`, and ends for whoever waits for it.
        """
        idle = self._idle.get(server)
        while idle:
            connection = idle.pop()
            wire = connection.wire
            if wire.is_quiet():
                wire.resume()
                connection.until = trio.current_time() + patience
                self._asked.add(connection)
                self._wake(connection.until)
                return connection
            wire.close()
        return None

    def heard(self, connection: Connection) -> None:
        """It has answered, or nobody waits for that any more."""
        self._asked.discard(connection)

    def keep(self, server: Hashable, connection: Connection, reuse: Reuse) -> None:
        """Keep an open connection for later, after a request on it was answered.

        It is closed instead if it has served `reuse.requests`, or if others enough are
        kept. One that the peer closes, or sends unasked bytes on, is closed at once.
        """
        wire = connection.wire
        idle = self._idle.setdefault(server, [])
        connection.answered += 1
        spent = connection.answered >= reuse.requests
        if spent or not self._keeping or len(idle) >= IDLE_CONNECTIONS:
            wire.close()
            return

        def changed(events: int) -> None:
            if events & READABLE:
                idle.remove(connection)
                wire.close()

        if connection.answered == 1 and reuse.idle >= 1:
            wire.probe_peer()
        wire.watch(changed)
        if idle:  # and it has answered all the same: it serves several at once
            self._parallel.add(server)
        idle.append(connection)
        limit = reuse.idle
        if server in self._parallel:
            limit = max(limit, reuse.parallel_idle)
        connection.since = trio.current_time()
        connection.until = connection.since + limit
        self._wake(connection.until)

    def _wake(self, when: float) -> None:
        """Have the sweep look at `when`, or before."""
        if when < self._sweep.deadline:
            self._sweep.deadline = when

    def drop_suspects(self, server: Hashable, since: float) -> None:
        """Close what has been idle since `since` or longer.

        For when a connection that was idle since then has turned out to be dead: what
        killed it without a word, a NAT or a firewall, will have killed those as well.
        """
        self._close(server, [c for c in self._idle.get(server, ()) if c.since <= since])

    def evict(self) -> bool:
        """Close one connection to make room; False if none is kept."""
        for server, idle in self._idle.items():
            if idle:
                self._close(server, idle[:1])
                return True
        return False

    def clear(self) -> None:
        """Close all that are kept, and forget what servers have shown."""
        self._parallel.clear()
        for server, idle in self._idle.items():
            self._close(server, idle.copy())

    def stop_keeping(self) -> None:
        """Close all that are kept, and from now on whatever is to be kept."""
        self._keeping = False
        self.clear()

    async def expire(self) -> None:
        """End what is idle or silent for too long, until cancelled.

        It wakes up when the first may be due, and not at all while nothing is kept.
        """
        while True:
            with trio.CancelScope() as self._sweep:
                now = trio.current_time()
                self._sweep.deadline = min(self._end_silent(now), self._end_idle(now))
                await trio.sleep_forever()
            for _ in range(LAST_CHANCES):
                await trio.lowlevel.checkpoint()

    def _end_idle(self, now: float) -> float:
        """Close what is due; returns when the next will be."""
        soon = now + SWEEP_SLACK
        for server, idle in self._idle.items():
            self._close(server, [c for c in idle if c.until <= soon])
        left = (c.until for idle in self._idle.values() for c in idle)
        return min(left, default=math.inf)

    def _end_silent(self, now: float) -> float:
        """Give up what has not answered; returns when the next has to have answered."""
        for connection in [c for c in self._asked if c.until <= now]:
            connection.silent = True
            self._asked.discard(connection)
            connection.wire.abandon()
        return min((c.until for c in self._asked), default=math.inf)

    def _close(self, server: Hashable, connections: list[Connection]) -> None:
        for connection in connections:
            self._idle[server].remove(connection)
            connection.wire.close()
