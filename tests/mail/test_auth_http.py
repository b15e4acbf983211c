"""What an auth server is asked, and what its answers mean."""

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.mail.auth.answer import Unusable, parse
from mailproxy.mail.auth.exchange import HEADER_LIMIT, MOST_WAITS
from mailproxy.mail.auth.request import escape
from tests.play import Stage, play

ALL = "plain cram-md5 external xoauth2 oauthbearer"
ASKED = """
    C: a LOGIN u p
    Q: plain u p
"""
FAILED = """
    S: * BAD internal server error
    S: ⟨close⟩
"""
WHERE = 'while in http auth state, …, login: "u"'


def imap(script: str, directives: str = "", **options: object) -> Stage:
    """Play a script behind the greeting."""
    return play(
        f"S: * OK IMAP4 ready\n{script}", f"protocol imap; {directives}", **options
    )


# Requests


def test_smallest_request() -> None:
    imap(
        """
        C: a LOGIN u p
        Q: GET /mail/auth HTTP/1.0
        Q| Host: 127.0.0.1
        Q| Auth-Method: plain
        Q| Auth-User: u
        Q| Auth-Pass: p
        Q| Auth-Protocol: imap
        Q| Auth-Login-Attempt: 1
        Q| Client-IP: 127.0.0.1
        """,
        "auth_http http://127.0.0.1:9000/mail/auth;",
    )


@pytest.mark.proves("auth_http", "unix:")
@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("127.0.0.1:9000", "/", "127.0.0.1"),
        ("http://localhost:9000/a?b=%20", "/a?b=%20", "localhost"),
        ("[::1]:9000/x", "/x", "[::1]"),
        ("unix:/run/auth.sock:/x", "/x", "localhost"),
        ("unix:/run/auth.sock", "/", "localhost"),
    ],
)
def test_request_line_and_host(url: str, line: str, host: str) -> None:
    stage = imap("C: a LOGIN u p\nQ: ⟨any⟩", f"auth_http {url};")
    assert stage.requests[0].startswith(
        f"GET {line} HTTP/1.0\r\nHost: {host}\r\n".encode()
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (b"plain", b"plain"),
        (b"a b%c\r\n\x01\x7f\xff+&", b"a%20b%25c%0D%0A%01\x7f\xff+&"),
        (b"\0\t\x1f!", b"%00%09%1F!"),
        (b"", b""),
    ],
)
def test_values_are_escaped(text: bytes, escaped: bytes) -> None:
    assert escape(text) == escaped


@given(st.binary())
def test_no_value_breaks_a_line(value: bytes) -> None:
    assert set(escape(value)).isdisjoint(range(0x21))


def test_salt_is_sent_with_the_methods_that_used_it() -> None:
    imap(
        """
        C: a AUTHENTICATE CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==
        Q: cram-md5 u 0123456789abcdef0123456789abcdef salt
        A: NO no
        A| Auth-Wait: 1
        S: a NO no
        C: b AUTHENTICATE EXTERNAL dQ==
        Q: external u "" #2
        """,
        f"imap_auth {ALL};",
    )


@pytest.mark.proves("auth_http_header")
def test_headers_of_the_configuration_come_last() -> None:
    imap(
        f"""
        {ASKED}
        Q| X-Auth-Key: secret string
        Q| X-Empty:␠
        Q| x-auth-key: again
        """,
        'auth_http_header X-Auth-Key "secret string"; auth_http_header X-Empty "";'
        " auth_http_header x-auth-key again;",
    )


@pytest.mark.parametrize("trusted", [True, False])
def test_proxy_header_is_told(trusted: bool) -> None:
    client = "192.0.2.1" if trusted else "127.0.0.1"
    whom = f"client: {client}, server: 127.0.0.1:1143" if trusted else "…"
    play(
        f"""
        C: PROXY TCP4 192.0.2.1 198.51.100.1 1234 143
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: GET /auth HTTP/1.0
        Q| Host: 127.0.0.1
        Q| Auth-Method: plain
        Q| Auth-User: u
        Q| Auth-Pass: p
        Q| Auth-Protocol: imap
        Q| Auth-Login-Attempt: 1
        Q| Client-IP: {client}
        Q| Proxy-Protocol-Addr: 192.0.2.1
        Q| Proxy-Protocol-Port: 1234
        Q| Proxy-Protocol-Server-Addr: 198.51.100.1
        Q| Proxy-Protocol-Server-Port: 143
        A: NO no
        S: a NO no
        L: [info] client login failed: "no" while in http auth state, {whom}, login: "u"
        """,
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol;"
        + ("set_real_ip_from 127.0.0.0/8;" if trusted else ""),
    )


