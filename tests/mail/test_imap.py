"""The dialogues of IMAP, with clients before the login and with backends."""

import pytest

from tests.differential.notation import to_bytes
from tests.play import Stage, play

TLS = "ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
GRANTED = """
    Q: plain u p
    A: OK
    B: * OK ready
"""
ENTERED = """
    P: a LOGIN "u" "p"
    B: a OK welcome
    S: a OK welcome
"""
LITERAL = "proxy_login literal;"


def imap(script: str, directives: str = "", **options: object) -> Stage:
    """Play a script behind the greeting."""
    script = f"S: * OK IMAP4 ready\n{script}"
    return play(script, f"protocol imap; {directives}", **options)


# Commands


def test_bad_command_is_answered() -> None:
    imap(
        """
        C: a1 FETCH 1 BODY[]
        S: a1 BAD invalid command
        C: a2 NOOP
        S: a2 OK completed
        """
    )


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("a NOOP", "a OK completed"),
        ("a noop", "a OK completed"),
        ("a   NOOP␊", "a OK completed"),
        ("a NOOP ␊", "a OK completed"),
        ("a NOOP x y z", "a OK completed"),
        ('a NOOP "x"y{', "a OK completed"),
        ("a NOOP {1x", "a BAD invalid command"),
        ("a NOOP x y z w", "a BAD invalid command"),
        ('a NOOP x y z "w"', "a BAD invalid command"),
        ("a NOOP x y z {1}", "a BAD invalid command"),
        ("a NOOP x␉y", "a OK completed"),
        ("a NOOP ␀", "a OK completed"),
        ('a NOOP x"y {', "a BAD invalid command"),
        ('a NOOP x{1} y"z', "a OK completed"),
        ("a NOOP␉", "a BAD invalid command"),
        ("a NOOP1", "a BAD invalid command"),
        ("a NOO", "a BAD invalid command"),
        ("a NOOP␍x", "a BAD invalid command"),
        ("a NOOP␍␍␊", "a BAD invalid command"),
        ("a ", "a BAD invalid command"),
        ("a ␊", "a BAD invalid command"),
        ("⟨t*32⟩ NOOP", "⟨t*32⟩ OK completed"),
        ("A-z_0.9 NOOP", "A-z_0.9 OK completed"),
        ("⟨t*33⟩ NOOP", "* BAD invalid command"),
        ("a", "* BAD invalid command"),
        ("", "* BAD invalid command"),
        ("␊", "* BAD invalid command"),
        ("a+b NOOP", "* BAD invalid command"),
        ("a⟨e9⟩ NOOP", "* BAD invalid command"),
        ("a␀ NOOP", "* BAD invalid command"),
        ("* NOOP", "* BAD invalid command"),
        (" NOOP", "* BAD invalid command"),  # nginx takes a space for an empty tag (I2)
        (' a NOOP "', "* BAD invalid command"),
        ('a NOOP "', "a BAD invalid command"),  # nginx forgets about the quote (I1)
        ('a NOOP "x y', "a BAD invalid command"),
        ('a NOOP "x\\', "a BAD invalid command"),
        ("GET / HTTP/1.1", "GET BAD invalid command"),
    ],
)
def test_line_is_taken_apart(line: str, answer: str) -> None:
    imap(f"C: {line}\nS: {answer}\nC: b NOOP\nS: b OK completed")


@pytest.mark.parametrize(
    ("arguments", "login"),
    [
        ("u p", "u p"),
        ("  u   p  ", "u p"),
        ('"u" "p"', "u p"),
        ('"u""p"', "u p"),
        ('"u"p', "u p"),
        (r'"u\"\\\x" p\"q', r'u"\x p\"q'),
        ('"a b" "c d"', "a%20b c%20d"),
        ('"" "p"', None),
        ('u ""', 'u ""'),
        ("u", None),
        ("", None),
        ("u p q", None),
        ("u%41 p", "u%2541 p"),
        ("u⟨ff⟩ p␡", "u⟨ff⟩ p␡"),
        ('u "p␉{1}"', "u p%09{1}"),
    ],
)
def test_login_has_two_arguments(arguments: str, login: str | None) -> None:
    answer = "S: a BAD invalid command" if login is None else f"Q: plain {login}"
    imap(f"C: a LOGIN {arguments}\n{answer}")


