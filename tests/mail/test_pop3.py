"""The dialogues of POP3, with clients before the login and with backends."""

import pytest

from tests.play import Stage, play

TLS = "ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
ALL = "pop3_auth plain apop cram-md5 external xoauth2 oauthbearer;"
CREDENTIALS = """
    C: USER u
    S: +OK
    C: PASS p
    Q: plain u p
"""
GRANTED = f"{CREDENTIALS}\nA: OK"
UPSTREAM = 'login: "u", upstream: 127.0.0.1:9143'


def pop3(script: str, directives: str = "", **options: object) -> Stage:
    """Play a script behind the greeting."""
    salted = "apop" in directives or "cram-md5" in directives
    salt = " <⟨salt⟩@mx.test>" if salted else ""
    script = f"S: +OK POP3 ready{salt}\n{script}"
    return play(script, f"protocol pop3; {directives}", **options)


# Commands


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("NOOP", "+OK"),
        ("noop␊", "+OK"),
        ("NOOP  x  y z ", "+OK"),
        ("NOOP x y z w", "-ERR invalid command"),
        ("NOOP ␀", "+OK"),
        ("NOOP⟨ff⟩", "-ERR invalid command"),
        (" NOOP", "-ERR invalid command"),
        ("NOO", "-ERR invalid command"),
        ("NOOPS", "-ERR invalid command"),
        ("NOOP␉", "-ERR invalid command"),
        ("NO0P", "-ERR invalid command"),
        ("NOOP␍x", "-ERR invalid command"),
        ("NOOP␍␍␊", "-ERR invalid command"),
        ("STAT", "-ERR invalid command"),
        ("", "-ERR invalid command"),
        ("␊", "-ERR invalid command"),
        ("GET / HTTP/1.1", "-ERR invalid command"),
    ],
)
def test_line_is_taken_apart(line: str, answer: str) -> None:
    pop3(f"C: {line}\nS: {answer}\nC: NOOP\nS: +OK")


@pytest.mark.parametrize(
    ("user", "password", "request_"),
    [
        ("u", "p", "u p"),
        ("  u", "   p", "u p"),
        ("a b  c ", " d  e ", "a%20b%20%20c%20 d%20%20e%20"),
        ("⟨ff⟩␉", "%{1}␁", "⟨ff⟩%09 %25{1}%01"),
        ("u␊", "p␊", "u p"),
    ],
)
def test_user_and_pass_take_the_rest_of_the_line(
    user: str, password: str, request_: str
) -> None:
    pop3(f"C: USER {user}\nS: +OK\nC: PASS {password}\nQ: plain {request_}")


@pytest.mark.parametrize("command", ["USER", "USER ", "PASS p", "APOP u", "AUTH FOO"])
def test_commands_that_are_refused_at_the_start(command: str) -> None:
    pop3(f"C: {command}\nS: -ERR invalid command\nC: NOOP\nS: +OK", "max_errors 1;")


@pytest.mark.parametrize(
    "command",
    [
        "USER v",
        "PASS",
        "PASS ",
        "APOP u d",
        "AUTH",
        "AUTH PLAIN AHUAcA==",
        "STLS",
        "FOO",
    ],
)
def test_after_user_everything_else_goes_back_to_the_start(command: str) -> None:
    pop3(
        f"""
        C: USER u
        S: +OK
        C: {command}
        S: -ERR invalid command
        C: PASS p
        S: -ERR invalid command
        """,
        f"{ALL} starttls on; {TLS}",
    )


def test_some_commands_change_nothing_after_user() -> None:
    pop3(
        """
        C: USER u
        S: +OK
        C: NOOP
        S: +OK
        C: CAPA
        S: +OK Capability list follows
        S: TOP
        S: USER
        S: UIDL
        S: SASL PLAIN LOGIN
        S: .
        C: PASS p
        Q: plain u p
        """
    )


def test_quit_says_goodbye() -> None:
    pop3("C: QUIT\nS: +OK\nS: ⟨close⟩")
    pop3("C: USER u\nS: +OK\nC: QUIT\nS: +OK\nS: ⟨close⟩")


