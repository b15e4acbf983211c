"""The demo's own servers, and what it writes."""

import base64
import errno
import fcntl
import os
import pty
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import (
    MemoryReceiveStream,
    MemorySendStream,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from mailproxy.demo import main
from mailproxy.demo.auth import auth_session
from mailproxy.demo.check import check
from mailproxy.demo.faults import failed, refusal
from mailproxy.demo.mailbox import Mailbox, Session, TrioStream
from mailproxy.demo.servers import Machine, mail_servers
from mailproxy.demo.site import free_port, make_certificates, read_site
from mailproxy.errors import BackendError
from mailproxy.net.lines import LineStream
from tests.processes import PATIENCE, Process, need_python_for_all, wait_for

MemoryStream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


def line_stream(stream: MemoryStream) -> LineStream:
    """What the demo's servers read from."""
    return LineStream(TrioStream(stream), 65536, BackendError)


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


async def test_auth_server_names_no_mail_server_that_the_proxy_knows() -> None:
    request = (
        b"GET /auth HTTP/1.0\r\nAuth-User: alice\r\nAuth-Pass: wonderland\r\n"
        b"Auth-Protocol: imap\r\n\r\n"
    )
    heard = await talk(lambda client: auth_session(client, {"imap": None}), request)
    assert b"Auth-Status: OK\r\n" in heard
    assert b"Auth-Server" not in heard


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def test_machine_stops_and_starts_on_the_same_ports() -> None:
    machine = Machine({"imap": 0, "pop3": 0}, Mailbox(), {})
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.run)
        ports = dict(machine.ports)
        client = await trio.open_tcp_stream("127.0.0.1", ports["imap"])
        assert (await client.receive_some()).startswith(b"* OK")
        for running in (False, True, False, True):
            machine.press()
            await wait_all_tasks_blocked()
            assert machine.running is running
            assert [answers(port) for port in ports.values()] == [running] * 2
        async with client:
            assert await client.receive_some() == b""
        assert machine.ports == ports
        nursery.cancel_scope.cancel()


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
def running_demo(directory: Path, stdin: int = subprocess.DEVNULL) -> Iterator[Process]:
    """The demo as a person runs it, in that directory."""
    here = ["env", "-C", str(directory)]
    command = [*here, sys.executable, "-m", "mailproxy", "demo"]
    process = Process(command, directory, stdin=stdin)
    try:
        yield process
    finally:
        process.popen.send_signal(signal.SIGINT)
        process.popen.wait(PATIENCE)


def test_demo_shows_a_site_and_uses_what_the_person_has_changed(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "What follows is")
    first = demo.output.read_text()
    assert demo.popen.returncode == 0
    assert "curl --cacert" in first
    ports = re.findall(r"^  (IMAP [\d.:]+ TLS)$", first, re.MULTILINE)
    assert ports

    file = tmp_path / "demo" / "nginx.conf"
    file.write_text(file.read_text().replace("starttls on", "starttls off"))
    demo.output.unlink()
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "What follows is")
    second = demo.output.read_text()
    assert ports == re.findall(r"^  (IMAP [\d.:]+ TLS)$", second, re.MULTILINE)
    assert "STARTTLS" not in second
    assert "--ssl-reqd" not in second


