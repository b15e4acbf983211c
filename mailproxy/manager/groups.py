"""Groups of backends as the manager knows them, for all workers of its generation.

Whatever changes a group goes through here: failures that workers report (for groups with a
`zone`), health checks, and names that are looked up. Each change is told to all workers,
who use it from their next choice on, and is put on the board, from where the next
manager goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import trio

from mailproxy.conf.values import lower
from mailproxy.mail.group import Group
from mailproxy.mail.peer_news import GroupNews, read_report, write_news
from mailproxy.mail.peer_states import PeerState
from mailproxy.manager.hub import Hub, ManagedWorker
from mailproxy.manager.peers import ManagedGroup, ManagedPeer
from mailproxy.manager.services import Body, ManagerService
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import MessageError
from mailproxy.stats.mapping import Row

FRONT_PAUSE = 0.5
"""Seconds between two looks whether this manager writes the board by now."""


class GroupService(ManagerService):
    """See the module.

    Attributes:
      groups: by name in lower case.
      followers: called with a group that has changed, before workers are told.
    """

    name = "groups"

    def __init__(self, groups: Iterable[Group], row: Row) -> None:
        super().__init__()
        self.groups = {lower(group.name): ManagedGroup(group, row) for group in groups}
        self.followers: list[Callable[[ManagedGroup], None]] = []
        self.takes[LineKind.REPORT] = self._report
        self._hub: Hub | None = None
        self._epoch = 0
        self._changed = trio.Event()

    # Workers

    def greet(self, worker: ManagedWorker) -> None:
        now = trio.current_time()
        for managed in self.groups.values():
            worker.push(managed, write_news(self._news(managed, worker.pid)))
            for peer in managed.peers:
                peer.meet(now)
        self._changed.set()

    def _news(self, managed: ManagedGroup, worker: int) -> GroupNews:
        self._epoch += 1
        peers = tuple(peer.news(worker) for peer in managed.peers)
        return GroupNews(managed.group.name, self._epoch, peers)

    def _report(self, worker: ManagedWorker, body: Body) -> None:
        """Take note of what a worker tells of a peer.

        Raises:
          MessageError: it tells nothing of a peer that there is.
        """
        upstream, name, event = read_report(body)
        managed = self.groups.get(lower(upstream))
        if managed is None or not managed.group.zone:
            raise MessageError("no such group")
        peer, now = managed.peer(name), trio.current_time()
        before = peer.state
        match event:
            case "failed":
                changed = peer.fail(now)
            case "ok":
                changed = peer.greet(now)
            case "try":
                changed = worker.pid in peer.may_try
                peer.begin_try(now)
            case _:
                raise MessageError("no such event")
        if changed:
            self.tell(managed)
        self._say(managed, peer, before)

    def _say(self, managed: ManagedGroup, peer: ManagedPeer, before: PeerState) -> None:
        if self._hub is None or peer.state == before:
            return
        log, upstream = self._hub.log, managed.group.name
        if peer.state == PeerState.UNAVAILABLE:
            log.warn(
                f'peer {peer.address.text} of upstream "{upstream}" is unavailable'
            )
        elif before == PeerState.UNAVAILABLE:
            log.notice(
                f'peer {peer.address.text} of upstream "{upstream}" is available'
            )

    def tell(self, managed: ManagedGroup) -> None:
        """Tell all workers, and the board, about a group that has changed."""
        for follow in self.followers:
            follow(managed)
        self._changed.set()
        if self._hub is None:
            return
        for worker in self._hub.workers.values():
            worker.push(managed, write_news(self._news(managed, worker.pid)))
        self.publish(managed)

    # The board

    def publish(self, managed: ManagedGroup) -> bool:
        """Put what is known of a group on the board; False if another manager does that."""
        if self._hub is None or not self._hub.row.is_front:
            return False
        for peer in managed.peers:
            peer.numbers.publish(peer.state, peer.member.weight)
        return True

    def _take_over(self) -> None:
        """Begin with what another manager has put on the board."""
        now = trio.current_time()
        for managed in self.groups.values():
            for peer in managed.peers:
                if managed.group.zone and peer.numbers.state == PeerState.UNAVAILABLE:
                    peer.fails = max(1, peer.member.max_fails)
                    peer.block(now)

    # Time

    async def run(self, hub: Hub) -> None:
        """Let workers try what is unavailable."""
        self._hub = hub
        self._take_over()
        for managed in self.groups.values():
            self.tell(managed)
        is_known = not hub.row.is_shared
        while True:
            due = min(
                (peer.due for group in self.groups.values() for peer in group.peers),
                default=math.inf,
            )
            if not is_known:
                due = min(due, trio.current_time() + FRONT_PAUSE)
            self._changed = trio.Event()
            with trio.move_on_at(due):
                await self._changed.wait()
            if not is_known and hub.row.is_front:
                is_known = True
                for managed in self.groups.values():
                    self.tell(managed)
            now = trio.current_time()
            for managed in self.groups.values():
                workers = sorted(hub.workers)
                allowed = [peer.let_try(workers, now) for peer in managed.peers]
                if any(allowed):
                    self.tell(managed)
