"""SMTP backends: who gets XCLIENT and AUTH, and what the log says of a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.mail.smtp_login import format_xclient, offered_attributes
from tests.play import Stage, play

UPSTREAM = 'login: "u", upstream: 127.0.0.1:9143'
WHERE = f"while reading response from upstream, …, {UPSTREAM}"
FAILED = "S: 451 4.3.2 Internal server error\nS: ⟨close⟩"
HELLOS = {
    "": "",
    "EHLO": "C: EHLO c.test\nS: 250-mx.test\nS: 250 AUTH PLAIN LOGIN",
    "HELO": "C: HELO c.test\nS: 250 mx.test",
}
AUTO = "xclient auto;"


def smtp(hello: str, script: str, directives: str, answer: str = "") -> Stage:
    """Play what follows a login.

    Args:
      hello: how the client begins.
      answer: header lines of the auth server.
    """
    return play(
        f"""
        S: 220 mx.test ESMTP ready
        {HELLOS[hello]}
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: OK
        {answer}
        {script}
        """,
        f"protocol smtp; {directives}",
    )


# XCLIENT


@pytest.mark.parametrize(
    ("address", "login", "host", "command"),
    [
        ("192.0.2.1", b"", b"[UNAVAILABLE]", b"ADDR=192.0.2.1 NAME=[UNAVAILABLE]"),
        ("2001:db8::1", b"", b"h.test", b"ADDR=IPV6:2001:db8::1 NAME=h.test"),
        ("unix:", b"", b"[TEMPUNAVAIL]", b"ADDR=unix: NAME=[TEMPUNAVAIL]"),
        ("192.0.2.1", b"u@d.test", b"h", b"ADDR=192.0.2.1 LOGIN=u@d.test NAME=h"),
        ("192.0.2.1", b"a+b=c d", b"h", b"ADDR=192.0.2.1 LOGIN=a+2Bb+3Dc+20d NAME=h"),
        (
            "192.0.2.1",
            b"\x00\t\x1f\x7f\x80\xff\r\nQUIT",
            b"h",
            b"ADDR=192.0.2.1 LOGIN=+00+09+1F+7F+80+FF+0D+0AQUIT NAME=h",
        ),
        ("192.0.2.1", b"!*,<>~", b"h", b"ADDR=192.0.2.1 LOGIN=!*,<>~ NAME=h"),
    ],
)
def test_xclient(address: str, login: bytes, host: bytes, command: bytes) -> None:
    assert format_xclient(address, login, host) == b"XCLIENT " + command + b"\r\n"


@pytest.mark.parametrize(
    ("offered", "command"),
    [
        ("ADDR LOGIN NAME PORT", b"XCLIENT ADDR=192.0.2.1 LOGIN=u NAME=h\r\n"),
        ("NAME ADDR", b"XCLIENT ADDR=192.0.2.1 NAME=h\r\n"),
        ("LOGIN", b"XCLIENT LOGIN=u\r\n"),
        ("PORT DESTADDR", b""),
        ("", b""),
    ],
)
def test_xclient_has_only_what_is_offered(offered: str, command: bytes) -> None:
    names = frozenset(offered.encode().split())
    assert format_xclient("192.0.2.1", b"u", b"h", names) == command


def test_nothing_to_tell_is_no_command() -> None:
    assert format_xclient("192.0.2.1", b"", b"h", frozenset({b"LOGIN"})) == b""


@pytest.mark.parametrize(
    ("reply", "offered"),
    [
        (b"250 mx.test\r\n", b""),
        (b"250-mx.test\r\n250 XCLIENT NAME ADDR\r\n", b"NAME ADDR"),
        (b"250-mx\r\n250-xclient name  Login \r\n250 X\r\n", b"NAME LOGIN"),
        (b"250-mx\n250-XCLIENT ADDR\n250 X\n", b"ADDR"),
        (b"250-mx\r\n250-XCLIENT ADDR\r\n250 XCLIENT NAME\r\n", b"ADDR NAME"),
        (b"250-mx\r\n250 XCLIENT\r\n", b""),
        (b"250-mx\r\n250-XCLIENTS ADDR\r\n250 X XCLIENT ADDR\r\n", b""),
        (b"250-mx\r\n250 XCLIENT=ADDR\r\n", b""),
        # The first line is the server's name, and whatever it likes to say.
        (b"250 XCLIENT ADDR\r\n", b""),
        (b"250-XCLIENT ADDR\r\n250 X\r\n", b""),
    ],
)
def test_offer_is_read(reply: bytes, offered: bytes) -> None:
    assert offered_attributes(reply) == frozenset(offered.split())


keywords = st.text("ABCXCLIENT019-", min_size=1, max_size=9).map(str.encode)


@given(st.lists(keywords), st.lists(keywords, min_size=1), st.lists(keywords))
def test_offer_stands_anywhere_in_the_answer(
    before: list[bytes], attributes: list[bytes], behind: list[bytes]
) -> None:
    lines = [
        b"mx.test",
        *(word for word in before if word != b"XCLIENT"),
        b" ".join([b"XCLIENT", *attributes]),
        *(word for word in behind if word != b"XCLIENT"),
    ]
    reply = b"".join(b"250-%s\r\n" % line for line in lines[:-1])
    assert offered_attributes(reply + b"250 %s\r\n" % lines[-1]) == set(attributes)


@pytest.mark.proves("xclient", "auto")
@pytest.mark.parametrize("hello", HELLOS)
@pytest.mark.parametrize("auth", ["on", "off"])
def test_auto_where_xclient_is_offered(hello: str, auth: str) -> None:
    login = "" if auth == "on" else " LOGIN=u"
    again = f"P: {hello} c.test\nB: 250 hello" if hello else ""
    logged_in = "P: AUTH PLAIN AHUAcA==\nB: 235 welcome" if auth == "on" else ""
    smtp(
        hello,
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: 250-backend
        B: 250-PIPELINING
        B: 250 XCLIENT NAME ADDR PROTO HELO PORT LOGIN
        P: XCLIENT ADDR=127.0.0.1{login} NAME=[UNAVAILABLE]
        B: 220 again
        {again}
        {logged_in}
        S: 235 2.0.0 OK
        L: [info] client logged in, …, {UPSTREAM}
        """,
        f"{AUTO} proxy_smtp_auth {auth};",
    )


