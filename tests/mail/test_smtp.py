"""The dialogues of SMTP, with clients before the login and with backends."""

import pytest

from tests.play import Stage, play

TLS = "ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
ALL = "smtp_auth plain login cram-md5 external xoauth2 oauthbearer;"
OPEN = "smtp_auth none;"
GRANTED = """
    C: AUTH PLAIN AHUAcA==
    Q: plain u p
    A: OK
"""
UPSTREAM = 'login: "u", upstream: 127.0.0.1:9143'
INVALID = "500 5.5.1 Invalid command"
SEQUENCE = "503 5.5.1 Bad sequence of commands"


def smtp(script: str, directives: str = "", **options: object) -> Stage:
    """Play a script behind the greeting."""
    script = f"S: 220 mx.test ESMTP ready\n{script}"
    return play(script, f"protocol smtp; {directives}", **options)


def none(helo: str = "", attempt: int = 1) -> str:
    """A client that sends mail without a login, and the question about it."""
    return f"""
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        Q: none "" "" #{attempt}
        Q| Auth-SMTP-Helo: {helo}
        Q| Auth-SMTP-From: MAIL FROM:<a@b>
        Q| Auth-SMTP-To: RCPT TO:<c@d>
    """


# Commands


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("NOOP", "250 2.0.0 OK"),
        ("noop␊", "250 2.0.0 OK"),
        ("RSET", "250 2.0.0 OK"),
        ("NOOP 1 2 3  4 5 6 7 8 9 10 11 ", "250 2.0.0 OK"),
        ("NOOP 1 2 3 4 5 6 7 8 9 10 11 12", INVALID),
        ("NOOP ␀", "250 2.0.0 OK"),
        (" NOOP", INVALID),
        ("NOO", INVALID),
        ("NOOPS", INVALID),
        ("NOOP␉", INVALID),
        ("NOOP␍x", INVALID),
        ("NOOP␍␍␊", INVALID),
        ("", INVALID),
        ("DATA", INVALID),
        ("XCLIENT ADDR=1.2.3.4", INVALID),
        ("STARTTLSX", INVALID),
        ("VRFY x", INVALID),
        ("STARTTLS", INVALID),
        ("HELO x", "250 mx.test"),
        ("helo x", "250 mx.test"),
        ("HELO", "501 5.5.4 Invalid argument"),
        ("HELO x y", "501 5.5.4 Invalid argument"),
        ("HELO x␀", "501 5.5.4 Invalid argument"),
        ("EHLO", "501 5.5.4 Invalid argument"),
        ("EHLO x y", "501 5.5.4 Invalid argument"),
        ("AUTH", "501 5.5.4 Invalid argument"),
        ("RCPT TO:<a@b>", SEQUENCE),
        ("RCPT", SEQUENCE),
        ("MAIL", "530 5.7.1 Authentication required"),
        ("GET / HTTP/1.1", INVALID),
    ],
)
def test_line_is_taken_apart(line: str, answer: str) -> None:
    smtp(f"C: {line}\nS: {answer}\nC: NOOP\nS: 250 2.0.0 OK")


def test_quit_says_goodbye() -> None:
    smtp("C: QUIT now\nS: 221 2.0.0 Bye\nS: ⟨close⟩")


@pytest.mark.proves("smtp_capabilities")
@pytest.mark.parametrize(
    ("directives", "lines"),
    [
        ("", ["AUTH PLAIN LOGIN"]),
        (
            "smtp_capabilities 'SIZE 10485760' PIPELINING;",
            ["SIZE 10485760", "PIPELINING", "AUTH PLAIN LOGIN"],
        ),
        (ALL, ["AUTH PLAIN LOGIN CRAM-MD5 EXTERNAL XOAUTH2 OAUTHBEARER"]),
        (OPEN, []),
        (f"{OPEN} starttls on; {TLS}", ["STARTTLS"]),
        (f"starttls on; {TLS}", ["AUTH PLAIN LOGIN", "STARTTLS"]),
        (f"starttls only; smtp_capabilities 8BITMIME; {TLS}", ["8BITMIME", "STARTTLS"]),
    ],
)
def test_capabilities(directives: str, lines: list[str]) -> None:
    *first, last = ["mx.test", *lines]
    answer = [*(f"S: 250-{line}" for line in first), f"S: 250 {last}"]
    smtp("\n".join(["C: EHLO client.test", *answer]), directives)


