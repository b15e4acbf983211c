"""Clients that claim to be somebody else by a PROXY header.

Who is believed: peers of `set_real_ip_from`, on addresses with `proxy_protocol`, in
the first bytes of a connection. Nobody and nothing else.
"""

import socket
import struct

import pytest

from tests.security.acts import Dialogue, act_out
from tests.security.world import TLS, world

SPOOFED = "192.0.2.66"
V1 = f"PROXY TCP4 {SPOOFED} 192.0.2.2 1 2⏎"
V2 = "".join(
    f"⟨{octet:02x}⟩"
    for octet in b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
    + socket.inet_aton(SPOOFED)
    + socket.inet_aton("192.0.2.2")
    + struct.pack("!HH", 1, 2)
)
LISTEN = "listen 127.0.0.1:1143 proxy_protocol; protocol imap;"
HEADERS = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


def asked(directives: str, script: str, client: str = "127.0.0.1") -> list[bytes]:
    """The lines of the auth request of a session; none if there was no request."""
    dialogue = Dialogue("", directives, script)
    act = act_out(dialogue, len(dialogue.steps), client=client)
    assert act is not None
    wires = act.network.wires["Q"]
    if not wires:
        assert f"client: {SPOOFED}" not in act.log.events[-1][1]
        return []
    believed = f"client: {SPOOFED}" in act.log.events[-1][1]
    lines = bytes(wires[0].outgoing).split(b"\r\n")
    assert believed == (f"Client-IP: {SPOOFED}".encode() in lines)
    return lines


@HEADERS
@pytest.mark.parametrize(
    ("trusted", "client"),
    [
        ("", "127.0.0.1"),
        ("set_real_ip_from 192.0.2.0/24;", "127.0.0.1"),
        ("set_real_ip_from 127.0.0.2; set_real_ip_from ::1;", "127.0.0.1"),
        ("set_real_ip_from 0.0.0.0/0;", "unix:"),
        ("set_real_ip_from 0.0.0.0/0;", "::1"),
        ("set_real_ip_from ::ffff:0:0/96;", "127.0.0.1"),
        ("set_real_ip_from unix:;", "127.0.0.1"),
        ("set_real_ip_from ::/0;", "::ffff:127.0.0.1"),
    ],
)
def test_peers_that_are_not_trusted(header: str, trusted: str, client: str) -> None:
    lines = asked(LISTEN + trusted, f"C: {header}a LOGIN u p", client)
    assert f"Client-IP: {client}".encode() in lines
    # It is said what they claim, and never in the place of what is known.
    assert f"Proxy-Protocol-Addr: {SPOOFED}".encode() in lines


@HEADERS
@pytest.mark.parametrize(
    ("trusted", "client"),
    [
        ("set_real_ip_from 127.0.0.0/8;", "127.0.0.1"),
        ("set_real_ip_from 127.0.0.1;", "::ffff:127.0.0.1"),
        ("set_real_ip_from unix:;", "unix:"),
        ("set_real_ip_from ::1;", "::1"),
    ],
)
def test_peers_that_are_trusted(header: str, trusted: str, client: str) -> None:
    lines = asked(LISTEN + trusted, f"C: {header}a LOGIN u p", client)
    assert f"Client-IP: {SPOOFED}".encode() in lines


@HEADERS
@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_where_none_is_expected(header: str, protocol: str) -> None:
    directives = f"protocol {protocol}; set_real_ip_from 0.0.0.0/0;"
    login = {
        "imap": "a LOGIN u p",
        "pop3": "USER u⏎PASS p",
        "smtp": "AUTH PLAIN AHUAcA==",
    }[protocol]
    lines = asked(directives, f"C: {header}\nC: {login}")
    if header is V2:  # "QUIT" is in it, and five bad commands
        assert lines == []
        return
    assert b"Client-IP: 127.0.0.1" in lines
    assert not [line for line in lines if line.startswith(b"Proxy-Protocol")]


@HEADERS
def test_second_header(header: str) -> None:
    """Behind the first one begins what the client says."""
    first = V1.replace(SPOOFED, "198.51.100.7")
    script = f"C: {first}{header}\nC: a LOGIN u p"
    lines = asked(f"{LISTEN} set_real_ip_from 127.0.0.1;", script)
    assert header is V2 or b"Client-IP: 198.51.100.7" in lines


@HEADERS
def test_header_after_the_first_words(header: str) -> None:
    script = f"C: a NOOP⏎{header}"
    assert asked(f"{LISTEN} set_real_ip_from 127.0.0.1;", script) == []
    assert asked(f"{LISTEN} set_real_ip_from 127.0.0.1;", f"C: ⏎{header}") == []


