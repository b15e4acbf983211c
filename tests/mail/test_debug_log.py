"""What level debug shows of a dialogue: each line, who said it, and what was being done."""

from __future__ import annotations

import pytest

from mailproxy.errors import BackendError
from mailproxy.log import DEBUG, INFO, SessionInfo
from mailproxy.mail.client import Client
from mailproxy.mail.trace import MAX_SHOWN, Secrets, TracedLines, backend_lines, shown
from mailproxy.net.lines import LineStream
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemoryWire
from tests.play import load_server, play
from tests.security.acts import b64

TLS = "starttls on; ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"


def debug_log(script: str, directives: str) -> list[str]:
    """The debug lines of a session; `…` stands for what is done until a login."""
    stage = play(script, directives, level=DEBUG)
    return [
        line.replace(" while in auth state", " …")
        .replace(" while in http auth state", " …")
        .replace(" auth http server:", " auth:")
        for line in stage.log.debug
    ]


def test_a_quoted_login_by_imap() -> None:
    lines = debug_log(
        """
        S: * OK IMAP4 ready
        C: b LOGIN "u" Pa55w0rd
        Q: plain u Pa55w0rd
        A: OK
        A| Auth-Pass: 0ther secret
        B: * OK ready
        P: b LOGIN "u" "0ther secret"
        B: b OK in as u with 0ther secret
        S: b OK in as u with 0ther secret
        """,
        "protocol imap;",
    )
    assert lines[-5:-2] == [
        'from upstream: "* OK ready" while connecting to upstream',
        'to upstream: "b LOGIN ..." while sending LOGIN command to upstream',
        'from upstream: "..." while sending LOGIN command to upstream',
    ]


def test_a_login_by_imap() -> None:
    assert debug_log(
        """
        S: * OK IMAP4 ready
        C: a NOOP
        S: a OK completed
        C: b LOGIN u {8}
        S: + OK
        C: Pa55w0rd
        Q: plain u Pa55w0rd
        A: OK
        A| Auth-Pass: 0ther secret
        B: * OK ready
        P: b LOGIN {1}
        B: + go
        P: u {12}
        B: + go
        P: 0ther secret
        B: * OK hello
        B| b OK in
        S: * OK hello
        S: b OK in
        C: c SELECT INBOX
        P: c SELECT INBOX
        """,
        "protocol imap; auth_http_keepalive off; proxy_login literal;",
    ) == [
        'to client: "* OK IMAP4 ready" while sending client greeting line',
        'from client: "a NOOP" …',
        'to client: "a OK completed" …',
        'from client: "b LOGIN ..." …',
        'to client: "+ OK" …',
        'from client: "..." …',
        'from client: "..." …',
        'to auth: "GET /auth HTTP/1.0"',
        'to auth: "Host: 127.0.0.1"',
        'to auth: "Auth-Method: plain"',
        'to auth: "Auth-User: u"',
        'to auth: "Auth-Pass: ..."',
        'to auth: "Auth-Protocol: imap"',
        'to auth: "Auth-Login-Attempt: 1"',
        'to auth: "Client-IP: 127.0.0.1"',
        'from auth: "HTTP/1.0 200 OK"',
        'from auth: "Auth-Status: OK"',
        'from auth: "Auth-Pass: ..."',
        'from auth: "Auth-Server: 127.0.0.1"',
        'from auth: "Auth-Port: 9143"',
        'upstream is "127.0.0.1:9143" while connecting to upstream',
        'from upstream: "* OK ready" while connecting to upstream',
        'to upstream: "b LOGIN ..." while sending LOGIN command to upstream',
        'from upstream: "+ go" while sending LOGIN command to upstream',
        'to upstream: "..." while sending user name to upstream',
        'from upstream: "+ go" while sending user name to upstream',
        'to upstream: "..." while sending password to upstream',
        'from upstream: "* OK hello" while sending password to upstream',
        'from upstream: "b OK in" while sending password to upstream',
        "client sent 49 and got 61 octets",
        "upstream sent 45 and got 51 octets",
    ]