def test_nul_in_a_login_is_refused() -> None:
    imap(
        """
        C: a LOGIN u␀ p
        S: a BAD invalid command
        L: [info] client sent invalid login in LOGIN command while in auth state, …, login: "u\\x00"
        C: a LOGIN u p␀
        S: a BAD invalid command
        L: [info] client sent invalid password in LOGIN command while in auth state, …, login: "u"
        """
    )


def test_line_break_in_a_login_is_refused() -> None:
    imap(
        """
        C: a LOGIN {3+}
        C| u⏎ p
        S: a BAD invalid command
        L: [info] client sent invalid login in LOGIN command while in auth state, …, login: "u\\x0D\\x0A"
        C: b LOGIN u {2+}
        C| p␊⏎
        S: b BAD invalid command
        L: [info] client sent invalid password in LOGIN command while in auth state, …, login: "u"
        """,
        "max_errors 1;",
    )


def test_literals_are_asked_for() -> None:
    imap(
        """
        C: a LOGIN {1}
        S: + OK
        C: u {1}
        S: + OK
        C: p
        Q: plain u p
        """
    )


def test_literals_that_are_there_already() -> None:
    imap(
        """
        C: a LOGIN {1}
        C| u {1}
        C| p
        S: + OK
        S: + OK
        Q: plain u p
        """
    )


def test_literals_that_do_not_synchronise() -> None:
    imap(
        """
        C: a LOGIN {3+}
        C| {x} {3+}
        C| " "
        Q: plain {x} "%20"
        """
    )


def test_empty_literal_is_an_empty_argument() -> None:
    # nginx takes an octet of what follows for its data (I3).
    imap(
        """
        C: a LOGIN u {0}
        S: + OK
        C:
        Q: plain u ""
        """
    )
    imap("C: a LOGIN u {}\nS: + OK\nC:\nQ: plain u " + '""')


def test_literal_may_have_any_number_of_cr_before_its_lf() -> None:
    imap("C: a LOGIN {1}␍␍␍␊\nS: + OK\nC: u p\nQ: plain u p")
    imap("C: a LOGIN {1}␊\nS: + OK\nC: u p\nQ: plain u p")


@pytest.mark.parametrize("behind", ["x p", '"p"', "{1}", "␉"])
def test_literal_is_followed_by_a_space(behind: str) -> None:
    imap(f"C: a LOGIN {{1}}\nS: + OK\nC: u{behind}\nS: a BAD invalid command")


def test_literal_in_a_command_that_ignores_it() -> None:
    imap(
        """
        C: a CAPABILITY {4}
        S: + OK
        C: a␍␊b␊
        S: * CAPABILITY IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN
        S: a OK completed
        C: b NOOP {9+}
        C| c LOGOUT␊ {0+}
        C|
        S: b OK completed
        """
    )


@pytest.mark.parametrize("size", ["1844674407370955162", "9" * 40, "-1", "1 ", "0x1"])
def test_impossible_literal_is_invalid(size: str) -> None:
    imap(
        f"C: a LOGIN {{{size}}}\nS: a BAD invalid command\nC: b NOOP\nS: b OK completed"
    )


def test_data_of_unknown_length_ends_the_session() -> None:
    imap(
        """
        C: a03 FOOBAR {10+}
        C| test test␠
        C| a04 NOOP
        S: a03 BAD invalid command
        S: ⟨close⟩
        """
    )
    imap(
        """
        C: a03 FOOBAR {10}
        C| a04 NOOP
        S: a03 BAD invalid command
        S: a04 OK completed
        """
    )


def test_logout_says_goodbye() -> None:
    imap(
        """
        C: a LOGOUT now
        S: * BYE
        S: a OK completed
        S: ⟨close⟩
        """
    )


