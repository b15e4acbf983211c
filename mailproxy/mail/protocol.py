"""What a mail protocol is: its settings, and its dialogue with one client and its backend.

To add one, write a file with a class of each kind, and add the settings class to
`mail/protocols.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mailproxy.conf.directive import Block, Reading, Settings
from mailproxy.mail.load_state import load_state

if TYPE_CHECKING:
    from mailproxy.mail.backend import Backend
    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login


@dataclass(frozen=True, kw_only=True)
class MailProtocol(Settings, ABC):
    """The settings of a protocol, and what else is the same for all its sessions."""

    name: ClassVar[str]
    """What `protocol` calls it."""
    ports: ClassVar[tuple[int, ...]]
    """The ports that mean it where `protocol` is not written."""
    needs_password: ClassVar[bool] = True
    """Whether a client cannot be logged in at a backend without a password."""
    harmless: ClassVar[frozenset[bytes]] = frozenset()
    """Commands without secrets, in upper case: the debug log shows them whole, and of
    all others no arguments."""
    tagged: ClassVar[bool] = False
    """Whether a command has a tag before its name."""
    certificate_error: ClassVar[bytes]
    """Sent, before closing, to a client whose certificate does not verify."""
    certificate_missing: ClassVar[bytes]
    """Sent, before closing, to a client that has no certificate and needs one."""
    internal_error: ClassVar[bytes]
    """Sent, before closing, when the auth source or the backend fails."""

    header_refusal: ClassVar[re.Pattern[bytes]] = re.compile(rb"(?!)")
    """Found in what backends answer that take a PROXY header for a command."""

    @property
    @abstractmethod
    def client_buffer(self) -> int:
        """Octets that one command of a client may have."""

    @classmethod
    def applies(cls, block: Block, reading: Reading) -> bool:
        """Whether the server speaks this protocol."""
        return load_state(reading).protocol.get(block) == cls.name

    @abstractmethod
    def dialogue(self, client: Client) -> Dialogue:
        """Begin a dialogue with a client that has just connected."""


class Dialogue(ABC):
    """One session before its relay; it holds the state that its protocol has.

    Attributes:
      client: who it is with.
      host: the client's name in the DNS, or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``, for
        auth sources and backends; None if the protocol does not look for it.
    """

    host: bytes | None = None

    def __init__(self, client: Client) -> None:
        self.client = client

    @abstractmethod
    async def greet(self) -> None:
        """Say the first words.

        Raises:
          ClientError: the client left or broke a rule; it has been told.
        """

    @abstractmethod
    async def read_login(self) -> Login | None:
        """Answer commands until one of them is a login; None: the client said goodbye.

        Raises:
          ClientError: the client left or broke a limit; it has been told.
        """

    @abstractmethod
    async def challenge(self, text: bytes) -> list[bytes]:
        """Send a SASL challenge (base64, or empty) and return the answer's words.

        There is at least one; it is empty if the line is, or begins with a space.

        Raises:
          BadCommand: the answer is not a line of words.
          ClientError: the client left.
        """

    @abstractmethod
    def invalid(self, login: Login) -> bytes:
        """The line that refuses `login` as an invalid command."""

    @abstractmethod
    def refusal(self, login: Login, text: bytes, code: bytes, /) -> bytes:
        """The line that says that `login` is not good.

        Args:
          text: why, from the auth source.
          code: SMTP: reply code, or empty for the protocol's own.
        """

    @abstractmethod
    async def enter(self, backend: Backend, login: Login) -> bytes:
        """Log in at the backend; returns what the client is to see of its answer.

        Args:
          login: with the user and the secret for the backend.

        Raises:
          LoginRefused: the backend says that the user or the secret is not good.
          BackendError: it left, or answered something else.
        """

    async def start_tls(self) -> None:
        """Do the handshake of a STARTTLS command that has been answered.

        Raises:
          ClientError: it failed, or the client's certificate is bad.
        """
        self.forget()
        await self.client.start_tls("in starttls state")
        self.client.info.action = "in auth state"

    @abstractmethod
    def forget(self) -> None:
        """Forget what the client said in clear text (RFC 3207, section 4.2)."""
