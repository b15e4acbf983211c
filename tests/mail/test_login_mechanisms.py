"""The login at backends by SASL: what is sent, and what the answers mean."""

from __future__ import annotations

import base64
import json

import pytest

from tests.play import FAILED, Stage, play

OPENINGS = {
    "imap": "S: * OK IMAP4 ready\nC: a LOGIN u pass\nQ: plain u pass\nA: OK",
    "pop3": "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS pass\nQ: plain u pass\nA: OK",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcGFzcw==\nQ: plain u pass\nA: OK",
}
TOKEN_OPENINGS = {
    "imap": "S: * OK IMAP4 ready\nC: a AUTHENTICATE XOAUTH2 ⟨x⟩\nQ: xoauth2 u tok\nA: OK",
    "pop3": "S: +OK POP3 ready\nC: AUTH XOAUTH2 ⟨x⟩\nQ: xoauth2 u tok\nA: OK",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH XOAUTH2 ⟨x⟩\nQ: xoauth2 u tok\nA: OK",
}
ENTERED = {
    "imap": "B: a OK in\nS: a OK in",
    "pop3": "B: +OK in\nS: +OK in",
    "smtp": "B: 235 in\nS: 235 2.0.0 OK",
}
REFUSED = {"imap": "a NO no", "pop3": "-ERR no", "smtp": "535 5.7.8 no"}
PROMPT = {"imap": "+ ", "pop3": "+ ", "smtp": "334 "}
COMMAND = {"imap": "a AUTHENTICATE", "pop3": "AUTH", "smtp": "AUTH"}
NO_OFFER = {"imap": "IMAP4", "pop3": "TOP", "smtp": "SIZE"}
UPSTREAM = '…, login: "u", upstream: 127.0.0.1:9143'


def coded(text: str) -> str:
    return base64.b64encode(text.encode("latin-1")).decode()


USER, PASSWORD = coded("u"), coded("pass")
XOAUTH2 = coded("user=u\1auth=Bearer tok\1\1")
MESSAGES = {
    "plain": [coded("\0u\0pass")],
    "login": [USER, PASSWORD],
    "xoauth2": [coded("user=u\1auth=Bearer pass\1\1")],
    "oauthbearer": [
        coded("n,a=u,\1host=127.0.0.1\1port=9143\1auth=Bearer pass\1\1"),
    ],
}
DUMMY = {"xoauth2": "", "oauthbearer": "AQ=="}


def met(protocol: str, *mechanisms: str, ir: bool = True) -> str:
    """What the backend says until the login: it offers these mechanisms.

    Args:
      ir: IMAP: whether it also offers SASL-IR.
    """
    match protocol:
        case "imap":
            offers = [f"AUTH={each}" for each in mechanisms]
            offers += ["SASL-IR"] if ir else []
            return f"B: * OK [CAPABILITY IMAP4rev1 {' '.join(offers)}] hi"
        case "pop3":
            sasl = f"SASL {' '.join(mechanisms)}⏎" if mechanisms else ""
            return f"B: +OK hi\nP: CAPA\nB: +OK⏎TOP⏎{sasl}."
        case _:
            auth = f"250-AUTH {' '.join(mechanisms)}⏎" if mechanisms else ""
            return f"B: 220 hi\nP: EHLO mx.test\nB: 250-x⏎{auth}250 SIZE"


def directives(protocol: str, mechanism: str, more: str = "") -> str:
    auth = f"{protocol}_auth plain xoauth2 oauthbearer;"
    return (
        f"protocol {protocol}; xclient off; proxy_smtp_auth on; {auth}"
        f"proxy_auth_mech {mechanism}; {more}"
    )


def run(
    protocol: str,
    script: str,
    mechanism: str,
    *,
    token: bool = False,
    more: str = "",
    **options: int,
) -> Stage:
    """Play what the backend says to a client that has sent a password, or a token."""
    opening = (TOKEN_OPENINGS if token else OPENINGS)[protocol]
    return play(
        f"{opening}\n{script}".replace("⟨x⟩", XOAUTH2),
        directives(protocol, mechanism, more),
        **options,
    )


def may_begin(protocol: str, mechanism: str) -> bool:
    """Whether the first message comes with the command."""
    return mechanism != "login" and (protocol != "pop3" or mechanism == "plain")


def exchange(protocol: str, mechanism: str, messages: list[str], *, ir: bool) -> str:
    """What is said from the command to the last message."""
    command = f"P: {COMMAND[protocol]} {mechanism.upper()}"
    if ir:
        return f"{command} {messages[0]}"
    lines = [command]
    for message in messages:
        lines += [f"B: {PROMPT[protocol]}", f"P: {message}"]
    return "\n".join(lines)