@pytest.mark.proves("xclient", "auto")
@pytest.mark.parametrize("hello", HELLOS)
@pytest.mark.parametrize("offer", ["", "B: 250-PIPELINING\n", "B: 250-XCLIENT\n"])
def test_auto_where_it_is_not_offered(hello: str, offer: str) -> None:
    smtp(
        hello,
        f"""
        B: 220 backend
        P: EHLO mx.test
        {offer}B: 250 SIZE 1000
        P: AUTH PLAIN AHUAcA==
        B: 235 welcome
        S: 235 2.0.0 OK
        L: [info] client logged in, …, {UPSTREAM}
        """,
        f"{AUTO} proxy_smtp_auth on;",
    )


@pytest.mark.parametrize("hello", ["HELO", ""])
@pytest.mark.parametrize("code", [500, 501, 502, 504, 550])
def test_auto_and_a_backend_without_ehlo(hello: str, code: int) -> None:
    """RFC 5321, section 3.2: then it is HELO."""
    smtp(
        hello,
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: {code} what?
        P: HELO mx.test
        B: 250 hello
        S: 235 2.0.0 OK
        """,
        AUTO,
    )


@pytest.mark.parametrize(
    ("hello", "code", "directives"),
    [
        ("EHLO", 502, AUTO),  # the client may need what EHLO gives
        ("HELO", 421, AUTO),
        ("HELO", 554, AUTO),
        ("HELO", 250, f"{AUTO} proxy_buffer 16;"),
    ],
)
def test_auto_does_not_try_helo(hello: str, code: int, directives: str) -> None:
    text = "x" * 20 if code == 250 else "no"
    smtp(
        hello,
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: {code} {text}
        {FAILED}
        """,
        directives,
    )


def test_refusal_of_helo_after_ehlo() -> None:
    smtp(
        "HELO",
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: 502 what?
        P: HELO mx.test
        B: 502 what?
        {FAILED}
        L: [error] upstream sent invalid response: "502 what?" to HELO {WHERE}
        """,
        AUTO,
    )


def test_auto_does_not_take_the_answer_to_a_proxy_header_for_that_to_ehlo() -> None:
    """What answers EHLO would then be taken for the answer to HELO, and so on."""
    smtp(
        "HELO",
        f"""
        P: PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143
        B: 220 backend
        P: EHLO mx.test
        B: 502 what?
        {FAILED}
        L: [error] upstream sent invalid response: "502 what?" to PROXY or EHLO, try "proxy_protocol off" {WHERE}
        """,
        f"{AUTO} proxy_protocol on;",
    )


@pytest.mark.proves("xclient", "on")
def test_on_does_not_look_at_the_offer() -> None:
    smtp(
        "HELO",
        """
        B: 220 backend
        P: EHLO mx.test
        B: 250-backend
        B: 250 XCLIENT PORT
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        """,
        "xclient on;",
    )


@pytest.mark.proves("xclient", "off")
def test_off_does_not_look_at_the_offer() -> None:
    smtp(
        "EHLO",
        """
        B: 220 backend
        P: EHLO mx.test
        B: 250-backend
        B: 250 XCLIENT ADDR NAME LOGIN
        S: 235 2.0.0 OK
        """,
        "xclient off;",
    )


# AUTH, as the auth server wants it


@pytest.mark.parametrize("directive", ["on", "off"])
@pytest.mark.parametrize(
    ("value", "auth"),
    [("yes", True), ("YES", True), ("no", False), ("No", False), ("", None)],
)
def test_auth_server_decides_about_auth(
    directive: str, value: str, auth: bool | None
) -> None:
    if auth is None:
        auth = directive == "on"
    answered = "P: AUTH PLAIN AHUAcA==\nB: 235 welcome" if auth else ""
    smtp(
        "",
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=127.0.0.1{"" if auth else " LOGIN=u"} NAME=[UNAVAILABLE]
        B: 250 ok
        {answered}
        S: 235 2.0.0 OK
        L: [info] client logged in, …, {UPSTREAM}
        """,
        f"proxy_smtp_auth {directive};",
        f"A| Auth-SMTP: {value}",
    )


