"""The arguments of `error_log`."""

import re
import socket

import pytest

from mailproxy.conf.addresses import Address, AddressError
from mailproxy.log import DEBUG, ERROR, INFO, ErrorLog, parse_error_log
from mailproxy.log.directive import File, Filter, Memory, Stderr, Syslog


def address(text: str, port: int) -> Address:
    if text == "nosuch.invalid":
        raise AddressError("host not found")
    return Address(socket.AF_INET, (text, port), f"{text}:{port}")


def parse(words: str) -> ErrorLog:
    return parse_error_log(
        words.split(" "),
        path=lambda name: f"/P/{name}",
        address=address,
        file="/C/nginx.conf",
        line=3,
    )


@pytest.mark.parametrize(
    ("words", "directive"),
    [
        ("logs/error.log", ErrorLog(File("/P/logs/error.log"), ERROR)),
        ("off info", ErrorLog(File("/P/off"), INFO)),
        ("a\0b", ErrorLog(File("/P/a"), ERROR)),
        ("stderr debug", ErrorLog(Stderr(), DEBUG)),
        ("", ErrorLog(Stderr(redirect=True), ERROR)),
        ("memory:32k", ErrorLog(Memory(32768), ERROR)),
        ("memory:1M info", ErrorLog(Memory(1 << 20), INFO)),
        (
            "f debug_mail debug_event",
            ErrorLog(File("/P/f"), DEBUG, frozenset({"mail", "event"})),
        ),
        (
            "syslog:server=10.0.0.1",
            ErrorLog(
                Syslog(Address(socket.AF_INET, ("10.0.0.1", 514), "10.0.0.1:514")), 4
            ),
        ),
        (
            "syslog:server=10.0.0.1,facility=mail,severity=crit,tag=mp_1,nohostname info",
            ErrorLog(
                Syslog(
                    Address(socket.AF_INET, ("10.0.0.1", 514), "10.0.0.1:514"),
                    facility=2,
                    tag="mp_1",
                    hostname=False,
                ),
                INFO,
            ),
        ),
        ("f rate=10m/s", ErrorLog(File("/P/f"), rate=10)),
        ("f rate=0 info", ErrorLog(File("/P/f"), INFO)),
        ("f info format=json", ErrorLog(File("/P/f"), INFO, format="json")),
        ("f format=default", ErrorLog(File("/P/f"), format="default")),
        (
            "f filter=tag:a filter=login:=tim filter=logline:~^x.*y",
            ErrorLog(
                File("/P/f"),
                filters=(
                    Filter("tag", "a", "contains"),
                    Filter("login", "tim", "exact"),
                    Filter("logline", "^x.*y", "regex"),
                ),
            ),
        ),
    ],
)
def test_arguments_have_their_meaning(words: str, directive: ErrorLog) -> None:
    assert parse(words) == directive


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("f loud", 'invalid log level "loud"'),
        ("f INFO", 'invalid log level "INFO"'),
        ("f info error", 'duplicate log level "error"'),
        ("f info debug_mail", 'invalid log level "debug_mail"'),
        ("f debug_mail info", 'duplicate log level "info"'),
        ("f debug_smtp", 'invalid log level "debug_smtp"'),
        ("memory:1k", 'invalid buffer size "1k"'),
        ("memory:1g", 'invalid buffer size "1g"'),
        ("memory:", 'invalid buffer size ""'),
        ("syslog:", 'unknown syslog parameter ""'),
        ("syslog:foo=1", 'unknown syslog parameter "foo=1"'),
        ("syslog:server=a,", 'unknown syslog parameter ""'),
        ("syslog:facility=mail", "no syslog server specified"),
        ("syslog:server=a,server=b", 'duplicate syslog "server"'),
        ("syslog:facility=mail,facility=mail", 'duplicate syslog "facility"'),
        ("syslog:severity=info,severity=info", 'duplicate syslog "severity"'),
        ("syslog:tag=a,tag=b", 'duplicate syslog "tag"'),
        ("syslog:facility=foo", 'unknown syslog facility "foo"'),
        ("syslog:severity=err", 'unknown syslog severity "err"'),
        ("syslog:tag=" + "a" * 33, "syslog tag length exceeds 32"),
        (
            "syslog:tag=a-b",
            'syslog "tag" only allows alphanumeric characters and underscore',
        ),
        (
            "syslog:server=nosuch.invalid",
            'host not found in syslog server "nosuch.invalid"',
        ),
        ("f rate=x", 'invalid rate "rate=x"'),
        ("f rate=-1", 'invalid rate "rate=-1"'),
        ("f format=xml", 'unknown log format "xml"'),
        ("f format=json format=json", 'duplicate format= parameter ("format=json")'),
        ("f filter=tag", 'missing filter type in "tag"'),
        ("f filter=tag:", 'empty filter pattern "tag:"'),
        ("f filter=tag:=", 'empty filter pattern "tag:="'),
        (
            "f filter=sourcefile:x.c",
            '"error_log" directive source file filtering requires debug build',
        ),
        (
            "f filter=colour:red",
            "error_log directive at /C/nginx.conf:3 has filter"
            ' with unknown property "colour"',
        ),
        (
            "f filter=tag:~a(b",
            "pcre2_compile() failed: missing ), unterminated subpattern"
            ' in "a(b" at "(b"',
        ),
    ],
)
def test_wrong_arguments_get_nginxs_text(words: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        parse(words)
    assert str(caught.value) == text
