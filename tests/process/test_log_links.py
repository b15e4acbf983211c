"""Links that the workers' user puts where the master, who is root, opens its logs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from signal import SIGHUP, SIGUSR1

import pytest

from tests.process.site import Site
from tests.processes import as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
USER = pwd.getpwnam("daemon")


@pytest.fixture
def logs(site: Site) -> Path:
    """A log directory of the workers' user."""
    directory = site.directory / "logs"
    directory.mkdir()
    os.chown(directory, USER.pw_uid, USER.pw_gid)
    site.configure(main="user daemon; error_log logs/more.log notice;")
    return directory


@pytest.fixture
def precious(site: Site) -> Path:
    path = site.directory / "precious"
    path.write_text("root's alone")
    path.chmod(0o600)
    return path


def plant(link: Path, target: Path) -> None:
    """Make a link, as the workers' user."""
    as_user(USER.pw_uid, USER.pw_gid, lambda: os.symlink(target, link))


def refusal(logs: Path) -> str:
    return (
        f'open() "{logs}/more.log" failed (40: Too many levels of symbolic links):'
        f' others than root can change "{logs}", where no link is followed'
    )


def is_untouched(precious: Path) -> bool:
    return precious.read_text() == "root's alone" and precious.stat().st_uid == 0


@pytest.mark.parametrize("arguments", [(), ("-t",)], ids=["start", "test"])
def test_start_is_refused(
    site: Site, logs: Path, precious: Path, arguments: tuple[str, ...]
) -> None:
    plant(logs / "more.log", precious)
    done = site.call(*arguments)
    assert done.returncode == 1
    assert f"mailproxy: [emerg] {refusal(logs)}\n" in done.stderr
    assert is_untouched(precious)


def test_reload_is_refused_and_the_old_workers_go_on(
    site: Site, logs: Path, precious: Path
) -> None:
    site.start()
    workers = site.workers
    (logs / "more.log").unlink()
    plant(logs / "more.log", precious)
    site.signal(SIGHUP)
    site.wait_for_line(refusal(logs))
    assert site.workers == workers
    assert is_untouched(precious)


def test_reopen_keeps_the_old_file_in_all_processes(
    site: Site, logs: Path, precious: Path
) -> None:
    site.start()
    (logs / "more.log").rename(logs / "more.log.1")
    plant(logs / "more.log", precious)
    site.signal(SIGUSR1)
    site.wait_for_line(refusal(logs), 3)
    assert (logs / "more.log.1").read_text().count(refusal(logs)) == 3
    assert is_untouched(precious)


def test_log_that_is_rotated_there_is_the_workers(site: Site, logs: Path) -> None:
    site.start()
    (logs / "more.log").rename(logs / "more.log.1")
    site.signal(SIGUSR1)
    site.wait_for(
        lambda: (
            (logs / "more.log").exists()
            and (logs / "more.log").stat().st_uid == USER.pw_uid
        ),
        "its owner",
    )
    site.no_complaints()


def test_link_to_stderr_is_a_log(site: Site) -> None:
    """As in the images of containers."""
    logs = site.directory / "logs"
    logs.mkdir()
    (logs / "more.log").symlink_to("/dev/stderr")
    site.configure(main="user daemon; error_log logs/more.log notice;")
    with site.foreground():
        site.wait_for(site.has_pid, "pid file")
        site.signal(SIGUSR1)
        site.wait_for_line("reopening logs", 3)
    assert "start worker process" in (site.directory / "stderr").read_text()
    site.no_complaints()


def test_pid_file_is_not_written_through_a_link(
    site: Site, logs: Path, precious: Path
) -> None:
    configuration = site.directory / "nginx.conf"
    text = configuration.read_text().replace("pid the.pid;", "pid logs/the.pid;")
    configuration.write_text(text)
    plant(logs / "the.pid", precious)
    done = site.call()
    assert done.returncode == 1
    assert f'open() "{logs}/the.pid" failed (40: ' in done.stderr
    assert is_untouched(precious)