# Capabilities and STARTTLS


@pytest.mark.proves("imap_capabilities")
@pytest.mark.parametrize(
    ("directives", "line"),
    [
        ("", "IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN"),
        ('imap_capabilities A "B C";', "A B C AUTH=PLAIN"),
        (
            "imap_auth oauthbearer xoauth2 external cram-md5 login plain;",
            "IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN AUTH=LOGIN AUTH=CRAM-MD5 AUTH=EXTERNAL"
            " AUTH=XOAUTH2 AUTH=OAUTHBEARER",
        ),
        (f"starttls on; {TLS}", "IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN STARTTLS"),
        (f"starttls only; {TLS}", "IMAP4 IMAP4rev1 UIDPLUS STARTTLS LOGINDISABLED"),
    ],
)
def test_capabilities(directives: str, line: str) -> None:
    imap(
        f"C: a CAPABILITY\nS: * CAPABILITY {line}\nS: a OK completed",
        directives,
    )


@pytest.mark.proves("starttls", "only")
def test_starttls_changes_what_is_possible() -> None:
    imap(
        """
        C: a LOGIN u p
        S: a BAD invalid command
        C: b AUTHENTICATE PLAIN AHUAcA==
        S: b BAD invalid command
        C: c STARTTLS
        S: c OK completed
        C: ⟨tls⟩
        C: d CAPABILITY
        S: * CAPABILITY IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN
        S: d OK completed
        C: e STARTTLS
        S: e BAD invalid command
        C: f LOGIN u p
        Q: plain u p tls
        A: NO way
        S: f NO way
        L: [info] client login failed: "way" while in http auth state, client: 127.0.0.1 using starttls, server: 127.0.0.1:1143, login: "u"
        """,
        f"starttls only; max_errors 1; {TLS}",
    )


@pytest.mark.proves("starttls", "off")
def test_starttls_that_is_off_is_refused() -> None:
    imap("C: a STARTTLS\nS: a BAD invalid command")


@pytest.mark.proves("starttls", "on")
def test_starttls_drops_what_is_behind_it() -> None:
    imap(
        """
        C: a STARTTLS
        C| b LOGIN evil evil
        C| c NO…
        S: a OK completed
        C: ⟨tls⟩
        C: d NOOP
        S: d OK completed
        """,
        f"starttls on; {TLS}",
    )


def test_tls_from_the_start() -> None:
    play(
        """
        C: ⟨tls⟩
        S: * OK IMAP4 ready
        C: a CAPABILITY
        S: * CAPABILITY IMAP4 IMAP4rev1 UIDPLUS AUTH=PLAIN
        S: a OK completed
        C: b STARTTLS
        S: b BAD invalid command
        """,
        f"protocol imap; listen 127.0.0.1:1143 ssl; {TLS}",
    )


# AUTHENTICATE

ALL = "imap_auth plain login cram-md5 external xoauth2 oauthbearer;"


