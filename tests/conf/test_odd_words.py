"""Every directive with words that nobody means: an answer, never a traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mailproxy import cli, inspection
from mailproxy.conf.directive import Declaration, declarations
from mailproxy.mail.modules import MODULES, OF_BLOCKS
from mailproxy.process.settings import EventsSettings, MainSettings

DECLARATIONS = {
    name: declaration
    for settings in (MainSettings, EventsSettings, *MODULES, *OF_BLOCKS)
    for name, declaration in declarations(settings).items()
}

WORDS = [
    b"",
    b" ",
    b"a\0b",
    b"\0",
    b"unix:/tmp/a\0b",
    b"syslog:server=unix:/tmp/a\0b",
    b"data:\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u00fc\u2028\U0001f4ec".encode(),
    b"\x1b[2J\r\n\t",
    b"a" * 4000,
    b"a/" * 2000,
    b"unix:/" + b"a" * 108,
    b"unix:" + b"\xff" * 107,
    b"syslog:server=unix:/" + b"a" * 108,
    b"filter=tag:~(",
    b"filter=tag:~" + b"(" * 1000,
    b"data:-----BEGIN CERTIFICATE-----",
    b"engine:a:b",
    b"store:a",
    b"shared:a:1m",
    b"conf=/nonexistent",
    b"conf=.",
    b"=",
    b"=a",
    b"-1",
    b"9" * 30,
    b"1" * 3000,
    b"[::1",
    b"[" * 50,
    b"%s%n{}",
    b".",
    b"/",
    b"/dev/null",
]


def quoted(word: bytes) -> bytes:
    """The word in the configuration language."""
    return b'"' + word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def configuration(context: str, statement: bytes) -> bytes:
    """A configuration with a statement in a context."""
    usual = b"auth_http 127.0.0.1; protocol imap; listen 127.0.0.1:10143;"
    name = statement.split(b" ", 1)[0]
    rest = b" ".join(
        line + b";"
        for line in usual.split(b";")
        if line.split() and line.split()[0] != name
    )
    parts = {"main": b"", "events": b"", "mail": b"", "match": b"", "server": rest}
    parts["upstream"] = b"" if name == b"server" else b"server 127.0.0.1:143;"
    parts[context] += b" " + statement
    return (
        b"pid mail.pid; error_log stderr; %(main)s\nevents { %(events)s }\n"
        b"mail { %(mail)s upstream u { %(upstream)s } match m { %(match)s }"
        b" server { %(server)s } }\n"
        % {key.encode(): value for key, value in parts.items()}
    )


def test_the_words_go_over_all_directives_that_are_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", inspection.list_directives(), re.MULTILINE)
    assert sorted(set(listed)) == sorted(DECLARATIONS)


@pytest.mark.parametrize("declaration", DECLARATIONS.values(), ids=DECLARATIONS)
def test_odd_words_get_an_answer(
    declaration: Declaration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mail.conf"
    for word in WORDS:
        count = declaration.value.least or int(declaration.value.most != 0)
        arguments = b" ".join([quoted(word)] * count)
        statement = declaration.name.encode() + b" " + arguments + b";"
        path.write_bytes(configuration(declaration.contexts[-1], statement))
        code = cli.main(["-t", "-p", str(tmp_path), "-c", "mail.conf"])
        said = capfdbinary.readouterr().err
        assert code in (0, 1)
        if code:
            assert b"\nmailproxy: configuration file " in said, said
            assert b"[emerg]" in said or b"[crit]" in said, said
        assert b"embedded" not in said, word
        assert b"Traceback" not in said, word
        if b"\0" in word and count:
            told = f'"{declaration.name}" directive has a NUL in {os.fspath(path)}:'
            assert told.encode() in said, said


@pytest.mark.parametrize("word", WORDS, ids=ascii)
@pytest.mark.parametrize("name", [b"include", b"load_module", b"x", b"mail {} \n"])
def test_odd_words_elsewhere_get_an_answer(
    name: bytes,
    word: bytes,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    for text in (name + b" %s;", b"http { " + name + b" %s; }", b"%s " + name + b";"):
        (tmp_path / "mail.conf").write_bytes(text % quoted(word) + b" events { }")
        assert cli.main(["-t", "-p", str(tmp_path), "-c", "mail.conf"]) in (0, 1)
        assert b"mailproxy: " in capfdbinary.readouterr().err


@pytest.mark.parametrize("word", ["", "a\0b", "a" * 5000, "\udcff", "/" * 300])
@pytest.mark.parametrize("option", ["-c", "-p", "-e", "-g", "-s", "-", ""])
def test_odd_words_on_the_command_line_get_an_answer(
    option: str, word: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "mail.conf").write_text("events {}")
    words = ["-t", "-p", str(tmp_path), "-c", "mail.conf", option + word]
    assert cli.main(words) in (0, 1)
    assert cli.main([*words[:-1], option, word]) in (0, 1)
    assert b"mailproxy: " in capfdbinary.readouterr().err
