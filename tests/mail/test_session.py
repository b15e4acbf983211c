"""A session as a whole: its phases, its timers, its ends, and any octets."""

from __future__ import annotations

import errno
import itertools
import re

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.conf.addresses import IPAddress, SocketAddress
from mailproxy.net.dns import Resolver
from mailproxy.net.dns_messages import NOT_FOUND, Answer, packed
from mailproxy.net.outgoing import Outgoing
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemoryWire
from tests.play import Stage, answer, auth_url, load_server, play

TLS = "ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;"
ASKED = """
    C: a LOGIN u p
    Q: plain u p
"""
GRANTED = f"""
    {ASKED}
    A: OK
"""
ENTERED = f"""
    {GRANTED}
    B: * OK
    P: a LOGIN "u" "p"
    B: a OK
    S: a OK
"""
LOGIN = '…, login: "u"'
UPSTREAM = f"{LOGIN}, upstream: 127.0.0.1:9143"
LOGGED_IN = f"L: [info] client logged in, {UPSTREAM}"
SILENT = "L: [info] client timed out (110: Connection timed out) while"


def imap(script: str, directives: str = "", **options: object) -> Stage:
    """Play a script behind the greeting."""
    return play(
        f"S: * OK IMAP4 ready\n{script}", f"protocol imap; {directives}", **options
    )


def test_first_line_of_the_log() -> None:
    for client, shown in (
        ("127.0.0.1", "127.0.0.1:40000"),
        ("unix:", "unix:"),
        ("::1", "[::1]:40000"),
    ):
        stage = imap("", client=client)
        assert stage.log.events[0] == (
            "info",
            f"client {shown} connected to 127.0.0.1:1143",
        )


# Timers


def test_commands_do_not_extend_the_time_for_a_login() -> None:
    imap(
        f"""
        wait 40
        C: a NOOP
        S: a OK completed
        S: ⟨close⟩
        at 60
        {SILENT} in auth state, …
        """
    )


def test_starttls_does_not_extend_the_time_for_a_login() -> None:
    imap(
        f"""
        wait 40
        C: a STARTTLS
        S: a OK completed
        S: ⟨close⟩
        at 60
        {SILENT} in starttls state, client: 127.0.0.1 using starttls, server: 127.0.0.1:1143
        """,
        f"starttls on; {TLS}",
    )
    imap(
        """
        wait 40
        C: a STARTTLS
        S: a OK completed
        C: ⟨tls⟩
        S: ⟨close⟩
        at 60
        """,
        f"starttls on; {TLS}",
    )


def test_each_phase_before_the_greeting_has_its_own_time() -> None:
    play(
        f"""
        wait 9
        C: PROXY UNKNOWN
        wait 9
        C: ⟨tls⟩
        S: * OK IMAP4 ready
        S: ⟨close⟩
        at 28
        {SILENT} in auth state, …
        """,
        f"protocol imap; listen 127.0.0.1:1143 ssl proxy_protocol; timeout 10s; {TLS}",
    )


@pytest.mark.parametrize(
    ("script", "action"),
    [("", "reading PROXY protocol"), ("C: PROXY UNKNOWN", "SSL handshaking")],
)
def test_client_that_says_nothing_before_the_greeting(script: str, action: str) -> None:
    play(
        f"{script}\nS: ⟨close⟩\nat 10\n{SILENT} {action}, …",
        f"protocol imap; listen 127.0.0.1:1143 ssl proxy_protocol; timeout 10s; {TLS}",
    )


@pytest.mark.proves("timeout")
def test_time_for_a_login_begins_anew_after_a_refusal() -> None:
    again = """
        C: a LOGIN u p
        Q: plain u p #2
        A: NO no
        A| Auth-Wait: 1
        S: a NO no
    """
    imap(
        f"""
        {ASKED}
        A: NO no
        A| Auth-Wait: 1
        S: a NO no
        at 1
        wait 1.5
        {again}
        at 3.5
        S: ⟨close⟩
        at 5.5
        """,
        "timeout 2s;",
    )


