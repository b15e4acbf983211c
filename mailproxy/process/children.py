"""The processes that the master starts, and the line it has to workers and managers.

The line carries `messages`: the master sends `Order`s, as STOP, QUIT, REOPEN and PING;
the process answers a ping with ALIVE when its event loop gets to it. So the master knows
when one has come up, and when one is stuck. The kernel sends the master SIGIO when a
message arrives. The master waits for no process: an order is not sent if the line is
full, and at most `MAX_MESSAGES_IN_A_ROW` of one are read at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from mailproxy.frozen import Frozen
from mailproxy.net.messages import MAX_FRAME, MessageError
from mailproxy.net.watched import receive_packet
from mailproxy.process import signals
from mailproxy.process.messages import Order, read_order, write_order

FATAL = 2
"""Exit code of a worker that cannot do its work; its successor could not either."""

MAX_MESSAGES_IN_A_ROW = 64
"""Messages of one process that are read before others have their turn."""


class Closable(Protocol):
    """Something with a descriptor."""

    def close(self) -> None: ...


class SpawnError(Frozen, Exception):
    """A process cannot be started.

    Attributes:
      call: the system call that failed, as in ``fork()``.
      error: how it failed.
    """

    def __init__(self, call: str, error: OSError) -> None:
        super().__init__(f"{call} failed")
        self.call = call
        self.error = error


@dataclass(frozen=True)
class End:
    """How a process ended."""

    pid: int
    status: int
    """As waitpid() gives it."""

    @property
    def code(self) -> int | None:
        """The exit code; None if a signal ended it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    @property
    def text(self) -> str:
        """`exited with code 0`, or `exited on signal 11 (core dumped)`."""
        if not os.WIFSIGNALED(self.status):
            return f"exited with code {self.code}"
        core = " (core dumped)" if os.WCOREDUMP(self.status) else ""
        return f"exited on signal {os.WTERMSIG(self.status)}{core}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What the messages of a worker, or a manager, amount to."""

    alive: bool = False
    """It has answered a ping."""
    refused: bool = False
    """It could not use new certificates."""
    invalid: bool = False
    """It has sent an invalid message, or one that is not for the master."""
    more: bool = False
    """There may be more to read, of which the kernel need not tell again."""


class Children:
    """Forks processes, sends them orders, kills and reaps them, without any policy."""

    def __init__(self) -> None:
        self._lines: dict[int, socket.socket] = {}

    def start(
        self,
        work: Callable[[socket.socket], int],
        close: Iterable[Closable] = (),
    ) -> int:
        """Fork a worker, or a manager, and return its pid.

        Args:
          work: what it does with its end of the line; returns its exit code.
          close: sockets and files of the master that it must not have.

        Raises:
          SpawnError: a process, or a socket, cannot be created.
        """
        ours, theirs = make_line()

        def begin() -> int:
            for each in (ours, *self._lines.values(), *close):
                each.close()
            return work(theirs)

        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            try:
                pid = _fork(begin)
            except OSError as error:
                raise SpawnError("fork()", error) from error
            undo.pop_all()
        fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(ours, fcntl.F_GETFL)
        fcntl.fcntl(ours, fcntl.F_SETFL, flags | os.O_ASYNC)
        self._lines[pid] = ours
        return pid

    def start_apart(self, work: Callable[[], int], keep: Collection[int]) -> int:
        """Fork a process without a line, and return its pid.

        It has no terminal, and none of our sockets and files, so that those are really
        closed when we close them, however long it runs.

        Args:
          work: what it does; returns its exit code.
          keep: descriptors that it inherits, besides the standard ones.

        Raises:
          SpawnError: a process cannot be created.
        """

        def begin() -> int:
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and fd not in keep:
                    with contextlib.suppress(OSError):  # that of listdir()
                        os.close(fd)
            os.setsid()
            return work()

        try:
            return _fork(begin)
        except OSError as error:
            raise SpawnError("fork()", error) from error

    def execute(
        self,
        path: str,
        arguments: list[str],
        environment: dict[str, str],
        keep: Sequence[int],
        failed: Callable[[OSError], None],
    ) -> int:
        """Fork and execute another program; returns its pid.

        Args:
          keep: descriptors that it inherits under their numbers.
          failed: told, in the new process, why it cannot be executed.

        Raises:
          OSError: a process cannot be created.
        """

        def begin() -> int:
            for fd in keep:
                os.set_inheritable(fd, True)
            signals.unblock()
            try:
                os.execve(path, arguments, environment)  # noqa: S606 # no shell wanted
            except OSError as error:
                failed(error)
            return 1

        return _fork(begin)

    def tell(
        self,
        pid: int,
        order: Order,
        body: Mapping[str, object] | None = None,
        descriptors: Sequence[int] = (),
    ) -> bool:
        """Send an order; False if it cannot be sent, as to a process that was reaped.

        Args:
          descriptors: what the other process gets duplicates of (SCM_RIGHTS, unix(7)).
        """
        line = self._lines.get(pid)
        if line is None:
            return False
        frame = write_order(order, body=body)
        try:
            if descriptors:
                socket.send_fds(line, [frame], [*descriptors])
            else:
                line.send(frame)
        except OSError:  # it died, or does not listen any more
            return False
        return True

    def hear(self, pid: int) -> Heard:
        """Read what the process has sent since the last call."""
        alive = refused = invalid = False
        for _ in range(MAX_MESSAGES_IN_A_ROW):
            try:
                frame = receive_packet(self._lines[pid], MAX_FRAME + 1)
            except OSError:  # nothing more, or it died
                break
            if frame is None:
                break
            match _answer(frame):
                case Order.ALIVE:
                    alive = True
                case Order.CERTIFICATES_OK:
                    pass
                case Order.CERTIFICATES_FAILED:
                    refused = True
                case _:
                    invalid = True
        else:
            return Heard(alive=alive, refused=refused, invalid=invalid, more=True)
        return Heard(alive=alive, refused=refused, invalid=invalid)

    def kill(self, pid: int, number: int) -> None:
        """Send a signal.

        Raises:
          OSError: it cannot be sent.
        """
        os.kill(pid, number)

    def reap(self) -> list[End]:
        """Return the processes that have ended since the last call."""
        ends = []
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ends.append(End(*found))
        for end in ends:
            line = self._lines.pop(end.pid, None)
            if line is not None:
                line.close()
        return ends


def make_line() -> tuple[socket.socket, socket.socket]:
    """Make both ends of a line that keeps messages apart.

    Raises:
      SpawnError: there are no descriptors for it.
    """
    try:
        return socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        )
    except OSError as error:
        raise SpawnError("socketpair()", error) from error


def _answer(frame: bytes) -> Order | None:
    """Return what a process answers; None if that is no message."""
    try:
        return read_order(frame)[0]
    except MessageError:
        return None


def _fork(work: Callable[[], int]) -> int:
    """Do `work` in a new process, which exits with what it returns."""
    # The child's garbage collector must not see the parent's objects: it writes to
    # those it visits, which would copy every page of memory.
    gc.freeze()
    try:
        pid = os.fork()
    except OSError:
        gc.unfreeze()
        raise
    if pid == 0:
        _end(work)
    gc.unfreeze()
    return pid


def _end(work: Callable[[], int]) -> NoReturn:
    """Do `work` and exit, without ever returning into the parent's code."""
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 # whatever it is, this process is over
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
