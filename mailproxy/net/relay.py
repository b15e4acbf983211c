"""Relay: move the bytes of all sessions after their login.

The task of a relayed session does no work: it is parked in `carry`, while the engine
calls the ends that are ready. For each direction this is the whole theory:

    recv into the worker's one buffer -> send to the peer
      all sent      -> read on, until the kernel says "would block"
      part sent     -> the rest is kept with the receiving end (`pending`), and the
                       sending end is not read until the rest is gone: back-pressure
      rest gone     -> the sending end is read again

Large transfers in clear text do not pass through the process at all: a read that
fills the buffer switches its direction to splice(2) through a pipe, until the
socket is empty. Pipes are few (`MAX_PIPES`), and copying is the fallback.

Edge triggering reports nothing twice, so the relay starts with a try at each end that the
dialogue has not emptied (`Wire.readable`). A read that returns less than asked for has emptied the socket, and later data is a new
event (epoll(7)). Only a peer's FIN that arrived before the read may have been reported
already, perhaps to the dialogue before the relay (`hung_up`). TLS has no such rule: data
inside OpenSSL is never reported. So it is read until OpenSSL would block. Behind a short
record there is rarely another one, and a read that fails is costly: if OpenSSL holds
nothing more (without read-ahead, that is the record which it is decrypting), the
descriptor is armed anew instead, and the kernel reports what is there by then. If that
is in the very next round, the peer sends a burst, which is read as usual.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import ssl
from collections.abc import Iterable
from typing import Final, Literal

import trio

from mailproxy.conf.values import KIB
from mailproxy.net import faults
from mailproxy.net.driven import DrivenTask
from mailproxy.net.engine import (
    BOTH_WAYS,
    HUNG_UP,
    READABLE,
    READING,
    WRITABLE,
    Engine,
    Handler,
    TrioTask,
)
from mailproxy.net.wire import Wire

BUFFER: Final = 128 * KIB
"""Octets of the one receive buffer that a worker has."""
MAX_PIPES: Final = 32
"""Pipes that a worker opens; the system limits their memory per user."""
PIPE_SIZE: Final = 256 * KIB
"""Octets that a pipe holds, unless the system limits it to less."""
MAX_READS: Final = 4
"""Reads of one end before others have their turn."""
SWEEP_PAUSE: Final = 20e-6
"""Seconds per session between two sweeps; sweeping a session takes a fiftieth of it."""
SHORT_RECORD: Final = 8 * KIB
"""Octets of a TLS record; behind a shorter one there is rarely another one."""
MAX_TLS_RECORDS: Final = 128
"""TLS records of one read; each may carry just one octet."""

Reason = Literal["done", "timeout", "shutdown", "broken"]
Side = Literal["client", "backend"]
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Ended:
    """How a relayed session ended.

    Attributes:
      reason: "done": one side closed and everything from it was delivered;
        "timeout": no traffic for `proxy_timeout`; "shutdown": `Relay.shutdown`;
        "broken": writing failed.
      error: the error of recv() ("done") or send() ("broken"); None for an ordinary
        end.
      side: the side whose connection ended or broke; None if neither did.
    """

    __slots__ = ("error", "reason", "side")

    def __init__(
        self, reason: Reason, error: OSError | None = None, side: Side | None = None
    ) -> None:
        self.reason: Reason = reason
        self.error = error
        self.side = side


class Pipe:
    """A pipe of the pool, empty whenever it is in the pool."""

    __slots__ = ("read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A user over the soft limit keeps the default size.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


class _End(Handler):
    """One of the two connections of a relayed session."""

    __slots__ = (
        "armed",
        "dry",
        "failed",
        "fd",
        "hung_up",
        "in_pipe",
        "peer",
        "pending",
        "pipe",
        "queued",
        "session",
        "side",
        "tls",
        "wire",
    )

    peer: _End

    def __init__(self, session: _Session, wire: Wire, side: Side, pending: bytes):
        self.session = session
        self.wire = wire
        """It counts the octets of this end."""
        self.fd = wire.fd
        self.tls = wire.tls
        self.side = side
        self.pending = pending
        """Bytes to write to this end before anything else."""
        self.pipe: Pipe | None = None
        """The pipe through which the bytes of this end go while splicing."""
        self.in_pipe = 0
        """Octets read from this end that are still in the pipe."""
        self.hung_up = wire.hung_up
        """Whether the peer's FIN may have been reported already; only reading tells."""
        self.queued = False
        """Whether `work` will be called in the next round."""
        self.dry = False
        """Whether the last read of TLS went on until OpenSSL would block."""
        self.armed = 0
        """The engine's turn in which it was armed anew."""
        self.failed: OSError | None = None
        """An error of TLS after bytes that must be delivered first; OpenSSL reports it
        only once."""

    def ready(self, events: int) -> None:
        """Flush and pump: called by the engine."""
        session = self.session
        if not session.alive:
            return
        session.last = session.relay.engine.now
        if events & HUNG_UP:
            self.hung_up = True
        try:
            if events & WRITABLE:
                if self.pending:
                    if self.flush():
                        self.peer.pump()
                elif self.peer.in_pipe:
                    self.peer.pump()
            if events & READABLE or self.tls is not None:
                # In TLS, a read may have been waiting for room to write.
                self.pump()
        except Exception as error:  # noqa: BLE001 - a bug ends its session, not the worker
            session.finish(error)

    def work(self) -> None:
        """Go on with an end that had more to do than one turn allows."""
        self.queued = False
        self.ready(READABLE)

    def flush(self) -> bool:
        """Write `pending`; return whether all of it is gone."""
        try:
            sent = self._send(self.pending)
        except OSError as error:
            self.session.broken(self, error)
            return False
        if sent < 0:
            return False
        self.wire.sent += sent
        self.pending = self.pending[sent:]
        return not self.pending

    def pump(self) -> None:
        """Move what has arrived at this end to its peer."""
        session = self.session
        if not session.alive:
            return
        if self.pipe is not None:
            self._splice()
        else:
            self._copy()

    def _copy(self) -> None:
        relay = self.session.relay
        peer = self.peer
        bound = self.session.bound
        view = relay.buffer[:bound]
        tls = self.tls
        for _ in range(MAX_READS):
            if peer.pending:
                return
            try:
                if tls is None:
                    size = os.readv(self.fd, (view,))
                else:
                    size = self._receive_tls(tls, view)
            except _WOULD_BLOCK:
                self.hung_up = False
                return
            except OSError as error:
                self.session.end_of(self, error)
                return
            if not size:
                self.session.end_of(self, None)
                return
            self.wire.received += size
            try:
                sent = peer.send(view[:size])
            except OSError as error:
                self.session.broken(peer, error)
                return
            if sent < size:
                return
            if self.dry if tls is not None else size < bound and not self.hung_up:
                return
            if size == BUFFER and tls is None and peer.tls is None and relay.lend(self):
                self._splice()
                return
        self._later()

    def send(self, data: memoryview) -> int:
        """Send to this end what there is room for, and keep the rest as `pending`.

        Returns:
          How many octets were sent.

        Raises:
          OSError: of send().
        """
        sent = self._send(data)
        if sent < 0:
            sent = 0
        self.wire.sent += sent
        if sent < len(data):
            self.pending = bytes(data[sent:])
            if self.tls is not None:
                self.session.relay.engine.rearm(self.fd, BOTH_WAYS)
        return sent

    def _send(self, data: bytes | memoryview) -> int:
        """Send what there is room for; -1 if there is none."""
        try:
            return os.write(self.fd, data) if self.tls is None else self.tls.send(data)
        except _WOULD_BLOCK:
            return -1

    def _receive_tls(self, tls: ssl.SSLSocket, view: memoryview) -> int:
        """Read many records, until the buffer is full or there is no more."""
        if self.failed is not None:
            raise self.failed
        engine = self.session.relay.engine
        burst = engine.turn == self.armed + 1
        size = 0
        self.dry = False
        for _ in range(MAX_TLS_RECORDS):
            try:
                got = tls.recv_into(view[size:])
            except _WOULD_BLOCK as error:
                self.dry = True
                if isinstance(error, ssl.SSLWantWriteError):
                    engine.rearm(self.fd, BOTH_WAYS)  # a handshake, and no room for it
                if size:
                    return size
                raise
            except OSError as error:
                if not size:
                    raise
                self.failed = error
                return size
            size += got
            if not got or size == len(view):
                break
            if got < SHORT_RECORD and not burst and not tls.pending():
                # What cannot be written yet must still be reported as well.
                engine.rearm(self.fd, BOTH_WAYS if self.pending else READING)
                self.armed = engine.turn
                self.dry = True
                break
        return size

    def _splice(self) -> None:
        pipe = self.pipe
        assert pipe is not None
        peer = self.peer
        for _ in range(MAX_READS):
            if not self.in_pipe:
                try:
                    self.in_pipe = os.splice(
                        self.fd, pipe.write_end, PIPE_SIZE, flags=_SPLICE
                    )
                except BlockingIOError:
                    self.session.relay.take_back(self)
                    return
                except OSError as error:
                    self.session.end_of(self, error)
                    return
                if not self.in_pipe:
                    self.session.end_of(self, None)
                    return
                self.wire.received += self.in_pipe
            try:
                sent = os.splice(pipe.read_end, peer.fd, self.in_pipe, flags=_SPLICE)
            except BlockingIOError:
                return
            except OSError as error:
                self.session.broken(peer, error)
                return
            self.in_pipe -= sent
            peer.wire.sent += sent
        self._later()

    def _later(self) -> None:
        if not self.queued:
            self.queued = True
            self.session.relay.engine.again(self.work)


