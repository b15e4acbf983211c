"""Messages of name servers: what they say, and that none of them takes long.

dnspython builds the good ones; the bad ones are put together by hand.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import ip_address
from types import FrameType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net import dns_messages
from mailproxy.net.dns_messages import (
    MAX_ALIASES,
    MAX_RECORDS,
    NOT_FOUND,
    REFUSED,
    SERVER_FAILURE,
    Answer,
    Kind,
    Question,
    forward_question,
    is_host_name,
    is_service_name,
    packed,
    read_answer,
    read_service,
    reverse_question,
    service_question,
    to_host,
    write_query,
)
from tests.name_servers import NUMBER, Zone, respond

PTR = reverse_question(ip_address("192.0.2.1"))
A = forward_question(Kind.A, b"m.example")
AAAA = forward_question(Kind.AAAA, b"m.example")
SRV = service_question(b"_imap._tcp.m.example")
REVERSE = "1.2.0.192.in-addr.arpa. PTR"
ASKED = b"\xc0\x0c"
"""A pointer to the name that is asked for."""
MAX_LINES = 12_000
"""Lines of Python that any message may take: less than a millisecond."""


def answer_to(question: Question, *records: str) -> bytes:
    """A good answer with these records."""
    message = dns.message.from_wire(write_query(NUMBER, question))
    key = message.question[0].to_text().replace(" IN", "")
    zone: Zone = {key: list(records)}
    response = respond(zone, write_query(NUMBER, question))
    assert response is not None
    return response


def message(
    question: Question, *records: bytes, flags: int = 0x8180, count: int | None = None
) -> bytes:
    """A message as it comes; the header announces `count` records."""
    counts = 1, len(records) if count is None else count, 0, 0
    head = NUMBER + struct.pack(">HHHHH", flags, *counts)
    return head + question.wire + b"".join(records)


def record(
    owner: bytes, kind: int, data: bytes, *, ttl: int = 60, class_: int = 1
) -> bytes:
    return owner + struct.pack(">HHIH", kind, class_, ttl, len(data)) + data


def lines_of(question: Question, data: bytes) -> int:
    """How many lines of Python it takes to read a message."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != dns_messages.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read_answer(question, data)
    finally:
        sys.settrace(before)
    return count


# Questions


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_question_for_a_name(address: str) -> None:
    query = dns.message.from_wire(
        write_query(NUMBER, reverse_question(ip_address(address)))
    )
    (question,) = query.question
    assert question.name.to_text() == f"{ip_address(address).reverse_pointer}."
    assert question.to_text().endswith(" IN PTR")
    assert query.id == 0x1234
    assert query.flags == dns.flags.RD


def test_question_for_addresses() -> None:
    query = dns.message.from_wire(
        write_query(NUMBER, forward_question(Kind.AAAA, b"Mail.Example.COM"))
    )
    assert query.question[0].to_text() == "mail.example.com. IN AAAA"


@pytest.mark.parametrize(
    "name",
    [b"a", b"mail-1.example", b"1.2", b"x" * 63, b".".join([b"x" * 49] * 5)],
)
def test_host_names(name: bytes) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(b"", b".", b"a.", b".a", b"a..b", b"a b", b"a_b", b"a\n", b"a\0", b"\xe4"),
        *(b"x" * 64, b".".join([b"x" * 50] * 5)),
    ],
    ids=repr,
)
def test_no_host_names(name: bytes) -> None:
    assert not is_host_name(name)


def test_question_for_a_service() -> None:
    assert SRV.wire == b"\5_imap\4_tcp\1m\7example\0\0\x21\0\1"
    assert is_service_name(b"a.b")
    for name in (b"", b"a..b", b"a b", b"a/b", b"a" * 64, b".".join([b"a"] * 128)):
        assert not is_service_name(name)


def test_service_is_what_a_value_says() -> None:
    assert read_service(b"\0\1\0\2\0\x8fm.example") == (1, 2, 143, b"m.example")


# Answers


