"""Client, auth server or backend leave at every step of every dialogue.

The session has to end, at once or by one of its timers; it closes everything, and
finds nothing that it calls a bug.
"""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from mailproxy.net.dns import Resolver
from mailproxy.net.dns_messages import Answer
from tests.differential.notation import line_bytes
from tests.play import load_server
from tests.security.acts import DIALOGUES, Act, Dialogue, act_out
from tests.security.world import TLS, Peer, World, passing, world

EVERY = pytest.mark.parametrize("dialogue", DIALOGUES, ids=lambda each: each.name)


@EVERY
def test_nobody(dialogue: Dialogue) -> None:
    """The dialogues are what they say: each gets into the relay."""
    act = act_out(dialogue, len(dialogue.steps))
    assert act is not None
    logged = [text for _, text in act.log.events]
    assert any(text.startswith("client logged in") for text in logged), logged


@EVERY
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("go_on", [False, True], ids=["silence", "others go on"])
def test_everybody_everywhere(dialogue: Dialogue, how: str, go_on: bool) -> None:
    for count in range(len(dialogue.steps) + 1):
        for who in "CAB":
            act_out(dialogue, count, who, how, go_on=go_on)


@EVERY
def test_silence_everywhere(dialogue: Dialogue) -> None:
    """Some timer runs at every step."""
    for count in range(len(dialogue.steps) + 1):
        act_out(dialogue, count)


# With OpenSSL and the kernel's sockets


REAL = {
    *("imap-login", "imap-tls", "imap-starttls", "imap-proxy-protocol"),
    *("pop3-user", "smtp-login"),
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("who", "CAB")
@pytest.mark.parametrize(
    "dialogue", [each for each in DIALOGUES if each.name in REAL], ids=lambda d: d.name
)
async def test_really(dialogue: Dialogue, who: str, how: str) -> None:
    """The others follow at once, as there is no virtual clock here."""
    async with world(dialogue.directives) as here:
        for count in range(len(dialogue.steps) + 1):
            peers = await follow(here, dialogue, count)
            if who in peers:
                leave(peers[who], how)
                await settled()
            here.leave()
            await here.over()
            here.check()


async def follow(here: World, dialogue: Dialogue, count: int) -> dict[str, Peer]:
    """Have everyone say their part, up to a step; returns who is there."""
    peers = {"C": await here.connect()}
    accepts = {"A": here.auth, "B": here.backend}
    for step in dialogue.steps[:count]:
        await settled()
        if step.kind not in peers:
            peers[step.kind] = await accepts[step.kind]()
        peer = peers[step.kind]
        if step.text == "⟨tls⟩":
            if "starttls" in dialogue.name:
                await peer.read_until(b" completed\r\n")
            await peer.start_tls()
        elif step.kind == "A":
            await peer.send(here.granted())
        else:
            await peer.send(b"".join(map(line_bytes, step.texts)))
    await settled()
    return peers


async def settled() -> None:
    """Return when mailproxy has done all that it can do."""
    await wait_all_tasks_blocked(0.0005)


def leave(peer: Peer, how: str) -> None:
    if how == "reset":
        peer.reset()
    else:
        peer.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("pending", ["auth", "backend"])
async def test_while_a_connect_is_pending(
    pending: str, how: str, mock_clock: MockClock
) -> None:
    """nginx does not look at the client meanwhile; the timer of the phase ends it."""
    with full_listener() as port:
        url = f"auth_http 127.0.0.1:{port};" if pending == "auth" else ""
        directives = f"protocol imap; timeout 9s; auth_http_timeout 9s; {url}"
        async with world(directives) as here:
            client = await here.connect()
            await client.send(b"a LOGIN u p\r\n")
            if pending == "backend":
                auth = await here.auth()
                await auth.send(here.granted(b"Auth-Port: %d" % port))
            await settled()
            leave(client, how)
            await settled()
            async with passing(mock_clock, 9):
                await here.over()
            assert any("timed out (110" in text for text in here.texts)


async def test_why_it_had_to_leave_is_said_all_the_same() -> None:
    """The log tells the reason before it tells that the client does not hear it."""
    directives = f"listen 127.0.0.1:1143 ssl; protocol imap; {TLS}"
    wanted = "ssl_verify_client on; ssl_client_certificate ⟨cert⟩;"
    async with world(f"{directives} {wanted}") as here:
        client = await here.connect()
        await shake_hands_and_reset(client)
        await here.over()
        assert [text.split(" while ")[0] for text in here.texts] == [
            "client sent no required SSL certificate",
            "SSL_write() failed (104: Connection reset by peer)",
        ]


async def shake_hands_and_reset(client: Peer) -> None:
    """End a TLS 1.3 handshake by a break, before the other side sees its end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, sent)
    done = False
    while not done:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            await client.send(sent.read())
            received.write(await client.stream.receive_some())
    assert tls.version() == "TLSv1.3"
    # Nobody else runs between these two.
    os.write(client.socket.fileno(), sent.read())
    client.reset()


@contextmanager
def full_listener() -> Iterator[int]:
    """A port where connections are neither accepted nor refused."""
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.mark.parametrize("how", ["close", "reset"])
def test_while_a_name_is_looked_up(how: str) -> None:
    """Nobody looks at the client meanwhile; the lookups end by `resolver_timeout`."""

    async def ask(*_: object) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    act = Act(load_server("protocol smtp; resolver 127.0.0.1; resolver_timeout 30s;"))
    settings = act.server.core.resolver
    assert settings is not None

    async def run() -> float:
        act.network.known = Resolver(settings, 30.0, ask)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(act.run_session)
            await act.follow([])
            act.leave("C", how)
        return trio.current_time() - start

    seconds = trio.run(run, clock=MockClock(autojump_threshold=0))
    assert seconds == pytest.approx(30)
    act.check()
