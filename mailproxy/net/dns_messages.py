"""DNS messages: the part of RFC 1035, section 4 that host names need, on bytes.

A client that owns the zone of its address controls what an answer holds: tens of
thousands of records, names of 127 labels, pointers to pointers. So only the first
`MAX_RECORDS` records are read, and at most `MAX_STEPS` labels and pointers are
followed in a whole message. That bounds the work for any message, well below a
millisecond. A message that would need more work counts as a server failure: a
temporary error, as if the name server had said so.

A name is kept in its wire form, in lower case: ``b"\\4mail\\7example\\0"``. Length
octets are below 64 and so never letters: one `lower()` is enough for a whole name, and
a name with dots or zeros in its labels cannot be mistaken for another one.
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
"""Records of an answer that are read."""
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
"""What follows the number: recursion is desired, and there is one question."""
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
_SERVICE = struct.Struct(">HHH")
_SERVICE_NAME = re.compile(
    rb"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*"
)
_HOST_NAME = re.compile(rb"(?=.{1,253}\Z)[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*")


class Kind(IntEnum):
    """Record types that can be asked for, by their numbers on the wire."""

    A = 1
    PTR = 12
    AAAA = 28
    SRV = 33


_ADDRESS_SIZE = {Kind.A: 4, Kind.AAAA: 16}


class Question(NamedTuple):
    """A record type and the name that is asked about."""

    kind: Kind
    name: bytes
    """In wire form and lower case."""

    @property
    def wire(self) -> bytes:
        """The question section of a message."""
        return self.name + struct.pack(">HH", self.kind, _INTERNET)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a name server."""

    code: int = 0
    """0, or an error: `SERVER_FAILURE`, `NOT_FOUND` …"""
    values: tuple[bytes, ...] = ()
    """One host name, in lower case without the final dot; or addresses of 4 or 16
    octets, or services for `read_service`; at most `MAX_RECORDS`."""
    ttl: int = 0
    """Seconds for which the answer is valid."""
    alias: bytes = b""
    """What the name is an alias of (wire form), if the message has no values for it."""
    truncated: bool = False
    """Whether the whole answer does not fit into a datagram."""


class _MalformedError(Frozen, Exception):
    """The message is malformed."""


class _ExcessiveError(Frozen, Exception):
    """The message needs more work than the limits allow."""


def is_host_name(name: bytes) -> bool:
    """Return whether a name is fit for a header, a command and a question.

    Letters, digits, hyphens and dots, in labels of 1 to 63 octets; 253 in all.
    """
    return _HOST_NAME.fullmatch(name) is not None


def is_service_name(name: bytes) -> bool:
    """Return whether a name is fit for a question about a service: with underscores."""
    return _SERVICE_NAME.fullmatch(name) is not None


def forward_question(kind: Kind, name: bytes) -> Question:
    """Return the question for addresses of a host name.

    Args:
      name: without the final dot; `is_host_name` must hold for it.
    """
    assert is_host_name(name)
    return Question(kind, _to_wire(name.lower().split(b".")))


def reverse_question(address: IPAddress) -> Question:
    """Return the question for the name of an address (RFC 1035, 3.5; RFC 3596, 2.5)."""
    name = address.reverse_pointer.encode("ascii")
    return Question(Kind.PTR, _to_wire(name.split(b".")))


def service_question(name: bytes) -> Question:
    """Return the question for the servers of a service (RFC 2782).

    Args:
      name: ``_imap._tcp.example.com``; `is_service_name` must hold for it.
    """
    assert is_service_name(name)
    return Question(Kind.SRV, _to_wire(name.lower().split(b".")))


class ServiceRecord(NamedTuple):
    """One server of a service."""

    priority: int
    """Those with the smallest number are asked first."""
    weight: int
    port: int
    host: bytes
    """Empty: the service is decidedly not available there."""


def read_service(value: bytes) -> ServiceRecord:
    """Read a value of an answer about a service."""
    priority, weight, port = _SERVICE.unpack_from(value)
    return ServiceRecord(priority, weight, port, value[_SERVICE.size :])


