"""Peers that are slow on purpose: an octet now and then, half a handshake, no reading.

Time that a session may take is limited by `timeout`, whatever arrives meanwhile; and
who does not read is not written for: memory has its limits, and others their turn.
"""

import contextlib
import socket

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.net.relay import BUFFER
from tests.play import load_server, parse
from tests.security.acts import Act, plain
from tests.security.world import TLS, Peer, World, passing, world

TIMEOUT = 60
LITERAL = "protocol imap; proxy_login literal;"
IMAP = "C: a LOGIN u SECRET\nA: OK"
POP3 = "C: USER u\nC: PASS SECRET\nA: OK"
SMTP = f"C: AUTH PLAIN {plain('u', 'SECRET')}\nA: OK"


def seconds_with(directives: str, script: str, who: str, slow: bytes) -> float:
    """How long a session lasts with somebody who sends an octet in a second.

    Args:
      script: what everyone says before.
      slow: what is said slowly, over and over again; b"" for silence.
    """
    act = Act(load_server(directives))

    async def run() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow(parse(script))
            start = trio.current_time()
            said = 0
            while not act.over:
                if slow:
                    act.wire_of(who).put(slow[said % len(slow) :][:1])
                said += 1
                await trio.sleep(1)
        return trio.current_time() - start

    return trio.run(run, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("directives", "script", "slow"),
    [
        ("protocol imap;", "", b"a LOGIN user password"),
        ("protocol imap;", "", b"a NOOP\r\n"),
        ("protocol imap;", "C: a LOGIN {4000}", b"x"),
        ("protocol imap;", "C: a AUTHENTICATE PLAIN", b"A"),
        ("protocol pop3;", "", b"USER u"),
        ("protocol pop3;", "", b"NOOP\r\n"),
        ("protocol pop3;", "C: AUTH LOGIN\nC: dQ==", b"A"),
        ("protocol smtp;", "", b"EHLO me"),
        ("protocol smtp;", "", b"NOOP\r\n"),
        ("protocol smtp;", "C: AUTH PLAIN", b"A"),
        ("protocol imap; listen 127.0.0.1:1143 proxy_protocol;", "", b"PROXY UNKNOWN"),
        (f"protocol imap; listen 127.0.0.1:1143 ssl; {TLS}", "", b""),
        (f"protocol imap; starttls on; {TLS}", "C: a STARTTLS", b""),
    ],
)
def test_client_that_drips(directives: str, script: str, slow: bytes) -> None:
    seconds = seconds_with(f"{directives} max_errors 1000;", script, "C", slow)
    assert TIMEOUT - 1 <= seconds <= TIMEOUT + 1


@pytest.mark.parametrize(
    ("directives", "script", "slow"),
    [
        ("protocol imap;", IMAP, b"* OK x"),
        ("protocol imap;", f"{IMAP}\nB: * OK hi", b"* x\r\n"),
        (LITERAL, f"{IMAP}\nB: * OK hi", b"* x\r\n"),
        (LITERAL, f"{IMAP}\nB: * OK hi\nB: + a\nB: + b", b"* x\r\n"),
        (LITERAL, f"{IMAP}\nB: * OK hi\nB: + a\nB: + b", b""),
        ("protocol pop3;", POP3, b"+"),
        ("protocol pop3;", f"{POP3}\nB: +OK", b"+OK"),
        ("protocol smtp;", SMTP, b"220-x\r\n"),
        ("protocol smtp;", f"{SMTP}\nB: 220 hi", b"250-x\r\n"),
        ("protocol imap; proxy_protocol on;", IMAP, b""),
    ],
)
def test_backend_that_drips(directives: str, script: str, slow: bytes) -> None:
    seconds = seconds_with(directives, script, "B", slow)
    assert TIMEOUT - 1 <= seconds <= TIMEOUT + 1


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp"])
def test_client_that_takes_no_answers(protocol: str) -> None:
    """It sends commands, and its buffers are full."""
    act = Act(load_server(f"protocol {protocol};"))
    command = b"a NOOP\r\n" if protocol == "imap" else b"NOOP\r\n"

    async def run() -> float:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow([])
            act.wire.room = 100
            act.wire.put(command * 1000)
            start = trio.current_time()
        return trio.current_time() - start

    seconds = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert seconds == pytest.approx(TIMEOUT)
    assert len(act.wire.outgoing) <= 100
    assert act.wire.received <= 4096


# With OpenSSL and the kernel's sockets


