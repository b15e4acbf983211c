"""ngx_mail_imap_module: https://nginx.org/en/docs/mail/ngx_mail_imap_module.html.

The dialogues are in `mail/imap_dialogue.py` and `mail/imap_backend.py`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from mailproxy.conf.directive import directive
from mailproxy.conf.values import choices, size, words
from mailproxy.mail.protocol import Dialogue, MailProtocol

if TYPE_CHECKING:
    from mailproxy.mail.client import Client
    from mailproxy.mail.imap_dialogue import ImapDialogue


@dataclass(frozen=True, kw_only=True)
class ImapSettings(MailProtocol):
    """IMAP toward clients."""

    name: ClassVar[str] = "imap"
    ports: ClassVar[tuple[int, ...]] = (143, 993)
    tagged: ClassVar[bool] = True
    harmless: ClassVar[frozenset[bytes]] = frozenset(
        (
            b"NOOP CAPABILITY LOGOUT STARTTLS "
            b"ENABLE NAMESPACE SELECT EXAMINE CREATE DELETE RENAME "
            b"SUBSCRIBE UNSUBSCRIBE LIST LSUB STATUS CHECK CLOSE "
            b"EXPUNGE SEARCH FETCH STORE COPY MOVE UID IDLE"
        ).split()
    )

    imap_client_buffer: int = directive(
        size, default=resource.getpagesize(), shown="4k | 8k"
    )
    """Bytes that one command may have."""

    imap_capabilities: tuple[bytes, ...] = directive(
        words, default=(b"IMAP4", b"IMAP4rev1", b"UIDPLUS"), repeats="add"
    )
    """Capabilities before the login, as CAPABILITY lists them; mechanisms are added."""

    imap_auth: frozenset[str] = directive(
        choices("plain", "login", "cram-md5", "external", "xoauth2", "oauthbearer"),
        default=frozenset({"plain"}),
        repeats="add",
    )
    """Mechanisms of AUTHENTICATE; LOGIN is always possible."""

    certificate_error: ClassVar[bytes] = b"* BYE SSL certificate error\r\n"
    certificate_missing: ClassVar[bytes] = b"* BYE No required SSL certificate\r\n"
    internal_error: ClassVar[bytes] = b"* BAD internal server error\r\n"

    @property
    def client_buffer(self) -> int:
        return self.imap_client_buffer

    @cached_property
    def _dialogue(self) -> type[ImapDialogue]:
        from mailproxy.mail.imap_dialogue import ImapDialogue  # see `mail/dialogues.py`

        return ImapDialogue

    def dialogue(self, client: Client) -> Dialogue:
        return self._dialogue(client, self)
