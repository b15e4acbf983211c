"""Connections to an auth server that serve several requests (`auth_http_keepalive`)."""

import pytest
import trio
from trio.testing import MockClock

from mailproxy.conf.tree import ConfigError
from mailproxy.net.idle import STALE, Connection
from mailproxy.net.reuse import Reuse
from mailproxy.process.configuration import ConfigErrors
from tests.auth.test_http import ASKED, FAILED, WHERE, imap
from tests.play import Stage, auth_url, load_server
from tests.play import parse as parse_script

KEEPING = "auth_http_keepalive on;"
AGAIN = """
    S: a NO no
    C: a LOGIN u p
    Q: plain u p #2
    A: NO yes
    S: a NO yes
"""


@pytest.mark.parametrize(
    ("status", "headers", "kept"),
    [
        ("HTTP/1.0 200 OK", ["Connection: keep-alive", "Content-Length: 0"], True),
        ("HTTP/1.0 200 OK", ["Connection: Keep-Alive", "Content-Length: 4"], True),
        ("HTTP/1.0 204 No Content", ["Connection: keep-alive"], True),
        ("HTTP/1.1 200 OK", ["Content-Length: 0"], True),
        ("HTTP/1.1 204", [], True),
        ("HTTP/1.0 200 OK", ["Content-Length: 0"], False),
        ("HTTP/1.0 200 OK", ["Connection: keep-alive"], False),
        ("HTTP/1.1 200 OK", ["Connection: close", "Content-Length: 0"], False),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 0", "Transfer-Encoding: chunked"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 99999999"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 2"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: -4"], False),
        ("X: y", ["Content-Length: 4"], False),
    ],
)
def test_connection_is_kept_where_the_end_of_the_answer_is_known(
    status: str, headers: list[str], kept: bool
) -> None:
    body = "body" if "Content-Length: 0" not in headers and "204" not in status else ""
    lines = [status, "Auth-Status: no", "Auth-Wait: 1", *headers, f"⏎{body}…"]
    answer = "\n".join([f"A: {lines[0]}", *(f"A| {line}" for line in lines[1:])])
    stage = imap(f"{ASKED}\n{answer}\n{AGAIN}", KEEPING)
    assert len(stage.network.wires["Q"]) == (1 if kept else 2)


def test_body_is_read_and_dropped() -> None:
    stage = imap(
        f"""
        {ASKED}
        A: HTTP/1.1 200 OK
        A| Auth-Status: no
        A| Auth-Wait: 1
        A| Content-Length: 8
        A|
        A: body…
        S: ⟨silence⟩
        A: body…
        {AGAIN}
        """,
        KEEPING,
    )
    assert len(stage.network.wires["Q"]) == 1


REFUSED = """
    A: HTTP/1.1 204
    A| Auth-Status: no
    A| Auth-Wait: 1
    A|
    S: a NO no
"""


@pytest.mark.parametrize("event", ["⟨close⟩", "⟨reset⟩"])
@pytest.mark.parametrize("asked", [False, True])
def test_kept_connection_that_was_closed_is_opened_again(
    event: str, asked: bool
) -> None:
    """Before the request, or as it arrives."""
    question = "C: a LOGIN u p\nQ: plain u p #2"
    close = f"A: {event}"
    steps = [question, close, "Q: plain u p #2"] if asked else [close, question]
    stage = imap(
        "\n".join([ASKED, REFUSED, *steps, "A: NO yes", "S: a NO yes", "at 1"]),
        KEEPING,
    )
    assert len(stage.network.wires["Q"]) == 2
    assert "silent" not in str(stage.log.events)


def test_a_new_connection_that_is_closed_is_an_error() -> None:
    stage = imap(
        f"""
        {ASKED}
        {REFUSED}
        C: a LOGIN u p
        Q: plain u p #2
        A: ⟨close⟩
        Q: plain u p #2
        A: ⟨close⟩
        {FAILED}
        """,
        KEEPING,
    )
    assert len(stage.network.wires["Q"]) == 2


@pytest.mark.parametrize(("timeout", "silence"), [(60, 2), (4, 2), (1, 0.5)])
def test_kept_connection_that_is_dead_is_given_up(
    timeout: float, silence: float
) -> None:
    stage = imap(
        f"""
        {ASKED}
        {REFUSED}
        at 1
        C: a LOGIN u p
        Q: plain u p #2
        at 1
        Q: plain u p #2
        at {1 + silence}
        A: NO yes
        S: a NO yes
        L: [info] client login failed: "no" {WHERE}
        L: [warn] auth http server 127.0.0.1:9000 was silent on a kept connection, asking again on a new one {WHERE}
        L: [info] client login failed: "yes" {WHERE}
        """,
        f"{KEEPING} auth_http_timeout {timeout * 1000:.0f}ms;",
    )
    first, second = stage.network.wires["Q"]
    assert first.closed
    assert stage.requests[1] == stage.requests[2]
    assert not second.outgoing


