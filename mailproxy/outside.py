"""What a configuration fetches from outside: files, addresses of names, accounts.

All of it may be slow or endless: a name whose server is dead, a FIFO without a
writer, /dev/zero, a network disk. So two rules hold for everything here:

- Files are read up to a limit of octets. Reading anything but a regular file (a FIFO,
  a device) takes `MAX_READ_TIME` at most, and opening never waits.
- Answers can be recorded while a configuration is loaded (`recording`), and used in
  another process instead of asking again (`replaying`). So the master loads what
  another process has fetched, and never waits itself.

Loading is synchronous and has no threads, so there is one record at a time.
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

MAX_READ_TIME = 10.0
"""Seconds for reading a file that is not a regular one to its end."""
MAX_RECORDED = 256 << 20
"""Octets of files that a record holds; files beyond that are read again."""

_PIECE = 1 << 16
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_SIZED = (stat.S_IFREG, stat.S_IFDIR)

T = TypeVar("T")
Account = tuple[str, int, int]
"""Name, uid and gid of a user."""
Limit = Literal["size", "time", "kind"]
"""Too large, too slow, not a regular file."""


class FileError(Frozen, OSError):
    """A file cannot be read.

    Attributes:
      call: the system call that failed, or would have failed: "open" or "read".
      limit: the limit that the file exceeds; None if the system reported the error.
    """

    def __init__(self, call: str, number: int, limit: Limit | None = None) -> None:
        """Describe an error.

        Args:
          number: the errno; for a limit, the one that describes it best.
        """
        super().__init__(number, os.strerror(number))
        self.call = call
        self.limit = limit

    def __reduce__(self) -> tuple[type[FileError], tuple[object, ...]]:
        """Let the error be pickled, for another process."""
        return FileError, (self.call, self.errno, self.limit)


class UnfitSecretError(Frozen, Exception):
    """A file is not as a file of secrets must be.

    Attributes:
      reason: what is wrong with it, worded to follow its name.
      remedy: the command that mends it, without the name; or advice.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[UnfitSecretError], tuple[str, str]]:
        """Let the error be pickled, for another process."""
        return UnfitSecretError, (self.reason, self.remedy)


def too_large() -> FileError:
    """Make the error for a file that is larger than it may be."""
    return FileError("read", errno.EFBIG, "size")


@dataclass
class Findings:
    """The answers that a load has got from outside, or the errors, by question."""

    answers: dict[tuple[object, ...], object] = field(default_factory=dict, repr=False)
    errors: dict[tuple[object, ...], Exception] = field(default_factory=dict)
    octets: int = 0
    """Octets of the files among the answers."""


_record: Findings | None = None


@contextlib.contextmanager
def recording() -> Iterator[Findings]:
    """Record all answers within the block; each question is asked only once."""
    with replaying(Findings()) as findings:
        yield findings


@contextlib.contextmanager
def replaying(findings: Findings) -> Iterator[Findings]:
    """Answer from `findings` within the block; other answers are fetched and added."""
    global _record  # one load at a time, see above
    before, _record = _record, findings
    try:
        yield findings
    finally:
        _record = before


def _fetch(ask: Callable[..., T], *arguments: object) -> T:
    """Return the recorded answer, or ask and record it."""
    if _record is None:
        return ask(*arguments)
    question = (ask.__name__, *arguments)
    if question in _record.errors:
        raise _record.errors[question]
    if question in _record.answers:
        return cast("T", _record.answers[question])
    try:
        answer = ask(*arguments)
    except (OSError, LookupError, ValueError, UnfitSecretError) as error:
        _record.errors[question] = error
        raise
    size = len(answer) if isinstance(answer, bytes) else 0
    if _record.octets + size <= MAX_RECORDED:
        _record.octets += size
        _record.answers[question] = answer
    return answer


# -- files -------------------------------------------------------------------------


def read(path: str, limit: int) -> bytes:
    """Read a file, which may be a FIFO or a device.

    Args:
      limit: octets that it may have.

    Raises:
      FileError: it cannot be read, takes too long, or is larger.
    """
    content = begin(path, limit + 1)
    if len(content) > limit:
        raise too_large()
    return content


def begin(path: str, size: int) -> bytes:
    """Read the first `size` octets of a file, or all if there are fewer.

    Raises:
      FileError: it cannot be read, or takes too long.
    """
    return _fetch(_begin, path, size)


def _begin(path: str, size: int) -> bytes:
    with _opened(path) as descriptor:
        return _read(descriptor, size)


def read_sized(path: str, limit: int) -> tuple[bytes, int]:
    """Read as many octets as a file has when it is opened; returns them and that size.

    nginx reads its configuration files like this: nothing from a FIFO or a device.

    Raises:
      FileError: it cannot be read, or has more than `limit` octets.
    """
    return _fetch(_read_sized, path, limit)


def _read_sized(path: str, limit: int) -> tuple[bytes, int]:
    with _opened(path) as descriptor:
        found = os.fstat(descriptor)
        if found.st_size > limit:
            raise too_large()
        # A directory is read too, so that the error is the system's.
        size = max(found.st_size, int(stat.S_ISDIR(found.st_mode)))
        return (_read(descriptor, size) if size else b""), size


def check_regular(path: str, limit: int) -> None:
    """Check that a library can read the file of that name, in bounded time and space.

    Raises:
      FileError: it is missing, larger than `limit` octets, or not a regular file.
    """
    _fetch(_check_regular, path, limit)


def _check_regular(path: str, limit: int) -> None:
    with _opened(path) as descriptor:
        _regular(descriptor, limit)


