"""The timer that the phases of a session share until its login."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from types import TracebackType

import trio

from mailproxy.errors import ClientError, ClientTimeoutError, SessionError


class Timer:
    """The one timer of a session until its login, and the error that it raises.

    `limit` begins a phase and ends the previous one. All phases share one cancel
    scope: three scopes would be a tenth of the cost of a login.
    """

    __slots__ = ("_expired", "_scope")

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._expired: Callable[[], SessionError] = client_timed_out

    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        """Begin a phase of at most `seconds`.

        When they are over, the `with` statement of this timer raises the error that
        `expired` returns. Without `expired`, the error says that the client timed out.
        """
        self._expired = expired or client_timed_out
        self._scope.deadline = trio.current_time() + seconds

    def stop(self) -> None:
        """Begin a phase that has no limit, or sets its own."""
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
    """Return the system error that the log shows for an expired timer."""
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def client_timed_out() -> ClientError:
    """Return the error for a client that let `timeout` pass."""
    return ClientTimeoutError("client timed out", error=timed_out())