@pytest.mark.proves(
    "imap_auth", "plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"
)
@pytest.mark.parametrize(
    ("dialogue", "request_"),
    [
        ("C: a AUTHENTICATE PLAIN\nS: +␠\nC: AHUAcA==", "plain u p"),
        ("C: a AUTHENTICATE PLAIN AHUAcA==", "plain u p"),
        ("C: a authenticate plAin AHUAcA==", "plain u p"),
        ('C: a AUTHENTICATE "PLAIN" "AHUAcA=="', "plain u p"),
        ("C: a AUTHENTICATE {5+}\nC| PLAIN {8+}\nC| AHUAcA==", "plain u p"),
        (
            "C: a AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC: dQ==\nS: + UGFzc3dvcmQ6\nC: cA==",
            "plain u p",
        ),
        ("C: a AUTHENTICATE LOGIN dQ==\nS: + UGFzc3dvcmQ6\nC: cA==", "plain u p"),
        (
            "C: a AUTHENTICATE LOGIN\nS: + VXNlcm5hbWU6\nC:\nS: + UGFzc3dvcmQ6\nC:",
            'plain "" ""',
        ),
        ("C: a AUTHENTICATE EXTERNAL\nS: + VXNlcm5hbWU6\nC: dQ==", 'external u ""'),
        ("C: a AUTHENTICATE EXTERNAL dQ==", 'external u ""'),
        ("C: a AUTHENTICATE EXTERNAL\nS: + VXNlcm5hbWU6\nC:", 'external "" ""'),
        (
            "C: a AUTHENTICATE CRAM-MD5\nS: + base64 of <⟨salt⟩@mx.test>\n"
            "C: dSAwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==",
            "cram-md5 u 0123456789abcdef0123456789abcdef salt",
        ),
        (
            "C: a AUTHENTICATE XOAUTH2\nS: +␠\nC: dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==",
            "xoauth2 u t",
        ),
        ("C: a AUTHENTICATE XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==", "xoauth2 u t"),
        (
            "C: a AUTHENTICATE OAUTHBEARER\nS: +␠\nC: bixhPXUsAWF1dGg9QmVhcmVyIHQBAQ==",
            "oauthbearer u t",
        ),
        (
            "C: a AUTHENTICATE OAUTHBEARER bixhPXUsAWF1dGg9QmVhcmVyIHQBAQ==",
            "oauthbearer u t",
        ),
    ],
)
def test_mechanisms(dialogue: str, request_: str) -> None:
    imap(f"{dialogue}\nQ: {request_}", ALL)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "FOO",
        "NONE",
        "APOP",
        "PLAIN AHUAcA== AHUAcA==",
        "LOGIN dQ== cA==",
        "CRAM-MD5 dQ==",
        "EXTERNAL dQ== dQ==",
        "XOAUTH2 a b",
        "OAUTHBEARER a b",
    ],
)
def test_authenticate_that_is_refused(arguments: str) -> None:
    imap(
        f"C: a AUTHENTICATE {arguments}\nS: a BAD invalid command\nC: b NOOP\nS: b OK completed",
        f"{ALL} max_errors 1;",
    )


@pytest.mark.proves("imap_auth")
@pytest.mark.parametrize("name", ["CRAM-MD5", "EXTERNAL", "XOAUTH2", "OAUTHBEARER"])
@pytest.mark.parametrize("response", ["", " dQ=="])
def test_disabled_mechanism_is_refused(name: str, response: str) -> None:
    # nginx lets EXTERNAL pass if it comes with a response (I5).
    imap(f"C: a AUTHENTICATE {name}{response}\nS: a BAD invalid command")


def test_plain_and_login_cannot_be_disabled() -> None:
    imap("C: a LOGIN u p\nQ: plain u p", "imap_auth cram-md5;")
    imap("C: a AUTHENTICATE PLAIN AHUAcA==\nQ: plain u p", "imap_auth cram-md5;")
    imap(
        'C: a AUTHENTICATE LOGIN dQ==\nS: + UGFzc3dvcmQ6\nC:\nQ: plain u ""',
        "imap_auth cram-md5;",
    )


def test_salt_is_the_same_for_the_whole_connection() -> None:
    imap(
        """
        C: a AUTHENTICATE CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        C: *
        S: a BAD invalid command
        C: b AUTHENTICATE CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        """,
        ALL,
    )


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("AHUAcA== x y", None),
        ("AHUAcA== x {1+}␊y", None),
        ('"AHUAcA=="', "a BAD invalid command"),
        ("{8}", "a BAD invalid command"),
        ("AHUAcA== x y z", "a BAD invalid command"),
        (" AHUAcA==", "a BAD invalid command"),
        ("*", "a BAD invalid command"),
        ("", "a BAD invalid command"),
        ("AHUAcA==␍x", "a BAD invalid command"),
    ],
)
def test_only_the_first_word_of_a_response_counts(
    line: str, answer: str | None
) -> None:
    result = "Q: plain u p" if answer is None else f"S: {answer}"
    imap(f"C: a AUTHENTICATE PLAIN\nS: +␠\nC: {line}\n{result}")