def test_auth_server_does_not_use_up_the_time_for_a_login() -> None:
    imap(
        f"{ASKED}\nwait 50\n{ENTERED.replace(ASKED, 'A: OK').replace('A: OK', '', 1)}",
        "timeout 10s;",
    )


def test_backend_has_one_time_for_the_whole_login() -> None:
    imap(
        f"""
        {GRANTED}
        wait 9
        B: * OK
        P: a LOGIN "u" "p"
        S: * BAD internal server error
        at 10
        S: ⟨close⟩
        P: ⟨close⟩
        L: [info] upstream timed out (110: Connection timed out) while sending LOGIN command to upstream, {UPSTREAM}
        """,
        "timeout 10s;",
    )


@pytest.mark.parametrize(
    ("said", "action"),
    [
        ("", "connecting to upstream"),
        ("B: * O…", "reading response from upstream"),
        ('B: * OK\nP: a LOGIN "u" "p"', "sending LOGIN command to upstream"),
        ("B: * OK\nP: a LOGIN {1}\nB: +\nP: u {1}", "sending user name to upstream"),
        (
            "B: * OK\nP: a LOGIN {1}\nB: +\nP: u {1}\nB: +\nP: p",
            "sending password to upstream",
        ),
    ],
)
def test_backend_that_falls_silent(said: str, action: str) -> None:
    how = "proxy_login literal;" if "{1}" in said else ""
    for directive in (how, f"proxy_pass_error_message on; {how}"):
        imap(
            f"""
            {GRANTED}
            {said}
            S: * BAD internal server error
            S: ⟨close⟩
            at 60
            L: [info] upstream timed out (110: Connection timed out) while {action}, {UPSTREAM}
            """,
            directive,
        )


def test_client_that_does_not_read_its_answers() -> None:
    server = load_server("protocol imap;")
    stage = Stage(server)
    stage.wire.room = 64

    async def run() -> float:
        start = trio.current_time()
        stage.wire.put(b"a CAPABILITY\r\n" * 10)
        await stage.run_session()
        return trio.current_time() - start

    assert trio.run(run, clock=MockClock(autojump_threshold=0)) == 60
    assert stage.log.events[-1][1].startswith(
        "client timed out (110: Connection timed out)"
    )


# Ends


def test_client_that_leaves_is_logged() -> None:
    imap(
        "C: ⟨close⟩\nS: ⟨close⟩\nL: [info] client closed connection while in auth state, …"
    )
    imap(
        "C: a NO…\nC: ⟨close⟩\nS: ⟨close⟩\nL: [info] client closed connection while in auth state, …"
    )


def test_client_that_resets() -> None:
    imap(
        """
        C: ⟨reset⟩
        S: ⟨close⟩
        L: [info] recv() failed (104: Connection reset by peer) while in auth state, …
        """
    )


def test_client_that_resets_while_its_login_is_checked() -> None:
    imap(
        f"""
        {ASKED}
        C: ⟨reset⟩
        A: NO no
        S: ⟨close⟩
        L: [info] client login failed: "no" while in http auth state, {LOGIN}
        L: [info] send() failed (104: Connection reset by peer) while in http auth state, {LOGIN}
        """
    )


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ("⟨close⟩", "upstream closed connection prematurely"),
        ("⟨reset⟩", "recv() failed (104: Connection reset by peer)"),
    ],
)
def test_backend_that_leaves(event: str, line: str) -> None:
    for directive in ("", "proxy_pass_error_message on;"):
        imap(
            f"""
            {GRANTED}
            B: {event}
            S: * BAD internal server error
            S: ⟨close⟩
            L: [error] {line} while reading response from upstream, {UPSTREAM}
            """,
            directive,
        )