@pytest.mark.parametrize(
    ("question", "records", "answer"),
    [
        (PTR, ["60 PTR M.Example."], Answer(0, (b"m.example",), 60)),
        (PTR, ["60 PTR a.example.", "60 PTR b.example."], Answer(0, (b"a.example",), 60)),
        (PTR, ["60 PTR ."], Answer(0, (b"",), 60)),
        (PTR, ["60 PTR a\\.b.example."], Answer(0, (b"a.b.example",), 60)),
        (PTR, ["60 CNAME 1.x.", "1.x. 9 PTR m.example."], Answer(0, (b"m.example",), 9)),
        (PTR, ["9 CNAME 1.x.", "1.x. 60 PTR m.example."], Answer(0, (b"m.example",), 9)),
        (PTR, ["1.x. 9 PTR m.example.", "60 CNAME 1.x."], Answer(0, (b"m.example",), 9)),
        (PTR, ["60 TXT x", "60 PTR m.example."], Answer(0, (b"m.example",), 60)),
        (PTR, ["60 CNAME 1.x."], None),
        (PTR, ["60 TXT x"], None),
        (PTR, ["60 A 192.0.2.1"], None),
        (PTR, ["o.example. 60 PTR m.example."], None),
        (PTR, [], Answer(NOT_FOUND)),
        (A, ["60 A 192.0.2.1", "9 A 192.0.2.2"], Answer(0, (b"\xc0\0\2\1", b"\xc0\0\2\2"), 9)),
        (A, ["60 CNAME x.example.", "X.Example. 9 A 192.0.2.1"], Answer(0, (b"\xc0\0\2\1",), 9)),
        (A, ["60 CNAME x.example."], Answer(0, (), 60, alias=b"\1x\7example\0")),
        (A, ["60 CNAME x.example.", "x.example. 9 CNAME y."], Answer(0, (), 9, alias=b"\1y\0")),
        (A, ["60 CNAME m.example."], Answer(NOT_FOUND)),
        (A, ["60 AAAA ::1"], None),
        (A, [], Answer(NOT_FOUND)),
        (AAAA, ["60 AAAA 2001:db8::1"], Answer(0, (packed(ip_address("2001:db8::1")),), 60)),
        (AAAA, ["60 AAAA ::ffff:192.0.2.1"], Answer(0, (b"\xc0\0\2\1",), 60)),
        (AAAA, ["60 A 192.0.2.1"], None),
        (SRV, ["_imap._tcp.m.example. 60 SRV 1 2 143 M.Example.", "_imap._tcp.m.example. 9 SRV 0 0 1 ."], Answer(0, (b"\0\1\0\2\0\x8fm.example", b"\0\0\0\0\0\1"), 9)),
        (SRV, ["60 CNAME x.example.", "x.example. 9 SRV 1 2 143 m."], Answer(0, (b"\0\1\0\2\0\x8fm",), 9)),
        (SRV, ["60 CNAME x.example."], Answer(0, (), 60, alias=b"\1x\7example\0")),
        (SRV, ["60 A 192.0.2.1"], None),
        (SRV, [], Answer(NOT_FOUND)),
    ],
)  # fmt: skip
def test_answers(question: Question, records: list[str], answer: Answer | None) -> None:
    assert read_answer(question, answer_to(question, *records)) == answer


@pytest.mark.parametrize(
    ("aliases", "answer"),
    [
        (MAX_ALIASES, Answer(0, (b"\xc0\0\2\1",), 60)),
        (MAX_ALIASES + 1, Answer(SERVER_FAILURE)),
    ],
)
def test_more_aliases_than_are_followed_are_a_failure_that_may_pass(
    aliases: int, answer: Answer
) -> None:
    """The name may have addresses; only we do not look so far."""
    chain = [f"{n}.x. 60 CNAME {n + 1}.x." for n in range(1, aliases)]
    records = ["60 CNAME 1.x.", *chain, f"{aliases}.x. 60 A 192.0.2.1"]
    assert read_answer(A, answer_to(A, *records)) == answer


@pytest.mark.parametrize("code", range(16))
def test_codes(code: int) -> None:
    wanted = {0: Answer(NOT_FOUND), 1: None}.get(code, Answer(code))
    assert read_answer(PTR, message(PTR, flags=0x8180 | code)) == wanted


