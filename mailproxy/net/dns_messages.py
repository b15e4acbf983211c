"""DNS messages: just what host names take, on bytes (RFC 1035, section 4).

Whoever owns the zone of their address chooses what an answer holds: tens of thousands
of records, names of 127 labels, pointers to pointers. Here nothing is read because it
is there. The first `MAX_RECORDS` records are looked at, and `MAX_STEPS` labels and
pointers are followed in a whole message; so the work for one message has a bound that
no message can move, well below a millisecond. What it would take more for is a
server failure: a temporary error, as if the name server had said so.

A name is kept in its wire form, in lower case: ``b"\\4mail\\7example\\0"``. The octets
of lengths are below 64 and so no letters; one `lower()` does for a whole name, and
names with dots or zeros in their labels cannot be taken for others.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mailproxy.conf.addresses import IPAddress
from mailproxy.frozen import Frozen

MAX_NAME = 255
"""Octets of a name in wire form (RFC 1035, section 3.1)."""
MAX_RECORDS = 100
"""Records of an answer that are looked at."""
MAX_STEPS = 600
"""Labels and pointers of a message that are followed."""
MAX_ALIASES = 8
"""CNAMEs that are followed, within an answer and from answer to answer."""

FORMAT_ERROR = 1
SERVER_FAILURE = 2
NOT_FOUND = 3
NOT_IMPLEMENTED = 4
REFUSED = 5

_HEADER = struct.Struct(">HHHHHH")  # number, flags, counts of the four sections
_QUERY = bytes((1, 0, 0, 1, 0, 0, 0, 0, 0, 0))
"""Behind the number: recursion is desired, and one question follows."""
_RECORD = struct.Struct(">HHIH")  # type, class, TTL, octets of data
_TRUNCATED = 0x0200
_RESPONSE_TO_QUERY = 0x8000  # QR set, and opcode 0, under this mask:
_RESPONSE_MASK = 0xF800
_CODE = 0x000F
_CNAME = 5
_INTERNET = 1
_POINTER = 0xC0
_MAX_LABEL = 63
_MAPPED = bytes(10) + b"\xff\xff"
_HOST_NAME = re.compile(rb"(?=.{1,253}\Z)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


class Kind(IntEnum):
    """What can be asked for, by its number on the wire."""

    A = 1
    PTR = 12
    AAAA = 28


_ADDRESS_SIZE = {Kind.A: 4, Kind.AAAA: 16}


class Question(NamedTuple):
    """What is asked."""

    kind: Kind
    name: bytes
    """In wire form and lower case."""

    @property
    def wire(self) -> bytes:
        """The question section."""
        return self.name + struct.pack(">HH", self.kind, _INTERNET)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name server says."""

    code: int = 0
    """0, or an error: `SERVER_FAILURE`, `NOT_FOUND` …"""
    values: tuple[bytes, ...] = ()
    """One host name, in lower case without the final dot; or addresses, of 4 octets or
    16. At most `MAX_RECORDS`."""
    ttl: int = 0
    """Seconds for which it is good."""
    alias: bytes = b""
    """The name is another one for this (wire form), about which nothing is said."""
    truncated: bool = False
    """There is more than fits into a datagram."""


class _MalformedError(Frozen, Exception):
    """A message breaks the rules of its format."""


class _ExcessiveError(Frozen, Exception):
    """A message would take more work than one may."""


def is_host_name(name: bytes) -> bool:
    """Whether a name may stand in a header or a command, and can be asked for.

    Letters, digits, hyphens and dots, in labels of 1 to 63 octets; 253 in all.
    """
    return _HOST_NAME.fullmatch(name) is not None


def forward_question(kind: Kind, name: bytes) -> Question:
    """The question for addresses of a host name.

    Args:
      name: without the final dot; `is_host_name` holds for it.
    """
    assert is_host_name(name)
    return Question(kind, _to_wire(name.lower().split(b".")))


def reverse_question(address: IPAddress) -> Question:
    """The question for the name of an address (RFC 1035, 3.5; RFC 3596, 2.5)."""
    name = address.reverse_pointer.encode("ascii")
    return Question(Kind.PTR, _to_wire(name.split(b".")))


def _to_wire(labels: list[bytes]) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def to_host(name: bytes) -> bytes:
    """The labels of a name in wire form, joined with dots; empty for the root."""
    labels = []
    at = 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return b".".join(labels)


def packed(address: IPAddress) -> bytes:
    """An address as in the values of an `Answer`."""
    return _unmapped(address.packed)


def _unmapped(octets: bytes) -> bytes:
    """IPv4 addresses in IPv6 form (RFC 4291, section 2.5.5.2) as IPv4 addresses."""
    return octets[12:] if octets.startswith(_MAPPED) else octets


def write_query(number: bytes, question: Question) -> bytes:
    """The message that asks a question.

    Args:
      number: two octets, with which the answer begins, too.
    """
    return number + _QUERY + question.wire


def read_answer(question: Question, message: bytes) -> Answer | None:
    """What a message says about a question; its number is the caller's business.

    Returns:
      None if it is no answer to the question: about another one, broken, or with
      records of which none is of use. nginx passes over these, too, and waits for a
      better one (ngx_resolver_process_response). So it does for "format error":
      another server may understand us.
    """
    try:
        return _read(question, message)
    except _ExcessiveError:
        return Answer(SERVER_FAILURE)
    except (_MalformedError, IndexError, struct.error):  # the latter: it ends too early
        return None