def test_nul_in_user_or_pass_is_refused() -> None:
    pop3(
        """
        C: USER u␀
        S: -ERR invalid command
        L: [info] client sent invalid login in USER command while in auth state, …, login: "u\\x00"
        C: USER u
        S: +OK
        C: PASS p␀
        S: -ERR invalid command
        L: [info] client sent invalid password in PASS command while in auth state, …, login: "u"
        """
    )


# Capabilities and STLS


def _listed(lines: str) -> str:
    return "".join(f"S: {line}\n" for line in [*lines.split(";"), "."])


@pytest.mark.proves("pop3_capabilities")
@pytest.mark.parametrize(
    ("directives", "lines"),
    [
        ("", "TOP;USER;UIDL;SASL PLAIN LOGIN"),
        (
            'pop3_capabilities "IMPLEMENTATION x y" top;',
            "IMPLEMENTATION x y;top;SASL PLAIN LOGIN",
        ),
        (
            ALL,
            "TOP;USER;UIDL;SASL PLAIN LOGIN CRAM-MD5 EXTERNAL XOAUTH2 OAUTHBEARER",
        ),
        ("pop3_auth apop;", "TOP;USER;UIDL"),  # nginx sends an empty SASL line
        (f"starttls on; {TLS}", "TOP;USER;UIDL;SASL PLAIN LOGIN;STLS"),
        (f"starttls only; {TLS}", "TOP;UIDL;STLS"),
        (f"starttls only; pop3_capabilities user TOP User; {TLS}", "TOP;STLS"),
    ],
)
def test_capabilities(directives: str, lines: str) -> None:
    pop3(f"C: CAPA\nS: +OK Capability list follows\n{_listed(lines)}", directives)


def test_stls_is_hidden_after_user() -> None:
    pop3(
        """
        C: USER u
        S: +OK
        C: CAPA x
        S: +OK Capability list follows
        S: TOP
        S: USER
        S: UIDL
        S: SASL PLAIN LOGIN
        S: .
        """,
        f"starttls on; {TLS}",
    )


@pytest.mark.parametrize(
    ("directives", "lines"),
    [
        ("", "PLAIN;LOGIN"),
        ("pop3_auth external cram-md5;", "CRAM-MD5;EXTERNAL"),
    ],
)
def test_auth_lists_mechanisms(directives: str, lines: str) -> None:
    pop3(f"C: AUTH\nS: +OK methods supported:\n{_listed(lines)}", directives)


def test_auth_lists_nothing() -> None:
    pop3("C: AUTH\nS: +OK methods supported:\nS: .", "pop3_auth apop;")


def test_stls_changes_what_is_possible() -> None:
    pop3(
        """
        C: USER u
        S: -ERR invalid command
        C: APOP u d
        S: -ERR invalid command
        C: AUTH
        S: -ERR invalid command
        C: AUTH PLAIN AHUAcA==
        S: -ERR invalid command
        C: STLS
        C| USER evil
        C| PASS e…
        S: +OK
        C: ⟨tls⟩
        C: CAPA
        S: +OK Capability list follows
        S: TOP
        S: USER
        S: UIDL
        S: SASL PLAIN LOGIN CRAM-MD5
        S: .
        C: STLS
        S: -ERR invalid command
        C: APOP u d
        Q: apop u d salt tls
        """,
        f"pop3_auth plain apop cram-md5; starttls only; max_errors 1; {TLS}",
    )


def test_stls_that_is_off_is_refused() -> None:
    pop3("C: STLS\nS: -ERR invalid command\nC: NOOP\nS: +OK", "max_errors 1;")


# Mechanisms


