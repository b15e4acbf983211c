"""Without a master (`master_process off`): logs over many reloads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from signal import SIGHUP, SIGUSR1

import pytest

from tests.process.site import Client, Site
from tests.processes import PATIENCE

LOADED = 'using the "epoll" event method'


def configure(site: Site, log: str = "error.log", capability: str = "FIRST") -> None:
    """One process with a main log, and another log for its only server."""
    site.configure(
        f"error_log {log} info; imap_capabilities {capability};"
        "server { listen 127.0.0.1:PORT; protocol imap; error_log server.log info; }",
        main="master_process off;",
    )


def reload(site: Site, count: int) -> None:
    """Reload, the `count`th time."""
    site.signal(SIGHUP)
    site.wait_for_line(LOADED, count + 1)


def open_files(pid: int, path: Path) -> int:
    """How many descriptors of a process lead to a file."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(f"/proc/{pid}/fd/{name}") == str(path)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_descriptors_do_not_pile_up(site: Site) -> None:
    """Not even while a session of the first configuration lasts."""
    configure(site)
    pid = site.start()
    with Client(site.port) as client:
        reload(site, 1)
        with_one_old = descriptors(pid)
        for number in range(2, 52):
            reload(site, number)
        site.wait_for(lambda: descriptors(pid) == with_one_old, "closed logs")
        assert client.ask(b"a NOOP").startswith(b"a OK")
        assert site.pid == pid
    # The client, and the two files of its configuration.
    site.wait_for(lambda: descriptors(pid) == with_one_old - 3, "closed logs")
    site.no_complaints()


def test_descriptors_of_reloads_that_fail_do_not_pile_up(site: Site) -> None:
    configure(site)
    pid = site.start()
    with Client(site.port):  # it has opened everything by now, and the session
        before = descriptors(pid) - 1
    path = site.directory / "nginx.conf"
    path.write_text(path.read_text().replace("pid the.pid", "pid gone/the.pid"))
    for number in range(1, 11):
        site.signal(SIGHUP)
        site.wait_for(lambda: len(site.log("emerg")) >= number, "an error")  # noqa: B023
    site.wait_for(lambda: descriptors(pid) == before, "closed logs")


def test_a_session_writes_to_the_log_that_it_began_with(site: Site) -> None:
    """Until its end, and through a rotation: that is for all logs that are open."""
    configure(site)
    pid = site.start()
    server = site.directory / "server.log"
    with Client(site.port) as client:
        path = site.directory / "nginx.conf"
        path.write_text(path.read_text().replace("server.log", "next.log"))
        reload(site, 1)
        server.rename(site.directory / "rotated.log")
        site.log_path.rename(site.directory / "rotated-error.log")
        site.signal(SIGUSR1)
        site.wait_for(server.exists, "a new log of the old configuration")
        site.wait_for(site.log_path.exists, "a new log")
        assert open_files(pid, site.directory / "rotated.log") == 0
        assert client.ask(b"a NOOP").startswith(b"a OK")
    site.wait_for(lambda: "client" in server.read_text(), "a line of the old session")
    assert (site.directory / "next.log").read_text() == ""
    site.wait_for(lambda: open_files(pid, server) == 0, "the old log to be closed")
    assert open_files(pid, site.directory / "next.log") == 1


@pytest.mark.parametrize("count", [1, 3])
def test_sessions_of_several_configurations_keep_theirs(site: Site, count: int) -> None:
    configure(site)
    pid = site.start()
    clients = []
    for number in range(1, count + 1):
        clients.append(Client(site.port))
        configure(site, capability=f"NUMBER{number}")
        reload(site, number)
    server = site.directory / "server.log"
    site.wait_for(lambda: open_files(pid, server) == count + 1, "a log for each")
    for left in reversed(range(count)):
        clients.pop(0).close()
        site.wait_for(lambda: open_files(pid, server) == left + 1, "fewer logs")  # noqa: B023


def test_without_descriptors_it_ends_with_one_line(site: Site) -> None:
    """However many there are, what lacks is no bug."""
    configure(site)
    calls = set()
    for count in range(9, 16):
        site.log_path.write_text("")
        limited = ["prlimit", f"--nofile={count}", *site.command("-g", "daemon off;")]
        done = subprocess.run(limited, timeout=PATIENCE, check=False)
        assert done.returncode == 1
        (line,) = site.log("emerg")
        assert line.endswith(" failed (24: Too many open files)")
        assert site.log("alert") == []
        assert not site.pid_path.exists()
        calls.add(line.split()[0])
    assert "signalfd()" in calls
