"""Listening sockets are opened, kept, handed over and closed."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from mailproxy.conf.addresses import SocketAddress
from mailproxy.log import Logger
from mailproxy.net import listening
from mailproxy.net.listen_address import Keepalive, ListenAddress
from mailproxy.net.listening import Held, Listener, ListenError
from tests.captured_log import CapturedLog

IN_USE = "98: Address already in use"


class Options(TypedDict, total=False):
    """Options of `ListenAddress`."""

    bind: bool
    rcvbuf: int
    sndbuf: int
    ipv6only: bool | None
    backlog: int
    so_keepalive: Keepalive
    multipath: bool


def at(
    sockaddr: SocketAddress,
    family: int = socket.AF_INET,
    *,
    wildcard: bool = False,
    **options: Unpack[Options],
) -> ListenAddress:
    """An address to listen on, named as its directive would."""
    if isinstance(sockaddr, str):
        address = f"unix:{sockaddr}"
    else:
        address = f"{sockaddr[0]}:{sockaddr[1]}"
    return ListenAddress(
        address=address,
        family=family,
        sockaddr=sockaddr,
        wildcard=wildcard,
        **options,
    )


class Opened(list[Held]):
    """What a test opened; closed at its end."""

    def adopt(
        self, *wanted: ListenAddress, log: Logger, held: tuple[Held, ...] = ()
    ) -> tuple[Listener[ListenAddress], ...]:
        listeners = listening.adopt(
            listening.by_key(held), wanted, log, pause=lambda _: None
        )
        self.extend(listeners)
        return listeners


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    for each in opened:
        each.socket.close()


@pytest.fixture
def captured() -> CapturedLog:
    return CapturedLog()


@pytest.fixture
def log(captured: CapturedLog) -> Logger:
    return captured.log


def texts(captured: CapturedLog) -> list[str]:
    return [f"[{level}] {text}" for level, text in captured.events]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
    return port


def taken_port() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_each_address_gets_a_socket(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    wanted = [at(("127.0.0.1", free_port())), at(("127.0.0.2", free_port()))]
    listeners = opened.adopt(*wanted, log=log)
    for listener, listen in zip(listeners, wanted, strict=True):
        assert listener.listen is listen
        assert listener.socket.getsockname() == listen.sockaddr
        assert not listener.socket.getblocking()
        with socket.create_connection(listener.socket.getsockname()):
            pass
    assert texts(captured) == []


def test_wildcard_serves_the_specific_addresses_of_its_port(
    opened: Opened, log: Logger
) -> None:
    port = free_port()
    wildcard = at(("0.0.0.0", port), wildcard=True)
    specific = at(("127.0.0.2", port))
    (listener,) = opened.adopt(specific, wildcard, log=log)
    assert listener.listen is wildcard
    for host, expected in [("127.0.0.2", specific), ("127.0.0.3", wildcard)]:
        with socket.create_connection((host, port)):
            connection, _ = listener.socket.accept()
            with connection:
                assert listener.choose(connection.getsockname()) is expected


def test_ipv6_address_is_found_despite_its_zone(opened: Opened, log: Logger) -> None:
    port = free_port()
    wildcard = at(("::", port, 0, 0), socket.AF_INET6, wildcard=True, ipv6only=False)
    specific = at(("::1", port, 0, 0), socket.AF_INET6)
    (listener,) = opened.adopt(wildcard, specific, log=log)
    assert listener.choose(("::1%lo", port, 0, 1)) is specific
    assert listener.choose(("::ffff:127.0.0.1", port, 0, 0)) is wildcard


@pytest.mark.parametrize(("ipv6only", "on"), [(None, 1), (True, 1), (False, 0)])
def test_ipv6_socket_takes_ipv6_only_unless_told(
    opened: Opened, log: Logger, ipv6only: bool | None, on: int
) -> None:
    wanted = at(("::", 0, 0, 0), socket.AF_INET6, ipv6only=ipv6only)
    (listener,) = opened.adopt(wanted, log=log)
    assert listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == on


@pytest.mark.proves("listen", "bind")
def test_address_with_socket_options_collides_with_the_wildcard(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    port = free_port()
    with pytest.raises(ListenError):
        opened.adopt(
            at(("127.0.0.1", port), bind=True),
            at(("0.0.0.0", port), wildcard=True),
            log=log,
        )
    assert texts(captured)[0] == f"[emerg] bind() to 0.0.0.0:{port} failed ({IN_USE})"


def test_address_in_use_is_tried_five_times(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    other = at(("127.0.0.1", free_port()))
    with taken_port() as taken:
        wanted = at(taken.getsockname())
        with pytest.raises(ListenError):
            opened.adopt(wanted, other, log=log)
    assert texts(captured) == [
        f"[emerg] bind() to {wanted.address} failed ({IN_USE})",
        "[notice] try again to bind() after 500ms",
    ] * 5 + ["[emerg] still could not bind()"]
    with socket.create_server(other.sockaddr):
        pass  # what was opened besides is closed again


def test_address_that_is_freed_meanwhile_is_taken(
    log: Logger, captured: CapturedLog
) -> None:
    taken = taken_port()
    wanted = at(taken.getsockname())
    (listener,) = listening.adopt({}, [wanted], log, pause=lambda _: taken.close())
    assert listener.socket.getsockname() == wanted.sockaddr
    assert len(texts(captured)) == 2
    listener.socket.close()


def test_other_error_fails_at_once(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    with pytest.raises(ListenError):
        opened.adopt(at(("192.0.2.1", 14300)), log=log)
    assert texts(captured) == [
        "[emerg] bind() to 192.0.2.1:14300 failed (99: Cannot assign requested address)"
    ]


def test_kept_address_keeps_its_socket(opened: Opened, log: Logger) -> None:
    kept = at(("127.0.0.1", free_port()))
    before = opened.adopt(kept, at(("127.0.0.1", free_port())), log=log)
    with socket.create_connection(before[0].socket.getsockname()) as early:
        new = at(("127.0.0.1", free_port()))
        after = opened.adopt(
            new, replace(kept, backlog=1, rcvbuf=65536), log=log, held=before
        )
        assert after[1].socket is before[0].socket
        connection, peer = after[1].socket.accept()
        connection.close()
        assert peer == early.getsockname()
    assert after[0].socket.getsockname() == new.sockaddr
    assert before[1].socket.fileno() >= 0, "closing is for when the reload succeeded"


def test_failed_reload_leaves_what_was_held(opened: Opened, log: Logger) -> None:
    before = opened.adopt(at(("127.0.0.1", free_port())), log=log)
    with taken_port() as taken, pytest.raises(ListenError):
        opened.adopt(before[0].listen, at(taken.getsockname()), log=log, held=before)
    with socket.create_connection(before[0].socket.getsockname()):
        pass


def test_options_are_set(opened: Opened, log: Logger, captured: CapturedLog) -> None:
    wanted = at(
        ("127.0.0.1", free_port()),
        rcvbuf=32768,
        sndbuf=65536,
        so_keepalive=Keepalive(True, 30, None, 7),
    )
    (listener,) = opened.adopt(wanted, log=log)
    get = listener.socket.getsockopt
    assert get(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 32768  # Linux doubles it
    assert get(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65536
    assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert get(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert get(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 7
    assert texts(captured) == []


def test_option_that_cannot_be_set_is_an_alert(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    port = free_port()
    opened.adopt(
        at(("127.0.0.1", port), so_keepalive=Keepalive(True, idle=1 << 20)), log=log
    )
    assert texts(captured) == [
        f"[alert] setsockopt(TCP_KEEPIDLE, 1048576) 127.0.0.1:{port} failed, ignored"
        " (22: Invalid argument)"
    ]


def test_unix_socket_is_open_to_all_and_removed(
    opened: Opened, log: Logger, captured: CapturedLog, tmp_path: Path
) -> None:
    path = tmp_path / "imap.sock"
    (listener,) = opened.adopt(at(str(path), socket.AF_UNIX), log=log)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    listening.close([listener], log, files=True, say=True)
    assert not path.exists()
    assert texts(captured) == [f"[warn] deleting socket {path}"]


def test_link_in_the_place_of_a_new_unix_socket_opens_no_other_file(
    opened: Opened, log: Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory's owner may exchange the two as soon as bind() has returned."""
    path, precious = tmp_path / "imap.sock", tmp_path / "precious"
    precious.touch(0o600)
    real = socket.socket.bind

    def bind_and_exchange(self: socket.socket, address: str) -> None:
        real(self, address)
        path.unlink()
        path.symlink_to(precious)

    monkeypatch.setattr(socket.socket, "bind", bind_and_exchange)
    opened.adopt(at(str(path), socket.AF_UNIX), log=log)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_unix_socket_that_is_gone_is_said(
    opened: Opened, log: Logger, captured: CapturedLog, tmp_path: Path
) -> None:
    path = tmp_path / "imap.sock"
    (listener,) = opened.adopt(at(str(path), socket.AF_UNIX), log=log)
    path.unlink()
    listening.close([listener], log, files=True, say=False)
    assert texts(captured) == [
        f"[emerg] unlink() {path} failed (2: No such file or directory)"
    ]


