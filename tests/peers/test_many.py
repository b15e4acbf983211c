"""Many sessions at the same time."""

import imaplib
import poplib
import smtplib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.messages import message
from tests.peers.site import Site
from tests.peers.test_imap import connect as connect_imap
from tests.peers.test_imap import connect_tls as connect_imaps
from tests.peers.test_pop3 import connect as connect_pop3
from tests.peers.test_smtp import connect_tls as connect_smtps


def test_100_imap_sessions_at_once(proxy: Site, store: Dovecot) -> None:
    sent = {
        f"many{number}": message(1000 + number, f"{number}") for number in range(100)
    }
    for user, text in sent.items():
        store.deliver(user, text)

    def log_in(user: str) -> imaplib.IMAP4:
        client = (connect_imap if user.endswith("0") else connect_imaps)(proxy)
        client.login(user, PASSWORD)
        client.select()
        return client

    def fetch(client: imaplib.IMAP4) -> bytes:
        _, data = client.fetch("1", "(BODY.PEEK[])")
        assert isinstance(data[0], tuple)
        return bytes(data[0][1])

    with ThreadPoolExecutor(20) as pool, ExitStack() as sessions:
        clients = [sessions.enter_context(client) for client in pool.map(log_in, sent)]
        assert list(pool.map(fetch, clients)) == list(sent.values())


@pytest.mark.usefixtures("smtp_backend")
def test_200_sessions_of_all_protocols_at_once(proxy: Site, store: Dovecot) -> None:
    def imap(user: str) -> Callable[[], bool]:
        client = connect_imap(proxy)
        client.login(user, PASSWORD)
        client.select()
        return lambda: client.noop()[0] == "OK" and client.logout()[0] == "BYE"

    def pop3(user: str) -> Callable[[], bool]:
        client: poplib.POP3 = connect_pop3(proxy)
        client.user(user)
        client.pass_(PASSWORD)
        return lambda: client.stat()[0] == 0 and client.quit().startswith(b"+OK")

    def smtp(user: str) -> Callable[[], bool]:
        client: smtplib.SMTP = connect_smtps(proxy)
        client.login(user, PASSWORD)
        return lambda: client.noop()[0] == 250 and client.quit()[0] == 221

    begin = [imap, imap, pop3, smtp] * 50
    users = [f"all{number}" for number in range(len(begin))]
    with ThreadPoolExecutor(20) as pool:
        going_on = list(pool.map(lambda start, user: start(user), begin, users))
        assert all(pool.map(lambda finish: finish(), going_on))
