"""The choice of one session among the peers of a group."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from mailproxy.mail.balancing import (
    ConsistentHash,
    Hash,
    LeastConn,
    Random,
    RoundRobin,
)
from mailproxy.mail.candidates import Choice

if TYPE_CHECKING:
    from mailproxy.log import Logger
    from mailproxy.mail.candidates import Candidate
    from mailproxy.mail.group import Key
    from mailproxy.mail.peers import LiveGroup, Peer
    from mailproxy.net.timer import Timer


class GroupChoice(Choice):
    """The choice of one session among the peers of a group.

    Args:
      key: of `hash`.
    """

    def __init__(self, live: LiveGroup, key: bytes, timer: Timer, log: Logger) -> None:
        self.name = live.group.name
        self._live = live
        self._method = _make_method(live, key)
        self._timer = timer
        self._log = log
        self._backups = False
        self._peer: Peer | None = None

    def next(self) -> Candidate | None:
        now = self._now()
        live = self._live
        peer = None
        if not self._backups:
            peer = self._method.pick(live.primaries, now)
            if peer is None and live.backups.all:
                self._backups = True
                if not isinstance(self._method, LeastConn):
                    self._method = RoundRobin(single=False)
        if self._backups:
            peer = self._method.pick(live.backups, now)
        self._peer = peer
        if peer is None:
            return None
        self._method.tried.add(peer)
        peer.enter(now)
        return peer.candidate

    def failed(self, *, counts: bool) -> None:
        peer = self._take_peer()
        peer.leave()
        if not counts:
            return
        if self._live.single:
            peer.numbers.fail()
        elif peer.fail(self._now()):
            self._log.warn("upstream server temporarily disabled")

    def reached(self) -> None:
        assert self._peer is not None, "it was chosen"
        self._peer.greet(self._now())

    def release(self) -> None:
        self._take_peer().leave()

    def _take_peer(self) -> Peer:
        peer, self._peer = self._peer, None
        assert peer is not None, "it was chosen"
        return peer

    def _now(self) -> int:
        return int(self._timer.now())


def _make_method(live: LiveGroup, key: bytes) -> RoundRobin:
    single, method = live.single, live.group.method
    match method.name:
        case "least_conn":
            return LeastConn(single=single)
        case "hash":
            return Hash(key, single=single)
        case "consistent_hash":
            return ConsistentHash(key, single=single)
        case "random":
            return Random(two=method.two, single=single)
        case "round_robin":
            return RoundRobin(single=single)


def make_key(key: Key, login: bytes, client: str) -> bytes:
    """The key of a session.

    Args:
      login: the user at the backend.
      client: the address of the client; "unix:" for a unix socket.
    """
    return b"".join(
        part if isinstance(part, bytes) else _value(part.name, login, client)
        for part in key
    )


def _value(variable: str, login: bytes, client: str) -> bytes:
    match variable:
        case "auth_user":
            return login
        case "auth_domain":
            return login.rpartition(b"@")[2] if b"@" in login else b""
        case "binary_remote_addr" if client != "unix:":
            return ip_address(client.partition("%")[0]).packed
        case _:
            return client.encode()
