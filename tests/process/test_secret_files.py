"""Files of secrets: opened by the master, read by workers, and by nobody else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGTERM

import pytest

from mailproxy import outside
from mailproxy.conf.secret_files import SecretFile
from mailproxy.process.secret_files import SecretError, SecretFiles
from tests.fakes import FakeAuth, FakeImap, granted
from tests.process.site import Client, Site
from tests.process.test_alone import open_files

SECRET = b"the-master-s-own-secret"
NEW_SECRET = b"another-secret-of-the-master"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


# The files


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"abc", b"abc"),
        (b"abc\n", b"abc"),
        (b"abc\r\nmore\n", b"abc"),
        (b" a b \n", b" a b "),
        (b"\xff\x01", b"\xff\x01"),
    ],
)
def test_first_line_is_the_secret(content: bytes, value: bytes, secret: Path) -> None:
    secret.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    files = SecretFiles.open([SecretFile(str(secret)), SecretFile(str(secret))])
    assert files.take() == {str(secret): value}
    assert len(os.listdir("/proc/self/fd")) == before
    assert files.take() == {}


@pytest.mark.parametrize("content", [b"\n", b"\r\n", b"\nabc", b"a\0b\n", b"a\rb\n"])
def test_what_is_no_secret(content: bytes, secret: Path) -> None:
    secret.write_bytes(content)
    before = len(os.listdir("/proc/self/fd"))
    files = SecretFiles.open([SecretFile(str(secret))])
    with pytest.raises(SecretError, match="there is no secret in the first line of"):
        files.take()
    assert len(os.listdir("/proc/self/fd")) == before


def test_all_are_closed_if_one_cannot_be_opened(secret: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(4):  # they are opened in any order
        with pytest.raises(SecretError, match=r"open\(\) .* failed"):
            SecretFiles.open(
                [SecretFile(str(secret)), SecretFile(str(tmp_path / "none"))]
            )
    secret.chmod(0o644)
    with pytest.raises(SecretError, match="is readable by others"):
        SecretFiles.open([SecretFile(str(secret))])
    assert len(os.listdir("/proc/self/fd")) == before


def test_content_is_in_no_record_of_a_load(secret: Path) -> None:
    with outside.recording() as findings:
        outside.check_secret(str(secret), 100)
        secret.chmod(0o644)
        outside.check_secret(str(secret), 100)  # as it was
    assert SECRET.decode() not in repr(findings.answers)
    with outside.recording():
        for _ in range(2):
            with pytest.raises(outside.UnfitSecretError):
                outside.check_secret(str(secret), 100)


# Processes


@pytest.fixture
def mail() -> Iterator[tuple[FakeAuth, FakeImap]]:
    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        yield auth, backend


def configure(site: Site, auth: FakeAuth, secret: Path, main: str = "") -> None:
    site.configure(
        f"proxy_master_user admin password_file={secret} separator=*;"
        "server { listen 127.0.0.1:PORT; protocol imap; }",
        main=main,
        AUTH=auth.port,
    )


def log_in(site: Site, backend: FakeImap) -> bytes:
    """What the backend is told."""
    with Client(site.port) as client:
        assert client.log_in().startswith(b"a OK")
        client.ping()
        told = backend.lines.get()
        assert backend.lines.get() == b"PING"
    return told


def memory_has(pid: int, text: bytes) -> bool:
    """Whether a text is in the writable memory of a process."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
            memory.seek(int(start, 16))
            try:
                if text in memory.read(int(end, 16) - int(start, 16)):
                    return True
            except OSError:  # the kernel's own pages
                continue
    return False


@pytest.mark.parametrize("main", ["worker_processes 1;", "master_process off;"])
def test_workers_know_the_secret(
    main: str, site: Site, mail: tuple[FakeAuth, FakeImap], secret: Path
) -> None:
    auth, backend = mail
    configure(site, auth, secret, main)
    site.start()
    assert log_in(site, backend) == b'a LOGIN "user*admin" "%s"' % SECRET
    secret.write_bytes(NEW_SECRET)
    site.forget_log()
    site.signal(SIGHUP)
    site.wait_for_line('using the "epoll" event method')
    site.wait_for(
        lambda: log_in(site, backend).endswith(b'"%s"' % NEW_SECRET), "the new secret"
    )
    assert SECRET.decode() not in site.log_path.read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may look into processes")
def test_master_does_not_know_it(
    site: Site, mail: tuple[FakeAuth, FakeImap], secret: Path
) -> None:
    auth, backend = mail
    configure(site, auth, secret, "worker_processes 1; user nobody nogroup;")
    master = site.start()
    assert log_in(site, backend).endswith(b'"%s"' % SECRET)
    (worker,) = site.workers
    assert memory_has(worker, SECRET)
    assert not memory_has(master, SECRET)
    assert open_files(worker, secret) == 0
    assert open_files(master, secret) == 1
    for count in range(1, 4):
        site.forget_log()
        site.signal(SIGHUP)
        site.wait_for_line("exited with code 0")
        assert log_in(site, backend).endswith(b'"%s"' % SECRET), count
    site.wait_for(lambda: open_files(master, secret) == 1, "the old ones closed")
    assert not memory_has(master, SECRET)
    site.no_complaints()


def test_worker_that_is_replaced_can_read_it(
    site: Site, mail: tuple[FakeAuth, FakeImap], secret: Path
) -> None:
    """Even if the file is gone: the master has it open."""
    auth, backend = mail
    configure(site, auth, secret, "worker_processes 1;")
    site.start()
    secret.unlink()
    (worker,) = site.workers
    site.signal(SIGTERM, worker)
    site.wait_for(lambda: site.workers not in ([worker], []), "another worker")
    assert log_in(site, backend).endswith(b'"%s"' % SECRET)


@pytest.mark.parametrize("main", ["worker_processes 1;", "master_process off;"])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_reload_with_a_bad_file_changes_nothing(
    main: str, mode: int, site: Site, mail: tuple[FakeAuth, FakeImap], secret: Path
) -> None:
    """A file that others may read, or one with no secret in it."""
    auth, backend = mail
    configure(site, auth, secret, main)
    pid = site.start()
    secret.write_bytes(b"\n" if mode == 0o600 else NEW_SECRET)
    secret.chmod(mode)
    site.forget_log()
    site.signal(SIGHUP)
    what = "there is no secret" if mode == 0o600 else "is readable by others"
    site.wait_for_line(what)
    if mode == 0o600 and "off" not in main:
        site.wait_for_line("new worker processes do not start, nothing is changed")
    assert log_in(site, backend).endswith(b'"%s"' % SECRET)
    assert site.pid == pid


@pytest.mark.parametrize("main", ["worker_processes 1;", "master_process off;"])
def test_start_without_a_secret_fails(main: str, site: Site, secret: Path) -> None:
    with FakeAuth(granted(1)) as auth:
        secret.write_bytes(b"\n")
        configure(site, auth, secret, main)
        with site.foreground() as process:
            assert process.wait() != 0
        site.wait_for_line(f'there is no secret in the first line of "{secret}"')
