"""STARTTLS with backends: what is asked, and what an attacker on the way can do.

No password goes to a backend without TLS: a script fails if the proxy sends anything that
is not in it.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.play import FAILED, OPENINGS, Stage, load_server, parse, play

DIRECTIVES = (
    "proxy_ssl starttls; proxy_ssl_verify off; xclient off; proxy_smtp_auth on;"
)
UPSTREAM = '…, login: "u", upstream: 127.0.0.1:9143'
HANDSHAKE = f"while SSL handshaking to upstream, {UPSTREAM}"
READING = f"while reading response from upstream, {UPSTREAM}"
ASKED = {
    "imap": "B: * OK [CAPABILITY IMAP4 STARTTLS LOGINDISABLED] hi\nP: mp2 STARTTLS",
    "pop3": "B: +OK hi\nP: CAPA\nB: +OK\nB: STLS\nB: .\nP: STLS",
    "smtp": "B: 220 hi\nP: EHLO mx.test\nB: 250-mx\nB: 250 STARTTLS\nP: STARTTLS",
}
"""Until the backend may agree."""
AGREED = {"imap": "mp2 OK go", "pop3": "+OK go", "smtp": "220 go"}
ENTERED = {
    "imap": """
        B: ⟨tls⟩
        P: mp3 CAPABILITY
        B: * CAPABILITY IMAP4 SASL-IR
        B: mp3 OK
        P: a LOGIN "u" "p"
        B: a OK in
        S: a OK in
        """,
    "pop3": """
        B: ⟨tls⟩
        P: USER u
        B: +OK
        P: PASS p
        B: +OK in
        S: +OK in
        """,
    "smtp": """
        B: ⟨tls⟩
        P: EHLO mx.test
        B: 250 mx
        P: AUTH PLAIN AHUAcA==
        B: 235 in
        S: 235 2.0.0 OK
        """,
}
PROTOCOLS = list(OPENINGS)
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def session(protocol: str, script: str, directives: str = "") -> Stage:
    """Play what follows the answer of the auth server."""
    return play(
        f"{OPENINGS[protocol]}\n{script}",
        f"protocol {protocol}; {DIRECTIVES} {directives}",
    )


def fails(protocol: str, script: str, line: str, directives: str = "") -> None:
    """Play what makes the login fail, for the reason that is logged."""
    session(protocol, f"{script}\n{FAILED[protocol]}\nL: {line}", directives)


@pytest.mark.proves("proxy_ssl", "starttls")
@each_protocol
def test_login_after_starttls(protocol: str) -> None:
    session(protocol, f"{ASKED[protocol]}\nB: {AGREED[protocol]}\n{ENTERED[protocol]}")


def test_imap_is_asked_if_its_greeting_does_not_tell() -> None:
    session(
        "imap",
        f"""
        B: * OK hi
        P: mp1 CAPABILITY
        B: * CAPABILITY IMAP4 starttls
        B: mp1 OK
        P: mp2 STARTTLS
        B: * 1 EXISTS
        B: mp2 OK
        {ENTERED["imap"]}
        """,
    )


def test_pop3_that_does_not_know_capa_is_asked_anyway() -> None:
    session(
        "pop3",
        f"""
        B: +OK hi
        P: CAPA
        B: -ERR what
        P: STLS
        B: +OK
        {ENTERED["pop3"]}
        """,
    )


def test_smtp_says_ehlo_for_a_client_that_said_helo() -> None:
    play(
        f"""
        S: 220 mx.test ESMTP ready
        C: HELO c.test
        S: 250 mx.test
        C: AUTH PLAIN AHUAcA==
        Q: ⟨any⟩
        A: OK
        {ASKED["smtp"]}
        B: 220 go
        {ENTERED["smtp"]}
        """,
        f"protocol smtp; {DIRECTIVES}",
    )


def test_smtp_tells_of_the_client_in_tls_alone() -> None:
    play(
        f"""
        {OPENINGS["smtp"]}
        {ASKED["smtp"]}
        B: 220-go
        B: 220 on
        B: ⟨tls⟩
        P: EHLO mx.test
        B: 250-mx
        B: 250 XCLIENT ADDR
        P: XCLIENT ADDR=127.0.0.1
        B: 220 mx
        P: AUTH PLAIN AHUAcA==
        B: 235 in
        S: 235 2.0.0 OK
        """,
        f"protocol smtp; {DIRECTIVES.replace('xclient off', 'xclient auto')}",
    )


# What an attacker on the way can do


STRIPPED = {
    "imap": [
        "B: * OK [CAPABILITY IMAP4 AUTH=PLAIN] hi",
        "B: * OK hi\nP: mp1 CAPABILITY\nB: * CAPABILITY IMAP4 XSTARTTLS\nB: mp1 OK",
    ],
    "pop3": [
        "B: +OK hi\nP: CAPA\nB: +OK\nB: USER\nB: .",
        "B: +OK hi\nP: CAPA\nB: +OK\nB: XSTLS\nB: .",
    ],
    "smtp": [
        "B: 220 hi\nP: EHLO mx.test\nB: 250-mx\nB: 250 AUTH PLAIN",
        "B: 220 hi\nP: EHLO mx.test\nB: 250 STARTTLS",
    ],
}


@pytest.mark.parametrize(
    ("protocol", "script"),
    [(protocol, script) for protocol in PROTOCOLS for script in STRIPPED[protocol]],
)
def test_starttls_is_stripped(protocol: str, script: str) -> None:
    fails(
        protocol,
        f"{script}\nP: ⟨close⟩",
        f"[error] upstream does not offer STARTTLS {HANDSHAKE}",
    )


REFUSED = {
    "imap": ["mp2 NO not now", "mp2 BAD what", "mp2 OKAY", "mp2"],
    "pop3": ["-ERR not now", "* OK", "-ERR [SYS/TEMP] later"],
    "smtp": ["454 not now", "501 what", "250 go", "22 x"],
}


@pytest.mark.parametrize("directives", ["", "proxy_pass_error_message on;"])
@pytest.mark.parametrize(
    ("protocol", "answer"),
    [(protocol, answer) for protocol in PROTOCOLS for answer in REFUSED[protocol]],
)
def test_starttls_is_refused(protocol: str, answer: str, directives: str) -> None:
    if answer == "mp2":
        line = f'upstream sent invalid response: "mp2" {READING}'
    else:
        said = answer.removeprefix("mp2 ")
        line = f'upstream refused STARTTLS: "{said}" {HANDSHAKE}'
    fails(
        protocol,
        f"{ASKED[protocol]}\nB: {answer}\nP: ⟨close⟩",
        f"[error] {line}",
        directives,
    )


INJECTED = {
    "imap": ["* CAPABILITY X", "mp3 OK", "a OK in", ""],
    "pop3": ["+OK in", "-ERR x", ""],
    "smtp": ["250 mx", "235 in", ""],
}


@pytest.mark.parametrize(
    ("protocol", "injected"),
    [(protocol, text) for protocol in PROTOCOLS for text in INJECTED[protocol]],
)
def test_octets_behind_the_agreement(protocol: str, injected: str) -> None:
    """As they arrive with it, they were not sent in TLS."""
    fails(
        protocol,
        f"{ASKED[protocol]}\nB: {AGREED[protocol]}\nB| {injected}\nP: ⟨close⟩",
        "[crit] upstream sent data before TLS, possible injection: "
        f'"{injected}" {HANDSHAKE}',
    )


@each_protocol
def test_octets_that_arrive_during_the_handshake(protocol: str) -> None:
    fails(
        protocol,
        f"{ASKED[protocol]}\nB: {AGREED[protocol]}\nB: * OK x\nP: ⟨close⟩",
        "[error] SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::"
        f"wrong version number) {HANDSHAKE}",
    )


@each_protocol
def test_backend_that_leaves_instead_of_the_handshake(protocol: str) -> None:
    fails(
        protocol,
        f"{ASKED[protocol]}\nB: {AGREED[protocol]}\nB: ⟨close⟩\nP: ⟨close⟩",
        f"[error] peer closed connection in SSL handshake {HANDSHAKE}",
    )


EARLY = {
    "imap": "B: * OK [CAPABILITY STARTTLS] hi\nB| mp2 OK",
    "pop3": "B: +OK hi\nB| +OK",
    "smtp": "B: 220 hi\nB| 250 STARTTLS",
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_that_come_before_their_commands(protocol: str) -> None:
    said = EARLY[protocol].rpartition("B| ")[2]
    fails(
        protocol,
        f"{EARLY[protocol]}\nP: ⟨close⟩",
        f'[error] upstream sent invalid response: "{said}" {READING}',
    )


@pytest.mark.parametrize("directives", ["", "proxy_ssl_verify on;"])
@pytest.mark.parametrize("mode", ["off", "starttls"])
def test_preauth(mode: str, directives: str) -> None:
    """A backend that has logged in somebody already; and then STARTTLS is not allowed."""
    ours = DIRECTIVES.replace("starttls", mode)
    if directives:
        ours = ours.replace("proxy_ssl_verify off;", directives)
    play(
        f"""
        {OPENINGS["imap"]}
        B: * PREAUTH [CAPABILITY IMAP4] welcome
        P: ⟨close⟩
        {FAILED["imap"]}
        L: [error] upstream sent invalid response: "* PREAUTH [CAPABILITY IMAP4] welcome" {READING}
        """,
        f"protocol imap; {ours}",
    )


def test_bye_instead_of_the_capabilities() -> None:
    fails(
        "imap",
        "B: * OK hi\nP: mp1 CAPABILITY\nB: * BYE busy\nP: ⟨close⟩",
        f'[error] upstream sent invalid response: "* BYE busy" {READING}',
    )


def test_client_does_not_see_answers_to_what_it_did_not_say() -> None:
    fails(
        "imap",
        "B: * OK hi\nP: mp1 CAPABILITY\nB: mp1 BAD what\nP: ⟨close⟩",
        f'[error] upstream sent invalid response: "mp1 BAD what" {READING}',
        "proxy_pass_error_message on;",
    )


# What counts is what was said in TLS


def test_logins_may_be_forbidden_in_clear_text_alone() -> None:
    session("imap", f"{ASKED['imap']}\nB: mp2 OK\n{ENTERED['imap']}")


def test_logins_are_forbidden_in_tls_too() -> None:
    fails(
        "imap",
        f"""
        {ASKED["imap"]}
        B: mp2 OK
        B: ⟨tls⟩
        P: mp3 CAPABILITY
        B: * CAPABILITY IMAP4 LOGINDISABLED
        B: mp3 OK
        P: ⟨close⟩
        """,
        f"[error] upstream does not allow logins {HANDSHAKE}",
    )


@pytest.mark.parametrize(
    ("before", "after", "login"),
    [
        ("LITERAL+", "IMAP4", "P: a LOGIN {1}\nB: a NO x\nP: ⟨close⟩"),
        ("IMAP4", "LITERAL+", 'P: a LOGIN {1+}\nP: u {1+}\nP: "\nB: a OK in'),
    ],
)
def test_imap_capabilities_in_tls_count(before: str, after: str, login: str) -> None:
    """With a password that needs a literal."""
    play(
        f"""
        {OPENINGS["imap"]}
        A| Auth-Pass: "
        B: * OK [CAPABILITY {before} STARTTLS] hi
        P: mp2 STARTTLS
        B: mp2 OK
        B: ⟨tls⟩
        P: mp3 CAPABILITY
        B: * CAPABILITY {after}
        B: mp3 OK
        {login}
        S: {"a OK in" if "in" in login else "* BAD internal server error"}
        """,
        f"protocol imap; {DIRECTIVES}",
    )


def test_smtp_extensions_in_tls_count() -> None:
    """XCLIENT was offered in clear text, by whoever."""
    play(
        f"""
        {OPENINGS["smtp"]}
        B: 220 hi
        P: EHLO mx.test
        B: 250-mx
        B: 250-XCLIENT ADDR
        B: 250 STARTTLS
        P: STARTTLS
        B: 220 go
        {ENTERED["smtp"]}
        """,
        f"protocol smtp; {DIRECTIVES.replace('xclient off', 'xclient auto')}",
    )


# TLS from the first octet on


GREETED = {
    "imap": 'B: * OK [CAPABILITY IMAP4] hi\nP: a LOGIN "u" "p"\nB: a OK in\nS: a OK in',
    "pop3": "B: +OK hi\nP: USER u\nB: +OK\nP: PASS p\nB: +OK in\nS: +OK in",
    "smtp": (
        "B: 220 hi\nP: HELO mx.test\nB: 250 mx\n"
        "P: AUTH PLAIN AHUAcA==\nB: 235 in\nS: 235 2.0.0 OK"
    ),
}


@pytest.mark.proves("proxy_ssl", "on")
@each_protocol
def test_login_in_tls(protocol: str) -> None:
    """The backend says the same as in clear text, and is told the same."""
    play(
        f"{OPENINGS[protocol]}\nB: ⟨tls⟩\n{GREETED[protocol]}",
        f"protocol {protocol}; {DIRECTIVES.replace('starttls', 'on')}",
    )


@each_protocol
def test_backend_that_speaks_clear_text(protocol: str) -> None:
    play(
        f"""
        {OPENINGS[protocol]}
        {GREETED[protocol].partition(chr(10))[0]}
        P: ⟨close⟩
        {FAILED[protocol]}
        L: [error] SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) {HANDSHAKE}
        """,
        f"protocol {protocol}; {DIRECTIVES.replace('starttls', 'on')}",
    )


def test_header_goes_before_tls() -> None:
    play(
        f"""
        {OPENINGS["imap"]}
        P: PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143
        B: ⟨tls⟩
        {GREETED["imap"]}
        """,
        f"protocol imap; {DIRECTIVES.replace('starttls', 'on')} proxy_protocol on;",
    )


@pytest.mark.parametrize("mode", ["on", "starttls"])
def test_handshake_has_the_time_of_the_greeting(mode: str) -> None:
    script = "" if mode == "on" else f"{ASKED['imap']}\nB: mp2 OK"
    play(
        f"""
        {OPENINGS["imap"]}
        {script}
        P: ⟨close⟩
        {FAILED["imap"]}
        at 20
        L: [info] upstream timed out (110: Connection timed out) {HANDSHAKE}
        """,
        f"protocol imap; timeout 20s; {DIRECTIVES.replace('starttls', mode)}",
    )


def test_login_is_forbidden_by_the_greeting() -> None:
    play(
        f"""
        {OPENINGS["imap"]}
        B: ⟨tls⟩
        B: * OK [CAPABILITY IMAP4 LOGINDISABLED] hi
        P: ⟨close⟩
        {FAILED["imap"]}
        L: [error] upstream does not allow logins {HANDSHAKE}
        """,
        f"protocol imap; {DIRECTIVES.replace('starttls', 'on')}",
    )


# Auth-Server-SSL


@pytest.mark.parametrize("proxy_ssl", ["off", "on", "starttls"])
@pytest.mark.parametrize("header", ["on", "ON", "starttls"])
def test_auth_server_chooses(proxy_ssl: str, header: str) -> None:
    opening = OPENINGS["imap"].replace("A: OK", f"A: OK\nA| Auth-Server-SSL: {header}")
    tls = f"{ASKED['imap']}\nB: mp2 OK\n{ENTERED['imap']}"
    if header != "starttls":
        tls = f"B: ⟨tls⟩\n{GREETED['imap']}"
    play(
        f"{opening}\n{tls}",
        f"protocol imap; {DIRECTIVES.replace('starttls', proxy_ssl)}",
    )


def test_auth_server_wants_tls_of_a_stock_configuration() -> None:
    opening = OPENINGS["imap"].replace("A: OK", "A: OK\nA| Auth-Server-SSL: on")
    play(f"{opening}\nB: ⟨tls⟩\n{GREETED['imap']}", "protocol imap;")


def test_auth_server_wants_no_tls_where_there_is_none() -> None:
    opening = OPENINGS["imap"].replace("A: OK", "A: OK\nA| Auth-Server-SSL: off")
    play(f"{opening}\n{GREETED['imap']}", "protocol imap;")


@pytest.mark.parametrize(
    ("proxy_ssl", "value", "wanted"),
    [
        ("on", "off", "on or starttls, as proxy_ssl says"),
        ("starttls", "OFF", "on or starttls, as proxy_ssl says"),
        ("off", "yes", "on, off or starttls"),
        ("on", "ssl", "on, off or starttls"),
    ],
)
def test_auth_server_cannot_switch_tls_off(
    proxy_ssl: str, value: str, wanted: str
) -> None:
    opening = OPENINGS["imap"].replace("A: OK", f"A: OK\nA| Auth-Server-SSL: {value}")
    play(
        f"""
        {opening}
        {FAILED["imap"]}
        L: [error] auth http server 127.0.0.1:9000 sent invalid "Auth-Server-SSL":"{value.lower() if value == "OFF" else value}", wanted {wanted} while in http auth state, …, login: "u"
        """,
        f"protocol imap; {DIRECTIVES.replace('starttls', proxy_ssl)}",
    )


# Servers of a group


def of_a_group(script: str, member: str, directives: str, header: str = "") -> Stage:
    """Play what follows an answer that names a group of one server."""
    answer = "A: OK\nA| Auth-Server: g\nA| Auth-Port: 1"
    if header:
        answer += f"\nA| Auth-Server-SSL: {header}"
    server = load_server(
        f"protocol imap; proxy_ssl_verify off; {directives}",
        f"upstream g {{ server 127.0.0.1:9143 {member}; }}",
    )
    stage = Stage(server)
    steps = parse(f"{OPENINGS['imap'].replace('A: OK', answer)}\n{script}")
    trio.run(stage.perform, steps, clock=MockClock(autojump_threshold=0))
    return stage


CLEAR = GREETED["imap"]
TLS = f"B: ⟨tls⟩\n{GREETED['imap']}"
STARTTLS = f"{ASKED['imap']}\nB: mp2 OK\n{ENTERED['imap']}"


@pytest.mark.parametrize(
    ("proxy_ssl", "member", "header", "script"),
    [
        ("off", "", "", CLEAR),
        ("on", "", "", TLS),
        ("off", "ssl=on", "", TLS),
        ("off", "ssl=starttls", "", STARTTLS),
        ("on", "ssl=starttls", "", STARTTLS),
        ("on", "ssl=off", "", CLEAR),
        ("off", "", "on", TLS),
        ("off", "", "starttls", STARTTLS),
        ("off", "ssl=on", "starttls", STARTTLS),
        ("on", "ssl=off", "on", TLS),
        ("off", "ssl=off", "off", CLEAR),
    ],
)
@pytest.mark.proves("server", "ssl=")
def test_which_mode_counts(
    proxy_ssl: str, member: str, header: str, script: str
) -> None:
    of_a_group(script, member, f"proxy_ssl {proxy_ssl};", header)


@pytest.mark.proves("server", "name=")
@pytest.mark.parametrize(
    ("member", "directives", "name"),
    [
        ("", "", "127.0.0.1"),
        ("", "proxy_ssl_name b.test;", "b.test"),
        ("name=a.test", "", "a.test"),
        ("name=a.test", "proxy_ssl_name b.test;", "a.test"),
    ],
)
def test_which_name_counts(member: str, directives: str, name: str) -> None:
    stage = of_a_group(TLS, member, f"proxy_ssl on; {directives}")
    (wire,) = stage.network.wires["P"]
    assert wire.verified == name


def test_auth_server_cannot_switch_the_tls_of_a_server_off() -> None:
    of_a_group(
        f"""
        P: ⟨close⟩
        {FAILED["imap"]}
        L: [error] auth http server sent invalid "Auth-Server-SSL":"off" while connecting to upstream, {UPSTREAM}
        """,
        "ssl=on",
        "",
        "off",
    )
