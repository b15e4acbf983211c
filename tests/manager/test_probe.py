"""One probe: what it sends, and what it says of a backend that is not healthy."""

from __future__ import annotations

import base64
import contextlib
import errno
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from mailproxy.conf.addresses import Address
from mailproxy.mail.probing import Match, ProbeType
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.manager.probes.peer import MAX_LINE, MAX_REPLY, MAX_SHOWN
from mailproxy.manager.probes.probe import TALKS, Probe, run
from mailproxy.manager.probes.talk import ProbeLogin
from mailproxy.net.outgoing import Outgoing
from tests.manager.script import play

LOCAL = Address(socket.AF_INET, ("127.0.0.1", 143), "127.0.0.1:143")
FAR = Address(socket.AF_INET, ("192.0.2.1", 143), "192.0.2.1:143")
LOGIN = ProbeLogin(b"watchdog", b"secret word")


def probe(
    protocol: str, type_: ProbeType = ProbeType.GREETING, login: ProbeLogin = LOGIN
) -> Probe:
    return Probe(
        address=LOCAL,
        type=type_,
        protocol=protocol,
        own_name=b"proxy.example",
        login=login,
    )


def connecting() -> Probe:
    return Probe(address=LOCAL, type=ProbeType.CONNECT)


HEALTHY = {
    ("imap", ProbeType.GREETING): """
        B: * OK ready
        P: h9 LOGOUT
    """,
    ("imap", ProbeType.CAPABILITY): """
        B: * OK [CAPABILITY IMAP4rev1] ready
        P: h1 CAPABILITY
        B: * CAPABILITY IMAP4REV2 STARTTLS
        B: h1 OK done
        P: h9 LOGOUT
    """,
    ("imap", ProbeType.LOGIN): """
        B: * OK ready
        P: h1 CAPABILITY
        B: * OK by the way
        B: * CAPABILITY IMAP4rev1
        B: h1 OK done
        P: h2 LOGIN {8}
        B: * OK still here
        B: + go on
        P: watchdog {11}
        B: +
        P: secret word
        B: * CAPABILITY IMAP4rev1 IDLE
        B: h2 OK logged in
        P: h9 LOGOUT
    """,
    ("pop3", ProbeType.GREETING): """
        B: +OK ready
        P: QUIT
    """,
    ("pop3", ProbeType.CAPABILITY): """
        B: +OK ready
        P: CAPA
        B: +OK
        B: USER
        B: .
        P: QUIT
    """,
    ("pop3", ProbeType.LOGIN): """
        B: +OK ready
        P: CAPA
        B: +OK
        B: .
        P: USER watchdog
        B: +OK
        P: PASS secret word
        B: +OK logged in
        P: QUIT
    """,
    ("smtp", ProbeType.GREETING): """
        B: 220-mail.example
        B: 220 ready
        P: QUIT
    """,
    ("smtp", ProbeType.CAPABILITY): """
        B: 220 ready
        P: EHLO proxy.example
        B: 250-mail.example
        B: 250 PIPELINING
        P: QUIT
    """,
    ("smtp", ProbeType.LOGIN): """
        B: 220 ready
        P: EHLO proxy.example
        B: 250 mail.example
        P: AUTH PLAIN AHdhdGNoZG9nAHNlY3JldCB3b3Jk
        B: 235 fine
        P: QUIT
    """,
}


@pytest.mark.parametrize(("protocol", "type_"), HEALTHY)
async def test_a_healthy_backend_passes(
    protocol: str, type_: ProbeType, autojump_clock: MockClock
) -> None:
    assert await play(probe(protocol, type_), HEALTHY[protocol, type_]) is None
    assert trio.current_time() == 0


def test_every_protocol_can_be_probed() -> None:
    assert TALKS.keys() == {each.name for each in PROTOCOLS}


async def test_a_connection_is_enough_for_type_connect() -> None:
    assert await play(connecting(), "") is None


