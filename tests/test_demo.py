"""The demo's own servers, and what it writes."""

import base64
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import (
    MemoryReceiveStream,
    MemorySendStream,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from mailproxy.demo import mail_servers, main
from mailproxy.demo.auth import auth_session
from mailproxy.demo.mailbox import Mailbox, Session
from mailproxy.demo.site import free_port, make_certificates
from mailproxy.errors import BackendError
from mailproxy.net.lines import LineStream, Stream
from tests.processes import PATIENCE, Process

MemoryStream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


def line_stream(stream: MemoryStream) -> LineStream:
    """What the demo's servers read from."""
    # The type of memory streams allows a bytearray; what they give is bytes.
    return LineStream(cast(Stream, stream), 65536, BackendError)


async def talk(session: Session, said: bytes) -> bytes:
    """Everything that a session answers to what is sent at once; it must end by itself."""
    client, server = memory_stream_pair()
    await client.send_all(said)
    await session(line_stream(server))
    await server.aclose()
    return b"".join([data async for data in client])


async def letters(mailbox: Mailbox) -> list[bytes]:
    """The letters that POP3 shows."""
    heard = await talk(
        mail_servers(mailbox)["pop3"],
        b"USER alice\r\nPASS wonderland\r\n"
        + b"".join(
            b"RETR %d\r\n" % (number + 1) for number in range(len(mailbox.messages))
        )
        + b"QUIT\r\n",
    )
    return heard.split(b"+OK\r\n")[2:]


@pytest.mark.parametrize(
    "login",
    [
        b"alice wonderland",
        b'"alice" "wonderland"',
        b"{5}\r\nalice {10}\r\nwonderland",
        b"{5+}\r\nalice {10+}\r\nwonderland",
    ],
)
async def test_imap_takes_a_login_in_every_form(login: bytes) -> None:
    said = b"a LOGIN " + login + b"\r\nb LOGOUT\r\n"
    heard = await talk(mail_servers(Mailbox())["imap"], said)
    assert b"a OK LOGIN\r\n" in heard
    assert heard.count(b"+ go on\r\n") == login.count(b"}\r\n") - login.count(b"+}")


async def test_imap_refuses_a_wrong_password_and_what_needs_a_login() -> None:
    said = b"a LOGIN alice oops\r\nb SELECT INBOX\r\nc LOGOUT\r\n"
    heard = await talk(mail_servers(Mailbox())["imap"], said)
    assert b"a NO wrong password\r\nb BAD log in first\r\n* BYE" in heard


async def test_imap_shows_letters_in_parts() -> None:
    heard = await talk(
        mail_servers(Mailbox())["imap"],
        b"a LOGIN alice wonderland\r\nb SELECT INBOX\r\n"
        b"c FETCH 1 (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])\r\n"
        b"d UID FETCH 2:* (FLAGS BODY[TEXT]<0.2>)\r\n"
        b"e STORE 1 +FLAGS (\\Deleted)\r\nf SEARCH UNSEEN\r\ng EXPUNGE\r\nh LOGOUT\r\n",
    )
    assert b"* 2 EXISTS\r\n" in heard
    field = b"Subject: Welcome\r\n\r\n"
    assert (
        b"* 1 FETCH (UID 1 BODY[HEADER.FIELDS (SUBJECT)] {%d}\r\n%s)"
        % (len(field), field)
        in heard
    )
    assert b"* 2 FETCH (UID 2 FLAGS () BODY[TEXT]<0> {2}\r\n1.)\r\nd OK" in heard
    assert b"* 1 FETCH (FLAGS (\\Deleted))\r\ne OK" in heard
    assert b"* SEARCH 1\r\nf OK" in heard
    assert b"* 1 EXPUNGE\r\ng OK" in heard


async def test_imap_idle_tells_of_a_letter_that_smtp_took() -> None:
    mailbox = Mailbox()
    servers = mail_servers(mailbox)
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(servers["imap"], line_stream(server))
        await client.send_all(
            b"a LOGIN alice wonderland\r\nb SELECT INBOX\r\nc IDLE\r\n"
        )
        await wait_all_tasks_blocked()
        heard = await talk(
            servers["smtp"],
            b"EHLO x\r\nXCLIENT ADDR=127.0.0.1 LOGIN=alice\r\nEHLO x\r\n"
            b"AUTH PLAIN " + base64.b64encode(b"\0alice\0wonderland") + b"\r\n"
            b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
            b"DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n",
        )
        assert b"235 " in heard
        await wait_all_tasks_blocked()
        assert b"+ idling\r\n* 3 EXISTS\r\n" in await client.receive_some()
        await client.send_all(b"DONE\r\nd LOGOUT\r\n")
    assert (await letters(mailbox))[
        2
    ] == b"Subject: x\r\n\r\n..dot\r\n.\r\n+OK see you\r\n"


async def test_pop3_deletes_at_quit() -> None:
    mailbox = Mailbox()
    heard = await talk(
        mail_servers(mailbox)["pop3"],
        b"STAT\r\nUSER alice\r\nPASS oops\r\nPASS wonderland\r\n"
        b"UIDL\r\nDELE 1\r\nLIST 1\r\nUIDL 2\r\nTOP 2 1\r\nQUIT\r\n",
    )
    assert b"-ERR log in first\r\n+OK\r\n-ERR wrong password\r\n" in heard
    assert (
        b"+OK\r\n1 1\r\n2 2\r\n.\r\n+OK\r\n-ERR no such letter or command\r\n+OK 2 2\r\n"
        in heard
    )
    assert [message.uid for message in mailbox.messages] == [2]


@pytest.mark.parametrize(
    ("credentials", "wanted"),
    [
        (b"Auth-User: alice\r\nAuth-Pass: wonderland\r\n", b"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 7\r\n"),
        (b"Auth-User: al%69ce\r\nAuth-Pass: wonderland\r\n", b"Auth-Status: OK\r\n"),
        (b"Auth-User: alice\r\nAuth-Pass: oops\r\n", b"Auth-Status: Invalid login or password\r\nAuth-Wait: 1\r\n"),
        (b"Auth-User: \r\nAuth-Pass: \r\n", b"Auth-Status: Invalid login or password\r\n"),
    ],
)  # fmt: skip
async def test_auth_server_decides(credentials: bytes, wanted: bytes) -> None:
    request = (
        b"GET /auth HTTP/1.0\r\nHost: x\r\n"
        + credentials
        + b"Auth-Protocol: imap\r\n\r\n"
    )
    heard = await talk(lambda client: auth_session(client, {"imap": 7}), request)
    assert heard.startswith(b"HTTP/1.0 200 OK\r\n")
    assert wanted in heard
    assert b"Connection: close\r\n" in heard


def test_a_port_that_is_taken_is_not_chosen() -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        port, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        assert free_port([port, other]) == other


def test_certificates_are_made_once(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    before = (tmp_path / "server.pem").read_bytes()
    make_certificates(tmp_path)
    assert (tmp_path / "server.pem").read_bytes() == before


def test_check_logs_in_through_every_port(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+:\d+", "", line) for line in lines] == [
        "IMAP  STARTTLS: ok",
        "IMAP  TLS: ok",
        "POP3  STARTTLS: ok",
        "POP3  TLS: ok",
        "SMTP  STARTTLS: ok",
        "SMTP  TLS: ok",
    ]


@contextmanager
def running_demo(directory: Path) -> Iterator[Process]:
    """The demo as a person runs it."""
    command = [
        sys.executable,
        "-m",
        "mailproxy",
        "demo",
        "--directory",
        str(directory / "demo"),
    ]
    process = Process(command, directory)
    try:
        yield process
    finally:
        process.popen.send_signal(signal.SIGINT)
        process.popen.wait(PATIENCE)


def test_demo_shows_a_site_and_uses_what_the_person_has_changed(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "client closed connection")
    first = demo.output.read_text()
    assert demo.popen.returncode == 0
    assert "curl --cacert" in first
    ports = re.findall(r"^  (IMAP [\d.:]+ TLS)$", first, re.MULTILINE)
    assert ports

    file = tmp_path / "demo" / "nginx.conf"
    file.write_text(file.read_text().replace("starttls on", "starttls off"))
    demo.output.unlink()
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "client closed connection")
    second = demo.output.read_text()
    assert ports == re.findall(r"^  (IMAP [\d.:]+ TLS)$", second, re.MULTILINE)
    assert "STARTTLS" not in second
    assert "--ssl-reqd" not in second


def test_demo_says_that_a_changed_configuration_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "nginx.conf").write_text("events {}\nmial {}\n")
    with running_demo(tmp_path) as demo:
        demo.popen.wait(PATIENCE)
    assert demo.popen.returncode == 1
    said = demo.output.read_text()
    assert 'unknown directive "mial"' in said
    assert "the proxy did not start" in said


def test_demo_repeats_the_last_lines_of_a_proxy_that_did_not_start(
    tmp_path: Path,
) -> None:
    """Below what it says itself: the rest may have gone elsewhere, or scrolled away."""
    (tmp_path / "nginx.conf").write_text("events {}\nmail { timout 3; }\n")
    command = [sys.executable, "-m", "mailproxy", "demo", "--directory", str(tmp_path)]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ran.returncode == 1
    first, *lines = ran.stdout.splitlines()
    assert first == "mailproxy demo: the proxy did not start"
    assert lines[0].endswith(f'unknown directive "timout" in {tmp_path}/nginx.conf:2')
    assert lines[1:3] == [
        "      2 | mail { timout 3; }",
        '        |        ^^^^^^ did you mean "timeout"?',
    ]
    assert [line.removeprefix("  ") for line in lines[:3]] == ran.stderr.splitlines()
