"""How long one message of a name server can keep a worker busy.

    python bench/dns.py [--rounds 200]

The messages are the worst ones that we know: as many records and labels as are looked
at, as far apart as they can be, each in its own way. A line says how many octets a
message has, and the time that reading it takes: the shortest, which is its cost, and
the median, which other programs of the machine share in.

Exit code 1: one of them costs more than a millisecond.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
import time
from ipaddress import ip_address

from mailproxy.net.dns_messages import (
    Kind,
    Question,
    forward_question,
    read_answer,
    reverse_question,
)

LIMIT = 0.001
"""Seconds that a message may take."""
PTR = reverse_question(ip_address("2001:db8::1"))
A = forward_question(Kind.A, b"mail.example.com")
ASKED = b"\xc0\x0c"
LONG = b"\1a" * 126 + b"\0"


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    worst = 0.0
    for name, (question, message) in messages().items():
        times = sorted(_time(question, message) for _ in range(rounds))
        worst = max(worst, times[0])
        shortest, median = times[0] * 1e6, times[len(times) // 2] * 1e6
        print(f"{name:32}{len(message):8} octets {shortest:8.0f} µs {median:8.0f} µs")
    return int(worst > LIMIT)


def messages() -> dict[str, tuple[Question, bytes]]:
    """The worst messages by what is bad about them, with their questions."""
    return {
        "long names in short messages": (PTR, _answer(PTR, [_record(ASKED, 12, LONG)])),
        "100 long names": (PTR, _answer(PTR, [_record(ASKED, 12, LONG)] * 100)),
        "long owners": (PTR, _answer(PTR, [_record(LONG, 12, b"\0")] * 200)),
        "64 KB of short names": (PTR, _answer(PTR, [_record(ASKED, 12, b"\0")] * 4900)),
        "100 addresses": (A, _answer(A, [_record(ASKED, 1, b"abcd")] * 100)),
        "100 owners": (A, _answer(A, list(map(_of_its_own, range(100))))),
        "100 owners behind pointers": (A, _answer(A, list(map(_below, range(100))))),
        "aliases in reverse order": (A, _answer(A, _aliases())),
    }


def _time(question: Question, message: bytes) -> float:
    start = time.perf_counter()
    read_answer(question, message)
    return time.perf_counter() - start


def _answer(question: Question, records: list[bytes]) -> bytes:
    head = struct.pack(">HHHHHH", 1, 0x8180, 1, len(records), 0, 0)
    return head + question.wire + b"".join(records)


def _record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, 60, len(data)) + data


def _of_its_own(number: int) -> bytes:
    return _record(b"\2%02d\1b\1c\1d\0" % number, 1, b"abcd")


def _below(number: int) -> bytes:
    return _record(b"\2%02d\1b\1c\1d" % number + ASKED, 1, b"abcd")


def _aliases() -> list[bytes]:
    names = [ASKED, *(b"\2%02d" % n + LONG[-99:] for n in range(8))]
    chain = [_record(owner, 5, target) for owner, target in itertools.pairwise(names)]
    return [*[_record(b"\0", 16, b"")] * 90, *reversed(chain)]


if __name__ == "__main__":
    sys.exit(main())