SICK = [
    (
        "imap",
        ProbeType.GREETING,
        "B: * BYE too many",
        'invalid greeting: "* BYE too many"',
    ),
    ("imap", ProbeType.GREETING, "B: * PREAUTH hi", 'invalid greeting: "* PREAUTH hi"'),
    ("imap", ProbeType.GREETING, "B: * OKAY", 'invalid greeting: "* OKAY"'),
    ("imap", ProbeType.GREETING, "B: * ok hi", 'invalid greeting: "* ok hi"'),
    ("pop3", ProbeType.GREETING, "B: -ERR no", 'invalid greeting: "-ERR no"'),
    ("smtp", ProbeType.GREETING, "B: 421 busy", 'invalid greeting: "421 busy"'),
    ("smtp", ProbeType.GREETING, "B: 554-no\nB: 554 go", 'invalid greeting: "554 go"'),
    (
        "smtp",
        ProbeType.GREETING,
        "B: SSH-2.0-OpenSSH",
        'invalid reply to a greeting: "SSH-2.0-OpenSSH"',
    ),
    (
        "imap",
        ProbeType.CAPABILITY,
        "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4 IDLE\nB: h1 OK",
        'neither IMAP4rev1 nor IMAP4rev2 is among its capabilities: "IDLE IMAP4"',
    ),
    (
        "imap",
        ProbeType.CAPABILITY,
        "B: * OK\nP: h1 CAPABILITY\nB: h1 BAD what",
        'invalid answer to CAPABILITY: "BAD what"',
    ),
    (
        "imap",
        ProbeType.CAPABILITY,
        "B: * OK\nP: h1 CAPABILITY\nB: * BYE enough",
        'invalid answer: "* BYE enough"',
    ),
    (
        "imap",
        ProbeType.CAPABILITY,
        "B: * OK\\r\\nh1 OK too early",
        'invalid answer before CAPABILITY: "h1 OK too early"',
    ),
    (
        "imap",
        ProbeType.CAPABILITY,
        "B: * OK\\r\\n* OK well\\r\\n* BYE no",
        'invalid answer before CAPABILITY: "* BYE no"',
    ),
    (
        "pop3",
        ProbeType.CAPABILITY,
        "B: +OK\nP: CAPA\nB: -ERR unknown",
        'invalid answer to CAPA: "-ERR unknown"',
    ),
    (
        "smtp",
        ProbeType.CAPABILITY,
        "B: 220\nP: EHLO proxy.example\nB: 502 no",
        'invalid answer to EHLO: "502 no"',
    ),
]


@pytest.mark.parametrize(("protocol", "type_", "script", "reason"), SICK)
async def test_a_backend_that_answers_otherwise_is_not_healthy(
    protocol: str, type_: ProbeType, script: str, reason: str
) -> None:
    failure = await play(probe(protocol, type_), script)
    assert failure is not None
    assert failure.text == reason


REFUSALS = [
    (
        "imap",
        "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4rev1\nB: h1 OK\n"
        "P: h2 LOGIN {8}\nB: h2 NO not you",
        'upstream refused the login: "NO not you"',
    ),
    (
        "imap",
        "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4rev1\nB: h1 OK\n"
        "P: h2 LOGIN {8}\nB: + \nP: watchdog {11}\nB: +\nP: secret word\n"
        "B: h2 NO [AUTHENTICATIONFAILED] wrong",
        'upstream refused the login: "NO [AUTHENTICATIONFAILED] wrong"',
    ),
    (
        "imap",
        "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4rev1 LOGINDISABLED\nB: h1 OK",
        "upstream does not allow logins",
    ),
    (
        "pop3",
        "B: +OK\nP: CAPA\nB: +OK\nB: .\nP: USER watchdog\nB: +OK\n"
        "P: PASS secret word\nB: -ERR [AUTH] wrong",
        'upstream refused the login: "-ERR [AUTH] wrong"',
    ),
    (
        "smtp",
        "B: 220\nP: EHLO proxy.example\nB: 250 x\n"
        "P: AUTH PLAIN AHdhdGNoZG9nAHNlY3JldCB3b3Jk\nB: 535 5.7.8 wrong",
        'upstream refused the login: "535 5.7.8 wrong"',
    ),
]


@pytest.mark.parametrize(("protocol", "script", "reason"), REFUSALS)
async def test_a_refused_login_is_told(protocol: str, script: str, reason: str) -> None:
    failure = await play(probe(protocol, ProbeType.LOGIN), script)
    assert failure is not None
    assert failure.text == reason