every_protocol = pytest.mark.parametrize("protocol", OPENINGS)
every_mechanism = pytest.mark.parametrize("mechanism", MESSAGES)


# Each mechanism


@pytest.mark.proves("proxy_auth_mech", "plain", "login", "xoauth2", "oauthbearer")
@every_mechanism
@every_protocol
def test_login(protocol: str, mechanism: str) -> None:
    said = exchange(
        protocol, mechanism, MESSAGES[mechanism], ir=may_begin(protocol, mechanism)
    )
    run(
        protocol,
        f"{met(protocol, mechanism.upper())}\n{said}\n{ENTERED[protocol]}",
        mechanism,
    )


@every_mechanism
def test_imap_without_initial_response(mechanism: str) -> None:
    said = exchange("imap", mechanism, MESSAGES[mechanism], ir=False)
    run(
        "imap",
        f"{met('imap', mechanism.upper(), ir=False)}\n{said}\n{ENTERED['imap']}",
        mechanism,
    )


@pytest.mark.proves("proxy_auth_mech", "command")
@every_protocol
def test_command_asks_nothing(protocol: str) -> None:
    script = {
        "imap": 'B: * OK hi\nP: a LOGIN "u" "pass"',
        "pop3": "B: +OK hi\nP: USER u\nB: +OK\nP: PASS pass",
        "smtp": "B: 220 hi\nP: HELO mx.test\nB: 250 x\nP: AUTH PLAIN AHUAcGFzcw==",
    }
    run(protocol, f"{script[protocol]}\n{ENTERED[protocol]}", "command")


