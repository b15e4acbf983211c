"""Master users, who log in at backends in the place of clients."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mailproxy.auth.source import Chain
from mailproxy.auth.verdict import Granted, Route
from mailproxy.conf.secret_files import SecretFile
from mailproxy.conf.tree import ConfigError
from mailproxy.mail.master_user import MasterUser
from mailproxy.process.configuration import ConfigErrors
from tests.auth.fake import FakeSource
from tests.play import BACKEND, FAILED, Stage, load_server, parse

SECRET = b"master secret"
OPENINGS = {
    "imap": "S: * OK IMAP4 ready\nC: a LOGIN u pass\nQ: plain u pass",
    "pop3": "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS pass\nQ: plain u pass",
    "smtp": "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcGFzcw==\nQ: plain u pass",
}
ENTERED = {
    "imap": "B: a OK in\nS: a OK in",
    "pop3": "B: +OK in\nS: +OK in",
    "smtp": "B: 235 in\nS: 235 2.0.0 OK",
}


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def plain(user: str, password: str, identity: str = "") -> str:
    """The message of PLAIN."""
    return coded(f"{identity}\0{user}\0{password}")


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "master"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return path


def play(
    protocol: str, script: str, directives: str, file: Path, **more: object
) -> Stage:
    """Play what follows the login of a client, with the master's password in a file."""
    text = directives.replace("⟨file⟩", f"password_file={file}")
    server = load_server(
        f"protocol {protocol}; xclient off; proxy_smtp_auth on; {text}"
    )
    stage = Stage(server, **more)  # type: ignore[arg-type] # as there
    stage.network.secrets = {str(file): SECRET}
    steps = parse(f"{OPENINGS[protocol]}\n{script}")
    trio.run(stage.perform, steps, clock=MockClock(autojump_threshold=0))
    return stage


MET_PLAIN = {
    "imap": "B: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi",
    "pop3": "B: +OK hi\nP: CAPA\nB: +OK⏎SASL PLAIN⏎.",
    "smtp": "B: 220 hi\nP: EHLO mx.test\nB: 250-x⏎250 AUTH PLAIN",
}
AUTH = {"imap": "a AUTHENTICATE", "pop3": "AUTH", "smtp": "AUTH"}


@pytest.mark.proves("proxy_master_user", "password_file=")
@pytest.mark.parametrize("protocol", OPENINGS)
def test_master_by_authorization_identity(protocol: str, password_file: Path) -> None:
    stage = play(
        protocol,
        f"""
        A: OK
        {MET_PLAIN[protocol]}
        P: {AUTH[protocol]} PLAIN {plain("admin", "master secret", "u")}
        {ENTERED[protocol]}
        """,
        "proxy_auth_mech plain; proxy_master_user admin ⟨file⟩;",
        password_file,
    )
    assert stage.log.events[-2][1].endswith('login: "u", upstream: 127.0.0.1:9143')


@pytest.mark.proves("proxy_master_user", "separator=")
@pytest.mark.parametrize(
    ("protocol", "mechanism", "script"),
    [
        ("imap", "command", 'B: * OK\nP: a LOGIN "u*admin" "master secret"'),
        ("pop3", "command", "B: +OK\nP: USER u*admin\nB: +OK\nP: PASS master secret"),
        (
            "smtp",
            "command",
            f"B: 220 x\nP: HELO mx.test\nB: 250 x\nP: AUTH PLAIN {plain('u*admin', 'master secret')}",
        ),
        *(
            (
                each,
                "plain",
                f"{MET_PLAIN[each]}\nP: {AUTH[each]} PLAIN {plain('u*admin', 'master secret')}",
            )
            for each in OPENINGS
        ),
        (
            "imap",
            "auto",
            "B: * OK [CAPABILITY IMAP4 AUTH=LOGIN AUTH=XOAUTH2] x\nP: a AUTHENTICATE LOGIN"
            f"\nB: +\nP: {coded('u*admin')}\nB: +\nP: {coded('master secret')}",
        ),
        (
            "imap",
            "xoauth2",
            "B: * OK [CAPABILITY IMAP4 SASL-IR AUTH=XOAUTH2] x\nP: a AUTHENTICATE XOAUTH2 "
            + coded("user=u*admin\1auth=Bearer master secret\1\1"),
        ),
    ],
)  # fmt: skip
def test_master_by_one_name_for_both(
    protocol: str, mechanism: str, script: str, password_file: Path
) -> None:
    play(
        protocol,
        f"A: OK\n{script}\n{ENTERED[protocol]}",
        f"proxy_auth_mech {mechanism}; proxy_master_user admin ⟨file⟩ separator=*;",
        password_file,
    )


