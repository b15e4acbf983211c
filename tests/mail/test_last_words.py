"""Backends that say why they close: the log always has it, the client may."""

from __future__ import annotations

import errno

import pytest
import trio

from mailproxy.errors import BackendError
from mailproxy.log import SessionInfo
from mailproxy.mail.backend import Backend
from tests.memory import MemoryWire
from tests.play import Stage, play

PASSED_ON = "proxy_pass_error_message on;"
UPSTREAM = 'login: "u", upstream: 127.0.0.1:9143'
WHERE = f"while reading response from upstream, …, {UPSTREAM}"
QUOTED = "imap quoted"
"""IMAP with `proxy_login quoted`; "imap" alone stands for `proxy_login literal` here."""
_IMAP = "S: * OK IMAP4 ready\nC: a LOGIN u p\nQ: plain u p\nA: OK"
OPENINGS = {
    "imap": _IMAP,
    QUOTED: _IMAP,
    "pop3": "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS p\nQ: plain u p\nA: OK",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcA==\nQ: plain u p\nA: OK",
}
FAILED = {
    "imap": "* BAD internal server error",
    QUOTED: "* BAD internal server error",
    "pop3": "-ERR internal server error",
    "smtp": "451 4.3.2 Internal server error",
}
STEPS = {
    "imap": ["* OK", "a LOGIN {1}", "+", "u {1}", "+", "p"],
    QUOTED: ["* OK", 'a LOGIN "u" "p"'],
    "pop3": ["+OK", "USER u", "+OK", "PASS p"],
    "smtp": [
        *("220 ready", "EHLO mx.test", "250 ok"),
        *("XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]", "250 ok", "AUTH PLAIN AHUAcA=="),
    ],
}
"""What backend and proxy say in turn, up to the answer to the login."""
LITERAL_PLUS = r"""
    A| Auth-Pass: \
    B: * OK [CAPABILITY LITERAL+]
    P: a LOGIN {1+}
    P: u {1+}
    P: \
"""


def session(protocol: str, script: str, directives: str = "") -> Stage:
    """Play what follows a login of the client."""
    if protocol == "smtp":
        directives += "proxy_smtp_auth on;"
    if protocol == "imap":
        directives += "proxy_login literal;"
    script = f"{OPENINGS[protocol]}\n{script}"
    return play(script, f"protocol {protocol.split()[0]}; {directives}")


def dialogue(protocol: str, place: int) -> str:
    """What is said before answer number `place` of the backend."""
    lines = STEPS[protocol][: 2 * place]
    return "\n".join(f"{'BP'[n % 2]}: {line}" for n, line in enumerate(lines))


PLACES = [
    *(("imap", place) for place in range(4)),
    *((QUOTED, place) for place in range(2)),
    *(("pop3", place) for place in range(3)),
    *(("smtp", place) for place in range(4)),
]
everywhere = pytest.mark.parametrize(("protocol", "place"), PLACES)
SAID = {
    "imap": "* BYE [UNAVAILABLE] too many",
    QUOTED: "* BYE [UNAVAILABLE] too many",
    "pop3": "-ERR [SYS/TEMP] too many",
    "smtp": "421 4.7.0 too many",
}


@pytest.mark.parametrize("bye", ["* BYE [UNAVAILABLE] too many", "* bye", "* BYE␊"])
@pytest.mark.parametrize("before", [*map(str, range(4)), LITERAL_PLUS, QUOTED])
def test_bye_instead_of_an_answer(before: str, bye: str) -> None:
    """RFC 3501, section 7.1.5: BYE may come at any time; nothing follows it."""
    protocol = QUOTED if before in (QUOTED, LITERAL_PLUS) else "imap"
    if before == QUOTED:
        before = dialogue(QUOTED, 1)
    elif len(before) == 1:
        before = dialogue("imap", int(before))
    shown = bye.removesuffix("␊")
    for directive, answer, level in (
        ("", FAILED["imap"], "error"),
        (PASSED_ON, bye, "info"),
    ):
        session(
            protocol,
            f"""
            {before}
            B: {bye}
            S: {answer}
            S: ⟨close⟩
            P: ⟨close⟩
            L: [{level}] upstream sent invalid response: "{shown}" {WHERE}
            """,
            directive,
        )


def test_lines_before_bye_are_passed_on_and_not_logged() -> None:
    session(
        "imap",
        f"""
        {dialogue("imap", 3)}
        B: * OK [ALERT] look
        B: * BYE maintenance
        S: * OK [ALERT] look
        S: * BYE maintenance
        S: ⟨close⟩
        L: [info] upstream sent invalid response: "* BYE maintenance" {WHERE}
        """,
        PASSED_ON,
    )


