"""What a backend can be asked in every protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mailproxy.manager.probes.peer import ProbeError

if TYPE_CHECKING:
    from mailproxy.manager.probes.peer import ProbedPeer


@dataclass(frozen=True, slots=True)
class ProbeLogin:
    """The login of `login_file`."""

    user: bytes = field(repr=False)
    password: bytes = field(repr=False)


class Talk(ABC):
    """The dialogue of a probe with a peer, in one protocol.

    All methods raise `ProbeError` if the peer answers anything else than what a healthy
    one does.
    """

    protocol: ClassVar[str]
    """Its name in the directive `protocol`."""
    goodbye: ClassVar[bytes]
    """The command with which a client leaves."""

    def __init__(self, peer: ProbedPeer, name: bytes) -> None:
        """Args:
        name: what this side calls itself.
        """
        self.peer = peer
        self.name = name

    @abstractmethod
    async def read_greeting(self) -> None:
        """Read the greeting."""

    @abstractmethod
    async def ask_starttls(self) -> None:
        """Have the peer begin TLS; the handshake comes next."""

    @abstractmethod
    async def ask_capabilities(self) -> None:
        """Ask what the peer offers."""

    @abstractmethod
    async def log_in(self, login: ProbeLogin) -> None:
        """Log in, after `ask_capabilities`."""

    def not_offered(self) -> ProbeError:
        """The error for a peer that does not offer STARTTLS."""
        return ProbeError("upstream does not offer STARTTLS")

    def starttls_refused(self, line: bytes) -> ProbeError:
        """The error for a peer that refuses STARTTLS."""
        return ProbeError('upstream refused STARTTLS: "%s"', self.peer.shown(line))

    def login_refused(self, line: bytes) -> ProbeError:
        """The error for a peer that refuses the login."""
        return ProbeError('upstream refused the login: "%s"', self.peer.shown(line))
