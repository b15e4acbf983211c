"""What a configuration names outside is read with limits, and can be replayed."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mailproxy import outside
from mailproxy.log import ErrorLog, open_logs
from mailproxy.log.directive import File
from mailproxy.outside import FileError
from mailproxy.process import pidfile
from mailproxy.process.configuration import ConfigErrors, load
from mailproxy.process.options import Options
from mailproxy.process.pidfile import PidError
from tests.processes import load_modules
from tests.tls import Certificates

TIMED_OUT = "read() failed (110: Connection timed out)"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "MAX_READ_TIME", 0.05)


def written(path: Path, *pieces: bytes) -> threading.Thread:
    """Write to a FIFO, as soon as it is opened for reading."""

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


class TestFile:
    def test_is_read_to_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        content = os.urandom(200_000)
        path.write_bytes(content)
        assert outside.read(str(path), 200_000) == content
        assert outside.begin(str(path), 70_000) == content[:70_000]

    def test_that_is_larger_than_it_may_be(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"12345")
        with pytest.raises(FileError) as caught:
            outside.read(str(path), 4)
        assert (caught.value.call, caught.value.errno) == ("read", errno.EFBIG)
        with pytest.raises(FileError) as caught:
            outside.read_sized(str(path), 4)
        assert (caught.value.call, caught.value.errno) == ("read", errno.EFBIG)

    def test_without_end(self) -> None:
        with pytest.raises(FileError) as caught:
            outside.read("/dev/zero", 100_000)
        assert caught.value.errno == errno.EFBIG
        assert outside.begin("/dev/zero", 81) == bytes(81)
        assert outside.read_sized("/dev/zero", 5) == (b"", 0)

    def test_that_is_missing(self, tmp_path: Path) -> None:
        for read in (outside.read, outside.begin, outside.read_sized):
            with pytest.raises(FileError) as caught:
                read(str(tmp_path / "x"), 1)
            assert (caught.value.call, caught.value.errno) == ("open", errno.ENOENT)

    def test_that_is_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(FileError) as caught:
            outside.read(str(tmp_path), 1)
        assert (caught.value.call, caught.value.errno) == ("read", errno.EISDIR)

    def test_for_others_to_read(self, tmp_path: Path, fifo: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"12345")
        outside.check_regular(str(path), 5)
        for wrong, number in ((path, errno.EFBIG), (fifo, errno.EINVAL)):
            with pytest.raises(FileError) as caught:
                outside.check_regular(str(wrong), 4)
            assert caught.value.errno == number


class TestFifo:
    def test_is_read_until_its_writer_has_gone(self, fifo: Path) -> None:
        thread = written(fifo, b"one ", b"two ", bytes(100_000))
        assert outside.read(str(fifo), 100_008) == b"one two " + bytes(100_000)
        thread.join()

    @pytest.mark.usefixtures("impatient")
    def test_without_a_writer(self, fifo: Path) -> None:
        with pytest.raises(FileError) as caught:
            outside.read(str(fifo), 1)
        assert (caught.value.call, caught.value.errno) == ("read", errno.ETIMEDOUT)

    @pytest.mark.usefixtures("impatient")
    def test_whose_writer_falls_silent(self, fifo: Path) -> None:
        keeping = os.open(fifo, os.O_RDWR)
        os.write(keeping, b"some")
        with pytest.raises(FileError) as caught:
            outside.read(str(fifo), 100)
        assert caught.value.errno == errno.ETIMEDOUT
        os.close(keeping)

    def test_pipe_of_the_shell(self) -> None:
        """As in ``ssl_password_file /dev/fd/63``, which is ``<(pass show mail)``."""
        reading, writing = os.pipe()
        os.write(writing, b"secret\n")
        os.close(writing)
        assert outside.read(f"/dev/fd/{reading}", 100) == b"secret\n"
        os.close(reading)


class TestRecord:
    def test_holds_for_another_process(self, tmp_path: Path, fifo: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"content")
        thread = written(fifo, b"secret")
        with outside.recording() as findings:
            answers = self.ask(path, fifo)
            assert self.ask(path, fifo) == answers, "the FIFO is read once"
        thread.join()
        path.unlink()
        fifo.unlink()
        assert b"secret" not in repr(findings).encode()
        with outside.replaying(pickle.loads(pickle.dumps(findings))):
            assert self.ask(path, fifo) == answers
        assert self.ask(path, fifo) != answers

    def ask(self, path: Path, fifo: Path) -> list[object]:
        return [
            self.attempt(outside.read, str(path), 100),
            self.attempt(outside.begin, str(path), 3),
            self.attempt(outside.read_sized, str(path), 100),
            self.attempt(outside.check_regular, str(path), 100),
            self.attempt(outside.read, str(path), 3),
            self.attempt(outside.read, str(fifo), 100),
            self.attempt(outside.read, "/nowhere", 100),
            self.attempt(outside.matching, os.fsencode(path.parent) + b"/f*"),
            self.attempt(outside.addresses, b"localhost", 0),
            self.attempt(outside.addresses, b"a" * 64, 0),
            self.attempt(outside.account, "root"),
            self.attempt(outside.account, "no such user"),
            self.attempt(outside.group, "root"),
            self.attempt(outside.group, "no such group"),
        ]

    def attempt(self, call: Callable[..., object], *arguments: object) -> object:
        try:
            return call(*arguments)
        except FileError as error:
            return error.call, error.errno, str(error)
        except (OSError, LookupError, ValueError) as error:
            return type(error), error.args

    def test_spares_asking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name is looked up once; the master never asks."""
        asked = []

        def look_up(name: bytes, *_: object) -> object:
            asked.append(name)
            if name == b"dead":
                raise socket.gaierror(socket.EAI_AGAIN, "temporary failure")
            return [(socket.AF_INET, 0, 0, "", ("192.0.2.1", 0))]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with outside.recording() as findings:
            for _ in range(2):
                assert outside.addresses(b"mail", 0) == [(socket.AF_INET, "192.0.2.1")]
                with pytest.raises(socket.gaierror):
                    outside.addresses(b"dead", 0)
        assert asked == [b"mail", b"dead"]
        with outside.replaying(findings):
            assert outside.addresses(b"mail", 0) == [(socket.AF_INET, "192.0.2.1")]
        assert asked == [b"mail", b"dead"]
        outside.addresses(b"mail", 0)
        assert asked == [b"mail", b"dead", b"mail"], "without a record they are asked"

    def test_is_limited(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outside, "MAX_RECORDED", 10)
        for name in "abc":
            (tmp_path / name).write_bytes(b"12345")
        with outside.recording() as findings:
            for name in "abc":
                assert outside.read(str(tmp_path / name), 5) == b"12345"
        assert findings.octets == 10
        assert len(findings.answers) == 2


