"""A PROXY header that never becomes whole."""

import pytest

from tests.security.world import world

LISTEN = "listen 127.0.0.1:1143 proxy_protocol; protocol imap;"


@pytest.mark.parametrize(
    "sent", [b"", b"P", b"PROXY TCP4 192.0.2.1", b"\r\n\r\n\0\r\nQ"]
)
async def test_and_its_client_is_gone_before_anybody_looks(sent: bytes) -> None:
    """The end of the connection was reported when nobody waited for it."""
    async with world(LISTEN) as here:
        here.connect_and_finish(sent)
        await here.over()
        here.connect_and_reset(sent)
        await here.over()


async def test_and_its_client_leaves_later() -> None:
    async with world(LISTEN) as here:
        client = await here.connect()
        for piece in (b"PRO", b"XY TCP4 ", b"192.0.2.1"):
            await client.send(piece)
        client.close()
        await here.over()
