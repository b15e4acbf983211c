"""Hints: only what is near, and only what is true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.conf.directive import declarations
from mailproxy.conf.elsewhere import HTTP, STREAM
from mailproxy.conf.hints import elsewhere, nearest
from mailproxy.conf.resolve import NO_VARIABLES
from mailproxy.mail.modules import MODULES
from mailproxy.process.configuration import ConfigErrors, Configuration
from mailproxy.process.configuration import load as load_options
from mailproxy.process.options import Options
from mailproxy.process.settings import EventsSettings, MainSettings

Load = Callable[..., Configuration]
OURS = sorted(
    {
        name
        for settings in (MainSettings, EventsSettings, *MODULES)
        for name in declarations(settings)
    }
)


@pytest.fixture
def remedies(load: Load) -> Callable[[str], list[str | None]]:
    """What is said for people about each error or warning of a text."""

    def read(text: str) -> list[str | None]:
        try:
            messages = load(text).messages
        except ConfigErrors as errors:
            messages = errors.messages
        return [message.remedy for message in messages]

    return read


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timout", "timeout"),
        ("lisen", "listen"),
        ("protocl", "protocol"),
        ("proxy_timout", "proxy_timeout"),
        ("imap_capability", "imap_capabilities"),
        ("sll_certificate", "ssl_certificate"),
        ("proxy_sll", "proxy_ssl"),
        ("auth", None),
        ("user_name", None),
        ("ss", None),
    ],
)
def test_a_name_is_near_if_a_few_letters_of_many_differ(
    name: str, near: str | None
) -> None:
    assert nearest(name, OURS) == near


@given(name=st.sampled_from([each for each in OURS if len(each) > 3]), data=st.data())
def test_two_letters_swapped_are_one_mistake(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 2))
    typed = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    assert nearest(typed, [name]) == name


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("mial {}", 'did you mean "mail"?'),
        ("htpp {}", 'did you mean "http"?'),
        ("timout 1s;", 'did you mean "timeout"? Its place is mail {} or server {}'),
        ("mail { ssl_preread on; }", '"ssl_preread" is a directive of stream, not of mail'),
        ("mail { ssl_alpn x; }", '"ssl_alpn" is a directive of stream, not of mail'),
        ("mail { location / {} }", '"location" is a directive of http, not of mail'),
        ("proxy_set_header x;", '"proxy_set_header" is a directive of http, not of mail'),
        (
            "mail { access_by_lua_block { } }",
            '"access_by_lua_block" is a directive of Lua (OpenResty), not of mail',
        ),
        ("rtmp { }", '"rtmp" is a directive of the RTMP module, not of mail'),
        (
            "mail { more_set_headers x; }",
            '"more_set_headers" is a directive of a module of http that others have '
            "made, not of mail",
        ),
        ("mail { js_set $a b; }", '"js_set" is a directive of http and stream, not of mail'),
        *(
            (
                f"mail {{ {name} x; }}",
                f'"{name}" is a directive of {owner}, which nginx does not have',
            )
            for owner, names in {
                "Zimbra's nginx": "zm_lookup zm_auth_http proxy_issue_pop3_xoip "
                "proxy_issue_imap_id proxy_ctimeout imap_literalauth imap_greeting "
                "auth_wait sasl_host_from_ip mail_login_ip_max master_auth_password "
                "memcache_servers",
                "ngx_mail_mruby": "mruby_mail_code",
            }.items()
            for name in names.split()
        ),
        ("server { }", "its place is mail {}"),
        ("server x;", "its place is upstream {}"),
        ("proxy_pass x;", "its place is mail {} or server {}"),
        ("mail { least_conn; }", "its place is upstream {}"),
        ("mail { server { upstream x { } } }", "its place is mail {}"),
        ("mail { pid x; }", "its place is outside of all blocks"),
        ("mail { nonsense x; }", None),
        (
            "mail { upstream backends { server 127.0.0.1:1; } server { listen 127.0.0.1:143;"
            " auth_http 127.0.0.1; proxy_pass backend; } }",
            'did you mean "backends"?',
        ),
        (
            "mail { server { listen 127.0.0.1:143; auth_http 127.0.0.1; proxy_pass x; } }",
            "server x:143;",
        ),
        ("mail { http_auth x; }", 'did you mean "auth_http"?'),
        ("mail { http-auth x; }", 'did you mean "auth_http"?'),
        ("mail { auth_smtp plain; }", 'did you mean "smtp_auth"?'),
        ("http_auth x;", 'did you mean "auth_http"? Its place is mail {} or server {}'),
        ("mail { certificate_ssl x; }", 'did you mean "ssl_certificate"?'),
        ("mail { module_load x; }", None),
        ("module_load x;", 'did you mean "load_module"?'),
    ],
)  # fmt: skip
def test_unknown_names_are_explained_if_that_is_true(
    remedies: Callable[[str], list[str | None]], text: str, remedy: str | None
) -> None:
    assert remedies(f"events {{}} {text}")[0] == remedy


def test_no_directive_of_ours_is_taken_for_another_s() -> None:
    assert [name for name in OURS if elsewhere(name)] == []
    assert not STREAM & HTTP


@pytest.mark.parametrize(
    ("octets", "remedy"),
    [
        (b"\xef\xbb\xbfevents {}", r"the file begins with a UTF-8 byte order mark \(BOM\)"),
        (b"\xef\xbb\xbf# comment\nevents {}", r"the file begins with a UTF-8 byte order"),
        ("\ufeffevents {\n}\nmail {\n}\n".encode("utf-16-le"), "the file is UTF-16:"),
        ("\ufeffevents {\n}\nmail {\n}\n".encode("utf-16-be"), "the file is UTF-16:"),
        ("\ufeffevents {\n}\n".encode("utf-32-le"), "the file is UTF-32:"),
        ("events {\n}\n".encode("utf-16-le"), "there is a NUL in it: is the file damaged"),
        ("events {}\n\u00a0user x;".encode(), r"it has a no-break space \(U\+00A0\)"),
        ("events {}\n\u200buser x;".encode(), r"it has a zero width space \(U\+200B\)"),
        (
            "events {} mail { starttls \u201con\u201d; }".encode(),
            r"it has a left double quotation mark \(U\+201C\) in it: quotes are",
        ),
        (b"events {} mail { starttls on\0; }", "there is a NUL in it"),
        (b"\xef\xbb\xbf", r"the file begins with a UTF-8 byte order mark \(BOM\)"),
        (b"\xef\xbb\xbf\r\n", r"the file begins with a UTF-8 byte order mark \(BOM\)"),
        (b"\xef\xbb\xbf# to do\n", r"the file begins with a UTF-8 byte order mark"),
        (b"\xff\xfe", "the file is UTF-16:"),
        ("\ufeff# to do\n".encode("utf-16-be"), "the file is UTF-16:"),
        ("events {}\n\u00a0\n".encode(), r"it has a no-break space \(U\+00A0\)"),
        (b"events {}\0", "there is a NUL in it"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_named(
    tmp_path: Path, octets: bytes, remedy: str
) -> None:
    path = tmp_path / "main"
    path.write_bytes(octets)
    with pytest.raises(ConfigErrors) as caught:
        load_options(Options(prefix=f"{tmp_path}/", conf_file=str(path)))
    first = next(m for m in caught.value.messages if m.level != "warn")
    assert re.match(remedy, first.remedy or ""), first.remedy
    if "UTF" in remedy:
        told = [m.text for m in caught.value.messages if "byte" in (m.remedy or "")]
        assert len(told) == 1


@pytest.mark.parametrize(
    "text",
    [
        "events {",
        "events {} user x",
        "events {}\n# \u201cquoted\u201d\nuser x\n# a comment\u00a0",
    ],
)
def test_where_nothing_is_hidden_nothing_is_said(
    remedies: Callable[[str], list[str | None]], text: str
) -> None:
    assert remedies(text) == [None]


@pytest.mark.parametrize(
    "directive",
    [
        "auth_http no-such-host.invalid;",
        "auth_http no-such-host.invalid:80/auth;",
        "resolver no-such-host.invalid;",
        "server { listen no-such-host.invalid:143; }",
        "set_real_ip_from no-such-host.invalid;",
        "error_log syslog:server=no-such-host.invalid;",
    ],
)
def test_a_name_without_address_is_no_mistake_of_form(
    remedies: Callable[[str], list[str | None]], directive: str
) -> None:
    remedy = remedies(f"events {{}} mail {{ {directive} }}")[0]
    assert remedy is not None
    assert remedy.startswith("the name has no address on this machine (")


@pytest.mark.parametrize(
    ("directive", "remedy"),
    [
        ("auth_http 127.0.0.300;", "an IPv4 address has four numbers of 0 to 255"),
        ("auth_http 127.0.0.1:0;", "a port is a number of 1 to 65535"),
        ("auth_http [::1;", "nginx accepts host[:port][/uri] or unix:/path[:/uri]"),
        ("set_real_ip_from 10.0.0.0/33;", "a network is like 10.0.0.0/8 or fd00::/8"),
        ("server { listen 145-143; }", "the first port must be the lower one"),
        ("error_log x loud;", "levels are emerg alert crit error warn notice info debug"),
        ("error_log x format=xml;", "formats are json and default"),
        ("error_log x rate=many;", "a rate is a number of lines a second"),
        ("error_log x filter=tag;", ""),
        ("auth_http ${AUTH}:80;", NO_VARIABLES),
        ("timeout $timeout;", NO_VARIABLES),
        ("proxy_pass $host;", "name the server in the answer of the auth source"),
        ("upstream u { server localhost; }", "server localhost:143;"),
        ("error_log x filter=tag:~($a;", ""),
    ],
)  # fmt: skip
def test_a_mistake_of_form_gets_the_right_form(
    remedies: Callable[[str], list[str | None]], directive: str, remedy: str
) -> None:
    assert remedies(f"events {{}} mail {{ {directive} }}")[0] == remedy


# -- variables ---------------------------------------------------------------------

WARNING = 'warn "%s" directive has no variables, "$" is taken literally in C/main:1'


@pytest.mark.parametrize(
    "text",
    [
        "server_name $hostname;",
        "server_name mail-${NAME};",
        "server_name ${NAME};",
        "auth_http_header X-Address $remote_addr;",
        "auth_http_header X-Key key=$KEY;",
        "auth_http_header X-Key '${KEY}';",
        "imap_capabilities IMAP4rev1 $extra;",
        "error_log $log;",
        "error_log /tmp/x$y;",
        "ssl_ciphers $ciphers;",
    ],
)
def test_a_variable_that_is_none_gets_a_warning(
    complain: Callable[..., list[str]], text: str
) -> None:
    name = text.split()[0]
    assert WARNING % name in complain(f"events {{}} mail {{ {text} }}")


def test_outside_of_mail_too_and_for_files(complain: Callable[..., list[str]]) -> None:
    said = complain("include ${DIR}/*.conf; env A=$B; load_module $x.so; events {}")
    assert said[:3] == [WARNING % "include", WARNING % "env", WARNING % "load_module"]
    globals_text = "env A=${B};"
    assert complain("events {}", globals_text)[0] == (
        'warn "env" directive has no variables, "$" is taken literally in command line'
    )


@pytest.mark.parametrize(
    "text",
    [
        "server_name pay$;",
        "server_name $5;",
        "server_name \\$hostname;",
        "auth_http_header X-Key pa$$word;",
        "auth_http_header X-Key pa$word;",
        "error_log x filter=message:~timeout$;",
        "error_log x filter=message:~^(a$b|c$d);",
    ],
)
def test_a_dollar_that_may_be_meant_gets_none(
    complain: Callable[..., list[str]], text: str
) -> None:
    said = complain(f"events {{}} mail {{ {text} }}")
    assert [each for each in said if "variables" in each] == []


def test_the_warning_does_not_tell_the_value(load: Load) -> None:
    loaded = load("events {} mail { auth_http_header X-Key $ecret; }")
    assert all("ecret" not in str(message) for message in loaded.messages)