def test_stale_unix_socket_is_in_use(
    opened: Opened, log: Logger, captured: CapturedLog, tmp_path: Path
) -> None:
    path = tmp_path / "imap.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(ListenError):
        opened.adopt(at(str(path), socket.AF_UNIX), log=log)
    assert texts(captured)[0] == f"[emerg] bind() to unix:{path} failed ({IN_USE})"
    assert path.exists()


def test_sockets_are_inherited_by_number(
    opened: Opened, log: Logger, captured: CapturedLog
) -> None:
    given = [taken_port() for _ in range(2)]
    wanted = at(given[0].getsockname())
    held = listening.inherit([each.detach() for each in given], log)
    listeners = opened.adopt(wanted, log=log, held=tuple(held.values()))
    assert listeners[0].socket is held[listeners[0].key].socket
    assert listeners[0].inherited
    assert not os.get_inheritable(listeners[0].socket.fileno())
    unwanted = [each for key, each in held.items() if key != listeners[0].key]
    assert len(unwanted) == 1
    listening.close(unwanted, log, files=False, say=False)
    assert texts(captured) == []


def test_numbers_that_are_no_listening_sockets_are_skipped(
    log: Logger, captured: CapturedLog
) -> None:
    with (
        open(os.devnull, encoding="ascii") as file,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
        socket.socket() as idle,
    ):
        numbers = [1 << 20, file.fileno(), datagram.fileno(), idle.fileno()]
        assert listening.inherit(numbers, log) == {}
    of = "[crit] getsockname() of the inherited socket"
    assert texts(captured) == [
        f"{of} #{numbers[0]} failed (9: Bad file descriptor)",
        f"{of} #{numbers[1]} failed (88: Socket operation on non-socket)",
        f"[crit] the inherited socket #{numbers[2]} does not listen",
        f"[crit] the inherited socket #{numbers[3]} does not listen",
    ]


