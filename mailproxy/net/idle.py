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

A server that is blocked by us shows that, too: a request that has reached it on a
connection of its own gets no answer, nor does any other, while connections are idle
here. After `STALL` of that the idle ones are closed, and for `DOUBT` nothing is kept for
it: it serves one at a time, or a few. What has to be silent is the whole server, because
one that is busy answers somebody. And the request must have been sent, thus the
connection be made: where a burst overflows the server's queue, the kernel repeats SYNs
after a second, and that says nothing about idle connections.

As long as one connection is used again and again, a blocked server is not silent, and
the others would starve. Those of this worker are protected by the order of requests: a
connection is not kept if one that came `STALL` later was answered on it while the
earlier one still waits. Those of other workers, which nobody sees here, by a limit on
its life (`MAX_TIMES_IDLE`). All this is for `Reuse.yielding` only: else the operator
knows his server.

The clock costs nothing while nothing is kept, and next to nothing under load: one
cancel scope for all connections sleeps until the first of them may be due. A connection
that is used again meanwhile makes it look once in vain.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable

import trio

from mailproxy.net.engine import READABLE, Engine, Handler
from mailproxy.net.reuse import Reuse
from mailproxy.net.wire import Wire

STALL = 0.02
"""Seconds without any answer after which idle connections count as what blocks a
server, and that a request may wait for its turn while later ones are answered."""
DOUBT = 60.0
"""Seconds for which nothing is kept for a server that was blocked."""
MAX_TIMES_IDLE = 10
"""The life of a connection that yields, from the first answer to the last, in its idle
times."""
STALE = 1.0
"""Seconds of idleness within which nothing on the way forgets a connection."""
IDLE_CONNECTIONS = 64
"""Connections to one server that a worker keeps open while nobody needs them."""
SWEEP_SLACK = 0.002
"""Seconds by which an idle time may be cut short, so that connections that are due one
after another are closed together."""
LAST_CHANCES = 2
"""Rounds of tasks before connections that are due are closed; before them the engine
hands out what has arrived, and sessions ask. A worker that had to wait for a CPU would
else close connections at the moment when it needs them."""


class Connection(Handler):
    """A connection to a server that answers one request after another.

    While it is idle, it is told of what its peer sends unasked, and then closes.

    Attributes:
      wire: the connection itself; whoever has taken it closes or keeps it.
      answered: how many requests were answered on it.
      sent: when the last of them had gone out, in trio's time.
      first: when it was kept for the first time.
      since: when it was last kept, in trio's time.
      until: when it has to be closed, if nobody takes it before; once it is taken,
        when it has to have answered.
      silent: it has not answered by then.
      yielding: it was kept with `Reuse.yielding`.
    """

    __slots__ = (
        "_idle",
        "answered",
        "first",
        "sent",
        "silent",
        "since",
        "until",
        "wire",
        "yielding",
    )

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.answered = 0
        self.sent = -math.inf
        self.first = -math.inf
        self.since = -math.inf
        self.until = -math.inf
        self.silent = False
        self.yielding = False
        self._idle: list[Connection] = []

    def ready(self, events: int) -> None:
        """Close, as the peer has closed or has sent something unasked."""
        if events & READABLE:
            self._idle.remove(self)
            self.wire.close()

    def wait_among(self, idle: list[Connection]) -> None:
        """Be one of the `idle` connections until it is taken from them."""
        self._idle = idle
        idle.append(self)
        self.wire.watch(self)


class _Server:
    """What is known of a server, and open to it.

    Attributes:
      idle: what is kept; the last kept stands last, and is the first taken.
      waiting: connections that were made for a request, which has been sent and has no
        answer yet; the first sent stands first.
      heard: when it last answered anything.
      parallel: it has answered on one connection while another one, on which it had
        answered before, was open: who serves one at a time does not.
      doubted: until when nothing is kept for it, as it was blocked.
    """

    __slots__ = ("doubted", "heard", "idle", "parallel", "waiting")

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.waiting: dict[Connection, None] = {}
        self.heard = -math.inf
        self.forget()

    def forget(self) -> None:
        """Forget what it has shown."""
        self.parallel = False
        self.doubted = -math.inf

    def close(self, connections: list[Connection]) -> None:
        """Close some of those that are idle."""
        for connection in connections:
            self.idle.remove(connection)
            connection.wire.close()

    def waits_since(self) -> float:
        """When the request was sent that waits the longest; inf if none does."""
        return next(iter(self.waiting)).sent if self.waiting else math.inf

    def limit(self, reuse: Reuse) -> float:
        """How long a connection may be idle, in seconds."""
        return max(reuse.idle, reuse.parallel_idle) if self.parallel else reuse.idle

    def refuses(self, connection: Connection, reuse: Reuse, now: float) -> bool:
        """Whether a connection that yields must not be kept."""
        life = now - connection.first
        return reuse.yielding and (
            now < self.doubted
            or connection.sent >= self.waits_since() + STALL
            or (connection.answered > 1 and life >= MAX_TIMES_IDLE * self.limit(reuse))
        )

    def blocked(self) -> float:
        """When it counts as blocked, if nothing happens before; may be inf."""
        if self.waiting and any(c.yielding for c in self.idle):
            return max(self.heard, self.waits_since()) + STALL
        return math.inf

    def doubt(self, now: float) -> None:
        """Take it for one that serves one connection at a time, and make room."""
        self.parallel = False
        self.doubted = now + DOUBT
        self.close([c for c in self.idle if c.yielding])


