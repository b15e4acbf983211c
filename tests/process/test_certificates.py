"""Certificates by name, and their renewal, in workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.process.certificate_orders import write_sheet
from mailproxy.process.messages import Order, write_order
from mailproxy.process.renewal import Change, ShelfChange
from mailproxy.process.worker_services import Certificates
from tests.fakes import FakeAuth, FakeImap, granted
from tests.named import Issuer
from tests.process.own_worker import GREETING, Served, worker
from tests.process.site import Client, Site, children
from tests.processes import PATIENCE, free_port

# -- a worker that is told ---------------------------------------------------------


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    made = Issuer(tmp_path / "certs")
    made.put("a.example.org")
    return made


def server(issuer: Issuer) -> str:
    return f"starttls on; ssl_certificate_directory {issuer.directory};"


def shown(served: Served, name: str) -> bytes:
    """The certificate that a client of the worker would get."""
    own = served.worker.configuration.servers[0].ssl.own
    assert own is not None
    assert own.by_name is not None
    (pair,) = own.by_name.choose(name.encode(), lambda _: None).pairs
    return pair.der


async def order(served: Served, sheet: int) -> bytes:
    """Tell the worker of new certificates; its answer."""
    frame = write_order(Order.CERTIFICATES, 7)
    socket.send_fds(served.master, [frame], [sheet])
    return await served.answer()


def renewed(issuer: Issuer) -> Change:
    """What the master finds when a certificate was renewed."""
    from mailproxy.net.openssl.folder import Folder

    issuer.put("a.example.org")
    folder = Folder(str(issuer.directory))
    return Change([ShelfChange(0, tuple(folder.pairs), ())])


def open_files() -> set[str]:
    """What this process has open, but the directory that tells."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


@contextmanager
def sheet_of(change: Change) -> Iterator[int]:
    sheet = write_sheet(change)
    try:
        yield sheet
    finally:
        os.close(sheet)


async def test_new_certificates_are_used_and_sessions_go_on(
    autojump_clock: MockClock, issuer: Issuer, tmp_path: Path
) -> None:
    async with worker(tmp_path, server=server(issuer)) as served:
        clients = [served.connect() for _ in range(20)]
        for client in clients:
            assert await client.receive_some() == GREETING
        before = open_files()
        for _ in range(10):
            change = renewed(issuer)
            with sheet_of(change) as sheet:
                answer = await order(served, sheet)
            assert answer == write_order(Order.CERTIFICATES_OK, 7)
            assert shown(served, "a.example.org") == change.shelves[0].pairs[0].der
        assert open_files() == before
        for client in clients:
            await client.send_all(b"a NOOP\r\n")
            assert await client.receive_some() == b"a OK completed\r\n"
            await client.aclose()
    assert served.complaints() == []


async def test_what_cannot_be_used_leaves_the_old_ones(
    autojump_clock: MockClock, issuer: Issuer, tmp_path: Path
) -> None:
    async with worker(tmp_path, server=server(issuer)) as served:
        served.tell(Order.PING, 1)
        assert await served.answer() == write_order(Order.ALIVE, 1)
        before, found = shown(served, "a.example.org"), open_files()
        sheet = os.memfd_create("bad")
        os.write(sheet, b"{")
        answer = await order(served, sheet)
        os.close(sheet)
        assert answer == write_order(Order.CERTIFICATES_FAILED, 7)
        with sheet_of(Change([ShelfChange(7, (), ())])) as sheet:
            answer = await order(served, sheet)
        assert answer == write_order(Order.CERTIFICATES_FAILED, 7)
        assert shown(served, "a.example.org") == before
        assert open_files() == found
    complaints = served.complaints()
    told = "[alert] new certificates cannot be used, this is a bug"
    assert complaints.count(told) == 2
    assert "PRIVATE" not in "".join(complaints)


