"""Real masters and workers for tests: started, watched through log and /proc, ended.

`Site` is a directory with a configuration and an executable that can be called
mailproxy, nginx, or what a test likes. Whatever was started there, background or
not, is gone when the test is over: the test process adopts the orphans
(PR_SET_CHILD_SUBREAPER), so that it finds them and learns their exit codes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import mailproxy
from tests.processes import PATIENCE, find_program, load_modules, wait_for

_PR_SET_CHILD_SUBREAPER = 36

SCRIPT = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(Path(mailproxy.__file__).parent.parent)!r})
from mailproxy.__main__ import main
sys.exit(main())
"""

FINE = re.compile(r"^\S+ \S+ \[(notice|info)\] ")
LINE = re.compile(r"^\S+ \S+ \[(\w+)\] (\d+)#\d+: (.*)$", re.MULTILINE)


def adopt_orphans(*, on: bool) -> None:
    """Be the parent of descendants whose parent has ended, or stop being it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def children(pid: int) -> list[int]:
    """The children of a process that have not ended."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return sorted(int(child) for child in found if title(int(child)))


def title(pid: int) -> str:
    """What ps shows of a process; empty if there is none."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return command.rstrip(b"\0 ").replace(b"\0", b" ").decode()


class Site:
    """A directory in which a master lives.

    Attributes:
      port: a free port, which `configure` fills in for PORT.
    """

    def __init__(self, directory: Path, port: int, name: str = "mailproxy") -> None:
        self.directory = directory
        self.port = port
        directory.chmod(0o755)
        self.program = directory / name
        self.install(self.program)
        self.log_path = directory / "error.log"
        self.pid_path = directory / "the.pid"
        self._known = set(children(os.getpid()))

    def install(self, path: Path) -> None:
        """Put our program there."""
        path.unlink(missing_ok=True)
        path.write_text(SCRIPT, encoding="utf-8")
        path.chmod(0o755)

    def install_nginx(self, path: Path) -> None:
        """Put the real nginx there."""
        nginx = find_program("nginx")
        assert nginx is not None
        path.unlink(missing_ok=True)
        shutil.copy(nginx, path)

    def configure(self, servers: str = "", main: str = "", **values: object) -> None:
        """Write the configuration.

        Args:
          servers: what stands in `mail`; by default one IMAP server on `port`.
          main: more main directives; `worker_processes 2;` unless they say so.
          values: replace words in capitals, as PORT is replaced.
        """
        workers = "" if "worker_processes" in main else "worker_processes 2;"
        text = f"""{load_modules()}
            {workers}
            pid the.pid;
            error_log error.log info;
            {main}
            events {{ }}
            mail {{
                auth_http 127.0.0.1:AUTH/;
                {servers or "server { listen 127.0.0.1:PORT; protocol imap; }"}
            }}
            """
        for name, value in {"PORT": self.port, "AUTH": 9, **values}.items():
            text = text.replace(name, str(value))
        (self.directory / "nginx.conf").write_text(text, encoding="utf-8")

    def call(
        self, *arguments: str, program: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the program until it returns; in the background it may go on."""
        # A pipe would be open as long as what stays in the background has it.
        command = self.command(*arguments, program=program)
        with (
            (self.directory / "stdout").open("w+") as stdout,
            (self.directory / "stderr").open("w+") as stderr,
        ):
            done = subprocess.run(
                command, stdout=stdout, stderr=stderr, timeout=PATIENCE, check=False
            )
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(
                command, done.returncode, stdout.read(), stderr.read()
            )

    def command(self, *arguments: str, program: Path | None = None) -> list[str]:
        place = ["-p", str(self.directory), "-c", "nginx.conf", "-e", "startup.log"]
        return [str(program or self.program), *place, *arguments]

    def start(self, *arguments: str, program: Path | None = None) -> int:
        """Start in the background; returns the pid of the master."""
        done = self.call(*arguments, program=program)
        assert done.returncode == 0, done.stderr
        wait_for(self.has_pid, "pid file")  # nginx writes it after it returned
        return self.pid

    @contextlib.contextmanager
    def foreground(
        self, environment: Mapping[str, str] | None = None, *arguments: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Run with `daemon off`."""
        with (self.directory / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                self.command("-g", "daemon off;", *arguments),
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def has_pid(self) -> bool:
        """Whether the pid file is complete."""
        return self.pid_path.exists() and self.pid_path.read_text().endswith("\n")

    @property
    def pid(self) -> int:
        """The master, as the pid file names it."""
        return int(self.pid_path.read_text())

    @property
    def workers(self) -> list[int]:
        """The workers of the master that are not leaving."""
        return [
            pid for pid in children(self.pid) if title(pid).endswith(": worker process")
        ]

    def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal, to the master if not told otherwise."""
        os.kill(self.pid if pid is None else pid, number)

    def log(self, level: str | None = None) -> list[str]:
        """The messages in the log, of one level or all."""
        if not self.log_path.exists():
            return []
        text = self.log_path.read_text(errors="replace")
        return [
            message
            for found, _, message in LINE.findall(text)
            if level in (None, found)
        ]

    def forget_log(self) -> None:
        """Begin with an empty log; who writes appends."""
        os.truncate(self.log_path, 0)

    def wait_for_line(self, text: str, count: int = 1) -> None:
        """Wait until so many lines of the log contain `text`."""

        def enough() -> bool:
            return sum(text in line for line in self.log()) >= count

        wait_for(enough, f"{count} x {text!r} in the log")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something; on failure the log is shown."""
        try:
            wait_for(condition, what)
        except AssertionError as error:
            lines = "\n".join(self.log()[-60:])
            raise AssertionError(f"{error}\n{lines}") from None

    def wait_for_end(self, pid: int) -> int:
        """Wait for the end of a master in the background; returns its exit code."""
        wait_for(lambda: title(pid) == "", f"end of {pid}")
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def no_complaints(self) -> None:
        """Nothing in the log is worse than a notice, or not a line of the log."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        complaints = [line for line in lines if not FINE.match(line)]
        assert not complaints, complaints

    def close(self) -> None:
        """End everything that was started here."""
        while left := [pid for pid in children(os.getpid()) if pid not in self._known]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


class Client:
    """An IMAP client."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.file = self.socket.makefile("rb")
        assert self.line() == b"* OK IMAP4 ready\r\n"

    def line(self) -> bytes:
        return self.file.readline()

    def ask(self, command: bytes) -> bytes:
        """Send a command; returns its tagged answer."""
        tag = command.split()[0]
        self.socket.sendall(command + b"\r\n")
        while not (line := self.line()).startswith(tag):
            assert line, "the connection is closed"
        return line

    def log_in(self) -> bytes:
        return self.ask(b"a LOGIN user secret")

    def ping(self) -> None:
        """After the login: the backend answers."""
        self.socket.sendall(b"PING\r\n")
        assert self.line() == b"PONG\r\n"

    @property
    def closed(self) -> bool:
        """Whether the proxy has closed the connection, or does so within PATIENCE."""
        if not select.select([self.socket], [], [], PATIENCE)[0]:
            return False
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Load:
    """Many clients: some come, log in, talk and go, others stay and talk.

    Leaving the block ends them; nobody may have been refused, cut off, or answered
    wrongly.
    """

    def __init__(self, port: int, passing: int = 8, staying: int = 192) -> None:
        self.port = port
        self.failures: list[AssertionError | OSError] = []
        self.sessions = [0] * passing
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, index))
            for work, count in ((self._come_and_go, passing), (self._stay, staying))
            for index in range(count)
        ]

    def _guarded(self, work: Callable[[int], None], index: int) -> None:
        try:
            work(index)
        except (AssertionError, OSError) as error:
            self.failures.append(error)

    def _come_and_go(self, index: int) -> None:
        while not self._done.is_set():
            with Client(self.port) as client:
                assert client.log_in().startswith(b"a OK")
                for _ in range(3):
                    client.ping()
            self.sessions[index] += 1

    def _stay(self, _: int) -> None:
        with Client(self.port) as client:
            assert client.log_in().startswith(b"a OK")
            while not self._done.wait(1):
                client.ping()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        assert self.failures == []
        assert min(self.sessions) > 0
