"""Resumption: the TLS sessions of a worker with backends, to be resumed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from mailproxy.net.openssl import ClientSession

MAX_SESSIONS = 1024
"""TLS sessions that a worker keeps; a new one takes the place of the least used."""


class Resumption:
    """The last TLS session with each peer.

    A key says with whom, under which name and in which context. A session must not be
    resumed under another one: its certificate was verified for that alone.
    """

    def __init__(self) -> None:
        self._sessions: OrderedDict[Hashable, ClientSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, key: Hashable) -> ClientSession | None:
        """Return the session to resume, or None."""
        session = self._sessions.get(key)
        if session is None:
            return None
        if not session.usable:
            del self._sessions[key]
            return None
        self._sessions.move_to_end(key)
        return session

    def keep(self, key: Hashable, session: ClientSession) -> None:
        """Keep a session in place of the one before."""
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