def test_backend_that_leaves_in_the_middle_of_a_reply() -> None:
    imap(
        f"""
        {GRANTED}
        B: * OK
        P: a LOGIN "u" "p"
        B: * g…
        B: ⟨close⟩
        S: * BAD internal server error
        S: ⟨close⟩
        """
    )


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (errno.ECONNREFUSED, "error"),
        (errno.EHOSTUNREACH, "error"),
        (errno.ENOBUFS, "crit"),
        (errno.EMFILE, "crit"),
        (errno.ENFILE, "crit"),
        (errno.EADDRNOTAVAIL, "crit"),
    ],
)
def test_backend_that_cannot_be_reached(number: int, level: str) -> None:
    stage = imap(
        f"{GRANTED}\nS: * BAD internal server error\nS: ⟨close⟩", failing={"P": number}
    )
    assert stage.log.events[-1][0] == level
    text = stage.log.events[-1][1]
    assert text.startswith(f"connect() to 127.0.0.1:9143 failed ({number}: ")
    assert " while connecting to upstream, " in text


def test_bug_ends_the_session_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(load_server("protocol imap;"))

    def connect(family: int, address: object) -> MemoryWire:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(stage.network, "connect", connect)

    async def run() -> None:
        stage.wire.put(b"a LOGIN u p\r\n")
        await stage.run_session()

    trio.run(run)
    assert stage.wire.closed
    texts = [text for level, text in stage.log.events if level == "alert"]
    assert texts[0].startswith(
        "session failed, this is a bug while in http auth state, "
    )
    assert "ZeroDivisionError: a bug" in texts[-1]


def test_cancelled_session_closes_everything() -> None:
    stage = Stage(load_server("protocol imap;"))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run_session)
            stage.wire.put(b"a LOGIN u p\r\n")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(run)
    assert stage.wire.closed
    assert all(wire.closed for wire in stage.network.wires["Q"])


# Relayed sessions


def test_relay_ends_with_either_side() -> None:
    for event in ("C: ⟨close⟩", "B: ⟨close⟩"):
        imap(
            f"""
            {ENTERED}
            {LOGGED_IN}
            {event}
            S: ⟨close⟩
            P: ⟨close⟩
            L: [info] proxied session done, {UPSTREAM}
            """
        )


@pytest.mark.parametrize(
    ("side", "level", "name"), [("C", "info", "client"), ("B", "error", "upstream")]
)
def test_relay_that_is_reset(side: str, level: str, name: str) -> None:
    imap(
        f"""
        {ENTERED}
        {LOGGED_IN}
        {side}: ⟨reset⟩
        S: ⟨close⟩
        P: ⟨close⟩
        L: [{level}] recv() failed (104: Connection reset by peer) while proxying and reading from {name}, {UPSTREAM}
        L: [info] proxied session done, {UPSTREAM}
        """
    )


@pytest.mark.proves("proxy_timeout")
def test_relay_that_is_idle() -> None:
    imap(
        f"""
        {ENTERED}
        {LOGGED_IN}
        wait 20
        B: * 1 EXISTS
        S: * 1 EXISTS
        wait 20
        C: DONE
        P: DONE
        S: ⟨close⟩
        at 70
        P: ⟨close⟩
        {SILENT} proxying, {UPSTREAM}
        """,
        "proxy_timeout 30s;",
    )


# PROXY headers and TLS


@pytest.mark.proves("listen", "proxy_protocol")
def test_nothing_is_said_before_the_proxy_header() -> None:
    play(
        """
        S: ⟨silence⟩
        C: PROXY TC…
        S: ⟨silence⟩
        C: P4 192.0.2.1 192.0.2.2 1234 143
        C| a NOOP
        S: * OK IMAP4 ready
        S: a OK completed
        L: ⟨silence⟩
        """,
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol;",
    )


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        ("a NOOP", '[error] broken header: "a NOOP"'),
        ("PROXY TCP4 x y 1 2", '[error] broken header: "PROXY TCP4 x y 1 2"'),
        (
            "␍␊␍␊␀␍␊QUIT␊⟨31⟩⟨11⟩…",
            "[error] unknown PROXY protocol version: 3",
        ),
        ("⟨close⟩", "[info] client closed connection"),
        ("⟨reset⟩", "[info] recv() failed (104: Connection reset by peer)"),
    ],
)
def test_bad_proxy_header_ends_the_session(sent: str, line: str) -> None:
    play(
        f"C: {sent}\nS: ⟨close⟩\nL: {line} while reading PROXY protocol, …",
        "protocol imap; listen 127.0.0.1:1143 proxy_protocol;",
    )


