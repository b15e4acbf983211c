"""Octets are counted to the last one, whatever way they take through a session."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from mailproxy.log import Phase, SessionInfo
from mailproxy.net.relay import BUFFER
from tests.play import play
from tests.security.world import TLS, Peer, World, world

MIB = 1 << 20
IMAP = "protocol imap; proxy_login literal;"
GREETING = b"* OK IMAP4 ready\r\n"
LOGIN = b"a LOGIN u p\r\n"
IN = b"a OK in\r\n"
ASKED = (b"a LOGIN {1}\r\n", b"u {1}\r\n", b"p\r\n")
"""What mailproxy says to the backend."""
ANSWERS = (b"* OK ready\r\n", b"+ go\r\n", b"+ go\r\n")


def size(*said: bytes) -> int:
    return sum(map(len, said))


async def logged_in(here: World, *, tls: bool) -> tuple[Peer, Peer, SessionInfo]:
    """A client and its backend, relayed to each other, and what is known of them."""
    client = await here.connect()
    if tls:
        await client.start_tls()
    await client.expect(GREETING)
    backend = await here.log_in(client, LOGIN)
    (info,) = here.network.sessions.values()
    for answer, asked in zip(ANSWERS, ASKED, strict=True):
        await backend.send(answer)
        await backend.expect(asked)
    await backend.send(IN)
    await client.expect(IN)
    return client, backend, info


def counted(info: SessionInfo) -> tuple[int, int, int, int]:
    return info.received, info.sent, info.upstream_received, info.upstream_sent


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_dialogue_and_relay(tls: bool) -> None:
    listen = f"listen 127.0.0.1:1143 ssl; {TLS}" if tls else ""
    async with world(f"{IMAP} {listen}") as here:
        client, backend, info = await logged_in(here, tls=tls)
        dialogue = (
            size(LOGIN),
            size(GREETING, IN),
            size(*ANSWERS, IN),
            size(*ASKED),
        )
        assert counted(info) == dialogue  # while the session lives
        await client.send(b"x" * 1234)
        await backend.expect(b"x" * 1234)
        await backend.send(b"y" * 99_999)
        await client.expect(b"y" * 99_999)
        here.leave()
        await here.over()
        relayed = (1234, 99_999, 99_999, 1234)
        assert counted(info) == tuple(map(sum, zip(dialogue, relayed, strict=True)))


@pytest.mark.parametrize("bound", ["", "proxy_buffer 4k;"], ids=["splice", "copy"])
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_large_transfers(
    tls: bool, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In clear text, without a bound, most of it goes through splice(2)."""
    listen = f"listen 127.0.0.1:1143 ssl; {TLS}" if tls else ""
    async with world(f"{IMAP} {listen} {bound}") as here:
        spliced = 0
        splice = os.splice

        def count(*args: int, **flags: int) -> int:
            nonlocal spliced
            moved = splice(*args, **flags)
            spliced += moved
            return moved

        monkeypatch.setattr(os, "splice", count)
        client, backend, info = await logged_in(here, tls=tls)
        before = counted(info)
        data = bytes(range(256)) * (10 * MIB // 256) + b"end"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.send, data)
            nursery.start_soon(client.expect, data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            nursery.start_soon(backend.expect, data)
        here.leave()
        await here.over()
        assert (spliced > MIB) == (not tls and not bound), spliced
        assert counted(info) == tuple(each + len(data) for each in before)
        assert len(data) > BUFFER


async def test_a_backend_that_reads_late() -> None:
    """What waits in the worker has been received, and not been sent."""
    async with world(IMAP) as here:
        client, backend, info = await logged_in(here, tls=False)
        before = info.received, info.upstream_sent
        async with trio.open_nursery() as sending:
            sending.start_soon(client.send, b"x" * 64 * MIB)
            await trio.testing.wait_all_tasks_blocked(0.01)
            received, sent = info.received - before[0], info.upstream_sent - before[1]
            assert 64 * MIB > received >= sent > 0
            sending.cancel_scope.cancel()
        client.close()
        got = await backend.rest()
        await here.over()
        received, sent = info.received - before[0], info.upstream_sent - before[1]
        assert received == sent == len(got)


async def test_live_sessions() -> None:
    """They are listed from accept to close, with what is known of them by then."""
    async with world(IMAP) as here:
        first = await here.connect()
        await first.expect(GREETING)
        second = await here.connect()
        await second.expect(GREETING)
        one, two = here.network.sessions.values()
        assert set(here.network.sessions) == {one.connection, two.connection}
        assert (one.phase, one.method, one.attempts) == (Phase.LOGIN, "", 0)
        await first.send(LOGIN)
        auth = await here.auth()
        await auth.read_until(b"\r\n\r\n")
        assert (one.phase, one.method, one.attempts) == (Phase.AUTH, "plain", 1)
        await auth.send(here.granted())
        backend = await here.backend()
        assert one.phase == Phase.CONNECT
        await backend.send(ANSWERS[0])
        await backend.expect(ASKED[0])
        assert one.phase.name == "BACKEND_LOGIN"
        for answer, asked in zip(ANSWERS[1:], ASKED[1:], strict=True):
            await backend.send(answer)
            await backend.expect(asked)
        await backend.send(IN)
        await first.expect(IN)
        assert one.phase.name == "RELAYED"
        second.close()
        await here.over(left=1)
        assert list(here.network.sessions) == [one.connection]
        here.leave()
        await here.over()
        assert here.network.sessions == {}


def test_phases_of_a_client_with_starttls() -> None:
    stage = play(
        """
        S: * OK IMAP4 ready
        C: x STARTTLS
        S: x OK completed
        """,
        f"protocol imap; starttls on; {TLS}",
    )
    assert stage.info.phase == Phase.TLS
    stage = play(
        """
        S: * OK IMAP4 ready
        C: x STARTTLS
        S: x OK completed
        C: ⟨tls⟩
        C: a NOOP
        S: a OK completed
        """,
        f"protocol imap; starttls on; {TLS}",
    )
    assert stage.info.phase == Phase.LOGIN
    stage = play("S: ⟨silence⟩", "protocol imap; listen 127.0.0.1:1143 proxy_protocol;")
    assert stage.info.phase == Phase.PROXY_HEADER