def test_proxy_header_without_addresses_is_not_told() -> None:
    play(
        f"C: PROXY UNKNOWN\nS: * OK IMAP4 ready\n{ASKED}",
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol;",
    )


# Reading the answer


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.0 200 OK⏎Auth-Status: no⏎⏎",
        "HTTP/1.1 500 Oops␊Auth-Status: no␊␊",
        "HTTP/⏎Auth-Status:no⏎⏎",
        "Auth-Status: no⏎⏎",
        "X-Foo: bar␊aUTH-sTATUS:   no  ⏎␊",
        "HTTP/1.0 200 OK⏎FooBar⏎Auth-Status: no⏎⏎and a body",
        "HTTP/1.0 200 OK⏎Auth-Status: OK⏎Auth-Status: no⏎Auth-Status: OK⏎⏎",
        "HTTP/1.0 200 OK⏎Auth-Status: n␀o⏎⏎",
        "HTTP/1.0 200 OK⏎1-a: b⏎Auth-Status: no⏎Auth-Wait: -1⏎⏎",
        "HTTP/1.0 200 OK⏎Auth-Status: no⏎Auth-Wait: 5s⏎⏎",
        "HTTP/1.0 200 OK⏎Auth-Status: no⏎Auth-Wait:⏎⏎",
        "HTTP/1.0 200 OK⏎Auth-Status: x⏎Auth-Status: no⏎⏎",
    ],
)
def test_answers_that_refuse(answer: str) -> None:
    imap(f"{ASKED}\nA: {answer}…\nS: a NO no\nS: ⟨close⟩")


def test_text_of_a_refusal_is_passed_on_as_it_is() -> None:
    imap(
        f"{ASKED}\nA: HTTP/1.0 200\nA| Auth-Status: ␉a  b: ⟨ff⟩\nA|\nS: a NO ␉a  b: ⟨ff⟩"
    )


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        ("HTTP/1.0 200␍OK⏎Auth-Status: OK⏎⏎", "sent invalid response"),
        ("ICY 200 OK⏎Auth-Status: OK⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎Auth_Status: OK⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎Auth-Status : OK⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎X: y⏎ z: OK⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎-X: y⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎: y⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎X: y␍z⏎⏎", "sent invalid header in response"),
        ("HTTP/1.0 200 OK⏎⏎", "did not send a decision"),
        ("⏎", "did not send a decision"),
        ("HTTP/1.0 200 OK⏎Auth-Status:⏎⏎", "did not send a decision"),
        ("HTTP/1.0 200 OK⏎Auth-Status: no⏎Auth-Status:⏎⏎", "did not send a decision"),
        (
            "HTTP/1.0 200 OK⏎Auth-Server: 127.0.0.1⏎Auth-Port: 1⏎⏎",
            "did not send a decision",
        ),
        ("HTTP/1.0 200 OK⏎Auth-Status: OK⏎⏎", "did not send server or port"),
        (
            "HTTP/1.0 200 OK⏎Auth-Status: OK⏎Auth-Server: 127.0.0.1⏎⏎",
            "did not send server or port",
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Status: OK⏎Auth-Server: ⏎Auth-Port: 1⏎⏎",
            "did not send server or port",
        ),
    ],
)
def test_answers_that_are_no_decision(answer: str, event: str) -> None:
    imap(
        f"{ASKED}\nA: {answer}…\n{FAILED}\nL: [error] auth http server 127.0.0.1:9000 {event} {WHERE}"
    )


@pytest.mark.parametrize("size", [HEADER_LIMIT, HEADER_LIMIT + 1])
def test_headers_have_a_limit(size: int) -> None:
    start, end = "Auth-Status: ", "⏎⏎"
    text = "x" * (size - len(start) - 4)
    result = FAILED
    if size == HEADER_LIMIT:
        result = f"S: a NO {text}"
    imap(f"{ASKED}\nA: {start}{text}{end}…\n{result}")


def test_answer_without_end() -> None:
    imap(
        f"""
        {ASKED}
        A: {"x" * (HEADER_LIMIT + 1)}…
        {FAILED}
        at 0
        L: [error] auth http server 127.0.0.1:9000 sent too long header {WHERE}
        """
    )


