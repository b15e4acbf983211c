"""The calls in Python, and those in C where the compiled core runs: they do the same."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from mailproxy import compiled
from mailproxy.net import calls as calls_in_use
from mailproxy.net.openssl.headers import crypto_h, pem_h
from tests.tls import Certificates

PATH = Path(compiled.__file__).parent / "net" / "calls.py"
CHUNK = 16 * 1024
"""Octets that the compiled `receive` has room for without a buffer of their own."""


def in_python() -> ModuleType:
    """The module as it is without the compiled core."""
    spec = importlib.util.spec_from_file_location("calls_in_python", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["in Python", "in use"])
def calls(request: pytest.FixtureRequest) -> ModuleType:
    return in_python() if request.param == "in Python" else calls_in_use


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection over TCP; ours is non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def reset(end: socket.socket) -> None:
    """Close with RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def test_the_numbers_are_the_same() -> None:
    names = ("READABLE", "WRITABLE", "HUNG_UP", "BOTH_WAYS", "READING", "LISTENING")
    pure = in_python()
    for name in names:
        assert getattr(pure, name) == getattr(calls_in_use, name), name


def test_both_have_the_same_names() -> None:
    def public(module: object) -> set[str]:
        return {name for name in vars(module) if not name.startswith("_")}

    pure = in_python()
    imported = {"annotations", "os", "select", "ssl", "sys"}
    assert public(pure) - imported == public(calls_in_use) - imported
    assert public(pure.TlsCalls) == public(calls_in_use.TlsCalls)


# System calls


@pytest.mark.parametrize("size", [1, 5, CHUNK, CHUNK + 1, 100_000])
def test_what_has_arrived_is_received(calls: ModuleType, pair: Pair, size: int) -> None:
    ours, theirs = pair
    assert calls.receive(ours.fileno(), size) is None
    theirs.send(b"hello")
    assert calls.receive(ours.fileno(), size) == b"hello"[:size]


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1])
def test_as_much_is_received_as_there_is_room_for(
    calls: ModuleType, pair: Pair, size: int
) -> None:
    ours, theirs = pair
    data = os.urandom(3 * CHUNK)
    theirs.sendall(data)
    assert calls.receive(ours.fileno(), size) == data[:size]
    room = bytearray(size)
    assert calls.receive_into(ours.fileno(), memoryview(room)) == size
    assert room == data[size : 2 * size]


def test_a_view_is_filled_no_further_than_it_goes(
    calls: ModuleType, pair: Pair
) -> None:
    ours, theirs = pair
    room = bytearray(b"-" * 10)
    view = memoryview(room)[2:5]
    assert calls.receive_into(ours.fileno(), view) == -1
    theirs.send(b"hello")
    assert calls.receive_into(ours.fileno(), view) == 3
    assert calls.receive_into(ours.fileno(), view) == 2
    assert room == b"--lol-----"
    assert calls.receive_into(ours.fileno(), memoryview(bytearray())) == 0


