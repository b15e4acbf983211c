"""What an auth server is asked, and what its answers mean."""

import contextlib
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth.http_answer import MAX_SHOWN, Unusable, parse
from mailproxy.auth.http_exchange import MAX_HEADER, MAX_WAITS
from mailproxy.auth.http_request import escape
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


INVALID_HEADER = (
    'sent invalid header in response: "{}", '
    'wanted NAME: VALUE in one line, with letters, digits and "-" in NAME'
)
NO_DECISION = (
    'did not send a decision: "{}", '
    "wanted Auth-Status, or Auth-Server and Auth-Port with an HTTP status of 2xx"
)
NOWHERE = 'did not send server or port: "{}", wanted {} as well'
TO = "Auth-Server: 127.0.0.1⏎Auth-Port: 9143⏎"
ALL_MISSING = "Auth-Status and Auth-Server and Auth-Port"


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        (
            "HTTP/1.0 200␍OK⏎Auth-Status: OK⏎⏎",
            r'sent invalid response: "HTTP/1.0 200\x0DOK", '
            "wanted a status line without CR in it",
        ),
        ("ICY 200 OK⏎Auth-Status: OK⏎⏎", INVALID_HEADER.format("ICY 200 OK")),
        (
            "HTTP/1.0 200 OK⏎X: y⏎Auth_Status: OK⏎⏎",
            INVALID_HEADER.format("Auth_Status: OK"),
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Status : OK⏎⏎",
            INVALID_HEADER.format("Auth-Status : OK"),
        ),
        ("HTTP/1.0 200 OK⏎X: y⏎ z: OK⏎⏎", INVALID_HEADER.format(" z: OK")),
        ("HTTP/1.0 200 OK⏎-X: y⏎⏎", INVALID_HEADER.format("-X: y")),
        ("HTTP/1.0 200 OK⏎: y⏎⏎", INVALID_HEADER.format(": y")),
        ("HTTP/1.0 200 OK⏎X: y␍z⏎⏎", INVALID_HEADER.format(r"X: y\x0Dz")),
        ("HTTP/1.0 200 OK⏎⏎", NOWHERE.format("HTTP/1.0 200 OK", ALL_MISSING)),
        ("⏎", NOWHERE.format("", ALL_MISSING)),
        (
            "HTTP/1.0 502 Bad Gateway⏎⏎",
            NOWHERE.format("HTTP/1.0 502 Bad Gateway", ALL_MISSING),
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Server: 127.0.0.1⏎⏎",
            NOWHERE.format("HTTP/1.0 200 OK", "Auth-Status and Auth-Port"),
        ),
        (
            f"HTTP/1.0 502 Bad Gateway⏎{TO}⏎",
            NO_DECISION.format("HTTP/1.0 502 Bad Gateway"),
        ),
        (f"{TO}⏎", NO_DECISION.format("Auth-Server: 127.0.0.1")),
        (
            f"HTTP/1.0 200 OK⏎Auth-Status:⏎{TO}⏎",
            NO_DECISION.format("HTTP/1.0 200 OK"),
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Status: no⏎Auth-Status:⏎⏎",
            NO_DECISION.format("HTTP/1.0 200 OK"),
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Status: OK⏎⏎",
            NOWHERE.format("HTTP/1.0 200 OK", "Auth-Server and Auth-Port"),
        ),
        (
            "HTTP/1.0 200 OK⏎Auth-Status: OK⏎Auth-Server: 127.0.0.1⏎⏎",
            NOWHERE.format("HTTP/1.0 200 OK", "Auth-Port"),
        ),
        (
            "Auth-Status: OK⏎Auth-Server: ⏎Auth-Port: 1⏎⏎",
            NOWHERE.format("Auth-Status: OK", "Auth-Server"),
        ),
    ],
)
def test_answers_that_are_no_decision(answer: str, event: str) -> None:
    imap(
        f"{ASKED}\nA: {answer}…\n{FAILED}\nL: [error] auth http server 127.0.0.1:9000 {event} {WHERE}"
    )