_SPLICE = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class _Session:
    """A parked session and its two ends."""

    __slots__ = ("alive", "bound", "ended", "ends", "last", "relay", "task", "timeout")

    def __init__(
        self,
        relay: Relay,
        client: Wire,
        backend: Wire,
        to_client: bytes,
        to_backend: bytes,
        timeout: float,
        bound: int,
    ) -> None:
        self.relay = relay
        self.alive = True
        self.ended: Ended | Exception | None = None
        self.task: DrivenTask | TrioTask | None = None
        self.timeout = timeout
        self.bound = bound
        self.last = relay.engine.time()
        one = _End(self, client, "client", to_client)
        two = _End(self, backend, "backend", to_backend)
        one.peer, two.peer = two, one
        self.ends: tuple[_End, ...] = (one, two)

    def start(self) -> None:
        """Try what may succeed, as earlier events are not reported again."""
        ends = self.ends
        for end in ends:
            if end.pending and self.alive and not end.flush() and end.tls is not None:
                self.relay.engine.rearm(end.fd, BOTH_WAYS)
        for end in ends:
            if end.wire.readable or end.hung_up:
                end.pump()

    def end_of(self, end: _End, error: OSError | None) -> None:
        """Finish, as no more bytes come from `end`.

        A broken connection counts as closed, as in nginx.
        """
        if error is not None and end.tls is not None and faults.is_end(error):
            error = None
        self.finish(Ended("done", error, end.side))

    def broken(self, end: _End, error: OSError) -> None:
        """Finish, as bytes cannot be written to `end`."""
        if end.tls is not None:
            error = faults.under_tls(error)
        self.finish(Ended("broken", error, end.side))

    def finish(self, ended: Ended | Exception) -> None:
        """Stop moving bytes, and let the task go on if it is parked already."""
        if not self.alive:
            return
        self.ended = ended
        self.leave()
        if self.task is not None:
            self.task.resume()

    def leave(self) -> None:
        """Return borrowed pipes, and break the reference cycles."""
        self.alive = False
        self.relay.forget(self)
        for end in self.ends:
            if end.pipe is not None:
                self.relay.take_back(end)
            end.failed = None
            del end.peer
        self.ends = ()


