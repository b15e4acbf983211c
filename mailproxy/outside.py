"""What a configuration has fetched from outside: files, addresses of names, accounts.

All of it may be slow or endless: a name whose server is dead, a FIFO that nobody
writes to, /dev/zero, a network disk. So two rules hold for everything here:

- Files are read up to a limit of octets. What is not a regular file (a FIFO, a
  device) is waited for `PATIENCE` seconds and no longer, and opening never waits.
- What was found can be recorded while a configuration is loaded (`recording`), and
  used in another process instead of asking again (`replaying`). So the master loads
  what another process has fetched, and never waits itself.

Loading is synchronous and has no threads: there is one record at a time.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import grp
import os
import pwd
import select
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar, cast

from mailproxy.frozen import Frozen

PATIENCE = 10.0
"""Seconds for what is no regular file: until it is written, and read to its end."""
MOST_RECORDED = 256 << 20
"""Octets of files that a record holds; what is beyond is read again."""

_PIECE = 1 << 16
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_SIZED = (stat.S_IFREG, stat.S_IFDIR)

T = TypeVar("T")
Account = tuple[str, int, int]
"""Name, uid and gid of a user."""
Limit = Literal["size", "time", "kind"]
"""Too large, too slow, no regular file."""


class FileError(Frozen, OSError):
    """A file cannot be read.

    Attributes:
      call: the system call that failed, or would have: "open" or "read".
      limit: the limit that the file does not keep; None: the system said the error.
    """

    def __init__(self, call: str, number: int, limit: Limit | None = None) -> None:
        """Describe an error.

        Args:
          number: of the system's error; for a limit, the one that says it best.
        """
        super().__init__(number, os.strerror(number))
        self.call = call
        self.limit = limit

    def __reduce__(self) -> tuple[type[FileError], tuple[object, ...]]:
        """Be copied into another process."""
        return FileError, (self.call, self.errno, self.limit)


def too_large() -> FileError:
    """The error of a file that is larger than it may be."""
    return FileError("read", errno.EFBIG, "size")


@dataclass
class Findings:
    """What a load has found: for each question the answer, or the error."""

    answers: dict[tuple[object, ...], object] = field(default_factory=dict, repr=False)
    errors: dict[tuple[object, ...], Exception] = field(default_factory=dict)
    octets: int = 0
    """Of the answers, about."""


_record: Findings | None = None


@contextlib.contextmanager
def recording() -> Iterator[Findings]:
    """Record what is found meanwhile; what is asked twice is fetched once."""
    with replaying(Findings()) as findings:
        yield findings


@contextlib.contextmanager
def replaying(findings: Findings) -> Iterator[Findings]:
    """Answer from `findings`; what they do not know is fetched, and added."""
    global _record  # one load at a time, see above
    before, _record = _record, findings
    try:
        yield findings
    finally:
        _record = before


def _fetch(ask: Callable[..., T], *arguments: object) -> T:
    """Ask the record, and then the world."""
    if _record is None:
        return ask(*arguments)
    question = (ask.__name__, *arguments)
    if question in _record.errors:
        raise _record.errors[question]
    if question in _record.answers:
        return cast("T", _record.answers[question])
    try:
        answer = ask(*arguments)
    except (OSError, LookupError, ValueError) as error:
        _record.errors[question] = error
        raise
    size = len(answer) if isinstance(answer, bytes) else 0
    if _record.octets + size <= MOST_RECORDED:
        _record.octets += size
        _record.answers[question] = answer
    return answer


# -- files -------------------------------------------------------------------------


def read(path: str, limit: int) -> bytes:
    """The content of a file, which may be a FIFO or a device.

    Args:
      limit: octets that it may have.

    Raises:
      FileError: it cannot be read, or not in time, or is larger.
    """
    content = begin(path, limit + 1)
    if len(content) > limit:
        raise too_large()
    return content


def begin(path: str, size: int) -> bytes:
    """The first `size` octets of a file, or all if there are fewer.

    Raises:
      FileError: it cannot be read, or not in time.
    """
    return _fetch(_begin, path, size)


def _begin(path: str, size: int) -> bytes:
    with _opened(path) as descriptor:
        return _read(descriptor, size)


def read_sized(path: str, limit: int) -> tuple[bytes, int]:
    """As many octets as a file has when it is opened, and how many those should be.

    nginx reads its configuration files so: nothing of a FIFO or a device.

    Raises:
      FileError: it cannot be read, or has more than `limit` octets.
    """
    return _fetch(_read_sized, path, limit)


def _read_sized(path: str, limit: int) -> tuple[bytes, int]:
    with _opened(path) as descriptor:
        found = os.fstat(descriptor)
        if found.st_size > limit:
            raise too_large()
        # A directory is read so that the system says what is wrong with that.
        size = max(found.st_size, int(stat.S_ISDIR(found.st_mode)))
        return (_read(descriptor, size) if size else b""), size


def check_regular(path: str, limit: int) -> None:
    """See that others can read a file, by its name, without end or waiting.

    Raises:
      FileError: it is missing, larger than `limit` octets, or no regular file.
    """
    _fetch(_check_regular, path, limit)


def _check_regular(path: str, limit: int) -> None:
    with _opened(path) as descriptor:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileError("open", errno.EINVAL, "kind")
        if found.st_size > limit:
            raise too_large()


def matching(pattern: bytes) -> list[bytes]:
    """The files that a shell pattern means, sorted by octets."""
    return _fetch(_matching, pattern)


def _matching(pattern: bytes) -> list[bytes]:
    return sorted(glob.glob(pattern))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """A descriptor that never waits; every error becomes a `FileError`."""
    call = "open"
    try:
        descriptor = os.open(os.fsencode(path), _READ)
        call = "read"
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except FileError:
        raise
    except OSError as error:
        raise FileError(call, error.errno or errno.EIO) from error


def _read(descriptor: int, size: int) -> bytes:
    # A FIFO that nobody has opened for writing reads as empty, and only poll(2)
    # tells that from one whose writer has gone. Regular files are always ready.
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + PATIENCE
    sized = stat.S_IFMT(os.fstat(descriptor).st_mode) in _SIZED
    content = bytearray()
    while len(content) < size:
        left = deadline - time.monotonic()
        if not sized and (left <= 0 or not ready.poll(left * 1000)):
            raise FileError("read", errno.ETIMEDOUT, "time")
        try:
            piece = os.read(descriptor, min(size - len(content), _PIECE))
        except BlockingIOError:
            continue
        if not piece:
            break
        content += piece
    return bytes(content)


# -- names -------------------------------------------------------------------------


def addresses(name: bytes, flags: int) -> list[tuple[int, str]]:
    """Family and text of the addresses of a name; what getaddrinfo() says, in its order.

    Args:
      flags: AI_… of getaddrinfo().

    Raises:
      OSError, UnicodeError: there are none.
    """
    return _fetch(_addresses, name, flags)


def _addresses(name: bytes, flags: int) -> list[tuple[int, str]]:
    answers = socket.getaddrinfo(
        name, None, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, flags
    )
    return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in answers]


def account(name: str) -> Account:
    """The user of that name.

    Raises:
      LookupError, ValueError: there is none.
    """
    return _fetch(_account, name)


def _account(name: str) -> Account:
    found = pwd.getpwnam(name)
    return found.pw_name, found.pw_uid, found.pw_gid


def group(name: str) -> int:
    """The gid of the group of that name.

    Raises:
      LookupError, ValueError: there is none.
    """
    return _fetch(_group, name)


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid
