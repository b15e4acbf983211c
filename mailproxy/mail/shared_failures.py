"""Failures of a peer that all workers know of, through the manager (`zone`).

A worker reports what came of its tries. The manager counts as nginx does with a zone, and
tells all workers when the peer has failed too often. After `fail_timeout` it lets one worker
after the other try it once, until one reports how that ended; so a dead server costs one
attempt in that time, however many workers there are.

While there is no manager, each worker goes on with what it knows, and counts for itself. If
there is one that says nothing, because it hangs, a worker tries by itself in the end: the
master takes a minute to find that out, and all servers of a group may be unavailable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailproxy.mail.peer_states import PeerState
from mailproxy.net.line_kinds import LineKind

if TYPE_CHECKING:
    from mailproxy.mail.peer_news import PeerNews
    from mailproxy.net.manager_line import ManagerLine

MAX_SILENCE = 30
"""Seconds after `fail_timeout` in which the manager has to speak of a peer that is
unavailable. It lets one worker a second try; few have more workers than that."""


class SharedFailures:
    """What the manager says of one peer, and what it is told.

    Args:
      upstream, name: the group, and the peer in it.
    """

    __slots__ = (
        "_alone",
        "_doubted",
        "_line",
        "_may_try",
        "_name",
        "_since",
        "_unavailable",
        "_upstream",
    )

    def __init__(self, line: ManagerLine, upstream: str, name: str) -> None:
        self._line = line
        self._upstream = upstream
        self._name = name
        self._unavailable = False
        self._may_try = False
        self._alone = False
        """Whether this worker has tried it by itself."""
        self._since = 0
        """When the manager has last spoken, or this worker has tried it by itself."""
        self._doubted: int | None = None
        """When it was last found to have failed; None if the manager forgave it."""

    @property
    def is_heard(self) -> bool:
        """Whether there is a manager."""
        return self._line.is_open

    def is_blocked(self, now: int, fail_timeout: int) -> bool:
        """Whether this worker must leave the peer alone."""
        silent = now - self._since > fail_timeout + MAX_SILENCE
        return self._unavailable and not self._may_try and not silent

    def hear(self, news: PeerNews, now: int) -> bool:
        """Note what the manager says; returns whether the peer was unavailable before."""
        before = self._unavailable
        self._unavailable = news.state == PeerState.UNAVAILABLE
        self._may_try = news.may_try
        self._alone = False
        self._since = now
        if not news.doubted:
            self._doubted = None
        elif self._doubted is None:
            self._doubted = now
        return before

    def enter(self, now: int) -> None:
        """Tell that a session is about to connect, if that is the one try."""
        if self._may_try:
            self._may_try = False
            self._tell("try")
        elif self._unavailable:
            self._alone = True
            self._since = now

    def fail(self, now: int) -> None:
        """Tell that the peer was not reached, or did not greet."""
        self._doubted = now
        if not self.is_heard:
            self._unavailable = False  # this is news, for the next manager
        self._tell("failed")

    def greet(self, now: int, fail_timeout: int) -> None:
        """Tell that it has greeted, if that makes a difference."""
        doubted = self._doubted
        if doubted is not None and (self._unavailable or now - doubted > fail_timeout):
            self._tell("ok")
            if self._alone:
                self._unavailable = False

    def _tell(self, event: str) -> None:
        body = {"upstream": self._upstream, "peer": self._name, "event": event}
        self._line.tell(LineKind.REPORT, body)
