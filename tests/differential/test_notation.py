"""The language of the scripts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.differential import requests
from tests.differential.notation import line_bytes, line_text, split_lines
from tests.differential.script import groups, read


@given(st.binary())
def test_any_line_can_be_written(data: bytes) -> None:
    for line in split_lines(data):
        assert line_bytes(line_text(line)) == line


@given(st.binary())
def test_lines_are_all_there_is(data: bytes) -> None:
    assert b"".join(split_lines(data)) == data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a NOOP", b"a NOOP\r\n"),
        ("a NOOP␊", b"a NOOP\n"),
        ("a NO…", b"a NO"),
        ("+␠", b"+ \r\n"),
        ("⟨ff⟩␀␍␊", b"\xff\x00\r\n"),
        ("⟨x*3⟩⟨a⏎*2⟩…", b"xxxa\r\na\r\n"),
        ("é", b"\xc3\xa9\r\n"),
        ("", b"\r\n"),
    ],
)
def test_signs(text: str, data: bytes) -> None:
    assert line_bytes(text) == data


@pytest.mark.parametrize(
    "short", ["plain u p", 'none "" "" #3', "apop u x salt tls", "external u p tls #2"]
)
def test_a_request_in_short_is_the_request(short: str) -> None:
    lines = requests.expand(short, "imap")
    more = [*lines, "X-More: 1"]
    assert requests.expand(requests.shorten(lines, "imap")[0], "imap") == lines
    assert requests.expand(requests.shorten(more, "imap")[0], "imap") == lines
    assert requests.shorten(more, "imap")[1:] == ["X-More: 1"]


def write(folder: Path, text: str) -> Path:
    file = folder / "x.txt"
    file.write_text(text)
    return file


def test_a_script_has_what_its_file_has(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "protocol: imap\nserver: timeout 1s; max_errors 3;\nS: hello\n"
        "define bye\nC: x\nC| y\n\n== one\nserver: timeout 2s;\nuse: bye\nS: z\n",
    )
    (script,) = read(file)
    assert script.protocol == "imap"
    assert script.directives("nginx") == "max_errors 3; timeout 2s;"
    texts = [[step.text for step in group] for group in groups(script.steps)]
    assert texts == [["hello"], ["x", "y"], ["z"]]


def test_a_slowed_script_has_other_times_and_nothing_else(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "server: timeout 1500ms;\n== one\nserver: proxy_timeout 2s; max_errors 3;\n"
        "ours server: auth_http_timeout 300ms;\nC: timeout 2s;\npause: 1.5s\n"
        "== two\nserver: timeout 0; max_errors 2;\n",
    )
    one, two = read(file)
    slow = one.slowed(4)
    assert slow.directives("ours") == (
        "timeout 6000ms; proxy_timeout 8s; max_errors 3; auth_http_timeout 1200ms;"
    )
    assert [step.text for step in slow.steps] == ["timeout 2s;", "6.0s"]
    assert one.slowed(1).directives("ours") == one.directives("ours")
    assert (one.is_timed(), two.is_timed()) == (True, False)


def test_each_proxy_has_its_own_lines(tmp_path: Path) -> None:
    file = write(tmp_path, "== one\nwhy: because\nC: x\nnginx S: a\nours S: b\n")
    (script,) = read(file)
    assert [step.text for step in script.steps_for("nginx")] == ["x", "a"]
    assert [step.text for step in script.steps_for("ours")] == ["x", "b"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("== one\nX: y\n", "x.txt:2: what is this"),
        ("== one\ncolour: red\n", "x.txt:2: unknown field colour"),
        ("== one\nuse: nothing\n", "x.txt:2"),
        ("== one\nours S: a\n", "why do the proxies differ"),
        ("== one\n== one\n", "titles used twice"),
    ],
)
def test_what_is_no_script(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read(write(tmp_path, text))
