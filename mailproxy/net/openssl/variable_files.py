"""Certificates in files whose names have the client's SNI in them (`$ssl_server_name`).

They are read at the handshake, by the worker and with its rights. A cache keeps what is
good, and in a table of its own what is missing: names that somebody makes up cannot push
out the good ones (CVE-2017-15130 was such a table).
"""

from __future__ import annotations

import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mailproxy import outside
from mailproxy.frozen import Frozen
from mailproxy.net.certificate_cache import CacheLimits
from mailproxy.net.openssl import identities
from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.headers.types import SSL
from mailproxy.net.openssl.notes import Note
from mailproxy.net.openssl.pairs import Pair
from mailproxy.outside import FileError, FileFacts

_Question = TypeVar("_Question")

VARIABLE = "$ssl_server_name"
BRACED = "${ssl_server_name}"

_ERROR_PAUSE = 60.0
"""Seconds between two log lines about the same file."""
_MAX_REMEMBERED = 1000
"""Files whose errors are remembered for that."""
_CERTIFICATE = 'cannot load certificate "%s"'
_KEY = 'cannot load certificate key "%s"'
_NO_FILE = 'there is no certificate "%s"'
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(slots=True)
class _Entry:
    pair: Pair
    facts: tuple[FileFacts, FileFacts]
    checked: float
    used: float


class _RejectedError(Frozen, Exception):
    """A file cannot be used.

    Attributes:
      path: the file.
      event: what the log says; it has a ``%s`` for the path.
      error: the system error behind it.
    """

    def __init__(self, path: str, event: str, error: OSError | None = None) -> None:
        super().__init__()
        self.path = path
        self.event = event
        self.error = error

    def note(self) -> Note:
        """Make the line for the log."""
        return Note("error", self.event, (self.path,), error=self.error)


@dataclass(frozen=True, slots=True)
class Template:
    """An `ssl_certificate` with a variable, and its key."""

    file: str
    key_file: str

    def filled(self, name: str) -> tuple[str, str]:
        """Return both paths for a name."""
        return _fill(self.file, name), _fill(self.key_file, name)


def _fill(path: str, name: str) -> str:
    return path.replace(BRACED, name).replace(VARIABLE, name)


class VariableFiles:
    """Finds and keeps the certificates of one server.

    Args:
      clock: seconds that never go backwards.
    """

    def __init__(
        self,
        templates: Sequence[Template],
        passwords: Sequence[bytes],
        limits: CacheLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.templates = tuple(templates)
        self._passwords = tuple(passwords)
        self._limits = limits
        self._clock = clock
        self._found: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._missing: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._said: OrderedDict[str, float] = OrderedDict()

    def find(self, name: str, note: Callable[[Note], None]) -> tuple[Pair, ...]:
        """Return the certificates of a name; empty if there are none.

        Args:
          name: a host name, which has nothing that paths could be abused with.
          note: gets what the log is to say.
        """
        found = []
        for template in self.templates:
            try:
                pair = self._get(template.filled(name))
            except _RejectedError as rejected:
                pair = None
                if self._is_due(rejected.path):
                    note(rejected.note())
            else:
                if pair is None:
                    note(Note("debug", _NO_FILE, (template.filled(name)[0],)))
            if pair is not None:
                found.append(pair)
        return tuple(found)

    def use(self, pairs: Sequence[Pair], ssl: SSL) -> None:
        """Have a connection use what `find` has returned.

        Raises:
          OpenSSLError: OpenSSL refuses it.
        """
        for pair in pairs:
            if self._limits.most:
                identities.use(pair, ssl)
            elif not identities.Identity(pair).use(ssl):
                raise failure("SSL_use_cert_and_key() failed")

    def _get(self, paths: tuple[str, str]) -> Pair | None:
        """Return the certificate of two files, from the cache or not; None: no file.

        Raises:
          _RejectedError: one of them cannot be used.
        """
        if not self._limits.most:
            loaded = self._load(paths)
            return None if loaded is None else loaded[0]
        now = self._clock()
        self._drop_inactive(now)
        entry = self._found.get(paths)
        if entry is not None and self._is_good(entry, paths, now):
            entry.used = now
            self._found.move_to_end(paths)
            return entry.pair
        if self._missing.get(paths, 0.0) > now:
            return None
        self._drop(paths)
        loaded = self._load(paths)
        if loaded is None:
            _put(self._missing, paths, now + self._limits.valid, self._limits.most)
            return None
        self._missing.pop(paths, None)
        if len(self._found) >= self._limits.most:
            self._drop(next(iter(self._found)))
        self._found[paths] = _Entry(*loaded, checked=now, used=now)
        return loaded[0]

    def _is_good(self, entry: _Entry, paths: tuple[str, str], now: float) -> bool:
        if now - entry.checked < self._limits.valid:
            return True
        entry.checked = now
        try:
            return entry.facts == tuple(map(outside.facts, paths))
        except OSError:
            return False  # reading it says why

    def _drop_inactive(self, now: float) -> None:
        while self._found:
            paths, oldest = next(iter(self._found.items()))
            if now - oldest.used < self._limits.inactive:
                return
            self._drop(paths)

    def _drop(self, paths: tuple[str, str]) -> None:
        entry = self._found.pop(paths, None)
        if entry is not None:
            identities.forget([entry.pair])

    def _load(
        self, paths: tuple[str, str]
    ) -> tuple[Pair, tuple[FileFacts, FileFacts]] | None:
        from mailproxy.net.openssl import folder  # it is slow to import

        contents = []
        for path, event in zip(paths, (_CERTIFICATE, _KEY), strict=True):
            try:
                contents.append(outside.read_regular(path, folder.MAX_FILE))
            except FileError as error:
                if error.errno in _MISSING and event is _CERTIFICATE:
                    return None
                raise _RejectedError(
                    path, f"{event}: {error.call}() failed", error
                ) from None
        (certificate, facts), (key, key_facts) = contents
        try:
            pair = folder.load_pair(
                paths[0], certificate, paths[1], key, self._passwords
            )
        except folder.PairError as error:
            event, path = (_KEY, paths[1]) if error.of_key else (_CERTIFICATE, paths[0])
            raise _RejectedError(path, f"{event}: {error.reason}") from None
        return pair, (facts, key_facts)

    def _is_due(self, path: str) -> bool:
        """Return whether the log is to hear of this file."""
        now = self._clock()
        if now < self._said.get(path, 0.0):
            return False
        _put(self._said, path, now + _ERROR_PAUSE, _MAX_REMEMBERED)
        return True


def _put(
    table: OrderedDict[_Question, float], question: _Question, until: float, most: int
) -> None:
    """Remember something, and forget the oldest if there is too much."""
    table[question] = until
    table.move_to_end(question)
    if len(table) > most:
        table.popitem(last=False)