@pytest.mark.parametrize(
    "status",
    ["HTTP/1.0 200 OK", "HTTP/1.1 204 No Content", "HTTP/1.1 299", "HTTP/1.0 200 "],
)
def test_success_without_auth_status_lets_in(status: str) -> None:
    """As at nginx, which public recipes rely on."""
    imap(
        f"""
        {ASKED}
        A: {status}⏎{TO}⏎…
        B: * OK
        P: a LOGIN "u" "p"
        """
    )


@pytest.mark.parametrize(
    "status",
    [
        *("HTTP/1.0 302 Found", "HTTP/1.1 401", "HTTP/1.1 100 Continue", "HTTP/1.0"),
        *("HTTP/1.0 2000", "HTTP/1.0 20", "HTTP/1.0  200", "HTTP/x 200", "X: 200"),
    ],
)
def test_any_other_status_without_auth_status_lets_nobody_in(status: str) -> None:
    stage = imap(f"{ASKED}\nA: {status}⏎{TO}⏎…\n{FAILED}")
    assert "did not send a decision" in stage.log.events[-1][1]


# What the log shows of an answer


def unusable(line: str, password: str = "q", directives: str = "") -> str:
    """What the log says about a header line that is no header."""
    stage = imap(
        f"""
        C: a LOGIN u {password}
        Q: ⟨any⟩
        A: HTTP/1.0 200 OK⏎{line}⏎⏎…
        {FAILED}
        """,
        directives,
    )
    event = stage.log.events[-1][1]
    text, _, wanted = event.partition('", wanted ')
    assert wanted.startswith("NAME: VALUE")
    return text.partition('sent invalid header in response: "')[2]


def test_a_long_line_is_cut() -> None:
    assert unusable("x_" + "y" * 1000) == "x_" + "y" * (MAX_SHOWN - 2) + "..."
    fitting = "x_" + "y" * (MAX_SHOWN - 2)
    assert unusable(fitting) == fitting


def test_octets_of_all_kinds_are_escaped() -> None:
    assert unusable('x_␀␛"⟨ff⟩\\') == r"x_\x00\x1B\x22\xFF\x5C"
    # All of it is there, and so is the context.
    long = unusable("x_" + "␛" * MAX_SHOWN)
    assert long == "x_" + r"\x1B" * (MAX_SHOWN - 2) + "..."


@pytest.mark.parametrize(
    ("line", "shows"),
    [
        ("Auth_Pass: geheim", "Auth_Pass..."),
        ("Auth-Pass : geheim", "Auth-Pass..."),
        (" Auth-Pass: geheim", " Auth-Pass..."),
        ("Auth-Pass geheim", "Auth-Pass..."),
        ("auth-pass: a␍geheim", "auth-pass..."),
        ("Auth-Pass: a⏎ geheim", " ..."),
        ("X: a⏎ b", " b"),
        ("Set_Cookie: geheim", "Set_Cookie..."),
        ('{"password": "geheim"}', r"{\x22pass..."),
        ("X_Token geheim", "X_Token..."),
    ],
)
def test_what_may_be_a_secret_is_not_shown(line: str, shows: str) -> None:
    assert unusable(line) == shows


@pytest.mark.parametrize(
    ("password", "line"),
    [
        ("geheim", "X_Echo: u geheim"),
        ("geheim", f"X_Echo: {'x' * 500} geheim"),
        ('"ge heim"', "X_Echo: ge%20heim"),
        ('"ge heim"', "X_Echo: ge heim"),
        ("p", "X_Key-Of-Ours 0123456789"),
        ("p", "X_Echo: 0123456789"),
    ],
)
def test_an_answer_that_repeats_the_request_is_not_shown(
    password: str, line: str
) -> None:
    key = "auth_http_header X-Ours 0123456789; auth_http_header X-Short 20;"
    shows = unusable(line, password, key)
    assert shows.endswith("...")
    assert "heim" not in shows
    assert "0123456789" not in shows


def test_a_short_value_of_the_configuration_is_no_secret() -> None:
    assert unusable("X_Y: 20", directives="auth_http_header X-Short 20;") == "X_Y: 20"