@pytest.mark.parametrize(
    ("protocol", "size", "ir"),
    [
        # AUTH PLAIN, a space, base64 of a whole number of triples, CR LF
        ("pop3", 240, True),
        ("pop3", 244, False),
        ("smtp", 496, True),
        ("smtp", 500, False),
    ],
)
def test_a_line_has_a_limit(protocol: str, size: int, ir: bool) -> None:
    password = "p" * (size // 4 * 3 - 3)
    message = coded(f"\0u\0{password}")
    assert len(message) == size
    assert len(f"AUTH PLAIN {message}\r\n") - (255 if protocol == "pop3" else 512) < 4
    said = exchange(protocol, "plain", [message], ir=ir)
    answer = f"A| Auth-Pass: {password}"
    run(
        protocol,
        f"{answer}\n{met(protocol, 'PLAIN')}\n{said}\n{ENTERED[protocol]}",
        "plain",
        more="proxy_buffer 16k;",
    )


@pytest.mark.parametrize(
    "challenge", ["+", "+ ", "+ VXNlcm5hbWU6", "+ User Name", "+ \\x00"]
)
def test_imap_challenges_are_of_any_text(challenge: str) -> None:
    """RFC 3501 wants "+ "; some servers send "+" alone."""
    script = f"""
        {met("imap", "LOGIN")}
        P: a AUTHENTICATE LOGIN
        B: {challenge}
        P: {USER}
        B: * 1 EXISTS
        B: {challenge}
        P: {PASSWORD}
        {ENTERED["imap"]}
    """
    run("imap", script, "login")


@pytest.mark.parametrize("challenge", ["334", "334 ", "334-what⏎334 VXNlcm5hbWU6"])
def test_smtp_challenges_are_of_any_text(challenge: str) -> None:
    script = f"""
        {met("smtp", "LOGIN")}
        P: AUTH LOGIN
        B: {challenge}
        P: {USER}
        B: {challenge}
        P: {PASSWORD}
        {ENTERED["smtp"]}
    """
    run("smtp", script, "login")


@pytest.mark.parametrize("mechanism", ["xoauth2", "auto"])
def test_exchange_online_by_pop3(mechanism: str) -> None:
    """It closes the connection if command and token come in one line."""
    run(
        "pop3",
        f"""
        B: +OK The Microsoft Exchange POP3 service is ready. [TABPADIAUABSAA==]
        P: CAPA
        B: +OK⏎TOP⏎UIDL⏎SASL PLAIN XOAUTH2⏎USER⏎.
        P: AUTH XOAUTH2
        B: {PROMPT["pop3"]}
        P: {XOAUTH2}
        B: +OK User successfully authenticated.
        S: +OK User successfully authenticated.
        """,
        mechanism,
        token=True,
    )


def test_client_gets_only_the_answer_to_its_login() -> None:
    run(
        "imap",
        f"""
        B: * OK hi
        P: mp1 CAPABILITY
        B: * CAPABILITY IMAP4rev1 AUTH=PLAIN
        B: mp1 OK done
        P: a AUTHENTICATE PLAIN
        B: * 1 EXISTS
        B: +
        P: {MESSAGES["plain"][0]}
        B: * CAPABILITY IMAP4rev1 IDLE
        B: a OK [CAPABILITY IMAP4rev1 IDLE] in
        S: * CAPABILITY IMAP4rev1 IDLE
        S: a OK [CAPABILITY IMAP4rev1 IDLE] in
        """,
        "plain",
    )


def test_smtp_without_auth_needs_no_mechanism() -> None:
    play(
        f"{OPENINGS['smtp']}\nB: 220 hi\nP: EHLO mx.test\nB: 250 x\nS: 235 2.0.0 OK",
        "protocol smtp; xclient off; proxy_auth_mech plain;",
    )


@pytest.mark.parametrize("auth", ["AUTH PLAIN", "AUTH=PLAIN", "auth x plain"])
def test_smtp_spellings_of_the_offer(auth: str) -> None:
    run(
        "smtp",
        f"""
        B: 220 hi
        P: EHLO mx.test
        B: 250-x⏎250 {auth}
        P: AUTH PLAIN {MESSAGES["plain"][0]}
        {ENTERED["smtp"]}
        """,
        "plain",
    )


def test_smtp_has_ehlo_even_if_the_client_said_helo_and_after_xclient() -> None:
    play(
        f"""
        S: 220 mx.test ESMTP ready
        C: HELO me
        S: 250 mx.test
        C: AUTH PLAIN AHUAcGFzcw==
        Q: plain u pass
        A: OK
        B: 220 hi
        P: EHLO mx.test
        B: 250-x⏎250 AUTH PLAIN
        P: XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]
        B: 220 hi
        P: EHLO me
        B: 250-x⏎250 AUTH LOGIN
        P: AUTH LOGIN
        B: 334 x
        P: {USER}
        B: 334 x
        P: {PASSWORD}
        {ENTERED["smtp"]}
        """,
        "protocol smtp; proxy_smtp_auth on; proxy_auth_mech auto;",
    )


def test_smtp_is_greeted_anew_after_xclient() -> None:
    play(
        f"""
        {OPENINGS["smtp"]}
        B: 220 hi
        P: EHLO mx.test
        B: 250-x⏎250 AUTH PLAIN
        P: XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]
        B: 220 hi
        P: EHLO mx.test
        B: 250 x
        {FAILED["smtp"]}
        L: [error] upstream does not offer AUTH PLAIN while sending client HELO/EHLO to upstream, {UPSTREAM}
        """,
        "protocol smtp; proxy_smtp_auth on; proxy_auth_mech plain;",
    )


# The choice


AUTO = [
    (["OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"], False, "plain"),
    (["LOGIN", "PLAIN"], False, "plain"),
    (["LOGIN", "XOAUTH2"], False, "login"),
    (["PLAIN", "XOAUTH2", "OAUTHBEARER"], True, "oauthbearer"),
    (["PLAIN", "XOAUTH2"], True, "xoauth2"),
]


@pytest.mark.proves("proxy_auth_mech", "auto")
@pytest.mark.parametrize(("offers", "token", "mechanism"), AUTO)
@every_protocol
def test_auto(protocol: str, offers: list[str], token: bool, mechanism: str) -> None:
    messages = MESSAGES[mechanism]
    if token:
        messages = [
            coded(base64.b64decode(each).decode("latin-1").replace("pass", "tok"))
            for each in messages
        ]
    said = exchange(protocol, mechanism, messages, ir=may_begin(protocol, mechanism))
    run(
        protocol,
        f"{met(protocol, *offers)}\n{said}\n{ENTERED[protocol]}",
        "auto",
        token=token,
    )


@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        ("imap", 'B: * OK [CAPABILITY IMAP4rev1 AUTH=NTLM] hi\nP: a LOGIN "u" "pass"'),
        ("pop3", "B: +OK\nP: CAPA\nB: +OK⏎USER⏎SASL NTLM⏎.\nP: USER u\nB: +OK\nP: PASS pass"),
        ("pop3", "B: +OK\nP: CAPA\nB: -ERR what\nP: USER u\nB: +OK\nP: PASS pass"),
    ],
)  # fmt: skip
def test_auto_ends_with_the_command(protocol: str, script: str) -> None:
    run(protocol, f"{script}\n{ENTERED[protocol]}", "auto")


