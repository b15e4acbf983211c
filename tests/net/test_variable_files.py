"""Certificates in files for each name: what is read when, on a made-up clock."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from mailproxy.net.certificate_cache import NO_CERTIFICATE_CACHE, CacheLimits
from mailproxy.net.openssl.notes import Note
from mailproxy.net.openssl.variable_files import Template, VariableFiles
from tests.named import Issuer


class Asked:
    """What finds files, and what it has to say.

    Attributes:
      time: seconds.
      notes: of level error.
      missing: how often a file was looked for in vain.
    """

    def __init__(self, issuer: Issuer, limits: CacheLimits) -> None:
        place = f"{issuer.directory}/$ssl_server_name"
        self.time = 0.0
        self.notes: list[str] = []
        self.missing = 0
        self.files = VariableFiles(
            [Template(f"{place}.crt", f"{issuer.directory}/${{ssl_server_name}}.key")],
            (),
            limits,
            lambda: self.time,
        )

    def __call__(self, name: str) -> bytes | None:
        """The certificate of a name."""
        found = self.files.find(name, self._note)
        return found[0].der if found else None

    def _note(self, note: Note) -> None:
        if note.level == "error":
            suffix = "" if note.error is None else f" ({note.error.strerror})"
            self.notes.append(note.event % note.values + suffix)
        else:
            self.missing += 1


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


CACHE = CacheLimits(most=3, inactive=100.0, valid=60.0)


def test_without_a_cache_files_are_read_each_time(issuer: Issuer) -> None:
    ask = Asked(issuer, NO_CERTIFICATE_CACHE)
    assert ask("a.example.org") is None
    issuer.put("a.example.org")
    first = ask("a.example.org")
    issuer.put("a.example.org")
    second = ask("a.example.org")
    assert None not in (first, second)
    assert first != second
    assert ask.missing == 1


def test_a_file_is_looked_at_again_after_a_while(issuer: Issuer) -> None:
    ask = Asked(issuer, CACHE)
    issuer.put("a.example.org")
    first = ask("a.example.org")
    issuer.put("a.example.org")
    ask.time = 59.0
    assert ask("a.example.org") == first
    ask.time = 60.0
    second = ask("a.example.org")
    assert second not in (None, first)
    for _ in range(3):  # it has not changed since
        ask.time += 61.0
        assert ask("a.example.org") == second
    (issuer.directory / "a.example.org.crt").unlink()
    assert ask("a.example.org") == second
    ask.time += 61.0
    assert ask("a.example.org") is None


def test_what_nobody_asks_for_is_dropped(issuer: Issuer) -> None:
    ask = Asked(issuer, CACHE)
    issuer.put("a.example.org")
    issuer.put("b.example.org")
    first = ask("a.example.org")
    issuer.put("a.example.org")
    ask.time = 50.0
    ask("b.example.org")
    ask.time = 101.0
    ask("b.example.org")
    assert ask("a.example.org") != first


def test_a_missing_file_is_remembered_and_then_appears(issuer: Issuer) -> None:
    ask = Asked(issuer, CACHE)
    assert ask("a.example.org") is None
    issuer.put("a.example.org")
    ask.time = 59.0
    assert ask("a.example.org") is None
    ask.time = 60.0
    assert ask("a.example.org") is not None


def test_invented_names_do_not_push_out_good_ones(issuer: Issuer) -> None:
    """CVE-2017-15130."""
    ask = Asked(issuer, CACHE)
    issuer.put("a.example.org")
    first = ask("a.example.org")
    issuer.put("a.example.org")
    for number in range(1000):
        assert ask(f"x{number}.example.org") is None
    assert ask("a.example.org") == first  # without a look at the file
    assert len(ask.files._missing) == CACHE.most  # noqa: SLF001 - it is bounded


def test_no_more_than_the_maximum_is_kept(issuer: Issuer) -> None:
    ask = Asked(issuer, CACHE)
    firsts = {}
    for name in "abcd":
        issuer.put(name)
        firsts[name] = ask(name)
        issuer.put(name)
    assert ask("d") == firsts["d"]
    assert ask("a") != firsts["a"]


def test_random_names_need_no_memory(issuer: Issuer) -> None:
    issuer.put("a.example.org")
    ask = Asked(issuer, CacheLimits(most=100, inactive=100.0, valid=60.0))
    ask("a.example.org")
    for number in range(3000):
        ask(f"warm{number}.example.org")
    tracemalloc.start()
    try:
        for number in range(20_000):
            ask(f"n{number}.example.org")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 64 * 1024


def test_what_cannot_be_used_is_said_once_in_a_minute(issuer: Issuer) -> None:
    ask = Asked(issuer, NO_CERTIFICATE_CACHE)
    issuer.put("a.example.org")
    key = issuer.directory / "a.example.org.key"
    certificate = issuer.directory / "a.example.org.crt"
    key.write_bytes(issuer.issue("b").private_key_pem.bytes())
    wrong = f'cannot load certificate key "{key}": key does not match'
    for ask.time in (0.0, 30.0, 59.0):
        assert ask("a.example.org") is None
        assert ask.notes == [wrong]
    ask.time = 60.0
    assert ask("a.example.org") is None
    assert ask.notes == [wrong] * 2
    ask.notes.clear()
    certificate.write_text("nothing")
    ask("a.example.org")
    assert ask.notes == [f'cannot load certificate "{certificate}": cannot be parsed']


def test_files_that_cannot_be_read(issuer: Issuer) -> None:
    ask = Asked(issuer, NO_CERTIFICATE_CACHE)
    (issuer.directory / "dir.crt").mkdir()
    os.mkfifo(issuer.directory / "fifo.crt")
    (issuer.directory / "loop.crt").symlink_to("loop.crt")
    issuer.put("nokey")
    (issuer.directory / "nokey.key").unlink()
    for name in ("dir", "fifo", "loop", "nokey"):
        assert ask(name) is None
    place = issuer.directory
    assert ask.notes == [
        f'cannot load certificate "{place}/dir.crt": open() failed (Invalid argument)',
        f'cannot load certificate "{place}/fifo.crt": open() failed (Invalid argument)',
        f'cannot load certificate "{place}/loop.crt": open() failed'
        " (Too many levels of symbolic links)",
        f'cannot load certificate key "{place}/nokey.key": open() failed'
        " (No such file or directory)",
    ]
