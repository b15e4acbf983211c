"""The kinds of messages between workers and the manager."""

from __future__ import annotations

from enum import IntEnum


class LineKind(IntEnum):
    """The kinds of messages of a line between a worker and the manager; see `manager_line`."""

    HELLO = 1
    """Both ways, with the pid: there is somebody. The manager's fails all that its
    predecessor was asked."""
    PEERS = 2
    """To the worker: the peers of a group, and their states."""
    REPORT = 3
    """To the manager: what came of a try to reach a peer."""
    CANCEL = 12
    """To the manager: nobody waits for the answer any more."""
    OVERLOADED = 99
    """To the worker: the question is not answered, there are too many."""