def test_starttls_changes_what_is_possible() -> None:
    smtp(
        """
        C: AUTH PLAIN AHUAcA==
        S: 500 5.5.1 Invalid command
        C: AUTH
        S: 500 5.5.1 Invalid command
        C: STARTTLS
        C| EHLO evil
        C| AUTH PLAI…
        S: 220 2.0.0 Start TLS
        C: ⟨tls⟩
        C: STARTTLS
        S: 500 5.5.1 Invalid command
        C: EHLO client
        S: 250-mx.test
        S: 250 AUTH PLAIN LOGIN
        C: AUTH PLAIN AHUAcA==
        Q: plain u p tls
        """,
        f"starttls only; max_errors 1; {TLS}",
    )


# Greeting


@pytest.mark.proves("smtp_greeting_delay")
def test_greeting_may_be_delayed() -> None:
    play(
        """
        S: ⟨silence⟩
        S: 220 mx.test ESMTP ready
        at 5
        S: ⟨close⟩
        at 65
        L: [info] client timed out (110: Connection timed out) while in auth state, …
        """,
        "protocol smtp; smtp_greeting_delay 5s;",
    )


@pytest.mark.proves("smtp_greeting_delay")
def test_early_talker_is_rejected() -> None:
    play(
        """
        wait 4.9
        C: HELO x
        C| AUTH PLAIN AHUAcA==
        S: 503 5.5.0 Improper use of SMTP command pipelining
        at 4.9
        S: ⟨close⟩
        L: [info] client was rejected before greeting: "HELO x__AUTH ..." while in delay pipelining state, …
        """,
        "protocol smtp; smtp_greeting_delay 5s;",
    )


def test_early_talker_in_tls_is_rejected() -> None:
    play(
        """
        C: ⟨tls⟩
        C: NOOP
        S: 503 5.5.0 Improper use of SMTP command pipelining
        at 0
        S: ⟨close⟩
        L: [info] client was rejected before greeting: "NOOP__" while in delay pipelining state, …
        """,
        f"protocol smtp; listen 127.0.0.1:1143 ssl; smtp_greeting_delay 5s; {TLS}",
    )


def test_what_an_early_talker_says_is_bounded() -> None:
    stage = play(
        f"""
        C: {"x" * 1000}
        S: 503 5.5.0 Improper use of SMTP command pipelining
        S: ⟨close⟩
        L: [info] client was rejected before greeting: "{"x" * 64}" while in delay pipelining state, …
        """,
        "protocol smtp; smtp_greeting_delay 5s; smtp_client_buffer 64;",
    )
    assert stage.wire.received == 64


def test_client_may_leave_before_the_greeting() -> None:
    play(
        "C: ⟨close⟩\nS: ⟨close⟩\nat 0",
        "protocol smtp; smtp_greeting_delay 5s;",
    )


def test_without_delay_nobody_is_too_early() -> None:
    play(
        """
        C: NOOP
        S: 220 mx.test ESMTP ready
        S: 250 2.0.0 OK
        """,
        "protocol smtp;",
    )


# Mechanisms


