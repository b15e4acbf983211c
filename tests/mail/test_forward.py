"""What backends are told of a client by ID and XCLIENT, and what proxies in front say."""

from __future__ import annotations

from typing import cast

import pytest

from mailproxy.log import SessionInfo
from mailproxy.mail import forward
from mailproxy.mail.client import Client
from mailproxy.mail.trace import Secrets
from mailproxy.net import openssl
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemorySocket, MemoryTls, MemoryWire
from tests.play import FAILED, OPENINGS, Stage, load_server, play

ENTERED = {
    "imap": 'P: a LOGIN "u" "p"\nB: a OK in\nS: a OK in',
    "pop3": "P: USER u\nB: +OK\nP: PASS p\nB: +OK in\nS: +OK in",
    "smtp": "S: 235 2.0.0 OK",
}
UPSTREAM = '…, login: "u", upstream: 127.0.0.1:9143'
IDENTITY = (
    '("x-session-id" "18f.2a.1" "x-originating-ip" "127.0.0.1"'
    ' "x-originating-port" "40000" "x-connected-ip" "127.0.0.1"'
    ' "x-connected-port" "1143" "x-proxy-ttl" "7" "x-client-transport" "insecure")'
)
ATTRIBUTES = (
    "ADDR=127.0.0.1 PORT=40000 DESTADDR=127.0.0.1 DESTPORT=1143"
    " SESSION=18f.2a.1 TTL=7 CLIENT-TRANSPORT=insecure"
)
ALL = "XCLIENT ADDR PORT LOGIN NAME DESTADDR DESTPORT SESSION TTL CLIENT-TRANSPORT"


def run(protocol: str, script: str, directives: str, **options: object) -> Stage:
    return play(
        f"{OPENINGS[protocol]}\n{script}",
        f"protocol {protocol}; {directives}",
        **options,
    )


# IMAP


@pytest.mark.proves("proxy_forward", "id")
def test_id() -> None:
    run(
        "imap",
        f"""
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY}
        B: * ID ("name" "Dovecot")
        B: mp4 OK done
        {ENTERED["imap"]}
        """,
        "proxy_forward id;",
    )


def test_backend_is_asked_for_id() -> None:
    run(
        "imap",
        f"""
        B: * OK hi
        P: mp1 CAPABILITY
        B: * CAPABILITY IMAP4rev1 ID
        B: mp1 OK done
        P: mp4 ID {IDENTITY}
        B: mp4 OK done
        {ENTERED["imap"]}
        """,
        "proxy_forward id xclient;",
    )


@pytest.mark.parametrize("capabilities", ["IMAP4rev1", "IMAP4rev1 IDLE XID", ""])
def test_id_that_is_not_announced_is_not_sent(capabilities: str) -> None:
    run(
        "imap",
        f"B: * OK [CAPABILITY {capabilities} ] hi\n{ENTERED['imap']}",
        "proxy_forward id;",
    )


@pytest.mark.proves("proxy_forward", "off")
@pytest.mark.parametrize("value", ["off", "xclient"])
def test_other_values_say_nothing_to_imap(value: str) -> None:
    run("imap", f"B: * OK hi\n{ENTERED['imap']}", f"proxy_forward {value};")


@pytest.mark.parametrize("answer", ["mp4 BAD what", "mp4 NO no"])
def test_id_that_is_refused(answer: str) -> None:
    run(
        "imap",
        f"""
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY}
        B: {answer}
        {FAILED["imap"]}
        L: [error] upstream sent invalid response: "{answer}" to ID, try "proxy_forward off" while reading response from upstream, {UPSTREAM}
        """,
        "proxy_forward id;",
    )


@pytest.mark.parametrize("answer", ["* BYE busy", "a OK what", "+ go on", "⟨close⟩"])
def test_backend_that_answers_something_else_to_id(answer: str) -> None:
    run(
        "imap",
        f"""
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY}
        B: {answer}
        {FAILED["imap"]}
        """,
        "proxy_forward id;",
    )


def test_client_s_own_id_is_not_forwarded() -> None:
    play(
        f"""
        S: * OK IMAP4 ready
        C: i ID ("x-originating-ip" "192.0.2.66" "x-proxy-ttl" "1" "name" "x")
        S: * ID NIL
        S: i OK completed
        C: a LOGIN u p
        Q: plain u p
        A: OK
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY}
        B: mp4 OK done
        {ENTERED["imap"]}
        """,
        "protocol imap; proxy_forward id;",
    )


# POP3