@pytest.mark.proves("set_real_ip_from", "unix:")
@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("::1", "::/0"),
        ("unix:", "unix:"),
    ],
)
def test_proxy_header_of_a_trusted_peer_is_believed(peer: str, trusted: str) -> None:
    stage = play(
        f"""
        C: PROXY TCP4 192.0.2.1 192.0.2.2 1234 143
        S: * OK IMAP4 ready
        {GRANTED.replace("plain u p", "⟨any⟩")}
        P: PROXY TCP4 192.0.2.1 127.0.0.1 1234 1143
        B: * OK
        P: a LOGIN "u" "p"
        """,
        f"protocol imap; listen 127.0.0.1:1143 proxy_protocol; proxy_protocol on; set_real_ip_from {trusted};",
        client=peer,
    )
    assert b"\r\nClient-IP: 192.0.2.1\r\n" in stage.requests[0]


@pytest.mark.proves("set_real_ip_from")
@pytest.mark.parametrize(
    ("peer", "trusted"),
    [("127.0.0.1", "10.0.0.0/8"), ("unix:", "0.0.0.0/0"), ("127.0.0.1", "unix:")],
)
def test_proxy_header_of_others_is_not_believed(peer: str, trusted: str) -> None:
    stage = play(
        """
        C: PROXY TCP4 192.0.2.1 192.0.2.2 1234 143
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: ⟨any⟩
        """,
        f"protocol imap; listen 127.0.0.1:1143 proxy_protocol; set_real_ip_from {trusted};",
        client=peer,
    )
    assert f"\r\nClient-IP: {peer}\r\n".encode() in stage.requests[0]


@pytest.mark.parametrize(
    ("client", "header"),
    [
        ("127.0.0.1", "PROXY TCP4 127.0.0.1 127.0.0.1 40000 1143"),
        ("::1", "PROXY TCP6 ::1 ::ffff:127.0.0.1 40000 1143"),
        ("unix:", "PROXY UNKNOWN"),
    ],
)
def test_backend_gets_a_proxy_header(client: str, header: str) -> None:
    imap(
        f"""
        {GRANTED.replace("plain u p", "⟨any⟩")}
        P: {header}
        B: * OK
        P: a LOGIN "u" "p"
        """,
        "proxy_protocol on;",
        client=client,
    )


def test_client_that_leaves_instead_of_a_handshake() -> None:
    imap(
        """
        C: a STARTTLS
        S: a OK completed
        C: ⟨close⟩
        S: ⟨close⟩
        L: [info] peer closed connection in SSL handshake while in starttls state, client: 127.0.0.1 using starttls, server: 127.0.0.1:1143
        """,
        f"starttls on; {TLS}",
    )


# Names of SMTP clients


class OneName(Resolver):
    """A resolver that knows one name, or none, after a while."""

    def __init__(self, name: bytes, seconds: float) -> None:
        self.name = name
        self.seconds = seconds

    async def find_name(self, address: IPAddress) -> Answer:
        await trio.sleep(self.seconds)
        return Answer(0, (self.name,)) if self.name else Answer(NOT_FOUND)

    async def find_addresses(self, name: bytes, wanted: IPAddress) -> Answer:
        return Answer(0, (packed(wanted),))


@pytest.mark.proves("resolver")
def test_name_of_the_client_is_told() -> None:
    play(
        """
        C: AUTH PLAIN AHUAcA==
        S: ⟨silence⟩
        S: 220 mx.test ESMTP ready
        at 3
        Q: GET /auth HTTP/1.0
        Q| Host: 127.0.0.1
        Q| Auth-Method: plain
        Q| Auth-User: u
        Q| Auth-Pass: p
        Q| Auth-Protocol: smtp
        Q| Auth-Login-Attempt: 1
        Q| Client-IP: 127.0.0.1
        Q| Client-Host: client.test
        A: OK
        B: 220 backend
        P: EHLO mx.test
        B: 250 backend
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=client.test
        """,
        "protocol smtp; resolver 127.0.0.1;",
        resolver=OneName(b"client.test", 3),
    )


