"""`mailproxy demo --check`: logs in through every port of the proxy, as clients do."""

import imaplib
import poplib
import smtplib
import ssl
from collections.abc import Callable
from contextlib import closing

from mailproxy.demo.faults import NO_ROOM
from mailproxy.demo.mailbox import PASSWORD, USER
from mailproxy.demo.site import Door

TIMEOUT = 20
"""Seconds that a client waits for an answer."""

LETTER = b"""\
From: alice@example.com\r
To: alice@example.com\r
Subject: sent through the proxy\r
\r
Hello.\r
"""

REFUSALS = (OSError, imaplib.IMAP4.error, poplib.error_proto, smtplib.SMTPException)
"""What the clients of the standard library raise if something is wrong."""


def check_imap(door: Door, context: ssl.SSLContext, password: str) -> None:
    """Log in and fetch the first letter."""
    if door.security == "TLS":
        client: imaplib.IMAP4 = imaplib.IMAP4_SSL(
            door.host, door.port, ssl_context=context, timeout=TIMEOUT
        )
    else:
        client = imaplib.IMAP4(door.host, door.port, timeout=TIMEOUT)
    try:
        if door.security == "STARTTLS":
            client.starttls(context)
        client.login(USER.decode(), password)
        client.select("INBOX", readonly=True)
        _, found = client.fetch("1", "(RFC822)")
        expect_welcome(repr(found))
    except BaseException:
        client.shutdown()  # a server that has closed does not answer LOGOUT
        raise
    client.logout()


def check_pop3(door: Door, context: ssl.SSLContext, password: str) -> None:
    """Log in and retrieve the first letter."""
    if door.security == "TLS":
        client: poplib.POP3 = poplib.POP3_SSL(
            door.host, door.port, context=context, timeout=TIMEOUT
        )
    else:
        client = poplib.POP3(door.host, door.port, timeout=TIMEOUT)
    with closing(client):
        if door.security == "STARTTLS":
            client.stls(context)
        client.user(USER.decode())
        client.pass_(password)
        expect_welcome(repr(client.retr(1)))
        client.quit()


def check_smtp(door: Door, context: ssl.SSLContext, password: str) -> None:
    """Log in and send a letter."""
    name = "client.example.com"
    if door.security == "TLS":
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            door.host, door.port, name, context=context, timeout=TIMEOUT
        )
    else:
        client = smtplib.SMTP(door.host, door.port, name, timeout=TIMEOUT)
    with client:
        if door.security == "STARTTLS":
            client.starttls(context=context)
        client.login(USER.decode(), password)
        client.sendmail("alice@example.com", ["alice@example.com"], LETTER)


def expect_welcome(text: str) -> None:
    """Check that this is the first letter of the mailbox."""
    if "Subject: Welcome" not in text:
        raise OSError(f"this is not the first letter of the mailbox: {text[:200]}")


CHECKS: dict[str, Callable[[Door, ssl.SSLContext, str], None]] = {
    "imap": check_imap,
    "pop3": check_pop3,
    "smtp": check_smtp,
}


def check(door: Door, context: ssl.SSLContext) -> str | None:
    """Check that the right password is accepted and a wrong one is refused.

    Returns:
      What failed, or None.

    Raises:
      OSError: there is no room for one more client, which says nothing of the proxy.
    """
    log_in = CHECKS[door.protocol]
    try:
        log_in(door, context, PASSWORD.decode())
    except REFUSALS as error:
        raise_own(error)
        return str(error)
    try:
        log_in(door, context, "a wrong password")
    except REFUSALS as error:
        raise_own(error)
        return None
    return "a wrong password was accepted"


def raise_own(error: Exception) -> None:
    """Pass on an error that no server has caused."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        raise error