async def test_the_order_needs_its_file(
    autojump_clock: MockClock, issuer: Issuer, tmp_path: Path
) -> None:
    async with worker(tmp_path, server=server(issuer)) as served:
        served.tell(Order.CERTIFICATES)
        served.tell(Order.PING, 1)
        assert await served.answer() == write_order(Order.ALIVE, 1)
    assert served.complaints() == ["[alert] the master sent an invalid message"]


@pytest.mark.proves("ssl_certificate_watch", "off")
async def test_without_a_master_the_process_looks_itself(
    autojump_clock: MockClock, issuer: Issuer, tmp_path: Path
) -> None:
    for period, seen in (("off", False), ("10s", True)):
        async with worker(
            tmp_path,
            services=[Certificates()],
            main=f"ssl_certificate_watch {period};",
            server=server(issuer),
        ) as served:
            await trio.sleep(25)
            before = shown(served, "a.example.org")
            issuer.put("a.example.org")
            await trio.sleep(13)
            assert (shown(served, "a.example.org") != before) == seen
            await served.reload()
            after = shown(served, "a.example.org")
            assert after != before
            issuer.put("a.example.org")
            await trio.sleep(13)
            assert (shown(served, "a.example.org") != after) == seen


# -- real processes ----------------------------------------------------------------

NAMES = [f"mail{number}.example.org" for number in range(20)]
SERVERS = """
    server_name proxy.example.org; ssl_certificate_directory CERTS;
    ssl_reject_handshake on; auth_http_pass_server_name on;
    server { listen 127.0.0.1:IMAP; protocol imap; starttls on; }
    server { listen 127.0.0.1:SECURE ssl; protocol imap; }
    server { listen 127.0.0.1:POP3; protocol pop3; starttls on; }
    server { listen 127.0.0.1:STLS ssl; protocol pop3; }
    server { listen 127.0.0.1:SMTP; protocol smtp; starttls on; }
    server { listen 127.0.0.1:SUBMIT ssl; protocol smtp; }
"""
STARTTLS = {"IMAP": b"a STARTTLS", "POP3": b"STLS", "SMTP": b"STARTTLS"}


def names_of(tls: ssl.SSLSocket) -> list[str]:
    found = tls.getpeercert()
    assert found is not None
    pairs = found["subjectAltName"]
    assert isinstance(pairs, tuple)
    return [str(pair[1]) for pair in pairs]


