"""The programs that are measured: how they are found, tested, started and stopped."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

NGINX = "nginx"
"""The name of what the others are compared with."""
PATIENCE = 60.0
"""Seconds in which a program has to start, and to stop."""
TICK = 0.002
"""Seconds between two tries to get a greeting."""


class ProxyError(Exception):
    """A program does not do what it has to; the text says what, and shows its log."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A program with nginx's command line, and nginx's configuration."""

    name: str
    """In the report."""
    command: tuple[str, ...]
    version: str
    """The program's own words."""
    load_module: str
    """What its configuration has to begin with, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """A program that runs."""

    pid: int
    """The master's."""
    seconds: float
    """How long it took to the first greeting."""


def find_mailproxy() -> Proxy:
    """The program of this checkout, with the Python that runs the benchmark."""
    script = Path(sys.executable).with_name("mailproxy")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "mailproxy"]
    return find("mailproxy", command)


def find_nginx() -> Proxy | str:
    """The real nginx, or why there is none."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    program = shutil.which("nginx", path=path)
    if program is None:
        return "nginx is not installed (Debian: nginx-light and libnginx-mod-mail)"
    built = _built([program])
    if "--with-mail" not in re.split(r"[\s=]", built):
        return f"{program} is built without its mail module"
    proxy = find(NGINX, [program])
    if "--with-mail=dynamic" in built and not proxy.load_module:
        return (
            f"the mail module of {program} is not installed (Debian: libnginx-mod-mail)"
        )
    return proxy


def find(name: str, command: Sequence[str] | str) -> Proxy:
    """A program by its command.

    Raises:
      ProxyError: it cannot be run.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command)
    built = _built(words)
    modules = re.search(r"--modules-path=(\S+)", built)
    mail = Path(
        modules[1] if modules else "/usr/lib/nginx/modules", "ngx_mail_module.so"
    )
    dynamic = "--with-mail=dynamic" in built and mail.exists()
    return Proxy(
        name=name,
        command=tuple(words),
        version=built.partition("\n")[0].rpartition(": ")[2],
        load_module=f"load_module {mail};" if dynamic else "",
    )


def _built(command: list[str]) -> str:
    """What a program says of how it was built.

    Raises:
      ProxyError: it cannot be run.
    """
    try:
        done = subprocess.run(
            [*command, "-V"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ProxyError(
            f'"{shlex.join(command)} -V" does not work: {error}'
        ) from error
    return done.stderr + done.stdout


class Place:
    """A directory in which one proxy runs with one configuration."""

    def __init__(self, proxy: Proxy, directory: Path, configuration: str) -> None:
        self.proxy = proxy
        self._directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "logs").mkdir(parents=True)
        (directory / "nginx.conf").write_text(configuration, encoding="utf-8")

    def test(self) -> float:
        """Do `-t`; returns how many seconds it took.

        Raises:
          ProxyError: the configuration is refused.
        """
        with self._output() as output:
            began = time.monotonic()
            status = subprocess.call(self._command("-t"), stdout=output, stderr=output)
            took = time.monotonic() - began
        if status != 0:
            raise self.error("refuses the configuration", "-t")
        return took

    @contextmanager
    def started(self, host: str, port: int) -> Iterator[Started]:
        """Run the proxy for the length of the block.

        Args:
          host, port: who has to greet before the block begins.

        Raises:
          ProxyError: nobody greets.
        """
        command = self._command("-g", "daemon off;")
        began = time.monotonic()
        with self._output() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        try:
            while not _greets(host, port):
                if process.poll() is not None:
                    raise self.error("does not start", *command[-2:])
                if time.monotonic() > began + PATIENCE:
                    raise self.error(f"is silent for {PATIENCE:.0f} s", *command[-2:])
                time.sleep(TICK)
            yield Started(pid=process.pid, seconds=time.monotonic() - began)
        finally:
            _stop(process)

    def _command(self, *more: str) -> list[str]:
        return [
            *self.proxy.command,
            "-p", f"{self._directory}/", "-c", "nginx.conf", "-e", "logs/error.log",
            *more,
        ]  # fmt: skip

    def _output(self) -> BinaryIO:
        return (self._directory / "output.txt").open("ab")

    def error(self, what: str, *more: str) -> ProxyError:
        """What went wrong, with the command, and the end of what it printed and logged."""
        parts = [f"{self.proxy.name} {what}: {shlex.join(self._command(*more))}"]
        for name in ("output.txt", "logs/error.log"):
            with suppress(OSError):
                text = (self._directory / name).read_text(errors="replace")[-3000:]
                parts += [f"--- {name}", text.rstrip()]
        return ProxyError("\n".join(parts))


def _greets(host: str, port: int) -> bool:
    """Whether a server says something."""
    try:
        with socket.create_connection((host, port), PATIENCE) as connection:
            return bool(connection.recv(512))
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a proxy, and whatever it leaves behind or does not end."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