@pytest.mark.proves(
    "smtp_auth", "plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"
)
@pytest.mark.parametrize(
    ("dialogue", "request_"),
    [
        ("C: AUTH PLAIN\nS: 334␠\nC: AHUAcA==", "plain u p"),
        ("C: AUTH PLAIN AHUAcA==", "plain u p"),
        ("C: auth  plain  AHUAcA== ", "plain u p"),
        (
            "C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: dQ==\nS: 334 UGFzc3dvcmQ6\nC: cA==",
            "plain u p",
        ),
        ("C: AUTH LOGIN dQ==\nS: 334 UGFzc3dvcmQ6\nC: cA==", "plain u p"),
        ("C: AUTH EXTERNAL\nS: 334 VXNlcm5hbWU6\nC: dQ==", 'external u ""'),
        ("C: AUTH EXTERNAL dQ==", 'external u ""'),
        (
            "C: AUTH CRAM-MD5\nS: 334 base64 of <⟨salt⟩@mx.test>\n"
            "C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==",
            "cram-md5 u 0123456789abcdef0123456789abcdef salt",
        ),
        ("C: AUTH XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==", "xoauth2 u t"),
        ("C: AUTH OAUTHBEARER bixhPXUsAWF1dGg9QmVhcmVyIHQBAQ==", "oauthbearer u t"),
    ],
)
def test_mechanisms(dialogue: str, request_: str) -> None:
    smtp(f"{dialogue}\nQ: {request_}", ALL)


@pytest.mark.parametrize(
    "command",
    [
        "AUTH FOO",
        "AUTH NONE",
        "AUTH PLAIN AHUAcA== x",
        "AUTH LOGIN dQ== x",
        "AUTH CRAM-MD5 dQ==",
        "AUTH PLAIN *",
    ],
)
def test_attempts_that_are_refused(command: str) -> None:
    smtp(
        f"C: {command}\nS: {INVALID}\nC: NOOP\nS: 250 2.0.0 OK", f"{ALL} max_errors 1;"
    )


@pytest.mark.proves("smtp_auth")
@pytest.mark.parametrize(
    "command",
    ["AUTH CRAM-MD5", "AUTH EXTERNAL", "AUTH EXTERNAL dQ==", "AUTH XOAUTH2 x"],
)
def test_disabled_mechanism_is_refused(command: str) -> None:
    smtp(f"C: {command}\nS: {INVALID}")


def test_plain_and_login_cannot_be_disabled() -> None:
    smtp("C: AUTH PLAIN AHUAcA==\nQ: plain u p", OPEN)
    smtp("C: AUTH LOGIN dQ==\nS: 334 UGFzc3dvcmQ6\nC: cA==\nQ: plain u p", OPEN)


@pytest.mark.parametrize(
    ("response", "is_good"),
    [
        ("AHUAcA== 2 3 4 5 6 7 8 9 10 11", True),
        ("AHUAcA== 2 3 4 5 6 7 8 9 10 11 12", False),
        (" AHUAcA==", False),
        ("*", False),
        ("", False),
    ],
)
def test_only_the_first_word_of_a_response_counts(response: str, is_good: bool) -> None:
    result = "Q: plain u p" if is_good else f"S: {INVALID}\nC: NOOP\nS: 250 2.0.0 OK"
    smtp(f"C: AUTH PLAIN\nS: 334␠\nC: {response}\n{result}")


# Limits


@pytest.mark.proves("smtp_client_buffer")
def test_too_long_command() -> None:
    smtp(
        f"""
        C: NOOP {"x" * 57}
        S: 250 2.0.0 OK
        C: NOOP {"x" * 58}
        S: 500 5.5.1 Invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "NOOP {"x" * 58}\\x0D" (increase smtp_client_buffer to 8k) while in auth state, …
        """,
        "smtp_client_buffer 64;",
    )
    smtp(
        f"""
        C: AUTH LOGIN {"x" * 64}
        S: 500 5.5.1 Invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "AUTH ..." (increase smtp_client_buffer to 8k) while in auth state, …
        """,
        "smtp_client_buffer 64;",
    )


def test_each_response_has_the_whole_buffer() -> None:
    smtp(
        f"""
        C: AUTH LOGIN {"dXV1" * 12}
        S: 334 UGFzc3dvcmQ6
        C: {"cHBw" * 15}
        Q: plain {"uuu" * 12} {"ppp" * 15}
        """,
        "smtp_client_buffer 64;",
    )


