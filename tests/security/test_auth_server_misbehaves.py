"""An auth server that is broken, slow, or not an auth server at all.

Nobody is let in by accident, and no login waits longer than `auth_http_timeout`.
"""

import contextlib
import time

import pytest
import trio
from trio.testing import MockClock

from mailproxy.auth.http_answer import parse as parse_header
from mailproxy.auth.http_exchange import MAX_HEADER, MAX_WAITS
from tests.play import load_server, parse
from tests.security.acts import Act, Dialogue, act_out
from tests.security.world import world

WHERE = "Auth-Server: 127.0.0.1⏎Auth-Port: 9143⏎"
INTERNAL = b"* BAD internal server error\r\n"


def answered(answer: str) -> Act:
    """A session in which the auth server answers this, and closes."""
    script = f"C: a LOGIN u SECRET\nA: {answer}"
    dialogue = Dialogue("", "protocol imap;", script)
    act = act_out(dialogue, 2, "A", "close") or act_out(dialogue, 2)
    assert act is not None
    return act


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 500 Internal Server Error⏎Content-Type: text/html⏎⏎<html>OK</html>",
        f"HTTP/1.1 502 Bad Gateway⏎{WHERE}⏎",
        f"HTTP/1.1 404 Not Found⏎{WHERE}⏎Auth-Status: OK⏎",
        "HTTP/1.1 302 Found⏎Location: http://127.0.0.1/login?Auth-Status: OK⏎⏎",
        "HTTP/1.1 401 Unauthorized⏎WWW-Authenticate: Basic⏎⏎",
        "HTTP/1.1 200 OK⏎Content-Type: text/html⏎⏎<html>It works!</html>",
        "HTTP/1.1 204 No Content⏎⏎",
        f"HTTP/1.1 302 Found⏎{WHERE}⏎",
        f"HTTP/1.1 100 Continue⏎{WHERE}⏎HTTP/1.1 200 OK⏎⏎",
        f"HTTP/1.1 2000⏎{WHERE}⏎",
        f"200 OK⏎{WHERE}⏎",
        f"{WHERE}⏎",
        "HTTP/1.1 200 OK⏎Auth-Server: 127.0.0.1⏎⏎",
        "HTTP/1.1 200 OK⏎Auth-Port: 9143⏎⏎",
        "HTTP/1.1 200 OK⏎Auth-Server:⏎Auth-Port: 9143⏎⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status:⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: OK⏎Auth-Status:⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status : OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎ Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎X: y⏎ Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK␍Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎X: y␍Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth_Status: OK⏎{WHERE}⏎",
        f"ICY 200 OK⏎Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎⏎Auth-Status: OK⏎{WHERE}⏎",
        "HTTP/1.1 200 OK⏎Auth-Status: OK⏎⏎",
        "HTTP/1.1 200 OK⏎Auth-Status: OK⏎Auth-Server: 127.0.0.1⏎⏎",
        "HTTP/1.1 200 OK⏎Auth-Status: OK⏎Auth-Server: example.com⏎Auth-Port: 1⏎⏎",
        "HTTP/1.1 200 OK⏎Auth-Status: OK⏎Auth-Server: unix:/x⏎Auth-Port: 1⏎⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: OK⏎{WHERE}",
        f"Auth-Status: OK⏎{WHERE}X Y⏎⏎",
        "SSH-2.0-OpenSSH_9.2⏎",
        "⟨16⟩⟨03⟩⟨01⟩",
        "* OK IMAP4 ready⏎",
        "⏎",
        "",
        "␀",
    ],
)
def test_error_pages_and_strangers_let_nobody_in(answer: str) -> None:
    act = answered(f"{answer}…")
    assert not act.network.wires["P"]
    assert act.wire.outgoing.endswith(INTERNAL)


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 200 OK⏎{WHERE}⏎",
        f"HTTP/1.0 204 No Content⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎X-Auth-Status: OK⏎{WHERE}⏎",
    ],
)
def test_success_that_says_where_to_needs_no_more(answer: str) -> None:
    """As at nginx. An error page has another status, and does not say where to."""
    act = answered(f"{answer}…")
    assert len(act.network.wires["P"]) == 1


@pytest.mark.parametrize(
    "answer",
    [
        f"HTTP/1.1 200 OK⏎Auth-Status: ok⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: OK!⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: ␀OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: ␉OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: no⏎Auth-Status: OK⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: OK⏎Auth-Status: no⏎{WHERE}⏎",
        f"HTTP/1.1 200 OK⏎Auth-Status: OK⏎auth-status: WAITING⏎{WHERE}⏎",
    ],
)
def test_other_words_are_refusals(answer: str) -> None:
    act = answered(f"{answer}…")
    assert not act.network.wires["P"]
    assert b"a NO " in act.wire.outgoing
    assert b"\0" not in act.wire.outgoing


