"""Reaching a backend: the time that connecting has, and the next backend."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from mailproxy.conf.addresses import SocketAddress
from mailproxy.errors import ClientError
from mailproxy.mail import session
from mailproxy.mail.candidates import Candidate, Choice
from mailproxy.net.outgoing import Outgoing
from tests.memory import MemoryWire
from tests.play import BACKEND, INTERNAL_ERRORS, OPENINGS, Stage, load_server, parse

UPSTREAM = '…, login: "u", upstream: 127.0.0.1:9143'
ENTERED = {
    "imap": 'B: * OK\nP: a LOGIN "u" "p"\nB: a OK in\nS: a OK in',
    "pop3": "B: +OK\nP: USER u\nB: +OK\nP: PASS p\nB: +OK in\nS: +OK in",
    "smtp": "B: 220 x\nP: HELO mx.test\nB: 250 x\nS: 235 2.0.0 OK",
}


def stage(protocol: str, directives: str = "", **options: object) -> Stage:
    directives = f"protocol {protocol}; xclient off; {directives}"
    return Stage(load_server(directives), **options)  # type: ignore[arg-type]


def play(script: str, here: Stage) -> None:
    trio.run(here.perform, parse(script), clock=MockClock(autojump_threshold=0))


def imap(script: str, directives: str = "", *, pending: bool = False) -> Stage:
    here = stage("imap", directives)
    here.network.pending = pending
    play(f"{OPENINGS['imap']}\n{script}", here)
    return here


# Connecting


@pytest.mark.parametrize("message", ["", "proxy_pass_error_message on;"])
def test_connection_that_is_refused(message: str) -> None:
    imap(
        f"""
        B: ⟨refused⟩
        S: {INTERNAL_ERRORS["imap"]}
        S: ⟨close⟩
        L: [error] connect() failed (111: Connection refused) while connecting to upstream, {UPSTREAM}
        """,
        message,
        pending=True,
    )


@pytest.mark.proves("proxy_connect_timeout")
def test_connection_that_is_never_made() -> None:
    imap(
        f"""
        S: {INTERNAL_ERRORS["imap"]}
        at 7
        S: ⟨close⟩
        L: [info] upstream timed out (110: Connection timed out) while connecting to upstream, {UPSTREAM}
        """,
        "proxy_connect_timeout 7s; timeout 20s;",
        pending=True,
    )


def test_connection_has_the_greeting_s_own_time_once_it_is_made() -> None:
    imap(
        f"""
        wait 5
        B: ⟨connected⟩
        S: {INTERNAL_ERRORS["imap"]}
        at 25
        S: ⟨close⟩
        L: [info] upstream timed out (110: Connection timed out) while connecting to upstream, {UPSTREAM}
        """,
        "proxy_connect_timeout 7s; timeout 20s;",
        pending=True,
    )


def test_client_that_leaves_while_the_connection_is_made() -> None:
    imap(
        f"""
        wait 5
        C: ⟨close⟩
        B: ⟨connected⟩
        {ENTERED["imap"]}
        L: [info] client logged in, {UPSTREAM}
        L: [info] proxied session done, {UPSTREAM}
        """,
        pending=True,
    )


# The next one


class Listed(Choice):
    """A choice of so many backends, which records what became of them."""

    name = "some"

    def __init__(self, number: int) -> None:
        self._left = iter(range(number))
        self.events: list[str] = []

    def next(self) -> Candidate | None:
        number = next(self._left, None)
        if number is None:
            return None
        return Candidate(socket.AF_INET, BACKEND, f"b{number}", spare=True)

    def failed(self, *, counts: bool) -> None:
        self.events.append("failed" if counts else "failed, but not by itself")

    def reached(self) -> None:
        self.events.append("reached")

    def release(self) -> None:
        self.events.append("released")


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[Listed]:
    """Sets how many there are; ``choices[0].events`` tells of them."""
    made = [Listed(3)]

    async def choose(*_: object) -> Choice:
        return made[0]

    monkeypatch.setattr(session, "choose", choose)
    return made


UNMET = {
    "imap": [
        "⟨close⟩",
        "⟨reset⟩",
        "* BYE busy",
        "* PREAUTH hello",
        "+OK what",
        "* OK…⟨close⟩",
    ],
    "pop3": ["⟨close⟩", "-ERR busy", "* OK what"],
    "smtp": ["⟨close⟩", "421 busy", "554 no", "+OK what"],
}


def unmet(protocol: str) -> Iterator[str]:
    for event in UNMET[protocol]:
        lines = event.replace("…", "…\n").split("\n")
        yield "\n".join(f"B: {line}" for line in lines)


@pytest.mark.parametrize(
    ("protocol", "event"),
    [(protocol, event) for protocol in UNMET for event in unmet(protocol)],
)
def test_next_backend_is_tried(
    protocol: str, event: str, choices: list[Listed]
) -> None:
    here = stage(protocol)
    script = f"{OPENINGS[protocol]}\n{event}\n{ENTERED[protocol]}"
    play(f"{script}\nC: ⟨close⟩", here)
    assert choices[0].events == ["failed", "reached", "released"]
    first, _ = here.network.wires["P"]
    assert first.closed
    assert not first.outgoing
    errors = [line for level, line in here.log.events if level == "error"]
    assert len(errors) == 1
    assert errors[0].endswith(', login: "u", upstream: b0')


def test_ehlo_that_is_refused_leads_to_the_next_backend(choices: list[Listed]) -> None:
    here = stage("smtp")
    first = "B: 220 x\nP: HELO mx.test\nB: 421 busy"
    play(f"{OPENINGS['smtp']}\n{first}\n{ENTERED['smtp']}\nC: ⟨close⟩", here)
    assert choices[0].events == ["failed", "reached", "released"]


def test_each_try_has_its_own_time(choices: list[Listed]) -> None:
    here = stage("imap", "timeout 20s; proxy_connect_timeout 7s;")
    here.network.pending = True
    play(
        f"""
        {OPENINGS["imap"]}
        P: ⟨close⟩
        at 7
        wait 5
        B: ⟨connected⟩
        P: ⟨close⟩
        at 32
        wait 5
        B: ⟨connected⟩
        wait 19
        {ENTERED["imap"]}
        C: ⟨close⟩
        """,
        here,
    )
    assert choices[0].events == ["failed", "failed", "reached", "released"]
    assert [level for level, line in here.log.events if "timed out" in line] == [
        "error",
        "error",
    ]


def test_client_is_told_once_if_all_fail(choices: list[Listed]) -> None:
    here = stage("imap")
    fail = "B: ⟨close⟩\n" * 3
    play(f"{OPENINGS['imap']}\n{fail}S: {INTERNAL_ERRORS['imap']}\nS: ⟨close⟩", here)
    assert choices[0].events == ["failed"] * 3
    lines = [line for level, line in here.log.events if level == "error"]
    assert [line.rpartition(" ")[2] for line in lines] == ["b0", "b1", "b2"]


def test_nobody_to_try(choices: list[Listed]) -> None:
    choices[0] = Listed(0)
    play(
        f"""
        {OPENINGS["imap"]}
        S: {INTERNAL_ERRORS["imap"]}
        S: ⟨close⟩
        L: [error] no live upstreams while connecting to upstream, …, login: "u", upstream: some
        """,
        stage("imap"),
    )


@pytest.mark.proves("proxy_next_upstream")
@pytest.mark.proves("proxy_next_upstream_tries")
@pytest.mark.parametrize(
    ("directive", "tries"),
    [
        ("proxy_next_upstream off;", 1),
        ("proxy_next_upstream_tries 1;", 1),
        ("proxy_next_upstream_tries 2;", 2),
        ("proxy_next_upstream_tries 0;", 3),
        ("proxy_next_upstream on;", 3),
    ],
)
def test_number_of_tries(directive: str, tries: int, choices: list[Listed]) -> None:
    here = stage("imap", directive)
    fail = "B: ⟨close⟩\n" * tries
    play(f"{OPENINGS['imap']}\n{fail}S: {INTERNAL_ERRORS['imap']}\nS: ⟨close⟩", here)
    assert choices[0].events == ["failed"] * tries


@pytest.mark.proves("proxy_next_upstream_timeout")
@pytest.mark.parametrize(("limit", "tries"), [("9s", 1), ("10s", 1), ("11s", 2)])
def test_time_for_all_tries(limit: str, tries: int, choices: list[Listed]) -> None:
    choices[0] = Listed(2)
    here = stage("imap", f"timeout 30s; proxy_next_upstream_timeout {limit};")
    fail = "wait 10\nB: ⟨close⟩\n" * tries
    play(f"{OPENINGS['imap']}\n{fail}S: {INTERNAL_ERRORS['imap']}\nS: ⟨close⟩", here)
    assert choices[0].events == ["failed"] * tries


@pytest.mark.parametrize(
    ("protocol", "script"),
    [
        ("imap", 'B: * OK\nP: a LOGIN "u" "p"\nB: ⟨close⟩'),
        ("imap", 'B: * OK\nP: a LOGIN "u" "p"\nB: a NO [UNAVAILABLE] later'),
        ("pop3", "B: +OK\nP: USER u\nB: -ERR [SYS/TEMP] later"),
        (
            "smtp",
            "B: 220 x\nP: HELO mx.test\nB: 250 x\nP: AUTH PLAIN AHUAcA==\nB: 454 x",
        ),
    ],
)
def test_nothing_is_tried_again_once_the_login_has_begun(
    protocol: str, script: str, choices: list[Listed]
) -> None:
    here = stage(protocol, "proxy_smtp_auth on;")
    end = f"S: {INTERNAL_ERRORS[protocol]}\nS: ⟨close⟩"
    play(f"{OPENINGS[protocol]}\n{script}\n{end}", here)
    assert choices[0].events == ["reached", "released"]


@pytest.mark.parametrize(
    ("number", "events"),
    [
        (errno.EADDRNOTAVAIL, ["failed, but not by itself"] * 3),
        (errno.EACCES, ["failed, but not by itself"] * 3),
        (errno.EHOSTUNREACH, ["failed"] * 3),
        (errno.ECONNRESET, ["failed"] * 3),
        (errno.EAGAIN, ["failed"] * 3),
        (errno.ENOENT, ["failed"] * 3),
        (errno.ENOBUFS, ["failed, but not by itself"]),
    ],
)
def test_whose_fault_it_is(
    number: int, events: list[str], choices: list[Listed]
) -> None:
    """A lack of connections (ENOBUFS) would meet the others, too."""
    here = stage("imap")
    here.network.failing["P"] = number
    play(f"{OPENINGS['imap']}\nS: {INTERNAL_ERRORS['imap']}\nS: ⟨close⟩", here)
    assert choices[0].events == events


def test_session_that_ends_for_another_reason_blames_nobody(
    choices: list[Listed], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stage("imap")
    connect_usually = here.network.connect

    def connect(
        family: int, address: SocketAddress, how: Outgoing | None = None
    ) -> MemoryWire:
        if address == BACKEND:
            raise ClientError
        return connect_usually(family, address)

    monkeypatch.setattr(here.network, "connect", connect)
    play(f"{OPENINGS['imap']}\nS: ⟨close⟩", here)
    assert choices[0].events == ["failed, but not by itself"]
