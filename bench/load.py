"""The clients of a measurement, in one process.

    python -m bench.load PLAN

`PLAN` is a JSON object with the fields of `Plan`. Then each line on standard input is an
order, a JSON object as well, and each is answered by one line, a `Result`:

{"do": "log_in", "seconds": 1, "at_once": 64}   log in and out, again and again
{"do": "open", "count": 1000}                   log in, and stay; all orders below are
                                                for the sessions that have stayed
{"do": "ping", "seconds": 1}                    all send commands, each after its answer
{"do": "ping_some", "share": 0.01, "seconds": 5}  so many of them a second, in turn
{"do": "ping_all"}                              once, to see that all are well
{"do": "transfer", "direction": "down", "size": 1048576}   to ("down") or from each

The process ends with its standard input.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from dataclasses import asdict, dataclass

from bench.dialogues import DIALOGUES, expect, log_in, log_out
from bench.loop import WRITE, Loop, SessionError, Waiting, Wire

PING = b"PING " + 93 * b"x" + b"\r\n"
PONG = b"PONG" + PING[4:]
PATIENCE = 30.0
"""Seconds that a session may take longer than it should."""
MAX_FAILURES = 100
"""Failed sessions after which the rest need not be tried."""
AT_ONCE = 64
"""Logins under way at a time, where many sessions are opened."""
TURN = 0.02
"""Seconds that pass at most between two looks at the clock."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Whom all sessions of a process talk to, and how."""

    port: int
    """On 127.0.0.1."""
    protocol: str
    tls: str
    """"no", "implicit" or "starttls"."""
    resume: bool
    """Whether clients offer the TLS session that they got last."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of an order."""

    count: int
    """Logins, sessions that are open, commands, or octets."""
    seconds: float
    failures: int
    first_failure: str
    """How the first of the failures reads; empty if there are none."""
    resumed: int
    """How many of the logins were in a TLS session that was resumed."""


class Load:
    """Sessions, and what they have done since the last order."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._dialogue = DIALOGUES[plan.protocol]
        self._loop = Loop()
        self._tls = _client_context() if plan.tls != "no" else None
        self._last: ssl.SSLSession | None = None
        self._open: list[Wire] = []
        self._count = 0
        self._resumed = 0

    def log_in(self, *, seconds: float, at_once: int) -> None:
        """Keep `at_once` sessions busy with logging in and out."""
        end = time.monotonic() + seconds
        loop = self._loop
        while time.monotonic() < end and loop.failures < MAX_FAILURES:
            # As many as have ended; those that fail at once wait for the next turn.
            for _ in range(at_once - len(loop)):
                wire = Wire(socket.socket())
                loop.start(wire, self._come_and_go(wire))
            loop.turn(TURN)
        self._finish()

    def open(self, *, count: int) -> None:
        """Open sessions that stay."""
        for _ in range(count):
            wire = Wire(socket.socket())
            self._loop.start(wire, self._stay(wire))
            while len(self._loop) >= AT_ONCE:
                self._loop.turn(TURN)
            if self._loop.failures >= MAX_FAILURES:
                break
        self._finish()

    def ping(self, *, seconds: float) -> None:
        """Have each session send commands, each one after the answer to the last."""
        end = time.monotonic() + seconds
        for wire in self._open:
            self._loop.start(wire, self._ping_until(wire, end))
        self._finish(seconds)

    def ping_some(self, *, share: float, seconds: float) -> None:
        """Send a command now and then, in one session after another.

        Args:
          share: of the sessions, that are so disturbed in a second; 1 is all.
        """
        gap = 1 / (share * len(self._open))
        began = time.monotonic()
        for number in range(max(1, round(seconds / gap))):
            # Not in the order in which they were opened: a prime number apart.
            wire = self._open[number * 7919 % len(self._open)]
            while (left := began + number * gap - time.monotonic()) > 0:
                self._loop.turn(left)
            self._loop.start(wire, self._ping_once(wire))
        self._finish()

    def ping_all(self) -> None:
        """Send a command in each session, not too many at a time."""
        for wire in self._open:
            self._loop.start(wire, self._ping_once(wire))
            while len(self._loop) >= AT_ONCE:
                self._loop.turn(TURN)
        self._finish()

    def transfer(self, *, direction: str, size: int) -> None:
        """Move `size` octets in each session, all at the same time."""
        move = self._download if direction == "down" else self._upload
        for wire in self._open:
            self._loop.start(wire, move(wire, size))
        self._finish(PATIENCE)

    def result(self, began: float) -> Result:
        """What was done since the last result."""
        loop = self._loop
        result = Result(
            count=self._count,
            seconds=time.monotonic() - began,
            failures=loop.failures,
            first_failure=loop.first_failure,
            resumed=self._resumed,
        )
        self._count = self._resumed = loop.failures = 0
        loop.first_failure = ""
        self._open = [wire for wire in self._open if wire.open]
        return result

    def _finish(self, seconds: float = 0.0) -> None:
        """Wait until no session runs; those that run too long fail."""
        end = time.monotonic() + seconds + PATIENCE
        while self._loop and time.monotonic() < end:
            self._loop.turn(TURN)
        self._loop.stop_all(f"not done {PATIENCE:.0f} s after it should be")

    def _log_in(self, wire: Wire) -> Waiting[None]:
        plan = self._plan
        wire.connect(("127.0.0.1", plan.port))
        resume = self._last if plan.resume else None
        if self._tls is not None and plan.tls == "implicit":
            yield WRITE
            yield from wire.start_tls(self._tls, resume)
        starttls = self._tls if plan.tls == "starttls" else None
        yield from log_in(wire, self._dialogue, starttls, resume)
        if plan.resume:
            self._last = wire.tls_session
            self._resumed += wire.resumed
        self._count += 1

    def _come_and_go(self, wire: Wire) -> Waiting[None]:
        yield from self._log_in(wire)
        yield from log_out(wire, self._dialogue)
        wire.close()

    def _stay(self, wire: Wire) -> Waiting[None]:
        yield from self._log_in(wire)
        self._open.append(wire)

    def _ping_once(self, wire: Wire) -> Waiting[None]:
        wire.send(PING)
        heard = yield from wire.receive()
        while len(heard) < len(PONG):
            data = yield from wire.receive()
            if not data:
                raise SessionError("closed instead of an answer")
            heard += data
        if heard != PONG:
            raise SessionError(f"expected {PONG!r}, got {heard[:200]!r}")
        self._count += 1

    def _ping_until(self, wire: Wire, end: float) -> Waiting[None]:
        while time.monotonic() < end:
            yield from self._ping_once(wire)

    def _download(self, wire: Wire, size: int) -> Waiting[None]:
        wire.send(b"BULK %d\r\n" % size)
        yield from wire.discard(size)
        self._count += size

    def _upload(self, wire: Wire, size: int) -> Waiting[None]:
        wire.send(b"SINK %d\r\n" % size)
        yield from wire.send_filling(size)
        yield from expect(wire, b"OK")
        self._count += size


def _client_context() -> ssl.SSLContext:
    """Certificates are not verified: that would be work of the load alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    """Obey until standard input ends."""
    load = Load(Plan(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        getattr(load, order.pop("do"))(**order)
        print(json.dumps(asdict(load.result(began))), flush=True)


if __name__ == "__main__":
    main()
