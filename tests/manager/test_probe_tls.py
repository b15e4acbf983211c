"""Probes in TLS: at once or after STARTTLS, and what makes a backend unhealthy there."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair

from mailproxy.conf.addresses import Address
from mailproxy.mail.probing import Match, ProbeType
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.manager.probes.peer import Failure
from mailproxy.manager.probes.probe import Probe, run
from mailproxy.manager.probes.talk import ProbeLogin
from mailproxy.manager.probes.tls import ProbeTls
from tests.manager.script import Backend, play
from tests.tls import Certificates

FAR = Address(socket.AF_INET, ("192.0.2.1", 143), "192.0.2.1:143")

STARTTLS = {
    "imap": """
        B: * OK ready
        P: mp1 CAPABILITY
        B: * CAPABILITY IMAP4rev1 STARTTLS
        B: mp1 OK done
        P: mp2 STARTTLS
        B: mp2 OK go on
    """,
    "pop3": """
        B: +OK ready
        P: CAPA
        B: +OK
        B: STLS
        B: .
        P: STLS
        B: +OK go on
    """,
    "smtp": """
        B: 220 ready
        P: EHLO proxy.example
        B: 250-mail.example
        B: 250 STARTTLS
        P: STARTTLS
        B: 220 go on
    """,
}
THEN = {
    "imap": """
        P: h1 CAPABILITY
        B: * CAPABILITY IMAP4rev1
        B: h1 OK done
        P: h2 LOGIN {8}
        B: +
        P: watchdog {11}
        B: +
        P: secret word
        B: h2 OK
        P: h9 LOGOUT
    """,
    "pop3": """
        P: CAPA
        B: +OK
        B: .
        P: USER watchdog
        B: +OK
        P: PASS secret word
        B: +OK
        P: QUIT
    """,
    "smtp": """
        P: EHLO proxy.example
        B: 250 mail.example
        P: AUTH PLAIN AHdhdGNoZG9nAHNlY3JldCB3b3Jk
        B: 235 fine
        P: QUIT
    """,
}


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def server(certificates: Certificates, name: str = "ec") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    directory = certificates.directory
    context.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    return context


def tls(certificates: Certificates, mode: str, name: str = "localhost") -> ProbeTls:
    settings = ProxySslSettings(loaded=certificates.client())
    return ProbeTls(mode=mode, settings=settings, name=name)


def probe(certificates: Certificates, protocol: str, mode: str) -> Probe:
    return Probe(
        address=FAR,
        type=ProbeType.LOGIN,
        protocol=protocol,
        own_name=b"proxy.example",
        tls=tls(certificates, mode),
        login=ProbeLogin(b"watchdog", b"secret word"),
    )


async def play_tls(
    asked: Probe, context: ssl.SSLContext, before: str, after: str
) -> Failure | None:
    """Run a probe against a backend that begins TLS in the middle."""
    ours, theirs = memory_stream_pair()

    async def connect(_: Probe) -> trio.abc.Stream:
        return ours

    async def serve() -> None:
        if before:
            await Backend(before).play_on(theirs)
        stream = trio.SSLStream(
            theirs, context, server_side=True, https_compatible=True
        )
        try:
            await Backend(after).play(stream)
        except trio.BrokenResourceError:
            assert not after, "the handshake failed"

    found: list[Failure | None] = []

    async def probe_it() -> None:
        found.append(await run(asked, connect))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        nursery.start_soon(probe_it)
    return found[0]


@pytest.mark.parametrize("protocol", STARTTLS)
async def test_a_login_is_tried_in_tls(
    protocol: str, certificates: Certificates
) -> None:
    asked = probe(certificates, protocol, "starttls")
    context = server(certificates)
    assert await play_tls(asked, context, STARTTLS[protocol], THEN[protocol]) is None
    greeting = STARTTLS[protocol].strip().splitlines()[0].strip()
    after = f"{greeting}\n{THEN[protocol]}"
    asked = replace(asked, tls=tls(certificates, "on"))
    assert await play_tls(asked, context, "", after) is None


async def test_capabilities_in_the_greeting_are_enough_for_starttls(
    certificates: Certificates,
) -> None:
    asked = probe(certificates, "imap", "starttls")
    before = """
        B: * OK [CAPABILITY IMAP4rev1 STARTTLS] ready
        P: mp2 STARTTLS
        B: mp2 OK go on
    """
    assert await play_tls(asked, server(certificates), before, THEN["imap"]) is None


async def test_a_pop3_server_without_capa_may_know_stls(
    certificates: Certificates,
) -> None:
    asked = replace(probe(certificates, "pop3", "starttls"), type=ProbeType.GREETING)
    before = """
        B: +OK ready
        P: CAPA
        B: -ERR what
        P: STLS
        B: +OK go on
    """
    assert await play_tls(asked, server(certificates), before, "P: QUIT") is None


@pytest.mark.parametrize(
    ("protocol", "script", "reason"),
    [
        (
            "imap",
            "B: * OK\nP: mp1 CAPABILITY\nB: * CAPABILITY IMAP4rev1\nB: mp1 OK",
            "upstream does not offer STARTTLS",
        ),
        (
            "pop3",
            "B: +OK\nP: CAPA\nB: +OK\nB: .",
            "upstream does not offer STARTTLS",
        ),
        (
            "smtp",
            "B: 220\nP: EHLO proxy.example\nB: 250-x\nB: 250 SIZE",
            "upstream does not offer STARTTLS",
        ),
        (
            "imap",
            "B: * OK [CAPABILITY STARTTLS]\nP: mp2 STARTTLS\nB: mp2 NO never",
            'upstream refused STARTTLS: "NO never"',
        ),
        (
            "pop3",
            "B: +OK\nP: CAPA\nB: -ERR\nP: STLS\nB: -ERR never",
            'upstream refused STARTTLS: "-ERR never"',
        ),
        (
            "smtp",
            "B: 220\nP: EHLO proxy.example\nB: 250-x\nB: 250 STARTTLS\n"
            "P: STARTTLS\nB: 454 not now",
            'upstream refused STARTTLS: "454 not now"',
        ),
        (
            "imap",
            "B: * OK [CAPABILITY STARTTLS]\nP: mp2 STARTTLS\n"
            "B: mp2 OK go\\r\\n* CAPABILITY IMAP4rev1",
            "upstream sent data before TLS, possible injection: "
            '"* CAPABILITY IMAP4rev1"',
        ),
    ],
)
async def test_a_probe_does_not_go_on_without_tls(
    protocol: str, script: str, reason: str, certificates: Certificates
) -> None:
    failure = await play(probe(certificates, protocol, "starttls"), script)
    assert failure is not None
    assert failure.text == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "old",
            "upstream SSL certificate verify error: (10:certificate has expired)",
        ),
        ("other", 'upstream SSL certificate does not match "mail.example"'),
        (
            "stranger",
            "upstream SSL certificate verify error: "
            "(20:unable to get local issuer certificate)",
        ),
    ],
)
async def test_a_certificate_that_sessions_do_not_accept_is_told(
    name: str, reason: str, certificates: Certificates
) -> None:
    asked = probe(certificates, "imap", "on")
    if name == "old":
        now = datetime.now(UTC)
        certificates.issue(
            "old", begins=now - timedelta(days=9), ends=now - timedelta(days=1)
        )
    elif name == "other":
        certificates.issue("other")
        asked = replace(asked, tls=tls(certificates, "on", "mail.example"))
    else:
        directory = certificates.directory / "elsewhere"
        directory.mkdir()
        stranger = Certificates(directory).issue("stranger")
        chain = b"".join(blob.bytes() for blob in stranger.cert_chain_pems)
        certificates.write("stranger.pem", chain)
        certificates.write("stranger.key", stranger.private_key_pem.bytes())
    failure = await play_tls(asked, server(certificates, name), "", "")
    assert failure is not None
    assert failure.text == reason


async def test_a_backend_that_knows_no_tls_is_told(certificates: Certificates) -> None:
    failure = await play(probe(certificates, "imap", "on"), "B: * OK ready")
    assert failure is not None
    assert failure.text.startswith("SSL_do_handshake() failed (SSL: ")
    failure = await play(probe(certificates, "imap", "on"), "", closes=True)
    assert failure is not None
    assert failure.text == "peer closed connection in SSL handshake"


async def test_what_came_before_tls_does_not_match(certificates: Certificates) -> None:
    asked = replace(
        probe(certificates, "imap", "starttls"),
        type=ProbeType.GREETING,
        match=Match(name="word", send=b"x NOOP\r\n", expect=b"ready"),
    )
    after = "P: x NOOP\nB: x OK indeed\nB: * OK ready\nP: h9 LOGOUT"
    context = server(certificates)
    assert await play_tls(asked, context, STARTTLS["imap"], after) is None


async def test_a_pin_and_a_name_that_is_none_are_checked(
    certificates: Certificates,
) -> None:
    asked = probe(certificates, "imap", "on")
    assert asked.tls is not None
    pinned = replace(
        asked.tls.settings, proxy_ssl_pinned_sha256=frozenset((bytes(32),))
    )
    context = server(certificates)
    failure = await play_tls(
        replace(asked, tls=replace(asked.tls, settings=pinned)), context, "", ""
    )
    assert failure is not None
    start = "upstream SSL certificate does not match the pin, its key has "
    assert failure.text.startswith(start)
    digest = bytes.fromhex(failure.text.removeprefix(start))
    pinned = replace(pinned, proxy_ssl_pinned_sha256=frozenset((bytes(32), digest)))
    right = replace(asked, tls=replace(asked.tls, settings=pinned))
    after = f"B: * OK ready\n{THEN['imap']}"
    assert await play_tls(right, context, "", after) is None
    nameless = replace(asked, tls=replace(asked.tls, name="no name"))
    failure = await play(nameless, "")
    assert failure is not None
    assert failure.text == 'upstream SSL certificate does not match "no name"'


@pytest.mark.parametrize("sent", [True, False])
async def test_the_name_is_sent_as_sessions_send_it(
    sent: bool, certificates: Certificates
) -> None:
    asked = replace(probe(certificates, "imap", "on"), type=ProbeType.GREETING)
    assert asked.tls is not None
    settings = replace(asked.tls.settings, proxy_ssl_server_name=sent)
    asked = replace(asked, tls=replace(asked.tls, settings=settings))
    context, names = server(certificates), []

    def note(_tls: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.sni_callback = note
    after = "B: * OK ready\nP: h9 LOGOUT"
    assert await play_tls(asked, context, "", after) is None
    assert names == ["localhost" if sent else None]