def test_user_is_that_of_the_auth_source(password_file: Path) -> None:
    play(
        "imap",
        """
        A: OK
        A| Auth-User: box
        A| Auth-Pass: not used
        B: * OK
        P: a LOGIN "box*admin" "master secret"
        B: a OK in
        S: a OK in
        """,
        "proxy_master_user admin ⟨file⟩ separator=*;",
        password_file,
    )


def test_digest_needs_no_password(password_file: Path) -> None:
    """SMTP: the auth source knows the digest's password, and tells nobody."""
    server = load_server(
        "protocol smtp; smtp_auth external; xclient off; proxy_smtp_auth on;"
        f"proxy_master_user admin password_file={password_file} separator=*;"
    )
    stage = Stage(server)
    stage.network.secrets = {str(password_file): SECRET}
    script = f"""
        S: 220 mx.test ESMTP ready
        C: AUTH EXTERNAL dQ==
        Q: ⟨any⟩
        A: OK
        B: 220 hi
        P: HELO mx.test
        B: 250 x
        P: AUTH PLAIN {plain("u*admin", "master secret")}
        {ENTERED["smtp"]}
    """
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))


def test_xclient_names_the_user(password_file: Path) -> None:
    server = load_server(
        "protocol smtp;"
        f"proxy_master_user admin password_file={password_file} separator=*;"
    )
    stage = Stage(server)
    stage.network.secrets = {str(password_file): SECRET}
    script = f"""
        {OPENINGS["smtp"]}
        A: OK
        B: 220 hi
        P: EHLO mx.test
        B: 250 x
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        B: 220 x
        S: 235 2.0.0 OK
    """
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))


def test_mail_without_a_login_has_no_master(password_file: Path) -> None:
    server = load_server(
        "protocol smtp; smtp_auth none; xclient off; proxy_smtp_auth on;"
        f"proxy_master_user admin password_file={password_file} separator=*;"
    )
    script = """
        S: 220 mx.test ESMTP ready
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        Q: ⟨any⟩
        A: OK
        B: 220 hi
        P: HELO mx.test
        B: 250 x
        P: MAIL FROM:<a@b>
        B: 250 x
        P: RCPT TO:<c@d>
        B: 250 x
        S: 250 x
    """
    trio.run(
        Stage(server).perform, parse(script), clock=MockClock(autojump_threshold=0)
    )


# The auth source's master user


@pytest.mark.parametrize("protocol", OPENINGS)
def test_master_of_an_answer(protocol: str, password_file: Path) -> None:
    play(
        protocol,
        f"""
        A: OK
        A| Auth-Master-User: boss
        A| Auth-Pass: other
        {MET_PLAIN[protocol]}
        P: {AUTH[protocol]} PLAIN {plain("boss", "other", "u")}
        {ENTERED[protocol]}
        """,
        "proxy_auth_mech plain;",
        password_file,
    )


def test_master_of_an_answer_replaces_the_configured_one(password_file: Path) -> None:
    play(
        "imap",
        """
        A: OK
        A| Auth-Master-User: boss
        A| Auth-Pass: other
        B: * OK
        P: a LOGIN "u*boss" "other"
        B: a OK in
        S: a OK in
        """,
        "proxy_master_user admin ⟨file⟩ separator=*;",
        password_file,
    )