def test_the_end_is_not_that_nothing_has_arrived(calls: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    assert calls.receive(ours.fileno(), 10) == b""
    assert calls.receive_into(ours.fileno(), memoryview(bytearray(10))) == 0


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("name", ["send", "send_from"])
def test_octets_are_sent(
    calls: ModuleType, pair: Pair, name: str, kind: Callable[[bytes], object]
) -> None:
    ours, theirs = pair
    assert getattr(calls, name)(ours.fileno(), kind(b"hello")) == 5
    assert theirs.recv(10) == b"hello"
    assert getattr(calls, name)(ours.fileno(), kind(b"")) == 0


@pytest.mark.parametrize("name", ["send", "send_from"])
def test_no_room_is_a_value(calls: ModuleType, pair: Pair, name: str) -> None:
    ours, theirs = pair
    data = memoryview(bytes(1 << 20))
    sent = 0
    while (size := getattr(calls, name)(ours.fileno(), data)) >= 0:
        sent += size
    assert size == -1
    assert sent > 0
    got = 0
    while got < sent:
        got += len(theirs.recv(1 << 20))
    assert got == sent


def test_errors_are_those_of_the_system(calls: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    reset(theirs)
    with pytest.raises(ConnectionResetError) as found:
        calls.receive(ours.fileno(), 10)
    assert found.value.errno == errno.ECONNRESET
    assert found.value.strerror == os.strerror(errno.ECONNRESET)
    with pytest.raises(BrokenPipeError):
        calls.send(ours.fileno(), b"hello")
    with pytest.raises(BrokenPipeError):
        calls.send_from(ours.fileno(), memoryview(b"hello"))
    bad: list[Callable[[], object]] = [
        lambda: calls.receive(-1, 10),
        lambda: calls.receive(-1, 2 * CHUNK),
        lambda: calls.receive_into(-1, memoryview(bytearray(10))),
        lambda: calls.send(-1, b"hello"),
        lambda: calls.send_from(-1, memoryview(b"hello")),
    ]
    for call in bad:
        with pytest.raises(OSError, match="Bad file descriptor") as broken:
            call()
        assert broken.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Invalid argument"):
        calls.receive(ours.fileno(), -1)


def test_nothing_but_octets_is_sent(calls: ModuleType, pair: Pair) -> None:
    for name in ("send", "send_from"):
        with pytest.raises(TypeError):
            getattr(calls, name)(pair[0].fileno(), "text")


# Epoll


def test_changes_are_reported_once(calls: ModuleType, pair: Pair) -> None:
    ours, theirs = pair
    epoll = calls.Epoll()
    epoll.register(ours.fileno(), calls.BOTH_WAYS)
    assert epoll.poll(0, 10) == [(ours.fileno(), select.EPOLLOUT)]
    assert epoll.poll(0, 10) == []
    theirs.send(b"hello")
    assert epoll.poll(1.0, 10) == [(ours.fileno(), select.EPOLLIN | select.EPOLLOUT)]
    assert epoll.poll(0, 10) == []
    epoll.modify(ours.fileno(), calls.READING)
    assert epoll.poll(0, 10) == [(ours.fileno(), select.EPOLLIN)]
    theirs.close()
    ((fd, events),) = epoll.poll(1.0, 10)
    assert fd == ours.fileno()
    assert events & calls.HUNG_UP
    epoll.unregister(ours.fileno())
    epoll.close()
    epoll.close()


def test_some_changes_come_later(calls: ModuleType) -> None:
    epoll = calls.Epoll()
    ends = [socket.socketpair() for _ in range(3)]
    for ours, _ in ends:
        epoll.register(ours.fileno(), calls.BOTH_WAYS)
    found = [fd for _ in range(3) for fd, _ in epoll.poll(0, 1)]
    assert sorted(found) == sorted(ours.fileno() for ours, _ in ends)
    epoll.close()
    for pair in ends:
        for end in pair:
            end.close()


def test_errors_of_epoll(calls: ModuleType, pair: Pair) -> None:
    fd = pair[0].fileno()
    epoll = calls.Epoll()
    with pytest.raises(FileNotFoundError):
        epoll.modify(fd, calls.READING)
    epoll.register(fd, calls.BOTH_WAYS)
    with pytest.raises(FileExistsError):
        epoll.register(fd, calls.BOTH_WAYS)
    assert not os.get_inheritable(epoll.fileno())
    epoll.close()
    with pytest.raises((ValueError, OSError)):
        epoll.poll(0, 10)


# TLS


@dataclass
class Tls:
    """A connection: ours is the server's end, non-blocking."""

    ours: ssl.SSLSocket
    theirs: ssl.SSLSocket
    wire: socket.socket
    """The socket of theirs, for octets that are no TLS."""


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


Connect = Callable[[], Tls]


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def connect(request: pytest.FixtureRequest, files: Certificates) -> Iterator[Connect]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.path("ec.pem"), files.path("ec.key"))
    context.num_tickets = 0  # they would make a first read of the client's
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = client.maximum_version = request.param
    opened: list[socket.socket] = []

    def make() -> Tls:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            theirs = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = theirs.dup()
        ends = (
            context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False),
            client.wrap_socket(theirs, do_handshake_on_connect=False),
        )
        for end in ends:
            end.setblocking(False)
        left = list(ends)
        while left:
            for end in left.copy():
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                else:
                    left.remove(end)
        opened.extend((*ends, wire))
        ends[1].setblocking(True)
        return Tls(*ends, wire)

    yield make
    for end in opened:
        end.close()


def wait(tls: Tls) -> None:
    """Wait until something has arrived at our end."""
    assert select.select([tls.ours], [], [], 10)[0]


def test_tls_is_received(calls: ModuleType, connect: Connect) -> None:
    tls = connect()
    ours = calls.TlsCalls(tls.ours)
    assert ours.receive(10) is None
    assert ours.needs == calls.READABLE
    room = bytearray(10)
    assert ours.receive_into(memoryview(room)) == -1
    tls.theirs.send(b"hello")
    tls.theirs.send(b"world")
    wait(tls)
    assert ours.pending() == 0
    assert ours.receive(2) == b"he"
    assert ours.pending() == 3
    assert ours.receive(100_000) == b"llo"
    wait(tls)
    assert ours.receive_into(memoryview(room)[1:9]) == 5
    assert room == b"\0world\0\0\0\0"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("name", ["send", "send_from"])