REPEATED = [
    "user watchdog is unknown",
    "WATCHDOG?",
    "secret word is wrong",
    "bad AHdhdGNoZG9nAHNlY3JldCB3b3Jk",
    "bad c2VjcmV0IHdvcmQ=",
    "x" * 300 + "secret word",
]


@pytest.mark.parametrize("said", REPEATED)
async def test_a_login_that_the_backend_repeats_is_not_shown(said: str) -> None:
    script = f"B: +OK\nP: CAPA\nB: +OK\nB: .\nP: USER watchdog\nB: -ERR {said}"
    failure = await play(probe("pop3", ProbeType.LOGIN), script)
    assert failure is not None
    assert failure.text == 'upstream refused the login: "..."'


async def test_a_login_that_the_backend_knows_from_before_is_not_shown() -> None:
    asked = probe("pop3", ProbeType.LOGIN)
    failure = await play(asked, "B: -ERR go away, watchdog")
    assert failure is not None
    assert failure.text == 'invalid greeting: "..."'


async def test_what_is_said_about_a_short_login_is_not_shown() -> None:
    script = "B: +OK\nP: CAPA\nB: +OK\nB: .\nP: USER me\nB: -ERR no"
    short = ProbeLogin(b"me", b"pw")
    failure = await play(probe("pop3", ProbeType.LOGIN, short), script)
    assert failure is not None
    assert failure.text == 'upstream refused the login: "..."'


async def test_a_long_login_goes_out_in_turns() -> None:
    login = ProbeLogin(b"watchdog", b"p" * 400)
    script = """
        B: 220 ready
        P: EHLO proxy.example
        B: 250 mail.example
        P: AUTH PLAIN
        B: 334
        P: {}
        B: 235 fine
        P: QUIT
    """.format(base64.b64encode(b"\0watchdog\0" + b"p" * 400).decode())
    assert await play(probe("smtp", ProbeType.LOGIN, login), script) is None


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
async def test_no_password_goes_out_in_clear_text(protocol: str) -> None:
    greetings = {
        "imap": "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4rev1\nB: h1 OK",
        "pop3": "B: +OK\nP: CAPA\nB: +OK\nB: .",
        "smtp": "B: 220\nP: EHLO proxy.example\nB: 250 x",
    }
    far = replace(probe(protocol, ProbeType.LOGIN), address=FAR)
    failure = await play(far, greetings[protocol])
    assert failure is not None
    assert failure.text == "no login in clear text"


async def test_a_login_has_no_repr() -> None:
    shown = repr(probe("imap", ProbeType.LOGIN)) + repr(LOGIN)
    assert "watchdog" not in shown
    assert "secret" not in shown


async def test_text_of_a_backend_is_escaped_and_cut() -> None:
    failure = await play(probe("imap"), 'B: * NO "\\x1b[31m\\xff' + "x" * 500)
    assert failure is not None
    start = 'invalid greeting: "* NO \\x22\\x1B[31m\\xFF'
    assert failure.text.startswith(start)
    assert failure.text.count("x") - start.count("x") == MAX_SHOWN - len('* NO "x[31mx')


@pytest.mark.parametrize(
    ("protocol", "script", "reason"),
    [
        ("imap", "B: " + "x" * MAX_LINE, f'too long line: "{"x" * MAX_SHOWN}"'),
        (
            "imap",
            "B: * OK\nP: h1 CAPABILITY\n" + ("B: * " + "x" * 8000 + "\n") * 9,
            "too long answer to a command",
        ),
        (
            "pop3",
            "B: +OK\nP: CAPA\nB: +OK\n" + ("B: " + "x" * 8000 + "\n") * 9,
            "too long answer to CAPA",
        ),
        (
            "smtp",
            "B: 220\nP: EHLO proxy.example\n" + ("B: 250-" + "x" * 8000 + "\n") * 9,
            "too long answer to EHLO",
        ),
    ],
)
async def test_a_backend_cannot_talk_without_end(
    protocol: str, script: str, reason: str
) -> None:
    assert MAX_REPLY < 9 * 8000
    failure = await play(probe(protocol, ProbeType.CAPABILITY), script)
    assert failure is not None
    assert failure.text == reason


