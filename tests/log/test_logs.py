"""Loggers and where their lines go."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from mailproxy.conf.addresses import Address
from mailproxy.log import (
    DEBUG,
    ERROR,
    INFO,
    NOTICE,
    ErrorLog,
    Logger,
    Logs,
    SessionInfo,
    WorkerAccount,
    open_logs,
    open_startup_log,
)
from mailproxy.log.directive import File, Filter, Memory, Stderr, Syslog
from tests.captured_log import CapturedLog

CONTEXT = SessionInfo(5, "192.0.2.1", 99, "127.0.0.1:143", "in auth state")


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def file(path: Path, level: int = ERROR, **more: object) -> ErrorLog:
    return ErrorLog(File(str(path)), level, **more)  # type: ignore[arg-type]  # kept short


def messages(log: Path | str) -> list[str]:
    """The lines of a log without time and process."""
    text = log.read_text() if isinstance(log, Path) else log
    return [
        line[line.index("[") :].replace(f"{os.getpid()}#{os.getpid()}: ", "")
        for line in text.splitlines()
    ]


class TestLogger:
    def test_each_level_has_its_method(self) -> None:
        captured = CapturedLog()
        log = captured.log
        log.emerg("a")
        log.alert("b")
        log.crit("c")
        log.error("d")
        log.warn("e")
        log.notice("f")
        log.info("g")
        log.debug("h")
        log.log("notice", "i")
        assert captured.events == [
            ("emerg", "a"),
            ("alert", "b"),
            ("crit", "c"),
            ("error", "d"),
            ("warn", "e"),
            ("notice", "f"),
            ("info", "g"),
            ("notice", "i"),
        ]
        assert captured.debug == ["h"]

    def test_levels_beyond_the_wanted_one_do_nothing(self) -> None:
        captured = CapturedLog(NOTICE)
        log = captured.log.bind(context=CONTEXT)
        assert log.level == NOTICE
        log.info("%d", "not even formatted")
        log.debug("x", part="event")
        log.log("info", "x")
        log.client_connected()
        log.notice("x")
        assert [level for level, _ in captured.events] == ["notice"]

    def test_context_is_shown_as_it_is_when_something_happens(self) -> None:
        captured = CapturedLog()
        context = SessionInfo(5, "192.0.2.1", 99, "127.0.0.1:143", "in auth state")
        log = captured.log.bind(context=context)
        log.client_connected()
        context.login = b"tim"
        context.action = None
        log.info("client logged in")
        assert captured.events == [
            ("info", "client 192.0.2.1:99 connected to 127.0.0.1:143"),
            (
                "info",
                'client logged in, client: 192.0.2.1, server: 127.0.0.1:143, login: "tim"',
            ),
        ]

    def test_a_bug_is_an_alert_with_its_traceback_line_by_line(self) -> None:
        captured = CapturedLog()
        log = captured.log.bind(context=CONTEXT)
        try:
            raise RuntimeError("so\nwhat")
        except RuntimeError as error:
            log.exception("session failed", exception=error)
        levels, texts = zip(*captured.events, strict=True)
        assert set(levels) == {"alert"}
        assert texts[0].startswith("session failed while in auth state, client: ")
        assert texts[1] == "Traceback (most recent call last):"
        assert texts[-2:] == ("RuntimeError: so", "what")


class TestSets:
    def test_every_log_of_a_set_takes_what_its_level_admits(
        self, tmp_path: Path
    ) -> None:
        a, b = tmp_path / "a", tmp_path / "b"
        logs = open_logs([file(a), file(b, INFO), file(b)], default="")
        logs.main.error("one")
        logs.main.info("two")
        logs.close()
        assert messages(a) == ["[error] one"]
        assert messages(b) == ["[error] one", "[error] one", "[info] two"]

    def test_a_server_has_its_own_logs_or_the_main_ones(self, tmp_path: Path) -> None:
        main, own = tmp_path / "main", tmp_path / "own"
        logs = open_logs([file(main)], [[file(own, INFO)], []], default="")
        logs.logger([file(own, INFO)]).info("session")
        logs.logger([]).error("other session")
        logs.close()
        assert messages(own) == ["[info] session"]
        assert messages(main) == ["[error] other session"]

    def test_without_a_file_the_default_is_used_at_level_error(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "default"
        logs = open_logs([ErrorLog(Memory(4000), INFO)], default=str(path))
        logs.main.info("one")
        logs.main.error("two")
        (memory,) = logs.memories
        assert [line[-4:] for line in memory.lines()] == [b"one\n", b"two\n"]
        logs.close()
        assert messages(path) == ["[error] two"]

    def test_debug_connection_shows_everything_of_a_client(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "a"
        logs = open_logs([file(path)], default="")
        log = logs.main.bind(context=CONTEXT)
        log.info("quiet")
        log.at_debug().info("loud")
        log.at_debug().debug("louder")
        logs.close()
        assert messages(path) == [
            "[info] *5 loud while in auth state, client: 192.0.2.1,"
            " server: 127.0.0.1:143",
            "[debug] *5 louder",
        ]

    def test_debug_parts_are_chosen_one_by_one(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        directive = file(path, DEBUG, parts=frozenset({"event"}))
        logs = open_logs([directive], default="")
        logs.main.debug("mail")
        logs.main.debug("event", part="event")
        logs.main.info("info")
        logs.close()
        assert messages(path) == ["[debug] event", "[info] info"]

    @pytest.mark.proves("error_log", "format=")
    def test_a_log_can_be_json(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        logs = open_logs([file(path, INFO, format="json")], default="")
        logs.main.bind(context=CONTEXT).info("client logged in")
        logs.close()
        assert json.loads(path.read_text())["mail"]["client"] == "192.0.2.1:99"


@pytest.mark.parametrize(
    ("written", "angie", "client"),
    [
        ("", False, "client: 192.0.2.1, server: 127.0.0.1:143"),
        ("", True, 'client: "192.0.2.1:99", server: "127.0.0.1:143"'),
        ("default", False, 'client: "192.0.2.1:99", server: "127.0.0.1:143"'),
    ],
)
def test_angie_writes_properties_in_quotes(
    tmp_path: Path, written: str, angie: bool, client: str
) -> None:
    path = tmp_path / "a"
    logs = open_logs([file(path, INFO, format=written)], default="", angie=angie)
    logs.main.bind(context=replace(CONTEXT, peer="192.0.2.1:99")).info("hello")
    logs.close()
    assert messages(path) == [f"[info] *5 hello while in auth state, {client}"]


@pytest.mark.parametrize(
    ("kind", "pattern", "matches"),
    [
        ("logline", "login failed: \\", True),
        ("logline", 'server: 127.0.0.1:143, login: "tim"', True),
        ("message", "server:", False),
        ("message", "failed", True),
        ("tag", "srv", True),
        ("tag", "other", False),
        ("login", "im", True),
        ("client", "192.0.2.1:99", True),
        ("upstream", "x", False),
        ("starttls", "true", False),
        ("ssl_server_name", "example.org", True),
        ("request", "x", False),
    ],
)
def test_filter_looks_where_it_is_told(
    tmp_path: Path, kind: str, pattern: str, matches: bool
) -> None:
    path = tmp_path / "a"
    context = SessionInfo(
        5, "192.0.2.1", 99, "127.0.0.1:143", None, login=b"tim", tags=("srv1",)
    )
    context.sni = b"mail.example.org"
    directive = file(path, INFO, filters=(Filter(kind, pattern, "contains"),))
    logs = open_logs([directive], default="")
    logs.main.bind(context=context).info("login failed: %s", "\n")
    logs.close()
    assert bool(path.read_bytes()) is matches


@pytest.mark.proves("error_log", "filter=")
def test_all_filters_must_match_exactly_or_by_regex(tmp_path: Path) -> None:
    path = tmp_path / "a"
    filters = (Filter("message", "one", "exact"), Filter("logline", "^o.e$", "regex"))
    logs = open_logs([file(path, INFO, filters=filters)], default="")
    for message in "one", "one more", "ore":
        logs.main.info(message)
    logs.close()
    assert messages(path) == ["[info] one"]


def test_json_filter_sees_the_escaped_message(tmp_path: Path) -> None:
    path = tmp_path / "a"
    filters = (Filter("message", "a\\nb", "exact"),)
    logs = open_logs([file(path, INFO, format="json", filters=filters)], default="")
    logs.main.info("%s", "a\nb")
    logs.close()
    assert json.loads(path.read_text())["message"] == "a\nb"


class TestRate:
    @pytest.mark.proves("error_log", "rate=")
    def test_too_many_lines_are_announced_once_and_dropped(
        self, tmp_path: Path
    ) -> None:
        path, clock = tmp_path / "a", Clock()
        logs = open_logs([file(path, INFO, rate=2)], default="", clock=clock)
        for _ in range(10):
            logs.main.info("x")
        assert messages(path) == [
            "[info] x",
            "[info] x",
            "[info] too many log messages, limiting",
        ]
        clock.now += 0.4
        logs.main.info("still too early")
        clock.now += 0.7
        logs.main.info("again")
        logs.close()
        assert messages(path)[3:] == ["[info] again"]

    def test_worse_news_may_come_faster(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        logs = open_logs([file(path, INFO, rate=1)], default="", clock=Clock())
        for _ in range(10):
            logs.main.crit("x")
        logs.close()
        assert messages(path).count("[crit] x") == 5

    def test_debug_logs_have_no_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        logs = open_logs([file(path, DEBUG, rate=1)], default="", clock=Clock())
        for _ in range(10):
            logs.main.info("x")
        logs.close()
        assert len(messages(path)) == 10


class TestFiles:
    def test_files_are_appended_to_and_not_executable(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_text("[x] before\n")
        umask = os.umask(0)
        try:
            logs = open_logs([file(path), file(tmp_path / "new")], default="")
        finally:
            os.umask(umask)
        logs.main.error("after")
        logs.close()
        assert messages(path) == ["[x] before", "[error] after"]
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644

    def test_what_cannot_be_opened_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            open_logs([file(tmp_path / "a"), file(tmp_path / "no" / "b")], default="")
        assert caught.value.filename == str(tmp_path / "no" / "b")

    def test_reopen_leaves_the_renamed_file_alone(self, tmp_path: Path) -> None:
        path, old = tmp_path / "a", tmp_path / "a.1"
        logs = open_logs([file(path)], [[file(path, INFO)]], default="")
        logs.main.error("one")
        path.rename(old)
        logs.main.error("two")
        logs.reopen()
        assert path.read_bytes() == b""
        logs.main.error("three")
        logs.logger([file(path, INFO)]).info("four")
        logs.close()
        assert messages(old) == ["[error] one", "[error] two"]
        assert messages(path) == ["[error] three", "[info] four"]

    def test_file_that_cannot_be_reopened_stays_in_use(self, tmp_path: Path) -> None:
        directory = tmp_path / "d"
        directory.mkdir()
        path = directory / "a"
        logs = open_logs([file(path)], default="")
        directory.rename(tmp_path / "e")
        logs.reopen()
        logs.main.error("still here")
        logs.close()
        assert messages(tmp_path / "e" / "a") == [
            f'[emerg] open() "{path}" failed (2: No such file or directory)',
            "[error] still here",
        ]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_reopened_file_is_given_to_the_workers_user(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        workers = WorkerAccount(33, frozenset({33}))
        logs = open_logs([file(path)], default="", workers=workers)
        path.unlink()
        logs.reopen(give=True)
        path.chmod(0o044)
        logs.reopen(give=True)
        logs.close()
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (33, os.getegid())
        assert found.st_mode & 0o777 == 0o644

    def test_full_disk_is_left_alone_for_the_rest_of_the_second(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.5
        writes: list[float] = []
        logs = open_logs([file(Path("/dev/full"), INFO)], default="")
        real = os.write

        def write(fd: int, data: bytes) -> int:
            writes.append(now)
            return real(fd, data)

        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr("time.time", lambda: now)
        for now in 1000.5, 1000.9, 1001.1, 1001.2:  # noqa: B007  read by the lambda
            logs.main.info("x")
        monkeypatch.undo()
        logs.close()
        assert writes == [1000.5, 1001.1]

    def test_a_line_after_close_goes_nowhere(self, tmp_path: Path) -> None:
        logs = open_logs([file(tmp_path / "a")], default="")
        logs.close()
        with open(tmp_path / "b", "wb"):  # takes the descriptor's number
            logs.main.error("late")
        assert (tmp_path / "b").read_bytes() == b""


class TestStderr:
    @pytest.mark.proves("error_log", "stderr")
    def test_stderr_is_a_log_like_others(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        logs = open_logs([ErrorLog(Stderr(), INFO)], default="")
        logs.main.info("hello")
        logs.redirect_stderr()
        logs.close()
        logs.main.error("still open")
        assert messages(capfd.readouterr().err) == [
            "[info] hello",
            "[error] still open",
        ]

    def test_stray_output_goes_to_the_first_file(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        first = tmp_path / "first"
        logs = open_logs([file(first), file(tmp_path / "b")], default="")
        logs.redirect_stderr()
        os.write(2, b"[x] stray\n")
        logs.close()
        assert messages(first) == ["[x] stray"]
        assert capfd.readouterr().err == ""

    def test_but_not_if_a_log_is_stderr(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        logs = open_logs(
            [file(tmp_path / "a")], [[ErrorLog(Stderr(), INFO)]], default=""
        )
        logs.redirect_stderr()
        os.write(2, b"stray\n")
        logs.close()
        assert capfd.readouterr().err == "stray\n"

    def test_severe_lines_are_copied_while_starting(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "a"
        logs = open_logs([file(path, INFO)], default="", copy_as="nginx")
        logs.main.emerg('open() "x" failed', error=OSError(2, ""))
        logs.main.warn("careful")
        logs.main.notice("not copied")
        logs.stop_copying()
        logs.main.emerg("not copied")
        logs.close()
        assert capfd.readouterr().err.splitlines() == [
            'nginx: [emerg] open() "x" failed (2: No such file or directory)',
            "nginx: [warn] careful",
        ]
        assert len(messages(path)) == 4

    def test_nothing_is_said_twice_on_stderr(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        logs = open_logs([ErrorLog(Stderr(), INFO)], default="", copy_as="nginx")
        logs.main.emerg("once")
        assert messages(capfd.readouterr().err) == ["[emerg] once"]


class TestStartupLog:
    def test_file_and_copy(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "error.log"
        logs = open_startup_log(str(path), "angie")
        assert logs.main.level == NOTICE
        logs.main.emerg("no luck")
        logs.close()
        assert messages(path) == ["[emerg] no luck"]
        assert capfd.readouterr().err == "angie: [emerg] no luck\n"

    @pytest.mark.parametrize("path", ["", "stderr"])
    def test_stderr_has_the_form_of_a_log(
        self, capfd: pytest.CaptureFixture[str], path: str
    ) -> None:
        logs = open_startup_log(path, level=INFO)
        logs.main.info("x")
        logs.main.emerg("no luck")
        assert messages(capfd.readouterr().err) == ["[info] x", "[emerg] no luck"]

    def test_unusable_file_is_an_alert_and_stderr_is_used(
        self, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "no" / "error.log"
        logs = open_startup_log(str(path))
        logs.main.emerg("no luck")
        first, second = capfd.readouterr().err.splitlines()
        assert first == (
            "nginx: [alert] could not open error log file: "
            f'open() "{path}" failed (2: No such file or directory)'
        )
        assert second.endswith(": no luck")


class TestSyslog:
    def log(self, tmp_path: Path, syslog: Syslog, clock: Clock | None = None) -> Logs:
        return open_logs(
            [file(tmp_path / "a", INFO), ErrorLog(syslog, INFO)],
            default="",
            clock=clock or Clock(),
        )

    @pytest.mark.proves("error_log", "syslog:")
    def test_packet_over_udp(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            address = Address(socket.AF_INET, server.getsockname(), "x")
            logs = self.log(tmp_path, Syslog(address, facility=2, tag="mp"))
            logs.main.info("hello")
            packet = server.recv(4096).decode()
            logs.close()
        line = (tmp_path / "a").read_text().rstrip("\n")
        host = socket.gethostname().lower()
        assert packet[:4] == "<22>"
        assert packet[7] == packet[10] == " "
        assert packet[11:19] == line[11:19]
        assert packet[4:7] in "JanFebMarAprMayJunJulAugSepOctNovDec"
        assert int(packet[8:10]) == int(line[8:10])
        assert packet[19:] == f" {host} mp: {line}"

    def test_packet_over_a_unix_socket_without_host(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path)
            address = Address(socket.AF_UNIX, path, f"unix:{path}")
            logs = self.log(tmp_path, Syslog(address, hostname=False))
            logs.main.emerg("bye")
            packet = server.recv(4096).decode()
            logs.close()
        assert packet.startswith("<184>")
        assert packet[20:28] == " nginx: "
        assert packet.endswith(": bye")

    def test_missing_server_is_said_in_the_other_logs_once_a_second(
        self, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "s")
        clock = Clock()
        logs = self.log(
            tmp_path, Syslog(Address(socket.AF_UNIX, path, f"unix:{path}")), clock
        )
        alert = (
            "[alert] connect() failed (2: No such file or directory)"
            f" while logging to syslog, server: unix:{path}"
        )
        logs.main.info("one")
        logs.main.info("two")
        clock.now += 1
        logs.main.info("three")
        assert messages(tmp_path / "a") == [
            "[info] one",
            alert,
            "[info] two",
            "[info] three",
            alert,
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path)
            logs.main.info("four")
            assert server.recv(4096).endswith(b": four")
        logs.close()

    def test_refused_datagram_is_an_error_and_the_next_line_tries_again(
        self, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            name = server.getsockname()
        logs = self.log(tmp_path, Syslog(Address(socket.AF_INET, name, "the server")))
        logs.main.info("one")  # only the next send hears of the ICMP error
        logs.main.info("two")
        assert messages(tmp_path / "a")[2:] == [
            "[error] send() failed (111: Connection refused)"
            " while logging to syslog, server: the server"
        ]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(name)
            logs.main.info("three")
            assert server.recv(4096).endswith(b": three")
        logs.close()

    def test_server_that_does_not_keep_up_costs_lines_only(
        self, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(path)
            logs = self.log(tmp_path, Syslog(Address(socket.AF_UNIX, path, "s")))
            for _ in range(2000):
                logs.main.info("x" * 1000)
            logs.close()
        assert len(messages(tmp_path / "a")) == 2000


@pytest.mark.proves("error_log", "memory:")
def test_memory_keeps_the_last_lines() -> None:
    logs = open_logs([ErrorLog(Memory(3000), INFO)], default="/dev/null")
    for number in range(1000):
        logs.main.info("line %s", number)
    (memory,) = logs.memories
    lines = memory.lines()
    assert lines[-1].endswith(b"line 999\n")
    assert 2900 < sum(map(len, lines)) <= 3000
    logs.close()


def test_no_write_of_a_log_raises(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    saved = os.dup(2)
    os.dup2(write, 2)
    try:
        log: Logger = open_logs([ErrorLog(Stderr(), INFO)], default="").main
        log.info("nobody reads this")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(write)
