"""SASL dialogues that are begun and never ended, in a loop."""

import gc
import tracemalloc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.play import load_server, play
from tests.security.acts import Act, b64

CYCLES = 150
TALK = {
    "imap": ("a AUTHENTICATE", "a BAD invalid command"),
    "pop3": ("AUTH", "-ERR invalid command"),
    "smtp": ("AUTH", "500 5.5.1 Invalid command"),
}
LOOPS = {
    "plain": ["PLAIN", "*"],
    "login": ["LOGIN", b64("u" * 1000), "*"],
    "cram-md5": ["CRAM-MD5", "*"],
    "external": ["EXTERNAL", "="],
    "xoauth2": ["XOAUTH2", b64("user=" + "u" * 1000)],
    "oauthbearer": ["OAUTHBEARER", b64("n,a=" + "u" * 1000)],
    "unknown": ["GSSAPI", "NOOP"],
}


@pytest.mark.parametrize("mechanism", [each for each in LOOPS if each != "external"])
@pytest.mark.parametrize("protocol", TALK)
def test_memory_stays_flat(protocol: str, mechanism: str) -> None:
    command, _ = TALK[protocol]
    methods = "plain cram-md5 external xoauth2 oauthbearer"
    server = load_server(
        f"protocol {protocol}; {protocol}_auth {methods}; max_commands 1000000;"
        " max_errors 1000000; timeout 1000000;"
    )
    lines = [f"{command} {LOOPS[mechanism][0]}", *LOOPS[mechanism][1:]]
    cycle = "".join(f"{line}\r\n" for line in lines).encode()

    async def run() -> int:
        act = Act(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            sizes = []
            for _ in range(2):
                for _ in range(CYCLES):
                    act.wire.put(cycle)
                    await wait_all_tasks_blocked()
                    assert not act.over
                    act.wire.outgoing.clear()
                    act.log.events.clear()
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            act.leave("C", "close")
        assert not act.network.wires["Q"]
        return sizes[1] - sizes[0]

    tracemalloc.start()
    try:
        grown = trio.run(run, clock=MockClock(autojump_threshold=0))
    finally:
        tracemalloc.stop()
    assert grown < 16 * CYCLES  # octets: not one object for each attempt


@pytest.mark.parametrize("protocol", TALK)
def test_timer_is_not_started_anew(protocol: str) -> None:
    """One `timeout` for all attempts that ask nobody."""
    command, _ = TALK[protocol]
    server = load_server(f"protocol {protocol}; max_commands 1000000;")

    async def run() -> float:
        act = Act(server)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            while not act.over:
                act.wire.put(f"{command} PLAIN\r\n*\r\n".encode())
                await trio.sleep(7)
        return trio.current_time() - start

    assert trio.run(run, clock=MockClock(autojump_threshold=0)) < 60 + 7


@pytest.mark.parametrize("protocol", TALK)
def test_commands_are_counted(protocol: str) -> None:
    """As nothing else ends the loop of a client that is fast."""
    command, bad = TALK[protocol]
    prompt = "334␠" if protocol == "smtp" else "+␠"
    greeting = {
        "imap": "* OK IMAP4 ready",
        "pop3": "+OK POP3 ready",
        "smtp": "220 mx.test ESMTP ready",
    }[protocol]
    attempt = f"C: {command} PLAIN\nS: {prompt}\nC: *\nS: {bad}\n"
    stage = play(
        f"S: {greeting}\n{attempt * 5}C: {command} PLAIN\nS: {bad}\nS: ⟨close⟩",
        f"protocol {protocol}; max_commands 10;",
    )
    assert any("too many commands" in text for _, text in stage.log.events)
