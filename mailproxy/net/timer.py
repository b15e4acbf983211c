"""The one timer of a session until its login, which its phases share."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from types import TracebackType

import trio

from mailproxy.errors import ClientError, ClientTimeoutError, SessionError


class Timer:
    """The one timer of a session until its login, and what it means when it goes off.

    A phase begins with `limit`, which ends the phase before. That is one cancel scope
    for all phases: three of them would be a tenth of what a login costs.
    """

    __slots__ = ("_expired", "_scope")

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._expired: Callable[[], SessionError] = client_timed_out

    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        """Begin a phase of `seconds`; at its end, what `expired` returns is raised.

        It is raised by the `with` statement of this timer. Without `expired`, the
        client is to blame.
        """
        self._expired = expired or client_timed_out
        self._scope.deadline = trio.current_time() + seconds

    def stop(self) -> None:
        """Begin a phase without limit, or one that limits itself."""
        self._scope.deadline = math.inf

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            raise self._expired()


def timed_out() -> OSError:
    """The system error of a timer that went off, as the log shows it."""
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def client_timed_out() -> ClientError:
    """The client let `timeout` pass."""
    return ClientTimeoutError("client timed out", error=timed_out())