def test_pipelined_commands_may_cross_the_border_of_the_buffer() -> None:
    pipelined = "\n".join(["C: NOOP", *["C| NOOP"] * 29])
    smtp(pipelined + "\nS: 250 2.0.0 OK" * 30, "smtp_client_buffer 64;")


def test_errors_of_the_parser_are_counted() -> None:
    smtp(
        """
        C: foo
        C| VRFY x
        C| HELO
        C| foo
        C| AUTH FOO
        C| foo
        C| NOOP
        S: 500 5.5.1 Invalid command
        S: 500 5.5.1 Invalid command
        S: 501 5.5.4 Invalid argument
        S: 500 5.5.1 Invalid command
        S: 500 5.5.1 Invalid command
        S: 500 5.5.1 Invalid command
        S: ⟨close⟩
        L: [info] client sent too many invalid commands while in auth state, …
        """,
        "max_errors 3;",
    )


def test_commands_are_counted() -> None:
    smtp(
        """
        C: NOOP
        C| foo
        C| RSET
        S: 250 2.0.0 OK
        S: 500 5.5.1 Invalid command
        S: 500 5.5.1 Invalid command
        S: ⟨close⟩
        L: [info] client sent too many commands while in auth state, …
        """,
        "max_commands 1;",
    )


# Mail without a login


def test_login_is_required() -> None:
    # nginx damages the pipelined commands by the way it logs the first.
    smtp(
        """
        C: MAIL FROM:<a@b>
        C| RCPT TO:<c@d>
        C| NOOP
        S: 530 5.7.1 Authentication required
        S: 503 5.5.1 Bad sequence of commands
        S: 250 2.0.0 OK
        L: [info] client was rejected: "MAIL FROM:<a@b>__" while in auth state, …
        """
    )


@pytest.mark.parametrize(
    ("dialogue", "answer"),
    [
        ("C: RCPT TO:<c@d>", SEQUENCE),
        ("C: MAIL", "501 5.5.4 Invalid argument"),
        ("C: MAIL FROM:<a␀b>", "501 5.5.4 Invalid argument"),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: MAIL y", SEQUENCE),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: RCPT", "501 5.5.4 Invalid argument"),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: RCPT ␀", "501 5.5.4 Invalid argument"),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: NOOP\nS: 250 2.0.0 OK\nC: MAIL y", SEQUENCE),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: RSET\nS: 250 2.0.0 OK\nC: RCPT y", SEQUENCE),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: EHLO c\nS: 250 mx.test\nC: RCPT y", SEQUENCE),
        ("C: MAIL x\nS: 250 2.0.0 OK\nC: HELO c\nS: 250 mx.test\nC: RCPT y", SEQUENCE),
        (
            "C: MAIL x\nS: 250 2.0.0 OK\nC: RSET\nS: 250 2.0.0 OK\nC: MAIL y",
            "250 2.0.0 OK",
        ),
    ],
)
def test_order_of_mail_and_rcpt(dialogue: str, answer: str) -> None:
    smtp(f"{dialogue}\nS: {answer}", OPEN)


@pytest.mark.proves("smtp_auth", "none")
def test_mail_and_rcpt_are_asked_about_and_repeated() -> None:
    smtp(
        """
        C: EHLO client.test
        S: 250 mx.test
        C: mail  FROM:<a@b>   SIZE=3 ␠
        C| RCPT TO:<c@d>␠
        C| RCPT TO:<e@f>
        C| DATA
        S: 250 2.0.0 OK
        Q: none "" ""
        Q| Auth-SMTP-Helo: client.test
        Q| Auth-SMTP-From: mail  FROM:<a@b>   SIZE=3
        Q| Auth-SMTP-To: RCPT TO:<c@d>
        A: OK
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]
        B: 220 backend
        P: EHLO client.test
        B: 250-backend
        B: 250 SIZE
        P: mail  FROM:<a@b>   SIZE=3
        B: 250 ok
        P: RCPT TO:<c@d>
        B: 250-2.1.5 Ok
        B: 250 fine
        S: 250-2.1.5 Ok
        S: 250 fine
        P: RCPT TO:<e@f>
        P: DATA
        L: [info] client logged in, …, upstream: 127.0.0.1:9143
        """,
        OPEN,
    )