@pytest.mark.parametrize("pieces", [0, 1, 5, 100])
async def test_handshake_that_stalls(pieces: int, mock_clock: MockClock) -> None:
    """The first octets of a ClientHello, one by one, and then nothing."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512)
    listen = f"listen 127.0.0.1:1143 ssl; protocol imap; timeout 9s; {TLS}"
    async with world(listen) as here:
        client = await here.connect()
        for octet in hello[:pieces]:
            await client.send(bytes([octet]))
        await wait_all_tasks_blocked(0.002)
        async with passing(mock_clock, 9):
            assert await client.rest() == b""
        assert "client timed out (110" in here.texts[-1]


async def test_handshake_that_stalls_after_starttls(mock_clock: MockClock) -> None:
    async with world(f"protocol imap; starttls on; timeout 9s; {TLS}") as here:
        client = await here.connect()
        await client.send(b"a STARTTLS\r\n")
        await client.read_until(b"a OK completed\r\n")
        await wait_all_tasks_blocked(0.002)
        async with passing(mock_clock, 9):
            assert await client.rest() == b""
        assert "client timed out (110" in here.texts[-1]
        assert "while in starttls state" in here.texts[-1]


async def enter(here: World, **options: int) -> tuple[Peer, Peer]:
    """A session that is relayed; its ends take little at a time."""
    client = await here.connect(**options)
    backend = await here.log_in(client, b"USER u\r\nPASS p\r\n")
    await backend.send(b"+OK\r\n")
    await backend.read_until(b"USER u\r\n")
    await backend.send(b"+OK\r\n")
    await backend.read_until(b"PASS p\r\n")
    await backend.send(b"+OK in\r\n")
    await client.read_until(b"+OK in\r\n")
    return client, backend


async def fill(peer: Peer) -> int:
    """Send until nothing more is taken; returns how much was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            await wait_all_tasks_blocked(0.002)
            for _ in range(1000):
                sent += _send_now(peer, bytes(4096))
    return sent


def _send_now(peer: Peer, data: bytes) -> int:
    with socket.socket(fileno=peer.socket.fileno()) as plain_socket:
        try:
            return plain_socket.send(data, socket.MSG_DONTWAIT)
        finally:
            plain_socket.detach()


@pytest.mark.parametrize("bound", ["", "proxy_buffer 4k;"])
async def test_buffers_that_are_full_on_both_sides(bound: str) -> None:
    """Each waits for the other to read; when they do, nothing is lost, nothing hangs."""
    async with world(f"protocol pop3; {bound}") as here:
        client, backend = await enter(here)
        sent = [await fill(client), await fill(backend)]
        assert all(sent)
        # A third session has its turn meanwhile.
        other, its_backend = await enter(here)
        await other.send(b"NOOP\r\n")
        await its_backend.expect(b"NOOP\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take, backend, sent[0])
            nursery.start_soon(_take, client, sent[1])
        await client.send(b"QUIT\r\n")
        await backend.expect(b"QUIT\r\n")


async def _take(peer: Peer, size: int) -> None:
    while size:
        data = await peer.stream.receive_some(min(size, 65536))
        assert data
        size -= len(data)


async def test_client_that_does_not_read_bounds_the_backend(
    mock_clock: MockClock,
) -> None:
    async with world("protocol pop3; proxy_timeout 9s;") as here:
        client, backend = await enter(here, rcvbuf=4096)
        sent = await fill(backend)
        ends = [end for s in here.network.relay._sessions for end in s.ends]  # noqa: SLF001 - what a session holds
        held = sum(len(end.pending) for end in ends)
        assert 0 <= held <= BUFFER
        assert sent < 16 * 1024 * 1024
        async with passing(mock_clock, 20):
            await here.over()
        assert "client timed out (110" in here.texts[-1]
        client.close()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_leaving_with_full_buffers(how: str) -> None:
    async with world("protocol pop3;") as here:
        for who in (0, 1):
            ends = await enter(here)
            for end in ends:
                await fill(end)
            ends[who].reset() if how == "reset" else ends[who].close()
            ends[1 - who].close()
            await here.over()
            here.check()


async def test_one_octet_at_a_time_passes() -> None:
    async with world("protocol pop3;") as here:
        client, backend = await enter(here)
        for octet in b"RETR 1\r\n.\r\n":
            await client.send(bytes([octet]))
            await backend.expect(bytes([octet]))


async def test_full_buffers_in_tls() -> None:
    """What OpenSSL could not write is written again as it was, and once."""
    size = 3 * 1024 * 1024
    octets = bytes(range(256)) * (size // 256)
    listen = f"listen 127.0.0.1:1143 ssl; protocol pop3; {TLS}"
    async with world(listen) as here:
        client = await here.connect(rcvbuf=4096)
        await client.start_tls()
        backend = await here.log_in(client, b"USER u\r\nPASS p\r\n")
        await backend.send(b"+OK\r\n")
        await backend.read_until(b"USER u\r\n")
        await backend.send(b"+OK\r\n")
        await backend.read_until(b"PASS p\r\n")
        await backend.send(b"+OK in\r\n")
        await client.read_until(b"+OK in\r\n")
        received = bytearray()

        async def receive() -> None:
            await wait_all_tasks_blocked(0.01)  # all buffers are full then
            while len(received) < size:
                received.extend(await client.stream.receive_some(65536))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.send, octets)
            nursery.start_soon(receive)
        assert received == octets
