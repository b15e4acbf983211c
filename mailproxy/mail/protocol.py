"""Base classes of a mail protocol: its settings, and its dialogue with client and backend.

To add one, write a class of each kind, in a file each so that a test of a configuration
need not load dialogues, or in one, and add the settings class to `mail/protocols.py`.
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
    """The settings of a protocol, and its constants."""

    name: ClassVar[str]
    """Its name in the directive `protocol`."""
    ports: ClassVar[tuple[int, ...]]
    """The ports that select it if `protocol` is not configured."""
    needs_password: ClassVar[bool] = True
    """Whether a login at a backend requires a password."""
    harmless: ClassVar[frozenset[bytes]] = frozenset()
    """Commands without secrets, in upper case: the debug log shows them whole, and all
    others without their arguments."""
    tagged: ClassVar[bool] = False
    """Whether a command has a tag before its name."""
    certificate_error: ClassVar[bytes]
    """Sent, before closing, to a client whose certificate does not verify."""
    certificate_missing: ClassVar[bytes]
    """Sent, before closing, to a client that has no certificate and needs one."""
    internal_error: ClassVar[bytes]
    """Sent, before closing, when the auth source or the backend fails."""

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
    """The dialogue of one session before its relay, with the state that its protocol needs.

    Attributes:
      client: the client of the session.
      host: the client's name in the DNS, or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``, for
        auth sources and backends; None if the protocol does not look it up.
      ttl: how many more backends in a row the session may have, if a proxy in front has
        said so; see `mail/forward.py`.
    """

    host: bytes | None = None
    ttl: int | None = None
    header_refusal: ClassVar[re.Pattern[bytes]] = re.compile(rb"(?!)")
    """Matches the reply of a backend that took a PROXY header for a command."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @abstractmethod
    async def greet(self) -> None:
        """Send the greeting.

        Raises:
          ClientError: the client left, or broke a rule and has been told.
        """

    @abstractmethod
    async def read_login(self) -> Login | None:
        """Answer commands until one of them is a login; returns None if the client quits.

        Raises:
          ClientError: the client left, or exceeded a limit and has been told.
        """

    @abstractmethod
    async def challenge(self, text: bytes) -> list[bytes]:
        """Send a SASL challenge (base64, or empty) and return the words of the answer.

        There is at least one word, which is empty if the line is empty or begins with a
        space.

        Raises:
          BadCommand: the answer is not a line of words.
          ClientError: the client left.
        """

    @abstractmethod
    def invalid(self, login: Login) -> bytes:
        """The line that refuses `login` as an invalid command."""

    @abstractmethod
    def refusal(self, login: Login, text: bytes, code: bytes, /) -> bytes:
        """The line that refuses `login` as not good.

        Args:
          text: the reason, from the auth source.
          code: SMTP: reply code, or empty for the protocol's default.
        """

    @abstractmethod
    async def meet(self, backend: Backend) -> None:
        """Read the greeting of a backend, and find out what it offers.

        If that fails, another backend may take its place.

        Raises:
          BackendError: the backend closed, or greets otherwise.
        """

    @abstractmethod
    async def enter(self, backend: Backend, login: Login) -> bytes:
        """Log in at a backend that was met; returns the answer for the client.

        Args:
          login: has the user and the secret for the backend.

        Raises:
          LoginRefused: the backend refuses the user or the secret.
          BackendError: the backend closed, or answered something else.
        """

    async def start_tls(self) -> None:
        """Do the handshake after a STARTTLS command, which has been answered.

        Raises:
          ClientError: the handshake failed, or the client's certificate is bad.
        """
        self.ttl = None
        self.forget()
        await self.client.start_tls("in starttls state")
        self.client.info.action = "in auth state"

    @abstractmethod
    def forget(self) -> None:
        """Forget what the client said in clear text (RFC 3207, section 4.2)."""