@pytest.mark.parametrize("mechanism", ["command", "auto", "login", "xoauth2"])
def test_master_of_an_answer_needs_plain(mechanism: str, password_file: Path) -> None:
    play(
        "imap",
        f"""
        A: OK
        A| Auth-Master-User: boss
        A| Auth-Pass: other
        {FAILED["imap"]}
        L: [error] master user "boss" of the auth source needs "proxy_auth_mech plain" while in http auth state, …, login: "u"
        """,
        f"proxy_auth_mech {mechanism};",
        password_file,
    )


@pytest.mark.parametrize(
    ("answer", "event"),
    [
        ("A| Auth-Master-User: boss", "did not send password: "),
        (
            "A| Auth-Master-User: b\0ss\nA| Auth-Pass: x",
            "sent invalid user or password",
        ),
    ],
)
def test_bad_master_of_an_answer(answer: str, event: str, password_file: Path) -> None:
    stage = play(
        "imap",
        f"A: OK\n{answer}\n{FAILED['imap']}",
        "proxy_auth_mech plain;",
        password_file,
    )
    level, line = stage.log.events[-1]
    assert level == "error"
    assert line.startswith(f"auth http server 127.0.0.1:9000 {event}")


# What must not happen


@contextmanager
def _deciding(directives: str, verdict: Granted) -> Iterator[Stage]:
    """A stage whose source gives this verdict."""
    server = load_server(f"protocol imap; {directives}")
    chain = Chain((FakeSource(verdict),))
    yield Stage(replace(server, auth=chain))


@pytest.mark.parametrize("by_source", [False, True])
def test_login_that_nobody_has_checked(by_source: bool, password_file: Path) -> None:
    route = Route(server=BACKEND[0], port=BACKEND[1], master=b"boss" * by_source)
    verdict = Granted(user=b"box", secret=b"p", route=route, checked=False)
    directives = f"proxy_master_user admin password_file={password_file} separator=*;"
    with _deciding(directives, verdict) as stage:
        script = f"""
            S: * OK IMAP4 ready
            C: a LOGIN u any
            {FAILED["imap"]}
            L: [error] login of "box" was not checked, a master login is refused while in http auth state, …, login: "box"
        """
        trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))
        assert not stage.network.wires["P"]


def test_login_that_nobody_has_checked_may_go_on_by_itself() -> None:
    route = Route(server=BACKEND[0], port=BACKEND[1])
    verdict = Granted(user=b"box", secret=b"p", route=route, checked=False)
    with _deciding("", verdict) as stage:
        script = """
            S: * OK IMAP4 ready
            C: a LOGIN u any
            B: * OK
            P: a LOGIN "box" "p"
            B: a OK in
            S: a OK in
        """
        trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))


def test_password_that_was_not_read(password_file: Path) -> None:
    server = load_server(
        "protocol imap;"
        f"proxy_master_user admin password_file={password_file} separator=*;"
    )
    script = f"""
        {OPENINGS["imap"]}
        A: OK
        {FAILED["imap"]}
        L: [error] there is no password in "{password_file}" while in http auth state, …, login: "u"
    """
    stage = Stage(server)
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("mechanism", ["command", "plain"])
def test_backend_that_repeats_the_master_s_password(
    mechanism: str, password_file: Path
) -> None:
    said = plain("u*admin", "master secret")
    sent = (
        f"{MET_PLAIN['imap']}\nP: a AUTHENTICATE PLAIN {said}"
        if mechanism == "plain"
        else 'B: * OK\nP: a LOGIN "u*admin" "master secret"'
    )
    stage = play(
        "imap",
        f"""
        A: OK
        {sent}
        B: a NO {said} master secret
        {FAILED["imap"]}
        """,
        f"proxy_auth_mech {mechanism}; proxy_master_user admin ⟨file⟩ separator=*;",
        password_file,
        level=8,
    )
    log = "\n".join(text for _, text in stage.log.events)
    assert "master secret" not in log
    assert said not in log


# The configuration