@pytest.mark.proves("proxy_forward", "xclient")
@pytest.mark.parametrize(
    "greeting", ["+OK [XCLIENT] Dovecot ready.", "+OK  [xclient]", "+OK [XCLIENT]x"]
)
def test_pop3_xclient(greeting: str) -> None:
    run(
        "pop3",
        f"""
        B: {greeting}
        P: XCLIENT {ATTRIBUTES}
        B: +OK Updated
        {ENTERED["pop3"]}
        """,
        "proxy_forward xclient id;",
    )


@pytest.mark.parametrize("greeting", ["+OK", "+OK hi [XCLIENT]", "+OK XCLIENT"])
def test_pop3_xclient_that_is_not_announced_is_not_sent(greeting: str) -> None:
    run("pop3", f"B: {greeting}\n{ENTERED['pop3']}", "proxy_forward xclient;")


def test_id_says_nothing_to_pop3() -> None:
    run("pop3", f"B: +OK [XCLIENT] hi\n{ENTERED['pop3']}", "proxy_forward id;")


def test_pop3_xclient_that_is_refused() -> None:
    """It is no refusal of the login."""
    run(
        "pop3",
        f"""
        B: +OK [XCLIENT] hi
        P: XCLIENT {ATTRIBUTES}
        B: -ERR You are not from trusted IP
        {FAILED["pop3"]}
        L: [error] upstream sent invalid response: "-ERR You are not from trusted IP" to XCLIENT, try "proxy_forward off" while reading response from upstream, {UPSTREAM}
        """,
        "proxy_forward xclient;",
    )


# SMTP


def hello(extensions: str) -> str:
    return f"B: 220 hi\nP: EHLO mx.test\nB: 250-x⏎250 {extensions}"


@pytest.mark.parametrize("xclient", ["on", "auto"])
@pytest.mark.parametrize(
    ("offer", "sent"),
    [
        (ALL, f"ADDR=127.0.0.1 LOGIN=u NAME=[UNAVAILABLE] {ATTRIBUTES.partition(' ')[2]}"),
        ("XCLIENT NAME addr PORT HELO PROTO", "ADDR=127.0.0.1 NAME=[UNAVAILABLE] PORT=40000"),
        ("XCLIENT TTL", "TTL=7"),
        ("XCLIENT", ""),
        ("SIZE", ""),
    ],
)  # fmt: skip
def test_smtp_xclient_has_the_listed_attributes(
    offer: str, sent: str, xclient: str
) -> None:
    told = f"P: XCLIENT {sent}\nB: 220 hi\n" if sent else ""
    run(
        "smtp",
        f"{hello(offer)}\n{told}{ENTERED['smtp']}",
        f"xclient {xclient}; proxy_forward xclient;",
    )


def test_xclient_off_stays_off() -> None:
    run(
        "smtp",
        f"B: 220 hi\nP: HELO mx.test\nB: 250 x\n{ENTERED['smtp']}",
        "xclient off; proxy_forward xclient;",
    )


def test_smtp_backend_without_ehlo_is_told_nothing() -> None:
    run(
        "smtp",
        f"""
        B: 220 hi
        P: EHLO mx.test
        B: 502 what
        P: HELO mx.test
        B: 250 x
        {ENTERED["smtp"]}
        """,
        "proxy_forward xclient;",
    )


def test_smtp_xclient_of_ipv6() -> None:
    play(
        f"""
        {OPENINGS["smtp"].replace("plain u p", "⟨any⟩")}
        {hello("XCLIENT ADDR PORT")}
        P: XCLIENT ADDR=IPV6:2001:db8::1 PORT=40000
        B: 220 hi
        {ENTERED["smtp"]}
        """,
        "protocol smtp; proxy_forward xclient;",
        client="2001:db8::1",
    )


# What there is to tell


def described(
    directives: str = "",
    *,
    tls: bytes | None = None,
    client: str = "192.0.2.1",
    local: object = ("192.0.2.9", 143),
    ttl: int | None = None,
) -> dict[bytes, bytes]:
    """What is told of a client.

    Args:
      tls: the name that it has asked for by SNI.
      local: the address that it has connected to.
    """
    server = load_server(f"protocol imap; {directives}")
    wire = MemoryWire()
    if tls is not None:
        wire.tls = cast("None", MemoryTls())
    socket = MemorySocket()
    socket.getsockname = lambda: local  # type: ignore[method-assign,assignment,return-value]
    wire._socket = socket  # type: ignore[assignment] # noqa: SLF001
    port = None if client == "unix:" else 4711
    info = SessionInfo(255, client, port)
    made = Client(
        wire,
        server,
        server.core.listen[0],
        MemoryNetwork(None),
        info,
        CapturedLog().log,
        Secrets(),
    )
    dialogue = server.protocol.dialogue(made)
    dialogue.ttl = ttl
    return forward.describe(dialogue)


