"""What the system does not allow the demo: one sentence, and what to do about it."""

import errno
import os
import sys
import threading
from collections.abc import Iterator

NO_ROOM = frozenset((
    errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS,
))  # fmt: skip
"""The system has no more of something: nobody else is to blame."""

_REMEDIES = {
    errno.EMFILE: "let it have more open files: ulimit -n 1024",
    errno.ENFILE: "let the system have more open files: sysctl fs.file-max",
    errno.EAGAIN: "let its user have more processes and threads: ulimit -u, or the"
    " container's limit",
    errno.ENOMEM: "it needs more memory: ulimit -v, or the container's limit",
    errno.ENOBUFS: "it needs more memory: ulimit -v, or the container's limit",
    errno.EFBIG: "let it write larger files: ulimit -f",
    errno.EADDRINUSE: "it needs free ports on 127.0.0.1",
    errno.EADDRNOTAVAIL: "it needs free ports on 127.0.0.1",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: Exception) -> OSError | None:
    """What the system has refused; None where something else is wrong: a bug.

    Args:
      error: of one task, or a group of those of several.
    """
    if not isinstance(error, ExceptionGroup):
        return _refused(error)
    found = [_refused(each) for each in _leaves(error)]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    # Where there is no room, other things fail because of that.
    return next((each for each in known if each.errno in NO_ROOM), known[0])


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _refused(error: Exception) -> OSError | None:
    if isinstance(error, OSError):
        return error
    if isinstance(error, MemoryError):
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    # Python hides what pthread_create(3) says of a thread that it cannot start: EAGAIN.
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    starts = threading.Thread.start.__code__
    if isinstance(error, RuntimeError) and place and place.tb_frame.f_code is starts:
        return OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return None


def failed(error: OSError) -> int:
    """Say in one sentence that the system does not allow something; returns the status."""
    if isinstance(error, BrokenPipeError):
        # Nobody reads any more. Python would try to write what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    what = f'"{error.filename}"' if error.filename else "the demo failed"
    reason = f"({error.errno}: {error.strerror})" if error.strerror else f"({error})"
    sys.stderr.write(f"mailproxy demo: {what} {reason}\n  = {_remedy(error)}\n")
    return 1


def _remedy(error: OSError) -> str:
    number = error.errno
    if number in _REMEDIES:
        return _REMEDIES[number]
    if number in _FULL and error.filename:
        return "make room there, or name another place: --directory DIRECTORY"
    if number in _FULL:  # of what is written, no name is known
        return "make room where it writes: --directory DIRECTORY, or its output"
    if error.filename:
        return "name a directory that can be written: --directory DIRECTORY"
    if number is None:  # it is the demo's own
        return "it needs free ports on 127.0.0.1"
    return "it needs a directory to write in, and free ports on 127.0.0.1"