@pytest.mark.parametrize("code", range(16))
def test_servers_that_refuse_may_leave_the_question_out(code: int) -> None:
    data = NUMBER + struct.pack(">HHHHH", 0x8180 | code, 0, 0, 0, 0)
    wanted = Answer(code) if code in (SERVER_FAILURE, 4, REFUSED) else None
    assert read_answer(PTR, data) == wanted


def test_name_in_any_case_is_the_one_that_was_asked_for() -> None:
    data = message(A, record(ASKED, 1, b"abcd"))
    assert read_answer(A, data.replace(b"example", b"eXAMPLe")) == Answer(
        0, (b"abcd",), 60
    )


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x12", NUMBER, NUMBER + bytes(10), write_query(NUMBER, A)),
        message(AAAA, record(ASKED, 1, b"abcd")),
        message(forward_question(Kind.A, b"n.example"), record(ASKED, 1, b"abcd")),
        message(A, record(ASKED, 1, b"abcd"), flags=0xA180),  # another opcode
        message(A, record(ASKED, 1, b"abcd")).replace(b"\0\1\0\1", b"\0\1\0\2", 1),
    ],
    ids=repr,
)
def test_what_does_not_repeat_the_question_is_no_answer(data: bytes) -> None:
    assert read_answer(A, data) is None


def test_truncated_answer_says_so_and_no_more() -> None:
    data = message(A, record(ASKED, 1, b"abcd"), flags=0x8380)
    assert read_answer(A, data[:-3]) == Answer(truncated=True)


@pytest.mark.parametrize(
    "records",
    [
        [record(ASKED, 1, b"abc")],
        [record(ASKED, 1, b"abcde")],
        [record(ASKED, 1, b"abcd")[:-1]],
        [record(ASKED, 1, b"abcd"), b"\xc0"],
        [record(b"\x40", 1, b"abcd")],
        [record(b"\x80\0", 1, b"abcd")],
        [record(b"\3ab", 1, b"")],
        [record(b"\xc0\xff", 1, b"abcd")],  # a pointer forward
        [record(ASKED, 5, b"\1x")],  # a name that goes on behind its record
        [record(ASKED, 5, b"\1x\0\0")],  # and one that ends before
        [record(ASKED, 5, b"\x3f" + b"x" * 63)],
    ],
    ids=repr,
)
def test_broken_records_make_no_answer(records: list[bytes]) -> None:
    assert read_answer(A, message(A, *records)) is None


def test_pointer_to_itself() -> None:
    start = len(message(A))
    pointer = struct.pack(">H", 0xC000 | start)
    assert read_answer(A, message(A, record(pointer, 1, b"abcd"))) is None
    # And two that lead to each other.
    there = struct.pack(">H", 0xC000 | start + 2)
    assert read_answer(A, message(A, there + pointer, count=1)) is None


def test_records_of_other_classes_do_not_count() -> None:
    data = message(A, record(ASKED, 1, b"abcd", class_=3), record(ASKED, 1, b"efgh"))
    assert read_answer(A, data) == Answer(0, (b"efgh",), 60)


def test_negative_ttl_is_none() -> None:
    assert read_answer(A, message(A, record(ASKED, 1, b"abcd", ttl=1 << 31))) == Answer(
        0, (b"abcd",), 0
    )


# Bounds


@pytest.mark.parametrize("octets", [255, 256])
def test_name_has_255_octets_at_most(octets: int) -> None:
    labels = [b"\x3f" + b"x" * 63] * 3 + [b"\x3c" + b"x" * 60]
    labels[-1] = bytes((octets - 194,)) + b"x" * (octets - 194)
    for name in (
        b"".join(labels) + b"\0",
        # The same, with a pointer to its last two labels, which stand in an
        # earlier record.
        b"".join(labels[:2]) + struct.pack(">H", 0xC000 | len(message(PTR)) + 12),
    ):
        tail = record(b"\0", 16, b"\0" + b"".join(labels[2:]) + b"\0")
        data = message(PTR, tail, record(ASKED, 12, name))
        answer = read_answer(PTR, data)
        if octets == 255:
            assert answer is not None
            assert len(answer.values[0]) == 253
        else:
            assert answer is None


