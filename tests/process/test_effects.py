"""What is written in main, events and `error_log` shows in processes and their logs."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailproxy.log import open_logs
from mailproxy.process.configuration import load
from mailproxy.process.options import Options
from tests.process.site import Site
from tests.processes import PATIENCE


def status(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)[field]


def limit(pid: int, name: str) -> list[str]:
    """The soft and the hard limit of a process."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(name))
    return found.removeprefix(name).split()[:2]


def change(site: Site, old: str, new: str) -> None:
    """Replace something in the configuration."""
    path = site.directory / "nginx.conf"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def visit(host: str, port: int, source: str = "127.0.0.1") -> None:
    """Be a client that comes and goes."""
    with socket.create_connection((host, port), source_address=(source, 0)) as client:
        assert client.recv(100) == b"* OK IMAP4 ready\r\n"


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) != os.sysconf("SC_NPROCESSORS_ONLN"),
    reason="some CPUs are not for us",
)
@pytest.mark.proves("worker_processes", "auto")
@pytest.mark.proves("worker_priority")
@pytest.mark.proves("worker_rlimit_nofile")
@pytest.mark.proves("worker_rlimit_core")
@pytest.mark.proves("worker_cpu_affinity", "auto")
@pytest.mark.proves("env")
def test_workers_are_as_the_main_context_says(site: Site) -> None:
    site.configure(
        main="worker_processes auto; worker_cpu_affinity auto; worker_priority +5;"
        " worker_rlimit_nofile 777; worker_rlimit_core 12k; env TZ=Etc/GMT-14;"
    )
    site.start()
    site.wait_for_line("start worker process ", os.sysconf("SC_NPROCESSORS_ONLN"))
    workers = site.workers
    assert len(workers) == os.sysconf("SC_NPROCESSORS_ONLN")
    for slot, worker in enumerate(workers):
        site.wait_for_line(f"using cpu #{slot}")
        assert os.getpriority(os.PRIO_PROCESS, worker) == 5
        assert limit(worker, "Max open files") == ["777", "777"]
        assert limit(worker, "Max core file size") == [str(12 * 1024)] * 2

    def cpus() -> list[str]:
        return sorted(status(worker, "Cpus_allowed_list") for worker in workers)

    expected = sorted(map(str, range(len(workers))))
    site.wait_for(lambda: cpus() == expected, "workers that are tied to CPUs")
    lines = site.log_path.read_text().splitlines()
    line = next(each for each in lines if each.endswith("using cpu #0"))
    logged = datetime.strptime(line[:19], "%Y/%m/%d %H:%M:%S").replace(tzinfo=UTC)
    ahead = logged - datetime.now(UTC)
    assert timedelta(hours=13) < ahead < timedelta(hours=15)


@pytest.mark.proves("connections")
def test_old_name_of_worker_connections(site: Site) -> None:
    site.configure(main="worker_processes 1;")
    change(site, "events {", "events { connections 4;")
    site.start()
    held = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(4)]
    site.wait_for_line("4 worker_connections are not enough")
    assert held[-1].recv(100) == b""
    for each in held:
        each.close()


@pytest.mark.proves("accept_mutex_delay")
def test_pause_without_descriptors_is_as_long_as_told(site: Site) -> None:
    site.configure(main="worker_processes 1; worker_rlimit_nofile 24;")
    change(site, "events {", "events { accept_mutex_delay 900ms;")
    site.start()
    began = time.monotonic()
    held = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(24)]
    site.wait_for_line("accept4() failed (24: Too many open files)", 2)
    assert time.monotonic() - began >= 0.9
    for each in held:
        each.close()


@pytest.mark.proves(
    "error_log", "syslog:", "rate=", "filter=", "format=", context="mail"
)
@pytest.mark.proves("error_log", context="main")
@pytest.mark.proves("error_log_user_tag")
@pytest.mark.proves("debug_connection", "unix:")
def test_sessions_are_logged_where_their_server_says(site: Site) -> None:
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.settimeout(PATIENCE)
    syslog.bind(str(site.directory / "syslog"))
    (site.directory / "syslog").chmod(0o666)
    site.configure(
        """
        error_log mail.log info;
        server { listen 127.0.0.1:PORT; protocol imap; }
        server {
            listen 127.0.0.2:PORT; protocol imap; error_log_user_tag blue;
            error_log json.log info format=json;
            error_log blue.log info filter=tag:blue;
            error_log red.log info filter=tag:red;
            error_log rare.log info rate=1;
            error_log syslog:server=unix:HERE/syslog,facility=mail,tag=front info;
            error_log own.log info;
        }
        server {
            listen 127.0.0.3:PORT; listen unix:HERE/sock; protocol imap;
            error_log quiet.log;
        }
        """,
        main="worker_processes 1;",
        HERE=site.directory,
    )
    change(
        site, "events {", "events { debug_connection 127.0.0.9; debug_connection unix:;"
    )
    site.start()

    def lines(name: str) -> list[str]:
        text = (site.directory / name).read_text().splitlines()
        return [line for line in text if "connected to" in line]

    def is_told(name: str, count: int = 1) -> None:
        site.wait_for(lambda: len(lines(name)) >= count, f"{count} lines in {name}")

    visit("127.0.0.1", site.port)
    is_told("mail.log")
    for _ in range(4):
        visit("127.0.0.2", site.port)
    is_told("own.log", 4)
    first = json.loads((site.directory / "json.log").read_text().splitlines()[0])
    assert first["mail"]["server"] == f"127.0.0.2:{site.port}"
    assert len(lines("blue.log")) == 4
    assert (site.directory / "red.log").read_bytes() == b""
    assert "too many log messages" in (site.directory / "rare.log").read_text()
    packet = syslog.recv(4096).decode()
    assert packet.startswith("<22>")
    assert " front: " in packet
    assert f"connected to 127.0.0.2:{site.port}" in packet
    syslog.close()

    visit("127.0.0.3", site.port)
    visit("127.0.0.3", site.port, source="127.0.0.9")
    is_told("quiet.log")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(site.directory / "sock"))
        is_told("quiet.log", 2)

    def greetings() -> list[str]:
        said = (site.directory / "quiet.log").read_text().splitlines()
        return [line for line in said if 'to client: "* OK IMAP4 ready"' in line]

    site.wait_for(lambda: len(greetings()) >= 2, "the dialogues of both")
    assert len(greetings()) == 2, "the one of 127.0.0.1 is not shown"
    assert all(" [debug] " in line for line in greetings())
    of_one, of_the_other = lines("quiet.log")
    assert "client 127.0.0.9:" in of_one
    assert "client unix: " in of_the_other
    assert len(lines("mail.log")) == 1
    assert not any("connected to" in line for line in site.log())
    assert any("start worker process" in line for line in site.log("notice"))


@pytest.mark.proves("error_log", "memory:")
def test_a_log_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text("error_log memory:4k info; events {}")
    logs = open_logs(load(Options(conf_file=str(path))).main.error_log, default="")
    logs.main.info("hello")
    (memory,) = logs.memories
    assert memory.lines()[-1].endswith(b": hello\n")
    logs.close()