class IdleConnections:
    """The connections of a worker that nobody uses at the moment, by server.

    Args:
      engine: that of the connections; None in memory.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self._engine = engine
        self._servers: defaultdict[Hashable, _Server] = defaultdict(_Server)
        self._asked: set[Connection] = set()
        """Those that were taken, have not answered yet, and may be dead."""
        self._sweep = trio.CancelScope()
        self._next = math.inf
        """When the sweep looks."""
        self._keeping = True

    def __len__(self) -> int:
        return sum(len(server.idle) for server in self._servers.values())

    def _now(self) -> float:
        return trio.current_time() if self._engine is None else self._engine.now

    def take(self, server: Hashable, patience: float = math.inf) -> Connection | None:
        """A connection that `keep` was given for `server` and that is still open.

        Nothing waits in it that would be taken for the next answer.

        Args:
          patience: seconds until the caller has to have called `heard`. Else the
            connection counts as dead: it is `silent`, and ends for whoever waits for
            it. One that was idle for less than `STALE` has all the time it wants.
        """
        idle = self._servers[server].idle
        while idle:
            connection = idle.pop()
            wire = connection.wire
            if wire.is_quiet():
                wire.resume()
                now = self._now()
                if now - connection.since >= STALE:
                    connection.until = now + patience
                    self._asked.add(connection)
                    self._wake(connection.until)
                return connection
            wire.close()
        return None

    def sent(self, server: Hashable, connection: Connection) -> None:
        """A request has gone out on it, taken or new; `heard` has to follow."""
        now = connection.sent = self._now()
        if not connection.answered:
            known = self._servers[server]
            known.waiting[connection] = None
            if known.idle:
                self._wake(now + STALL)

    def heard(self, server: Hashable, connection: Connection, *, answer: bool) -> None:
        """Its answer has begun to come, or nobody waits for it any more.

        Args:
          answer: whether an octet of it has come.
        """
        known = self._servers[server]
        self._asked.discard(connection)
        known.waiting.pop(connection, None)
        if answer:
            known.heard = self._now()

    def keep(self, server: Hashable, connection: Connection, reuse: Reuse) -> None:
        """Keep an open connection for later, after a request on it was answered.

        It is closed instead if it has served `reuse.requests`, if others enough are
        kept, or if it has to yield. One that the peer closes, or sends unasked bytes on,
        is closed at once.
        """
        wire = connection.wire
        known = self._servers[server]
        idle = known.idle
        now = self._now()
        connection.answered += 1
        spent = connection.answered >= reuse.requests or len(idle) >= IDLE_CONNECTIONS
        if spent or not self._keeping or known.refuses(connection, reuse, now):
            wire.close()
            return

        if connection.answered == 1:
            connection.first = now
            if reuse.idle >= STALE:
                wire.probe_peer()
        if idle:  # and it has answered all the same: it serves several at once
            known.parallel = True
        connection.wait_among(idle)
        connection.yielding = reuse.yielding
        connection.since = now
        connection.until = now + known.limit(reuse)
        self._wake(min(connection.until, known.blocked()))

    def _wake(self, when: float) -> None:
        """Have the sweep look at `when`, or before."""
        if when < self._next:
            self._next = self._sweep.deadline = when
            if self._engine is not None:
                self._engine.woke = True

    def drop_suspects(self, server: Hashable, since: float) -> None:
        """Close what has been idle since `since` or longer.

        For when a connection that was idle since then has turned out to be dead: what
        killed it without a word, a NAT or a firewall, will have killed those as well.
        """
        known = self._servers[server]
        known.close([c for c in known.idle if c.since <= since])

    def evict(self) -> bool:
        """Close one connection to make room; False if none is kept."""
        for server in self._servers.values():
            if server.idle:
                server.close(server.idle[:1])
                return True
        return False

    def clear(self) -> None:
        """Close all that are kept, and forget what servers have shown."""
        for server in self._servers.values():
            server.forget()
            server.close(server.idle.copy())

    def stop_keeping(self) -> None:
        """Close all that are kept, and from now on whatever is to be kept."""
        self._keeping = False
        self.clear()

    async def expire(self) -> None:
        """End what is idle, silent, or blocks a server for too long, until cancelled.

        It wakes up when the first may be due, and not at all while nothing is kept.
        """
        while True:
            with trio.CancelScope() as self._sweep:
                now = trio.current_time()
                self._next = self._sweep.deadline = min(
                    self._end_silent(now), self._end_blocking(now), self._end_idle(now)
                )
                await trio.sleep_forever()
            if self._engine is not None:
                self._engine.hand_out()
            for _ in range(LAST_CHANCES):
                await trio.lowlevel.checkpoint()

    def _end_blocking(self, now: float) -> float:
        """Close what blocks a server; returns when the next may count as blocked."""
        soon = now + SWEEP_SLACK
        for server in self._servers.values():
            if server.blocked() <= soon:
                server.doubt(now)
        return min((s.blocked() for s in self._servers.values()), default=math.inf)

    def _end_idle(self, now: float) -> float:
        """Close what is due; returns when the next will be."""
        soon = now + SWEEP_SLACK
        for server in self._servers.values():
            server.close([c for c in server.idle if c.until <= soon])
        left = (c.until for server in self._servers.values() for c in server.idle)
        return min(left, default=math.inf)

    def _end_silent(self, now: float) -> float:
        """Give up what has not answered; returns when the next has to have answered."""
        for connection in [c for c in self._asked if c.until <= now]:
            connection.silent = True
            self._asked.discard(connection)
            connection.wire.abandon()
        return min((c.until for c in self._asked), default=math.inf)