def test_refused_recipient_leaves_the_client_with_the_backend() -> None:
    smtp(
        f"""
        {none()}
        A: OK
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        P: MAIL FROM:<a@b>
        B: 250 ok
        P: RCPT TO:<c@d>
        B: 550-no such
        B: 550 user
        S: 550-no such
        S: 550 user
        C: RCPT TO:<e@f>
        P: RCPT TO:<e@f>
        L: [info] client logged in, …, upstream: 127.0.0.1:9143
        """,
        f"{OPEN} xclient off; proxy_smtp_auth on;",
    )


def test_refused_sender_ends_the_session() -> None:
    smtp(
        f"""
        {none()}
        A: OK
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        P: MAIL FROM:<a@b>
        B: 550 no
        S: 550 no
        S: ⟨close⟩
        """,
        f"{OPEN} xclient off; proxy_pass_error_message on;",
    )


def test_sender_is_kept_when_a_recipient_was_refused() -> None:
    smtp(
        f"""
        C: HELO c
        S: 250 mx.test
        {none("c")}
        A: NO way
        A| Auth-Wait: 1
        A| Auth-Error-Code: 450 4.7.1
        S: 450 4.7.1 way
        C: MAIL FROM:<x@y>
        S: 503 5.5.1 Bad sequence of commands
        C: RCPT TO:<e@f>
        Q: none "" "" #2
        Q| Auth-SMTP-Helo: c
        Q| Auth-SMTP-From: MAIL FROM:<a@b>
        Q| Auth-SMTP-To: RCPT TO:<e@f>
        A: NO
        A| Auth-Status: never
        S: 451 4.3.2 Internal server error
        """,
        OPEN,
    )


def test_mail_forgets_the_login_of_an_earlier_attempt() -> None:
    smtp(
        f"""
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: NO way
        A| Auth-Wait: 1
        S: 535 5.7.0 way
        L: [info] client login failed: "way" while in http auth state, …, login: "u"
        {none(attempt=2)}
        A: NO
        S: 451 4.3.2 Internal server error
        L: [error] auth http server 127.0.0.1:9000 did not send a decision: "HTTP/1.0 200 OK", wanted Auth-Status, or Auth-Server and Auth-Port with an HTTP status of 2xx while in http auth state, …
        """,
        OPEN,
    )


def test_mail_needs_tls_where_logins_do() -> None:
    # nginx lets it pass in clear text.
    smtp(
        """
        C: MAIL FROM:<a@b>
        S: 530 5.7.0 Must issue a STARTTLS command first
        C: RCPT TO:<c@d>
        S: 503 5.5.1 Bad sequence of commands
        C: STARTTLS
        S: 220 2.0.0 Start TLS
        C: ⟨tls⟩
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        """,
        f"{OPEN} starttls only; {TLS}",
    )


def test_starttls_forgets_what_was_said() -> None:
    smtp(
        """
        C: EHLO evil
        S: 250-mx.test
        S: 250 STARTTLS
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: STARTTLS
        S: 220 2.0.0 Start TLS
        C: ⟨tls⟩
        C: RCPT TO:<c@d>
        S: 503 5.5.1 Bad sequence of commands
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        Q: none "" ""
        Q| Auth-SMTP-Helo:␠
        Q| Auth-SMTP-From: MAIL FROM:<a@b>
        Q| Auth-SMTP-To: RCPT TO:<c@d>
        Q| Auth-SSL: on
        Q| Auth-SSL-Protocol: TLSv1.3
        Q| Auth-SSL-Cipher: TLS_AES_256_GCM_SHA384
        A: OK
        B: 220 backend
        P: HELO mx.test
        """,
        f"{OPEN} starttls on; xclient off; {TLS}",
    )


