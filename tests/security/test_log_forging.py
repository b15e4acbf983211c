"""Lines of the log that somebody outside writes, or makes unreadable.

Every octet that a client, a backend, an auth server or a name server chooses may
come to stand in a line. A line stays one line, its quotes close where we close them,
and JSON stays JSON.
"""

import json
import re

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mailproxy.log import Record
from tests.captured_log import CapturedLog
from tests.play import load_server, parse
from tests.security.acts import Act, b64
from tests.security.test_client_names import resolver_of

EVIL = [
    b'x\r\n2026/11/22 04:36:43 [info] 1#1: *1 client logged in, login: "root"',
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\x1b[2J\x1b]0;x\7",
        b"\x08" * 80,
        b"\\",
        b"\\x0A",
    ),
    *(
        b'", server: "x',
        b'"}\n{"a":"',
        b"%s%s%n%d",
        b"{}{0}",
        b"\x7f",
        b"\x85",
        b"\x9b31m",
        b"\xc2\x9b31m",
        b"\xc2\x85",
        b"\xff\xfe",
        b"\xc3",
    ),
    *(
        b"\xe2\x80\xa8",
        b"\xe2\x80\xae",
        b"\xe2\x81\xa6",
        b"\xd8\x9c",
        b"\xed\xa0\x80",
        b"x" * 3000,
        b"\n" * 3000,
        b'"' * 3000,
    ),
]
EVERY_EVIL = pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
QUOTED = r'"(?:[^"\\]|\\x[0-9A-F]{2})*"'
TEXT = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(?:info|error|debug)\] \d+#\d+: \*1 "
    rf"(?:[^\"\\]|{QUOTED})*"
)
CONTEXT = re.compile(
    rf", client: 127\.0\.0\.1, server: 127\.0\.0\.1:1143(?:, login: {QUOTED})?"
    r"(?:, upstream: 127\.0\.0\.1:9143)?\Z"
)


class Lines(CapturedLog):
    """Makes every line in every format as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[bytes] = []
        self.angies: list[bytes] = []
        self.objects: list[bytes] = []

    def write(self, record: Record) -> None:
        super().write(record)
        self.texts.append(record.text_line())
        self.angies.append(record.angie_line())
        self.objects.append(record.json_line())

    def check(self) -> None:
        """Every line is one, and says who it is about."""
        for text in map(line_of, self.texts):
            assert TEXT.fullmatch(text), text
            of_debug = " [debug] " in text
            assert CONTEXT.search(text) or of_debug or " connected to " in text, text
        for line in self.angies:
            line_of(line)
        for line in self.objects:
            found = json.loads(line_of(line))
            assert found["level"] in ("info", "error", "debug")
            assert found["connection"] == 1
            assert ("mail" in found) == (found["level"] != "debug")
            if found["level"] == "debug":
                continue
            mail = found["mail"]
            assert mail["client"] == "127.0.0.1:40000"
            assert mail["server"] == "127.0.0.1:1143"
            assert set(mail) <= {"action", "client", "server", "login", "upstream"}


def line_of(line: bytes) -> str:
    assert line.endswith(b"\n")
    assert len(line) <= 2048
    text = line[:-1].decode()
    assert not re.search(
        "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", text
    ), text
    assert len(text.splitlines()) == 1
    return text


def log_of(directives: str, *said: tuple[str, bytes]) -> list[str]:
    """What is logged of a session in which this is said.

    Args:
      said: who, and what; for the auth server that is the whole answer, or a script.
    """
    act = Act(load_server(directives))
    act.log = lines = Lines()

    async def run() -> None:
        if "resolver" in directives:
            act.network.known = resolver_of(said[0][1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow([])
            for who, what in said:
                if who in act.present and not act.over:
                    act.wire_of(who).put(what)
                await act.follow(parse("wait 0.1"))
            for who in act.present:
                act.leave(who, "close")

    trio.run(run, clock=MockClock(autojump_threshold=0))
    act.check()
    lines.check()
    return [text for _, text in act.log.events[1:]]


OK = b"HTTP/1.0 200 OK\r\nAuth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 9143\r\n"
REFUSED = b"HTTP/1.0 200 OK\r\nAuth-Status: "
END = b"\r\n\r\n"
IMAP = "protocol imap; imap_client_buffer 1m;"


def login(evil: bytes) -> bytes:
    return b"a AUTHENTICATE PLAIN %s\r\n" % b64(b"\0" + evil + b"\0p").encode()


@EVERY_EVIL
def test_by_user_names(evil: bytes) -> None:
    lines = log_of(IMAP, ("C", login(evil)), ("A", REFUSED + b"no" + END))
    assert lines
    lines = log_of(IMAP, ("C", b"a LOGIN {%d+}\r\n%s p\r\n" % (len(evil), evil)))
    lines = log_of(IMAP, ("C", login(evil)), ("A", OK + b"\r\n"), ("B", b"* NO\r\n"))


@EVERY_EVIL
@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_by_long_commands(protocol: str, evil: bytes) -> None:
    long = (evil * 5000)[:5000]
    log_of(f"protocol {protocol};", ("C", long))
    log_of(f"protocol {protocol};", ("C", b"NOOP " + long))


@EVERY_EVIL
def test_by_rejected_commands(evil: bytes) -> None:
    mail = b"MAIL FROM:<%s>\r\n" % evil
    log_of("protocol smtp; smtp_client_buffer 64k;", ("C", mail))
    early = "protocol smtp; smtp_greeting_delay 5s; smtp_client_buffer 64k;"
    (line,) = log_of(early, ("C", evil))
    assert line.startswith('client was rejected before greeting: "')


@EVERY_EVIL
def test_by_proxy_headers(evil: bytes) -> None:
    listen = "listen 127.0.0.1:1143 proxy_protocol; protocol imap;"
    for header in (evil, b"PROXY " + evil, b"PROXY TCP4 %s 1 2\r\n" % evil):
        log_of(listen, ("C", header + b"\r\n"))


@EVERY_EVIL
def test_by_auth_servers(evil: bytes) -> None:
    for answer in (
        REFUSED + evil + END,
        evil + END,
        OK + b"Auth-Server: " + evil + END,
        OK + b"Auth-Port: " + evil + END,
        OK + b"Auth-User: " + evil + END,
    ):
        log_of(IMAP, ("C", login(b"u")), ("A", answer), ("B", b"* NO no\r\n"))


@EVERY_EVIL
def test_by_backends(evil: bytes) -> None:
    for passed in ("off", "on"):
        directives = f"{IMAP} proxy_pass_error_message {passed};"
        for reply in (evil + b"\r\n", b"* NO " + evil + b"\r\n", evil * 5000):
            log_of(directives, ("C", login(b"u")), ("A", OK + b"\r\n"), ("B", reply))


@pytest.mark.parametrize("evil", [each for each in EVIL if len(each) < 64], ids=repr)
def test_by_name_servers(evil: bytes) -> None:
    lines = log_of("protocol smtp; resolver 127.0.0.1;", ("-", evil))
    assert " resolved to invalid host name " in lines[0]


@given(st.binary(min_size=1, max_size=300))
def test_by_any_octets(octets: bytes) -> None:
    log_of(IMAP, ("C", login(octets)), ("A", REFUSED + octets + END))
