"""Opening files as root in directories where other users may have planted something.

The master is root, and opens its logs at the start, at a reload (HUP) and at a reopen
(USR1), when it also gives them to the user that workers run as. The directory of the
logs often belongs to that user (`/var/log/nginx` of several distributions), and a
worker talks to strangers. An attacker who has taken one over can put into it

- a symbolic link: root would write to any file of the system, and then give it away
  (CVE-2016-1247);
- a hard link to a file of root's, if fs.protected_hardlinks is off;
- a FIFO, whose open(2) waits for a reader forever;
- any of them at any moment, even between a check of a name and its use.

So nothing is decided by name. The path is walked from `/`, each directory opened in
the one before, without following links. A directory is *safe* if only root can put
names there or exchange it for another, by the mode, owner and ACL of the open
directory and of all before it. From there on:

- in a safe directory everything is as for open(2): links are root's own (a log that
  leads to `/dev/stderr`, a directory that is elsewhere) and are followed, and files
  may be FIFOs or devices, or have several names;
- elsewhere a link is followed only if it leads to our own stdout or stderr, or to
  `/dev/null`, which are of no use to an attacker; the open file must be a regular one
  without another name. It is given away only if we have created it or it is readable
  by everyone: it may be one of root's files, renamed to this name.

Everything done to a file, chown(2) too, is done to the descriptor that was checked.
Groups that workers do not belong to may write to a safe directory: Ubuntu's `/var/log`
is like that. One thing is not prevented: the workers' user can remove or rename the
logs in a directory of its own. If the master is not root, such tricks gain nothing,
and the kernel alone decides.
"""

import errno
import os
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from mailproxy.frozen import Frozen

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o644

_MAX_LINKS = 40  # path_resolution(7)

_OWN_STREAMS = frozenset(
    ["/dev/null"]
    + [f"/dev/{name}" for name in ("stdout", "stderr", "fd/1", "fd/2")]
    + [f"/proc/self/fd/{number}" for number in (1, 2)]
)


@dataclass(frozen=True)
class WorkerAccount:
    """The user that workers run as, who must not get at root's files."""

    uid: int | None = None
    """None while no configuration has been read."""
    groups: frozenset[int] | None = None
    """All groups of the user; None if any group but root's may be one of them."""


@dataclass(frozen=True)
class Opened:
    """An open file."""

    fd: int
    """For appending, blocking, not inherited by exec."""
    may_be_given: bool
    """Whether the workers' user may safely become its owner."""


class RefusedError(Frozen, OSError):
    """Another user may have decided which file a name leads to.

    Attributes:
      reason: what is wrong with the name, worded to follow a colon.
    """

    def __init__(self, number: int, reason: str, path: str | None = None) -> None:
        super().__init__(number, os.strerror(number), path)
        self.reason = reason

    def named(self, path: str) -> Self:
        """Return the same error with the name that the caller gave."""
        return type(self)(self.errno or 0, self.reason, path)


def unknown_workers() -> WorkerAccount | None:
    """The `workers` to assume before a configuration is read; None if we are not root."""
    return WorkerAccount() if os.geteuid() == 0 else None


def open_for_appending(path: str, workers: WorkerAccount | None) -> Opened:
    """Open a file, creating it if needed (mode 0644 without the umask's bits).

    It never waits: a FIFO without a reader is ENXIO.

    Args:
      path: absolute, or relative to the current directory.
      workers: the user who must not choose which file is opened; None: do not check.

    Raises:
      RefusedError: it may not be the intended file.
      OSError: it cannot be opened. `filename` is `path`, in both cases.
    """
    try:
        if workers is None:
            opened = Opened(os.open(path, _FLAGS | os.O_CREAT, _MODE), True)
        else:
            with _Walk(path, workers) as walk:
                opened = walk.open()
    except RefusedError as error:
        raise error.named(path) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    os.set_blocking(opened.fd, True)
    return opened


