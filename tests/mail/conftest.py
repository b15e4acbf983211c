"""What several rooms of mail need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from mailproxy.net.engine import Engine
from mailproxy.net.network import Network


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    """A network with real sockets, and its engine running."""
    engine = Engine()
    network = Network(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield network
        nursery.cancel_scope.cancel()
    network.close()
    engine.close()