@pytest.mark.parametrize("answer", ["", "A: HTTP/1.0 200 OK", "A: Auth-Status: OK…"])
def test_end_before_the_answer(answer: str) -> None:
    imap(
        f"""
        {ASKED}
        {answer}
        A: ⟨close⟩
        {FAILED}
        at 0
        L: [error] auth http server 127.0.0.1:9000 closed connection prematurely {WHERE}
        """
    )


def test_answer_in_pieces() -> None:
    pieces = "\n".join(f"A: {octet}…" for octet in "HTTP/1.0 200⏎Auth-Status: no⏎⏎")
    imap(f"{ASKED}\n{pieces}\nS: a NO no")


def test_answer_may_end_with_the_connection() -> None:
    imap(f"{ASKED}\nA: NO no\nA: ⟨close⟩\nS: a NO no")


@given(st.binary())
def test_any_octets_are_an_answer_or_an_error(header: bytes) -> None:
    for text in (header, b"HTTP/1.1 200\r\n" + header):
        with contextlib.suppress(Unusable):
            assert parse(text).wait >= 0


# Where to


@pytest.mark.parametrize(
    ("server", "port"),
    [
        ("127.0.0.1", "9143"),
        ("::1", "143"),
        ("127.0.0.1", "000143"),
        ("192.0.2.1", "65535"),
    ],
)
def test_backend_is_named_as_it_was_sent(server: str, port: str) -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| Auth-Server: {server}
        A| Auth-Port: {port}
        B: * BYE
        S: * BAD internal server error
        L: [error] upstream sent invalid response: "* BYE" while reading response from upstream, …, login: "u", upstream: {server}:{port}
        """
    )


@pytest.mark.parametrize(
    "server",
    [
        "localhost",
        "127.1",
        "[::1]",
        "unix:/x",
        "1.2.3.4.5",
        "fe80::1%lo",
        "⟨ff⟩",
        "1.2.3.4␀",
    ],
)
def test_server_has_to_be_an_address(server: str) -> None:
    stage = imap(
        f"""
        {ASKED}
        A: OK
        A| Auth-Server: {server}
        {FAILED}
        """
    )
    assert (
        "auth http server 127.0.0.1:9000 sent invalid server address:"
        in stage.log.events[-1][1]
    )


@pytest.mark.parametrize("port", ["0", "65536", "1x", "+1", "-1", "9" * 30])
def test_port_has_to_be_a_port(port: str) -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| Auth-Port: {port}
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 sent invalid server port:"{port}" {WHERE}
        """
    )


@pytest.mark.parametrize(
    "header",
    [
        "Auth-User: a␀b",
        "Auth-Pass: a␀b",
    ],
)
def test_credentials_of_the_auth_server_are_checked(header: str) -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| {header}
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 sent invalid user or password {WHERE}
        """
    )


def test_empty_credentials_of_the_auth_server_count() -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| Auth-User:
        A| Auth-Pass:
        B: * OK
        P: a LOGIN {{0}}
        B: +
        P:  {{0}}
        B: +
        P:
        B: a OK
        S: a OK
        L: [info] client logged in, …, upstream: 127.0.0.1:9143
        """
    )


def test_password_is_needed() -> None:
    script = "C: a AUTHENTICATE EXTERNAL dQ==\nQ: external u " + '""\nA: OK'
    imap(
        f"""
        {script}
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 did not send password {WHERE}
        """,
        "imap_auth external;",
    )
    imap(
        f"""
        {script}
        A| Auth-Pass: x
        B: * OK
        P: a LOGIN {{1}}
        """,
        "imap_auth external;",
    )


# Later


def test_wait_repeats_the_request() -> None:
    imap(
        f"""
        {ASKED}
        A: WAIT
        A| Auth-Wait: 3
        S: ⟨silence⟩
        Q: plain u p
        at 3
        A: WAIT
        A| Auth-Wait: 2
        Q: plain u p
        at 5
        A: NO no
        S: a NO no
        at 5
        """
    )


def test_wait_repeats_the_digest() -> None:
    imap(
        """
        C: a AUTHENTICATE CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==
        Q: cram-md5 u 0123456789abcdef0123456789abcdef salt
        A: WAIT
        Q: cram-md5 u 0123456789abcdef0123456789abcdef salt
        at 1
        A: OK
        A| Auth-Pass: secret
        B: * OK
        P: a LOGIN {1}
        """,
        "imap_auth cram-md5;",
    )


