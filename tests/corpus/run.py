"""Run a case with mailproxy or with nginx, and reduce what they print to what compares."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.corpus.cases import Case
from tests.corpus.fixtures import fixtures
from tests.processes import find_program

NGINX = find_program("nginx")
NGINX_VERSION = "1.22."
"""The stored answers are those of this nginx; other versions word some errors differently."""
MAIL_MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")

_SHAPE = re.compile(
    r"mailproxy: (\[\w+\] |(the )?configuration file |invalid |option )|TIME \["
)
_FATAL = re.compile(r"(mailproxy:|TIME) \[(emerg|crit)\] ")
_CONCLUSION = re.compile(r"mailproxy: configuration file .* test failed$")
_OF_MAILPROXY_ALONE = re.compile(
    r'mailproxy: \[warn\] (only mail is served, the "\w+" block is skipped'
    r'|the "\w+" directive is gone since nginx [\d.]+ and has no effect'
    r'|PROXY headers do not tell who the client is without "set_real_ip_from"'
    r'|"\w+" directive has no variables, "\$" is taken literally'
    r"|TLSv1(\.1)?( and TLSv1\.1)? cannot be used at OpenSSL's security level \d) in "
    r'|(mailproxy:|TIME) \[warn\] there is no ("mail" block|mail server), nothing will be served'
    r'|mailproxy: \[warn\] certificate ".*" (has expired on|is not valid before) '
)


@dataclass(frozen=True)
class Answer:
    """Exit code and output, as far as they compare."""

    exit: int
    stderr: tuple[str, ...]
    stdout: tuple[str, ...]
    leaves: str | None = None
    """The names of the files that are there afterwards, if the case asks for them."""

    @property
    def text(self) -> str:
        """As in a case file."""
        lines = [f"--- exit {self.exit}", *self.stderr]
        if self.stdout:
            lines += ["--- stdout", *self.stdout, "--- end"]
        if self.leaves is not None:
            lines.append(f"leaves: {self.leaves}")
        return "\n".join(lines)


def prepare(case: Case, directory: Path) -> None:
    """Write the files of a case and run its set-up."""
    (directory / "nginx.conf").write_bytes(_placed(case.config, directory))
    for name, content in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_placed(content, directory))
    for name in case.headers.get("with", "").split():
        (directory / name).write_bytes(fixtures()[name])
    if "setup" in case.headers:
        command = case.headers["setup"].replace("@P@", str(directory))
        subprocess.run(["sh", "-ec", command], cwd=directory, check=True, timeout=60)


def arguments(case: Case, directory: Path, globals_text: str) -> list[str]:
    """The command line of a case, without the program's name."""
    fixed = ["-p", f"{directory}/", "-c", "nginx.conf", "-e", "startup.log"]
    given = [word.replace("@P@", str(directory)) for word in case.arguments]
    return [*fixed, "-g", globals_text.replace("@P@", str(directory)), *given]


def lacks(case: Case) -> str:
    """What a case needs and this machine does not have; empty: nothing."""
    met: dict[str, Callable[[], bool]] = {
        "root": lambda: os.geteuid() == 0,
        "user": lambda: os.geteuid() != 0,
        "ipv6": _ipv6,
    }
    return " ".join(
        need for need in case.headers.get("needs", "").split() if not met[need]()
    )


@cache
def _ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@cache
def nginx_missing() -> str:
    """What is not installed, and should be; empty: nothing."""
    if NGINX is None:
        return "nginx is not installed"
    return "" if MAIL_MODULE.exists() else f"{MAIL_MODULE} is not installed"


@cache
def nginx_differs() -> str:
    """Why the answers cannot be those of the nginx that is installed; empty: they are."""
    assert NGINX is not None
    shown = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True)
    version = shown.stderr.strip()
    if f"nginx/{NGINX_VERSION}" in version:
        return ""
    return f"the answers are those of nginx {NGINX_VERSION}x, this is {version}"


def ask_nginx(case: Case, directory: Path) -> Answer:
    """What nginx says."""
    assert NGINX is not None
    text = f"load_module {MAIL_MODULE}; {case.globals}"
    if f"load_module {MAIL_MODULE};".encode() in case.config:
        text = case.globals
    return _run(case, [NGINX, *arguments(case, directory, text)], directory)


def ask_process(case: Case, directory: Path) -> Answer:
    """What mailproxy says, as a process of its own."""
    command = [sys.executable, "-m", "mailproxy"]
    return _run(case, [*command, *arguments(case, directory, case.globals)], directory)


def ask_here(
    case: Case,
    directory: Path,
    main: Callable[[list[str]], int],
    captured: Callable[[], tuple[bytes, bytes]],
) -> Answer:
    """What mailproxy says when called in this process.

    Args:
      main: takes arguments, returns the exit code.
      captured: returns what went to the descriptors 1 and 2 since its last call.
    """
    captured()
    before = Path.cwd()
    os.chdir(directory)
    try:
        code = main(arguments(case, directory, case.globals))
    finally:
        os.chdir(before)
    stdout, stderr = captured()
    return _answer(case, code, stdout, stderr, directory)


def _run(case: Case, command: list[str], directory: Path) -> Answer:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with _few_files():
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    return _answer(case, done.returncode, done.stdout, done.stderr, directory)


@contextmanager
def _few_files() -> Iterator[None]:
    """With many allowed, nginx overflows its stack on a file that includes itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _placed(content: bytes, directory: Path) -> bytes:
    return content.replace(b"@P@", os.fsencode(directory))


def _answer(
    case: Case, code: int, stdout: bytes, stderr: bytes, directory: Path
) -> Answer:
    leaves = None
    if "leaves" in case.headers:
        given = {"nginx.conf", *case.files, *case.headers.get("with", "").split()}
        names = {path.name for path in directory.iterdir()}
        leaves = " ".join(sorted(names - given))
    return Answer(
        code, _compared(_lines(stderr, directory)), _lines(stdout, directory), leaves
    )


def _lines(output: bytes, directory: Path) -> tuple[str, ...]:
    """Lines as case files show them: any directory is P, and any program mailproxy."""
    text = "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1]
        for char in output.decode(errors="backslashreplace")
    )
    text = text.replace(str(directory), "P").replace("P//", "P/")
    text = re.sub(r"(?m)^nginx: ", "mailproxy: ", text)
    text = re.sub(r"(?m)^[\d/]{10} [\d:]{8} (\[\w+\]) \d+#\d+:", r"TIME \1", text)
    text = re.sub(r"(open file resource limit: )\d+", r"\1N", text)
    text = re.sub(r"\berror:[0-9A-F]{8}:", "error:CODE:", text)
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def _compared(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what mailproxy adds: help for people, further errors, notes of its own."""
    kept = []
    fatal = False
    for line in lines:
        if not _SHAPE.match(line) or _OF_MAILPROXY_ALONE.match(line):
            continue
        if not fatal or _CONCLUSION.match(line):
            kept.append(line)
        fatal = fatal or bool(_FATAL.match(line))
    return tuple(kept)