def test_headers_without_an_address() -> None:
    """A proxy that speaks for itself is its own client."""
    local = "⟨0d⟩⟨0a⟩⟨0d⟩⟨0a⟩⟨00⟩⟨0d⟩⟨0a⟩QUIT⟨0a⟩⟨20⟩⟨00⟩⟨00⟩⟨00⟩"
    for header in ("PROXY UNKNOWN⏎", f"PROXY UNKNOWN {SPOOFED} 192.0.2.2 1 2⏎", local):
        lines = asked(
            f"{LISTEN} set_real_ip_from 127.0.0.1;", f"C: {header}a LOGIN u p"
        )
        assert b"Client-IP: 127.0.0.1" in lines
        assert not [line for line in lines if line.startswith(b"Proxy-Protocol")]


@pytest.mark.parametrize("version", ["on", "v2"])
async def test_headers_of_clients_are_not_passed_on(version: str) -> None:
    """The backend hears who we believe the client is."""
    async with world(f"{LISTEN} proxy_protocol {version};") as here:
        client = await here.connect()
        address, port = client.socket.getsockname()
        await client.send(f"PROXY TCP4 {SPOOFED} 192.0.2.2 1 2\r\n".encode())
        backend = await here.log_in(client, b"a LOGIN u p\r\n")
        if version == "on":
            line = await backend.read_until(b"\r\n")
            assert line.startswith(f"PROXY TCP4 {address} ".encode())
            assert b" %d " % port in line
        else:
            await backend.expect(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13")
            await backend.expect(socket.inet_aton(address))
        assert SPOOFED.encode() not in backend.seen
        assert socket.inet_aton(SPOOFED) not in backend.seen


async def test_header_inside_tls() -> None:
    """The proxy stands before TLS: what is said in it, the client says."""
    listen = f"listen 127.0.0.1:1143 ssl proxy_protocol; protocol imap; {TLS}"
    async with world(f"{listen} set_real_ip_from 0.0.0.0/0;") as here:
        client = await here.connect()
        await client.send(b"PROXY UNKNOWN\r\n")
        await client.start_tls()
        await client.send(f"PROXY TCP4 {SPOOFED} 192.0.2.2 1 2\r\n".encode())
        await client.expect(b"* OK IMAP4 ready\r\nPROXY BAD invalid command\r\n")


@pytest.mark.parametrize("word", ["TCP4", "TCP6"])
@pytest.mark.parametrize("source", [SPOOFED, "2001:db8::7"])
@pytest.mark.parametrize("destination", ["192.0.2.2", "2001:db8::2"])
def test_families_of_a_header_do_not_decide_who_is_believed(
    word: str, source: str, destination: str
) -> None:
    header = f"PROXY {word} {source} {destination} 1 2⏎"
    script = f"C: {header}a LOGIN u p"
    for trusted, client in (
        ("set_real_ip_from 127.0.0.1;", source),
        ("set_real_ip_from 192.0.2.0/24; set_real_ip_from 2001:db8::/32;", "127.0.0.1"),
    ):
        dialogue = Dialogue("", LISTEN + trusted, script)
        act = act_out(dialogue, len(dialogue.steps), client="127.0.0.1")
        assert act is not None
        lines = bytes(act.network.wires["Q"][0].outgoing).split(b"\r\n")
        assert f"Client-IP: {client}".encode() in lines
        assert f"Proxy-Protocol-Addr: {source}".encode() in lines
        assert f"Proxy-Protocol-Server-Addr: {destination}".encode() in lines


@pytest.mark.parametrize(
    ("written", "usual"),
    [
        ("2001:DB8:0:0::0007", "2001:db8::7"),
        ("::ffff:c000:207", "::ffff:192.0.2.7"),
        ("::192.0.2.7", "::192.0.2.7"),
    ],
)
def test_client_has_one_name_however_its_address_is_written(
    written: str, usual: str
) -> None:
    """Auth servers and mail servers compare it."""
    header = f"PROXY TCP6 {written} ::1 1 2⏎"
    dialogue = Dialogue(
        "", f"{LISTEN} set_real_ip_from 127.0.0.1;", f"C: {header}a LOGIN u p"
    )
    act = act_out(dialogue, len(dialogue.steps), client="127.0.0.1")
    assert act is not None
    lines = bytes(act.network.wires["Q"][0].outgoing).split(b"\r\n")
    assert f"Client-IP: {usual}".encode() in lines
    assert f"Proxy-Protocol-Addr: {written}".encode() in lines
