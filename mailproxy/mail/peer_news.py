"""What the manager tells workers about the peers of a group, and the form of that.

The message is PEERS of `net/manager_line.py`: the name of the group, all of its peers, and
the epoch of the list. A list that is too long for one message is told in parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from mailproxy.conf.addresses import Address, SocketAddress
from mailproxy.mail.peer_states import PeerState
from mailproxy.net.line_kinds import LineKind
from mailproxy.net.messages import MAX_FRAME, Message, MessageError

MAX_PART = MAX_FRAME // 2
"""Octets of the peers in one message."""

_BACKUP = 1
_DOUBTED = 2
_MAY_TRY = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerNews:
    """One peer, as the manager knows it."""

    name: str
    """Unlike that of all other peers of the group; its numbers are found by it."""
    server: int
    """Which `server` of the group it comes from."""
    address: Address
    weight: int
    backup: bool
    state: PeerState
    doubted: bool = False
    """It has failed, and the manager wants to hear when it greets."""
    may_try: bool = False
    """It is unavailable, and the worker that is told this may try it once."""


@dataclass(frozen=True, slots=True)
class GroupNews:
    """All peers of a group."""

    upstream: str
    epoch: int
    peers: tuple[PeerNews, ...]


def write_news(news: GroupNews) -> list[Message]:
    """Format news as one message or more."""
    parts: list[list[object]] = [[]]
    firsts = [0]
    size = 0
    for peer in news.peers:
        entry = _write_peer(peer)
        size += len(json.dumps(entry)) + 1
        if size > MAX_PART and parts[-1]:
            firsts.append(firsts[-1] + len(parts[-1]))
            parts.append([])
            size = 0
        parts[-1].append(entry)
    return [
        Message(
            LineKind.PEERS,
            body={
                "upstream": news.upstream,
                "epoch": news.epoch,
                "part": number,
                "parts": len(parts),
                "first": firsts[number],
                "peers": part,
            },
        )
        for number, part in enumerate(parts)
    ]


def _write_peer(peer: PeerNews) -> list[object]:
    at = peer.address
    flags = _BACKUP * peer.backup | _DOUBTED * peer.doubted | _MAY_TRY * peer.may_try
    return [
        *(peer.name, peer.server, at.family, at.sockaddr, at.text),
        *(peer.weight, flags, peer.state),
    ]


class NewsReader:
    """Puts the parts together again."""

    def __init__(self) -> None:
        self._parts: dict[str, tuple[int, list[PeerNews]]] = {}

    def read(self, body: Mapping[str, object]) -> GroupNews | None:
        """Read a message; returns None if it was not the last part.

        Raises:
          MessageError: it is not what `write_news` makes, or a part is missing.
        """
        try:
            upstream, epoch = cast("str", body["upstream"]), cast("int", body["epoch"])
            is_last = cast("int", body["part"]) + 1 == body["parts"]
            peers = [*map(_read_peer, cast("list[list[object]]", body["peers"]))]
            before, known = self._parts.pop(upstream, (epoch, []))
            if not body["part"]:
                before, known = epoch, []
            if before != epoch or len(known) != body["first"]:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise MessageError("no news of a group") from None
        known += peers
        if is_last:
            return GroupNews(upstream, epoch, tuple(known))
        self._parts[upstream] = epoch, known
        return None


def _read_peer(entry: Sequence[object]) -> PeerNews:
    name, server, family, sockaddr, text, weight, flags, state = entry
    if not isinstance(flags, int) or not isinstance(state, int):
        raise TypeError
    at = tuple(sockaddr) if isinstance(sockaddr, list) else sockaddr
    return PeerNews(
        name=cast("str", name),
        server=cast("int", server),
        address=Address(
            cast("int", family), cast("SocketAddress", at), cast("str", text)
        ),
        weight=cast("int", weight),
        backup=bool(flags & _BACKUP),
        state=PeerState(state),
        doubted=bool(flags & _DOUBTED),
        may_try=bool(flags & _MAY_TRY),
    )


def read_report(body: Mapping[str, object]) -> tuple[str, str, str]:
    """Read what a worker tells of a peer: the group, the name of the peer, the event.

    Raises:
      MessageError: it is none of these.
    """
    found = body.get("upstream"), body.get("peer"), body.get("event")
    if not all(isinstance(each, str) for each in found):
        raise MessageError("no report of a peer")
    return cast("tuple[str, str, str]", found)