def _read(question: Question, message: bytes) -> Answer | None:
    _, flags, questions, records, _, _ = _HEADER.unpack_from(message)
    code = flags & _CODE
    if flags & _RESPONSE_MASK != _RESPONSE_TO_QUERY or code == FORMAT_ERROR:
        return None
    start = _HEADER.size
    end = start + len(question.wire)
    if questions != 1 or message[start:end].lower() != question.wire:
        # Servers that cannot or will not answer may leave the question out.
        refuses = code in (SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED)
        return Answer(code) if refuses and not questions else None
    if flags & _TRUNCATED:
        return Answer(truncated=True)  # where it ends may be anywhere
    if code:
        return Answer(code)
    if not records:
        return Answer(NOT_FOUND)
    return _Records(question, message, end, records).conclude()


class _Place(NamedTuple):
    """Where the data of a record stand in a message."""

    start: int
    end: int
    ttl: int


class _Records:
    """The answer section of a message, as far as it is looked at.

    Attributes:
      excess: there are more records than are looked at.
    """

    def __init__(
        self, question: Question, message: bytes, start: int, count: int
    ) -> None:
        """Read the heads of the records.

        Args:
          start: where the section begins.
          count: records that the header announces.
        """
        self._question = question
        self._message = message
        self._steps = MAX_STEPS
        self._names = {_HEADER.size: question.name}
        self._aliases: dict[bytes, _Place] = {}
        self._found: dict[bytes, list[_Place]] = {}
        self.excess = count > MAX_RECORDS
        at = start
        for _ in range(min(count, MAX_RECORDS)):
            at = self._read_head(at)

    def _read_head(self, at: int) -> int:
        """Note where the data of the record at `at` stand; returns its end."""
        owner, at = self._read_name(at)
        kind, class_, ttl, size = _RECORD.unpack_from(self._message, at)
        start = at + _RECORD.size
        end: int = start + size
        if end > len(self._message):
            raise _MalformedError
        if class_ == _INTERNET:
            # RFC 2181, section 8: a TTL with the sign bit set is zero.
            place = _Place(start, end, ttl if ttl < 1 << 31 else 0)
            if kind == _CNAME:
                self._aliases.setdefault(owner, place)
            elif kind == self._question.kind:
                self._found.setdefault(owner, []).append(place)
        return end

    def conclude(self) -> Answer | None:
        """Follow the aliases from the question to its answer, in whichever order."""
        name, ttl = self._question.name, (1 << 31) - 1
        followed: set[bytes] = set()
        while name not in self._found and name in self._aliases:
            if name in followed:
                return Answer(NOT_FOUND)  # they lead back to themselves
            if len(followed) == MAX_ALIASES:
                # A limit of ours, and no word of the zone.
                return Answer(SERVER_FAILURE)
            followed.add(name)
            place = self._aliases[name]
            name, ttl = self._read_target(place), min(ttl, place.ttl)
        places = self._found.get(name)
        if self._question.kind is Kind.PTR and places:
            first = places[0]  # the others do not count, as in nginx
            host = to_host(self._read_target(first))
            return Answer(0, (host,), min(ttl, first.ttl))
        if self.excess:
            raise _ExcessiveError
        if places:
            ttl = min(ttl, *(place.ttl for place in places))
            return Answer(0, tuple(map(self._read_address, places)), ttl)
        if followed and self._question.kind is not Kind.PTR:
            return Answer(0, (), ttl, alias=name)
        return None

    def _read_address(self, place: _Place) -> bytes:
        if place.end - place.start != _ADDRESS_SIZE[self._question.kind]:
            raise _MalformedError
        return _unmapped(self._message[place.start : place.end])

    def _read_target(self, place: _Place) -> bytes:
        """The name that is all of a record's data."""
        name, end = self._read_name(place.start)
        if end != place.end:
            raise _MalformedError
        return name

    def _read_name(self, start: int) -> tuple[bytes, int]:
        """A name in wire form and lower case, and where it ends (RFC 1035, 4.1.4).

        A pointer leads to an earlier place than all before it, so that it comes to
        an end.
        """
        message = self._message
        pieces = []
        at = piece = earliest = start
        size = end = 0
        last = None
        while last is None:
            if not self._steps:
                raise _ExcessiveError
            self._steps -= 1
            length = message[at]
            if length == 0:
                last = message[piece : at + 1]
                end = end or at + 1
            elif length <= _MAX_LABEL:
                at += 1 + length
                size += 1 + length
            elif length >= _POINTER:
                pieces.append(message[piece:at])
                end = end or at + 2
                at = piece = (length - _POINTER) << 8 | message[at + 1]
                if at >= earliest:
                    raise _MalformedError
                earliest = at
                last = self._names.get(at)
            if size >= MAX_NAME or _MAX_LABEL < length < _POINTER:
                raise _MalformedError  # other kinds of labels: RFC 6891, section 5
        name = b"".join((*pieces, last)).lower()
        if len(name) > MAX_NAME:
            raise _MalformedError
        self._names[start] = name
        return name, end