def _to_wire(labels: list[bytes]) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def to_host(name: bytes) -> bytes:
    """Join the labels of a name in wire form with dots; empty for the root."""
    labels = []
    at = 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return b".".join(labels)


def packed(address: IPAddress) -> bytes:
    """Return an address in the form of `Answer.values`."""
    return _unmapped(address.packed)


def _unmapped(octets: bytes) -> bytes:
    """Turn an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) into IPv4."""
    return octets[12:] if octets.startswith(_MAPPED) else octets


def write_query(number: bytes, question: Question) -> bytes:
    """Return the message that asks a question.

    Args:
      number: two octets; the answer begins with the same.
    """
    return number + _QUERY + question.wire


def read_answer(question: Question, message: bytes) -> Answer | None:
    """Read the answer to a question from a message; the caller checks its number.

    Returns:
      None if the message does not answer the question: it is about another one, is
      malformed, or has no useful record. nginx ignores these as well and waits for a
      better one (ngx_resolver_process_response). It also does so for "format error":
      another server may understand us.
    """
    try:
        return _read(question, message)
    except _ExcessiveError:
        return Answer(SERVER_FAILURE)
    except (_MalformedError, IndexError, struct.error):  # the last two: cut short
        return None


def _read(question: Question, message: bytes) -> Answer | None:
    _, flags, questions, records, _, _ = _HEADER.unpack_from(message)
    code = flags & _CODE
    if flags & _RESPONSE_MASK != _RESPONSE_TO_QUERY or code == FORMAT_ERROR:
        return None
    start = _HEADER.size
    end = start + len(question.wire)
    if questions != 1 or message[start:end].lower() != question.wire:
        # Servers that cannot or will not answer may omit the question.
        refuses = code in (SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED)
        return Answer(code) if refuses and not questions else None
    if flags & _TRUNCATED:
        return Answer(truncated=True)  # it may end anywhere, so nothing is read
    if code:
        return Answer(code)
    if not records:
        return Answer(NOT_FOUND)
    return _Records(question, message, end, records).conclude()


class _Place(NamedTuple):
    """Where the data of a record are in a message."""

    start: int
    end: int
    ttl: int


class _Records:
    """The answer section of a message, up to the limits.

    Attributes:
      excess: whether there are more records than are read.
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
        """Note where the data of the record at `at` are; return its end."""
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
        """Follow the aliases, in whatever order they come, from question to answer."""
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
            first = places[0]  # nginx ignores the others as well
            host = to_host(self._read_target(first))
            return Answer(0, (host,), min(ttl, first.ttl))
        if self.excess:
            raise _ExcessiveError
        if places:
            ttl = min(ttl, *(place.ttl for place in places))
            read = self._read_value
            return Answer(0, tuple(map(read, places)), ttl)
        if followed and self._question.kind is not Kind.PTR:
            return Answer(0, (), ttl, alias=name)
        return None

    def _read_value(self, place: _Place) -> bytes:
        if self._question.kind is Kind.SRV:
            return self._read_service(place)
        return self._read_address(place)

    def _read_service(self, place: _Place) -> bytes:
        """Read three numbers and a name, which is not compressed as a rule."""
        at = place.start + _SERVICE.size
        name, end = self._read_name(at)
        if end != place.end:
            raise _MalformedError
        return self._message[place.start : at] + to_host(name)

    def _read_address(self, place: _Place) -> bytes:
        if place.end - place.start != _ADDRESS_SIZE[self._question.kind]:
            raise _MalformedError
        return _unmapped(self._message[place.start : place.end])

    def _read_target(self, place: _Place) -> bytes:
        """Read the name that makes up all the data of a record."""
        name, end = self._read_name(place.start)
        if end != place.end:
            raise _MalformedError
        return name

    def _read_name(self, start: int) -> tuple[bytes, int]:
        """Read a name; return its lower-case wire form and its end (RFC 1035, 4.1.4).

        Each pointer must lead to an earlier place than all pointers before it, so
        that following them ends.
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