def test_logins_go_on_when_a_key_stops_one_of_two_machines(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with running_demo(tmp_path, reading) as demo:
            demo.wait_for_text(demo.output, "What follows is")
            for key, what in ((b"1", "stop"), (b"1", "start"), (b"2", "stop")):
                os.write(writing, key)
                said = f"mail servers {key.decode()} {what}"
                demo.wait_for_text(demo.output, said)
                assert logins_work(tmp_path / "demo") == [None] * 3
            os.write(writing, b"x1")  # now both are gone
            wait_for(
                lambda: None not in logins_work(tmp_path / "demo"),
                "logins to fail",
                demo,
            )
        text = demo.output.read_text()
    finally:
        os.close(reading)
        os.close(writing)
    assert "Press 1" in text
    assert "connect() failed (111: Connection refused)" in text


def logins_work(directory: Path) -> list[str | None]:
    """Log in by each protocol over TLS; what failed, or None."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    site = read_site(directory)
    return [check(door, context) for door in site.doors if door.security == "TLS"]


def test_no_keys_are_told_of_where_none_can_be_read(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "What follows is")
    assert "Press" not in demo.output.read_text()


def test_terminal_is_left_as_it_was(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    command = [sys.executable, "-m", "mailproxy", "demo", "--directory", "demo"]
    # A session of its own, so that the terminal is its controlling one.
    demo = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        read_until(leader, b"What follows is")
        os.write(leader, b"2")
        read_until(leader, b"mail servers 2 stop")
        assert termios.tcgetattr(terminal) != before
        os.write(leader, b"\x03")  # Ctrl-C
        assert demo.wait(PATIENCE) == 0
        assert termios.tcgetattr(terminal) == before
    finally:
        demo.kill()
        demo.wait()
        os.close(leader)
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> None:
    """Read what a program writes to its terminal, up to `wanted`."""
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], PATIENCE)
        assert ready, seen
        seen += os.read(terminal, 4096)


def test_demo_says_that_a_changed_configuration_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "nginx.conf").write_text("events {}\nmial {}\n")
    with running_demo(tmp_path) as demo:
        demo.popen.wait(PATIENCE)
    assert demo.popen.returncode == 1
    said = demo.output.read_text()
    assert 'unknown directive "mial"' in said
    assert "the proxy did not start" in said


def test_demo_shows_the_end_of_a_log_in_a_file_when_the_proxy_does_not_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "proxy.log").write_text("of yesterday\n")
    (tmp_path / "demo" / "nginx.conf").write_text(
        "pid mailproxy.pid; error_log proxy.log info; worker_processes 1; events {}\n"
        "working_directory /nonexistent;\n"
    )
    with running_demo(tmp_path) as demo:
        demo.popen.wait(PATIENCE)
    said = demo.output.read_text().partition("the proxy did not start\n")[2]
    assert 'chdir("/nonexistent") failed (2: No such file or directory)' in said
    assert "of yesterday" not in said
    assert demo.popen.returncode == 1


def test_demo_takes_a_temporary_directory_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file, which also root cannot write in")
    with running_demo(tmp_path) as demo:
        demo.wait_for_text(demo.output, "What follows is")
    said = demo.output.read_text()
    assert '"demo" cannot be written (File exists)' in said
    place = re.search(r"The configuration is (.*)/nginx.conf", said)
    assert place is not None
    assert Path(place[1]).is_absolute()
    assert not Path(place[1]).exists()
    assert demo.popen.returncode == 0


def test_demo_says_in_one_sentence_what_the_system_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--directory", str(tmp_path / "file" / "demo")]) == 1
    assert capfd.readouterr() == (
        "",
        f'mailproxy demo: "{tmp_path}/file/demo" (20: Not a directory)\n'
        "  = name a directory that can be written: --directory DIRECTORY\n",
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x/ca.pem"),
            'mailproxy demo: "x/ca.pem" (28: No space left on device)\n'
            "  = make room there, or name another place: --directory DIRECTORY\n",
        ),
        (
            OSError(errno.EADDRINUSE, "Address already in use"),
            "mailproxy demo: the demo failed (98: Address already in use)\n"
            "  = it needs free ports on 127.0.0.1\n",
        ),
        *(
            (
                OSError(number, os.strerror(number), *name),
                f"mailproxy demo: {what} ({number}: {os.strerror(number)})\n"
                f"  = {remedy}\n",
            )
            for name, what in (((), "the demo failed"), (("x",), '"x"'))
            for number, remedy in (
                (errno.EMFILE, "let it have more open files: ulimit -n 1024"),
                (
                    errno.ENFILE,
                    "let the system have more open files: sysctl fs.file-max",
                ),
                (
                    errno.EAGAIN,
                    "let its user have more processes and threads: ulimit -u, or the"
                    " container's limit",
                ),
                (
                    errno.ENOMEM,
                    "it needs more memory: ulimit -v, or the container's limit",
                ),
                (errno.EFBIG, "let it write larger files: ulimit -f"),
            )
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "mailproxy demo: the demo failed (28: No space left on device)\n"
            "  = make room where it writes: --directory DIRECTORY, or its output\n",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            "mailproxy demo: the demo failed (5: Input/output error)\n"
            "  = it needs a directory to write in, and free ports on 127.0.0.1\n",
        ),
        (
            OSError("there is no free port on the loopback"),
            "mailproxy demo: the demo failed (there is no free port on the loopback)\n"
            "  = it needs free ports on 127.0.0.1\n",
        ),
    ],
)
def test_errors_of_the_system_come_with_a_remedy(
    error: OSError, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert failed(error) == 1
    assert capfd.readouterr() == ("", said)


def limited(kind: int, limit: int, *words: str) -> tuple[int, str, str]:
    """Run `mailproxy demo` with a limit of the system: exit status, output, errors."""
    # Limits of processes are not for root, and count all those of a user.
    nobody = None
    if kind == resource.RLIMIT_NPROC and os.geteuid() == 0:
        need_python_for_all()
        nobody = 64321
    done = subprocess.run(
        [sys.executable, "-m", "mailproxy", "demo", *words],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
        check=False,
        user=nobody,
        group=nobody,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 14, 16])
def test_too_few_open_files_are_one_sentence(limit: int) -> None:
    """Wherever they run out, also where a server accepts a client."""
    status, output, errors = limited(resource.RLIMIT_NOFILE, limit, "--check")
    assert (status, output) == (1, "")
    assert re.fullmatch(
        r"mailproxy demo: .* \(24: Too many open files\)\n"
        r"  = let it have more open files: ulimit -n 1024\n",
        errors,
    )


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_too_few_processes_and_threads_are_one_sentence(limit: int) -> None:
    assert limited(resource.RLIMIT_NPROC, limit, "--check") == (
        1,
        "",
        "mailproxy demo: the demo failed (11: Resource temporarily unavailable)\n"
        "  = let its user have more processes and threads: ulimit -u, or the"
        " container's limit\n",
    )


def test_what_is_not_of_the_system_is_a_bug() -> None:
    full = OSError(errno.EMFILE, "Too many open files")
    gone = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert refusal(gone) is gone
    assert refusal(ExceptionGroup("", [gone, ExceptionGroup("", [full])])) is full
    assert refusal(ExceptionGroup("", [full, RuntimeError("can't start")])) is None
    assert refusal(RuntimeError("can't start new thread")) is None


def test_demo_ends_in_silence_when_nobody_reads_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mailproxy", "demo", "--check"]
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_wrong_arguments_of_the_demo_are_one_sentence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--chekc"])
    assert caught.value.code == 1
    assert capfd.readouterr() == (
        "",
        "mailproxy demo: unrecognized arguments: --chekc\n"
        '  = see "mailproxy demo --help"\n',
    )