def test_bad_response_is_logged_and_does_not_count_as_an_error() -> None:
    imap(
        """
        C: a AUTHENTICATE PLAIN *
        S: a BAD invalid command
        L: [info] client sent invalid base64 encoding in AUTH PLAIN command while in auth state, …
        C: b AUTHENTICATE LOGIN dQ==
        S: + UGFzc3dvcmQ6
        C: !
        S: b BAD invalid command
        L: [info] client sent invalid base64 encoding in AUTH LOGIN command while in auth state, …, login: "u"
        """,
        "max_errors 1;",
    )


# Limits


@pytest.mark.proves("imap_client_buffer")
def test_command_may_fill_the_buffer() -> None:
    imap(
        f"""
        C: a NOOP {"x" * 55}
        S: a OK completed
        C: a NOOP {"x" * 56}
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "a NOOP {"x" * 56}\\x0D" (increase imap_client_buffer to 8k) while in auth state, …
        """,
        "imap_client_buffer 64;",
    )


def test_too_long_command_is_logged_without_secrets() -> None:
    imap(
        f"""
        C: a LOGIN u {"x" * 64}
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "a LOGIN ..." (increase imap_client_buffer to 8k) while in auth state, …
        """,
        "imap_client_buffer 64;",
    )
    imap(
        f"""
        C: a LOGIN {{1}}
        S: + OK
        C: u {"x" * 64}
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "..." (increase imap_client_buffer to 8k) while in auth state, …
        """,
        "imap_client_buffer 64;",
    )


def test_continuation_lines_share_the_buffer_of_their_command() -> None:
    imap(
        f"""
        C: a AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: dQ==
        S: + UGFzc3dvcmQ6
        C: {"x" * 35}
        S: a BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too long command "..." (increase imap_client_buffer to 8k) while in auth state, …, login: "u"
        """,
        "imap_client_buffer 64;",
    )


def test_literal_has_to_fit_into_the_buffer() -> None:
    imap(
        f"""
        C: a LOGIN {{60}}
        S: + OK
        C: {"x" * 40}…
        S: ⟨silence⟩
        C: {"x" * 40}…
        S: a BAD invalid command
        S: ⟨close⟩
        """,
        "imap_client_buffer 64;",
    )


def test_pipelined_commands_may_cross_the_border_of_the_buffer() -> None:
    # nginx does not move them to the front, and calls them too long.
    pipelined = "\n".join(["C: a NOOP", *["C| a NOOP"] * 19])
    imap(pipelined + "\nS: a OK completed" * 20, "imap_client_buffer 64;")


def test_commands_in_one_segment_are_answered_in_order() -> None:
    imap(
        """
        C: a NOOP
        C| b FOO
        C| c NOOP
        C| d LOGOUT
        C| e NOOP
        S: a OK completed
        S: b BAD invalid command
        S: c OK completed
        S: * BYE
        S: d OK completed
        S: ⟨close⟩
        """
    )


def test_commands_before_the_end_of_the_connection_are_answered() -> None:
    imap(
        """
        C: a NOOP
        C| b NOOP
        C: ⟨close⟩
        S: a OK completed
        S: b OK completed
        S: ⟨close⟩
        """
    )


@pytest.mark.proves("max_errors")
def test_errors_of_the_parser_are_counted() -> None:
    imap(
        """
        C: a FOO
        S: a BAD invalid command
        C: b NOOP
        S: b OK completed
        C: c LOGIN u
        S: c BAD invalid command
        C: d STARTTLS
        S: d BAD invalid command
        C: e FOO
        S: e BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too many invalid commands while in auth state, …
        """,
        "max_errors 2;",
    )


@pytest.mark.proves("max_commands")
def test_commands_are_counted() -> None:
    imap(
        """
        C: a NOOP {2}
        S: + OK
        C: xy
        S: a OK completed
        C: b FOO
        S: b BAD invalid command
        C: c NOOP
        C| d NOOP
        S: c OK completed
        S: d BAD invalid command
        S: ⟨close⟩
        L: [info] client sent too many commands while in auth state, …
        """,
        "max_commands 2;",
    )


