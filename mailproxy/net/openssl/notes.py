"""What callbacks have to say of a handshake: they have no log, and the session has one.

Notes are kept by the address of the connection until the session takes them. A new
handshake at the same address begins with none.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.net.openssl.headers.types import SSL

_MAX_CONNECTIONS = 10_000
"""Connections whose notes are kept: those of cancelled sessions are not taken."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log of the session.

    Attributes:
      level: nginx's name of the log level.
      event, values: as the methods of a `Logger` take it.
      error: the system error behind it.
      refusal: it is why the handshake fails.
      bug: an exception that nobody expected.
    """

    level: str
    event: str
    values: tuple[object, ...] = ()
    error: OSError | None = None
    refusal: bool = False
    bug: Exception | None = None


pending: dict[SSL, list[Note]] = {}
"""By connection, what its session has not taken yet."""


def begin(ssl: SSL) -> None:
    """Forget what was said of another connection at this address."""
    pending.pop(ssl, None)


def say(ssl: SSL, note: Note) -> None:
    """Keep a note for the session."""
    if len(pending) >= _MAX_CONNECTIONS:
        del pending[next(iter(pending))]
    pending.setdefault(ssl, []).append(note)


def take(ssl: SSL) -> list[Note]:
    """Return the notes of a connection, once."""
    return pending.pop(ssl, [])
