"""The hello of a TLS client: what it says before anything is encrypted.

`ssl` tells a server neither which protocols a client has offered by ALPN (RFC 7301)
nor, where no callback is set, the name that it asked for (RFC 6066, section 3). Where
OpenSSL cannot be asked, both are read from the hello itself, which is left in the
socket for OpenSSL:

    record     type 22, version, length (2), fragment of the handshake messages
    message    type 1, length (3), body
    body       version (2), random (32), session id, cipher suites, compression
               methods, extensions: type (2), length (2), data

This judges nothing: what is no hello, or a broken one, is for OpenSSL to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_HELLO = 16 * 1024
"""Octets that are looked at; no client in use sends as many."""

_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_VERSION_AND_RANDOM = 34
_SERVER_NAME, _ALPN = 0, 16
_HOST_NAME = 0


@dataclass(frozen=True)
class Hello:
    """What a client has said of itself; nothing of this was checked."""

    protocols: tuple[bytes, ...] = ()
    """What it offered by ALPN; empty if it did not."""
    server_name: bytes | None = None
    """The host that it asked for by SNI."""


def read_hello(data: bytes) -> Hello | None:
    """Read the octets with which a client begins; None: more must come.

    What is no client hello of TLS gives an empty `Hello`.
    """
    message = b""
    while len(data) >= _RECORD_HEADER:
        if data[0] != _HANDSHAKE:
            return Hello()
        end = _RECORD_HEADER + int.from_bytes(data[3:5], "big")
        message += data[_RECORD_HEADER:end]
        if len(message) >= _MESSAGE_HEADER:
            if message[0] != _CLIENT_HELLO:
                return Hello()
            size = _MESSAGE_HEADER + int.from_bytes(message[1:4], "big")
            if len(message) >= size:
                return _hello(message[_MESSAGE_HEADER:size])
        if end == _RECORD_HEADER:  # OpenSSL does not like empty ones
            return Hello()
        data = data[end:]
    return Hello() if data[:1] and data[0] != _HANDSHAKE else None


def _hello(body: bytes) -> Hello:
    try:
        return _Reader(body).hello()
    except ValueError:
        return Hello()


@dataclass
class _Reader:
    """Takes octets from the front.

    Every method raises ValueError where there are not enough.
    """

    data: bytes = field(repr=False)

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        if len(taken) < size:
            raise ValueError("too short")
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """What follows its own length, a number of `size` octets."""
        return self.take(self.number(size))

    def hello(self) -> Hello:
        self.take(_VERSION_AND_RANDOM)
        self.vector(1)
        self.vector(2)
        self.vector(1)
        protocols: tuple[bytes, ...] = ()
        name = None
        extensions = _Reader(self.vector(2)) if self.data else _Reader(b"")
        while extensions.data:
            kind, content = extensions.number(2), _Reader(extensions.vector(2))
            if kind == _ALPN:
                protocols = _Reader(content.vector(2)).names()
            elif kind == _SERVER_NAME:
                name = _Reader(content.vector(2)).host_name()
        return Hello(protocols, name)

    def names(self) -> tuple[bytes, ...]:
        found = []
        while self.data:
            found.append(self.vector(1))
        return tuple(found)

    def host_name(self) -> bytes | None:
        while self.data:
            kind, name = self.number(1), self.vector(2)
            if kind == _HOST_NAME:
                return name
        return None
