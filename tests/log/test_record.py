"""What a line of the error log looks like."""

import json
import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.log import (
    DEBUG,
    ERROR,
    INFO,
    LEVELS,
    Fault,
    Record,
    SessionInfo,
    escape,
)
from mailproxy.log.record import MAX_LINE, Connected

TIMED_OUT = OSError(110, "whatever the exception says")


def context(**changes: object) -> SessionInfo:
    values: dict[str, object] = {
        "connection": 7,
        "client": "192.0.2.1",
        "client_port": 4711,
        "server": "127.0.0.1:143",
        "action": "in auth state",
        "peer": "192.0.2.1:4711",
    }
    return SessionInfo(**(values | changes))  # type: ignore[arg-type]  # kept short


def test_angies_lines_have_other_words_for_connections_and_starttls() -> None:
    pid = os.getpid()
    first = Connected(INFO, "client connected", context=context())
    assert first.angie_line()[19:].decode() == (
        f" [info] {pid}#{pid}: *7 client connected while initializing session,"
        ' client: "192.0.2.1:4711", server: "127.0.0.1:143"\n'
    )
    later = Record(
        INFO,
        "client timed out",
        error=TIMED_OUT,
        # The address changes with PROXY protocol; Angie keeps that of the peer.
        context=context(client="198.51.100.7", starttls=True, login=b"tim"),
    )
    assert later.angie_line()[19:].decode() == (
        f" [info] {pid}#{pid}: *7 client timed out (110: Connection timed out) while"
        ' in auth state, client: "192.0.2.1:4711", server: "127.0.0.1:143",'
        ' starttls: "true", login: "tim"\n'
    )


def test_a_line_is_nginxs_byte_for_byte() -> None:
    line = Record(
        ERROR,
        "recv() failed",
        error=(111, "Connection refused"),
        context=context(
            connection=88,
            client="127.0.0.1",
            action="reading response from upstream",
            server="127.0.0.1:52571",
            login=b"refused",
            upstream="127.0.0.1:41401",
        ),
    ).text_line()
    pid = os.getpid()
    when, rest = line[:19].decode(), line[19:].decode()
    written = time.mktime(time.strptime(when, "%Y/%m/%d %H:%M:%S"))
    assert abs(time.time() - written) < 60
    assert rest == (
        f" [error] {pid}#{pid}: *88 recv() failed (111: Connection refused) while "
        "reading response from upstream, client: 127.0.0.1, server: 127.0.0.1:52571, "
        'login: "refused", upstream: 127.0.0.1:41401\n'
    )


@pytest.mark.parametrize("level", range(1, 9))
def test_level_is_named(level: int) -> None:
    assert f" [{LEVELS[level]}] ".encode() in Record(level, "exit").text_line()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, " while in auth state, client: 192.0.2.1, server: 127.0.0.1:143"),
        ({"action": None}, ", client: 192.0.2.1, server: 127.0.0.1:143"),
        (
            {"starttls": True, "action": "in starttls state"},
            " while in starttls state, client: 192.0.2.1 using starttls,"
            " server: 127.0.0.1:143",
        ),
        (
            {"client": "unix:", "client_port": None, "server": "unix:/run/mail"},
            " while in auth state, client: unix:, server: unix:/run/mail",
        ),
        (
            {"client": "2001:db8::1", "server": "[::]:993"},
            " while in auth state, client: 2001:db8::1, server: [::]:993",
        ),
        (
            {"login": b"tim"},
            ' while in auth state, client: 192.0.2.1, server: 127.0.0.1:143, login: "tim"',
        ),
        (
            {"upstream": "::1:143"},
            " while in auth state, client: 192.0.2.1, server: 127.0.0.1:143,"
            " upstream: ::1:143",
        ),
    ],
)
def test_context_stands_behind_the_message(
    changes: dict[str, object], text: str
) -> None:
    record = Record(INFO, "client timed out", context=context(**changes))
    assert record.text() == f"client timed out{text}"


def test_debug_lines_have_the_number_but_no_context() -> None:
    line = Record(DEBUG, "read 5 bytes", context=context()).text_line()
    assert line.endswith(b": *7 read 5 bytes\n")


def test_first_line_of_a_session_says_everything_in_its_message() -> None:
    record = Connected(INFO, "client connected", context=context())
    assert record.text() == "client 192.0.2.1:4711 connected to 127.0.0.1:143"
    v6 = Connected(INFO, "client connected", context=context(client="2001:db8::1"))
    assert v6.text() == "client [2001:db8::1]:4711 connected to 127.0.0.1:143"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TIMED_OUT, "x (110: Connection timed out)"),
        (ConnectionResetError(104, ""), "x (104: Connection reset by peer)"),
        ((3, "Host not found"), "x (3: Host not found)"),
        (OSError(-2, "Name or service not known"), "x (-2: Name or service not known)"),
        (OSError("no number"), "x"),
    ],
)
def test_system_error_is_number_and_text(error: Fault, text: str) -> None:
    assert Record(INFO, "x", error=error).text() == text


