"""What holds for every auth source, the fake one of other tests included.

A new source gets a function here that makes it give each of its answers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.auth.request import AuthRequest
from mailproxy.auth.source import Source
from mailproxy.auth.verdict import (
    Granted,
    Refused,
    Route,
    Unavailable,
    Unknown,
    Verdict,
)
from mailproxy.conf.addresses import SocketAddress
from mailproxy.errors import AuthError
from mailproxy.net.outgoing import Outgoing
from tests.auth.fake import LIMIT, FakeSource
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemoryWire, ScopeTimer
from tests.play import auth_http, load_server

ROUTE = Route(server="192.0.2.1", port=143)
REQUEST = AuthRequest(
    protocol="imap", method="plain", user=b"u", secret=b"SECRET", client="127.0.0.1"
)
IMPATIENCE = 1.0
"""Seconds that the session had left for its client: no source's business."""


@dataclass
class Trial:
    """A source that is going to be asked, in a network where it gets its answer."""

    source: Source
    limit: float
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(None))

    def __post_init__(self) -> None:
        self.log = CapturedLog()

    async def check(self) -> Verdict:
        """Ask it, as a session does."""
        timer = ScopeTimer()
        with timer:
            timer.limit(IMPATIENCE)
            return await self.source.check(REQUEST, self.network, timer, self.log.log)

    def left_open(self) -> list[MemoryWire]:
        """Connections that nobody has closed."""
        wires = [wire for wires in self.network.wires.values() for wire in wires]
        return [wire for wire in wires if not wire.closed]


class AuthServer(MemoryNetwork):
    """A network with one auth server.

    Args:
      answer: what it says, or how the connection ends instead (0: in good order).
    """

    def __init__(self, answer: bytes | int | None) -> None:
        super().__init__(None)
        self.answer = answer

    def connect(
        self, family: int, address: SocketAddress, how: Outgoing | None = None
    ) -> MemoryWire:
        wire = super().connect(family, address, how)

        def reply(wire: MemoryWire, _request: bytes) -> None:
            if isinstance(self.answer, bytes):
                wire.put(self.answer)
            elif self.answer is not None:
                wire.finish(self.answer)

        wire.listener = reply
        return wire


HTTP = b"HTTP/1.0 200 OK\r\n%s\r\n\r\n"
HTTP_ANSWERS: dict[str, bytes | int | None] = {
    "granted": HTTP % b"Auth-Status: OK\r\nAuth-Server: 192.0.2.1\r\nAuth-Port: 143",
    "refused": HTTP % b"Auth-Status: no",
    "unavailable": HTTP % b"SECRET",
    "closed": 0,
    "broken": errno.ECONNRESET,
    "unreachable": None,
    "silent": None,
}


def http(answer: str) -> Trial:
    """auth_http."""
    source = auth_http(load_server("protocol imap; auth_http_timeout 7s;"))
    network = AuthServer(HTTP_ANSWERS[answer])
    if answer == "unreachable":
        network.failing["P"] = errno.ENETUNREACH
    return Trial(source, 7, network)


FAKE_ANSWERS: dict[str, Verdict | None] = {
    "granted": Granted(user=b"u", secret=b"SECRET", route=ROUTE),
    "refused": Refused(text=b"no"),
    "unknown": Unknown(),
    "unavailable": Unavailable(event="auth_fake failed: %s", values=(b"SECRET",)),
    "closed": Unavailable(event="auth_fake closed"),
    "broken": Unavailable(event="recv() failed", error=OSError(104, "reset")),
    "unreachable": Unavailable(event="connect() failed", level="crit"),
    "silent": None,
}


def fake(answer: str) -> Trial:
    """The fake source of other tests."""
    return Trial(FakeSource(FAKE_ANSWERS[answer]), LIMIT)


FAULTS = ["unavailable", "closed", "broken", "unreachable"]
Trying = Callable[[str], Trial]
every_source = pytest.mark.parametrize("trying", [http, fake])


@every_source
async def test_good_login_is_granted(trying: Trying, autojump_clock: MockClock) -> None:
    verdict = await trying("granted").check()
    assert isinstance(verdict, Granted)
    assert (verdict.user, verdict.secret) == (b"u", b"SECRET")
    assert verdict.route is not None
    assert (verdict.route.server, verdict.route.port) == ("192.0.2.1", 143)
    assert verdict.route.name == "192.0.2.1:143"


@every_source
async def test_bad_login_is_refused(trying: Trying, autojump_clock: MockClock) -> None:
    assert await trying("refused").check() == Refused(text=b"no")


@pytest.mark.parametrize("trying", [fake])
async def test_user_may_be_unknown(trying: Trying, autojump_clock: MockClock) -> None:
    """An auth_http server cannot say so."""
    assert await trying("unknown").check() == Unknown()


@every_source
@pytest.mark.parametrize("answer", FAULTS)
async def test_what_goes_wrong_is_an_answer(
    trying: Trying, answer: str, autojump_clock: MockClock
) -> None:
    verdict = await trying(answer).check()
    assert isinstance(verdict, Unavailable)
    assert verdict.event
    assert verdict.level in ("error", "crit")


@every_source
async def test_silence_ends_with_the_limit_of_the_source(
    trying: Trying, autojump_clock: MockClock
) -> None:
    """The client's own limit is over long before, and the client is not to blame."""
    trial = trying("silent")
    start = trio.current_time()
    with pytest.raises(AuthError, match="timed out"):
        await trial.check()
    assert trio.current_time() - start == trial.limit
    assert not trial.left_open()


@every_source
async def test_check_that_is_cancelled_leaves_nothing_open(
    trying: Trying, autojump_clock: MockClock
) -> None:
    trial = trying("silent")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trial.check)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not trial.left_open()


@every_source
@pytest.mark.parametrize("answer", ["granted", "refused", *FAULTS])
async def test_nothing_shows_the_secret(
    trying: Trying, answer: str, autojump_clock: MockClock
) -> None:
    trial = trying(answer)
    verdict = await trial.check()
    assert "SECRET" not in f"{verdict!r} {verdict} {trial.log.events}"
    if isinstance(verdict, Unavailable):
        error = verdict.exception()
        assert "SECRET" not in f"{error!r} {error}"


@every_source
@pytest.mark.parametrize("answer", ["granted", "refused", *FAULTS])
async def test_source_can_be_asked_again(
    trying: Trying, answer: str, autojump_clock: MockClock
) -> None:
    trial = trying(answer)
    first, second = await trial.check(), await trial.check()
    assert type(first) is type(second)
    assert not trial.left_open()