def test_attributes_of_a_client() -> None:
    assert described() == {
        b"ADDR": b"192.0.2.1",
        b"PORT": b"4711",
        b"DESTADDR": b"192.0.2.9",
        b"DESTPORT": b"143",
        b"SESSION": b"18f.2a.ff",
        b"TTL": b"7",
        b"CLIENT-TRANSPORT": b"insecure",
    }


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"imap.example.net", True),
        (b"x" * 200, True),
        (b"", False),
        (b"a b", False),
        (b'a"b', False),
        (b"a\\b", False),
        (b"a\r\nb", False),
        (b"\xc3\xa4.example", False),
        (b"a\0", False),
        (b"a\n", False),
    ],
)
def test_odd_names_of_sni_are_left_out(
    name: bytes, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssl, "server_name", lambda _: name)
    found = described(tls=name)
    assert found[b"CLIENT-TRANSPORT"] == b"TLS"
    assert found.get(b"DESTNAME") == (name if told else None)
    assert (b'"x-connected-name"' in forward.format_id(found)) == told


def test_no_name_by_sni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "server_name", lambda _: None)
    assert b"DESTNAME" not in described(tls=b"")


def test_unix_clients_have_no_address() -> None:
    found = described(client="unix:", local="/run/socket")
    assert list(found) == [b"SESSION", b"TTL", b"CLIENT-TRANSPORT"]


def test_address_that_a_unix_socket_s_proxy_names() -> None:
    found = described(local="/run/socket")
    assert list(found)[:3] == [b"ADDR", b"PORT", b"SESSION"]


def test_line_has_a_limit() -> None:
    told = {b"ADDR": b"192.0.2.1", b"DESTNAME": b"x" * 1000, b"TTL": b"7"}
    assert forward.format_attributes(told) == b"XCLIENT ADDR=192.0.2.1 TTL=7\r\n"
    exact = forward.MAX_LINE - len("XCLIENT DESTNAME=\r\n")
    for size, fits in ((exact, True), (exact + 1, False)):
        line = forward.format_attributes({b"DESTNAME": b"x" * size})
        assert (len(line) == forward.MAX_LINE) == fits


# How far a session has come


TRUSTED = "set_real_ip_from 127.0.0.1;"
ONE = '"1"'


def imap_from_proxy(ttl: str) -> str:
    """What is said up to the auth server's answer."""
    return f"""
        S: * OK IMAP4 ready
        C: i ID ("X-Proxy-TTL" {ttl} "x-originating-ip" "192.0.2.66")
        S: * ID NIL
        S: i OK completed
        C: a LOGIN u p
        Q: plain u p
        A: OK
    """


@pytest.mark.parametrize(
    ("ttl", "sent"),
    [
        ('"5"', "4"),
        ('"2"', "1"),
        ('"999"', "6"),
        ('"1000"', "7"),
        ('"-1"', "7"),
        ('"5 "', "7"),
        ('""', "7"),
        ("NIL", "7"),
    ],
)
def test_ttl_goes_down(ttl: str, sent: str) -> None:
    play(
        f"""
        {imap_from_proxy(ttl)}
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY.replace('"7"', f'"{sent}"')}
        B: mp4 OK done
        {ENTERED["imap"]}
        """,
        f"protocol imap; proxy_forward id; {TRUSTED}",
    )


@pytest.mark.parametrize("ttl", ['"1"', '"0"', '"001"'])
def test_loop_ends(ttl: str) -> None:
    play(
        f"""
        {imap_from_proxy(ttl)}
        {FAILED["imap"]}
        L: [error] proxy loop while connecting to upstream, …, login: "u"
        """,
        f"protocol imap; proxy_forward id; {TRUSTED}",
    )


@pytest.mark.parametrize(
    "directives",
    [
        "proxy_forward id;",
        "proxy_forward id; set_real_ip_from 192.0.2.0/24; set_real_ip_from unix:;",
    ],
)
def test_other_clients_are_not_believed(directives: str) -> None:
    play(
        f"""
        {imap_from_proxy(ONE)}
        B: * OK [CAPABILITY IMAP4rev1 ID] hi
        P: mp4 ID {IDENTITY}
        B: mp4 OK done
        {ENTERED["imap"]}
        """,
        f"protocol imap; {directives}",
    )


def test_nothing_is_read_without_forwarding() -> None:
    play(
        f"{imap_from_proxy(ONE)}\nB: * OK hi\n{ENTERED['imap']}",
        f"protocol imap; {TRUSTED}",
    )


