"""The pid file is written, read, tried and removed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy.process import pidfile
from mailproxy.process.pidfile import PidError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "the.pid"


def test_holds_a_line(path: Path) -> None:
    path.write_text("something that is much longer\n")
    pidfile.write(str(path), 4711)
    assert path.read_text() == "4711\n"
    assert pidfile.read(str(path)) == 4711


def test_is_readable_by_all(path: Path) -> None:
    before = os.umask(0)
    try:
        pidfile.write(str(path), 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", ""),
        (b"abc\n", "abc"),
        (b"12 \n", "12 "),
        (b"0\n", "0"),
        (b"99999999999\n", "99999999999"),
        (b"\xff\n", "\udcff"),
        (b"x" * 40, "x" * 22),
    ],
)
def test_without_a_number_is_an_error(path: Path, content: bytes, shown: str) -> None:
    path.write_bytes(content)
    with pytest.raises(PidError) as caught:
        pidfile.read(str(path))
    assert str(caught.value) == f'invalid PID number "{shown}" in "{path}"'


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda path: pidfile.write(path, 1), 'open() "{}" failed'),
        (pidfile.read, 'open() "{}" failed'),
        (pidfile.test, 'open() "{}" failed'),
        (pidfile.remove, 'unlink() "{}" failed'),
    ],
)
def test_missing_directory_is_an_error(
    tmp_path: Path, do: Callable[[str], object], message: str
) -> None:
    path = str(tmp_path / "missing/the.pid")
    with pytest.raises(PidError) as caught:
        do(path)
    assert str(caught.value) == message.format(path)
    assert caught.value.error is not None
    assert caught.value.error.errno == errno.ENOENT


def test_trying_leaves_nothing_behind(path: Path) -> None:
    pidfile.test(str(path))
    assert not path.exists()


def test_trying_leaves_what_is_there(path: Path) -> None:
    path.write_text("12\n")
    pidfile.test(str(path))
    assert path.read_text() == "12\n"


def test_one_file_may_have_two_names(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert pidfile.same(str(path), str(tmp_path / "link/the.pid"))
    assert not pidfile.same(str(path), str(tmp_path / "other.pid"))