@pytest.mark.parametrize("size", [MAX_HEADER, MAX_HEADER + 1])
def test_headers_have_a_limit(size: int) -> None:
    start, end = "Auth-Status: ", "⏎⏎"
    text = "x" * (size - len(start) - 4)
    result = FAILED
    if size == MAX_HEADER:
        result = f"S: a NO {text}"
    imap(f"{ASKED}\nA: {start}{text}{end}…\n{result}")


def test_answer_without_end() -> None:
    imap(
        f"""
        {ASKED}
        A: {"x" * (MAX_HEADER + 1)}…
        {FAILED}
        at 0
        L: [error] auth http server 127.0.0.1:9000 sent too long header: "{"x" * MAX_SHOWN}...", wanted {MAX_HEADER} octets {WHERE}
        """
    )


WHOLE = "wanted status line and headers, up to an empty line"


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        ("", ""),
        ("A: HTTP/1.0 200 OK", "HTTP/1.0 200 OK"),
        ("A: Auth-Status: OK…", "Auth-Status: OK"),
        ("A: Auth-Pass: x…", "Auth-Pass..."),
    ],
)
def test_end_before_the_answer(answer: str, came: str) -> None:
    imap(
        f"""
        {ASKED}
        {answer}
        A: ⟨close⟩
        {FAILED}
        at 0
        L: [error] auth http server 127.0.0.1:9000 closed connection prematurely: "{came}", {WHOLE} {WHERE}
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
    event = stage.log.events[-1][1]
    assert 'auth http server 127.0.0.1:9000 sent invalid server address:"' in event
    assert '", wanted an IPv4 or IPv6 address, no name' in event


@pytest.mark.parametrize("port", ["0", "65536", "1x", "+1", "-1", "9" * 30])
def test_port_has_to_be_a_port(port: str) -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| Auth-Port: {port}
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 sent invalid server port:"{port}", wanted 1 to 65535 {WHERE}
        """
    )


@pytest.mark.parametrize("name", ["Auth-User", "Auth-Pass"])
def test_credentials_of_the_auth_server_are_checked(name: str) -> None:
    imap(
        f"""
        {ASKED}
        A: OK
        A| {name}: a␀b
        {FAILED}
        L: [error] auth http server 127.0.0.1:9000 sent invalid user or password: "{name}", wanted no CR, LF or NUL in it {WHERE}
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
        P: a LOGIN "" ""
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
        L: [error] auth http server 127.0.0.1:9000 did not send password: "HTTP/1.0 200 OK", wanted Auth-Pass, as the client sent no password {WHERE}
        """,
        "imap_auth external;",
    )
    imap(
        f"""
        {script}
        A| Auth-Pass: x
        B: * OK
        P: a LOGIN "u" "x"
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
        P: a LOGIN "u" "secret"
        """,
        "imap_auth cram-md5;",
    )


def test_wait_has_an_end() -> None:
    waits = "\nQ: plain u p\nA: WAIT" * MAX_WAITS
    imap(
        f"""
        C: a LOGIN u p
        {waits}
        {FAILED}
        at {MAX_WAITS}
        L: [error] auth http server 127.0.0.1:9000 put off its answer too often: "HTTP/1.0 200 OK", wanted a decision after Auth-Status: WAIT, {MAX_WAITS} times at most {WHERE}
        """
    )


@pytest.mark.proves("auth_http_timeout")
def test_auth_server_that_does_not_answer() -> None:
    imap(
        f"""
        {ASKED}
        {FAILED}
        at 7
        L: [error] auth http server 127.0.0.1:9000 timed out (110: Connection timed out) {WHERE}
        """,
        "auth_http_timeout 7s;",
    )
    imap(
        f"""
        {ASKED}
        A: HTTP/1.0 200 OK
        {FAILED}
        at 7
        L: [error] auth http server 127.0.0.1:9000 timed out: "HTTP/1.0 200 OK", {WHOLE} (110: Connection timed out) {WHERE}
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