class TestConfiguration:
    """Whatever it names, reading it ends."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Certificates:
        return Certificates(tmp_path)

    def complain(self, directory: Path, directives: str, main: str = "") -> list[str]:
        (directory / "nginx.conf").write_text(
            f"""{load_modules()} {main}
            events {{ }}
            mail {{
                ssl_certificate ec.pem; ssl_certificate_key ec.key;
                ssl_verify_client optional_no_ca;
                server {{ listen 127.0.0.1:1143 ssl; protocol imap;
                    auth_http 127.0.0.1:9; {directives} }}
            }}"""
        )
        options = Options(
            prefix=f"{directory}/", conf_file=str(directory / "nginx.conf")
        )
        try:
            load(options)
        except ConfigErrors as errors:
            return [error.text for error in errors.messages if error.level != "warn"]
        return []

    @pytest.fixture(
        params=[
            "ssl_certificate WHAT; ssl_certificate_key ec.key",
            "ssl_certificate ec.pem; ssl_certificate_key WHAT",
            "ssl_client_certificate WHAT",
            "ssl_trusted_certificate WHAT",
            "ssl_crl WHAT",
            "ssl_dhparam WHAT",
            "ssl_password_file WHAT",
            "ssl_session_ticket_key WHAT",
            "ssl_conf_command Certificate WHAT",
            "ssl_conf_command PrivateKey WHAT",
            "ssl_conf_command DHParameters WHAT",
            "resolver conf=WHAT",
        ]
    )
    def directive(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.usefixtures("impatient")
    def test_fifo_without_a_writer(
        self, files: Certificates, tmp_path: Path, fifo: Path, directive: str
    ) -> None:
        (text,) = self.complain(tmp_path, directive.replace("WHAT", str(fifo)) + ";")
        assert f'"{fifo}"' in text
        assert "timed out" in text or "no regular file" in text

    def test_file_without_end(
        self, files: Certificates, tmp_path: Path, directive: str
    ) -> None:
        (text,) = self.complain(tmp_path, directive.replace("WHAT", "/dev/zero") + ";")
        assert '"/dev/zero"' in text
        assert any(
            reason in text
            for reason in ("large", "no regular file", "too long line", "48 or 80")
        )

    def test_certificate_and_key_may_come_through_fifos(
        self, files: Certificates, tmp_path: Path
    ) -> None:
        writers = []
        for name in ("ec.pem", "ec.key"):
            path = tmp_path / name
            content = path.read_bytes()
            path.unlink()
            os.mkfifo(path)
            writers.append(written(path, content))
        assert self.complain(tmp_path, "") == []
        for writer in writers:
            writer.join()

    def test_file_of_passwords_that_is_too_long(
        self, files: Certificates, tmp_path: Path
    ) -> None:
        path = tmp_path / "passwords"
        path.write_bytes(b"password\n" * 200_000)
        (text,) = self.complain(tmp_path, f"ssl_password_file {path};")
        assert text.startswith(f'read() "{path}" failed (27: File too large) in ')

    def test_include_of_a_fifo_is_empty(
        self, files: Certificates, tmp_path: Path, fifo: Path
    ) -> None:
        assert self.complain(tmp_path, "", main=f"include {fifo};") == []


class TestWritten:
    """A FIFO is no place for a pid file; for a log it is if somebody reads it."""

    def test_pid_file(self, fifo: Path) -> None:
        with pytest.raises(PidError) as caught:
            pidfile.write(str(fifo), 1)
        assert caught.value.error is not None
        assert caught.value.error.errno == errno.ENXIO

    @pytest.mark.usefixtures("impatient")
    def test_pid_file_of_which_a_signal_is_to_come(self, fifo: Path) -> None:
        with pytest.raises(PidError, match="read"):
            pidfile.read(str(fifo))

    def test_log(self, fifo: Path) -> None:
        main = [ErrorLog(File(str(fifo)))]
        with pytest.raises(OSError, match="No such device or address"):
            open_logs(main, default="")
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        logs = open_logs(main, default="")
        logs.main.alert("written")
        assert os.read(reading, 100).endswith(b" written\n")
        logs.close()
        os.close(reading)
