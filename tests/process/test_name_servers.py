"""Silent name servers under a running worker: what SMTP loses, others keep."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.processes import PATIENCE, free_port

CLIENTS = 250
SPARE = 40
"""Descriptors of a worker besides those of the waiting clients: its own, those of a
few name servers, and those of two logins."""


def test_answer_wakes_a_worker_whose_sessions_only_relay(site: Site) -> None:
    smtp = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names,
        FakeImap() as backend,
        FakeAuth(granted(backend.port)) as auth,
    ):
        names.bind(("127.0.0.1", 0))
        names.settimeout(PATIENCE)
        site.configure(
            "server { listen 127.0.0.1:PORT; protocol imap; }"
            "server { listen 127.0.0.1:SMTP; protocol smtp; resolver 127.0.0.1:NAMES; }",
            main="worker_processes 1;",
            AUTH=auth.port,
            SMTP=smtp,
            NAMES=names.getsockname()[1],
        )
        site.start()
        with (
            Client(site.port) as relayed,
            socket.create_connection(("127.0.0.1", smtp), PATIENCE) as client,
        ):
            assert relayed.log_in().startswith(b"a OK")
            query, worker = names.recvfrom(512)
            relayed.ping()
            names.sendto(query[:2] + b"\x81\x83" + query[4:], worker)
            assert client.recv(100).startswith(b"220 ")
        assert len(site.log("error")) == 1
        site.wait_for_line("127.0.0.1 could not be resolved (3: Host not found)")


def test_outage_of_dns_costs_other_protocols_nothing(site: Site) -> None:
    """Many SMTP clients wait for their names; IMAP logins go on as if they did not."""
    smtp = free_port()
    with (
        ExitStack() as clients,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names,
        FakeImap() as backend,
        FakeAuth(granted(backend.port)) as auth,
    ):
        names.bind(("127.0.0.1", 0))
        names.settimeout(PATIENCE)
        names.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        limit = CLIENTS + SPARE
        site.configure(
            "server { listen 127.0.0.1:PORT; protocol imap; }"
            "server { listen 127.0.0.1:SMTP; protocol smtp; resolver 127.0.0.1:NAMES; }",
            main=f"worker_processes 1; worker_rlimit_nofile {limit};",
            AUTH=auth.port,
            SMTP=smtp,
            NAMES=names.getsockname()[1],
        )
        path = site.directory / "nginx.conf"
        path.write_text(
            path.read_text().replace(
                "events {", f"events {{ worker_connections {limit};"
            )
        )
        site.start()
        (worker,) = site.workers
        before = len(os.listdir(f"/proc/{worker}/fd"))
        asked: set[bytes] = set()
        for number in range(CLIENTS):
            source = f"127.0.1.{number + 1}", 0
            clients.enter_context(
                socket.create_connection(("127.0.0.1", smtp), PATIENCE, source)
            )
        while len(asked) < CLIENTS:
            asked.add(names.recv(512)[12:])
        assert len(os.listdir(f"/proc/{worker}/fd")) <= before + CLIENTS + 8
        for _ in range(3):
            with Client(site.port) as client:
                assert client.log_in().startswith(b"a OK")
                client.ping()
        assert site.log("crit") == site.log("alert") == []