@pytest.mark.proves(
    "pop3_auth", "plain", "apop", "cram-md5", "external", "xoauth2", "oauthbearer"
)
@pytest.mark.parametrize(
    ("dialogue", "request_"),
    [
        ("C: APOP u d", "apop u d salt"),
        ("C: AUTH PLAIN\nS: +␠\nC: AHUAcA==", "plain u p"),
        ("C: AUTH PLAIN AHUAcA==", "plain u p"),
        ("C: auth plain  AHUAcA== ", "plain u p"),
        (
            "C: AUTH LOGIN\nS: + VXNlcm5hbWU6\nC: dQ==\nS: + UGFzc3dvcmQ6\nC: cA==",
            "plain u p",
        ),
        ("C: AUTH LOGIN dQ==\nS: + UGFzc3dvcmQ6\nC: cA==", "plain u p"),
        ("C: AUTH EXTERNAL\nS: + VXNlcm5hbWU6\nC: dQ==", 'external u ""'),
        ("C: AUTH EXTERNAL dQ==", 'external u ""'),
        (
            "C: AUTH CRAM-MD5\nS: + base64 of <⟨salt⟩@mx.test>\n"
            "C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==",
            "cram-md5 u 0123456789abcdef0123456789abcdef salt",
        ),
        ("C: AUTH XOAUTH2\nS: +␠\nC: dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==", "xoauth2 u t"),
        ("C: AUTH OAUTHBEARER bixhPXUsAWF1dGg9QmVhcmVyIHQBAQ==", "oauthbearer u t"),
    ],
)
def test_mechanisms(dialogue: str, request_: str) -> None:
    pop3(f"{dialogue}\nQ: {request_}", ALL)


@pytest.mark.parametrize(
    "command",
    [
        "APOP u",
        "APOP u d x",
        "AUTH FOO",
        "AUTH APOP",
        "AUTH PLAIN AHUAcA== x",
        "AUTH LOGIN dQ== x",
        "AUTH CRAM-MD5 dQ==",
        "AUTH EXTERNAL dQ== x",
        "AUTH PLAIN *",
    ],
)
def test_attempts_that_are_refused(command: str) -> None:
    pop3(
        f"C: {command}\nS: -ERR invalid command\nC: NOOP\nS: +OK",
        f"{ALL} max_errors 1;",
    )


@pytest.mark.proves("pop3_auth")
@pytest.mark.parametrize(
    "command",
    [
        "APOP u d",
        "AUTH CRAM-MD5",
        "AUTH EXTERNAL",
        "AUTH EXTERNAL dQ==",
        "AUTH XOAUTH2 x",
    ],
)
def test_disabled_mechanism_is_refused(command: str) -> None:
    pop3(f"C: {command}\nS: -ERR invalid command")


def test_plain_and_login_cannot_be_disabled() -> None:
    directives = "pop3_auth external;"
    pop3(CREDENTIALS, directives)
    pop3("C: AUTH PLAIN AHUAcA==\nQ: plain u p", directives)
    pop3("C: AUTH LOGIN dQ==\nS: + UGFzc3dvcmQ6\nC: cA==\nQ: plain u p", directives)


@pytest.mark.parametrize(
    ("response", "is_good"),
    [
        ("AHUAcA== x y", True),
        ("AHUAcA== x y z", False),
        (" AHUAcA==", False),
        ("*", False),
        ("", False),
        ("AHUAcA==␍x", False),
    ],
)
def test_only_the_first_word_of_a_response_counts(response: str, is_good: bool) -> None:
    result = "Q: plain u p" if is_good else "S: -ERR invalid command\nC: NOOP\nS: +OK"
    pop3(f"C: AUTH PLAIN\nS: +␠\nC: {response}\n{result}")


@pytest.mark.parametrize("method", ["apop", "cram-md5"])
def test_greeting_has_a_salt_for_those_who_need_one(method: str) -> None:
    pop3("C: NOOP\nS: +OK", f"pop3_auth {method};")


def test_salt_of_the_greeting_is_kept() -> None:
    pop3(
        """
        C: AUTH CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        C: x
        S: -ERR invalid command
        C: APOP u d
        Q: apop u d salt
        A: NO again
        A| Auth-Wait: 1
        S: -ERR again
        C: STLS
        S: +OK
        C: ⟨tls⟩
        C: APOP u d
        Q: apop u d salt tls #2
        """,
        f"pop3_auth apop cram-md5; starttls on; {TLS}",
    )


# Limits