def test_multipath_falls_back_to_tcp(
    opened: Opened, log: Logger, captured: CapturedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A number that no kernel knows stands for a kernel without MPTCP.
    monkeypatch.setattr(socket, "IPPROTO_MPTCP", 259)
    wanted = at(("127.0.0.1", free_port()), multipath=True)
    (listener,) = opened.adopt(wanted, log=log)
    assert listener.socket.proto == 0
    assert texts(captured) == [
        f"[warn] Multipath TCP is not available, {wanted.address} takes TCP only"
        " (93: Protocol not supported)"
    ]


class TestOfTheConfiguration:
    def test_leaves_nothing_behind(
        self, log: Logger, captured: CapturedLog, tmp_path: Path
    ) -> None:
        path = tmp_path / "new.sock"
        port = free_port()
        wanted = [at(("127.0.0.1", port)), at(str(path), socket.AF_UNIX)]
        assert listening.test(wanted, lambda: log)
        assert not path.exists()
        with socket.create_server(("127.0.0.1", port)):
            pass
        assert texts(captured) == []

    def test_takes_an_address_in_use_for_our_own(
        self, log: Logger, captured: CapturedLog, tmp_path: Path
    ) -> None:
        path = tmp_path / "running.sock"
        with taken_port() as taken, socket.socket(socket.AF_UNIX) as running:
            running.bind(str(path))
            wanted = [at(taken.getsockname()), at(str(path), socket.AF_UNIX)]
            assert listening.test(wanted, lambda: log)
        assert path.exists()
        assert texts(captured) == []

    def test_fails_as_a_start_would(self, log: Logger, captured: CapturedLog) -> None:
        assert not listening.test([at(("192.0.2.1", 14300))], lambda: log)
        assert texts(captured) == [
            "[emerg] bind() to 192.0.2.1:14300 failed"
            " (99: Cannot assign requested address)"
        ]