def error(directives: str) -> tuple[str, str | None]:
    """The first line of what -t says, and its remedy."""
    with pytest.raises(ConfigErrors) as caught:
        load_server(f"protocol imap; {directives}")
    first = caught.value.exceptions[0]
    assert isinstance(first, ConfigError)
    assert first.position is not None
    return first.text.removesuffix(f" in {first.position}"), first.remedy


def test_settings(password_file: Path) -> None:
    text = f"proxy_master_user admin password_file={password_file} separator=+;"
    master = load_server(f"protocol imap; {text}").proxy.proxy_master_user
    assert master == MasterUser(b"admin", SecretFile(str(password_file)), b"+")
    assert str(master) == f"admin password_file={password_file} separator=+"


@pytest.mark.proves("proxy_master_user", "off")
def test_off() -> None:
    server = load_server("protocol imap; proxy_master_user off;")
    assert server.proxy.proxy_master_user is None


@pytest.mark.parametrize(
    ("arguments", "text", "remedy"),
    [
        ("admin", '"proxy_master_user" needs "password_file="', "add: password_file=PATH, a file with the password of the master user"),
        ("admin separator=*", '"proxy_master_user" needs "password_file="', "add: password_file=PATH, a file with the password of the master user"),
        ("admin password_file=", 'invalid parameter "password_file="', None),
        ("admin ⟨file⟩ x", 'invalid parameter "x"', None),
        ("admin ⟨file⟩ separator=", 'invalid separator ""', "a character that is in no user name"),
        ("admin ⟨file⟩ separator=**", 'invalid separator "**"', "a character that is in no user name"),
        ("admin ⟨file⟩ separator=a", 'invalid separator "a"', "a character that is in no user name"),
        ("admin ⟨file⟩ 'separator= '", 'invalid separator " "', "a character that is in no user name"),
        ("admin ⟨file⟩ separator=ä", 'invalid separator "ä"', "a character that is in no user name"),
        ("'' ⟨file⟩", 'invalid master user ""', None),
        ("admin ⟨file⟩", '"proxy_master_user" without "separator=" needs "proxy_auth_mech plain"', "add: proxy_auth_mech plain; or separator=*, if the backend knows that"),
    ],
)  # fmt: skip
def test_bad_arguments(
    arguments: str, text: str, remedy: str | None, password_file: Path
) -> None:
    arguments = arguments.replace("⟨file⟩", f"password_file={password_file}")
    assert error(f"proxy_master_user {arguments};") == (text, remedy)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o660])
def test_file_that_others_may_read(mode: int, password_file: Path) -> None:
    password_file.chmod(mode)
    assert error(f"proxy_master_user a password_file={password_file} separator=*;") == (
        f'"password_file" "{password_file}" is readable by others',
        f"chmod 600 {password_file}",
    )


def test_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "none"
    text, _ = error(f"proxy_master_user a password_file={path} separator=*;")
    assert text == f'open() "{path}" failed (2: No such file or directory)'


@pytest.mark.parametrize("content", [b"", b"x" * 4097])
def test_file_of_another_size(content: bytes, password_file: Path) -> None:
    password_file.write_bytes(content)
    text, _ = error(f"proxy_master_user a password_file={password_file} separator=*;")
    reason = "is too large" if content else "is empty"
    assert text == f'"password_file" "{password_file}" {reason}'


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path):
        text, _ = error(f"proxy_master_user a password_file={path} separator=*;")
        assert text == f'"password_file" "{path}" is not a regular file'


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_file_of_somebody_else(password_file: Path) -> None:
    os.chown(password_file, 65534, -1)
    text, remedy = error(
        f"proxy_master_user a password_file={password_file} separator=*;"
    )
    assert text == f'"password_file" "{password_file}" belongs to another user'
    assert remedy == f"chown root {password_file}"


def test_password_is_no_part_of_the_configuration(password_file: Path) -> None:
    server = load_server(
        "protocol imap;"
        f"proxy_master_user admin password_file={password_file} separator=*;"
    )
    assert SECRET.decode() not in repr(server)
