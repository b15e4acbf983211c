"""What all measurements share: a directory, ports, certificates, fake servers."""

from __future__ import annotations

import random
import resource
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.configuration import LISTENERS
from bench.helpers import Helper

FAKE_SERVERS = ("imap", "pop3", "smtp", "auth")
HOST = "bench.example.com"

_BLOCKS = range(12000, 32000, 100)
"""Below the ports that Linux gives to outgoing connections, of which there will be many."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The place where proxies are measured."""

    directory: Path
    ports: dict[str, int]
    """Of `LISTENERS`, and "many": of a configuration's many servers."""
    backends: dict[str, int]
    """The ports of `FAKE_SERVERS`."""
    workers: int
    files: int
    """Descriptors that each process may have."""

    def certificate(self, kind: str) -> Path:
        """Where a certificate is, for "rsa" or "ec"; its key is beside it, as .key."""
        return self.directory / f"{kind}.crt"


def raise_limit(files: int) -> int:
    """Allow this process and its children `files` descriptors; returns how many it gets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return files
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files


@contextmanager
def prepared(*, workers: int, files: int) -> Iterator[Surroundings]:
    """Make it all, and remove it at the end of the block."""
    with ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="mailproxy-bench-")
        )
        numbers = _free_ports(len(LISTENERS) + 1 + len(FAKE_SERVERS))
        surroundings = Surroundings(
            directory=Path(name),
            ports={name: next(numbers) for name in (*LISTENERS, "many")},
            backends={name: next(numbers) for name in FAKE_SERVERS},
            workers=workers,
            files=files,
        )
        # Workers may run as another user.
        surroundings.directory.chmod(0o755)
        _make_certificates(surroundings)
        ports = map(str, surroundings.backends.values())
        helper = stack.enter_context(Helper("bench.fake_servers", *ports))
        helper.read_line()
        yield surroundings


def _free_ports(count: int) -> Iterator[int]:
    """Ports that nobody listens on at the moment."""
    for first in random.sample(_BLOCKS, len(_BLOCKS)):
        ports = range(first, first + count)
        with ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return iter(ports)
    raise OSError("all ports are in use")


def _make_certificates(surroundings: Surroundings) -> None:
    authority = trustme.CA()
    for kind, key_type in (("rsa", trustme.KeyType.RSA), ("ec", trustme.KeyType.ECDSA)):
        made = authority.issue_cert(HOST, key_type=key_type)
        path = surroundings.certificate(kind)
        made.cert_chain_pems[0].write_to_path(path)
        made.private_key_pem.write_to_path(path.with_suffix(".key"))
