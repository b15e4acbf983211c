"""imaplib, mailproxy, Dovecot."""

import imaplib
from collections.abc import Callable

import pytest

from tests.peers.dovecot import ODD_PASSWORDS, PASSWORD, Dovecot
from tests.peers.messages import MIB, message
from tests.peers.site import Site

Connect = Callable[[Site], imaplib.IMAP4]


def connect(proxy: Site) -> imaplib.IMAP4:
    return imaplib.IMAP4("localhost", proxy.ports["imap"], timeout=30)


def connect_starttls(proxy: Site) -> imaplib.IMAP4:
    client = connect(proxy)
    client.starttls(proxy.context())
    return client


def connect_tls(proxy: Site) -> imaplib.IMAP4:
    return imaplib.IMAP4_SSL(
        "localhost", proxy.ports["imaps"], ssl_context=proxy.context(), timeout=30
    )


every_way = pytest.mark.parametrize("connect", [connect, connect_starttls, connect_tls])


@every_way
def test_a_session(connect: Connect, proxy: Site, store: Dovecot) -> None:
    user = f"session-{connect.__name__}"
    store.deliver(user, message(1000, "hello"))
    with connect(proxy) as client:
        assert client.login(user, PASSWORD)[0] == "OK"
        kind, (count,) = client.select()
        assert (kind, int(count or b"0") > 0) == ("OK", True)
        found = client.search(None, "SUBJECT", "hello")
        assert found[1] != [b""]
        assert client.noop()[0] == "OK"
        assert client.logout()[0] == "BYE"


@every_way
def test_a_wrong_password(connect: Connect, proxy: Site) -> None:
    client = connect(proxy)
    with pytest.raises(imaplib.IMAP4.error, match="Invalid login or password"):
        client.login("ann", "wrong")
    client.shutdown()


def test_authenticate(proxy: Site) -> None:
    with connect(proxy) as client:
        client.authenticate("PLAIN", lambda _: f"\0ann\0{PASSWORD}".encode())
        assert client.select()[0] == "OK"
    with connect(proxy) as client:
        assert client.login_cram_md5("ann", PASSWORD)[0] == "OK"
        assert client.select()[0] == "OK"


@pytest.mark.parametrize("kind", ["imap", "imap-literal"])
@pytest.mark.parametrize("user", ODD_PASSWORDS)
def test_an_odd_password(kind: str, user: str, proxy: Site) -> None:
    password = ODD_PASSWORDS[user].encode()
    with imaplib.IMAP4("localhost", proxy.ports[kind], timeout=30) as client:
        client.authenticate("PLAIN", lambda _: b"\0%s\0%s" % (user.encode(), password))
        assert client.select()[0] == "OK"


@every_way
def test_a_large_message(connect: Connect, proxy: Site, store: Dovecot) -> None:
    sent = message(20 * MIB, "large")
    assert len(sent) > 20 * MIB
    user = f"large-{connect.__name__}"
    store.deliver(user, sent)
    with connect(proxy) as client:
        client.login(user, PASSWORD)
        client.select()
        _, data = client.fetch("1", "(BODY.PEEK[])")
    assert isinstance(data[0], tuple)
    assert data[0][1] == sent


@every_way
def test_append(connect: Connect, proxy: Site) -> None:
    sent = message(3 * MIB, "append")
    user = f"append-{connect.__name__}"
    with connect(proxy) as client:
        client.login(user, PASSWORD)
        assert client.append("INBOX", "", "", sent)[0] == "OK"
        client.select()
        _, data = client.fetch("*", "(BODY.PEEK[])")
    assert isinstance(data[0], tuple)
    assert data[0][1] == sent


def test_idle(proxy: Site) -> None:
    with connect_tls(proxy) as idle, connect(proxy) as other:
        idle.login("idle", PASSWORD)
        idle.select()
        idle.send(b"x1 IDLE\r\n")
        assert idle.readline().startswith(b"+")
        other.login("idle", PASSWORD)
        other.append("INBOX", "", "", message(100, "news"))
        lines = [idle.readline(), idle.readline()]
        assert b"* 1 EXISTS\r\n" in lines
        idle.send(b"DONE\r\n")
        while not idle.readline().startswith(b"x1 OK"):
            pass