def test_continuation_lines_are_counted_as_commands() -> None:
    imap(
        """
        C: a AUTHENTICATE LOGIN
        S: + VXNlcm5hbWU6
        C: dQ==
        S: + UGFzc3dvcmQ6
        C: cA==
        S: a BAD invalid command
        S: ⟨close⟩
        """,
        "max_commands 2;",
    )


# Results of a login


def test_refused_login_ends_the_session() -> None:
    imap(
        """
        C: a LOGIN u p
        Q: plain u p
        A: NO Invalid login or password
        S: a NO Invalid login or password
        S: ⟨close⟩
        L: [info] client login failed: "Invalid login or password" while in http auth state, …, login: "u"
        """
    )


def test_refused_login_may_be_repeated_after_a_while() -> None:
    imap(
        """
        C: a LOGIN u p
        C| b NOOP
        Q: plain u p
        A: NO later
        A| Auth-Wait: 3
        S: ⟨silence⟩
        S: a NO later
        at 3
        S: b OK completed
        C: ???
        S: * BAD invalid command
        C:
        S: * BAD invalid command
        C: c LOGIN v q
        Q: plain v q #2
        A: NO way
        S: c NO way
        S: ⟨close⟩
        """
    )


def test_no_left_over_of_an_earlier_attempt() -> None:
    imap(
        """
        C: a AUTHENTICATE PLAIN AHUAcA==
        Q: plain u p
        A: NO again
        A| Auth-Wait: 1
        A| Auth-User: x
        A| Auth-Pass: y
        S: a NO again
        C: b AUTHENTICATE EXTERNAL dQ==
        Q: external u "" #2
        A: NO again
        A| Auth-Wait: 1
        S: b NO again
        C: c AUTHENTICATE CRAM-MD5
        S: + base64 of <⟨salt⟩@mx.test>
        C: dQ==
        S: c BAD invalid command
        """,
        ALL,
    )


# Backends


def test_login_at_the_backend() -> None:
    imap(
        f"""
        C: a LOGIN u p
        {GRANTED}
        {ENTERED}
        L: [info] client logged in, …, login: "u", upstream: 127.0.0.1:9143
        C: b SELECT INBOX
        P: b SELECT INBOX
        B: b OK
        S: b OK
        C: ⟨close⟩
        S: ⟨close⟩
        L: [info] proxied session done, …, login: "u", upstream: 127.0.0.1:9143
        """
    )


def test_what_the_client_sends_meanwhile_goes_to_the_backend() -> None:
    imap(
        f"""
        C: a LOGIN u p
        C| b SELECT INBOX
        {GRANTED}
        P: a LOGIN "u" "p"
        C: c FETCH…
        B: a OK welcome
        B| * ready
        S: a OK welcome
        S: * ready
        P: b SELECT INBOX
        P: c FETCH…
        """
    )


def test_client_that_leaves_meanwhile_is_noticed_later() -> None:
    imap(
        f"""
        C: a LOGIN u p
        C: ⟨close⟩
        {GRANTED}
        {ENTERED}
        S: ⟨close⟩
        P: ⟨close⟩
        L: [info] client logged in, …, login: "u", upstream: 127.0.0.1:9143
        L: [info] proxied session done, …, login: "u", upstream: 127.0.0.1:9143
        """
    )


@pytest.mark.proves("proxy_login", "literal")
def test_login_with_literals() -> None:
    """As nginx does it."""
    imap(
        f"""
        C: a LOGIN u p
        {GRANTED}
        P: a LOGIN {{1}}
        B: + go on
        P: u {{1}}
        B: + go on
        P: p
        B: a OK welcome
        S: a OK welcome
        """,
        LITERAL,
    )


