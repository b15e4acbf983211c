"""What stands under nginx's line, for people."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailproxy.conf.report import explanation, headline, printable
from mailproxy.conf.tree import ConfigError, Position, SourceText
from mailproxy.process.configuration import ConfigErrors, Configuration

Load = Callable[..., Configuration]


@pytest.fixture
def explain(load: Load) -> Callable[[str], str]:
    """The whole text about a configuration."""

    def read(text: str) -> str:
        with pytest.raises(ConfigErrors) as caught:
            load(text)
        sources = {"C/main": SourceText("C/main", text)}
        return "".join(
            f"{headline(message, 'mailproxy')}\n{explanation(message, sources)}"
            for message in caught.value.messages
        )

    return read


def test_the_word_is_marked_and_a_remedy_named(explain: Callable[[str], str]) -> None:
    assert (
        explain(
            """events {}
mail {
\tproxy_timout 3s;
    timeout
        1x;
    starttls "on ";
    server_tokens off;
}
"""
        )
        == """\
mailproxy: [emerg] unknown directive "proxy_timout" in C/main:3
    3 | \tproxy_timout 3s;
      | \t^^^^^^^^^^^^ did you mean "proxy_timeout"?
mailproxy: [emerg] "timeout" directive invalid value in C/main:5
    5 |         1x;
      |         ^^ a time is like 30s, 1h30m or 500ms; units are ms s m h d w, largest first
mailproxy: [emerg] invalid value "on " in C/main:6
    6 |     starttls "on ";
      |              ^^^^^ accepted are off, on, only
mailproxy: [emerg] "server_tokens" directive is not allowed here in C/main:7
    7 |     server_tokens off;
      |     ^^^^^^^^^^^^^ "server_tokens" is a directive of http, not of mail
"""
    )


def test_a_forgotten_semicolon_is_guessed(explain: Callable[[str], str]) -> None:
    assert explain(
        "events {}\nmail {\n  timeout 3s\n  xclient on;\n  protocol x }\n"
    ) == (
        """\
mailproxy: [emerg] invalid number of arguments in "timeout" directive in C/main:4
    4 |   xclient on;
      |   ^^^^^^^ a ";" may be missing before it
mailproxy: [emerg] unexpected "}" in C/main:5
    5 |   protocol x }
      |              ^ a ";" is missing before it
"""
    )


def test_a_message_without_place_has_its_remedy_only() -> None:
    error = ConfigError("no events", remedy="add some")
    assert headline(error, "nginx") == "nginx: [emerg] no events"
    assert explanation(error, {}) == "  = add some\n"
    assert explanation(ConfigError("no events"), {}) == ""


def test_of_a_long_line_the_part_around_the_word_is_shown() -> None:
    text = "a" * 300 + " wrong " + "b" * 300
    error = ConfigError("x", Position("F", 1, 302))
    shown, marks = explanation(error, {"F": SourceText("F", text)}).splitlines()
    assert len(shown) <= 110
    at = marks.index("^^^^^")
    assert shown[at : at + 5] == "wrong"


def test_colours_are_around_what_stays_the_same() -> None:
    error = ConfigError("x", Position("F", 1, 1))
    coloured = headline(error, "nginx", colours=True)
    assert "\x1b[" in coloured
    assert coloured.endswith("x in F:1")


def test_nothing_reaches_the_terminal_that_could_steer_it() -> None:
    assert printable("a\x1b[2J\udcff\tb\x7f\x9b") == "a\ufffd[2J\ufffd\tb\ufffd\ufffd"


def test_where_nginx_names_no_place_it_stands_below() -> None:
    source = SourceText("C/main", "mail {\n  ssl_certificate x.pem;\n}\n")
    message = ConfigError(
        'cannot load certificate "x.pem"',
        None,
        "there is no file x.pem",
        cause=Position("C/main", 2, 19),
    )
    assert headline(message, "nginx") == (
        'nginx: [emerg] cannot load certificate "x.pem"'
    )
    assert explanation(message, {"C/main": source}) == (
        "  in C/main:2\n"
        "    2 |   ssl_certificate x.pem;\n"
        "      |                   ^^^^^ there is no file x.pem\n"
    )


@pytest.mark.parametrize(("line", "place"), [(3, "  in C/main:2\n"), (2, "")])
def test_the_mark_goes_to_the_cause_where_nginx_names_another_place(
    line: int, place: str
) -> None:
    """The line of the cause is named, if nginx's line does not name it."""
    source = SourceText("C/main", "mail {\n  ssl_session_ticket_key x; }\n}\n")
    message = ConfigError(
        '"x" must be 48 or 80 bytes',
        Position("C/main", line, 1),
        "it has 1",
        cause=Position("C/main", 2, 26),
    )
    assert headline(message, "nginx").endswith(f" in C/main:{line}")
    assert explanation(message, {"C/main": source}) == (
        f"{place}"
        "    2 |   ssl_session_ticket_key x; }\n"
        "      |                          ^ it has 1\n"
    )


def test_a_private_key_in_a_configuration_is_not_shown() -> None:
    text = '\tssl_certificate_key "data:-----BEGIN PRIVATE KEY-----\\nMIGHAgEA";'
    message = ConfigError("wrong", Position("C/main", 1, 2))
    shown = explanation(message, {"C/main": SourceText("C/main", text)})
    assert "MIGHAgEA" not in shown
    assert shown.startswith('    1 | \tssl_certificate_key "data:-----BEGIN PRIVATE')
