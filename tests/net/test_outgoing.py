"""Connections that come from a certain address, or are probed."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mailproxy.conf.addresses import Address
from mailproxy.net.engine import Engine
from mailproxy.net.outgoing import BindError, Outgoing
from mailproxy.net.wire import Wire


@pytest.fixture
def engine() -> Iterator[Engine]:
    with closing(Engine(10)) as engine:
        yield engine


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def at(host: str, port: int = 0) -> Address:
    return Address(socket.AF_INET, (host, port), f"{host}:{port}" if port else host)


def test_connection_comes_from_the_address(
    engine: Engine, server: socket.socket
) -> None:
    name = server.getsockname()
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    for address in (at("127.0.0.2"), at("127.0.0.2", port)):
        wire = Wire.connect(engine, socket.AF_INET, name, Outgoing(address))
        accepted, (host, other) = server.accept()
        wire.close()
        accepted.close()
        assert host == "127.0.0.2"
        assert port in (other, address.sockaddr[1]) or address.sockaddr[1] == 0


def test_many_connections_share_an_address(
    engine: Engine, server: socket.socket
) -> None:
    """A port is taken for each connection, when it is known where that goes."""
    wires = [
        Wire.connect(
            engine, socket.AF_INET, server.getsockname(), Outgoing(at("127.0.0.2"))
        )
        for _ in range(5)
    ]
    option = 24  # IP_BIND_ADDRESS_NO_PORT
    assert all(w.socket.getsockopt(socket.IPPROTO_IP, option) for w in wires)
    for wire in wires:
        wire.close()


def test_address_that_is_not_ours(engine: Engine, server: socket.socket) -> None:
    with pytest.raises(BindError) as caught:
        Wire.connect(
            engine, socket.AF_INET, server.getsockname(), Outgoing(at("192.0.2.1"))
        )
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert caught.value.text == "192.0.2.1"


def test_address_of_another_family(engine: Engine, server: socket.socket) -> None:
    six = Address(socket.AF_INET6, ("::1", 0, 0, 0), "[::1]")
    with pytest.raises(BindError):
        Wire.connect(engine, socket.AF_INET, server.getsockname(), Outgoing(six))


def test_unix_sockets_come_from_nowhere(engine: Engine, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        how = Outgoing(at("127.0.0.2"), keepalive=True)
        Wire.connect(engine, socket.AF_UNIX, path, how).close()


@pytest.mark.parametrize("keepalive", [True, False])
def test_silent_peers_are_probed(
    keepalive: bool, engine: Engine, server: socket.socket
) -> None:
    how = Outgoing(keepalive=keepalive)
    wire = Wire.connect(engine, socket.AF_INET, server.getsockname(), how)
    found = wire.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    wire.close()
    assert bool(found) is keepalive
