"""The timer that the phases of a session share until its login."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

from mailproxy.errors import ClientError, ClientTimeoutError, SessionError
from mailproxy.frozen import Frozen

Args = TypeVarTuple("Args")
T = TypeVar("T")


class PhaseOver(Frozen, BaseException):
    """Ends what a session waits for, as its time is over; only timers catch it."""


class Timer(Protocol):
    """The one timer of a session until its login, and the error that it raises.

    `limit` begins a phase and ends the previous one. All phases share one timer: three
    cancel scopes would be a tenth of the cost of a login. The timer of a session is the
    `DrivenTask` that it runs in.

    Whatever a session waits for besides its connections, it waits for here, because a
    driven task must not wait as tasks of trio do.
    """

    __slots__ = ()

    @abstractmethod
    def limit(
        self, seconds: float, expired: Callable[[], SessionError] | None = None
    ) -> None:
        """Begin a phase of at most `seconds`.

        When they are over, the `with` statement of this timer raises the error that
        `expired` returns. Without `expired`, the error says that the client timed out.
        """

    @abstractmethod
    def stop(self) -> None:
        """Begin a phase that has no limit, or sets its own."""

    @abstractmethod
    def now(self) -> float:
        """Return the time of the clock that limits are measured with, in seconds."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait for a time, which may be 0."""

    @abstractmethod
    def attempt(self) -> AbstractContextManager[None]:
        """Raise the error of a phase that expires within it from its own `with`
        statement, and not from that of the timer: the session may try something else.
        """

    @abstractmethod
    def at_most(self, seconds: float) -> AbstractContextManager[None]:
        """Leave the `with` statement of the result without an error after `seconds`."""

    @abstractmethod
    async def in_trio(
        self, work: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args
    ) -> T:
        """Await ``work(*args)``, which may use anything of trio.

        That costs some 20 us. The limit of the present phase holds.
        """

    def __enter__(self) -> None:
        """Begin; the first phase has no limit."""

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def timed_out() -> OSError:
    """Return the system error that the log shows for an expired timer."""
    return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def client_timed_out() -> ClientError:
    """Return the error for a client that let `timeout` pass."""
    return ClientTimeoutError("client timed out", error=timed_out())