def test_a_login_by_pop3() -> None:
    assert debug_log(
        """
        S: +OK POP3 ready
        C: CAPAS
        S: -ERR invalid command
        C: USER u
        S: +OK
        C: PASS Pa55w0rd
        Q: ⟨any⟩
        A: NO not with Pa55w0rd
        S: -ERR not with Pa55w0rd
        """,
        "protocol pop3; auth_http_header X-Key key-of-ours;",
    ) == [
        'to client: "+OK POP3 ready" while sending client greeting line',
        'from client: "..." …',
        'to client: "-ERR invalid command" …',
        'from client: "USER u" …',
        'to client: "+OK" …',
        'from client: "PASS ..." …',
        'to auth: "GET /auth HTTP/1.0"',
        'to auth: "Host: 127.0.0.1"',
        'to auth: "Auth-Method: plain"',
        'to auth: "Auth-User: u"',
        'to auth: "Auth-Pass: ..."',
        'to auth: "Auth-Protocol: pop3"',
        'to auth: "Auth-Login-Attempt: 1"',
        'to auth: "Client-IP: 127.0.0.1"',
        'to auth: "X-Key: ..."',
        'to auth: "Connection: keep-alive"',
        'from auth: "HTTP/1.0 200 OK"',
        'from auth: "..."',
        'to client: "..." …',
        "client sent 30 and got 67 octets",
    ]


def test_a_login_by_smtp_in_tls() -> None:
    log = debug_log(
        f"""
        S: 220 mx.test ESMTP ready
        C: STARTTLS
        S: 220 2.0.0 Start TLS
        C: ⟨tls⟩
        C: EHLO me
        S: 250-mx.test
        S: 250 AUTH PLAIN LOGIN
        C: AUTH LOGIN {b64("u")}
        S: 334 {b64("Password:")}
        C: {b64("Pa55w0rd")}
        Q: ⟨any⟩
        A: OK
        B: 220 ready
        P: EHLO mx.test
        B: 250-there
        B| 250 XCLIENT
        P: XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]
        B: 220 ready
        P: EHLO me
        B: 250 there
        P: AUTH PLAIN {b64(chr(0) + "u" + chr(0) + "Pa55w0rd")}
        B: 235 in
        S: 235 2.0.0 OK
        """,
        f"protocol smtp; proxy_smtp_auth on; {TLS}",
    )
    assert [line for line in log if " auth:" not in line] == [
        'to client: "220 mx.test ESMTP ready" while sending client greeting line',
        'from client: "STARTTLS" …',
        'to client: "220 2.0.0 Start TLS" …',
        'client speaks "TLSv1.3", "TLS_AES_256_GCM_SHA384" while in starttls state',
        'from client: "EHLO me" …',
        'to client: "250-mx.test" …',
        'to client: "250 AUTH PLAIN LOGIN" …',
        'from client: "AUTH LOGIN ..." …',
        'to client: "334 UGFzc3dvcmQ6" …',
        'from client: "..." …',
        'upstream is "127.0.0.1:9143" while connecting to upstream',
        'from upstream: "220 ready" while connecting to upstream',
        'to upstream: "EHLO mx.test" while sending HELO/EHLO to upstream',
        'from upstream: "250-there" while sending HELO/EHLO to upstream',
        'from upstream: "250 XCLIENT" while sending HELO/EHLO to upstream',
        'to upstream: "XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]"'
        " while sending XCLIENT to upstream",
        'from upstream: "220 ready" while sending XCLIENT to upstream',
        'to upstream: "EHLO me" while sending client HELO/EHLO to upstream',
        'from upstream: "250 there" while sending client HELO/EHLO to upstream',
        'to upstream: "AUTH PLAIN ..." while sending AUTH to upstream',
        'from upstream: "235 in" while sending AUTH to upstream',
        "client sent 50 and got 113 octets",
        "upstream sent 65 and got 95 octets",
    ]


