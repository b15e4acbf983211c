"""poplib, mailproxy, Dovecot."""

import poplib
from collections.abc import Callable

import pytest

from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.messages import MIB, message
from tests.peers.site import Site

Connect = Callable[[Site], poplib.POP3]


def connect(proxy: Site) -> poplib.POP3:
    return poplib.POP3("localhost", proxy.ports["pop3"], timeout=30)


def connect_stls(proxy: Site) -> poplib.POP3:
    client = connect(proxy)
    client.stls(proxy.context())
    return client


def connect_tls(proxy: Site) -> poplib.POP3:
    return poplib.POP3_SSL(
        "localhost", proxy.ports["pop3s"], context=proxy.context(), timeout=30
    )


every_way = pytest.mark.parametrize("connect", [connect, connect_stls, connect_tls])


def log_in(client: poplib.POP3, user: str) -> None:
    client.user(user)
    client.pass_(PASSWORD)


@every_way
def test_a_session(connect: Connect, proxy: Site, store: Dovecot) -> None:
    sent = message(1000, "pop")
    user = f"pop-{connect.__name__}"
    store.deliver(user, sent)
    client = connect(proxy)
    assert "UIDL" in client.capa()
    log_in(client, user)
    assert client.stat() == (1, len(sent))
    _, lines, _ = client.top(1, 0)
    assert b"Subject: pop" in lines
    assert client.quit().startswith(b"+OK")


@every_way
def test_a_wrong_password(connect: Connect, proxy: Site) -> None:
    client = connect(proxy)
    client.user("pop")
    with pytest.raises(poplib.error_proto, match="Invalid login or password"):
        client.pass_("wrong")
    client.close()


@every_way
def test_a_large_message(connect: Connect, proxy: Site, store: Dovecot) -> None:
    sent = message(20 * MIB, "large")
    user = f"pop-large-{connect.__name__}"
    store.deliver(user, sent)
    client = connect(proxy)
    log_in(client, user)
    _, lines, _ = client.retr(1)
    assert b"\r\n".join(lines) + b"\r\n" == sent
    client.quit()


def test_apop(proxy: Site, store: Dovecot) -> None:
    store.deliver("apop", message(1000, "pop"))
    client = connect(proxy)
    client.apop("apop", PASSWORD)
    assert client.stat()[0] == 1
    client.quit()
