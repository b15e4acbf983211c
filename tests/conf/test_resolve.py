"""Where directives may stand, what they inherit, and which error comes first."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailproxy.mail.imap import ImapSettings
from mailproxy.mail.pop3 import Pop3Settings
from mailproxy.mail.smtp import SmtpSettings
from mailproxy.process.configuration import ConfigErrors, Configuration
from tests.play import auth_http, auth_url

Load = Callable[..., Configuration]
Complain = Callable[..., list[str]]

IDLE = 'warn there is no "mail" block, nothing will be served'
SERVER = "listen 127.0.0.1:10143; protocol imap; auth_http 127.0.0.1;"


def mail(text: str) -> str:
    return f"events {{}} mail {{ {text} }}"


# -- one statement -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timout 1;", 'unknown directive "timout"'),
        ("Timeout 1;", 'unknown directive "Timeout"'),
        ('"" x;', 'unknown directive ""'),
        ("a\0b x;", 'unknown directive "a"'),
        ("mail\0 {}", 'unknown directive "mail"'),
        ("proxy_tls on;", 'unknown directive "proxy_tls"'),
        ("location / {}", '"location" directive is not allowed here'),
        ("proxy_set_header;", '"proxy_set_header" directive is not allowed here'),
        ("server_tokens {}", '"server_tokens" directive is not allowed here'),
        ("listen 143;", '"listen" directive is not allowed here'),
        ("daemon;", '"daemon" directive is not allowed here'),
        ("http {}", '"http" directive is not allowed here'),
        ("load_module x;", '"load_module" directive is not allowed here'),
        ("timeout 1 {}", 'directive "timeout" is not terminated by ";"'),
        ("server;", 'directive "server" has no opening "{"'),
        ("server x;", 'directive "server" has no opening "{"'),
        ("server x {}", 'invalid number of arguments in "server" directive'),
        ("timeout;", 'invalid number of arguments in "timeout" directive'),
        ("timeout 1 2;", 'invalid number of arguments in "timeout" directive'),
        ("xclient on off;", 'invalid number of arguments in "xclient" directive'),
        ("imap_auth;", 'invalid number of arguments in "imap_auth" directive'),
        (
            "auth_http_header a;",
            'invalid number of arguments in "auth_http_header" directive',
        ),
        ("include;", 'invalid number of arguments in "include" directive'),
        ("include x {}", 'directive "include" is not terminated by ";"'),
        ("timeout 1; timeout x;", '"timeout" directive is duplicate'),
        ("resolver off; resolver nohost.invalid;", '"resolver" directive is duplicate'),
        ("timeout x;", '"timeout" directive invalid value'),
        ("max_errors x;", '"max_errors" directive invalid number'),
        ("starttls foo;", 'invalid value "foo"'),
    ],
)
def test_a_statement_is_checked_in_nginx_s_order(
    complain: Complain, text: str, message: str
) -> None:
    assert complain(mail(text))[0] == f"emerg {message} in C/main:1"


def test_directives_of_lists_are_not_duplicates(load: Load) -> None:
    [server] = load(
        mail(
            f"""server {{
                {SERVER} protocol pop3; protocol imap; auth_http 127.0.0.1/a;
                imap_auth plain; imap_auth login; imap_capabilities A; imap_capabilities B;
                auth_http_header X 1; auth_http_header X 1;
            }}"""
        )
    ).servers
    assert isinstance(server.protocol, ImapSettings)
    assert server.protocol.imap_auth == {"plain", "login"}
    assert server.protocol.imap_capabilities == (b"A", b"B")
    assert auth_http(server).auth_http_header == ((b"X", b"1"), (b"X", b"1"))
    assert auth_url(server).uri == b"/a"


def test_the_line_of_an_error_is_that_of_the_terminator(complain: Complain) -> None:
    text = "events {}\nmail {\n timeout\n x\n;\n}"
    assert complain(text) == ['emerg "timeout" directive invalid value in C/main:5']


# -- inheritance -------------------------------------------------------------------


def test_a_server_uses_its_own_value_then_that_of_mail_then_the_default(
    load: Load,
) -> None:
    first, second = load(
        mail(
            f"""
            auth_http 127.0.0.1/mail; proxy_timeout 2h;
            server {{ {SERVER} }}
            server {{ listen 127.0.0.1:10144; protocol imap; timeout 9s; proxy_timeout 3h; }}
            timeout 7s;
            """
        )
    ).servers
    assert (first.core.timeout, second.core.timeout) == (7, 9)
    assert (first.proxy.proxy_timeout, second.proxy.proxy_timeout) == (7200, 10800)
    assert first.core.max_errors == 5
    assert (auth_url(first).uri, auth_url(second).uri) == (b"/", b"/mail")


@pytest.mark.parametrize(
    ("directive", "inner", "inherited", "own"),
    [
        ("imap_auth", "external", {"login", "cram-md5"}, {"external"}),
        ("imap_capabilities", "C", (b"login", b"cram-md5"), (b"C",)),
    ],
)
def test_a_list_takes_the_place_of_the_outer_one(
    load: Load, directive: str, inner: str, inherited: object, own: object
) -> None:
    first, second = load(
        mail(
            f"""
            {directive} login; {directive} cram-md5; auth_http 127.0.0.1;
            server {{ {SERVER} }}
            server {{ listen 127.0.0.1:10144; protocol imap; {directive} {inner}; }}
            """
        )
    ).servers
    assert getattr(first.protocol, directive) == inherited
    assert getattr(second.protocol, directive) == own


@pytest.mark.proves("resolver", "off")
def test_resolver_off_cancels_the_inherited_one(load: Load) -> None:
    first, second = load(
        mail(
            f"""
            resolver 127.0.0.1 [::1]:5353 valid=1m ipv6=off;
            server {{ {SERVER} }}
            server {{ listen 127.0.0.1:1; protocol imap; auth_http 127.0.0.1; resolver off; }}
            """
        )
    ).servers
    assert first.core.resolver is not None
    assert [each.text for each in first.core.resolver.servers] == [
        "127.0.0.1:53",
        "[::1]:5353",
    ]
    assert (first.core.resolver.valid, first.core.resolver.ipv6) == (60, False)
    assert second.core.resolver is None


def test_error_logs_are_those_of_the_innermost_level(load: Load) -> None:
    configuration = load(
        "error_log a;"
        + mail(
            f"""
            server {{ {SERVER} error_log b info; error_log c; }}
            server {{ listen 127.0.0.1:1; protocol imap; auth_http 127.0.0.1; }}
            """
        )
    )
    first, second = configuration.servers
    assert [str(log.target) for log in first.core.error_log] == [
        "File(path='P/b')",
        "File(path='P/c')",
    ]
    assert second.core.error_log == configuration.main.error_log


def test_settings_that_say_nothing_of_their_own_are_shared(load: Load) -> None:
    first, second = load(
        mail(
            f"""
            proxy_timeout 1m; server {{ {SERVER} }}
            server {{ listen 127.0.0.1:1; protocol imap; auth_http 127.0.0.1; }}
            """
        )
    ).servers
    assert first.proxy is second.proxy


@pytest.mark.parametrize(
    ("listens", "settings"),
    [
        ("listen 127.0.0.1:143;", ImapSettings),
        ("listen 127.0.0.1:995;", Pop3Settings),
        ("listen 127.0.0.1:587;", SmtpSettings),
        (
            "listen 127.0.0.1:1143; listen 127.0.0.1:110; listen 127.0.0.1:143;",
            Pop3Settings,
        ),
        ("listen 127.0.0.1:143-144;", ImapSettings),
        ("protocol smtp; listen 127.0.0.1:143;", SmtpSettings),
        ("listen 127.0.0.1:143; protocol smtp;", SmtpSettings),
    ],
)
def test_the_first_known_port_tells_the_protocol(
    load: Load, listens: str, settings: type[object]
) -> None:
    [server] = load(mail(f"auth_http 127.0.0.1; server {{ {listens} }}")).servers
    assert type(server.protocol) is settings


@pytest.mark.parametrize("listen", ["127.0.0.1:142-143", "unix:/a", "127.0.0.1:1143"])
def test_other_ports_tell_nothing(complain: Complain, listen: str) -> None:
    assert complain(mail(f"auth_http 127.0.0.1;\nserver {{\n listen {listen}; }}")) == [
        "emerg unknown mail protocol for server in C/main:2"
    ]


def test_pop3_auth_plain_brings_login_along(load: Load) -> None:
    def auth(text: str) -> object:
        server = f"listen 127.0.0.1:110; auth_http 127.0.0.1; {text}"
        [found] = load(mail(f"server {{ {server} }}")).servers
        assert isinstance(found.protocol, Pop3Settings)
        return found.protocol.pop3_auth

    assert auth("") == {"plain", "login"}
    assert auth("pop3_auth plain apop;") == {"plain", "login", "apop"}
    assert auth("pop3_auth apop;") == {"apop"}


def test_so_keepalive_of_a_server_is_that_of_its_addresses(load: Load) -> None:
    [server] = load(
        mail(
            f"server {{ {SERVER} listen 127.0.0.1:1 so_keepalive=off; so_keepalive on; }}"
        )
    ).servers
    first, second = server.core.listen
    assert first.so_keepalive is not None
    assert second.so_keepalive is not None
    assert (first.so_keepalive.on, second.so_keepalive.on) == (True, False)


# -- the order of errors -----------------------------------------------------------


def test_all_errors_are_told_in_nginx_s_order(complain: Complain) -> None:
    text = """
        worker_processes x;
        events {}
        mail {
            server { listen 127.0.0.1:1143; }
            server { listen 127.0.0.1:143; }
            server { }
            server { listen 127.0.0.1:144; protocol imap; timeout x; }
            bogus;
        }
        pid a b;
        }
    """
    assert complain(text) == [
        'emerg "worker_processes" directive invalid value in C/main:2',
        'emerg no "listen" is defined for server in C/main:7',
        'emerg "timeout" directive invalid value in C/main:8',
        'emerg unknown directive "bogus" in C/main:9',
        "emerg unknown mail protocol for server in C/main:5",
        'emerg no "auth_http" is defined for server in C/main:5',
        'emerg no "auth_http" is defined for server in C/main:6',
        'emerg no "auth_http" is defined for server in C/main:7',
        'emerg no "auth_http" is defined for server in C/main:8',
        'emerg invalid number of arguments in "pid" directive in C/main:11',
        'emerg unexpected "}" in C/main:12',
    ]


def test_an_error_before_a_syntax_error_comes_first(complain: Complain) -> None:
    assert complain("bogus;\nmail {\n server { }\n timeout x;;") == [
        'emerg unknown directive "bogus" in C/main:1',
        'emerg no "listen" is defined for server in C/main:3',
        'emerg "timeout" directive invalid value in C/main:4',
        'emerg unexpected ";" in C/main:4',
    ]


def test_blocks_that_are_not_closed_are_not_checked_as_a_whole(
    complain: Complain,
) -> None:
    assert complain("events {} mail { server { timeout 1;") == [
        'emerg unexpected end of file, expecting "}" in C/main:1'
    ]


def test_what_was_wrong_is_not_missed_as_well(complain: Complain) -> None:
    text = mail(
        """
        server { listen x:y; }
        server { listen 127.0.0.1:144; protocol imap; auth_http 127.0.0.1:x; }
        server { listen 127.0.0.1:145; protocol imp; auth_http 127.0.0.1; }
        server { listen 127.0.0.1:146; timeout 1s
                 protocol imap; auth_http 127.0.0.1; }
        """
    )
    assert complain(text) == [
        'emerg invalid port in "x:y" of the "listen" directive in C/main:2',
        'emerg invalid port in auth_http "127.0.0.1:x" in C/main:3',
        'emerg unknown protocol "imp" in C/main:4',
        'emerg invalid number of arguments in "timeout" directive in C/main:6',
        'emerg no "auth_http" is defined for server in C/main:2',
    ]


def test_events_are_missed_when_all_is_read(complain: Complain) -> None:
    assert complain("") == ['emerg no "events" section in configuration']


def test_connections_must_be_enough_for_the_sockets(complain: Complain) -> None:
    servers = (
        f"server {{ {SERVER} listen *:1; listen 127.0.0.1:1; listen 127.0.0.1:2; }}"
    )
    assert complain(f"events {{ worker_connections 3; }} mail {{ {servers} }}") == [
        "emerg 3 worker_connections are not enough for 3 listening sockets"
    ]
    assert complain(f"events {{ connections 4; }} mail {{ {servers} }}") == [
        'warn the "connections" directive is deprecated, use the "worker_connections" '
        "directive instead in C/main:1"
    ]


def test_the_group_of_errors_has_them_all(load: Load) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load("events {} mail { bogus; auth_http 127.0.0.1; server { } }")
    assert [error.message for error in caught.value.exceptions] == [
        'unknown directive "bogus"',
        'no "listen" is defined for server',
    ]
    assert not caught.value.parsed


# -- listen ------------------------------------------------------------------------


def test_an_address_can_be_taken_once(complain: Complain) -> None:
    def second(text: str) -> list[str]:
        server = (
            f"server {{ {SERVER} listen *:1; listen 127.0.0.1:2; listen unix:/a; }}"
        )
        other = f"server {{ protocol imap; auth_http 127.0.0.1; listen {text}; }}"
        return complain(mail(f"{server} {other}"))

    taken = 'emerg duplicate "%s" address and port pair in C/main:1'
    assert second("0.0.0.0:1")[0] == taken % "0.0.0.0:1"
    assert second("1")[0] == taken % "0.0.0.0:1"
    assert second("127.0.0.1:1-2")[0] == taken % "127.0.0.1:2"
    assert second("unix:/a")[0] == taken % "unix:/a"
    assert second("[::]:1") == []


def test_parameters_of_listen(load: Load) -> None:
    [server] = load(
        mail(
            f"""server {{ {SERVER} listen [::1]:1 backlog=5 rcvbuf=1k sndbuf=2k ipv6only=off
                so_keepalive=30m::10 proxy_protocol; listen 127.0.0.1:2 bind multipath; }}"""
        )
    ).servers
    plain, first, second = server.core.listen
    assert (plain.bind, plain.backlog, plain.wildcard) == (False, 511, False)
    assert (first.bind, first.backlog, first.proxy_protocol) == (True, 5, True)
    assert (first.rcvbuf, first.sndbuf, first.ipv6only) == (1024, 2048, False)
    keepalive = first.so_keepalive
    assert keepalive is not None
    assert (keepalive.on, keepalive.idle) == (True, 1800)
    assert (keepalive.interval, keepalive.count) == (None, 10)
    assert (second.bind, second.multipath) == (True, True)
    assert str(second.position) == "C/main:2"


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("backlog=0", 'invalid backlog "backlog=0"'),
        ("backlog=-1", 'invalid backlog "backlog=-1"'),
        ("rcvbuf=x", 'invalid rcvbuf "rcvbuf=x"'),
        ("sndbuf=", 'invalid sndbuf "sndbuf="'),
        ("ipv6only=ox", 'invalid ipv6only flags "ox"'),
        ("ipv6only=x", 'invalid parameter "ipv6only=x"'),
        ("so_keepalive=::", 'invalid so_keepalive value: "::"'),
        ("so_keepalive=ON", 'invalid so_keepalive value: "ON"'),
        ("so_keepalive=1:2:3:4", 'invalid so_keepalive value: "1:2:3:4"'),
        ("reuseport", 'invalid parameter "reuseport"'),
        ("SSL", 'invalid parameter "SSL"'),
        ('""', 'invalid parameter ""'),
    ],
)
def test_wrong_parameters_of_listen(
    complain: Complain, parameter: str, message: str
) -> None:
    text = mail(f"server {{ listen 127.0.0.1:1143 {parameter}; }}")
    assert complain(text)[0] == f"emerg {message} in C/main:1"


# -- blocks, files, modules --------------------------------------------------------


def test_several_mail_blocks_are_one(load: Load, complain: Complain) -> None:
    text = (
        "events {} mail { server { listen 127.0.0.1:143; } timeout 5s; }"
        "mail { auth_http 127.0.0.1; server { listen 127.0.0.1:110; } }"
    )
    first, second = load(text).servers
    assert (first.core.timeout, second.core.timeout) == (5, 5)
    assert complain(text.replace("auth_http 127.0.0.1;", "")) == [
        'emerg no "auth_http" is defined for server in C/main:1',
        'emerg no "auth_http" is defined for server in C/main:1',
    ]


def test_events_stand_once(complain: Complain) -> None:
    assert complain("events {}\nevents {}") == [
        'emerg "events" directive is duplicate in C/main:2'
    ]


def test_other_servers_blocks_are_skipped_with_one_warning(complain: Complain) -> None:
    text = """events {}
        http {
            server { listen x y z; location / { content_by_lua_block { "}" } } }
            types { a/b c; } map $a $b { "~{1}" x; }
        }
        stream { }
    """
    assert complain(text) == [
        'warn only mail is served, the "http" block is skipped in C/main:2',
        'warn only mail is served, the "stream" block is skipped in C/main:6',
        IDLE,
    ]
    assert complain("events {}\nhttp {}\nhttp {}")[-1] == (
        'emerg "http" directive is duplicate in C/main:3'
    )
    assert complain("events {} http x {}")[0] == (
        'emerg invalid number of arguments in "http" directive in C/main:1'
    )
    assert complain("events {} http { server { }")[-1] == (
        'emerg unexpected end of file, expecting "}" in C/main:1'
    )


def test_included_files_are_read_where_they_are_named(
    load: Load, complain: Complain
) -> None:
    files = {"a.conf": "timeout 5s;", "b.conf": f"server {{ {SERVER} }}"}
    [server] = load(mail("include ?.conf; include none*;"), **files).servers
    assert server.core.timeout == 5
    assert complain("events {}\ninclude none;") == [
        'emerg open() "C/none" failed (2: No such file or directory) in C/main:2'
    ]
    assert complain("include x; events {}", x="a;\nb }\n") == [
        'emerg unknown directive "a" in C/x:1',
        'emerg unexpected "}" in C/x:2',
    ]
    assert complain("events {}\nhttp {\n include x; }", x="a {")[1:] == [
        'emerg unexpected end of file, expecting "}" in C/x:1'
    ]
    assert complain("events {} include x;", x="\n\ninclude x;") == [
        'emerg open() "C/x" failed (24: Too many open files) in C/x:3'
    ]
    assert complain("include .;")[0] == (
        'crit pread() "C/." failed (21: Is a directory)'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "events {}\nhttp { include main; }",
            [
                'warn only mail is served, the "http" block is skipped in C/main:2',
                'emerg "events" directive is not allowed here in C/main:1',
                'emerg "http" directive is not allowed here in C/main:2',
            ],
        ),
        (
            "events {}\nhttp { include m?in; }",
            [
                'warn only mail is served, the "http" block is skipped in C/main:2',
                'emerg "events" directive is not allowed here in C/main:1',
                'emerg "http" directive is not allowed here in C/main:2',
            ],
        ),
        (
            "pid x;\ninclude main;\nevents {}",
            ['emerg "pid" directive is duplicate in C/main:1'],
        ),
        (
            "a;\ninclude main; b;",
            ['emerg unknown directive "a" in C/main:1'],
        ),
    ],
)
def test_a_file_that_includes_itself_has_every_error_once(
    complain: Complain, text: str, said: list[str]
) -> None:
    """In the order of nginx, whose first error is the first one here."""
    line = next(n for n, each in enumerate(text.split("\n"), 1) if "include" in each)
    end = f'emerg open() "C/main" failed (24: Too many open files) in C/main:{line}'
    assert complain(text) == [*said, end]


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ({"x": "include x;"}, "this file is being read already: it includes itself"),
        (
            {"x": "include y;", "y": "include x;"},
            "this file is being read already: it includes itself",
        ),
        (
            {"x": "include x0;"} | {f"x{n}": f"include x{n + 1};" for n in range(100)},
            "files are in files 100 deep: does one include itself?",
        ),
    ],
)
def test_why_too_many_files_are_open_is_said(
    load: Load, files: dict[str, str], remedy: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load("include x;", **files)
    found = [m for m in caught.value.messages if "Too many open files" in m.text]
    assert [m.remedy for m in found] == [remedy]


def test_an_error_in_a_file_of_many_places_is_one(complain: Complain) -> None:
    servers = "server { include x; }" * 3
    said = complain(mail(f"auth_http 127.0.0.1; {servers}"), x=f"{SERVER}\nnone;")
    assert said.count('emerg unknown directive "none" in C/x:2') == 1


def test_warnings_are_repeated_as_nginx_repeats_them(complain: Complain) -> None:
    said = complain("include x; include x; events {}", x="worker_threads 3;")
    assert len([each for each in said if "worker_threads" in each]) == 2


def test_modules_are_named_before_blocks_and_once(complain: Complain) -> None:
    assert complain("load_module a.so; pid x; load_module b.so; events {}") == [IDLE]
    assert complain("events {}\nload_module a.so;") == [
        'emerg "load_module" directive is specified too late in C/main:2'
    ]
    assert complain("load_module x/a.so;\nload_module y/a.so;\nevents {}") == [
        'emerg module "a" is already loaded in C/main:2'
    ]


def test_the_text_of_g_comes_before_the_file(load: Load, complain: Complain) -> None:
    assert load("events {}", "worker_processes 3;").main.worker_processes == 3
    assert complain("events {}\npid x;", "pid y;") == [
        'emerg "pid" directive is duplicate in C/main:2'
    ]
    assert complain("events {}", "foo; bar x") == [
        'emerg unknown directive "foo" in command line',
        'emerg unexpected end of parameter, expecting ";" in command line',
    ]
    assert complain("x;", "events {}")[0] == (
        "emerg block directives are not supported in -g option in command line"
    )
    assert load("", "include e;", e="events {}").events.worker_connections == 512


def test_old_directives_are_accepted_with_a_warning(complain: Complain) -> None:
    assert complain("worker_threads 3; events { rtsig_signo 40; }") == [
        'warn the "worker_threads" directive is gone since nginx 1.9.0 and has no '
        "effect in C/main:1",
        'warn the "rtsig_signo" directive is gone since nginx 1.9.0 and has no '
        "effect in C/main:1",
        IDLE,
    ]
