"""What is measured: the cases, and the rows that they become in the table."""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from bench.loop import MIB


class Kind(enum.Enum):
    """How a case is measured; see `measuring`."""

    LOGIN = "login"
    PING = "ping"
    IDLE = "idle"
    BULK = "bulk"
    CONFIGURATION = "configuration"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of a case; less is better in all of them."""

    key: str
    """Under which a measurement has it."""
    title: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case."""

    name: str
    kind: Kind
    rows: tuple[Row, ...]
    main: bool = False
    """Whether it is measured unless others are asked for."""
    listener: str = "imap"
    """One of `configuration.LISTENERS`."""
    tls: str = "no"
    """"no", "implicit" or "starttls"."""
    resume: bool = False
    """Whether clients offer their last TLS session."""
    sessions: int = 0
    """How many are open at a time; with Kind.CONFIGURATION, how many servers there
    are."""
    seconds: float = 0.0
    """How long the load lasts."""
    direction: str = "down"
    """From the mail server to the client, or "up"."""
    size: int = 0
    """Octets to be moved in each session."""

    @property
    def files(self) -> int:
        """Descriptors that a process may need: two for a session, one for a server."""
        return (1 if self.kind is Kind.CONFIGURATION else 2) * self.sessions + 300

    @property
    def estimate(self) -> float:
        """About how many seconds one measurement takes."""
        base = {Kind.IDLE: 3.0, Kind.BULK: 2.0}.get(self.kind, 1.0)
        return (
            base
            + self.seconds
            + (self.kind is Kind.CONFIGURATION) * (self.sessions / 800)
        )

    def scaled(self, factor: float) -> Self:
        """The same with less or more to do: time, octets, and idle sessions."""
        idle = self.kind is Kind.IDLE
        return replace(
            self,
            seconds=self.seconds * factor,
            size=max(1, int(self.size * factor)),
            sessions=max(1, int(self.sessions * factor)) if idle else self.sessions,
        )


def select(patterns: Iterable[str]) -> list[Case]:
    """The cases that `patterns` mean, in the order of `CASES`; the main ones for none.

    Args:
      patterns: names, as "S1/imap", with shell's wildcards, or scenarios, as "S1".

    Raises:
      ValueError: a pattern means none.
    """
    patterns = list(patterns)
    if not patterns:
        return [case for case in CASES if case.main]
    chosen: set[str] = set()
    for pattern in patterns:
        meant = {
            case.name
            for case in CASES
            if fnmatch.fnmatchcase(case.name, pattern)
            or case.name.startswith(f"{pattern}/")
        }
        if not meant:
            raise ValueError(f"there is no case {pattern}")
        chosen |= meant
    return [case for case in CASES if case.name in chosen]


def _login(
    name: str,
    title: str,
    *,
    main: bool = True,
    listener: str = "imap",
    tls: str = "no",
    resume: bool = False,
    at_once: int = 64,
) -> Case:
    return Case(
        name=name,
        kind=Kind.LOGIN,
        rows=(Row(key="cpu_us", title=title, unit="CPU µs"),),
        main=main,
        listener=listener,
        tls=tls,
        resume=resume,
        sessions=at_once,
        seconds=2.0,
    )


def _bulk(name: str, title: str, direction: str, *, tls: bool, main: bool) -> Case:
    sessions = 32
    return Case(
        name=name,
        kind=Kind.BULK,
        rows=(Row(key="cpu_s_gib", title=title, unit="CPU s/GiB"),),
        main=main,
        listener="imaps-ec" if tls else "imap",
        tls="implicit" if tls else "no",
        sessions=sessions,
        direction=direction,
        size=1024 * MIB // sessions,
    )


def _idle(name: str, of_what: str, *, tls: bool, main: bool) -> Case:
    return Case(
        name=name,
        kind=Kind.IDLE,
        rows=(
            Row(key="kib", title=f"one of 1,000 {of_what}", unit="KiB"),
            Row(
                key="cpu_us", title=f"command in one of 1,000 {of_what}", unit="CPU µs"
            ),
        ),
        main=main,
        listener="imaps-ec" if tls else "imap",
        tls="implicit" if tls else "no",
        sessions=1000,
        seconds=5.0,
    )


def _ping(name: str, title: str, sessions: int, *, tls: bool, main: bool) -> Case:
    return Case(
        name=name,
        kind=Kind.PING,
        rows=(Row(key="cpu_us", title=title, unit="CPU µs"),),
        main=main,
        listener="imaps-ec" if tls else "imap",
        tls="implicit" if tls else "no",
        sessions=sessions,
        seconds=2.0,
    )


def _configuration(servers: int, *, main: bool) -> Case:
    return Case(
        name=f"S6/config-{servers}",
        kind=Kind.CONFIGURATION,
        rows=(
            Row(key="test_ms", title=f"`-t` of {servers:,} servers", unit="ms"),
            Row(
                key="start_ms",
                title=f"start with {servers:,} servers, to the first greeting",
                unit="ms",
            ),
        ),
        main=main,
        sessions=servers,
    )


CASES = (
    _login("S1/imap", "IMAP login, 64 at a time"),
    _login("S1/pop3", "POP3 login, 64 at a time", listener="pop3"),
    _login("S1/smtp", "SMTP login, 64 at a time", listener="smtp"),
    _login("S1/imap-alone", "IMAP login, one at a time", at_once=1),
    _login(
        "S2/imaps-ec-full",
        "IMAP login over TLS 1.3, P-256, full handshake",
        listener="imaps-ec",
        tls="implicit",
    ),
    _login(
        "S2/imaps-ec-resumed",
        "IMAP login over TLS 1.3, P-256, resumed",
        listener="imaps-ec",
        tls="implicit",
        resume=True,
    ),
    _login(
        "S2/starttls-rsa-full",
        "IMAP login with STARTTLS, RSA-2048, full handshake",
        tls="starttls",
        main=False,
    ),
    _bulk("S3/down-32", "to the client, 32 sessions", "down", tls=False, main=True),
    _bulk("S3/up-32", "to the server, 32 sessions", "up", tls=False, main=False),
    _bulk(
        "S3/down-32-tls",
        "to the client over TLS, 32 sessions",
        "down",
        tls=True,
        main=False,
    ),
    _bulk(
        "S3/up-32-tls",
        "to the server over TLS, 32 sessions",
        "up",
        tls=True,
        main=False,
    ),
    _idle("S4/idle-1000", "idle sessions", tls=False, main=True),
    _idle("S4/idle-1000-tls", "idle TLS sessions", tls=True, main=False),
    _ping(
        "S5/ping-1",
        "command and answer of 100 octets, one session",
        1,
        tls=False,
        main=False,
    ),
    _ping(
        "S5/ping-1-tls",
        "command and answer over TLS, one session",
        1,
        tls=True,
        main=False,
    ),
    _ping(
        "S5/ping-200",
        "command and answer of 100 octets, 200 sessions",
        200,
        tls=False,
        main=True,
    ),
    _ping(
        "S5/ping-200-tls",
        "command and answer over TLS, 200 sessions",
        200,
        tls=True,
        main=True,
    ),
    _configuration(10, main=True),
    _configuration(1000, main=True),
    _configuration(10_000, main=False),
)
"""All cases, in the order in which they are measured and shown."""
