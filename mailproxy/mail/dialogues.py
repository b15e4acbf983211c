"""What sessions need beside `mail/session.py`: the dialogues, and the auth sources' parts.

Settings import these modules when a session begins, because a test of a configuration
(`-t`) needs none of them. A program that will serve imports this module before it forks
workers. So all processes share them, and no client waits for an import.
"""

from __future__ import annotations

from mailproxy.auth import http_exchange
from mailproxy.mail import imap_dialogue, pop3_dialogue, smtp_dialogue

__all__ = ["http_exchange", "imap_dialogue", "pop3_dialogue", "smtp_dialogue"]