def _regular(descriptor: int, limit: int) -> os.stat_result:
    """What stat(2) says of an open file.

    Raises:
      FileError: it is larger than `limit` octets, or not a regular file.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise FileError("open", errno.EINVAL, "kind")
    if found.st_size > limit:
        raise too_large()
    return found


def check_secret(path: str, limit: int) -> None:
    """Check that a file may hold a secret, without reading it; see `open_secret`.

    Raises:
      FileError: it cannot be opened.
      UnfitSecretError: others may read it, or it is no file of ours.
    """
    _fetch(_check_secret, path, limit)


def _check_secret(path: str, limit: int) -> None:
    os.close(open_secret(path, limit))


def open_secret(path: str, limit: int) -> int:
    """Open a file of a secret; returns its descriptor, which children do not keep.

    It is a regular file with 1 to `limit` octets, belongs to root or to the user of
    this process, and nobody else has any right to it.

    Raises:
      FileError: it cannot be opened.
      UnfitSecretError: it is no such file.
    """
    try:
        descriptor = os.open(os.fsencode(path), _READ)
    except OSError as error:
        raise FileError("open", error.errno or errno.EIO) from error
    try:
        _check_owned(os.fstat(descriptor), limit)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_owned(found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnfitSecretError("is not a regular file", "write the secret into a file:")
    if found.st_uid not in (0, os.geteuid()):
        raise UnfitSecretError("belongs to another user", "chown root")
    if found.st_mode & 0o077:
        raise UnfitSecretError("is readable by others", "chmod 600")
    if not found.st_size:
        raise UnfitSecretError("is empty", "write the secret into")
    if found.st_size > limit:
        raise UnfitSecretError("is too large", f"at most {limit} bytes are read of")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """How stat(2) describes a regular file; they differ once it was changed."""

    device: int
    inode: int
    size: int
    modified: int
    """In nanoseconds."""
    mode: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileFacts:
        """Make it from what stat(2) returned."""
        return cls(
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            stat.S_IMODE(found.st_mode),
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """The regular files in a directory and in its sub-directories, no deeper."""

    files: dict[str, FileFacts]
    """By full name, sorted. Links count as what they lead to."""
    unreadable: tuple[str, ...]
    """Sub-directories that cannot be read, and links that lead nowhere."""
    left_out: int
    """Files beyond the limit."""


def listing(directory: str, most: int) -> Listing:
    """List at most `most` files, without those whose names begin with a dot.

    Raises:
      FileError: `directory` cannot be read.
    """
    return _fetch(_listing, directory, most)


def _listing(directory: str, most: int) -> Listing:
    files: dict[str, FileFacts] = {}
    unreadable: list[str] = []
    try:
        found = list(_entries(directory))
    except OSError as error:
        raise FileError("open", error.errno or errno.EIO) from error
    for path in found:
        try:
            facts = os.stat(path)
            below = list(_entries(path)) if stat.S_ISDIR(facts.st_mode) else []
        except OSError:
            unreadable.append(path)
            continue
        if stat.S_ISREG(facts.st_mode):
            files[path] = FileFacts.of(facts)
        for each in below:
            try:
                facts = os.stat(each)
            except OSError:
                unreadable.append(each)
                continue
            if stat.S_ISREG(facts.st_mode):
                files[each] = FileFacts.of(facts)
    kept = dict(sorted(files.items())[:most])
    return Listing(kept, tuple(sorted(unreadable)), len(files) - len(kept))


def _entries(directory: str) -> Iterator[str]:
    """Yield the full names of what is in a directory, except what begins with a dot."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry.path


def facts(path: str) -> FileFacts | None:
    """Describe a file; None if there is no regular file of that name.

    Raises:
      OSError: stat(2) failed otherwise.
    """
    return _fetch(_facts, path)


def _facts(path: str) -> FileFacts | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return FileFacts.of(found) if stat.S_ISREG(found.st_mode) else None


def read_regular(path: str, limit: int) -> tuple[bytes, FileFacts]:
    """Read a regular file at once; never recorded.

    Raises:
      FileError: it cannot be read, is no regular file, or has more than `limit` octets.
    """
    with _opened(path) as descriptor:
        found = _regular(descriptor, limit)
        return _read(descriptor, limit), FileFacts.of(found)


def matching(pattern: bytes) -> list[bytes]:
    """The files that match a shell pattern, sorted by the octets of their names."""
    return _fetch(_matching, pattern)


def _matching(pattern: bytes) -> list[bytes]:
    return sorted(glob.glob(pattern))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """Open a file without waiting; within the block, an OSError becomes a `FileError`."""
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
    # A FIFO that has never had a writer reads as empty, and only poll(2) tells it
    # from one whose writer has gone. Regular files are always ready.
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + MAX_READ_TIME
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
    """Family and text of each address of a name, in the order of getaddrinfo().

    Args:
      flags: AI_… of getaddrinfo().

    Raises:
      OSError, UnicodeError: the name has none.
    """
    return _fetch(_addresses, name, flags)


def _addresses(name: bytes, flags: int) -> list[tuple[int, str]]:
    answers = socket.getaddrinfo(
        name, None, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, flags
    )
    return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in answers]


def account(name: str) -> Account:
    """Look up the user of that name.

    Raises:
      LookupError, ValueError: there is no such user.
    """
    return _fetch(_account, name)


def _account(name: str) -> Account:
    found = pwd.getpwnam(name)
    return found.pw_name, found.pw_uid, found.pw_gid


def group(name: str) -> int:
    """Look up the gid of the group of that name.

    Raises:
      LookupError, ValueError: there is no such group.
    """
    return _fetch(_group, name)


def _group(name: str) -> int:
    return grp.getgrnam(name).gr_gid
