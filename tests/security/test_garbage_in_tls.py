"""A client speaks nonsense inside an established TLS connection.

That is the client's doing, as nginx sees it too: an info line, whatever the phase.
"""

from __future__ import annotations

import ssl

import pytest

from tests.security.world import TLS, Peer, World, world

DIRECTIVES = f"listen 127.0.0.1:1143 ssl; protocol imap; {TLS}"
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
GARBAGE = {
    "clear text": b"a LOGIN u p\r\n" + bytes(2000),
    "another version": b"\x17\x09\x09\x00\x20" + bytes(32),
    "bad record mac": b"\x17\x03\x03\x00\x40" + bytes(64),
    "a record that is too short": b"\x17\x03\x03\x00\x01\x00",
    "a record that is too long": b"\x17\x03\x03\xff\xff" + bytes(20000),
    "an unknown kind of record": b"\x2a\x03\x03\x00\x20" + bytes(32),
    "another handshake": b"\x16\x03\x03\x00\x04\x01\x00\x00\x00",
    "change cipher spec": b"\x14\x03\x03\x00\x01\x01" * 100,
    "an alert in clear text": b"\x15\x03\x03\x00\x02\x02\x14",
}
every_version = pytest.mark.parametrize(
    "version", VERSIONS.values(), ids=list(VERSIONS)
)


async def greeted(here: World, version: ssl.TLSVersion) -> Peer:
    """A client that has read the greeting."""
    client = await here.connect()
    await client.start_tls(version=version)
    await client.expect(b"* OK IMAP4 ready\r\n")
    return client


def complaints(here: World) -> list[tuple[str, str]]:
    """Level and beginning of what the log says of TLS."""
    return [
        (level, text.partition("(")[0])
        for level, text in here.log.events
        if "SSL" in text
    ]


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
@every_version
async def test_instead_of_a_command(garbage: bytes, version: ssl.TLSVersion) -> None:
    async with world(DIRECTIVES) as here:
        client = await greeted(here, version)
        await client.socket.send(garbage)
        client.finish()
        await here.over()
        assert complaints(here) == [("info", "SSL_read")]


@every_version
@pytest.mark.parametrize("kind", ["clear text", "bad record mac"])
@pytest.mark.parametrize(
    "more", [b"", b"b NOOP\r\n"], ids=["alone", "behind a command"]
)
async def test_in_the_relay(version: ssl.TLSVersion, kind: str, more: bytes) -> None:
    """What came before it reaches the backend."""
    async with world(DIRECTIVES) as here:
        client = await greeted(here, version)
        backend = await here.log_in(client, b"a LOGIN u p\r\n")
        await backend.send(b"* OK\r\n")
        await backend.read_until(b"\r\n")
        await backend.send(b"a OK\r\n")
        await client.expect(b"a OK\r\n")
        await client.send(more)
        await client.socket.send(GARBAGE[kind])
        client.finish()
        assert await backend.rest() == more
        await here.over()
        assert complaints(here) == [("info", "SSL_read")]