@pytest.mark.proves("proxy_login", "quoted")
@pytest.mark.parametrize("directive", ["", "proxy_login quoted;"])
def test_quoted_login(directive: str) -> None:
    """A space is nothing special; neither is what announces a literal elsewhere."""
    imap(
        """
        C: a LOGIN "a user" {8+}
        C| pass {1}
        Q: plain a%20user pass%20{1}
        A: OK
        B: * OK [CAPABILITY IMAP4rev1 LITERAL+] ready
        P: a LOGIN "a user" "pass {1}"
        B: a OK
        S: a OK
        """,
        directive,
    )


@pytest.mark.parametrize(
    ("user", "password"),
    [
        *(
            ("u", "p⟨c3⟩⟨a4⟩"),
            ("u⟨ff⟩", "p"),
            ("u", "p␉"),
            ("u⟨7f⟩", "p"),
            ("u", "⟨01⟩"),
        ),
        *(("u", '"'), ('u"', "p"), ("u", "\\"), ("DOMAIN\\u", "p")),
        *(("u", "⟨x*985⟩"), ("⟨x*500⟩", "⟨x*486⟩")),
    ],
)
def test_what_is_not_quoted(user: str, password: str) -> None:
    """It is not in RFC 3501, not every server unescapes it, or some lines are too long."""
    sizes = [len(to_bytes(each)) for each in (user, password)]
    imap(
        f"""
        C: a LOGIN {{{sizes[0]}+}}
        C| {user} {{{sizes[1]}+}}
        C| {password}
        Q: ⟨any⟩
        A: OK
        B: * OK ready
        P: a LOGIN {{{sizes[0]}}}
        B: +
        P: {user} {{{sizes[1]}}}
        B: +
        P: {password}
        """
    )


def test_the_longest_quoted_login() -> None:
    imap(
        """
        C: a LOGIN u ⟨x*984⟩
        Q: ⟨any⟩
        A: OK
        B: * OK ready
        P: a LOGIN "u" "⟨x*984⟩"
        """
    )


def test_no_password_is_quoted_as_well() -> None:
    imap(
        """
        C: a LOGIN u ""
        Q: plain u ""
        A: OK
        B: * OK ready
        P: a LOGIN "u" ""
        """
    )


def test_any_octet_reaches_the_backend_in_a_literal() -> None:
    imap(
        r"""
        C: a LOGIN "u {\" ⟨ff⟩" {3+}
        C| \"␠
        Q: plain u%20{"%20⟨ff⟩ \"%20
        A: OK
        B: * OK
        P: a LOGIN {6}
        B: +
        P: u {" ⟨ff⟩ {3}
        B: +
        P: \"␠
        """
    )


def test_auth_server_may_replace_user_and_password() -> None:
    imap(
        """
        C: a LOGIN u p
        Q: plain u p
        A: OK
        A| Auth-User: user
        A| Auth-Pass: secret
        B: * OK
        P: a LOGIN "user" "secret"
        B: a OK
        S: a OK
        L: [info] client logged in, …, login: "user", upstream: 127.0.0.1:9143
        """
    )


def test_tag_of_the_client_is_used() -> None:
    imap(
        f"""
        C: x-1.Y LOGIN u p
        {GRANTED}
        P: x-1.Y LOGIN "u" "p"
        B: x-1.Y OK
        S: x-1.Y OK
        """
    )


def test_backend_with_literal_plus_is_asked_once() -> None:
    imap(
        r"""
        C: a LOGIN u \
        Q: plain u \
        A: OK
        B: * OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] ready
        P: a LOGIN {1+}
        P: u {1+}
        P: \
        B: a OK
        S: a OK
        """
    )


@pytest.mark.parametrize("text", ["LITERAL+", "[CAPABILITY LITERAL-]", "[X LITERAL+]"])
def test_backend_without_literal_plus(text: str) -> None:
    imap(f"C: a LOGIN u \\\nQ: plain u \\\nA: OK\nB: * OK {text}\nP: a LOGIN {{1}}")


def test_literals_as_nginx_sends_them_wait_in_any_case() -> None:
    imap(
        """
        C: a LOGIN u p
        Q: plain u p
        A: OK
        B: * OK [CAPABILITY LITERAL+]
        P: a LOGIN {1}
        B: +
        P: u {1}
        B: +
        P: p
        """,
        LITERAL,
    )


