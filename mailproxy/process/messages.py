"""What the master and its processes say to each other, in frames (`net/messages.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from mailproxy.net.messages import Message, MessageError, read_frame, write_frame


class Order(IntEnum):
    """The kinds on the line between the master and a worker, or the manager."""

    STOP = 101
    """Close everything at once and exit."""
    QUIT = 102
    """To a worker: stop accepting; exit when the last session is over. To the manager:
    exit."""
    REOPEN = 103
    """Open the log files again."""
    PING = 104
    """Answer `ALIVE`, with the same request id."""
    ALIVE = 105
    """To the master: the event loop turns."""
    UNMANAGED = 106
    """To a worker: the manager has died; it is not asked before its successor greets."""
    WORKER = 107
    """To the manager, with a descriptor: the line to a new worker."""
    CERTIFICATES = 108
    """To a worker, with a descriptor: use the new certificates in this file."""
    CERTIFICATES_OK = 109
    """To the master: they are in use."""
    CERTIFICATES_FAILED = 110
    """To the master: they are not, the old ones are."""


def read_order(frame: bytes) -> tuple[Order, Message]:
    """Parse an order in a frame, or the answer to one; returns it and the message.

    Raises:
      MessageError: the frame is not a message, or not of a kind that this line has.
    """
    message = read_frame(frame)
    try:
        return Order(message.kind), message
    except ValueError:
        raise MessageError(f"unknown kind {message.kind}") from None


def write_order(
    order: Order, request: int = 0, body: Mapping[str, object] | None = None
) -> bytes:
    """Format an order, or the answer to one, as a frame."""
    return write_frame(Message(order, request, body or {}))