def test_wait_has_an_end() -> None:
    waits = "\nQ: plain u p\nA: WAIT" * MOST_WAITS
    imap(
        f"""
        C: a LOGIN u p
        {waits}
        {FAILED}
        at {MOST_WAITS}
        L: [error] auth http server 127.0.0.1:9000 put off its answer too often {WHERE}
        """
    )


@pytest.mark.proves("auth_http_timeout")
def test_auth_server_that_does_not_answer() -> None:
    imap(
        f"""
        {ASKED}
        A: HTTP/1.0 200 OK
        {FAILED}
        at 7
        L: [error] auth http server 127.0.0.1:9000 timed out (110: Connection timed out) {WHERE}
        """,
        "auth_http_timeout 7s;",
    )


def test_nobody_listens() -> None:
    imap(
        f"""
        C: a LOGIN u p
        Q: plain u p
        A: ⟨refused⟩
        {FAILED}
        L: [error] recv() failed (111: Connection refused) {WHERE}
        """
    )


@pytest.mark.parametrize(
    ("number", "level", "text"),
    [
        (errno.ECONNREFUSED, "error", "(111: Connection refused)"),
        (errno.ENETUNREACH, "error", "(101: Network is unreachable)"),
        (errno.ENOENT, "crit", "(2: No such file or directory)"),
        (errno.EMFILE, "crit", "(24: Too many open files)"),
        (errno.ENFILE, "crit", "(23: Too many open files in system)"),
        (errno.ENOBUFS, "crit", "(105: No buffer space available)"),
        (errno.EADDRNOTAVAIL, "crit", "(99: Cannot assign requested address)"),
    ],
)
def test_connect_fails_at_once(number: int, level: str, text: str) -> None:
    imap(
        f"""
        C: a LOGIN u p
        {FAILED}
        L: [{level}] connect() to 127.0.0.1:9000 failed {text} {WHERE}
        """,
        failing={"Q": number},
    )


def test_connection_is_reset() -> None:
    imap(
        f"""
        {ASKED}
        A: HTTP/1.0 200 OK
        A: ⟨reset⟩
        {FAILED}
        L: [error] recv() failed (104: Connection reset by peer) {WHERE}
        """
    )


# Connections that are kept


AGAIN = """
    S: a NO no
    C: a LOGIN u p
    Q: plain u p #2
    A: NO yes
    S: a NO yes
"""


@pytest.mark.parametrize(
    ("status", "headers", "kept"),
    [
        ("HTTP/1.0 200 OK", ["Connection: keep-alive", "Content-Length: 0"], True),
        ("HTTP/1.0 200 OK", ["Connection: Keep-Alive", "Content-Length: 4"], True),
        ("HTTP/1.0 204 No Content", ["Connection: keep-alive"], True),
        ("HTTP/1.1 200 OK", ["Content-Length: 0"], True),
        ("HTTP/1.1 204", [], True),
        ("HTTP/1.0 200 OK", ["Content-Length: 0"], False),
        ("HTTP/1.0 200 OK", ["Connection: keep-alive"], False),
        ("HTTP/1.1 200 OK", ["Connection: close", "Content-Length: 0"], False),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 0", "Transfer-Encoding: chunked"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 99999999"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: 2"], False),
        ("HTTP/1.1 200 OK", ["Content-Length: -4"], False),
        ("X: y", ["Content-Length: 4"], False),
    ],
)
def test_connection_is_kept_where_the_end_of_the_answer_is_known(
    status: str, headers: list[str], kept: bool
) -> None:
    body = "body" if "Content-Length: 0" not in headers and "204" not in status else ""
    lines = [status, "Auth-Status: no", "Auth-Wait: 1", *headers, f"⏎{body}…"]
    answer = "\n".join([f"A: {lines[0]}", *(f"A| {line}" for line in lines[1:])])
    stage = imap(f"{ASKED}\n{answer}\n{AGAIN}")
    assert len(stage.network.wires["Q"]) == (1 if kept else 2)