def test_untagged_lines_before_the_result_are_passed_on() -> None:
    imap(
        f"""
        C: a LOGIN u p
        {GRANTED}
        B: * more to say
        P: a LOGIN {{1}}
        B: * still more
        B: + go on
        P: u {{1}}
        B: +␊
        P: p
        B: * CAPABILITY IMAP4rev1
        B: * 1 EXISTS
        B: a OK␊
        B: * 2 EXISTS
        S: * CAPABILITY IMAP4rev1
        S: * 1 EXISTS
        S: a OK␊
        S: * 2 EXISTS
        """,
        LITERAL,
    )
    imap(
        f"""
        C: a LOGIN u p
        {GRANTED}
        P: a LOGIN "u" "p"
        B: * CAPABILITY IMAP4rev1
        B: * 1 EXISTS
        B: a OK␊
        B: * 2 EXISTS
        S: * CAPABILITY IMAP4rev1
        S: * 1 EXISTS
        S: a OK␊
        S: * 2 EXISTS
        """
    )


PASSED_ON = "proxy_pass_error_message on;"


@pytest.mark.parametrize(
    "greeting", ["* PREAUTH ready", "* BYE bye", "* ok", "220 mx ESMTP", "+OK", ""]
)
def test_backend_that_does_not_greet(greeting: str) -> None:
    failure = f"""
        C: a LOGIN u p
        Q: plain u p
        A: OK
        B: {greeting}
        """
    imap(
        f"""
        {failure}
        S: * BAD internal server error
        S: ⟨close⟩
        P: ⟨close⟩
        L: [error] upstream sent invalid response: "{greeting}" while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143
        """
    )
    imap(
        f"""
        {failure}
        S: {greeting}
        S: ⟨close⟩
        L: [info] upstream sent invalid response: "{greeting}" while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143
        """,
        PASSED_ON,
    )


@pytest.mark.proves("proxy_pass_error_message")
@pytest.mark.parametrize(
    "reply", ["a NO", "a BAD", "a OKAY", "A OK", "b OK", "+ go on"]
)
def test_backend_that_refuses_the_login(reply: str) -> None:
    failure = f"""
        C: a LOGIN u p
        {GRANTED}
        P: a LOGIN "u" "p"
        B: * sorry
        B: {reply}
        """
    shown = reply.removeprefix("a ")
    if shown == reply:
        shown = f"* sorry\\x0D\\x0A{reply}"
    where = (
        'while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143'
    )
    imap(
        f"""
        {failure}
        S: * BAD internal server error
        S: ⟨close⟩
        L: [error] upstream sent invalid response: "{shown}" {where}
        """
    )
    imap(
        f"""
        {failure}
        S: * sorry
        S: {reply}
        S: ⟨close⟩
        L: [info] upstream sent invalid response: "{shown}" {where}
        """,
        PASSED_ON,
    )


@pytest.mark.parametrize("asked", [1, 2])
def test_backend_that_does_not_take_literals(asked: int) -> None:
    dialogue = ["P: a LOGIN {1}", "B: +", "P: u {1}"][: 2 * asked - 1]
    imap(
        "\n".join(
            [
                "C: a LOGIN u p",
                GRANTED,
                *dialogue,
                "B: a BAD what",
                "S: a BAD what",
                "S: ⟨close⟩",
            ]
        ),
        PASSED_ON + LITERAL,
    )


@pytest.mark.proves("proxy_buffer")
def test_too_long_reply_of_the_backend() -> None:
    for directive in ("", PASSED_ON):
        imap(
            f"""
            C: a LOGIN u p
            Q: plain u p
            A: OK
            B: * OK ⟨x*57⟩
            P: a LOGIN {{1}}
            B: + ⟨x*62⟩
            S: * BAD internal server error
            S: ⟨close⟩
            L: [error] upstream sent too long response line: "+ {"x" * 61}" while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143
            """,
            f"proxy_buffer 64; {directive} {LITERAL}",
        )
