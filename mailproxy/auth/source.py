"""Auth sources: what answers whether a login is good, and where its backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mailproxy.auth.verdict import (
    FORBIDDEN,
    Granted,
    Refused,
    Unavailable,
    Unknown,
    Verdict,
)

if TYPE_CHECKING:
    from mailproxy.auth.request import AuthRequest
    from mailproxy.log import Logger
    from mailproxy.net.network import Network
    from mailproxy.net.timer import Timer

FAILURE_TEXT = b"Authentication failed"
"""What a client is told that no source knows, the same as for a wrong password: it must
not learn which users there are."""


class Source(ABC):
    """An auth source, which runs in a worker.

    It sees a request, and borrows from the worker what it takes to find an answer:
    connections, the session's timer and log. It has no access to the client.
    """

    name: ClassVar[str]
    """What the log calls it: the directive that makes it, as "auth_http"."""

    @abstractmethod
    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Verdict:
        """Answer whether one login is good.

        Whatever goes wrong is an answer, too: `Unavailable`. Only a limit of time is
        different, as it is the session's scope that is cancelled: before it waits for
        the first time, a source begins a phase of its own with ``timer.limit(…)`` or
        ``timer.stop()``, and when the timer goes off, the session ends by the error that
        `Unavailable.exception` makes. When a check is cancelled, it leaves nothing open.

        Args:
          network: to connect with.
          timer: what limits the session; other sources and the backend come after.
          log: of the session, for what does not change the answer.
        """


@dataclass(frozen=True, slots=True)
class Chain:
    """The sources of a server, in the order in which they are asked."""

    sources: tuple[Source, ...]

    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Granted | Refused | Unavailable:
        """Ask source by source, until one of them knows the user.

        A source that is unavailable ends the search: what a later one says of the user
        might be wrong, and an outage must never read as "wrong password".

        Returns:
          The decision. A `Granted` has a route, and no octet in user and secret that a
          mail protocol could take for the end of a line. A user whom no source knows is
          refused.
        """
        for source in self.sources:
            verdict = await source.check(request, network, timer, log)
            if isinstance(verdict, Granted):
                return _fault(verdict, source) or verdict
            if not isinstance(verdict, Unknown):
                return verdict
        return Refused(text=FAILURE_TEXT, reason="no auth source knows the user")


def _fault(granted: Granted, source: Source) -> Unavailable | None:
    """Why a session cannot go on with what a source has granted, if it cannot."""
    if not (
        FORBIDDEN.isdisjoint(granted.user)
        and FORBIDDEN.isdisjoint(granted.secret or b"")
    ):
        return Unavailable(event=f"{source.name} sent invalid user or password")
    if granted.route is None:
        return Unavailable(event='no route for user "%s"', values=(granted.user,))
    return None
