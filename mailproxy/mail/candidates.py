"""Candidates: the backends that a session may connect to, and the choice among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.conf.addresses import SocketAddress


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that a session may connect to.

    Attributes:
      family, address: its socket address.
      name: the address as the auth source wrote it, for the log.
      spare: whether another one may take its place: then a failure is an event of its
        own, and an error in the log, even where nginx thinks of the client alone.
      host: its name as written, for SNI and verification; empty for a unix socket.
      ssl: whether there is TLS to it: on, off, starttls; empty: as `proxy_ssl` says.
      ssl_name: its name for SNI and verification; empty: as `proxy_ssl_name` says, or
        else `host`.
    """

    family: int
    address: SocketAddress
    name: str
    spare: bool = False
    host: str = ""
    ssl: str = ""
    ssl_name: str = ""


class Choice(ABC):
    """The candidates of one session, one after the other.

    The session says of each what came of it: `failed`, or `reached` and in the end
    `release`.
    """

    name: str
    """What the choice is made from, for the log: a group, or the only candidate."""

    @abstractmethod
    def next(self) -> Candidate | None:
        """Choose a candidate that this session has not tried; None if there is none."""

    @abstractmethod
    def failed(self, *, counts: bool) -> None:
        """Note that the candidate was not reached.

        Args:
          counts: whether that was its own fault.
        """

    @abstractmethod
    def reached(self) -> None:
        """Note that the candidate has greeted, and that the session logs in there."""

    @abstractmethod
    def release(self) -> None:
        """Note that the session has left the candidate that it had reached."""


class OneCandidate(Choice):
    """A choice of one."""

    def __init__(self, candidate: Candidate) -> None:
        self.name = candidate.name
        self._left: Candidate | None = candidate

    def next(self) -> Candidate | None:
        candidate, self._left = self._left, None
        return candidate

    def failed(self, *, counts: bool) -> None:
        pass

    def reached(self) -> None:
        pass

    def release(self) -> None:
        pass
