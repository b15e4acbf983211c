"""What is offered in TLS counts, for the login and for ID and XCLIENT."""

from __future__ import annotations

import base64

import pytest

from tests.play import FAILED, OPENINGS, Stage, play

PLAIN = base64.b64encode(b"\0u\0p").decode()
IDENTITY = (
    '("x-session-id" "18f.2a.1" "x-originating-ip" "127.0.0.1"'
    ' "x-originating-port" "40000" "x-connected-ip" "127.0.0.1"'
    ' "x-connected-port" "1143" "x-proxy-ttl" "7" "x-client-transport" "insecure")'
)
ATTRIBUTES = (
    "ADDR=127.0.0.1 PORT=40000 DESTADDR=127.0.0.1 DESTPORT=1143"
    " SESSION=18f.2a.1 TTL=7 CLIENT-TRANSPORT=insecure"
)


def before_tls(protocol: str, *offers: str) -> str:
    """What is said until the handshake is over.

    Args:
      offers: what the backend announces besides STARTTLS.
    """
    match protocol:
        case "imap":
            told = f"* OK [CAPABILITY IMAP4 STARTTLS {' '.join(offers)}] hi"
            said = f"B: {told}\nP: mp2 STARTTLS\nB: mp2 OK"
        case "pop3":
            lines = "".join(f"{each}⏎" for each in ("STLS", *offers))
            said = f"B: +OK [XCLIENT] hi\nP: CAPA\nB: +OK⏎{lines}.\nP: STLS\nB: +OK"
        case _:
            lines = "".join(f"250-{each}⏎" for each in offers)
            said = f"B: 220 hi\nP: EHLO mx.test\nB: 250-mx⏎{lines}250 STARTTLS"
            said += "\nP: STARTTLS\nB: 220 go"
    return f"{said}\nB: ⟨tls⟩"


def in_tls(protocol: str, *offers: str) -> str:
    """What the backend is asked then, and what it announces."""
    match protocol:
        case "imap":
            told = f"* CAPABILITY IMAP4 {' '.join(offers)}"
            return f"P: mp3 CAPABILITY\nB: {told}\nB: mp3 OK"
        case "pop3":
            lines = "".join(f"{each}⏎" for each in offers)
            return f"P: CAPA\nB: +OK⏎{lines}."
        case _:
            lines = "".join(f"250-{each}⏎" for each in offers)
            return f"P: EHLO mx.test\nB: 250-mx⏎{lines}250 SIZE"


def session(protocol: str, script: str, directives: str) -> Stage:
    return play(
        f"{OPENINGS[protocol]}\n{script}",
        f"protocol {protocol}; proxy_ssl starttls; proxy_ssl_verify off;"
        f"proxy_smtp_auth on; {directives}",
    )


MECHANISMS = {
    "imap": ("AUTH=PLAIN", "AUTH=LOGIN"),
    "pop3": ("SASL PLAIN", "SASL LOGIN"),
    "smtp": ("AUTH PLAIN", "AUTH LOGIN"),
}
BY_PLAIN = {
    "imap": f"P: a AUTHENTICATE PLAIN\nB: +\nP: {PLAIN}\nB: a OK in\nS: a OK in",
    "pop3": f"P: AUTH PLAIN {PLAIN}\nB: +OK in\nS: +OK in",
    "smtp": f"P: AUTH PLAIN {PLAIN}\nB: 235 in\nS: 235 2.0.0 OK",
}
each_protocol = pytest.mark.parametrize("protocol", OPENINGS)


@each_protocol
def test_mechanism_that_is_offered_in_tls(protocol: str) -> None:
    plain, _ = MECHANISMS[protocol]
    session(
        protocol,
        f"{before_tls(protocol)}\n{in_tls(protocol, plain)}\n{BY_PLAIN[protocol]}",
        "xclient off; proxy_auth_mech plain;",
    )


@each_protocol
def test_mechanism_that_was_offered_before_tls_only(protocol: str) -> None:
    plain, login = MECHANISMS[protocol]
    stage = session(
        protocol,
        f"{before_tls(protocol, plain)}\n{in_tls(protocol, login)}\n{FAILED[protocol]}",
        "xclient off; proxy_auth_mech plain;",
    )
    level, line = stage.log.events[-1]
    assert level == "error"
    assert line.startswith("upstream does not offer AUTH PLAIN while ")


def test_sasl_ir_that_was_offered_before_tls_only() -> None:
    session(
        "imap",
        f"{before_tls('imap', 'SASL-IR')}\n{in_tls('imap', 'AUTH=PLAIN')}\n{BY_PLAIN['imap']}",
        "proxy_auth_mech plain;",
    )


@pytest.mark.parametrize("before", [(), ("ID",)])
def test_id_in_tls(before: tuple[str, ...]) -> None:
    session(
        "imap",
        f"""
        {before_tls("imap", *before)}
        {in_tls("imap", "ID")}
        P: mp4 ID {IDENTITY}
        B: mp4 OK
        P: a LOGIN "u" "p"
        B: a OK in
        S: a OK in
        """,
        "proxy_forward id;",
    )


def test_id_that_was_offered_before_tls_only() -> None:
    session(
        "imap",
        f"""
        {before_tls("imap", "ID")}
        {in_tls("imap")}
        P: a LOGIN "u" "p"
        B: a OK in
        S: a OK in
        """,
        "proxy_forward id;",
    )


def test_pop3_has_one_greeting_for_xclient() -> None:
    """It comes before TLS, and what it announces is sent in TLS."""
    session(
        "pop3",
        f"""
        {before_tls("pop3")}
        P: XCLIENT {ATTRIBUTES}
        B: +OK
        P: USER u
        B: +OK
        P: PASS p
        B: +OK in
        S: +OK in
        """,
        "proxy_forward xclient;",
    )


@pytest.mark.parametrize(
    ("before", "inside", "sent"),
    [
        (("XCLIENT TTL",), (), ""),
        ((), ("XCLIENT TTL",), "TTL=7"),
        (("XCLIENT PORT",), ("XCLIENT TTL",), "TTL=7"),
    ],
)
def test_smtp_xclient_in_tls(
    before: tuple[str, ...], inside: tuple[str, ...], sent: str
) -> None:
    told = f"P: XCLIENT {sent}\nB: 220 hi\n" if sent else ""
    session(
        "smtp",
        f"""
        {before_tls("smtp", *before)}
        {in_tls("smtp", *inside)}
        {told}P: AUTH PLAIN {PLAIN}
        B: 235 in
        S: 235 2.0.0 OK
        """,
        "proxy_forward xclient;",
    )


@pytest.mark.parametrize(
    ("protocol", "sent", "answer"),
    [
        ("imap", f"mp4 ID {IDENTITY}", "mp4 NO not you"),
        ("pop3", f"XCLIENT {ATTRIBUTES}", "-ERR not you"),
    ],
)
def test_client_does_not_see_answers_to_what_it_does_not_know_of(
    protocol: str, sent: str, answer: str
) -> None:
    session(
        protocol,
        f"""
        {before_tls(protocol)}
        {in_tls(protocol, "ID") if protocol == "imap" else ""}
        P: {sent}
        B: {answer}
        {FAILED[protocol]}
        """,
        "proxy_forward id xclient; proxy_pass_error_message on;",
    )
