"""What backends are told of the client by a PROXY header."""

from __future__ import annotations

import pytest

from tests.play import INTERNAL_ERRORS, OPENINGS, play

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
HEADER = "P: PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143"
GOOD = {"imap": "* OK", "pop3": "+OK", "smtp": "220 x"}
FIRST = {"imap": 'a LOGIN "u" "p"', "pop3": "USER u", "smtp": "EHLO mx.test"}
REFUSAL = {
    "imap": "PROXY BAD what",
    "pop3": "-ERR Unknown command.",
    "smtp": "502 what",
}


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
    refusal, failed = REFUSAL[protocol], f"S: {INTERNAL_ERRORS[protocol]}"
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


def refuse(
    protocol: str,
    said: str,
    text: str,
    advice: str,
    directives: str = "",
    granted: str = "",
) -> None:
    """Play what a backend says after a PROXY header, and how the log shows it.

    Args:
      granted: more of the auth server's answer.
    """
    session(
        protocol,
        f"""
        {granted}
        {HEADER}
        {said}
        S: {INTERNAL_ERRORS[protocol]}
        {refused(text, advice)}
        """,
        f"proxy_protocol on; {directives}",
    )


BLAMED = ' to PROXY, try "proxy_protocol off"'
GREETED = {each: f"B: {GOOD[each]}\nP: {FIRST[each]}\nB: " for each in GOOD}
LITERAL = "proxy_login literal;"
LITERALS = "B: * OK\nP: a LOGIN {1}\nB: "
UNQUOTABLE = "A| Auth-Pass: \\"
LITERAL_PLUS = "B: * OK [CAPABILITY LITERAL+] x\nP: a LOGIN {1+}\nP: u {1+}\nP: \\\nB: "


@pytest.mark.parametrize("place", ["greeting", "early", "answer"])
@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("imap", "* BAD Error in IMAP command received by server."),
        ("imap", "PROXY NO Error in IMAP command received by server."),
        ("imap", "QUIT BAD Unrecognized command"),
        ("pop3", "-ERR Unknown command."),
        ("pop3", "-ERR invalid command"),
        ("pop3", "-ERR Unrecognized command"),
        ("pop3", "-ERR Command not recognized"),
        ("smtp", "500 5.5.1 Command unrecognized"),
        ("smtp", "502 5.5.2 Error: command not recognized"),
        ("smtp", "503 5.5.1 Send HELO first"),
    ],
)
def test_unknown_commands_are_headers(protocol: str, text: str, place: str) -> None:
    """Most servers greet before they read; what they say next is about the header."""
    if place == "answer" and text.startswith("* BAD"):
        # An untagged line does not end the wait; what ends it comes next.
        said, shown = f"{GREETED['imap']}{text}⏎* BYE Too many", "* BYE Too many"
    elif place == "answer":
        said, shown = GREETED[protocol] + text, text
    elif place == "early" and text.startswith("* BAD"):
        said, shown = f"B: * OK⏎{text}⏎* BYE Too many", "* BYE Too many"
    else:
        greeting = f"{GOOD[protocol]}⏎" if place == "early" else ""
        said, shown = f"B: {greeting}{text}", text
    blamed = BLAMED
    if protocol == "smtp" and place == "answer":
        blamed = ' to PROXY or EHLO, try "proxy_protocol off"'
    refuse(protocol, said, shown, blamed)


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("imap", "* BYE Too many connections"),
        ("imap", "* BYE [UNAVAILABLE] try later"),
        ("imap", "* NO busy"),
        ("imap", "HTTP/1.1 400 Bad Request"),
        ("pop3", "-ERR [IN-USE] locked"),
        ("pop3", "-ERR [SYS/TEMP] unknown command processor"),
        ("pop3", "-ERR too many connections"),
        ("smtp", "554 5.7.1 blocked"),
        ("smtp", "421 4.7.0 too busy"),
        ("smtp", "450 4.3.2 later"),
        ("smtp", "521 no mail here"),
    ],
)
def test_bad_greetings_are_not_about_the_header(protocol: str, text: str) -> None:
    refuse(protocol, f"B: {text}", text, "")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a NO [PRIVACYREQUIRED] TLS first", "a NO [PRIVACYREQUIRED] TLS first"),
        ("a NO [AUTHENTICATIONFAILED] no", "a NO [AUTHENTICATIONFAILED] no"),
        ("a BAD invalid command", "a BAD invalid command"),
        ("* BYE Too many connections", "* BYE Too many connections"),
    ],
)
def test_imap_answers_to_the_login_are_not_about_the_header(
    said: str, shown: str
) -> None:
    """Unless the backend is asked for each literal, the log then shows no tag."""
    refuse("imap", GREETED["imap"] + said, shown.removeprefix("a "), "")
    refuse("imap", LITERALS + said, shown, "", LITERAL)
    refuse(
        "imap",
        LITERAL_PLUS + said,
        shown.removeprefix("a "),
        "",
        granted=UNQUOTABLE,
    )


@pytest.mark.parametrize("tag", ["PROXY", "QUIT"])
@pytest.mark.parametrize("status", ["NO wrong password", "BAD what"])
@pytest.mark.parametrize(
    ("plus", "login", "how"),
    [
        ("", 'LOGIN "u" "p"', "quoted"),
        ("", "LOGIN {1}", "literal"),
        (" [CAPABILITY LITERAL+]", "LOGIN {1+}\nP: u {1+}\nP: \\", "quoted"),
    ],
)
def test_the_tag_of_a_client_may_look_like_a_header(
    tag: str, status: str, plus: str, login: str, how: str
) -> None:
    shown = f"{tag} {status}" if login.endswith("{1}") else status
    play(
        f"""
        S: * OK IMAP4 ready
        C: {tag} LOGIN u p
        Q: plain u p
        A: OK
        {UNQUOTABLE if plus else ""}
        {HEADER}
        B: * OK{plus}
        P: {tag} {login}
        B: {tag} {status}
        S: * BAD internal server error
        {refused(shown, "")}
        S: ⟨close⟩
        """,
        f"protocol imap; proxy_protocol on; proxy_login {how};",
    )


@pytest.mark.parametrize(
    "text",
    [
        "-ERR [AUTH] Plaintext authentication disallowed",
        "-ERR [AUTH] unknown command for this user",
        "-ERR never heard of mailbox name",
        "-ERR invalid user",
    ],
)
def test_pop3_answers_to_user_are_not_about_the_header(text: str) -> None:
    refuse("pop3", GREETED["pop3"] + text, text, "")


@pytest.mark.parametrize(
    "text", ["554 5.7.1 blocked", "421 4.7.0 too busy", "550 go away", "501 bad name"]
)
def test_smtp_answers_to_helo_are_not_about_the_header(text: str) -> None:
    said = f"B: 220 x\nP: HELO mx.test\nB: {text}"
    refuse("smtp", said, text, " to HELO", "xclient off;")


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
        f"proxy_protocol on; {LITERAL}",
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


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_header_that_makes_the_backend_leave(end: str) -> None:
    """After the header of version 2, Dovecot has seen too many bad commands."""
    error = "" if end == "close" else " (104: Connection reset by peer)"
    session(
        "imap",
        f"""
        {HEADER}
        {GREETED["imap"]}* BAD Error in IMAP command⏎
        B: ⟨{end}⟩
        S: * BAD internal server error
        L: [error] upstream closed connection prematurely after "* BAD Error in IMAP command"{BLAMED}{error} while reading response from upstream, {UPSTREAM}
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
