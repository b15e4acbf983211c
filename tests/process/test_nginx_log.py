"""The log of a master's life, line by line beside the real nginx's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from signal import (
    SIGHUP,
    SIGKILL,
    SIGQUIT,
    SIGTERM,
    SIGUSR1,
    SIGWINCH,
    Signals,
)

import pytest

from tests.process.site import LINE, Site, children

OURS = ("mailproxy/", "running on ")
THEIRS = ("nginx/", "built by ")
ARTEFACTS = ("signal 29 (SIGIO)", "signal 14 (SIGALRM)", "epoll_wait() failed (4:")
"""Of nginx's way to talk to its workers and to wait; ours has none."""


def life(site: Site, live: Callable[[Site], None]) -> dict[str, list[str]]:
    """Start, live, and the log then, by who wrote: the command, the master, a worker."""
    site.start()
    site.wait_for_line("start worker process ")
    live(site)
    found: dict[int, list[str]] = {}
    for level, pid, message in LINE.findall(site.log_path.read_text()):
        if not message.startswith(OURS + THEIRS + ARTEFACTS):
            found.setdefault(int(pid), []).append(f"[{level}] {_anonymous(message)}")
    command, master, *workers = found.values()
    return {
        "command": command,
        "master": master,
        **{f"worker {n}": lines for n, lines in enumerate(workers, 1)},
    }


def _anonymous(message: str) -> str:
    message = re.sub(r"(process|from) \d+", r"\1 PID", message)
    return re.sub(r"RLIMIT_NOFILE\): .*", "RLIMIT_NOFILE)", message)


def stop(site: Site) -> None:
    _end(site, SIGTERM)


def quit_(site: Site) -> None:
    _end(site, SIGQUIT)


def reload(site: Site) -> None:
    site.signal(SIGHUP)
    site.wait_for_line("exited with code 0")
    _end(site, SIGQUIT)


def reload_of_something_broken(site: Site) -> None:
    site.configure(
        "server { listen 127.0.0.1:PORT; protocol imapx; }",
        main="worker_processes 1;",
    )
    site.signal(SIGHUP)
    site.wait_for_line("unknown protocol")
    _end(site, SIGTERM)


def reopen(site: Site) -> None:
    site.signal(SIGUSR1)
    site.wait_for_line("reopening logs", 3)
    _end(site, SIGTERM)


def crash(site: Site) -> None:
    site.signal(SIGKILL, children(site.pid)[0])
    site.wait_for_line("start worker process ", 2)
    _end(site, SIGTERM)


def pause(site: Site) -> None:
    site.signal(SIGWINCH)
    site.wait_for_line("exited with code 0")
    _end(site, SIGTERM, workers=0)


EPOLL_WAIT = {"232", "22", "281"}
"""epoll_wait(2) of x86-64, and epoll_pwait(2) of it and of most others."""


def _waits(pid: int) -> bool:
    """Whether a process is in its event loop; before, nginx may miss a signal."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in EPOLL_WAIT


def end_of_a_worker(site: Site) -> None:
    site.wait_for(lambda: bool(children(site.pid)), "the worker")
    worker = children(site.pid)[0]
    site.wait_for(lambda: _waits(worker), "its event loop")
    site.signal(SIGTERM, worker)
    site.wait_for_line("start worker process ", 2)
    _end(site, SIGTERM)


def _end(site: Site, number: Signals, workers: int = 1) -> None:
    pid = site.pid
    site.wait_for(lambda: len(site.workers) == workers, "workers")
    site.signal(number)
    site.wait_for_end(pid)


@pytest.mark.parametrize(
    "live",
    [
        stop,
        quit_,
        reload,
        reload_of_something_broken,
        reopen,
        crash,
        pause,
        end_of_a_worker,
    ],
)
def test_is_that_of_nginx(
    site: Site, nginx_site: Site, live: Callable[[Site], None]
) -> None:
    for each in (site, nginx_site):
        each.configure(main="worker_processes 1;")
    ours, theirs = life(site, live), life(nginx_site, live)
    where = (str(site.directory), str(nginx_site.directory))
    assert _without(ours, *where) == _without(theirs, *where)


def _without(life: dict[str, list[str]], *paths: str) -> dict[str, list[str]]:
    pattern = "|".join(map(re.escape, paths))
    return {
        who: [re.sub(pattern, "DIR", line) for line in lines]
        for who, lines in life.items()
    }