# Results of a login


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("", "535 5.7.0 no"),
        ("A| Auth-Error-Code: 454 4.7.0", "454 4.7.0 no"),
        ("A| Auth-Error-Code:", "535 5.7.0 no"),
    ],
)
def test_refused_login_ends_the_session(header: str, answer: str) -> None:
    smtp(
        f"""
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: NO no
        {header}
        S: {answer}
        S: ⟨close⟩
        """
    )


def test_refused_login_may_be_repeated() -> None:
    smtp(
        """
        C: AUTH PLAIN AHUAcA==
        C| NOOP
        Q: plain u p
        A: NO no
        A| Auth-Wait: 10
        S: 535 5.7.0 no
        at 10
        S: 250 2.0.0 OK
        C: AUTH PLAIN AHYAcQ==
        Q: plain v q #2
        """
    )


def test_auth_server_fails() -> None:
    smtp(
        """
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: ⟨close⟩
        S: 451 4.3.2 Internal server error
        S: ⟨close⟩
        """
    )


# Backends

HELLOS = {
    "": "",
    "EHLO": "C: EHLO c.test\nS: 250-mx.test\nS: 250 AUTH PLAIN LOGIN",
    "HELO": "C: HELO c.test\nS: 250 mx.test",
}


@pytest.mark.proves("proxy_smtp_auth")
@pytest.mark.proves("xclient")
@pytest.mark.parametrize("hello", HELLOS)
@pytest.mark.parametrize("xclient", [True, False])
@pytest.mark.parametrize("auth", [True, False])
def test_login_at_the_backend(hello: str, xclient: bool, auth: bool) -> None:
    login = "" if auth else " LOGIN=u"
    verb = "EHLO" if xclient or hello == "EHLO" else "HELO"
    lines = [
        HELLOS[hello],
        GRANTED,
        "B: 220 backend",
        f"P: {verb} mx.test",
        "B: 250 ok",
    ]
    if xclient:
        lines += [f"P: XCLIENT ADDR=127.0.0.1{login} NAME=[UNAVAILABLE]", "B: 250 ok"]
        if hello:
            lines += [f"P: {hello} c.test", "B: 250 ok"]
    if auth:
        lines += ["P: AUTH PLAIN AHUAcA==", "B: 235 welcome"]
    smtp(
        "\n".join(
            [
                *lines,
                "S: 235 2.0.0 OK",
                f"L: [info] client logged in, …, {UPSTREAM}",
                "C: MAIL FROM:<a@b>",
                "P: MAIL FROM:<a@b>",
                "B: 250 ok",
                "S: 250 ok",
            ]
        ),
        f"xclient {'on' if xclient else 'off'}; proxy_smtp_auth {'on' if auth else 'off'};",
    )


def test_last_of_helo_and_ehlo_counts() -> None:
    for first, second in (("HELO", "EHLO"), ("EHLO", "HELO")):
        smtp(
            f"""
            {HELLOS[first]}
            {HELLOS[second]}
            {GRANTED}
            B: 220 backend
            P: {second} mx.test
            """,
            "xclient off;",
        )


def test_method_without_a_password() -> None:
    script = """
        C: AUTH EXTERNAL dQ==
        Q: external u ""
        A: OK
        B: 220 backend
        P: HELO mx.test
        B: 250 backend
        """
    smtp(f"{script}\nS: 235 2.0.0 OK", "smtp_auth external; xclient off;")
    smtp(
        f"""
        {script}
        S: 451 4.3.2 Internal server error
        S: ⟨close⟩
        L: [error] no password available while sending AUTH to upstream, …, {UPSTREAM}
        """,
        "smtp_auth external; xclient off; proxy_smtp_auth on;",
    )


def test_client_of_a_unix_socket() -> None:
    smtp(
        """
        C: AUTH PLAIN AHUAcA==
        Q: GET /auth HTTP/1.0
        Q| Host: 127.0.0.1
        Q| Auth-Method: plain
        Q| Auth-User: u
        Q| Auth-Pass: p
        Q| Auth-Protocol: smtp
        Q| Auth-Login-Attempt: 1
        Q| Client-IP: unix:
        Q| Client-Host: [UNAVAILABLE]
        A: OK
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=unix: LOGIN=u NAME=[UNAVAILABLE]
        """,
        client="unix:",
    )


