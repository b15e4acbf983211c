"""What a backend offers, and when it is asked for it."""

from __future__ import annotations

import pytest

from mailproxy.errors import BackendError, UpstreamError
from mailproxy.log import SessionInfo
from mailproxy.mail import imap_backend, pop3_backend, smtp_backend
from mailproxy.mail.backend import Backend
from mailproxy.mail.client import Client
from mailproxy.mail.smtp_dialogue import SmtpDialogue
from mailproxy.mail.trace import Secrets
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemoryWire
from tests.play import load_server


class Asked:
    """A backend that has an answer to each command, and remembers them."""

    def __init__(self, *replies: str) -> None:
        self.commands: list[bytes] = []
        self._replies = [reply.encode() for reply in replies]
        self.wire = MemoryWire()
        self.wire.put(self._replies.pop(0))
        self.wire.listener = self._hear
        self.backend = Backend(self.wire, 4096, SessionInfo(1, "127.0.0.1"))

    def _hear(self, wire: MemoryWire, command: bytes) -> None:
        self.commands.append(command)
        wire.put(self._replies.pop(0))


async def imap(*replies: str) -> tuple[frozenset[bytes], list[bytes]]:
    """What an IMAP backend that answers so offers, and what it was asked."""
    asked = Asked(*replies)
    await imap_backend.meet(asked.backend)
    offers = await imap_backend.learn_offers(asked.backend)
    assert await imap_backend.learn_offers(asked.backend) is offers
    return offers, asked.commands


async def pop3(*replies: str) -> tuple[frozenset[bytes], list[bytes]]:
    """What a POP3 backend that answers so offers, and what it was asked."""
    asked = Asked(*replies)
    await pop3_backend.meet(asked.backend)
    offers = await pop3_backend.learn_offers(asked.backend)
    assert await pop3_backend.learn_offers(asked.backend) is offers
    return offers, asked.commands


async def smtp(
    *replies: str, esmtp: bool = False, directives: str = "xclient off;"
) -> tuple[frozenset[bytes], list[bytes]]:
    """What an SMTP backend that answers so offers, and what it was asked.

    Args:
      esmtp: whether the client has said EHLO.
    """
    server = load_server(f"protocol smtp; {directives}")
    asked = Asked(*replies)
    client = Client(
        MemoryWire(),
        server,
        server.core.listen[0],
        MemoryNetwork(None),
        SessionInfo(1, "127.0.0.1"),
        CapturedLog().log,
        Secrets(),
    )
    dialogue = server.protocol.dialogue(client)
    assert isinstance(dialogue, SmtpDialogue)
    dialogue.esmtp = esmtp
    await smtp_backend.meet(asked.backend, dialogue)
    offers = await smtp_backend.learn_offers(asked.backend, dialogue)
    assert await smtp_backend.learn_offers(asked.backend, dialogue) is offers
    return offers, asked.commands


def some(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split())


# IMAP


@pytest.mark.parametrize(
    ("greeting", "offers"),
    [
        ("* OK [CAPABILITY IMAP4rev1 sasl-ir AUTH=PLAIN] hi", "IMAP4REV1 SASL-IR AUTH=PLAIN"),
        ("* OK  [capability IMAP4] hi", "IMAP4"),
        ("* OK [CAPABILITY IMAP4]", "IMAP4"),
        ("* OK [CAPABILITY  A  B ]", "A B"),
    ],
)  # fmt: skip
async def test_greeting_tells_it(greeting: str, offers: str) -> None:
    assert await imap(greeting + "\r\n") == (some(offers), [])


