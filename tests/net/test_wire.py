"""A wire that cannot be had leaves nothing behind."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailproxy.net.engine import Engine
from mailproxy.net.network import Network


def descriptors() -> list[str]:
    """What this process has open."""
    return sorted(os.listdir("/proc/self/fd"))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Every descriptor that this process may have is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)  # the lowest number that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def network() -> Iterator[Network]:
    engine = Engine(limit=1)
    network = Network(engine)
    yield network
    network.close()
    engine.close()


def test_connect_without_descriptors(network: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = descriptors()
        with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
            network.connect(socket.AF_INET, server.getsockname())
        assert descriptors() == before
        network.connect(socket.AF_INET, server.getsockname()).close()


def test_connect_that_fails_at_once(network: Network, tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="No such file"):
        network.connect(socket.AF_UNIX, str(tmp_path / "nobody"))
    assert descriptors() == before
    assert not network.engine.full


def test_connect_beyond_worker_connections(network: Network) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = network.connect(socket.AF_INET, server.getsockname())
        before = descriptors()
        with pytest.raises(OSError, match="No buffer space"):
            network.connect(socket.AF_INET, server.getsockname())
        assert descriptors() == before
        first.close()
        network.connect(socket.AF_INET, server.getsockname()).close()
