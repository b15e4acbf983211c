"""Auth sources, which decide whether a login is good, and which backend it goes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from mailproxy.auth.verdict import (
    CONFIGURED,
    Granted,
    Refused,
    Unavailable,
    Unknown,
    Verdict,
    is_clean,
)

if TYPE_CHECKING:
    from mailproxy.auth.request import AuthRequest
    from mailproxy.log import Logger
    from mailproxy.net.network import Network
    from mailproxy.net.timer import Timer

FAILURE_TEXT = b"Authentication failed"
"""Sent to a client whose user no source knows, as for a wrong password, so that clients
cannot find out which users exist."""


class Source(ABC):
    """An auth source, which runs in a worker.

    It gets a request, and uses the worker's connections and the session's timer and log
    to find an answer. It has no access to the client.
    """

    name: ClassVar[str]
    """Its name in the log: that of the directive that configures it, such as
    "auth_http"."""

    @abstractmethod
    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Verdict:
        """Decide whether one login is good.

        Every failure is an answer, too: `Unavailable`. A timeout is different, because
        it cancels the session's scope: before a source waits for the first time, it
        begins its own phase with ``timer.limit(…)`` or ``timer.stop()``, and when the
        timer expires, the session ends with the error that `Unavailable.exception`
        makes. A check that is cancelled closes everything it has opened.

        It waits for connections of `network` and through `timer`, and uses trio only in
        ``timer.in_trio(…)``: a session is no ordinary task (see `net/engine.py`).

        Args:
          network: makes connections.
          timer: limits the session; other sources and the backend use it afterwards.
          log: the session's log, for events that do not change the answer.
        """


@dataclass(frozen=True, slots=True)
class Chain:
    """The sources of a server, in the order in which they are asked."""

    sources: tuple[Source, ...]
    needs_route: bool = True
    """Whether a source must say where the backend is; if not, `proxy_pass` does."""

    async def check(
        self, request: AuthRequest, network: Network, timer: Timer, log: Logger
    ) -> Granted | Refused | Unavailable:
        """Ask one source after the other until one of them knows the user.

        An unavailable source ends the search: the answer of a later one might be wrong
        for this user, and an outage must never look like a wrong password.

        Returns:
          The decision. A `Granted` has a route, and its user and secret contain no
          octet that a mail protocol could take for the end of a line. A user unknown to
          all sources is refused.
        """
        for source in self.sources:
            verdict = await source.check(request, network, timer, log)
            if isinstance(verdict, Granted):
                return self._checked(verdict, source)
            if not isinstance(verdict, Unknown):
                return verdict
        return Refused(text=FAILURE_TEXT, reason="no auth source knows the user")

    def _checked(self, granted: Granted, source: Source) -> Granted | Unavailable:
        """The same with a route, or why it cannot be used."""
        master = b"" if granted.route is None else granted.route.master
        if not (
            is_clean(granted.user)
            and is_clean(granted.secret or b"")
            and (not master or is_clean(master))
        ):
            return Unavailable(event=f"{source.name} sent invalid user or password")
        if granted.route is not None:
            return granted
        if self.needs_route:
            return Unavailable(event='no route for user "%s"', values=(granted.user,))
        return replace(granted, route=CONFIGURED)
