"""The hello of a TLS client, which it sends before anything is encrypted.

`ssl` does not tell a server which protocols a client has offered by ALPN (RFC 7301),
nor, without a callback, the name that the client asked for (RFC 6066, section 3). Where
OpenSSL's functions cannot be called, both are read from the hello itself, which stays
in the socket for OpenSSL:

    record     type 22, version, length (2), fragment of the handshake messages
    message    type 1, length (3), body
    body       version (2), random (32), session id, cipher suites, compression
               methods, extensions: type (2), length (2), data

Nothing is judged here: OpenSSL rejects what is no hello, or a malformed one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_HELLO = 16 * 1024
"""Octets that are read; no client in use sends as many."""

_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_VERSION_AND_RANDOM = 34
_SERVER_NAME, _ALPN = 0, 16
_HOST_NAME = 0


@dataclass(frozen=True)
class Hello:
    """What a client has asked for, unchecked."""

    protocols: tuple[bytes, ...] = ()
    """The protocols that it offered by ALPN; empty if it offered none."""
    server_name: bytes | None = None
    """The host that it asked for by SNI; None if it named none."""


def read_hello(data: bytes) -> Hello | None:
    """Read the first octets from a client; None if the hello is not complete yet.

    Returns an empty `Hello` for octets that are not a client hello of TLS.
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
        if end == _RECORD_HEADER:  # OpenSSL rejects empty records
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
    """Takes octets from the front of a message.

    Every method raises ValueError if there are not enough octets.
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
        """Take octets that follow their own length, a number of `size` octets."""
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