def test_first_name_of_many_is_found() -> None:
    data = message(PTR, *[record(ASKED, 12, b"\1a\0")] * 4000)
    assert len(data) > 60_000
    assert read_answer(PTR, data) == Answer(0, (b"a",), 60)


@pytest.mark.parametrize("count", [MAX_RECORDS, MAX_RECORDS + 1])
def test_more_addresses_than_one_looks_at_are_a_server_failure(count: int) -> None:
    answer = read_answer(A, message(A, *[record(ASKED, 1, b"abcd")] * count))
    assert answer is not None
    assert answer.code == (SERVER_FAILURE if count > MAX_RECORDS else 0)
    assert len(answer.values) == (0 if count > MAX_RECORDS else count)


LONG = b"\1a" * 126 + b"\0"
WORST = {
    "long names": message(PTR, *[record(ASKED, 12, LONG)] * 100),
    "long owners": message(PTR, *[record(LONG, 16, b"")] * 200),
    "64 KB": message(PTR, *[record(b"\0", 16, b"")] * 5900),
    "as many labels as one may have": message(
        A, *[record(b"\2%02d\1b\1c\1d\0" % n, 1, b"abcd") for n in range(100)]
    ),
    "pointers to pointers": message(
        A,
        record(b"\0", 16, ASKED * 100),
        *[record(struct.pack(">H", 0xC000 | 36 + 2 * n), 1, b"abcd") for n in range(99)],
    ),
    "aliases": message(
        A,
        record(ASKED, 5, b"\0010\0"),
        *[record(b"\1%d\0" % n, 5, b"\1%d\0" % (n + 1)) for n in range(9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WORST)
def test_worst_messages_take_few_steps(name: str) -> None:
    data = WORST[name]
    question = PTR if PTR.wire in data else A
    assert 0 < lines_of(question, data) < MAX_LINES


_NAMES = st.one_of(
    st.just(ASKED),
    st.integers(0, 0x3FFF).map(lambda at: struct.pack(">H", 0xC000 | at)),
    st.integers(0, 130).map(lambda count: b"\1a" * count + b"\0"),
    st.integers(0, 130).map(lambda count: b"\1a" * count + ASKED),
    st.binary(max_size=8),
)
_HOSTILE = st.builds(
    record,
    _NAMES,
    st.sampled_from([1, 5, 12, 16, 28, 33]),
    st.one_of(_NAMES, st.binary(max_size=17), _NAMES.map(lambda name: bytes(6) + name)),
)


@given(
    st.lists(_HOSTILE, max_size=8),
    st.integers(1, 200),
    st.sampled_from([PTR, A, AAAA, SRV]),
)
def test_no_message_takes_many_steps(
    records: list[bytes], times: int, question: Question
) -> None:
    assert lines_of(question, message(question, *records * times)) < MAX_LINES


@given(
    st.binary(max_size=100), st.integers(0, 12), st.sampled_from([PTR, A, AAAA, SRV])
)
def test_any_bytes_are_an_answer_or_none(
    tail: bytes, cut: int, question: Question
) -> None:
    data = {
        PTR: "60 PTR m.example.",
        A: "60 A 192.0.2.1",
        AAAA: "60 AAAA ::1",
        SRV: "_imap._tcp.m.example. 60 SRV 1 2 143 m.example.",
    }
    good = answer_to(question, data[question])
    for bad in (
        tail,
        good[:2] + b"\x84" + tail,
        good[: len(good) - cut] + tail,
        good[:30] + tail + good[30 + cut :],
    ):
        answer = read_answer(question, bad)
        assert answer is None or isinstance(answer, Answer)
        for value in answer.values if answer else ():
            assert len(value) <= 253 + (question is SRV) * 6
            if question is SRV:
                assert read_service(value).port <= 65535


_LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=4)


@given(_LABELS)
def test_names_are_what_dnspython_reads(labels: list[bytes]) -> None:
    name = dns.name.Name((*labels, b"")).to_wire()
    assert name is not None
    data = message(PTR, record(ASKED, 12, name))
    answer = read_answer(PTR, data)
    assert answer == Answer(0, (b".".join(labels).lower(),), 60)
    assert to_host(name) == b".".join(labels)
