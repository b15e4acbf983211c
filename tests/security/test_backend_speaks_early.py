"""A backend says more than it was asked for, before its turn.

Taken for the answer to a later step, it would let a client in whom the backend has
not let in. It ends the session instead, and the client sees none of it.
"""

import pytest

from tests.play import Stage, play

IMAP = "S: * OK IMAP4 ready\nC: a LOGIN u p\nQ: plain u p\nA: OK"
LITERAL = "proxy_login literal;"
IMAP_FAILED = "S: * BAD internal server error\nS: ⟨close⟩"
POP3 = "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS p\nQ: plain u p\nA: OK"
POP3_FAILED = "S: -ERR internal server error\nS: ⟨close⟩"
SMTP = "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcA==\nQ: plain u p\nA: OK"
SMTP_FAILED = "S: 451 4.3.2 Internal server error\nS: ⟨close⟩"


def imap(script: str, directives: str = "") -> Stage:
    return play(f"{IMAP}\n{script}", f"protocol imap; {directives}")


def pop3(script: str, directives: str = "") -> Stage:
    return play(f"{POP3}\n{script}", f"protocol pop3; {directives}")


def smtp(script: str, directives: str = "") -> Stage:
    return play(f"{SMTP}\n{script}", f"protocol smtp; {directives}")


@pytest.mark.parametrize(
    "greeting",
    [
        "* OK ready⏎+ go on",
        "* OK ready⏎+ go on⏎+ go on⏎a OK welcome",
        "* OK ready⏎a OK welcome",
        "* OK ready⏎* CAPABILITY IMAP4⏎+ go on",
        "* OK [CAPABILITY LITERAL+] ready⏎a OK welcome",
        "* OK ready⏎+…",
    ],
)
@pytest.mark.parametrize("directive", ["", LITERAL])
def test_imap_greeting_and_more(greeting: str, directive: str) -> None:
    rest = "B: ␠go on\n" if greeting.endswith("…") else ""
    stage = imap(f"B: {greeting}\n{rest}{IMAP_FAILED}", directive)
    assert any("sent invalid response" in text for _, text in stage.log.events)


def test_imap_answers_to_the_password_before_the_password() -> None:
    imap(
        f"B: * OK ready\nP: a LOGIN {{1}}\nB: + go⏎+ go⏎a OK welcome\n{IMAP_FAILED}",
        LITERAL,
    )
    imap(
        f"""
        B: * OK ready
        P: a LOGIN {{1}}
        B: + go
        P: u {{1}}
        B: + go⏎a OK welcome
        {IMAP_FAILED}
        """,
        LITERAL,
    )


def test_imap_untagged_lines_are_no_answers() -> None:
    """They may come at any time, and those before the password do not reach the client."""
    imap(
        """
        B: * OK ready⏎* PREAUTH welcome
        P: a LOGIN {1}
        B: * PREAUTH welcome⏎+ go⏎* PREAUTH…
        B: ␠welcome
        P: u {1}
        B: + go
        P: p
        B: a NO no
        S: * BAD internal server error
        """,
        LITERAL,
    )
    imap(
        """
        B: * OK ready⏎* PREAUTH welcome
        P: a LOGIN "u" "p"
        B: * PREAUTH welcome
        B: a NO no
        S: * BAD internal server error
        """
    )


def test_imap_flood_of_untagged_lines_has_an_end() -> None:
    imap(f"B: * OK ready⏎⟨* x⏎*2000⟩\n{IMAP_FAILED}")


@pytest.mark.parametrize(
    "script",
    [
        "B: +OK ready⏎+OK",
        "B: +OK ready⏎+OK⏎+OK welcome",
        "B: +OK ready⏎x…",
        "B: +OK ready\nP: USER u\nB: +OK⏎+OK welcome",
        "B: +OK ready\nP: USER u\nB: +OK⏎…\nP: PASS p\nB: -ERR no",
    ],
)
def test_pop3(script: str) -> None:
    pop3(f"{script}\n{POP3_FAILED}")


@pytest.mark.parametrize(
    "script",
    [
        "B: 220 ready⏎250 x",
        "B: 220 ready⏎250 x⏎250 y⏎235 welcome",
        "B: 220 ready\nP: EHLO mx.test\nB: 250 x⏎250 y⏎235 welcome",
        "B: 220 ready\nP: EHLO mx.test\nB: 250-x⏎250 y⏎2…",
        """
        B: 220 ready
        P: EHLO mx.test
        B: 250 x
        P: XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]
        B: 220 y⏎235 welcome
        """,
    ],
)
def test_smtp(script: str) -> None:
    smtp(f"{script}\n{SMTP_FAILED}", "proxy_smtp_auth on;")


def test_smtp_answer_to_the_recipient_before_the_recipient() -> None:
    stage = play(
        f"""
        S: 220 mx.test ESMTP ready
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        Q: ⟨any⟩
        A: OK
        B: 220 ready
        P: HELO mx.test
        B: 250 x
        P: MAIL FROM:<a@b>
        B: 250 y⏎250 z
        {SMTP_FAILED}
        """,
        "protocol smtp; smtp_auth none; xclient off;",
    )
    assert b"RCPT" not in bytes(stage.network.wires["P"][0].outgoing)


def test_not_even_as_an_error_message() -> None:
    """To the client it would read as the answer to its login."""
    passing = "proxy_pass_error_message on;"
    pop3(f"B: +OK ready⏎+OK welcome\n{POP3_FAILED}", passing)
    imap(f"B: * OK ready⏎a OK welcome\n{IMAP_FAILED}", passing)
    smtp(f"B: 220 ready⏎235 welcome\n{SMTP_FAILED}", passing)
