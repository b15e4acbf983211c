"""The manager process of a running proxy: when there is one, its rights, its life."""

from __future__ import annotations

import os
import pwd
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGQUIT, SIGSTOP, SIGUSR1, SIGUSR2

import pytest

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import LINE, Client, Load, Site, children, title
from tests.processes import as_user, free_port, wait_for

MAIL = """
    upstream u { zone u 64k; OF_GROUP server 127.0.0.1:DEAD; server 127.0.0.1:BACK; }
    server { listen 127.0.0.1:PORT; protocol imap; }
"""

BREAKS_ON_REQUEST = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "mailproxy.process.manager" and os.path.exists({path!r}):
            os._exit(CODE)
sys.meta_path.insert(0, Finder())
"""
"""What makes a program whose managers end at once while a file exists."""


OF_TRIO = 4
"""Sockets that trio has for itself."""


def managers(site: Site) -> list[int]:
    """The managers of the master."""
    return [
        pid for pid in children(site.pid) if title(pid).endswith(": manager process")
    ]


def manager(site: Site) -> int:
    """The only manager."""
    site.wait_for(lambda: len(managers(site)) == 1, "one manager")
    return managers(site)[0]


def tree(site: Site) -> list[str]:
    """The titles of the master and its children."""
    return [title(site.pid), *sorted(title(pid) for pid in children(site.pid))]


@pytest.fixture
def mail() -> Iterator[tuple[FakeAuth, FakeImap]]:
    """The auth server sends everybody to the group."""
    with FakeImap() as backend, FakeAuth(granted(0)) as auth:
        auth.answer = lambda _: {"Auth-Status": "OK", "Auth-Server": "u"}
        yield auth, backend


@pytest.fixture
def with_group(site: Site, mail: tuple[FakeAuth, FakeImap]) -> Callable[..., Site]:
    """Configures a group of a dead server and a living one."""
    auth, backend = mail
    dead = free_port()

    def configure(main: str = "", of_group: str = "", **values: object) -> Site:
        text = MAIL.replace("OF_GROUP", of_group)
        known = {
            "AUTH": auth.port,
            "DEAD": f"{dead} fail_timeout=1h",
            "BACK": backend.port,
        }
        site.configure(text, main, **{**known, **values})
        return site

    configure()
    return configure


class TestThatIsNotNeeded:
    def test_processes_and_titles_are_those_of_nginx(
        self, site: Site, nginx_site: Site
    ) -> None:
        ours = site.directory / "nginx"
        site.install(ours)
        found = []
        for each, program in ((site, ours), (nginx_site, nginx_site.program)):
            each.start(program=program)
            each.wait_for(lambda each=each: len(each.workers) == 2, "workers")  # type: ignore[misc] # typed by its default
            found.append(
                [line.replace(str(each.directory), "D") for line in tree(each)]
            )
        assert found[0] == found[1]
        assert len(found[0]) == 3

    def test_there_is_no_mapping(self, site: Site) -> None:
        pid = site.start()
        shared = re.findall(
            r"rw-s.*/dev/zero", Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        )
        assert shared == []


class TestRights:
    def test_it_has_its_title_and_the_user_of_workers(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        site.start()
        assert tree(site)[1:] == [
            "mailproxy: manager process",
            *["mailproxy: worker process"] * 2,
        ]
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody").pw_uid
            assert _uid(manager(site)) == nobody

    @pytest.mark.proves("manager_user")
    def test_it_may_have_its_own_user(self, with_group: Callable[..., Site]) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        site = with_group(main="manager_user daemon;")
        site.start()
        pid = manager(site)
        assert _uid(pid) == pwd.getpwnam("daemon").pw_uid
        assert _uid(site.workers[0]) == pwd.getpwnam("nobody").pw_uid
        # The log file belongs to the workers: it is handed to the manager.
        site.log_path.rename(site.directory / "old.log")
        site.signal(SIGUSR1)
        site.wait_for(site.log_path.exists, "the new log")
        fail_once(site)
        for name in ("old.log", "error.log"):
            assert "[emerg]" not in (site.directory / name).read_text()

    def test_nobody_can_look_into_it(self, with_group: Callable[..., Site]) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root")
        site = with_group()
        site.start()
        pid, account = manager(site), pwd.getpwnam("nobody")
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)

        def look(at: int) -> None:
            os.close(os.open(f"/proc/{at}/mem", os.O_RDONLY))

        with pytest.raises(AssertionError):
            as_user(account.pw_uid, account.pw_gid, lambda: look(pid))

    def test_secrets_are_in_no_other_process(
        self, with_group: Callable[..., Site]
    ) -> None:
        secret = b"wonderland-%d" % os.getpid()
        site = with_group(
            of_group="health_check type=login protocol=imap"
            " login_file=watchdog interval=1h;"
        )
        file = site.directory / "watchdog"
        file.touch(mode=0o600)
        file.write_bytes(b"watchdog:" + secret + b"\n")
        pid = site.start()
        site.signal(SIGHUP)
        site.wait_for_line("gracefully shutting down", 2)
        site.wait_for(lambda: len(children(pid)) == 3, "the new processes alone")
        assert _holds(pid, file), "it does not read it"
        assert not any(_holds(worker, file) for worker in site.workers)
        for each in (pid, *site.workers):
            assert secret not in _memory(each)
        assert secret.decode() not in site.log_path.read_text()

    def test_it_has_no_socket_of_clients_and_no_other_line(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group(main="worker_processes 3;")
        site.start()
        pid = manager(site)
        wanted = 4 + OF_TRIO
        site.wait_for(
            lambda: len(_sockets(pid)) == wanted, "lines to workers and the master"
        )
        listening = _sockets(site.pid) - _sockets(pid)
        assert listening
        site.signal(SIGHUP)
        site.wait_for_line("manager process", 3)
        site.wait_for(lambda: managers(site) not in ([], [pid]), "the next one")
        assert len(_sockets(manager(site))) == wanted
        for worker in site.workers:
            assert len(_sockets(worker)) == 3 + OF_TRIO, "master, manager, listener"


def _uid(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^Uid:\s+(\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _memory(pid: int) -> bytes:
    """What a process has in its memory; its tests are skipped if we may not look."""
    found = bytearray()
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for begin, end in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
                memory.seek(int(begin, 16))
                found += memory.read(int(end, 16) - int(begin, 16))
    except PermissionError:
        pytest.skip("may not look into other processes")
    return bytes(found)


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    return str(path) in {
        os.readlink(f"/proc/{pid}/fd/{number}")
        for number in os.listdir(f"/proc/{pid}/fd")
        if os.path.lexists(f"/proc/{pid}/fd/{number}")
    }


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, and its parent does not know yet (proc(5), stat)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _descriptors(pid: int) -> str:
    """What a process has open."""
    names = (f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))
    return " ".join(os.readlink(name) for name in names if os.path.lexists(name))


def _sockets(pid: int) -> set[str]:
    """The sockets of a process."""
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
        except FileNotFoundError:
            continue
    return {each for each in found if each.startswith("socket:")}


def log_in(site: Site) -> None:
    with Client(site.port) as client:
        assert client.log_in().startswith(b"a OK")


UNAVAILABLE = 'of upstream "u" is unavailable'


def fail_once(site: Site) -> None:
    """Log in until a worker has found that the dead server is dead."""
    while not any(UNAVAILABLE in line for line in site.log("warn")):
        log_in(site)


def serve_everywhere(site: Site, workers: int) -> None:
    """Log in until each worker has logged in some more sessions."""
    seen: Counter[str] = Counter()

    def enough() -> bool:
        at = site.log_path.stat().st_size
        log_in(site)
        with site.log_path.open(encoding="utf-8") as log:
            log.seek(at)
            seen.update(
                pid for _, pid, text in LINE.findall(log.read()) if "logged in" in text
            )
        return len(seen) == workers and min(seen.values()) >= 3

    site.wait_for(enough, "sessions in all workers")


class TestFailures:
    @pytest.mark.proves("zone")
    def test_all_workers_know_of_a_failure(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group(main="worker_processes 4;")
        site.start()
        fail_once(site)
        serve_everywhere(site, 4)
        # Another worker may have tried it before it heard of the first failure.
        assert len(site.log("error")) <= 2, "one attempt for all workers"
        assert len(site.log("warn")) == 1

    def test_it_survives_a_reload(self, with_group: Callable[..., Site]) -> None:
        site = with_group(main="worker_processes 4;")
        site.start()
        fail_once(site)
        site.forget_log()
        site.signal(SIGHUP)
        site.wait_for_line("gracefully shutting down", 4)
        serve_everywhere(site, 4)
        # A worker may have its first client before it hears from the manager.
        assert len(site.log("error")) <= 1

    def test_one_tries_again_after_a_while(
        self, with_group: Callable[..., Site], mail: tuple[FakeAuth, FakeImap]
    ) -> None:
        _, backend = mail
        port = free_port()
        site = with_group(
            main="worker_processes 2;",
            MAIL="",
            DEAD=f"{port} fail_timeout=1s",
        )
        site.start()
        fail_once(site)
        with FakeImap(port):

            def back() -> bool:
                log_in(site)
                return any("is available" in line for line in site.log("notice"))

            site.wait_for(back, "a session that finds it in order")
        assert len(site.log("error")) <= 2
        assert backend.lines.qsize() > 0


class TestLife:
    def test_killed_one_is_replaced_and_costs_no_session(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        site.start()
        with Client(site.port) as relayed, Client(site.port) as waiting:
            assert relayed.log_in().startswith(b"a OK")
            for _ in range(3):
                pid = manager(site)
                os.kill(pid, SIGKILL)
                relayed.ping()
                log_in(site)
                site.wait_for(
                    lambda pid=pid: managers(site) not in ([], [pid]),  # type: ignore[misc] # typed by its default
                    "the next one",
                )
                relayed.ping()
            assert waiting.log_in().startswith(b"a OK")
        log_in(site)
        assert {line.partition(" process ")[0] for line in site.log("alert")} == {
            "manager"
        }

    def test_its_successor_shares_failures_again(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group(main="worker_processes 4;")
        site.start()
        os.kill(manager(site), SIGKILL)
        site.wait_for_line("start manager process", 2)
        site.wait_for(
            lambda: "[signalfd]" in _descriptors(manager(site)), "its greeting"
        )
        fail_once(site)
        serve_everywhere(site, 4)
        assert len(site.log("error")) <= 2

    def test_master_learns_of_its_end_together_with_that_of_workers(
        self, with_group: Callable[..., Site]
    ) -> None:
        """As after the kernel has run out of memory, or `killall`."""
        site = with_group()
        site.start()
        dead = {manager(site), *site.workers}
        site.signal(SIGSTOP)
        for pid in dead:
            os.kill(pid, SIGKILL)
        site.wait_for(lambda: all(map(_is_zombie, dead)), "the end of all")
        site.signal(SIGCONT)
        site.wait_for(lambda: len(site.workers) == 2, "other workers")
        assert dead.isdisjoint({manager(site), *site.workers})
        log_in(site)
        assert not any("bug" in line for line in site.log("alert"))

    def test_stuck_one_is_killed_and_replaced(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        with site.foreground({"WATCHDOG_USEC": "2000000"}):
            site.wait_for(lambda: site.has_pid() and len(site.workers) == 2, "workers")
            os.kill(pid := manager(site), SIGSTOP)
            with Client(site.port) as client:
                assert client.log_in().startswith(b"a OK")
                site.wait_for_line(f"manager process {pid} is stuck")
                site.wait_for_line("start manager process", 2)
                client.ping()
                log_in(site)
            site.signal(SIGQUIT)
            site.wait_for_line("exit", 4)

    @pytest.mark.parametrize("code", [1, 2])
    def test_without_it_nothing_starts(
        self, with_group: Callable[..., Site], code: int
    ) -> None:
        site = with_group()
        self._break(site, code)
        done = site.call()
        assert done.returncode == 2
        assert site.log("emerg") == ["manager process does not start"]
        assert not site.pid_path.exists()

    def test_without_the_next_one_nothing_is_reloaded(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        broken = self._break(site, 2)
        broken.unlink()
        site.start()
        before = manager(site), site.workers
        broken.touch()
        site.signal(SIGHUP)
        site.wait_for_line("new manager process does not start, nothing is changed")
        assert (manager(site), site.workers) == before
        log_in(site)
        broken.unlink()
        site.signal(SIGHUP)
        site.wait_for_line("gracefully shutting down", 2)
        log_in(site)

    def _break(self, site: Site, code: int) -> Path:
        """Have managers end at once while the file exists that this returns."""
        broken = site.directory / "broken"
        broken.touch()
        head, _, rest = site.program.read_text().partition("\n")
        patch = BREAKS_ON_REQUEST.replace("{path!r}", repr(str(broken)))
        text = f"{head}\n{patch.replace('CODE', str(code))}\n{rest}"
        site.program.write_text(text)
        return broken

    def test_it_outlives_its_master_and_leaves_with_the_last_worker(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        pid = site.start()
        mine, workers = manager(site), site.workers
        os.kill(pid, SIGKILL)
        wait_for(lambda: title(pid) == "", "the end of the master")
        fail_once(site)
        for worker in workers:
            os.kill(worker, SIGQUIT)
        wait_for(lambda: title(mine) == "", "the end of the manager")

    def test_each_binary_has_its_own(self, with_group: Callable[..., Site]) -> None:
        site = with_group()
        old = site.start()
        mine = manager(site)
        site.signal(SIGUSR2)
        site.wait_for(lambda: site.has_pid() and site.pid != old, "the new binary")
        new = manager(site)
        assert new != mine
        os.kill(old, SIGQUIT)
        wait_for(lambda: title(old) == "", "the end of the old binary")
        assert title(mine) == ""
        assert manager(site) == new
        log_in(site)

    def test_quit_ends_it_after_the_last_session(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group()
        pid = site.start()
        mine = manager(site)
        with Client(site.port) as client:
            assert client.log_in().startswith(b"a OK")
            site.signal(SIGQUIT)
            site.wait_for_line("gracefully shutting down", 2)
            client.ping()
            assert title(mine)
        assert site.wait_for_end(pid) == 0
        assert title(mine) == ""

    def test_storm_of_reloads_is_not_noticed_by_clients(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group(main="worker_processes 1;", DEAD=free_port())
        site.start()
        with Load(site.port) as load:
            for number in range(1, 51):
                site.signal(SIGHUP)
                site.wait_for_line("gracefully shutting down", number)
                assert load.failures == []
        site.wait_for(lambda: len(managers(site)) == 1, "the last manager alone")
        site.wait_for(lambda: len(children(site.pid)) == 2, "the last worker alone")
        log_in(site)
        bad = [line for level in ("alert", "emerg", "crit") for line in site.log(level)]
        assert bad == []
        assert len(_sockets(site.pid)) <= 6, "nothing is left over"

    def test_manager_gone_under_load_is_not_noticed(
        self, with_group: Callable[..., Site]
    ) -> None:
        site = with_group(main="worker_processes 2;")
        site.start()
        with Load(site.port, staying=50) as load:
            for number in range(1, 4):
                os.kill(manager(site), SIGKILL)
                site.wait_for_line("start manager process", number + 1)
                assert load.failures == []


def test_program_without_a_master_has_no_manager(
    with_group: Callable[..., Site],
) -> None:
    site = with_group()
    done = site.call("-t", "-g", "master_process off;")
    assert done.returncode == 1
    line = next(
        number
        for number, text in enumerate(
            (site.directory / "nginx.conf").read_text().splitlines(), 1
        )
        if "zone" in text
    )
    assert next(line for line in done.stderr.splitlines() if "[emerg]" in line) == (
        'mailproxy: [emerg] "zone" needs "master_process on"'
        f" in {site.directory}/nginx.conf:{line}"
    )


def test_reasons_are_shown(with_group: Callable[..., Site]) -> None:
    site = with_group()
    done = site.call("-t", "-q", "--dump-json")
    assert re.search(r'"manager": \[\s*"zone in [^"]*nginx.conf:\d+"\s*\]', done.stdout)
    site.configure()
    assert '"manager": []' in site.call("-t", "-q", "--dump-json").stdout
