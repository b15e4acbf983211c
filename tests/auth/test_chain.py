"""A chain of auth sources: who is asked, and what a client is told of the answers."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError, replace

import pytest
import trio
from trio.testing import MockClock

from mailproxy.auth.request import AuthRequest, ClientCertificate, ClientTls, Envelope
from mailproxy.auth.source import FAILURE_TEXT, Chain, Source
from mailproxy.auth.verdict import (
    Granted,
    Refused,
    Route,
    Unavailable,
    Unknown,
    Verdict,
)
from mailproxy.mail.modules import SOURCES
from mailproxy.net.proxy_protocol import Endpoint
from tests.auth.fake import FakeSource
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, ScopeTimer
from tests.play import Stage, load_server, parse

ROUTE = Route(server="127.0.0.1", port=9143)
GRANTED = Granted(user=b"u", secret=b"p", route=ROUTE)
REFUSED = Refused(text=b"no")
UNAVAILABLE = Unavailable(event="auth_fake failed: %s", values=("down",))
ANSWERS: tuple[Verdict, ...] = (GRANTED, REFUSED, Unknown(), UNAVAILABLE)
NOT_KNOWN = Refused(text=FAILURE_TEXT, reason="no auth source knows the user")
REQUEST = AuthRequest(
    protocol="imap", method="plain", user=b"u", secret=b"SECRET", client="127.0.0.1"
)


async def ask(*sources: Source) -> Verdict:
    """What a chain of these sources says."""
    timer = ScopeTimer()
    with timer:
        return await Chain(sources).check(
            REQUEST, MemoryNetwork(None), timer, CapturedLog().log
        )


def play(script: str, directives: str, *sources: Source) -> Stage:
    """Play a script with a server that has these sources."""
    server = replace(load_server(directives), auth=Chain(sources))
    stage = Stage(server)
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))
    return stage


# Who is asked


@pytest.mark.parametrize(("first", "second"), [*itertools.product(ANSWERS, repeat=2)])
async def test_first_source_that_knows_the_user_decides(
    first: Verdict, second: Verdict
) -> None:
    sources = FakeSource(first), FakeSource(second)
    verdict = await ask(*sources)
    if isinstance(first, Unknown):
        assert verdict == (NOT_KNOWN if isinstance(second, Unknown) else second)
    else:
        assert verdict == first
    asked = [len(source.asked) for source in sources]
    assert asked == [1, 1 if isinstance(first, Unknown) else 0]


async def test_all_sources_get_the_same_request() -> None:
    sources = [FakeSource(Unknown()) for _ in range(5)]
    assert await ask(*sources) == NOT_KNOWN
    assert all(source.asked == [REQUEST] for source in sources)


async def test_after_an_outage_no_later_source_is_asked() -> None:
    """It might take the user for somebody else, or for nobody."""
    later = [FakeSource(each) for each in ANSWERS]
    verdict = await ask(FakeSource(Unknown()), FakeSource(UNAVAILABLE), *later)
    assert verdict == UNAVAILABLE
    assert not any(source.asked for source in later)


async def test_each_source_has_a_limit_of_its_own(autojump_clock: MockClock) -> None:
    """One that takes its time leaves the next one as much."""
    slow = FakeSource(Unknown(), delay=9), FakeSource(GRANTED, delay=9)
    assert await ask(*slow) == GRANTED
    assert trio.current_time() == 18


@pytest.mark.parametrize("octet", [b"\r", b"\n", b"\0"])
@pytest.mark.parametrize("of_user", [True, False])
async def test_nothing_granted_can_end_a_line(of_user: bool, octet: bytes) -> None:
    value = b"SECRET" + octet + b"b LOGOUT"
    granted = (
        replace(GRANTED, user=value) if of_user else replace(GRANTED, secret=value)
    )
    verdict = await ask(FakeSource(granted), FakeSource(GRANTED))
    assert verdict == Unavailable(event="auth_fake sent invalid user or password")
    assert "SECRET" not in str(verdict)


async def test_granted_without_a_secret() -> None:
    granted = replace(GRANTED, secret=None)
    assert await ask(FakeSource(granted)) == granted


def test_sources_of_a_server_are_those_of_the_modules() -> None:
    server = load_server("protocol imap;")
    assert len(server.auth.sources) == len(SOURCES)
    assert all(isinstance(each, SOURCES) for each in server.auth.sources)
    assert all(issubclass(each, Source) for each in SOURCES)


# What the client is told

OUTAGE = [
    (
        "imap",
        "S: * OK IMAP4 ready\nC: a LOGIN u p",
        "S: * BAD internal server error\nS: ⟨close⟩",
    ),
    (
        "pop3",
        "S: +OK POP3 ready\nC: USER u\nS: +OK\nC: PASS p",
        "S: -ERR internal server error\nS: ⟨close⟩",
    ),
    (
        "smtp",
        "S: 220 mx.test ESMTP ready\nC: AUTH PLAIN AHUAcA==",
        "S: 451 4.3.2 Internal server error\nS: ⟨close⟩",
    ),
]
WHERE = 'while in http auth state, …, login: "u"'


@pytest.mark.parametrize(("protocol", "login", "answer"), OUTAGE)
@pytest.mark.parametrize("before", [[], [Unknown()], [Unknown(), Unknown()]])
@pytest.mark.parametrize("after", [[], [Unknown()], [REFUSED], [GRANTED]])
def test_an_outage_never_reads_as_a_wrong_password(
    protocol: str,
    login: str,
    answer: str,
    before: list[Verdict],
    after: list[Verdict],
) -> None:
    play(
        f"""
        {login}
        {answer}
        L: [error] auth_fake failed: down {WHERE}
        """,
        f"protocol {protocol};",
        *map(FakeSource, (*before, UNAVAILABLE, *after)),
    )


@pytest.mark.parametrize(("protocol", "login", "answer"), OUTAGE)
def test_nor_does_silence(protocol: str, login: str, answer: str) -> None:
    later = FakeSource(REFUSED)
    play(
        f"""
        {login}
        {answer}
        at 10
        L: [error] auth_fake timed out (110: Connection timed out) {WHERE}
        """,
        f"protocol {protocol}; timeout 5s;",
        *(FakeSource(Unknown()), FakeSource(None), later),
    )
    assert not later.asked


@pytest.mark.parametrize(
    ("protocol", "login", "refusal"),
    [
        (*OUTAGE[0][:2], "a NO"),
        (*OUTAGE[1][:2], "-ERR"),
        (*OUTAGE[2][:2], "535 5.7.0"),
    ],
)
def test_a_user_whom_no_source_knows_is_refused(
    protocol: str, login: str, refusal: str
) -> None:
    play(
        f"""
        {login}
        S: {refusal} Authentication failed
        S: ⟨close⟩
        L: [info] client login failed: "Authentication failed" (no auth source knows the user) {WHERE}
        """,
        f"protocol {protocol};",
        *(FakeSource(Unknown()), FakeSource(Unknown())),
    )


def test_what_the_error_and_its_level_were_is_logged() -> None:
    gone = Unavailable(
        event="connect() failed", error=OSError(13, "Permission denied"), level="crit"
    )
    play(
        f"""
        {OUTAGE[0][1]}
        {OUTAGE[0][2]}
        L: [crit] connect() failed (13: Permission denied) {WHERE}
        """,
        "protocol imap;",
        FakeSource(gone),
    )


def test_backend_of_proxy_pass_if_no_source_names_one() -> None:
    server = load_server("protocol imap; proxy_pass 127.0.0.1:9143;")
    granted = Granted(user=b"v", secret=b"p")
    chain = replace(server.auth, sources=(FakeSource(granted),))
    stage = Stage(replace(server, auth=chain))
    script = """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        B: * OK
        P: a LOGIN "v" "p"
        B: a OK in
        S: a OK in
        C: ⟨close⟩
        """
    trio.run(stage.perform, parse(script), clock=MockClock(autojump_threshold=0))
    assert stage.network.reached == [("127.0.0.1", 9143)]


def test_a_user_whose_backend_no_source_knows() -> None:
    play(
        f"""
        {OUTAGE[0][1]}
        {OUTAGE[0][2]}
        L: [error] no route for user "v" {WHERE}
        """,
        "protocol imap;",
        FakeSource(Granted(user=b"v", secret=b"p")),
    )


def test_the_user_of_a_later_source_gets_in() -> None:
    play(
        """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        B: * OK
        P: a LOGIN "v" "q"
        B: a OK
        S: a OK
        L: [info] client logged in, …, login: "v", upstream: mail:143
        """,
        "protocol imap;",
        FakeSource(Unknown()),
        FakeSource(
            Granted(
                user=b"v",
                secret=b"q",
                route=Route(server="127.0.0.1", port=143, text="mail:143"),
            )
        ),
    )


# What a source is told


def requests(script: str, directives: str) -> list[AuthRequest]:
    """What a source is asked in a session, which it lets go on."""
    source = FakeSource(Refused(text=b"no", wait=1))
    play(script, directives, source)
    return source.asked


COMMON = AuthRequest(
    protocol="imap",
    method="plain",
    user=b"u",
    secret=b"p",
    client="127.0.0.1",
    client_port=40000,
    listen="127.0.0.1:1143",
    server_name=b"mx.test",
)


def test_request_of_an_imap_client() -> None:
    script = """
        S: * OK IMAP4 ready
        C: a LOGIN u p
        S: a NO no
        C: a AUTHENTICATE EXTERNAL dg==
        S: a NO no
    """
    second = replace(COMMON, method="external", user=b"v", secret=None, attempt=2)
    assert requests(script, "protocol imap; imap_auth external;") == [COMMON, second]


def test_request_of_a_pop3_client_with_a_digest() -> None:
    script = """
        S: +OK POP3 ready <⟨salt⟩@mx.test>
        C: APOP u 0123456789abcdef0123456789abcdef
        S: -ERR no
    """
    (request,) = requests(script, "protocol pop3; pop3_auth apop;")
    assert request.salt.endswith(b"@mx.test>")
    assert request == replace(
        COMMON,
        protocol="pop3",
        method="apop",
        secret=b"0123456789abcdef0123456789abcdef",
        salt=request.salt,
    )


def test_request_of_an_smtp_client_that_does_not_log_in() -> None:
    script = """
        S: 220 mx.test ESMTP ready
        C: HELO me
        S: 250 mx.test
        C: MAIL FROM:<a@b> SIZE=3
        S: 250 2.0.0 OK
        C: RCPT TO:<c@d>
        S: 535 5.7.0 no
    """
    assert requests(script, "protocol smtp; smtp_auth none;") == [
        replace(
            COMMON,
            protocol="smtp",
            method="none",
            user=b"",
            secret=None,
            envelope=Envelope(b"MAIL FROM:<a@b> SIZE=3", b"RCPT TO:<c@d>"),
            needs_password=False,
            client_host=b"[UNAVAILABLE]",
            helo=b"me",
        )
    ]


def test_request_of_a_client_behind_a_proxy() -> None:
    script = """
        C: PROXY TCP4 192.0.2.1 198.51.100.1 1234 143
        S: * OK IMAP4 ready
        C: a LOGIN u p
        S: a NO no
    """
    (request,) = requests(
        script,
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol;"
        "set_real_ip_from 127.0.0.0/8;",
    )
    header = request.proxy_header
    assert header is not None
    assert header.source == Endpoint("192.0.2.1", 1234)
    assert header.destination == Endpoint("198.51.100.1", 143)
    assert request == replace(
        COMMON, client="192.0.2.1", client_port=1234, proxy_header=header
    )


def test_request_of_a_client_in_tls() -> None:
    script = """
        C: ⟨tls⟩
        S: * OK IMAP4 ready
        C: a LOGIN u p
        S: a NO no
    """
    directives = "protocol imap; listen 127.0.0.1:1143 ssl; ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
    assert requests(script, directives) == [
        replace(
            COMMON, tls=ClientTls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
        )
    ]


# Values


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (REQUEST, "user"),
        (ROUTE, "server"),
        (GRANTED, "secret"),
        (REFUSED, "text"),
        (UNAVAILABLE, "level"),
        (Chain(()), "sources"),
        (Envelope(b"", b""), "mail"),
    ],
)
def test_values_do_not_change(value: object, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, None)


def test_reprs_show_no_secret() -> None:
    certificate = ClientCertificate(
        subject=b"CN=u", issuer=b"CN=ca", serial=b"01", fingerprint=b"ab", pem=b"SECRET"
    )
    tls = ClientTls(version="TLSv1.3", cipher="", certificate=certificate)
    request = replace(REQUEST, tls=tls)
    granted = replace(GRANTED, secret=b"SECRET")
    unavailable = Unavailable(event="%s", values=(b"SECRET",))
    for each in (request, granted, unavailable, unavailable.exception()):
        assert "SECRET" not in f"{each!r} {each}"
    assert "CN=u" in repr(request)