def test_ttl_is_forgotten_with_all_that_was_said_in_clear_text() -> None:
    play(
        f"""
        S: * OK IMAP4 ready
        C: i ID ("x-proxy-ttl" "1")
        S: * ID NIL
        S: i OK completed
        C: t STARTTLS
        S: t OK completed
        C: ⟨tls⟩
        C: a LOGIN u p
        Q: ⟨any⟩
        A: OK
        B: * OK [CAPABILITY IMAP4rev1] hi
        {ENTERED["imap"]}
        """,
        "protocol imap; proxy_forward id; starttls on; ssl_certificate ⟨cert⟩;"
        f"ssl_certificate_key ⟨cert⟩; {TRUSTED}",
    )


def test_peer_is_who_has_connected_and_not_whom_a_header_names() -> None:
    info = SessionInfo(1, "192.0.2.1", 99)
    for peer, address in (
        ("10.0.0.1:5", "10.0.0.1"),
        ("[2001:db8::1]:5", "2001:db8::1"),
        ("unix:", "unix:"),
    ):
        info.peer = peer
        assert info.peer_address == address


@pytest.mark.parametrize("salt", ["", "pop3_auth plain apop;"])
def test_pop3_proxy_is_asked_and_believed(salt: str) -> None:
    greeting = "+OK [XCLIENT] POP3 ready" + (" <⟨salt⟩@mx.test>" if salt else "")
    play(
        f"""
        S: {greeting}
        C: XCLIENT ADDR=192.0.2.66 PORT=1 SESSION=x TTL=3 CLIENT-TRANSPORT=TLS
        S: +OK
        C: USER u
        S: +OK
        C: XCLIENT TTL=9
        S: -ERR invalid command
        C: USER u
        S: +OK
        C: PASS p
        Q: plain u p
        A: OK
        B: +OK [XCLIENT] hi
        P: XCLIENT {ATTRIBUTES.replace("TTL=7", "TTL=2")}
        B: +OK
        {ENTERED["pop3"]}
        """,
        f"protocol pop3; proxy_forward xclient; {TRUSTED} {salt}",
    )


def test_smtp_proxy_is_asked_and_believed() -> None:
    play(
        f"""
        S: 220 mx.test ESMTP ready
        C: EHLO front
        S: 250-mx.test
        S: 250-XCLIENT TTL
        S: 250 AUTH PLAIN LOGIN
        C: XCLIENT ttl=3
        S: 220 mx.test ESMTP ready
        C: AUTH PLAIN AHUAcA==
        Q: plain u p
        A: OK
        {hello("XCLIENT TTL")}
        P: XCLIENT TTL=2
        B: 220 hi
        {ENTERED["smtp"]}
        """,
        f"protocol smtp; proxy_forward xclient; {TRUSTED}",
    )


@pytest.mark.parametrize("protocol", ["pop3", "smtp"])
def test_loop_by_xclient_ends(protocol: str) -> None:
    mark = "[XCLIENT] " if protocol == "pop3" else ""
    first, rest = OPENINGS[protocol].split("\n", 1)
    answer = "+OK" if protocol == "pop3" else "220 mx.test ESMTP ready"
    play(
        f"""
        {first.replace("POP3", f"{mark}POP3")}
        C: XCLIENT TTL=1
        S: {answer}
        {rest}
        {FAILED[protocol]}
        L: [error] proxy loop while connecting to upstream, …, login: "u"
        """,
        f"protocol {protocol}; proxy_forward xclient; {TRUSTED}",
    )


@pytest.mark.parametrize(
    "directives",
    [
        TRUSTED,
        f"{TRUSTED} proxy_forward id;",
        "proxy_forward xclient;",
        "proxy_forward xclient; set_real_ip_from 192.0.2.0/24;",
    ],
)
def test_xclient_is_no_command_otherwise(directives: str) -> None:
    play(
        """
        S: +OK POP3 ready
        C: XCLIENT TTL=1
        S: -ERR invalid command
        """,
        f"protocol pop3; {directives}",
    )
    play(
        """
        S: 220 mx.test ESMTP ready
        C: EHLO me
        S: 250-mx.test
        S: 250 AUTH PLAIN LOGIN
        C: XCLIENT TTL=1
        S: 500 5.5.1 Invalid command
        """,
        f"protocol smtp; {directives}",
    )


def test_smtp_xclient_is_refused_in_a_transaction() -> None:
    play(
        """
        S: 220 mx.test ESMTP ready
        C: MAIL FROM:<a@b>
        S: 250 2.0.0 OK
        C: XCLIENT TTL=1
        S: 500 5.5.1 Invalid command
        """,
        f"protocol smtp; proxy_forward xclient; smtp_auth none; {TRUSTED}",
    )
