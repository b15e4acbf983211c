"""What it takes to add a protocol: a file, which is the part above the tests, and a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from mailproxy.conf.directive import directive
from mailproxy.conf.values import size
from mailproxy.mail.backend import Backend
from mailproxy.mail.client import Client
from mailproxy.mail.commands import BadCommand
from mailproxy.mail.login import Login
from mailproxy.mail.modules import MODULES
from mailproxy.mail.protocol import Dialogue, MailProtocol
from mailproxy.mail.protocols import PROTOCOLS
from mailproxy.process import configuration
from tests.play import load_server, play


@dataclass(frozen=True, kw_only=True)
class DoorSettings(MailProtocol):
    """A door: ``KNOCK user password``, and it opens."""

    name: ClassVar[str] = "door"
    ports: ClassVar[tuple[int, ...]] = (7777,)
    certificate_error: ClassVar[bytes] = b"bad badge\r\n"
    certificate_missing: ClassVar[bytes] = b"no badge\r\n"
    internal_error: ClassVar[bytes] = b"stuck\r\n"

    door_client_buffer: int = directive(size, default=4096)

    @property
    def client_buffer(self) -> int:
        return self.door_client_buffer

    def dialogue(self, client: Client) -> Dialogue:
        return DoorDialogue(client)


class DoorDialogue(Dialogue):
    def forget(self) -> None: ...

    async def greet(self) -> None:
        await self.client.send(b"who is there?\r\n")

    async def read_login(self) -> Login | None:
        while True:
            try:
                match (await self.client.read_text()).split():
                    case [b"KNOCK", user, secret]:
                        return Login(method="plain", user=user, secret=secret)
                    case [b"BYE"]:
                        return None
                raise BadCommand(counted=True)
            except BadCommand as bad:
                await self.client.answer_bad(bad, b"what?\r\n")

    async def challenge(self, text: bytes) -> list[bytes]:
        return await self.client.ask(b"%s?\r\n" % text, 1)

    def invalid(self, _login: Login) -> bytes:
        return b"what?\r\n"

    def refusal(self, _login: Login, text: bytes, _code: bytes) -> bytes:
        return b"no: %s\r\n" % text

    async def meet(self, backend: Backend) -> None:
        await backend.expect(b"who")

    async def enter(self, backend: Backend, login: Login) -> bytes:
        backend.sending("knock")
        await backend.send_command(b"KNOCK %s %s\r\n" % (login.user, login.secret))
        return await backend.expect(b"open")


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the line in the list of protocols does."""
    monkeypatch.setattr(configuration, "PROTOCOLS", (*PROTOCOLS, DoorSettings))
    monkeypatch.setattr(configuration, "MODULES", (*MODULES, DoorSettings))


def test_it_is_known_to_protocol_and_listen() -> None:
    assert isinstance(load_server("protocol door;").protocol, DoorSettings)
    assert isinstance(load_server("listen 127.0.0.1:7777;").protocol, DoorSettings)
    server = load_server("protocol door; door_client_buffer 1k;")
    assert server.protocol.client_buffer == 1024


def test_a_session() -> None:
    play(
        """
        S: who is there?
        C: OPEN
        S: what?
        C: KNOCK u wrong
        Q: ⟨any⟩
        A: NO go away
        A| Auth-Wait: 3
        S: no: go away
        C: KNOCK u p
        Q: ⟨any⟩
        A: OK
        B: who is there?
        P: KNOCK u p
        B: open, come in
        S: open, come in
        C: hello
        P: hello
        """,
        "protocol door;",
    )


def test_a_backend_that_refuses() -> None:
    play(
        """
        S: who is there?
        C: KNOCK u p
        Q: ⟨any⟩
        A: OK
        B: who is there?
        P: KNOCK u p
        B: closed
        S: stuck
        S: ⟨close⟩
        L: [error] upstream sent invalid response: "closed" while reading response from upstream, …, login: "u", upstream: 127.0.0.1:9143
        """,
        "protocol door;",
    )


def test_what_the_line_is_longer_than() -> None:
    play(
        f"""
        S: who is there?
        C: KNOCK {"u" * 1100}
        S: what?
        S: ⟨close⟩
        """,
        "protocol door; door_client_buffer 1k;",
    )