def test_client_bytes_are_escaped_and_our_quotes_stay() -> None:
    record = Record(
        INFO,
        'client was rejected: "%s"',
        (b'MAIL "x\\"\r\n2026 [emerg] \x7f\xff\xc3\xa9',),
        context=context(login=b'a\r\n"', upstream="x\n:1"),
    )
    assert record.text_line().endswith(
        b'*7 client was rejected: "MAIL \\x22x\\x5C\\x22\\x0D\\x0A2026 [emerg]'
        b' \\x7F\\xFF\xc3\xa9" while in auth state, client: 192.0.2.1,'
        b' server: 127.0.0.1:143, login: "a\\x0D\\x0A\\x22", upstream: x\\x0A:1\n'
    )


def test_line_breaks_in_a_ready_made_message_are_escaped_too() -> None:
    assert Record(INFO, 'a\nb 100% "c"').text() == 'a\\x0Ab 100% "c"'


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_bytes_make_a_second_line_or_close_a_quote(
    login: bytes, sent: bytes
) -> None:
    record = Record(INFO, 'sent "%s"', (sent,), context=context(login=login))
    line = record.text_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert line.count(b'"') == (4 if login else 2)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", line)
    assert json.loads(record.json_line())["message"].startswith('sent "')


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=40))
def test_any_text_can_be_written(text: str) -> None:
    record = Record(INFO, "%s", (text,), context=context(upstream=text))
    assert record.text_line().endswith(b"\n")
    json.loads(record.json_line())


def test_a_long_message_is_cut_and_its_context_stays() -> None:
    record = Record(
        INFO, 'sent "%s"', ("\x01" * 3000,), TIMED_OUT, context(login=b"tim")
    )
    line = record.text_line()
    assert MAX_LINE - 8 < len(line) <= MAX_LINE
    assert line.endswith(
        b'\\x01" (110: Connection timed out) while in auth state, client: 192.0.2.1,'
        b' server: 127.0.0.1:143, login: "tim"\n'
    )


def test_a_long_login_is_cut_before_the_message_is() -> None:
    record = Record(INFO, "client timed out", context=context(login=b"x" * 5000))
    line = record.text_line()
    assert b": *7 client timed out while in auth state" in line
    assert line.endswith(b'login: "' + b"x" * 256 + b'"\n')
    record = Record(INFO, "client timed out", context=context(login=b"x" + b"\n" * 500))
    assert record.text_line().endswith(b'login: "x' + b"\\x0A" * 63 + b'"\n')


@given(
    st.text(max_size=3000),
    st.binary(max_size=3000),
    st.text(max_size=3000),
)
def test_no_line_is_longer_than_nginxs(
    message: str, login: bytes, upstream: str
) -> None:
    record = Record(
        INFO,
        'said "%s"',
        (message * 3,),
        context=context(login=login, upstream=upstream),
    )
    assert len(record.text_line()) <= MAX_LINE
    line = record.json_line()
    assert len(line) <= MAX_LINE
    json.loads(line)


def test_json_has_angies_members_in_their_order() -> None:
    record = Record(
        INFO,
        "client timed out",
        error=TIMED_OUT,
        context=context(login=b"tim", tags=("srv1", "mail", "a b"), starttls=True),
    )
    line = record.json_line().decode()
    pid = os.getpid()
    assert line.endswith(
        f'"level":"info","pid":{pid},"tid":{pid},"connection":7,'
        '"message":"client timed out",'
        '"error":{"code":110,"message":"Connection timed out"},'
        '"mail":{"action":"in auth state","client":"192.0.2.1:4711",'
        '"server":"127.0.0.1:143","starttls":"true","login":"tim"},'
        '"tags":["mail","srv1","a b"]}\n'
    )
    assert re.match(r'\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z",', line)


def test_json_of_a_process_has_no_connection() -> None:
    assert json.loads(Record(INFO, "exit").json_line()).keys() == {
        "time",
        "level",
        "pid",
        "tid",
        "message",
    }


def test_json_names_the_proxy_in_front_of_the_client() -> None:
    record = Record(INFO, "x", context=context(peer="10.0.0.1:99"))
    mail = json.loads(record.json_line())["mail"]
    assert mail["client"] == "192.0.2.1:4711"
    assert mail["peer"] == "10.0.0.1:99"


def test_json_first_line_is_angies() -> None:
    record = Connected(INFO, "client connected", context=context())
    line = json.loads(record.json_line())
    assert line["message"] == "client connected"
    assert line["mail"]["action"] == "initializing session"