def test_tls_is_sent(
    calls: ModuleType, connect: Connect, name: str, kind: Callable[[bytes], object]
) -> None:
    tls = connect()
    ours = calls.TlsCalls(tls.ours)
    assert getattr(ours, name)(kind(b"hello")) == 5
    assert tls.theirs.recv(10) == b"hello"
    with pytest.raises(TypeError):
        getattr(ours, name)("text")


@pytest.mark.parametrize("name", ["send", "send_from"])
def test_a_full_socket_takes_no_tls(
    calls: ModuleType, connect: Connect, name: str
) -> None:
    tls = connect()
    ours = calls.TlsCalls(tls.ours)
    data = memoryview(os.urandom(1 << 16))
    sent = 0
    while (size := getattr(ours, name)(data)) >= 0:
        sent += size
    assert ours.needs == calls.WRITABLE
    got = 0
    while got < sent:
        got += len(tls.theirs.recv(1 << 16))
    # The record that had no room is the next one.
    while (size := getattr(ours, name)(data)) < 0:
        got += len(tls.theirs.recv(1 << 16))
    assert size > 0


def leave_politely(tls: Tls) -> None:
    tls.theirs.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.theirs.unwrap()


def leave(tls: Tls) -> None:
    tls.theirs.close()
    tls.wire.close()


def break_off(tls: Tls) -> None:
    tls.theirs.close()
    reset(tls.wire)


def send_garbage(tls: Tls) -> None:
    tls.wire.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)


def send_no_tls(tls: Tls) -> None:
    tls.wire.send(b"a1 NOOP\r\n")


def send_a_part(tls: Tls) -> None:
    tls.wire.send(b"\x17\x03\x03\x00\x20")
    leave(tls)


EVENTS = [leave_politely, leave, break_off, send_garbage, send_no_tls, send_a_part]


def outcome(call: Callable[[], object]) -> tuple[object, ...]:
    """What a call returns, or all that is known of its error."""
    try:
        return ("returned", call())
    except OSError as error:
        facts = (getattr(error, name, None) for name in ("library", "reason", "errno"))
        return (type(error), error.args, *facts)


Steps = list[Callable[[Tls, "TlsLike"], object]]


class TlsLike:
    """What `ssl` itself has for the methods of `TlsCalls`."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.receive = connection.recv
        self.receive_into = connection.recv_into
        self.send = self.send_from = connection.send


STEPS: dict[str, Steps] = {
    "receive": [lambda _, ours: ours.receive(10)] * 3,
    "receive_into": [lambda _, ours: ours.receive_into(memoryview(bytearray(9)))] * 3,
    "receive, send": [
        lambda _, ours: ours.receive(10),
        lambda _, ours: ours.send(b"hello"),
        lambda _, ours: ours.send_from(memoryview(b"hello")),
        lambda _, ours: ours.receive(10),
    ],
    "send": [lambda _, ours: ours.send(b"hello")],
}


@pytest.mark.parametrize("happen", EVENTS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_tls_fails_as_with_ssl(
    calls: ModuleType, connect: Connect, happen: Callable[[Tls], None], steps: Steps
) -> None:
    """Class, text and number of an error decide what the log says."""
    found = []
    for kind in (TlsLike, calls.TlsCalls):
        tls = connect()
        ours = kind(tls.ours)
        happen(tls)
        wait(tls)
        found.append([outcome(partial(step, tls, ours)) for step in steps])
    assert found[0] == found[1]


def test_errors_of_others_are_not_its_own(calls: ModuleType, connect: Connect) -> None:
    """OpenSSL has one queue of errors for all connections of a thread."""
    ours = calls.TlsCalls(connect().ours)
    bio = pem_h.BIO_new(pem_h.BIO_s_mem())
    assert not pem_h.PEM_read_bio_X509(bio, None, None, None)
    pem_h.BIO_free(bio)
    if calls is calls_in_use and compiled.form() == "compiled core":
        assert crypto_h.ERR_peek_last_error()
    else:
        crypto_h.ERR_clear_error()  # which is up to others then
    assert ours.receive(10) is None


def test_a_closed_connection_is_not_read(calls: ModuleType, connect: Connect) -> None:
    """Its descriptor may be that of another one by now."""
    tls, other = connect(), connect()
    ours = calls.TlsCalls(tls.ours)
    fd = tls.ours.fileno()
    ours.close()
    tls.ours.close()
    os.dup2(other.ours.fileno(), fd)
    other.theirs.send(b"hello")
    wait(other)
    late: list[Callable[[], object]] = [
        lambda: ours.receive(10),
        lambda: ours.receive_into(memoryview(bytearray(10))),
        lambda: ours.send(b"x"),
    ]
    for call in late:
        with pytest.raises((OSError, ValueError)):
            call()
    os.close(fd)
    assert other.ours.recv(10) == b"hello"
