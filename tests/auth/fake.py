"""An auth source that says what a test wants; it keeps to the contract of all sources."""

from __future__ import annotations

from typing import ClassVar

import trio

from mailproxy.auth.request import AuthRequest
from mailproxy.auth.source import Source
from mailproxy.auth.verdict import Unavailable, Verdict
from mailproxy.errors import AuthError
from mailproxy.log import Logger
from mailproxy.net.network import Network
from mailproxy.net.timer import Timer, timed_out

LIMIT = 10.0
"""Seconds that the fake source gives itself."""


class FakeSource(Source):
    """Gives its verdicts one after another, the last one again and again.

    Args:
      verdicts: what it answers; None: it never does.
      delay: seconds that an answer takes.

    Attributes:
      asked: the requests.
    """

    name: ClassVar[str] = "auth_fake"

    def __init__(self, *verdicts: Verdict | None, delay: float = 0) -> None:
        self.verdicts = verdicts
        self.delay = delay
        self.asked: list[AuthRequest] = []

    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Verdict:
        verdict = self.verdicts[min(len(self.asked), len(self.verdicts) - 1)]
        self.asked.append(request)
        timer.limit(LIMIT, _late)
        await trio.sleep(self.delay)
        if verdict is None:
            await trio.sleep_forever()
        assert verdict is not None
        return verdict


def _late() -> AuthError:
    return Unavailable(event="auth_fake timed out", error=timed_out()).exception()