def test_body_is_read_and_dropped() -> None:
    stage = imap(
        f"""
        {ASKED}
        A: HTTP/1.1 200 OK
        A| Auth-Status: no
        A| Auth-Wait: 1
        A| Content-Length: 8
        A|
        A: body…
        S: ⟨silence⟩
        A: body…
        {AGAIN}
        """
    )
    assert len(stage.network.wires["Q"]) == 1


def test_kept_connection_that_was_closed_is_opened_again() -> None:
    for event in ("⟨close⟩", "⟨reset⟩"):
        stage = imap(
            f"""
            {ASKED}
            A: HTTP/1.1 204
            A| Auth-Status: no
            A| Auth-Wait: 1
            A|
            S: a NO no
            A: {event}
            C: a LOGIN u p
            Q: plain u p #2
            A: NO yes
            S: a NO yes
            """
        )
        assert len(stage.network.wires["Q"]) == 2


# Errors of OAuth

XOAUTH2 = """
    C: a AUTHENTICATE XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==
    Q: xoauth2 u t
    A: NO expired
    A| Auth-Error-SASL: eyJ9
"""
OAUTHBEARER = """
    C: a AUTHENTICATE OAUTHBEARER bixhPXUsAWF1dGg9QmVhcmVyIHQBAQ==
    Q: oauthbearer u t
    A: NO expired
    A| Auth-Error-SASL: eyJ9
"""


@pytest.mark.parametrize(
    ("attempt", "response", "answer"),
    [
        (XOAUTH2, "", "a NO expired"),
        (XOAUTH2, "AQ==", "a BAD invalid command"),
        (OAUTHBEARER, "AQ==", "a NO expired"),
        (OAUTHBEARER, "AQ==x", "a NO expired"),
        (OAUTHBEARER, "AQ== x", "a BAD invalid command"),
        (OAUTHBEARER, "", "a BAD invalid command"),
        (OAUTHBEARER, "AQ=", "a BAD invalid command"),
        (OAUTHBEARER, "AQ==␍x", "a BAD invalid command"),
    ],
)
@pytest.mark.parametrize("wait", [0, 2])
def test_oauth_client_is_told_why(
    attempt: str, response: str, answer: str, wait: int
) -> None:
    end = "C: b NOOP\nS: b OK completed" if wait else "S: ⟨close⟩"
    imap(
        f"""
        {attempt}
        A| Auth-Wait: {wait}
        S: + eyJ9
        at {wait}
        C: {response}
        S: {answer}
        at {wait}
        {end}
        """,
        f"imap_auth {ALL};",
    )


def test_oauth_client_that_says_nothing() -> None:
    imap(
        f"""
        {XOAUTH2}
        S: + eyJ9
        S: ⟨close⟩
        at 60
        L: [info] client login failed: "expired" {WHERE}
        L: [info] client timed out (110: Connection timed out) {WHERE}
        """,
        f"imap_auth {ALL};",
    )


def test_oauth_client_that_says_too_much() -> None:
    imap(
        f"""
        {XOAUTH2}
        A| Auth-Wait: 1
        S: + eyJ9
        C: {"x" * 64}
        S: a BAD invalid command
        S: ⟨close⟩
        """,
        f"imap_auth {ALL}; imap_client_buffer 64;",
    )


@pytest.mark.parametrize(
    ("protocol", "command", "challenge", "refusal"),
    [
        ("pop3", "AUTH", "+ eyJ9", "-ERR expired"),
        ("smtp", "AUTH", "334 eyJ9", "535 5.7.0 expired"),
    ],
)
def test_oauth_client_is_told_why_in_other_protocols(
    protocol: str, command: str, challenge: str, refusal: str
) -> None:
    greeting = {"pop3": "+OK POP3 ready", "smtp": "220 mx.test ESMTP ready"}[protocol]
    play(
        f"""
        S: {greeting}
        {XOAUTH2.replace("a AUTHENTICATE", command)}
        S: {challenge}
        C:
        S: {refusal}
        S: ⟨close⟩
        """,
        f"protocol {protocol}; {protocol}_auth xoauth2;",
    )


def test_other_methods_are_just_refused() -> None:
    imap(
        f"{ASKED}\nA: NO expired\nA| Auth-Error-SASL: eyJ9\nS: a NO expired\nS: ⟨close⟩"
    )
    imap(
        f"{XOAUTH2.replace('A| Auth-Error-SASL: eyJ9', '')}\nS: a NO expired\nS: ⟨close⟩",
        f"imap_auth {ALL};",
    )
