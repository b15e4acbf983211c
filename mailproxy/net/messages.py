"""The format of messages between the processes of one program.

A line is a pair of sockets that keep messages apart (SOCK_SEQPACKET), so one frame is
one message, and none is ever torn. A frame begins with twelve octets in network order:

    length   32 bits   octets of the whole frame, these twelve included
    request  32 bits   which answer belongs to which question; 0: none is expected
    kind     16 bits   what the message says; each line has its own list
    version  16 bits   1

The rest is a JSON object (RFC 8259) in ASCII, and may be missing if it is empty. Octet
strings are text in it, a character per octet (Latin-1). Workers talk to strangers, so
another process must be able to read safely whatever a worker might send: a frame is
bounded, reading it raises only `MessageError`, and pickle is never used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from mailproxy.frozen import Frozen

VERSION = 1
MAX_FRAME = 64 * 1024
"""Octets of a frame."""
COMPLAINT_PAUSE = 1.0
"""Seconds between two log lines about invalid messages of one process."""

_HEADER = struct.Struct(">IIHH")
_MAX_REQUEST = 2**32 - 1
_MAX_KIND = 2**16 - 1


class MessageError(Frozen, Exception):
    """A frame is not a message. The text says why, and quotes nothing from the frame."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one process tells another."""

    kind: int
    """0 to 65535; the receiver knows which kinds its line has."""
    request: int = 0
    """0 to 2**32 - 1."""
    body: Mapping[str, object] = field(default_factory=dict, repr=False)
    """A JSON object; it may carry secrets."""


def write_frame(message: Message) -> bytes:
    """Format a message as a frame.

    Raises:
      ValueError: a number is out of its range, or the frame would be longer than
        `MAX_FRAME`.
      TypeError: JSON has no form for a value in the body.
    """
    if not 0 <= message.kind <= _MAX_KIND or not 0 <= message.request <= _MAX_REQUEST:
        raise ValueError("kind or request id out of range")
    body = b""
    if message.body:
        text = json.dumps(message.body, allow_nan=False, separators=(",", ":"))
        body = text.encode("ascii")
    length = _HEADER.size + len(body)
    if length > MAX_FRAME:
        raise ValueError(f"a message of {length} octets is too long")
    return _HEADER.pack(length, message.request, message.kind, VERSION) + body


def read_frame(frame: bytes) -> Message:
    """Parse the message in a frame.

    Raises:
      MessageError: the frame is not a message.
    """
    if len(frame) > MAX_FRAME:
        raise MessageError("too long")
    if len(frame) < _HEADER.size:
        raise MessageError("too short")
    length, request, kind, version = _HEADER.unpack_from(frame)
    if length != len(frame):
        raise MessageError("its length is not what it says")
    if version != VERSION:
        raise MessageError(f"unknown version {version}")
    return Message(kind, request, _read_body(frame[_HEADER.size :]))


def _read_body(octets: bytes) -> dict[str, object]:
    if not octets:
        return {}
    try:
        body = _JSON.decode(octets.decode("ascii"))
    except (ValueError, RecursionError):
        body = None
    # Outside `except`, because the errors above carry the frame and its secrets.
    if not isinstance(body, dict):
        raise MessageError("its body is not a JSON object")
    return body


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _refuse_constant(_name: str) -> NoReturn:
    """Refuse `NaN` and `Infinity`, which Python's parser accepts, but are not JSON."""
    raise ValueError("not a JSON value")


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


class Complaints:
    """Decides when to log that a process sent an invalid message, since not all are.

    Args:
      clock: seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = -math.inf

    def is_due(self) -> bool:
        """Whether to log this one; if so, not again before `COMPLAINT_PAUSE` is over."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + COMPLAINT_PAUSE
        return True