@pytest.mark.parametrize(
    ("script", "doing"),
    [
        ("", "waiting for the greeting"),
        ("B: * OK\nP: h1 CAPABILITY", "waiting for the answer to CAPABILITY"),
        (
            "B: * OK\nP: h1 CAPABILITY\nB: * CAPABILITY IMAP4rev1\nB: h1 OK\n"
            "P: h2 LOGIN {8}",
            "waiting for the answer to LOGIN",
        ),
    ],
)
async def test_the_reason_says_what_was_waited_for(
    script: str, doing: str, autojump_clock: MockClock
) -> None:
    failure = await play(probe("imap", ProbeType.LOGIN), script, closes=True)
    assert failure is not None
    assert failure.text == f"closed connection while {doing}"
    failure = await play(probe("imap", ProbeType.LOGIN), script)
    assert failure is not None
    assert failure.text == f"timed out while {doing}"
    assert trio.current_time() == 5


async def test_a_backend_that_closes_amid_a_line_is_quoted() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"* OK rea")
    await theirs.send_eof()

    async def connect(_: Probe) -> trio.abc.Stream:
        return ours

    failure = await run(probe("imap"), connect)
    assert failure is not None
    assert failure.text == (
        'closed connection while waiting for the greeting after "* OK rea"'
    )


async def test_the_limit_is_for_the_whole_probe(autojump_clock: MockClock) -> None:
    """A backend that sends a line every second is not faster than one that is silent."""
    ours, theirs = memory_stream_pair()

    async def trickle() -> None:
        await theirs.send_all(b"* OK\r\n")
        with contextlib.suppress(trio.BrokenResourceError):  # the probe has left
            while True:
                await trio.sleep(1)
                await theirs.send_all(b"* OK still here\r\n")

    async def connect(_: Probe) -> trio.abc.Stream:
        await trio.sleep(1)
        return ours

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        failure = await run(probe("imap", ProbeType.CAPABILITY), connect)
        nursery.cancel_scope.cancel()
    assert failure is not None
    assert failure.text.startswith("timed out while waiting for the answer to")
    assert trio.current_time() == 5


async def test_a_goodbye_is_not_waited_for(autojump_clock: MockClock) -> None:
    """A backend that does not read it, or has left, is healthy all the same."""

    class Greets(trio.abc.Stream):
        def __init__(self, *, leaves: bool) -> None:
            self.leaves = leaves
            self.closed = False

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            if self.leaves:
                raise trio.BrokenResourceError
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self) -> None:
            raise NotImplementedError

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return b"* OK\r\n"

        async def aclose(self) -> None:
            self.closed = True

    for leaves in (True, False):
        stream = Greets(leaves=leaves)

        async def connect(_: Probe, stream: Greets = stream) -> trio.abc.Stream:
            return stream

        assert await run(probe("imap"), connect) is None
        assert stream.closed
    assert trio.current_time() == 5


async def test_a_refused_connection_is_told_with_its_number() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        address = Address(socket.AF_INET, ("127.0.0.1", port), f"127.0.0.1:{port}")
        failure = await run(replace(connecting(), address=address))
    assert failure is not None
    assert (
        failure.text == f"connect() failed ({errno.ECONNREFUSED}: Connection refused)"
    )


