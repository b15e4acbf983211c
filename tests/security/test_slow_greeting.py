"""A client that does not take the greeting is waited for no longer than `timeout`."""

import pytest
import trio
from trio.testing import MockClock

from tests.play import Stage, load_server


@pytest.mark.parametrize(
    "directives",
    [
        *("protocol imap;", "protocol pop3;", "protocol smtp;"),
        "protocol smtp; smtp_greeting_delay 5s;",
    ],
)
def test_greeting(directives: str) -> None:
    stage = Stage(load_server(directives))
    stage.wire.room = 0

    async def run() -> float:
        await stage.run_session()
        return trio.current_time()

    clock = MockClock(autojump_threshold=0)
    began = clock.current_time()
    passed = trio.run(run, clock=clock) - began
    assert passed == pytest.approx(65 if "delay" in directives else 60)
    assert stage.wire.closed


def test_rejection_of_who_talks_too_early() -> None:
    stage = Stage(load_server("protocol smtp; smtp_greeting_delay 5s;"))
    stage.wire.room = 0
    stage.wire.put(b"HELO me\r\n")
    clock = MockClock(autojump_threshold=0)
    began = clock.current_time()

    async def run() -> float:
        await stage.run_session()
        return trio.current_time()

    assert trio.run(run, clock=clock) - began == pytest.approx(60)