def test_auth_server_may_name_another_user() -> None:
    smtp(
        """
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: OK
        A| Auth-User: ex+ample
        A| Auth-Pass: secret
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=127.0.0.1 LOGIN=ex+2Bample NAME=[UNAVAILABLE]
        """
    )


STEPS = [
    ("220", "EHLO mx.test"),
    ("250", "XCLIENT ADDR=127.0.0.1 NAME=[UNAVAILABLE]"),
    ("220", "EHLO c.test"),
    ("250", "AUTH PLAIN AHUAcA=="),
    ("235", ""),
]
REFUSED = ["", " to EHLO", " to XCLIENT", " to the client's EHLO", ""]
"""What the log says of each refused step; where nginx's line says enough, nothing."""


@pytest.mark.parametrize("place", range(len(STEPS)))
@pytest.mark.parametrize("code", ["554", "354", "2xx", ""])
def test_backend_that_refuses(place: int, code: str) -> None:
    dialogue = [HELLOS["EHLO"], GRANTED]
    for accepted, command in STEPS[:place]:
        dialogue += [f"B: {accepted}-so", f"B: {accepted} be it", f"P: {command}"]
    dialogue += [f"B: {code}-not", f"B: {code} you"] if code else ["B:"]
    where = f"{REFUSED[place]} while reading response from upstream, …, {UPSTREAM}"
    if place == 2 and code == "554":
        where = where.replace("XCLIENT", 'XCLIENT, try "xclient off"')
    shown = f"{code}-not\\x0D\\x0A{code} you" if code else ""
    for directive, answer, level in (
        ("", ["S: 451 4.3.2 Internal server error"], "error"),
        (
            "proxy_pass_error_message on;",
            [f"S: {code}-not", f"S: {code} you"] if code else ["S:"],
            "info",
        ),
    ):
        smtp(
            "\n".join(
                [
                    *dialogue,
                    *answer,
                    "S: ⟨close⟩",
                    "P: ⟨close⟩",
                    f'L: [{level}] upstream sent invalid response: "{shown}"{where}',
                ]
            ),
            f"proxy_smtp_auth on; {directive}",
        )


def test_codes_are_compared_by_three_digits() -> None:
    smtp(
        f"""
        {GRANTED}
        B: 220
        P: HELO mx.test
        B: 2500 what
        S: 235 2.0.0 OK
        """,
        "xclient off;",
    )


def test_backend_that_speaks_before_its_turn() -> None:
    smtp(
        f"""
        {GRANTED}
        B: 220 backend
        B| 250 backend
        B| 250 go on
        S: 451 4.3.2 Internal server error
        S: ⟨close⟩
        L: [error] upstream sent invalid response: "250 backend\\x0D\\x0A250 go on" while reading response from upstream, …, {UPSTREAM}
        """
    )


def test_too_long_reply_of_the_backend() -> None:
    smtp(
        f"""
        {GRANTED}
        B: 220-{"x" * 26}
        B: 220-{"x" * 60}
        S: 451 4.3.2 Internal server error
        S: ⟨close⟩
        L: [error] upstream sent too long response line: "220-{"x" * 26}\\x0D\\x0A220-{"x" * 27}" while reading response from upstream, …, {UPSTREAM}
        """,
        "proxy_buffer 64; proxy_pass_error_message on;",
    )


@pytest.mark.parametrize("user", ["YQ0KUlNFVA==", "YQpi", "YQBi"])
def test_line_breaks_never_reach_the_backend(user: str) -> None:
    smtp(
        f"""
        C: AUTH LOGIN {user}
        S: 334 UGFzc3dvcmQ6
        C: cA==
        S: {INVALID}
        C: AUTH EXTERNAL {user}
        S: {INVALID}
        """,
        "smtp_auth external;",
    )