def seconds_until_over(answer: bytes, every: float, what: bytes) -> float:
    """How long a login takes with an auth server that drips.

    Args:
      answer: what it says at once.
      every: seconds after which it says more.
      what: what it says then.
    """
    act = Act(load_server("protocol imap; auth_http_timeout 20s;"))

    async def run() -> float:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse("C: a LOGIN u SECRET"))
            wire = act.wire_of("A")
            wire.put(answer)
            while not act.over:
                wire.put(what)
                await trio.sleep(every)
                for backend in act.network.wires["P"]:
                    backend.finish()
        return trio.current_time() - start

    return trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("every", [0.1, 1.0, 19.0])
@pytest.mark.parametrize("what", [b"x", b"X: y\r\n", b" ", b""])
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n"])
def test_dripping_headers_end_with_the_timeout(
    start: bytes, what: bytes, every: float
) -> None:
    assert seconds_until_over(start, every, what) < 20 + 1.1 * every


def test_dripping_bodies_keep_nobody_waiting() -> None:
    """The decision is made; the body would only save the connection."""
    headers = b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\nContent-Length: 5000\r\n\r\n"
    assert seconds_until_over(headers, 0.05, b"x") < 0.2
    headers = b"HTTP/1.1 200 OK\r\nAuth-Status: no\r\n\r\n"
    assert seconds_until_over(headers, 0.01, b"x") < 0.05


@pytest.mark.parametrize("tail", [b"", b"x", b"x" * 100_000])
async def test_a_body_that_ends_too_early_changes_nothing(tail: bytes) -> None:
    """Neither does a reset behind the headers."""
    for leave in ("close", "reset"):
        async with world("protocol imap;") as here:
            client = await here.connect()
            await client.send(b"a LOGIN u p\r\n")
            auth = await here.auth()
            await auth.read_until(b"\r\n\r\n")
            length = b"Content-Length: 200000\r\n\r\n"
            await auth.send(here.granted().replace(b"Content-Length: 0\r\n", b"")[:-2])
            with contextlib.suppress(trio.BrokenResourceError):
                await auth.send(length + tail)
            await trio.testing.wait_all_tasks_blocked(0.001)
            auth.close() if leave == "close" else auth.reset()
            backend = await here.backend()
            await backend.send(b"* NO\r\n")
            assert INTERNAL in await client.rest()


def test_waiting_has_an_end() -> None:
    """nginx asks for ever; without Auth-Wait as fast as it can."""
    act = Act(load_server("protocol imap;"))
    waiting = b"HTTP/1.1 200 OK\r\nAuth-Status: WAIT\r\nContent-Length: 0\r\n\r\n"

    async def run() -> float:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse("C: a LOGIN u SECRET"))
            while not act.over:
                for wire in act.network.wires["Q"]:
                    if wire.outgoing:
                        wire.outgoing.clear()
                        wire.put(waiting)
                await trio.sleep(0.5)
        return trio.current_time() - start

    passed = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert MAX_WAITS <= passed < 2 * MAX_WAITS
    assert act.wire.outgoing.endswith(INTERNAL)


@pytest.mark.parametrize(
    "wait", ["-1", "1e9", "0x10", "99999999999999999999999", "1 2"]
)
def test_nonsense_for_the_time_to_wait(wait: str) -> None:
    act = Act(load_server("protocol imap;"))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(
                parse(f"C: a LOGIN u SECRET\nA: NO no\nA| Auth-Wait: {wait}")
            )
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))
    assert not [text for _, text in act.log.events if "bug" in text]


def test_header_that_just_fits_and_one_that_does_not() -> None:
    start = "HTTP/1.0 200 OK⏎Auth-Status: no⏎X: "
    room = MAX_HEADER - len(start.replace("⏎", "\r\n")) - 4
    assert b"a NO no" in answered(f"{start}⟨x*{room}⟩⏎⏎…").wire.outgoing
    assert INTERNAL in answered(f"{start}⟨x*{room + 1}⟩⏎⏎…").wire.outgoing


def test_a_header_of_spaces_costs_no_time() -> None:
    """Read with a careless expression, they cost the square of their number."""
    start = time.process_time()
    for _ in range(10):
        parse_header(b"Auth-Status: no\r\nX: a" + b" " * MAX_HEADER + b"b")
    assert time.process_time() - start < 1
