"""The memory in which workers share TLS sessions."""

import mmap
import os
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailproxy.net import tls_sessions
from mailproxy.net.tls_sessions import MAX_SESSION, SessionZone

KIB = 1024
HOUR = 3600


@pytest.fixture
def zone() -> SessionZone:
    return SessionZone(32 * KIB)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number: what the monotonic clock shows."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_session_is_found_by_its_id(zone: SessionZone) -> None:
    zone.store(b"i" * 32, b"session", 300)
    assert zone.find(b"i" * 32) == b"session"
    assert zone.find(b"j" * 32) is None


def test_a_session_is_forgotten_after_its_lifetime(
    zone: SessionZone, clock: list[float]
) -> None:
    zone.store(b"i" * 32, b"session", 300)
    clock[0] += 298
    assert zone.find(b"i" * 32) == b"session"
    clock[0] += 3
    assert zone.find(b"i" * 32) is None


def test_a_removed_session_is_not_found(zone: SessionZone) -> None:
    zone.store(b"i" * 32, b"session", 300)
    zone.store(b"i" * 32, b"session", 300)
    zone.remove(b"i" * 32)
    assert zone.find(b"i" * 32) is None


class Searched(mmap.mmap):
    """Memory that is never searched to its last octet."""

    def find(self, wanted: bytes, start: int, end: int) -> int:  # type: ignore[override] # as it is called
        assert end < len(self)
        return super().find(wanted, start, end)


def test_nothing_is_read_outside_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmap.find() reads the octet behind its end in some versions of Python."""
    monkeypatch.setattr(mmap, "mmap", Searched)
    zone = SessionZone(16 * KIB)  # one bucket, thus the last one
    for number in range(300):
        session_id = b"%d" % number
        zone.store(session_id, b"session", 300)
        assert zone.find(session_id) == b"session"
        if number % 2:
            zone.remove(session_id)
            assert zone.find(session_id) is None


def test_another_process_finds_and_removes_it(zone: SessionZone) -> None:
    zone.store(b"here", b"session", 300)
    child = os.fork()
    if not child:
        found = zone.find(b"here")
        zone.store(b"there", b"another", 300)
        zone.remove(b"here")
        os._exit(0 if found == b"session" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert zone.find(b"here") is None
    assert zone.find(b"there") == b"another"


def test_a_full_zone_keeps_the_newest_sessions(zone: SessionZone) -> None:
    ids = [os.urandom(32) for _ in range(1000)]
    for number, session_id in enumerate(ids):
        zone.store(session_id, b"%100d" % number, 300)
    kept = [n for n, session_id in enumerate(ids) if zone.find(session_id)]
    assert len(kept) > 32 * KIB // 200
    assert min(kept) > 600
    assert zone.find(ids[-1]) == b"%100d" % 999


def test_a_session_that_is_too_long_is_not_kept(zone: SessionZone) -> None:
    zone.store(b"i", b"x" * MAX_SESSION, 300)
    zone.store(b"j", b"x" * (MAX_SESSION + 1), 300)
    assert zone.find(b"i") == b"x" * MAX_SESSION
    assert zone.find(b"j") is None


def test_a_worker_killed_while_writing_harms_no_other() -> None:
    """Whatever a dead writer leaves behind, only whole sessions are found."""
    zone = SessionZone(32 * KIB)
    child = os.fork()
    if not child:
        while True:
            for number in range(256):
                zone.store(bytes([number]) * 32, bytes([number]) * 1000, 300)
    while zone.find(b"\x07" * 32) is None:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for number in range(256):
        assert zone.find(bytes([number]) * 32) in (None, bytes([number]) * 1000)
    zone.store(b"after", b"session", 300)
    assert zone.find(b"after") == b"session"


@settings(max_examples=50)
@given(
    junk=st.binary(min_size=1, max_size=200),
    at=st.integers(0, 32 * KIB - 200),
)
def test_damaged_memory_gives_a_whole_session_or_none(junk: bytes, at: int) -> None:
    zone = SessionZone(32 * KIB)
    stored = {bytes([n]) * 8: bytes([n]) * 300 for n in range(60)}
    for session_id, session in stored.items():
        zone.store(session_id, session, 300)
    zone._memory[at : at + len(junk)] = junk  # noqa: SLF001 - the damage
    for session_id, session in stored.items():
        assert zone.find(session_id) in (None, session)
    zone.store(b"after", b"session", 300)
    assert zone.find(b"after") == b"session"


def test_a_client_that_asks_for_what_empty_memory_holds(zone: SessionZone) -> None:
    """Clients choose the ids that are looked up: many zeros must not cost more."""
    started = time.process_time()
    for _ in range(1000):
        assert zone.find(bytes(32)) is None
    assert time.process_time() - started < 1


def test_the_ticket_key_changes_every_hour_alike_in_all_workers(
    clock: list[float],
) -> None:
    zone = SessionZone(32 * KIB)
    first = zone.ticket_key()
    assert len(first) == 80
    assert zone.ticket_key() == first
    clock[0] += 3 * HOUR
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, zone.ticket_key())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == zone.ticket_key() != first
    os.close(read)
    os.close(write)


def test_a_record_fits_a_bucket() -> None:
    longest = tls_sessions._RECORD.size + MAX_SESSION  # noqa: SLF001 - the law of the layout
    assert longest + tls_sessions._NEXT.size <= tls_sessions._BUCKET  # noqa: SLF001 - as above