class _Walk:
    """A walk along a path; directories that it has entered cannot be swapped."""

    def __init__(self, path: str, workers: WorkerAccount) -> None:
        self._workers = workers
        self._names: list[str] = []
        """The names still to be walked, the next one last."""
        self._at = -1
        self._here = "/"
        """The name of the current directory, for people."""
        self._safe = self._sticky = True
        self._links = 0
        self._lured = False
        """Whether it has followed a link that others may have made."""
        self._add(os.path.join(os.getcwd(), path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        os.close(self._at)

    def open(self) -> Opened:
        """Walk to the end, and open or create the file there."""
        for _ in range(_MAX_LINKS + 1):
            while len(self._names) > 1:
                self._descend(self._names.pop())
            opened = self._open_last(self._names[-1])
            if opened is not None:
                return opened
        raise self._refusal(errno.ELOOP, "the file changes all the time")

    def _add(self, path: str) -> None:
        """Add `path`, which may be where a link leads, to the names to walk."""
        if path.startswith("/"):
            self._safe = self._sticky = True
            self._here = ""
            self._enter(os.open("/", _DIRECTORY), "")
        names = [name for name in path.split("/") if name]
        if path.endswith("/"):
            names.append(".")  # what stands before it must be a directory
        self._names += reversed(names)

    def _enter(self, directory: int, name: str) -> None:
        """Make that directory the current one; takes over the descriptor."""
        if self._at >= 0:
            os.close(self._at)
        self._at = directory
        self._here = f"{self._here.rstrip('/')}/{name}"
        found = os.fstat(directory)
        roots = found.st_uid == 0
        # In a sticky directory, other users cannot remove or swap what root owns.
        fixed = self._safe or (self._sticky and roots)
        self._safe = fixed and roots and not self._is_shared(found)
        self._sticky = fixed and roots and bool(found.st_mode & stat.S_ISVTX)

    def _is_shared(self, directory: os.stat_result) -> bool:
        """Whether users other than root can create names in the current directory."""
        if directory.st_mode & stat.S_IWOTH:
            return True
        if not directory.st_mode & stat.S_IWGRP:
            return False  # an ACL that lets others write shows as this bit: acl(5)
        if _has_acl(self._at):
            return True
        groups = self._workers.groups
        if groups is None:
            return directory.st_gid != 0
        return directory.st_gid in groups

    def _descend(self, name: str) -> None:
        """Enter a directory, or follow a link."""
        entry = os.open(name, _DIRECTORY, dir_fd=self._at)
        mode = os.fstat(entry).st_mode
        if stat.S_ISDIR(mode):
            self._enter(entry, name)
            return
        try:
            if not stat.S_ISLNK(mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            target = os.readlink("", dir_fd=entry)
        finally:
            os.close(entry)
        self._follow(target)

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not self._safe:
            if target not in _OWN_STREAMS:
                raise self._refusal(errno.ELOOP, "no link is followed")
            self._lured = True
        self._add(target)

    def _open_last(self, name: str) -> Opened | None:
        """Open the file; None if its name was a link, or has just changed."""
        try:
            fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self._at)
        except FileNotFoundError:
            return self._create(name)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return self._open_link(name)
        try:
            opened = self._judge(fd, name)
        except OSError:
            os.close(fd)
            raise
        if opened is None:
            os.close(fd)
        return opened

    def _create(self, name: str) -> Opened | None:
        flags = _FLAGS | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(name, flags, _MODE, dir_fd=self._at)
        except FileExistsError:
            return None
        return Opened(fd, not self._lured)

    def _open_link(self, name: str) -> Opened | None:
        try:
            target = os.readlink(name, dir_fd=self._at)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # not a link any more
                return None
            raise
        if _is_proc(self._at):
            # One of our own descriptors, whose target is not a path: proc(5), fd.
            fd = os.open(name, _FLAGS, dir_fd=self._at)
            return Opened(fd, not self._lured)
        self._names.pop()
        self._follow(target)
        return None

    def _judge(self, fd: int, name: str) -> Opened | None:
        """Check the open file; None if its name leads elsewhere by now.

        Raises:
          RefusedError: it may not be the intended file.
        """
        if self._safe:
            return Opened(fd, not self._lured)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise self._refusal(errno.EPERM, "only regular files are used")
        if found.st_nlink > 1:
            raise self._refusal(errno.EPERM, "no file with another name is used")
        try:
            named = os.stat(name, dir_fd=self._at, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not os.path.samestat(found, named):
            return None
        return Opened(fd, not self._lured and bool(found.st_mode & stat.S_IROTH))

    def _refusal(self, number: int, what: str) -> RefusedError:
        return RefusedError(
            number, f'others than root can change "{self._here}", where {what}'
        )


def _has_acl(directory: int) -> bool:
    """Whether a directory has an ACL beyond owner, group and others (acl(5))."""
    try:
        os.getxattr(f"/proc/self/fd/{directory}", "system.posix_acl_access")
    except OSError as error:
        # After any other error there may be one, and the group's bits may be its mask.
        return error.errno not in {errno.ENODATA, errno.ENOTSUP}
    return True


def _is_proc(directory: int) -> bool:
    """Whether a directory is part of proc(5)."""
    try:
        proc = os.stat("/proc/self/fd")
    except FileNotFoundError:  # it is not mounted
        return False
    return os.fstat(directory).st_dev == proc.st_dev
