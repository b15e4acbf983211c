"""Parameters of `listen`, from the configuration to the socket and the session."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailproxy.mail.listen import Listen
from mailproxy.net import listening
from mailproxy.net.listening import Listener
from tests.captured_log import CapturedLog
from tests.play import load_server, play

_MOST_WAITING = 28
"""Where `tcp_info` of a listening socket has its backlog (tcpi_sacked)."""


@contextmanager
def listeners(*parameters: str, more: str = "") -> Iterator[list[Listener[Listen]]]:
    """What listens where the configuration has such `listen` directives."""
    text = " ".join(f"listen {each};" for each in parameters)
    server = load_server(f"protocol imap; {text} {more}")
    opened = listening.adopt({}, server.core.listen, CapturedLog().log)
    yield list(opened)
    for each in opened:
        each.socket.close()


@pytest.mark.proves("listen", "backlog=", "rcvbuf=", "sndbuf=", "so_keepalive=")
def test_parameters_are_options_of_the_socket() -> None:
    text = "127.0.0.1 backlog=17 rcvbuf=32k sndbuf=64k so_keepalive=1m:7:3"
    with listeners(text) as (listener,):
        get = listener.socket.getsockopt
        info = get(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
        assert struct.unpack_from("I", info, _MOST_WAITING) == (17,)
        assert get(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 32 * 1024
        assert get(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 64 * 1024
        assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert get(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 7
        assert get(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3


@pytest.mark.proves("so_keepalive")
@pytest.mark.parametrize(("word", "on"), [("on", 1), ("off", 0)])
def test_so_keepalive_of_the_server(word: str, on: int) -> None:
    with listeners("127.0.0.1", more=f"so_keepalive {word};") as (listener,):
        found = listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found == on


@pytest.mark.proves("listen", "bind", "backlog=")
@pytest.mark.parametrize(
    ("parameter", "sockets"), [("", 1), ("bind", 2), ("backlog=5", 2)]
)
def test_bind_is_a_socket_of_its_own_beside_a_wildcard(
    parameter: str, sockets: int
) -> None:
    # Port 0: both get one, so that nothing collides.
    with listeners("*", f"127.0.0.1 {parameter}") as opened:
        assert len(opened) == sockets


@pytest.mark.proves("listen", "ipv6only=")
@pytest.mark.parametrize(("parameter", "only"), [("", 1), ("ipv6only=off", 0)])
def test_ipv6only(parameter: str, only: int) -> None:
    with listeners(f"[::] {parameter}") as (listener,):
        get = listener.socket.getsockopt
        assert get(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only
        port = listener.socket.getsockname()[1]
        with socket.socket() as client:
            refused = client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
        assert refused == bool(only)


@pytest.mark.proves("listen", "multipath")
def test_multipath() -> None:
    try:
        socket.socket(proto=socket.IPPROTO_MPTCP).close()
    except OSError:
        expected = 0
    else:
        expected = socket.IPPROTO_MPTCP
    with listeners("127.0.0.1 multipath", "127.0.0.2") as (first, second):
        get = (each.socket.getsockopt for each in (first, second))
        protocols = [each(socket.SOL_SOCKET, socket.SO_PROTOCOL) for each in get]
        assert protocols == [expected or socket.IPPROTO_TCP, socket.IPPROTO_TCP]


@pytest.mark.proves("ssl")
@pytest.mark.proves("listen", "ssl")
@pytest.mark.parametrize("how", ["ssl on;", "listen 127.0.0.1:1143 ssl;"])
def test_tls_comes_before_the_greeting(how: str) -> None:
    play(
        """
        S: ⟨silence⟩
        C: ⟨tls⟩
        S: * OK IMAP4 ready
        C: a LOGIN u p
        Q: plain u p tls
        """,
        f"protocol imap; {how} ssl_certificate ⟨cert⟩; ssl_certificate_key ⟨cert⟩;",
    )


@pytest.mark.proves("protocol", "imap", "pop3", "smtp")
@pytest.mark.parametrize(
    ("directives", "greeting"),
    [
        ("listen 127.0.0.1:110; protocol imap;", "* OK IMAP4 ready"),
        ("listen 127.0.0.1:25; protocol pop3;", "+OK POP3 ready"),
        ("listen 127.0.0.1:143; protocol smtp;", "220 name.test ESMTP ready"),
        ("listen 127.0.0.1:143;", "* OK IMAP4 ready"),
        ("listen 127.0.0.1:995;", "+OK POP3 ready"),
        ("listen 127.0.0.1:587;", "220 name.test ESMTP ready"),
    ],
)
@pytest.mark.proves("server_name")
def test_protocol_is_as_told_or_that_of_the_port(
    directives: str, greeting: str
) -> None:
    play(f"S: {greeting}", f"{directives} server_name name.test;")