@pytest.mark.parametrize(
    "greeting",
    [
        "* OK hi",
        "* OK [CAPABILITY IMAP4",
        "* OK hi [CAPABILITY IMAP4]",
        "* OK [CAPABILITYX IMAP4] hi",
        "* OK [ALERT] hi",
    ],
)
@pytest.mark.parametrize(
    "answer",
    [
        "* CAPABILITY IMAP4rev1 ID\r\nmp1 OK done\r\n",
        "* capability imap4rev1 id\r\n* 1 EXISTS\r\nmp1 OK\r\n",
        "mp1 OK [CAPABILITY IMAP4rev1 ID] done\r\n",
        "* CAPABILITY OLD\r\nmp1 OK [CAPABILITY IMAP4rev1 ID] done\r\n",
    ],
)
async def test_imap_is_asked_otherwise(greeting: str, answer: str) -> None:
    offers, commands = await imap(greeting + "\r\n", answer)
    assert offers == some("IMAP4REV1 ID")
    assert commands == [b"mp1 CAPABILITY\r\n"]


@pytest.mark.parametrize(
    "answer",
    [
        "mp1 OK done\r\n",
        "mp1 BAD what\r\n",
        "* CAPABILITY IMAP4\r\nmp1 NO not now\r\n",
        "mp2 OK [CAPABILITY IMAP4] done\r\n",
        "mp11 OK [CAPABILITY IMAP4] done\r\n",
        "* BYE busy\r\n",
        "+ go on\r\n",
    ],
)
async def test_imap_does_not_tell(answer: str) -> None:
    with pytest.raises(BackendError):
        await imap("* OK hi\r\n", answer)


# POP3


@pytest.mark.parametrize(
    ("answer", "offers"),
    [
        ("+OK\r\n.\r\n", []),
        ("+OK list\r\nsasl PLAIN login\r\nSTLS\r\n.\r\n", [b"SASL PLAIN LOGIN", b"STLS"]),
        ("+OK\n..x\nTOP\n.\n", [b".X", b"TOP"]),
        ("-ERR what\r\n", []),
        ("-ERR unknown command\r\n", []),
    ],
)  # fmt: skip
async def test_pop3(answer: str, offers: list[bytes]) -> None:
    assert await pop3("+OK hi\r\n", answer) == (frozenset(offers), [b"CAPA\r\n"])


@pytest.mark.parametrize(
    "answer", ["-ERR [SYS/TEMP] later\r\n", "* OK what\r\n", "+OK\r\nSTLS\r\n"]
)
async def test_pop3_does_not_tell(answer: str) -> None:
    asked = Asked("+OK hi\r\n", answer)
    asked.wire.ended = True
    await pop3_backend.meet(asked.backend)
    with pytest.raises(BackendError):
        await pop3_backend.learn_offers(asked.backend)


async def test_pop3_list_has_a_limit() -> None:
    with pytest.raises(UpstreamError) as caught:
        await pop3("+OK hi\r\n", "+OK\r\n" + "X-MORE\r\n" * 600)
    assert caught.value.event.startswith("upstream sent too long response line")


# SMTP

EHLO = "250-mx STARTTLS\r\n250-AUTH plain LOGIN \r\n250 XCLIENT NAME\r\n"


async def test_smtp_has_told_a_client_s_ehlo() -> None:
    offers, commands = await smtp("220 hi\r\n", EHLO, esmtp=True)
    assert offers == {b"AUTH PLAIN LOGIN", b"XCLIENT NAME"}
    assert commands == [b"EHLO mx.test\r\n"]


async def test_smtp_that_offers_nothing() -> None:
    offers, commands = await smtp("220 hi\r\n", "250 mx\r\n", esmtp=True)
    assert (offers, commands) == (frozenset(), [b"EHLO mx.test\r\n"])


async def test_smtp_is_asked_after_helo() -> None:
    offers, commands = await smtp("220 hi\r\n", "250 mx\r\n", EHLO)
    assert offers == {b"AUTH PLAIN LOGIN", b"XCLIENT NAME"}
    assert commands == [b"HELO mx.test\r\n", b"EHLO mx.test\r\n"]


async def test_smtp_does_not_tell() -> None:
    with pytest.raises(BackendError) as caught:
        await smtp("220 hi\r\n", "250 mx\r\n", "502 what\r\n")
    assert caught.value.command == "EHLO"