@pytest.mark.parametrize("value", ["on", "none", "yes no", "0", "yes\t"])
def test_auth_server_says_something_else(value: str) -> None:
    shown = value.replace("\t", "\\x09")
    smtp(
        "",
        f"""
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 sent invalid "Auth-SMTP":"{shown}", wanted yes or no while in http auth state, …, login: "u"
        """,
        "",
        f"A| Auth-SMTP: {value}",
    )


def test_refusal_does_not_need_a_decision_about_auth() -> None:
    play(
        """
        S: 220 mx.test ESMTP ready
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: NO bad
        A| Auth-SMTP: perhaps
        S: 535 5.7.0 bad
        """,
        "protocol smtp;",
    )


def test_other_protocols_do_not_look_at_it() -> None:
    play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p
        A: OK
        A| Auth-SMTP: perhaps
        B: * OK
        P: a LOGIN "u" "p"
        """,
        "protocol imap;",
    )


def test_auth_is_wanted_and_there_is_no_password() -> None:
    play(
        f"""
        S: 220 mx.test ESMTP ready
        C: AUTH EXTERNAL dQ==
        Q: external u ""
        A: OK
        A| Auth-SMTP: yes
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        {FAILED}
        L: [error] no password available while sending AUTH to upstream, …, {UPSTREAM}
        """,
        "protocol smtp; smtp_auth external; xclient off;",
    )


def test_mail_without_a_login_is_passed_on_without_auth() -> None:
    play(
        """
        S: 220 mx.test ESMTP ready
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        Q: ⟨any⟩
        A: OK
        A| Auth-SMTP: yes
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        P: MAIL FROM:<a@b>
        """,
        "protocol smtp; smtp_auth none; xclient off;",
    )


# What the log says of a refusal


@pytest.mark.parametrize(
    ("hello", "directives", "refused"),
    [
        ("HELO", "xclient on;", 'to EHLO, try "xclient off"'),
        ("", "xclient on;", 'to EHLO, try "xclient off"'),
        ("EHLO", "xclient on;", "to EHLO"),
        ("EHLO", "xclient off;", "to EHLO"),
        ("HELO", "xclient off;", "to HELO"),
    ],
)
@pytest.mark.parametrize("code", [421, 502, 554])
def test_refused_hello(hello: str, directives: str, refused: str, code: int) -> None:
    verb = refused.split()[1].rstrip(",")
    if code != 502:  # it is not the command that is refused
        refused = f"to {verb}"
    smtp(
        hello,
        f"""
        B: 220 backend
        P: {verb} mx.test
        B: {code} no
        {FAILED}
        L: [error] upstream sent invalid response: "{code} no" {refused} {WHERE}
        """,
        directives,
    )


@pytest.mark.parametrize("xclient", ["on", "auto"])
def test_refused_xclient(xclient: str) -> None:
    smtp(
        "",
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: 250-backend
        B: 250 XCLIENT ADDR LOGIN NAME
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        B: 550 5.7.0 Error: insufficient authorization
        {FAILED}
        L: [error] upstream sent invalid response: "550 5.7.0 Error: insufficient authorization" to XCLIENT, try "xclient off" {WHERE}
        """,
        f"xclient {xclient};",
    )


@pytest.mark.parametrize(
    ("reply", "answer", "refused"),
    [
        ("502 what?", "", ' to AUTH, try "proxy_smtp_auth off"'),
        ("504 not this", "", ' to AUTH, try "proxy_smtp_auth off"'),
        ("502 what?", "A| Auth-SMTP: yes", ' to AUTH, try "Auth-SMTP: no"'),
        ("535 wrong", "", ""),
        ("454 later", "", ""),
        ("250 ok", "", ""),
    ],
)
def test_refused_auth(reply: str, answer: str, refused: str) -> None:
    smtp(
        "",
        f"""
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        P: AUTH PLAIN AHUAcA==
        B: {reply}
        {FAILED}
        L: [error] upstream sent invalid response: "{reply}"{refused} {WHERE}
        """,
        "xclient off; proxy_smtp_auth on;",
        answer,
    )


def test_advice_is_logged_and_not_passed_on() -> None:
    smtp(
        "",
        f"""
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        B: 502 what?
        S: 502 what?
        S: ⟨close⟩
        L: [info] upstream sent invalid response: "502 what?" to XCLIENT, try "xclient off" {WHERE}
        """,
        "proxy_pass_error_message on;",
    )