def test_password_that_replaces_a_token_is_none() -> None:
    run(
        "imap",
        f"""
        A| Auth-Pass: pass
        {met("imap", "XOAUTH2", "PLAIN")}
        P: a AUTHENTICATE PLAIN {MESSAGES["plain"][0]}
        {ENTERED["imap"]}
        """,
        "auto",
        token=True,
    )


@pytest.mark.parametrize(
    ("protocol", "said", "mechanism", "token", "missing"),
    [
        *((each, met(each), "plain", False, "PLAIN") for each in OPENINGS),
        *((each, met(each, "PLAIN"), "login", False, "LOGIN") for each in OPENINGS),
        *((each, met(each), "xoauth2", False, "XOAUTH2") for each in OPENINGS),
        *(
            (each, met(each, "PLAIN", "LOGIN"), "auto", True, "OAUTHBEARER or XOAUTH2")
            for each in OPENINGS
        ),
        ("pop3", "B: +OK\nP: CAPA\nB: -ERR what", "plain", False, "PLAIN"),
        ("pop3", met("pop3"), "auto", False, "PLAIN or LOGIN"),
        ("smtp", met("smtp", "NTLM"), "auto", False, "PLAIN or LOGIN"),
        (
            "imap",
            "B: * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi",
            "auto",
            False,
            "PLAIN or LOGIN",
        ),
    ],
)
def test_what_is_not_offered_is_not_tried(
    protocol: str, said: str, mechanism: str, token: bool, missing: str
) -> None:
    stage = run(protocol, f"{said}\n{FAILED[protocol]}", mechanism, token=token)
    (line,) = [text for level, text in stage.log.events if level == "error"]
    assert line.startswith(f"upstream does not offer AUTH {missing} while ")


# Answers


@every_mechanism
@every_protocol
def test_refusal(protocol: str, mechanism: str) -> None:
    said = exchange(
        protocol, mechanism, MESSAGES[mechanism], ir=may_begin(protocol, mechanism)
    )
    stage = run(
        protocol,
        f"""
        {met(protocol, mechanism.upper())}
        {said}
        B: {REFUSED[protocol]}
        S: {REFUSED[protocol]}
        S: ⟨close⟩
        """,
        mechanism,
        more="proxy_pass_error_message on;",
    )
    shown = REFUSED[protocol].removeprefix("a ")
    assert stage.log.events[-1] == (
        "info",
        f'upstream sent invalid response: "{shown}" while reading response from upstream'
        ', client: 127.0.0.1, server: 127.0.0.1:1143, login: "u", upstream: 127.0.0.1:9143',
    )


REASON = coded(json.dumps({"status": "401", "schemes": "bearer", "scope": "mail x"}))


@pytest.mark.parametrize("mechanism", DUMMY)
@every_protocol
def test_refusal_of_a_token(protocol: str, mechanism: str) -> None:
    said = exchange(
        protocol, mechanism, MESSAGES[mechanism], ir=may_begin(protocol, mechanism)
    )
    stage = run(
        protocol,
        f"""
        {met(protocol, mechanism.upper())}
        {said}
        B: {PROMPT[protocol]}{REASON}
        P: {DUMMY[mechanism]}
        B: {REFUSED[protocol]}
        S: {REFUSED[protocol]}
        S: ⟨close⟩
        """,
        mechanism,
        more="proxy_pass_error_message on;",
    )
    told = [text for level, text in stage.log.events if "token" in text]
    assert len(told) == 1
    assert told[0].startswith(
        'upstream refused the token: status="401" scope="mail x" while '
    )