def test_proxy_headers_of_both_sides() -> None:
    log = debug_log(
        """
        C: PROXY TCP4 192.0.2.1 192.0.2.2 1 2
        S: * OK IMAP4 ready
        C: b LOGIN u Pa55w0rd
        Q: ⟨any⟩
        A: OK
        P: PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143
        """,
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol; proxy_protocol on;",
    )
    assert log[0] == (
        'from client: "PROXY TCP4 192.0.2.1 192.0.2.2 1 2" while reading PROXY protocol'
    )
    assert (
        'to upstream: "PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143"'
        " while sending PROXY protocol header to upstream"
    ) in log
    assert log[-2:] == [
        "client sent 20 and got 47 octets",  # the header is not the client's
        "upstream sent 0 and got 43 octets",
    ]


@pytest.mark.parametrize(
    ("protocol", "command", "log"),
    [
        ("imap", 'a ID ("password" "x")', "..."),
        ("imap", "a UID FETCH 1 BODY[]", "a UID FETCH 1 BODY[]"),
        ("imap", "a LOGIN", "a LOGIN"),
        ("imap", 'a LOGIN"u" "p"', "..."),
        ("imap", "a LOGIN\rp", "..."),
        ("imap", "a  login u p", "a  login ..."),
        ("imap", "LOGIN u p", "..."),
        ("imap", "a\tLOGIN u p", "..."),
        ("imap", "a AUTHENTICATE PLAIN AHUAcA==", "a AUTHENTICATE PLAIN ..."),
        ("imap", "a AUTHENTICATE AHUAcA==", "a AUTHENTICATE ..."),
        ("imap", "AHUAcA==", "..."),
        ("imap", "NOOP", "..."),
        ("imap", "", ""),
        ("pop3", "PASS p", "PASS ..."),
        ("pop3", "PASSp", "..."),
        ("pop3", " PASS p", "..."),
        ("pop3", "APOP u 0123", "APOP ..."),
        ("pop3", "AUTH", "AUTH"),
        ("pop3", "a NOOP", "..."),
        ("smtp", "auth plain AHUAcA==", "auth plain ..."),
        ("smtp", "AUTH\tPLAIN AHUAcA==", "..."),
        ("smtp", "MAIL FROM:<a@b> AUTH=<>", "MAIL FROM:<a@b> AUTH=<>"),
        ("smtp", "GET / HTTP/1.1", "..."),
    ],
)  # fmt: skip
def test_commands(protocol: str, command: str, log: str) -> None:
    settings = load_server(f"protocol {protocol};").protocol
    assert shown(command.encode() + b"\r\n", settings) == log.encode()


def test_what_a_peer_sends_is_escaped_and_cut() -> None:
    (line,) = [
        line
        for line in debug_log(
            'S: * OK IMAP4 ready\nC: a NOOP "⟨ff⟩⟨x*2000⟩\nS: a BAD invalid command',
            "protocol imap;",
        )
        if line.startswith('from client: "a NOOP')
    ]
    kept = MAX_SHOWN - len('a NOOP "?')
    assert line == f'from client: "a NOOP \\x22\\xFF{"x" * kept}..." …'


def test_what_is_too_long_is_not_shown() -> None:
    log = debug_log(
        "S: * OK IMAP4 ready\nC: a LOGIN u ⟨p*200⟩\nS: a BAD invalid command",
        "protocol imap; imap_client_buffer 64;",
    )
    assert 'from client: "..." …' in log
    assert "pp" not in "".join(log)


@pytest.mark.parametrize("level", [INFO, DEBUG])
def test_other_levels_cost_nothing(level: int) -> None:
    """At level debug the streams are others; elsewhere there is nothing to skip."""
    log = CapturedLog(level).log
    info = SessionInfo(1, "127.0.0.1")
    client = Client(
        MemoryWire(),
        load_server("protocol imap;"),
        load_server("protocol imap;").core.listen[0],
        MemoryNetwork(None),
        info,
        log,
        Secrets(),
    )
    lines = [
        client.lines,
        backend_lines(client.trace, MemoryWire(), 1, BackendError, ""),
    ]
    expected = TracedLines if level == DEBUG else LineStream
    assert [type(each) for each in lines] == [expected, expected]