def test_greeting_is_delayed_after_the_name_is_known() -> None:
    directives = "protocol smtp; resolver 127.0.0.1; smtp_greeting_delay 2s;"
    resolver = OneName(b"", 3)
    play("S: 220 mx.test ESMTP ready\nat 5", directives, resolver=resolver)
    play(
        """
        C: NOOP
        S: 503 5.5.0 Improper use of SMTP command pipelining
        at 3
        """,
        directives,
        resolver=resolver,
    )


# Any octets

BACKENDS = {
    "imap": f"S: * OK IMAP4 ready\n{ENTERED}",
    "pop3": """
        S: +OK POP3 ready
        C: USER u
        S: +OK
        C: PASS p
        Q: plain u p
        A: OK
        B: +OK ready
        P: USER u
        B: +OK
        P: PASS p
        B: +OK two letters
        S: +OK two letters
    """,
    "smtp": """
        S: 220 mx.test ESMTP ready
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: OK
        B: 220-ready
        B: 220 to go
        P: EHLO mx.test
        B: 250-backend
        B: 250 XCLIENT
        P: XCLIENT ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE]
        B: 220
        S: 235 2.0.0 OK
    """,
}


@pytest.mark.parametrize("protocol", BACKENDS)
def test_backend_may_send_its_replies_in_pieces(protocol: str) -> None:
    pieces = re.sub(
        r"B: (.*)",
        lambda line: "\n".join(f"B: {octet}…" for octet in f"{line[1]}⏎"),
        BACKENDS[protocol],
    )
    for script in (BACKENDS[protocol], pieces):
        play(f"{script}\n{LOGGED_IN}", f"protocol {protocol};")