@pytest.mark.parametrize(
    ("challenge", "shown"),
    [
        (coded('{"status": 400}'), ': status="400"'),
        (coded('{"scope": "a\\nb\\"\\u00e4"}'), ': scope="a\\x0Ab\\x22ä"'),
        (coded(json.dumps({"status": "x" * 200})), f': status="{"x" * 100}"'),
        (coded('{"status": "\\ud800"}'), ': status="\\xED\\xA0\\x80"'),
        (coded('{"status": ["a"], "scope": null}'), ""),
        (coded("[1]"), ""),
        (coded("[" * 2000), ""),
        (coded("nonsense"), ""),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_reason_of_a_refusal(challenge: str, shown: str) -> None:
    stage = run(
        "imap",
        f"""
        {met("imap", "XOAUTH2")}
        P: a AUTHENTICATE XOAUTH2 {MESSAGES["xoauth2"][0]}
        B: + {challenge}
        P: \\
        B: a NO no
        {FAILED["imap"]}
        """.replace("P: \\", "P: "),
        "xoauth2",
    )
    (line,) = [text for _, text in stage.log.events if "token" in text]
    assert line.startswith(f"upstream refused the token{shown} while ")


@every_mechanism
@every_protocol
def test_further_challenge_is_invalid(protocol: str, mechanism: str) -> None:
    said = exchange(
        protocol, mechanism, MESSAGES[mechanism], ir=may_begin(protocol, mechanism)
    )
    prompt = PROMPT[protocol]
    dummy = f"B: {prompt}e30=\nP: {DUMMY[mechanism]}" if mechanism in DUMMY else ""
    stage = run(
        protocol,
        f"""
        {met(protocol, mechanism.upper())}
        {said}
        {dummy}
        B: {prompt}more
        {FAILED[protocol]}
        """,
        mechanism,
    )
    level, line = stage.log.events[-1]
    assert level == "error"
    assert line.startswith(f'upstream sent invalid response: "{prompt}more"')


@every_protocol
def test_success_before_the_last_message_is_invalid(protocol: str) -> None:
    answer = ENTERED[protocol].partition("\n")[0]
    stage = run(
        protocol,
        f"""
        {met(protocol, "LOGIN")}
        P: {COMMAND[protocol]} LOGIN
        {answer}
        {FAILED[protocol]}
        """,
        "login",
    )
    assert stage.log.events[-1][0] == "error"


@pytest.mark.parametrize(
    ("protocol", "early"),
    [
        ("imap", "+ ⏎a OK in"),
        ("imap", "+ ⏎* BYE too much"),
        ("pop3", "+ ⏎+OK in"),
        ("smtp", "334 ⏎235 in"),
    ],
)
def test_answer_that_comes_too_early_ends_the_session(
    protocol: str, early: str
) -> None:
    run(
        protocol,
        f"""
        {met(protocol, "LOGIN")}
        P: {COMMAND[protocol]} LOGIN
        B: {early}
        {FAILED[protocol]}
        """,
        "login",
    )


@every_protocol
def test_timeout_is_that_of_the_backend(protocol: str) -> None:
    run(
        protocol,
        f"""
        {met(protocol, "LOGIN")}
        P: {COMMAND[protocol]} LOGIN
        {FAILED[protocol].partition(chr(10))[0]}
        at 7
        S: ⟨close⟩
        """,
        "login",
        more="timeout 7s;",
    )


# What may not be sent, and what may not be seen


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
def test_a_name_cannot_add_a_field(mechanism: str) -> None:
    stage = play(
        f"""
        S: * OK IMAP4 ready
        C: a LOGIN u pass
        Q: plain u pass
        A: OK
        A| Auth-User: u␁auth=Bearer evil
        {met("imap", mechanism.upper())}
        {FAILED["imap"]}
        """.replace("␁", "\1"),
        directives("imap", mechanism),
    )
    level, line = stage.log.events[-1]
    assert level == "error"
    assert line.startswith('login of "u\\x01auth=Bearer evil" has octets that AUTH ')


def test_login_without_a_secret_is_not_sent() -> None:
    stage = play(
        f"""
        S: 220 mx.test ESMTP ready
        C: AUTH EXTERNAL dQ==
        Q: ⟨any⟩
        A: OK
        {met("smtp", "PLAIN")}
        {FAILED["smtp"]}
        """,
        "protocol smtp; smtp_auth external; xclient off; proxy_smtp_auth on;"
        "proxy_auth_mech plain;",
    )
    assert stage.log.events[-1][1].startswith(
        "no password available while sending AUTH"
    )


@every_mechanism
@every_protocol
def test_backend_that_repeats_the_message_shows_no_secret(
    protocol: str, mechanism: str
) -> None:
    last = MESSAGES[mechanism][-1]
    said = exchange(
        protocol, mechanism, MESSAGES[mechanism], ir=may_begin(protocol, mechanism)
    )
    stage = run(
        protocol,
        f"""
        {met(protocol, mechanism.upper())}
        {said}
        B: {REFUSED[protocol]} {last}
        {FAILED[protocol]}
        """,
        mechanism,
        level=8,
    )
    log = "\n".join(text for _, text in stage.log.events)
    assert "upstream sent invalid response" in log
    for message in MESSAGES[mechanism]:
        assert message == USER or message not in log
