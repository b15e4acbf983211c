"""Real programs for tests: started, watched, waited for, stopped.

Nothing here sleeps blindly. Who waits says for what (`wait_for`), and a program
that dies meanwhile ends the waiting at once, with what it printed.
"""

import os
import random
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PATIENCE = 60.0
"""Seconds after which something that should have happened counts as missing."""

_TICK = 0.01


def require_peers() -> bool:
    """Whether a missing program (nginx, Dovecot, ...) is a failure, not a skip."""
    return os.environ.get("MAILPROXY_REQUIRE_PEERS") == "1"


def find_program(name: str) -> str | None:
    """The path of a program, looked for in /usr/sbin too."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path)


def need(available: bool, what: str) -> None:
    """Skip a test that lacks `what`; where peers are required, fail."""
    if not available and require_peers():
        pytest.fail(f"needs {what}")
    if not available:
        pytest.skip(f"needs {what}")


def need_program(name: str) -> str:
    """The path of a program that a test needs."""
    path = find_program(name)
    need(path is not None, name)
    assert path is not None
    return path


def as_user(uid: int, gid: int, action: Callable[[], object]) -> None:
    """Do `action` as another user, in a process of its own.

    Nothing is executed: the Python that runs the tests may lie where only root is let in.

    Raises:
      AssertionError: it failed.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir("/")
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            action()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, "what another user does has failed"


def need_python_for_all() -> None:
    """Skip a test that starts a program as another user who cannot get to Python."""
    path = Path(sys.executable).resolve()
    closed = [each for each in (path, *path.parents) if not each.stat().st_mode & 0o001]
    if closed:
        pytest.skip(f"other users may not run Python: {closed[-1]} is closed to them")


def wait_for(
    condition: Callable[[], bool], what: str, process: "Process | None" = None
) -> None:
    """Return as soon as `condition` holds.

    Raises:
      AssertionError: it does not within `PATIENCE`, or `process` ended before.
    """
    deadline = time.monotonic() + PATIENCE
    waker = select.poll()
    if process is not None:
        waker.register(process.pidfd, select.POLLIN)
    while not condition():
        ended = waker.poll(_TICK * 1000)
        if ended and not condition():
            assert process is not None
            raise AssertionError(f"ended while waiting for {what}:\n{process.story()}")
        if time.monotonic() > deadline:
            story = process.story() if process is not None else ""
            raise AssertionError(f"waited {PATIENCE:.0f} s for {what}\n{story}")


_BLOCK = 100
_BLOCKS = range(12000, 32000, _BLOCK)  # the kernel gives others to outgoing connections


class Ports:
    """TCP ports that nobody listens on, and that no other test run will be given.

    A block of ports belongs to whoever holds its first one, until `close`.
    """

    def __init__(self) -> None:
        self._guards: list[socket.socket] = []
        self._left: list[int] = []

    def take(self) -> int:
        """A port, free in IPv4 and IPv6."""
        while True:
            if not self._left:
                self._left = self._own_block()
            port = self._left.pop()
            with socket.socket(socket.AF_INET6) as probe, suppress(OSError):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("::", port))
                return port

    def _own_block(self) -> list[int]:
        for start in random.sample(_BLOCKS, len(_BLOCKS)):
            guard = socket.socket()
            try:
                guard.bind(("127.0.0.1", start))
            except OSError:
                guard.close()
            else:
                self._guards.append(guard)
                return list(range(start + 1, start + _BLOCK))
        raise AssertionError("others use all ports")

    def close(self) -> None:
        """Let others have the ports."""
        for guard in self._guards:
            guard.close()
        self._guards.clear()
        self._left.clear()


_ports = Ports()


def free_port() -> int:
    """A port for the rest of the test run; see `Ports`."""
    return _ports.take()


def answers(port: int, address: str = "127.0.0.1") -> bool:
    """Whether someone accepts connections there."""
    try:
        socket.create_connection((address, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


class Process:
    """A program that runs until it is told to stop."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.command = list(command)
        self.directory = directory
        self.output = directory / "output.txt"
        with self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [*_with_us(), *self.command],
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.pidfd = os.pidfd_open(self.popen.pid)

    def story(self) -> str:
        """The command, how it ended, and the end of what it printed and logged."""
        files = [self.output, *sorted(self.directory.glob("*.log"))]
        parts = [f"$ {' '.join(self.command)}  -> {self.popen.poll()}"]
        parts += [
            f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}"
            for file in files
            if file.exists()
        ]
        return "\n".join(parts)

    def wait_for_port(self, port: int, address: str = "127.0.0.1") -> None:
        """Return when the program accepts connections on `port`."""
        wait_for(lambda: answers(port, address), f"{address}:{port} to answer", self)

    def wait_for_text(self, file: Path, text: str) -> None:
        """Return when `text` is in `file`, a log for example."""
        wait_for(
            lambda: file.exists() and text in file.read_text(errors="replace"),
            f"{text!r} in {file.name}",
            self,
        )

    def stop(self) -> int:
        """SIGTERM, then, without an end in `PATIENCE`, SIGKILL; returns the exit code."""
        if self.pidfd >= 0:
            self.popen.terminate()
            if not select.select([self.pidfd], [], [], PATIENCE)[0]:
                self.popen.kill()
            os.close(self.pidfd)
            self.pidfd = -1
        return self.popen.wait()


def _with_us() -> list[str]:
    """What makes a program end when this process is killed."""
    setpriv = find_program("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "TERM"]


def nginx_command(directory: Path) -> list[str] | None:
    """How nginx is started on `directory`/nginx.conf, or None where it is missing."""
    nginx = find_program("nginx")
    return None if nginx is None else [nginx, *_arguments(directory)]


def mailproxy_command(directory: Path) -> list[str]:
    """How mailproxy is started on `directory`/nginx.conf."""
    return [sys.executable, "-m", "mailproxy", *_arguments(directory)]


def openssl_inside() -> dict[str, str]:
    """The environment of a Python that carries OpenSSL inside."""
    hidden = str(Path(__file__).parent / "hidden")
    return {**os.environ, "PYTHONPATH": hidden}


def _arguments(directory: Path) -> list[str]:
    foreground = "daemon off; master_process off;"
    return [
        "-p",
        f"{directory}/",
        "-c",
        "nginx.conf",
        "-e",
        "startup.log",
        "-g",
        foreground,
    ]


@contextmanager
def running(
    command: Sequence[str],
    directory: Path,
    port: int,
    environment: dict[str, str] | None = None,
) -> Iterator[Process]:
    """A program that accepts connections on `port`, for the length of the block."""
    process = Process(command, directory, environment)
    try:
        process.wait_for_port(port)
        yield process
    finally:
        process.stop()


def load_modules() -> str:
    """What nginx.conf has to begin with where nginx's mail module is a file of its own."""
    module = Path("/usr/lib/nginx/modules/ngx_mail_module.so")
    return f"load_module {module};\n" if module.exists() else ""