async def test_a_probe_comes_from_where_sessions_come_from() -> None:
    here = Outgoing(Address(socket.AF_INET, ("127.0.0.9", 0), "127.0.0.9"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        address = Address(socket.AF_INET, ("127.0.0.1", port), f"127.0.0.1:{port}")
        asked = replace(connecting(), address=address, outgoing=here)
        assert await run(asked) is None
        connection, (source, _) = listening.accept()
        connection.close()
        assert source == "127.0.0.9"
        away = Outgoing(Address(socket.AF_INET, ("192.0.2.1", 0), "192.0.2.1"))
        failure = await run(replace(asked, outgoing=away))
    assert failure is not None
    assert failure.local
    assert failure.text == (
        "bind(192.0.2.1) failed (99: Cannot assign requested address)"
    )


async def test_a_connection_that_is_not_made_is_told(
    autojump_clock: MockClock,
) -> None:
    async def connect(_: Probe) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    failure = await run(probe("imap"), connect)
    assert failure is not None
    assert failure.text == "timed out while connecting"


async def test_unix_sockets_are_probed(tmp_path: Path) -> None:
    path = str(tmp_path / "lmtp")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        address = Address(socket.AF_UNIX, path, f"unix:{path}")
        assert await run(replace(connecting(), address=address)) is None
    await trio.Path(path).unlink()
    failure = await run(replace(connecting(), address=address))
    assert failure is not None
    assert failure.text == "connect() failed (2: No such file or directory)"
    assert not failure.local


@pytest.mark.parametrize(
    ("version", "header"),
    [
        ("on", rb"PROXY UNKNOWN\r\n"),
        ("v2", rb"\r\n\r\n\0\r\nQUIT\n\x20\x00(?s:.*)"),
    ],
)
async def test_a_backend_that_wants_a_proxy_header_gets_that_of_a_local_connection(
    version: str, header: bytes
) -> None:
    ours, theirs = memory_stream_pair()

    async def connect(_: Probe) -> trio.abc.Stream:
        return ours

    got = b""

    async def greet() -> None:
        nonlocal got
        got = bytes(await theirs.receive_some())
        await theirs.send_all(b"* OK\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        asked = replace(probe("imap"), proxy_protocol=version)
        assert await run(asked, connect) is None
    assert re.fullmatch(header, got)


PIECES = [
    *(b"* OK\r\n", b"* OK [CAPABILITY IMAP4rev1] x\r\n", b"+ \r\n", b"* BYE\r\n"),
    *(b"* CAPABILITY IMAP4rev1\r\n", b"h1 OK\r\n", b"h2 OK\r\n", b"h2 NO\r\n"),
    *(b"+OK\r\n", b"-ERR\r\n", b".\r\n", b"220 \r\n", b"250-x\r\n", b"250 x\r\n"),
    *(b"235 x\r\n", b"\n", b"\r", b"\0", b"\xff"),
]


@given(
    st.sampled_from(sorted(TALKS)),
    st.sampled_from([*ProbeType]),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=12),
    st.booleans(),
)
def test_whatever_a_backend_says_there_is_an_answer(
    protocol: str, type_: ProbeType, pieces: list[bytes], closes: bool
) -> None:
    async def say() -> None:
        ours, theirs = memory_stream_pair()

        async def connect(_: Probe) -> trio.abc.Stream:
            return ours

        for piece in pieces:
            if piece:
                await theirs.send_all(piece)
        if closes:
            await theirs.send_eof()
        failure = await run(probe(protocol, type_), connect)
        assert failure is None or failure.text
        assert trio.current_time() <= 5

    trio.run(say, clock=MockClock(autojump_threshold=0))


# match


def matching(expect: bytes | re.Pattern[bytes] | None, send: bytes = b"") -> Match:
    return Match(name="wanted", send=send, expect=expect)


async def test_match_sends_and_expects() -> None:
    asked = replace(connecting(), match=matching(b"PONG", b"PING\r\n"))
    assert await play(asked, "P: PING\nB: well\nB: PONG") is None


async def test_match_sees_the_greeting() -> None:
    asked = replace(probe("imap"), match=matching(re.compile(rb"^\* OK .*Dovecot")))
    assert (
        await play(asked, "B: * OK hello\nB: * OK Dovecot here", closes=True)
        is not None
    )
    assert await play(asked, "B: * OK Dovecot ready\nP: h9 LOGOUT") is None


async def test_match_without_expect_only_sends() -> None:
    asked = replace(connecting(), match=matching(None, b"hello\r\n"))
    assert await play(asked, "P: hello") is None


async def test_what_is_not_as_expected_is_told(autojump_clock: MockClock) -> None:
    asked = replace(connecting(), match=matching(b"PONG"))
    failure = await play(asked, "B: no")
    assert failure is not None
    assert failure.text == "timed out while waiting for what match wanted expects"
    failure = await play(asked, "B: no", closes=True)
    assert failure is not None
    assert failure.text == (
        'closed connection while waiting for what match wanted expects after "no"'
    )
    failure = await play(asked, "B: " + "x" * MAX_LINE)
    assert failure is not None
    assert failure.text == ('nothing of what it sent is what "match wanted" expects')