PROTOCOLS = {
    "imap": "imap_auth plain login cram-md5 external xoauth2 oauthbearer; imap_client_buffer 256;",
    "pop3": "pop3_auth plain apop cram-md5 external xoauth2 oauthbearer;",
    "smtp": "smtp_auth plain login cram-md5 external none xoauth2 oauthbearer; smtp_client_buffer 256;",
}
WORDS = {
    "imap": [
        *(b"a LOGIN u p\r\n", b"a LOGIN {1}\r\nu {1+}\r\np\r\n"),
        *(b"a AUTHENTICATE PLAIN AHUAcA==\r\n", b"a AUTHENTICATE LOGIN\r\n"),
        *(
            b"a",
            b"NOOP",
            b"LOGIN",
            b"CAPABILITY",
            b"AUTHENTICATE",
            b"STARTTLS",
            b"LOGOUT",
        ),
        *(b'"', b'"u"', b"\\", b"{1}", b"{1+}", b"{0}", b"{300}", b"+}", b"AHUAcA=="),
    ],
    "pop3": [
        *(b"USER u\r\n", b"PASS p\r\n", b"APOP u d\r\n", b"AUTH PLAIN AHUAcA==\r\n"),
        *(b"NOOP", b"USER", b"PASS", b"APOP", b"CAPA", b"AUTH", b"STLS", b"QUIT"),
        *(b"u", b"AHUAcA==", b"x" * 3000),
    ],
    "smtp": [
        *(b"EHLO c\r\n", b"MAIL x\r\n", b"RCPT y\r\n", b"AUTH PLAIN AHUAcA==\r\n"),
        *(b"NOOP", b"EHLO", b"HELO", b"MAIL", b"RCPT", b"RSET", b"AUTH", b"STARTTLS"),
        *(b"QUIT", b"VRFY", b"u", b"AHUAcA=="),
    ],
}
COMMON = [
    *(b" ", b" ", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b"\xff", b"*", b"=", b"dQ=="),
    *(b"PLAIN", b"LOGIN", b"CRAM-MD5", b"EXTERNAL", b"XOAUTH2", b"OAUTHBEARER"),
]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A protocol, and what a client of it may say."""
    protocol = draw(st.sampled_from(sorted(PROTOCOLS)))
    words = st.sampled_from([*WORDS[protocol], *COMMON]) | st.binary(max_size=8)
    return protocol, draw(st.lists(words, max_size=60))


@st.composite
def cut(draw: st.DrawFn, pieces: list[bytes]) -> list[bytes]:
    """The same octets in other pieces."""
    data = b"".join(pieces)
    places = draw(st.sets(st.integers(0, len(data)), max_size=12))
    ends = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(ends)]


class Neighbours(MemoryNetwork):
    """An auth server that refuses once, and backends that let everybody in.

    Backends answer no more once a client is in: it depends on time, and not on what
    was sent, how much of that its client gets before it leaves.

    Attributes:
      heard: what they were told.
    """

    def __init__(self, protocol: str, auth: object, log: CapturedLog) -> None:
        super().__init__(auth)
        self.heard: list[bytes] = []
        self._protocol = protocol
        self._log = log
        self._asked = 0
        self._tag = b""

    def connect(
        self, family: int, address: SocketAddress, how: Outgoing | None = None
    ) -> MemoryWire:
        wire = super().connect(family, address, how)
        if wire in self.wires["Q"]:
            wire.listener = self._decide
        else:
            wire.listener = self._let_in
            wire.put(
                {"imap": b"* OK\r\n", "pop3": b"+OK\r\n", "smtp": b"220\r\n"}[
                    self._protocol
                ]
            )
        return wire

    def _decide(self, wire: MemoryWire, request: bytes) -> None:
        self.heard.append(request)
        self._asked += 1
        wire.put(
            answer(
                ("NO later", "Auth-Wait: 1")
                if self._asked == 1
                else ("OK", "Auth-Pass: p")
            )
        )

    def _let_in(self, wire: MemoryWire, said: bytes) -> None:
        self.heard.append(said)
        if self._log.events[-1][1].startswith("client logged in"):
            return
        tag, _, rest = said.partition(b" ")
        if self._protocol == "pop3":
            wire.put(b"+OK\r\n")
        elif self._protocol == "smtp":
            wire.put({b"XCLIENT": b"220\r\n", b"AUTH": b"235\r\n"}.get(tag, b"250\r\n"))
        elif said.endswith(b"}\r\n"):
            self._tag = tag if rest.startswith(b"LOGIN") else self._tag
            wire.put(b"+\r\n")
        else:
            wire.put(self._tag + b" OK\r\n")


def converse(protocol: str, pieces: list[bytes]) -> tuple[object, ...]:
    """What everyone hears, and what is logged, when a client says this and leaves."""
    server = load_server(f"protocol {protocol}; {PROTOCOLS[protocol]}")
    stage = Stage(server)
    stage.network = network = Neighbours(protocol, auth_url(server).sockaddr, stage.log)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.run_session)
            for piece in pieces:
                stage.wire.put(piece)
                await wait_all_tasks_blocked()
            stage.wire.finish()

    trio.run(run, clock=MockClock(autojump_threshold=0))
    stage.check_sanity()
    assert stage.wire.closed
    replaced = stage.signs.put
    return (
        replaced(bytes(stage.wire.outgoing)),
        replaced(b"".join(network.heard)),
        [text for _, text in stage.log.events],
    )


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_split_of_the_octets_gives_the_same(data: st.DataObject) -> None:
    protocol, words = data.draw(conversations())
    whole = converse(protocol, [b"".join(words)])
    assert converse(protocol, data.draw(cut(words))) == whole


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_endless_line_is_not_kept(protocol: str) -> None:
    stage = Stage(load_server(f"protocol {protocol}; {PROTOCOLS[protocol]}"))

    async def run() -> None:
        stage.wire.put(b"a" * 100_000)
        await stage.run_session()

    trio.run(run)
    assert stage.wire.received == stage.server.protocol.client_buffer
    assert stage.wire.closed