def test_lines_may_have_4096_octets() -> None:
    # nginx allows 128.
    pop3(f"C: NOOP {'x' * 4089}\nS: +OK")
    pop3(
        f"""
        C: NOOP {"x" * 4090}
        S: -ERR invalid command
        S: ⟨close⟩
        """
    )


@pytest.mark.proves("pop3_client_buffer")
def test_command_may_fill_the_buffer() -> None:
    pop3(
        f"""
        C: NOOP {"x" * 57}
        S: +OK
        C: NOOP {"x" * 58}
        S: -ERR invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "NOOP {"x" * 58}\\x0D" (increase pop3_client_buffer to 8k) while in auth state, …
        """,
        "pop3_client_buffer 64;",
    )


def test_long_passwords_and_tokens() -> None:
    pop3(f"C: USER u\nS: +OK\nC: PASS {'p' * 1000}\nQ: plain u {'p' * 1000}")
    response = "AHUA" + "cHBw" * 1000
    pop3(f"C: AUTH PLAIN\nS: +␠\nC: {response}\nQ: plain u {'p' * 3000}")


def test_too_long_command_is_logged_without_secrets() -> None:
    for dialogue, shown in (
        (f"C: USER u\nS: +OK\nC: PASS {'x' * 5000}", "PASS ..."),
        (f"C: apop u {'x' * 5000}", "apop ..."),
        (f"C: AUTH PLAIN {'x' * 5000}", "AUTH ..."),
        (f"C: AUTH PLAIN\nS: +␠\nC: {'x' * 5000}", "..."),
    ):
        stage = pop3(f"{dialogue}\nS: -ERR invalid command\nS: ⟨close⟩")
        level, text = stage.log.events[-1]
        assert level == "info"
        assert text.startswith(
            f'client sent too long command "{shown}" '
            "(increase pop3_client_buffer to 8k) while in auth state"
        )


def test_commands_in_one_segment_are_answered_in_order() -> None:
    pop3(
        """
        C: NOOP
        C| FOO
        C| USER u
        C| PASS p
        C| STAT
        S: +OK
        S: -ERR invalid command
        S: +OK
        Q: plain u p
        A: OK
        B: +OK
        P: USER u
        B: +OK
        P: PASS p
        B: +OK maildrop ready
        S: +OK maildrop ready
        P: STAT
        """
    )


def test_errors_of_the_parser_are_counted() -> None:
    pop3(
        """
        C: FOO
        S: -ERR invalid command
        C: PASS p
        S: -ERR invalid command
        C: NOOP a b c d
        S: -ERR invalid command
        S: ⟨close⟩
        L: [info] client sent too many invalid commands while in auth state, …
        """,
        "max_errors 2;",
    )


def test_commands_are_counted() -> None:
    pop3(
        """
        C: NOOP
        S: +OK
        C: FOO
        S: -ERR invalid command
        C: NOOP
        S: -ERR invalid command
        S: ⟨close⟩
        L: [info] client sent too many commands while in auth state, …
        """,
        "max_commands 1;",
    )


# Results of a login


def test_refused_login_ends_the_session() -> None:
    pop3(
        f"""
        {CREDENTIALS}
        A: NO Invalid login or password
        S: -ERR Invalid login or password
        S: ⟨close⟩
        L: [info] client login failed: "Invalid login or password" while in http auth state, …, login: "u"
        """
    )


def test_refused_login_may_be_repeated_from_the_start() -> None:
    pop3(
        """
        C: USER u
        C| PASS p
        C| PASS q
        S: +OK
        Q: plain u p
        A: NO again
        A| Auth-Wait: 2
        A| Auth-Error-Code: 554
        S: -ERR again
        at 2
        S: -ERR invalid command
        C: USER v
        S: +OK
        C: PASS q
        Q: plain v q #2
        """
    )


def test_auth_server_fails() -> None:
    pop3(
        f"""
        {CREDENTIALS}
        A: ⟨close⟩
        S: -ERR internal server error
        S: ⟨close⟩
        """
    )