def test_a_dead_connection_costs_one_login_and_not_the_next_ones() -> None:
    """What was kept as long to the same server is not tried any more."""
    stage = Stage(load_server(f"protocol imap; {KEEPING}"))
    url = auth_url(stage.server)
    wires = stage.network.wires["Q"]
    steps = parse_script(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p
        at 0
        Q: plain u p
        at 2
        A: NO no
        A| Auth-Wait: 1
        S: a NO no
        C: a LOGIN u p
        Q: plain u p #2
        at 3
        A: NO yes
        S: a NO yes
        """
    )

    async def run() -> None:
        for _ in range(3):
            wire = stage.network.connect(url.family, url.sockaddr)
            stage.network.idle.keep(
                (url.family, url.sockaddr),
                Connection(wire),
                Reuse(idle=60, requests=9),
            )
        await trio.sleep(STALE)
        await stage.perform(steps)

    trio.run(run, clock=MockClock(autojump_threshold=0))
    assert len(wires) == 3 + 2  # the answer on the fourth did not allow to keep it


def test_asking_again_has_the_whole_time() -> None:
    """The request on the new connection is sent at 3 s."""
    imap(
        f"""
        {ASKED}
        {REFUSED}
        C: a LOGIN u p
        Q: plain u p #2
        Q: plain u p #2
        at 3
        {FAILED}
        at 8
        """,
        f"{KEEPING} auth_http_timeout 5s;",
    )


@pytest.mark.parametrize("keepalive", ["auto", "on"])
def test_a_slow_server_is_asked_once_if_the_connection_was_just_used(
    keepalive: str,
) -> None:
    """Nothing on the way has forgotten it, and it has the whole time for its answer."""
    stage = Stage(
        load_server(
            f"protocol imap; auth_http_keepalive {keepalive}; auth_http_timeout 3s;"
        )
    )
    url = auth_url(stage.server)
    steps = parse_script(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p
        wait 2.9
        A: NO no
        S: a NO no
        """
    )

    async def run() -> None:
        server = url.family, url.sockaddr
        wire = stage.network.connect(*server)
        stage.network.idle.keep(server, Connection(wire), Reuse(idle=60, requests=9))
        await stage.perform(steps)

    trio.run(run, clock=MockClock(autojump_threshold=0))
    assert len(stage.network.wires["Q"]) == 1
    assert "silent" not in str(stage.log.events)


def test_a_kept_connection_that_has_begun_to_answer_is_waited_for() -> None:
    stage = imap(
        f"""
        {ASKED}
        {REFUSED}
        C: a LOGIN u p
        Q: plain u p #2
        A: H…
        wait 50
        A: TTP/1.1 200 OK⏎Auth-Status: yes⏎⏎…
        S: a NO yes
        at 51
        """,
        KEEPING,
    )
    assert len(stage.network.wires["Q"]) == 1


def test_a_new_connection_may_be_silent_for_longer() -> None:
    imap(f"{ASKED}\nwait 59\nA: NO no\nS: a NO no", KEEPING)


@pytest.mark.proves("auth_http_keepalive", "idle=", "requests=", "on")
@pytest.mark.parametrize(
    ("keepalive", "connections"),
    [
        ("off", 3),
        ("auto", 3),
        ("on", 1),
        ("on idle=999ms", 3),
        ("on idle=1100ms", 1),
        ("on requests=1", 3),
        ("on requests=2", 2),
        ("on requests=3 idle=2s", 1),
    ],
)
def test_how_long_a_connection_is_kept(keepalive: str, connections: int) -> None:
    """A second lies between the requests."""
    script = "".join(
        f"C: a LOGIN u p\nQ: plain u p #{attempt}\n{REFUSED}" for attempt in (1, 2, 3)
    )
    stage = imap(script, f"auth_http_keepalive {keepalive};")
    assert len(stage.network.wires["Q"]) == connections


def test_a_connection_is_closed_when_its_time_is_over() -> None:
    for keepalive, seconds in (("auto", 0.02), ("on", 60), ("on idle=3s", 3)):
        stage = imap(
            f"""
            {ASKED}
            {REFUSED}
            at 1
            C: a LOGIN u p
            Q: plain u p #2
            A: HTTP/1.1 204⏎Auth-Status: no⏎⏎…
            S: a NO no
            wait {0.9 * seconds}
            S: ⟨close⟩
            """,
            f"auth_http_keepalive {keepalive};",
        )
        assert len(stage.network.wires["Q"]) == (2 if keepalive == "auto" else 1)


@pytest.mark.proves("auth_http_keepalive", "off")
def test_no_connection_is_kept_and_no_body_waited_for() -> None:
    stage = imap(
        f"""
        {ASKED}
        A: HTTP/1.1 200 OK⏎Auth-Status: no⏎Content-Length: 4⏎⏎…
        S: a NO no
        S: ⟨close⟩
        at 0
        """,
        "auth_http_keepalive off;",
    )
    assert b"Connection" not in stage.requests[0]


@pytest.mark.parametrize(
    ("arguments", "error", "remedy"),
    [
        ("maybe", 'invalid value "maybe"', "accepted are off, auto, on"),
        ("off idle=1s", 'invalid parameter "idle=1s"', "say: on idle=1s"),
        ("auto requests=5", 'invalid parameter "requests=5"', "say: on requests=5"),
        ("on idle=0", 'invalid parameter "idle=0"', "say: off"),
        ("on requests=0", 'invalid parameter "requests=0"', "say: off"),
        ("on requests=-1", 'invalid parameter "requests=-1"', "more than 0"),
        ("on idle=1.5", 'invalid parameter "idle=1.5"', "idle=60s"),
        ("on idle", 'invalid parameter "idle"', "idle=60s"),
        ("on 60s", 'invalid parameter "60s"', "idle=60s"),
        ("on idle=1s idle=2s", 'duplicate parameter "idle=2s"', ""),
    ],
)
def test_keepalive_that_makes_no_sense(arguments: str, error: str, remedy: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_server(f"protocol imap; auth_http_keepalive {arguments};")
    (found,) = caught.value.exceptions
    assert isinstance(found, ConfigError)
    assert found.message == error
    assert remedy in (found.remedy or "")