def test_json_escapes_are_angies() -> None:
    record = Record(INFO, "%s", (b'"\\\n\r\t\b\f\x1b\x7f\xc3\xa9\xe9',))
    assert (
        b'"message":"\\"\\\\\\n\\r\\t\\b\\f\\u001B\\u007F\xc3\xa9\\u00E9"'
        in record.json_line()
    )


def test_json_that_is_too_long_says_so() -> None:
    record = Record(INFO, "%s", ("\x01é" * 3000,), context=context(tags=("t",)))
    line = record.json_line()
    assert MAX_LINE - 8 < len(line) <= MAX_LINE
    parsed = json.loads(line)
    assert parsed["truncated"] is True
    assert parsed["mail"]["client"] == "192.0.2.1:4711"
    assert "tags" not in parsed


def test_json_debug_line_has_no_mail_object() -> None:
    assert "mail" not in json.loads(Record(DEBUG, "x", context=context()).json_line())


def test_a_child_process_writes_its_own_pid() -> None:
    Record(INFO, "x").text_line()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, Record(INFO, "x").text_line())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read, "rb") as line:
        assert f"[info] {pid}#{pid}: x\n".encode() in line.read()


@given(st.binary())
def test_escaped_text_is_printable(data: bytes) -> None:
    escaped = escape(data)
    assert not re.search(r'[\x00-\x1f\x7f-\x9f"\u2028-\u202e\ud800-\udfff]', escaped)
    assert (
        re.sub(
            rb"\\x([0-9A-F]{2})",
            lambda m: bytes.fromhex(m[1].decode()),
            escaped.encode(),
        )
        == data
    )


@pytest.mark.parametrize(
    ("data", "text", "json"),
    [
        (b"\x9b31m", r"\x9B31m", r"\u009B31m"),
        (b"\xc2\x9b31m", r"\xC2\x9B31m", r"\u009B31m"),
        (b"\xc2\x85", r"\xC2\x85", r"\u0085"),
        (b"\xc2\x80\xc2\x9f\xc2\xa0", "\\xC2\\x80\\xC2\\x9F\xa0", "\\u0080\\u009F\xa0"),
        (b"\xa0\xff", r"\xA0\xFF", r"\u00A0\u00FF"),
        (b"\xe2\x80\xa8\xe2\x80\xa9", r"\xE2\x80\xA8\xE2\x80\xA9", r"\u2028\u2029"),
        (b"\xe2\x80\xae", r"\xE2\x80\xAE", r"\u202E"),
        (b"\xe2\x81\xa6", r"\xE2\x81\xA6", r"\u2066"),
        (b"\xd8\x9c\xe2\x80\x8f", r"\xD8\x9C\xE2\x80\x8F", r"\u061C\u200F"),
        (b"\xed\xa0\x80", r"\xED\xA0\x80", r"\u00ED\u00A0\u0080"),
    ],
)
def test_what_misleads_a_reader_is_escaped(data: bytes, text: str, json: str) -> None:
    """C1 controls, line and paragraph separators, directions, and what is no UTF-8."""
    context = SessionInfo(7, "192.0.2.1", server="x", login=data, upstream="y")
    record = Record(INFO, 'sent "%s"', (data,), context=context)
    for line in record.text_line(), record.angie_line(), record.console_line("m"):
        assert f'sent "{text}"' in line.decode()
        assert f'login: "{text}"' in line.decode()
    assert f'"login":"{json}"' in record.json_line().decode()


@pytest.mark.parametrize(
    "text", ["Müller", "Ελλάδα", "日本語", "שלום", "\U0001f469\u200d\U0001f52c"]
)
def test_other_characters_stay_readable(text: str) -> None:
    record = Record(INFO, 'sent "%s"', (text.encode(),))
    for line in record.text_line(), record.angie_line(), record.json_line():
        assert text in line.decode()


def test_rest_of_a_line_is_looked_at_too() -> None:
    """Addresses, texts of libraries and of the configuration."""
    context = SessionInfo(7, "\x9b1", 2, "unix:\n/x", action="do\u2028ing")
    record = Record(
        INFO, "x", error=(1, "bad\nlibrary"), context=context, suffix=" \u202e"
    )
    connected = Connected(INFO, "client connected", context=context)
    for line in (
        *(record.text_line(), record.angie_line(), record.console_line("m")),
        *(connected.text_line(), connected.angie_line(), connected.json_line()),
        record.json_line(),
    ):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e]", line.decode()[:-1])


def test_half_a_character_is_still_json() -> None:
    (line,) = Record(INFO, "%s", ("\ud800",)).json_line().splitlines()
    assert json.loads(line)["message"] == "\ufffd"


def test_json_has_the_name_that_the_client_asked_for() -> None:
    asked = context(sni=b"mail\xff")
    line = Record(INFO, "client timed out", context=asked).json_line()
    assert json.loads(line)["mail"]["ssl_server_name"] == "mail\xff"