@pytest.mark.parametrize(
    ("dialogue", "request_"),
    [
        ("C: APOP u d", "apop u d salt"),
        ("C: AUTH EXTERNAL dQ==", 'external u ""'),
        (
            "C: AUTH CRAM-MD5\nS: + base64 of <⟨salt⟩@mx.test>\n"
            "C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==",
            "cram-md5 u 0123456789abcdef0123456789abcdef salt",
        ),
    ],
)
def test_auth_server_must_know_the_password(dialogue: str, request_: str) -> None:
    pop3(
        f"""
        {dialogue}
        Q: {request_}
        A: OK
        S: -ERR internal server error
        S: ⟨close⟩
        L: [error] auth http server 127.0.0.1:9000 did not send password: "HTTP/1.0 200 OK", wanted Auth-Pass, as the client sent no password while in http auth state, …, login: "u"
        """,
        ALL,
    )
    pop3(
        f"""
        {dialogue}
        Q: {request_}
        A: OK
        A| Auth-Pass: secret
        B: +OK
        P: USER u
        B: +OK
        P: PASS secret
        B: +OK
        S: +OK
        """,
        ALL,
    )


# Backends


def test_login_at_the_backend() -> None:
    pop3(
        f"""
        {GRANTED}
        B: +OK backend <1.2@there>
        P: USER u
        B: +OK␊
        P: PASS p
        B: +OKfine
        B| * more
        S: +OKfine
        S: * more
        L: [info] client logged in, …, {UPSTREAM}
        C: STAT
        P: STAT
        B: ⟨close⟩
        S: ⟨close⟩
        L: [info] proxied session done, …, {UPSTREAM}
        """
    )


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("reply", ["-ERR locked", "+ok", "", "* OK"])
def test_backend_that_refuses(place: int, reply: str) -> None:
    dialogue = ["B: +OK", "P: USER u", "B: +OK", "P: PASS p", "B: +OK"][: 2 * place]
    failure = "\n".join([GRANTED, *dialogue, f"B: {reply}"])
    where = f"while reading response from upstream, …, {UPSTREAM}"
    pop3(
        f"""
        {failure}
        S: -ERR internal server error
        S: ⟨close⟩
        P: ⟨close⟩
        L: [error] upstream sent invalid response: "{reply}" {where}
        """
    )
    pop3(
        f"""
        {failure}
        S: {reply}
        S: ⟨close⟩
        L: [info] upstream sent invalid response: "{reply}" {where}
        """,
        "proxy_pass_error_message on;",
    )


def test_backend_that_speaks_before_its_turn() -> None:
    # What it says would be taken for the answer to the next command, and by the
    # client for the answer to its login.
    for directive in ("", "proxy_pass_error_message on;"):
        pop3(
            f"""
            {GRANTED}
            B: +OK backend
            B| +OK and on
            S: -ERR internal server error
            S: ⟨close⟩
            L: [error] upstream sent invalid response: "+OK and on" while reading response from upstream, …, {UPSTREAM}
            """,
            directive,
        )


def test_too_long_reply_of_the_backend() -> None:
    pop3(
        f"""
        {GRANTED}
        B: +OK ⟨x*58⟩
        P: USER u
        B: +OK ⟨x*59⟩
        S: -ERR internal server error
        S: ⟨close⟩
        L: [error] upstream sent too long response line: "+OK {"x" * 59}" while reading response from upstream, …, {UPSTREAM}
        """,
        "proxy_buffer 64; proxy_pass_error_message on;",
    )


@pytest.mark.parametrize("user", ["YQ0KREVMRSAx", "YQpi", "YQBi"])
def test_line_breaks_never_reach_the_backend(user: str) -> None:
    # In nginx, "a CR LF DELE 1" makes a command of its own.
    pop3(
        f"""
        C: AUTH EXTERNAL {user}
        S: -ERR invalid command
        C: AUTH LOGIN {user}
        S: + UGFzc3dvcmQ6
        C: cA==
        S: -ERR invalid command
        C: AUTH LOGIN dQ==
        S: + UGFzc3dvcmQ6
        C: {user}
        S: -ERR invalid command
        """,
        "pop3_auth external;",
    )