@pytest.mark.parametrize(("protocol", "place"), [each for each in PLACES if each[1]])
@pytest.mark.parametrize("directive", ["", PASSED_ON])
def test_farewell_behind_an_answer(protocol: str, place: int, directive: str) -> None:
    """It arrives before the next command is sent, and is no answer to that."""
    said = SAID[protocol]
    answer = f"{STEPS[protocol][2 * place - 2]}⏎{said}"
    session(
        protocol,
        f"""
        {dialogue(protocol, place - 1)}
        B: {answer}
        S: {said if directive else FAILED[protocol]}
        S: ⟨close⟩
        P: ⟨close⟩
        L: [{"info" if directive else "error"}] upstream sent invalid response: "{said}" {WHERE}
        """,
        directive,
    )


@everywhere
@pytest.mark.parametrize("directive", ["", PASSED_ON])
def test_farewell_without_a_line_end(protocol: str, place: int, directive: str) -> None:
    said = SAID[protocol]
    more = "-".join(said.split(" ", 1)) + " and more⏎" if protocol == "smtp" else ""
    passed = f"{more}{said}".replace("⏎", "\n        S: ")
    shown = f"{more}{said}".replace("⏎", "\\x0D\\x0A")
    session(
        protocol,
        f"""
        {dialogue(protocol, place)}
        B: {more}{said}…
        B: ⟨close⟩
        S: {passed if directive else FAILED[protocol]}
        S: ⟨close⟩
        L: [{"info" if directive else "error"}] upstream closed connection prematurely after "{shown}" {WHERE}
        """,
        directive,
    )


@everywhere
@pytest.mark.parametrize(
    ("end", "errno_text"),
    [("⟨close⟩", ""), ("⟨reset⟩", " (104: Connection reset by peer)")],
)
def test_words_that_are_no_farewell_are_logged_only(
    protocol: str, place: int, end: str, errno_text: str
) -> None:
    """The client cannot be given half a reply."""
    said = {"imap": "a NO sor", "pop3": "-ER", "smtp": "421-too many⏎421-conn"}
    said[QUOTED] = said["imap"]
    shown = said[protocol].replace("⏎", "\\x0D\\x0A")
    session(
        protocol,
        f"""
        {dialogue(protocol, place)}
        B: {said[protocol]}…
        B: {end}
        S: {FAILED[protocol]}
        S: ⟨close⟩
        L: [error] upstream closed connection prematurely after "{shown}"{errno_text} {WHERE}
        """,
        PASSED_ON,
    )


def test_untagged_lines_before_the_end_are_logged() -> None:
    session(
        "imap",
        f"""
        {dialogue("imap", 3)}
        B: * NO disk full
        B: ⟨close⟩
        S: * BAD internal server error
        S: ⟨close⟩
        L: [error] upstream closed connection prematurely after "* NO disk full" {WHERE}
        """,
        PASSED_ON,
    )


@everywhere
def test_end_without_words_is_logged_as_before(protocol: str, place: int) -> None:
    session(
        protocol,
        f"""
        {dialogue(protocol, place)}
        B: ⟨reset⟩
        S: {FAILED[protocol]}
        S: ⟨close⟩
        L: [error] recv() failed (104: Connection reset by peer) {WHERE}
        """,
        PASSED_ON,
    )


@pytest.mark.parametrize("said", [*SAID.values(), ""])
async def test_words_before_a_broken_pipe(said: str) -> None:
    """They wait in the socket when the next command cannot be sent."""
    wire = MemoryWire()
    wire.put(f"{said}\r\n".encode() if said else b"")
    wire.finish(errno.EPIPE)
    backend = Backend(wire, 4096, SessionInfo(1, "127.0.0.1"))
    with trio.fail_after(1), pytest.raises(BackendError) as caught:
        await backend.send(b"USER u\r\n")
    error = caught.value
    assert error.error is not None
    assert error.error.errno == errno.EPIPE
    assert error.reply == (f"{said}\r\n".encode() if said else b"")
    assert error.event == (
        'upstream closed connection prematurely after "%s"' if said else "send() failed"
    )


async def test_only_a_closed_connection_is_read_once_more() -> None:
    """Where something else is wrong with sending, nothing may ever come."""
    wire = MemoryWire()
    wire.put(b"421 not for you\r\n")
    wire.finish(errno.ENOBUFS)
    backend = Backend(wire, 4096, SessionInfo(1, "127.0.0.1"))
    with trio.fail_after(1), pytest.raises(BackendError) as caught:
        await backend.send(b"USER u\r\n")
    assert caught.value.event == "send() failed"
    assert caught.value.reply == b""
