"""TLS sessions that all workers share: the memory behind ``ssl_session_cache shared``.

Anonymous shared memory is mapped before the workers are forked. It is divided into
buckets of 16 KiB; the session id determines the bucket. A bucket is a ring: a new
record overwrites the oldest ones, so memory is bounded and needs no cleaning up.

There is no lock. A worker may be killed at any instruction, and the others would have
to notice and break a lock that it held. Without one, two workers that write to the same
bucket at the same moment, or a worker that dies while writing, leave a record whose
digest is wrong. Such a record is not found, and its client does a full handshake.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import time

MAX_SESSION = 4096
"""Bytes of an encoded session, as in nginx; longer ones are not kept, nor resumed."""

_BUCKET = 16 * 1024
_NEXT = struct.Struct("=I")  # where in the bucket the next record goes
_RECORD = struct.Struct("=16s16sIH")  # key, digest, expiry, size; the session follows
_KEY = 16
_LAST_RECORD = _BUCKET - _RECORD.size
"""Where in the bucket the last record may begin. A search does not go on behind its key:
before Python 3.11.4, mmap.find() reads the octet after its end (gh-105235), which may lie
outside the memory."""
_MAX_EXPIRY = 0xFFFFFFFF

TICKET_KEY_SIZE = 80
"""Bytes of OpenSSL's keys for tickets: a name, an HMAC key and an AES-256 key."""

ROTATION = 3600
"""Seconds after which tickets are encrypted with a new key."""


class SessionZone:
    """A cache of TLS sessions, and a ticket key, for all servers that name the zone.

    Sessions expire by the machine's monotonic clock, which all processes share.
    """

    def __init__(self, size: int) -> None:
        """Map the memory; a remainder of `size` that fills no bucket is not used.

        Args:
          size: bytes, at least 16 KiB.
        """
        self.size = size
        self._buckets = size // _BUCKET
        self._memory = mmap.mmap(-1, self._buckets * _BUCKET)
        self._key = os.urandom(TICKET_KEY_SIZE)
        self._period = self._now() // ROTATION

    def store(self, session_id: bytes, session: bytes, lifetime: int) -> None:
        """Keep an encoded session for `lifetime` seconds, unless it is overwritten."""
        if len(session) > MAX_SESSION:
            return
        key, start = self._place(session_id)
        expiry = min(self._now() + lifetime, _MAX_EXPIRY)
        digest = self._digest(key, expiry, session)
        record = _RECORD.pack(key, digest, expiry, len(session)) + session
        (at,) = _NEXT.unpack_from(self._memory, start)
        if not _NEXT.size <= at <= _BUCKET - len(record):
            at = _NEXT.size
        self._memory[start + at : start + at + len(record)] = record
        _NEXT.pack_into(self._memory, start, at + len(record))

    def find(self, session_id: bytes) -> bytes | None:
        """Return the session stored under an id, or None if it is gone or expired."""
        key, start = self._place(session_id)
        end = start + _LAST_RECORD + _KEY
        at = self._memory.find(key, start, end)
        while at >= 0:
            _, digest, expiry, size = _RECORD.unpack_from(self._memory, at)
            session = self._memory[at + _RECORD.size : at + _RECORD.size + size]
            if digest == self._digest(key, expiry, session):
                return session if expiry > self._now() else None
            at = self._memory.find(key, at + 1, end)
        return None

    def remove(self, session_id: bytes) -> None:
        """Remove a session, for all workers."""
        key, start = self._place(session_id)
        end = start + _LAST_RECORD + _KEY
        at = self._memory.find(key, start, end)
        while at >= 0:
            self._memory[at : at + _KEY] = bytes(_KEY)
            at = self._memory.find(key, at + 1, end)

    def ticket_key(self) -> bytes:
        """Return the key that protects tickets, the same in all workers.

        The key changes every hour. Each key is derived from the previous one, which is
        then forgotten: an attacker who reads the memory of a worker cannot decrypt
        traffic that was recorded in earlier hours (RFC 5077, section 5.5).
        """
        period = self._now() // ROTATION
        while self._period < period:
            derived = hashlib.shake_256(b"ticket key" + self._key)
            self._key = derived.digest(TICKET_KEY_SIZE)
            self._period += 1
        return self._key

    @staticmethod
    def _now() -> int:
        return int(time.monotonic())

    def _place(self, session_id: bytes) -> tuple[bytes, int]:
        """Return the key to search for, and the start of the bucket to search in.

        Clients choose the ids that are looked up, but cannot choose the key.
        """
        key = hashlib.blake2b(session_id, digest_size=_KEY).digest()
        return key, int.from_bytes(key[:8], "big") % self._buckets * _BUCKET

    @staticmethod
    def _digest(key: bytes, expiry: int, session: bytes) -> bytes:
        text = key + _NEXT.pack(expiry) + session
        return hashlib.blake2b(text, digest_size=16).digest()
