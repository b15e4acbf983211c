"""The binary upgrade (USR2): listening sockets go from one program to the next.

The old master renames its pid file and executes the program at the path it was itself
started from, with the same arguments and the numbers of its listening sockets in the
environment. nginx, Angie and freenginx do the same, so each of them can replace
mailproxy, or be replaced by it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Protocol

from mailproxy.log import Logger
from mailproxy.process import pidfile
from mailproxy.process.generation import Generation
from mailproxy.process.privileges import environment

VARIABLES = ("NGINX", "ANGIE")
"""The variables that may hold the numbers; a new binary gets both."""

_SPARE = "X" * 300
"""Room for the title of the new process, which is stored over its environment."""


def inherited(variables: MutableMapping[str, str], log: Logger) -> list[int] | None:
    """The descriptors inherited from an old master; None if there is no such master.

    The variables are removed: a program that we start must not take them for its own.
    """
    found = None
    for name in VARIABLES:
        value = variables.pop(name, None)
        if value is not None and found is None:
            found = _parse(name, value, log)
    return found


def _parse(name: str, value: str, log: Logger) -> list[int]:
    log.notice('using inherited sockets from "%s"', value)
    numbers: list[int] = []
    rest = value
    while match := re.match(r"([^:;]*)[:;]", rest):
        if not re.fullmatch(r"[0-9]{1,9}", match[1]):
            log.emerg(
                f'invalid socket number "%s" in {name} environment variable,'
                " ignoring the rest of the variable",
                rest,
            )
            return numbers
        numbers.append(int(match[1]))
        rest = rest[match.end() :]
    if rest:
        log.emerg(
            f'invalid socket number "%s" in {name} environment variable, ignoring',
            rest,
        )
    return numbers


class Executes(Protocol):
    """Starts another program; `Children` does."""

    def execute(
        self,
        path: str,
        arguments: list[str],
        environment: dict[str, str],
        keep: Sequence[int],
        failed: Callable[[OSError], None],
    ) -> int: ...


class Successor:
    """The program that will follow this one.

    Attributes:
      path: what is executed.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        start: Mapping[str, str],
        extra: Mapping[str, str],
        children: Executes,
    ) -> None:
        """Args:
        argv: as this program was called.
        start: the environment that it was called in.
        extra: variables for the successor only.
        """
        # A script called by its name is what the operator has replaced. What was
        # called as `python -m mailproxy` is not executable, so Python is called again.
        script = os.access(argv[0], os.X_OK)
        self.path = argv[0] if script else sys.executable
        self._arguments = list(argv) if script else sys.orig_argv
        self._start = start
        self._extra = extra
        self._children = children

    def start(self, generation: Generation) -> int | None:
        """Execute it; returns its pid, or None, with the reason in the log, if it fails."""
        log, pid_path = generation.log, generation.main.pid
        what = f'new binary process "{self.path}"'
        if not self._rename(log, pid_path, "", f"before executing {what}"):
            return None
        numbers = [listener.socket.fileno() for listener in generation.listeners]
        value = "".join(f"{number};" for number in numbers)
        try:
            pid = self._children.execute(
                self.path,
                self._arguments,
                {
                    **environment(generation.main.env, self._start),
                    **self._extra,
                    **dict.fromkeys(VARIABLES, value),
                    "SPARE": _SPARE,
                },
                numbers,
                lambda error: log.alert(
                    f"execve() failed while executing {what}", error=error
                ),
            )
        except OSError as error:
            log.alert('fork() failed while spawning "new binary process"', error=error)
            when = f"after an attempt to execute {what}"
            self._rename(log, pid_path, pidfile.OLDBIN, when)
            return None
        log.notice(f"start new binary process {pid}")
        return pid

    def gone(self, generation: Generation) -> None:
        """Take the pid file back after the program has ended."""
        when = f'after the new binary process "{self.path}" exited'
        self._rename(generation.log, generation.main.pid, pidfile.OLDBIN, when)

    def _rename(self, log: Logger, path: str | None, old: str, when: str) -> bool:
        """Give the pid file its other name; `old` is the end of the present one."""
        if path is None:
            return True
        before, after = path + old, path + ("" if old else pidfile.OLDBIN)
        try:
            os.rename(before, after)
        except OSError as error:
            back = " back" if old else ""
            log.alert(f"rename() {before}{back} to {after} failed {when}", error=error)
            return False
        return True