class Relay:
    """All relayed sessions of a worker.

    Args:
      engine: the worker's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.buffer = memoryview(bytearray(BUFFER))
        self._sessions: set[_Session] = set()
        self._pipes: list[Pipe] = []
        self._opened = 0
        self._sweep = trio.CancelScope()
        self._next = math.inf
        """When the next sweep is."""

    def __len__(self) -> int:
        return len(self._sessions)

    async def carry(
        self,
        client: Wire,
        backend: Wire,
        *,
        to_client: bytes = b"",
        to_backend: bytes = b"",
        idle_limit: float,
        bound: int | None = None,
    ) -> Ended:
        """Move bytes both ways until one side is done.

        Both wires stay open; the caller closes them.

        Args:
          to_client: bytes that go to the client first (the backend's answer).
          to_backend: bytes that go to the backend first (what the client sent
            after its login).
          idle_limit: seconds without traffic in either direction (`proxy_timeout`).
          bound: octets that one direction may hold (`proxy_buffer`), if set.
        """
        session = _Session(
            self,
            client,
            backend,
            to_client,
            to_backend,
            idle_limit,
            min(bound or BUFFER, BUFFER),
        )
        self._sessions.add(session)
        for end in session.ends:
            self.engine.hand_over(end.fd, end)
        self._look_at(session.last + idle_limit)
        try:
            session.start()
            if session.ended is None:
                session.task = self.engine.waiter()
                await session.task.park()
        finally:
            if session.alive:
                session.leave()
        # An error refers to the frames that it went through, and these to the session.
        ended, session.ended = session.ended, None
        assert ended is not None
        if isinstance(ended, Exception):
            raise ended
        return ended

    def _look_at(self, when: float) -> None:
        """Sweep at that time, or before."""
        if when < self._next:
            self._next = self._sweep.deadline = when
            self.engine.woke = True

    def forget(self, session: _Session) -> None:
        """Drop a session that has ended."""
        self._sessions.discard(session)

    def lend(self, end: _End) -> bool:
        """Lend `end` a pipe; return whether there was one."""
        if self._pipes:
            end.pipe = self._pipes.pop()
        elif self._opened < MAX_PIPES:
            try:
                end.pipe = Pipe()
            except OSError:
                return False  # no descriptors left; copying needs none
            self._opened += 1
        return end.pipe is not None

    def take_back(self, end: _End) -> None:
        """Return the pipe of `end` to the pool, or close it if it has bytes in it."""
        assert end.pipe is not None
        if end.in_pipe:
            end.pipe.close()
            end.in_pipe = 0
            self._opened -= 1
        else:
            self._pipes.append(end.pipe)
        end.pipe = None

    def shutdown(self) -> None:
        """End all relayed sessions (`worker_shutdown_timeout`)."""
        self._end(list(self._sessions), "shutdown")

    async def expire(self) -> None:
        """End sessions that had no traffic for their `timeout`, until cancelled.

        One sweep looks at all sessions when the first of them may be due, but not
        before a pause that keeps sweeping a small part of the work.
        """
        while True:
            with trio.CancelScope() as self._sweep:
                now = trio.current_time()
                due = [s for s in self._sessions if now - s.last >= s.timeout]
                self._end(due, "timeout")
                left = min(
                    (s.last + s.timeout - now for s in self._sessions), default=math.inf
                )
                pause = 0.05 + len(self._sessions) * SWEEP_PAUSE
                self._next = self._sweep.deadline = now + max(left, pause)
                await trio.sleep_forever()

    def _end(self, sessions: Iterable[_Session], reason: Reason) -> None:
        for session in sessions:
            session.finish(Ended(reason))

    def close(self) -> None:
        """Close the pipes; all sessions must have ended."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes.clear()