def greeting(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        data = connection.recv(4096)
        assert data, received
        received += data
    return received


@contextmanager
def connected(
    port: int, client: ssl.SSLContext, name: str | None, starttls: bytes | None
) -> Iterator[tuple[ssl.SSLSocket, bytes]]:
    """A connection in TLS, and the greeting."""
    plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
    hello = b""
    if starttls is not None:
        hello = greeting(plain)
        if starttls == b"STARTTLS":
            plain.sendall(b"EHLO me\r\n")
            while not greeting(plain).splitlines()[-1].startswith(b"250 "):
                pass
        plain.sendall(starttls + b"\r\n")
        greeting(plain)
    try:
        tls = client.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise
    with tls:
        if starttls is None:
            hello = greeting(tls)
        yield tls, hello


@pytest.mark.proves("auth_http_pass_server_name")
def test_every_protocol_shows_the_certificate_of_the_name(site: Site) -> None:
    issuer = Issuer(site.directory / "certs")
    for name in NAMES:
        issuer.put(name)
    ports = {
        name: free_port()
        for name in ("IMAP", "SECURE", "POP3", "STLS", "SMTP", "SUBMIT")
    }
    client = issuer.client()
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        values: dict[str, object] = {**ports, "CERTS": issuer.directory}
        site.configure(SERVERS, "", AUTH=auth.port, **values)
        site.start()
        for protocol, port in ports.items():
            greetings = set()
            for name in NAMES:
                starttls = STARTTLS.get(protocol)
                with connected(port, client, name, starttls) as (tls, hello):
                    assert names_of(tls) == [name]
                    greetings.add(hello if protocol[0] != "P" else hello[:4])
            assert len(greetings) == 1 or protocol == "STLS", greetings
            for unknown in ("Unknown.example.org", None):
                with (
                    pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
                    connected(port, client, unknown, STARTTLS.get(protocol)),
                ):
                    pass
        with connected(ports["SECURE"], client, NAMES[3], None) as (tls, _):
            tls.sendall(b"a LOGIN u p\r\n")
            assert greeting(tls).startswith(b"a OK")
        assert auth.requests[0].headers["Auth-SSL-Server-Name"] == NAMES[3]
        site.wait_for_line("client named no server", count=6)
    said = "\n".join(site.log("info"))
    for event in (
        'client asked for "Unknown.example.org", which has no certificate',
        "client named no server",
    ):
        assert f" {event} while SSL handshaking, client: 127.0.0.1" in said
        assert f" {event} while in starttls state, client: 127.0.0.1" in said
    site.no_complaints()


WATCHED = """
    ssl_certificate_directory CERTS;
    server { listen 127.0.0.1:PORT; protocol imap; starttls on; }
"""


def shown_by(site: Site, client: ssl.SSLContext, name: str) -> bytes:
    with connected(site.port, client, name, b"a STARTTLS") as (tls, _):
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return der


def test_a_renewal_reaches_all_workers_and_ends_no_session(site: Site) -> None:
    issuer = Issuer(site.directory / "certs")
    issuer.put("a.example.org")
    client = issuer.client()
    with (
        FakeImap() as backend,
        FakeAuth(granted(backend.port)) as auth,
        ExitStack() as stack,
    ):
        site.configure(
            WATCHED,
            main="ssl_certificate_watch 10s; worker_processes 2;",
            AUTH=auth.port,
            CERTS=issuer.directory,
        )
        master = site.start()
        workers = site.workers
        sessions = [stack.enter_context(Client(site.port)) for _ in range(50)]
        for session in sessions:
            assert session.log_in().startswith(b"a OK")
        descriptors = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in workers}
        before = shown_by(site, client, "a.example.org")
        leaf = issuer.put("a.example.org", "b.example.org", file="a.example.org")
        renewed = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        site.wait_for_line(
            f'certificate "{issuer.directory}/a.example.org.crt" was renewed:'
            " a.example.org, b.example.org, until 3000-01-01"
        )
        site.wait_for(
            lambda: all(
                shown_by(site, client, name) == renewed
                for name in ("a.example.org", "b.example.org")
                for _ in range(20)
            ),
            "the new certificate in all workers",
        )
        assert renewed != before
        for session in sessions:
            session.ping()
        assert site.workers == workers
        site.wait_for(
            lambda: all(
                len(os.listdir(f"/proc/{pid}/fd")) <= descriptors[pid]
                for pid in workers
            ),
            "all descriptors closed",
        )
        for pid in workers:  # one that is born later has it, too
            os.kill(pid, signal.SIGKILL)
        site.wait_for(lambda: len(set(site.workers) - set(workers)) == 2, "new workers")
        assert shown_by(site, client, "b.example.org") == renewed
        stack.close()
        leaf = issuer.put("a.example.org")
        site.signal(signal.SIGHUP)
        site.wait_for_line("gracefully shutting down", count=2)
        renewed = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        site.wait_for(
            lambda: shown_by(site, client, "a.example.org") == renewed,
            "the certificate of the reload",
        )
        assert children(master)
    assert not [line for line in site.log("error") if "certificate" in line]


def test_json_of_a_configuration_has_no_keys(site: Site) -> None:
    issuer = Issuer(site.directory / "certs")
    issuer.put("a.example.org")
    site.configure(WATCHED, CERTS=issuer.directory)
    done = site.call("--dump-json")
    found = json.loads(done.stdout)
    (server,) = found["servers"]
    value = server["ssl"]["ssl_certificate_directory"]["value"]
    assert value == [str(issuer.directory)]
    assert "PRIVATE" not in done.stdout
