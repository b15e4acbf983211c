"""What backends are told of the client by a PROXY header."""

from __future__ import annotations

import pytest

from tests.play import play

HEADERS = {
    "off": b"",
    "on": b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x7f\0\0\1\x7f\0\0\1"
    + (40000).to_bytes(2, "big")
    + (1143).to_bytes(2, "big")
    + b"\x03\0\4z;\xd5\xbf",  # its checksum
}


@pytest.mark.proves("proxy_protocol", "off", "on", "v2")
@pytest.mark.parametrize("version", HEADERS)
def test_header_for_backends(version: str) -> None:
    stage = play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p
        A: OK
        B: ⟨close⟩
        S: * BAD internal server error
        S: ⟨close⟩
        """,
        f"protocol imap; proxy_protocol {version};",
    )
    (backend,) = stage.network.wires["P"]
    assert bytes(backend.outgoing) == HEADERS[version]


UPSTREAM = '…, login: "u", upstream: 127.0.0.1:9143'
OPENINGS = {
    "imap": "S: * OK IMAP4 ready\nC: a LOGIN u p\nQ: plain u p\nA: OK",
    "pop3": "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS p\nQ: plain u p\nA: OK",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcA==\nQ: plain u p\nA: OK",
}
FAILED = {
    "imap": "* BAD internal server error",
    "pop3": "-ERR internal server error",
    "smtp": "451 4.3.2 Internal server error",
}
HEADER = "P: PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143"
GOOD = {"imap": "* OK", "pop3": "+OK", "smtp": "220 x"}
FIRST = {"imap": "a LOGIN {1}", "pop3": "USER u", "smtp": "EHLO mx.test"}
REFUSAL = {"imap": "PROXY BAD what", "pop3": "-ERR what", "smtp": "502 what"}


def session(protocol: str, script: str, directives: str) -> None:
    """Play what follows the login of a client, up to the end."""
    play(
        f"{OPENINGS[protocol]}\n{script}\nS: ⟨close⟩",
        f"protocol {protocol}; {directives}",
    )


def refused(text: str, command: str) -> str:
    """The log's line of a refusal."""
    return (
        f'L: [error] upstream sent invalid response: "{text}"{command}'
        f" while reading response from upstream, {UPSTREAM}"
    )


@pytest.mark.parametrize("protocol", OPENINGS)
@pytest.mark.parametrize("directive", ["proxy_protocol on;", ""])
def test_refused_header_is_named(protocol: str, directive: str) -> None:
    """In the place of the greeting, behind it, or before the answer to a command."""
    header = HEADER if directive else ""
    refusal, failed = REFUSAL[protocol], f"S: {FAILED[protocol]}"
    blamed = ' to PROXY, try "proxy_protocol off"' if directive else ""
    for said in (f"B: {refusal}", f"B: {GOOD[protocol]}⏎{refusal}"):
        script = f"{header}\n{said}\n{failed}\n{refused(refusal, blamed)}"
        session(protocol, script, directive)
    if protocol == "smtp" and directive:
        blamed = ' to PROXY or EHLO, try "proxy_protocol off"'
    elif protocol == "smtp":
        blamed = ' to EHLO, try "xclient off"'
    session(
        protocol,
        f"""
        {header}
        B: {GOOD[protocol]}
        P: {FIRST[protocol]}
        B: {refusal}
        {failed}
        {refused(refusal, blamed)}
        """,
        directive,
    )


def test_later_refusals_are_not_about_the_header() -> None:
    session(
        "imap",
        f"""
        {HEADER}
        B: * OK
        P: a LOGIN {{1}}
        B: +
        P: u {{1}}
        B: a NO what
        S: * BAD internal server error
        {refused("a NO what", "")}
        """,
        "proxy_protocol on;",
    )
    session(
        "smtp",
        f"""
        {HEADER}
        B: 220 x
        P: EHLO mx.test
        B: 250 x
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        B: 502 what
        S: 451 4.3.2 Internal server error
        {refused("502 what", ' to XCLIENT, try "xclient off"')}
        """,
        "proxy_protocol on;",
    )


@pytest.mark.parametrize(
    ("end", "line"),
    [
        ("B: ⟨close⟩", "error] upstream closed connection prematurely"),
        ("B: ⟨reset⟩", "error] recv() failed (104: Connection reset by peer)"),
    ],
)
def test_what_is_no_answer_is_logged_without_advice(end: str, line: str) -> None:
    session(
        "imap",
        f"""
        {HEADER}
        {end}
        S: * BAD internal server error
        L: [{line} while reading response from upstream, {UPSTREAM}
        """,
        "proxy_protocol on;",
    )
