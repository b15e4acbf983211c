"""smtplib, mailproxy, Postfix, and back by IMAP."""

import smtplib
from collections.abc import Callable

import pytest

from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.messages import MIB, message
from tests.peers.postfix import DOMAIN
from tests.peers.site import Site, plain
from tests.processes import wait_for

pytestmark = pytest.mark.usefixtures("smtp_backend")

Connect = Callable[[Site], smtplib.SMTP]


def connect(proxy: Site) -> smtplib.SMTP:
    return smtplib.SMTP("localhost", proxy.ports["smtp"], "client.example", 30)


def connect_starttls(proxy: Site) -> smtplib.SMTP:
    client = connect(proxy)
    client.starttls(context=proxy.context())
    return client


def connect_tls(proxy: Site) -> smtplib.SMTP:
    return smtplib.SMTP_SSL(
        "localhost",
        proxy.ports["smtps"],
        "client.example",
        timeout=30,
        context=proxy.context(),
    )


def connect_submission(proxy: Site) -> smtplib.SMTP:
    """The way on which mailproxy logs in at Postfix by AUTH."""
    client = smtplib.SMTP("localhost", proxy.ports["submission"], "client.example", 30)
    client.starttls(context=proxy.context())
    return client


def connect_auto(proxy: Site) -> smtplib.SMTP:
    """Postfix is told of the client because it offers XCLIENT."""
    return smtplib.SMTP("localhost", proxy.ports["xclient"], "client.example", 30)


every_way = pytest.mark.parametrize(
    "connect",
    [connect, connect_starttls, connect_tls, connect_submission, connect_auto],
)


def wait_for_mail(store: Dovecot, user: str, subject: str) -> bytes:
    """The first message with this subject, when it has arrived; it is gone then."""
    inbox = store.maildir(user) / "new"

    mail: list[bytes] = []

    def arrived() -> bool:
        for file in inbox.iterdir():
            text = file.read_bytes()
            if f"Subject: {subject}\n".encode() in text:
                mail.append(text)
                file.unlink()
        return bool(mail)

    wait_for(arrived, f"mail for {user}")
    return mail[0]


@every_way
def test_a_message_is_submitted(connect: Connect, proxy: Site, store: Dovecot) -> None:
    subject = connect.__name__
    sent = message(2000, subject)
    with connect(proxy) as client:
        client.login("ann", PASSWORD)
        client.sendmail(f"ann@{DOMAIN}", [f"bob@{DOMAIN}"], sent)
    got = wait_for_mail(store, "bob", subject)
    assert got.endswith(sent.replace(b"\r\n", b"\n"))
    assert b"Return-Path: <ann@example.test>" in got


@every_way
def test_a_large_message_is_submitted(
    connect: Connect, proxy: Site, store: Dovecot
) -> None:
    subject = f"large {connect.__name__}"
    sent = message(10 * MIB, subject)
    with connect(proxy) as client:
        client.login("ann", PASSWORD)
        client.sendmail(f"ann@{DOMAIN}", [f"bob@{DOMAIN}"], sent)
    assert wait_for_mail(store, "bob", subject).endswith(sent.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("connect", [connect, connect_auto])
def test_postfix_sees_the_client(connect: Connect, proxy: Site, store: Dovecot) -> None:
    subject = f"who {connect.__name__}"
    with connect(proxy) as client:
        client.login("ann", PASSWORD)
        client.sendmail(f"ann@{DOMAIN}", [f"bob@{DOMAIN}"], message(100, subject))
    got = wait_for_mail(store, "bob", subject)
    assert b"Received: from client.example (unknown [127.0.0.1])" in got


@every_way
def test_a_wrong_password(connect: Connect, proxy: Site) -> None:
    client = connect(proxy)
    client.ehlo()
    answer = client.docmd("AUTH", f"PLAIN {plain('ann', 'wrong')}")
    assert answer == (535, b"5.7.0 Invalid login or password")
    client.close()


def test_a_message_without_a_login(proxy: Site) -> None:
    with connect(proxy) as client:
        client.ehlo()
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.sendmail(f"ann@{DOMAIN}", [f"bob@{DOMAIN}"], b"x")
        assert refused.value.smtp_code == 530


def test_a_recipient_postfix_does_not_know(proxy: Site) -> None:
    with connect_tls(proxy) as client:
        client.login("ann", PASSWORD)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail(f"ann@{DOMAIN}", [f"nobody@{DOMAIN}"], b"x")
        assert client.noop()[0] == 250
