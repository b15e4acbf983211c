"""How a new worker sets its rights and limits before it serves any client.

The order is nginx's: nice value and limits while it still has the rights for them, then
the user, then CPUs, core files and the directory. Some failures are only logged,
others (`UnfitError`) end the worker for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from collections.abc import Mapping, Sequence

from mailproxy.frozen import Frozen
from mailproxy.log import Logger
from mailproxy.process.settings import Affinity, MainSettings, User, online_cpus

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


class UnfitError(Frozen, Exception):
    """This process must not be a worker; the reason is in the log."""


def become_worker(main: MainSettings, slot: int, log: Logger) -> None:
    """Take on the rights, limits and directory that the configuration sets for workers.

    Args:
      slot: the number of this worker among all, from 0.

    Raises:
      UnfitError: it has more rights than it should, or is in the wrong directory.
    """
    if main.worker_priority:
        try:
            # The kernel clamps any number to this range; Python refuses large ones.
            nice = max(-20, min(main.worker_priority, 19))
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except OSError as error:
            log.alert(f"setpriority({main.worker_priority}) failed", error=error)
    _limit("RLIMIT_NOFILE", main.worker_rlimit_nofile, log)
    _limit("RLIMIT_CORE", main.worker_rlimit_core, log)
    if os.geteuid() == 0:
        _change_user(main.user, log)
    if main.worker_cpu_affinity is not None:
        _set_affinity(main.worker_cpu_affinity, slot, log)
    _allow_core_files(log)
    if main.working_directory is not None:
        try:
            os.chdir(main.working_directory)
        except OSError as error:
            log.alert('chdir("%s") failed', main.working_directory, error=error)
            raise UnfitError from error


def become_manager(main: MainSettings, log: Logger) -> None:
    """Take on the rights of a manager, and keep other processes out of its memory.

    It has secrets that workers must not see, who may run as the same user. A process
    that cannot be dumped cannot be traced either (prctl(2), PR_SET_DUMPABLE).

    Raises:
      UnfitError: it has more rights than it should, or others could look into it.
    """
    if os.geteuid() == 0:
        _change_user(main.manager_user or main.user, log)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _set_dumpable(allowed=False)
    except (OSError, ValueError) as error:
        failure = error if isinstance(error, OSError) else None
        log.emerg("prctl(PR_SET_DUMPABLE) failed", error=failure)
        raise UnfitError from error


def environment(
    entries: Sequence[tuple[str, str | None]], start: Mapping[str, str]
) -> dict[str, str]:
    """The environment of workers: TZ and the variables that `env` names.

    Args:
      entries: name and value of each `env` directive; the value None stands for that
        in `start`.
      start: the environment that the master was started with.
    """
    found: dict[str, str] = {}
    for name, value in (*entries, ("TZ", None)):
        kept = start.get(name) if value is None else value
        # setenv(3) refuses a variable without a name.
        if kept is not None and name:
            found.setdefault(name, kept)  # getenv(3) finds the first of a name
    return found


def set_environment(variables: Mapping[str, str]) -> None:
    """Replace the environment of this process with these variables."""
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()


def _limit(name: str, value: int | None, log: Logger) -> None:
    if value is None:
        return
    try:
        resource.setrlimit(getattr(resource, name), (value, value))
    except OSError as error:
        failure = error
    except ValueError:
        # Python raises it for both "not permitted" (a higher limit) and "invalid".
        hard = resource.getrlimit(getattr(resource, name))[1]
        number = errno.EPERM if hard != -1 and value > hard else errno.EINVAL
        failure = OSError(number, os.strerror(number))
    else:
        return
    log.alert(f"setrlimit({name}, {value}) failed", error=failure)


def _change_user(user: User | None, log: Logger) -> None:
    assert user is not None, "as root there is always one"
    try:
        os.setgid(user.gid)
    except OSError as error:
        log.emerg(f"setgid({user.gid}) failed", error=error)
        raise UnfitError from error
    try:
        os.initgroups(user.name, user.gid)
    except OSError as error:
        log.emerg(f"initgroups({user.name}, {user.gid}) failed", error=error)
    try:
        os.setuid(user.uid)
    except OSError as error:
        log.emerg(f"setuid({user.uid}) failed", error=error)
        raise UnfitError from error


def cpus_of(affinity: Affinity, slot: int, online: int) -> frozenset[int]:
    """The CPUs that the worker in `slot` may run on; empty: any."""
    if not affinity.auto:
        return affinity.masks[min(slot, len(affinity.masks) - 1)]
    usable = sorted(affinity.masks[0]) if affinity.masks else range(online)
    return frozenset({usable[slot % len(usable)]}) if usable else frozenset()


def _set_affinity(affinity: Affinity, slot: int, log: Logger) -> None:
    cpus = cpus_of(affinity, slot, online_cpus())
    if not cpus:
        return
    for cpu in sorted(cpus):
        log.notice(f"sched_setaffinity(): using cpu #{cpu}")
    if not hasattr(os, "sched_setaffinity"):
        log.warn('"worker_cpu_affinity" is not supported on this platform, ignored')
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        log.alert("sched_setaffinity() failed", error=error)


def _allow_core_files(log: Logger) -> None:
    """Allow core files again, which a change of user forbids (prctl(2), PR_SET_DUMPABLE).

    nginx always does that. It also lets other processes of that user look into this
    one, which knows passwords, so we do it only if core files are wanted.
    """
    if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0:
        return
    try:
        _set_dumpable(allowed=True)
    except OSError as error:
        log.alert("prctl(PR_SET_DUMPABLE) failed", error=error)


def _set_dumpable(*, allowed: bool) -> None:
    """Set whether this process can be dumped and traced.

    Raises:
      OSError: the kernel does not do it.
    """
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(_PR_SET_DUMPABLE, int(allowed), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
