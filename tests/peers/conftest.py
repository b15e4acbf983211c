"""Real servers, and mailproxy before them; once for all tests here."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import dovecot, postfix, site
from tests.peers.dovecot import Dovecot
from tests.peers.site import Backends, Site
from tests.processes import need, need_program

USERS = ("ann", "bob", "eve")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(
        prefix="mailproxy-", ignore_cleanup_errors=True
    ) as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="session")
def store(folder: Path) -> Iterator[Dovecot]:
    """A running Dovecot."""
    directory = folder / "dovecot"
    directory.mkdir()
    with dovecot.start(need_program("dovecot"), directory) as running:
        yield running


@pytest.fixture(scope="session")
def backends(store: Dovecot) -> Backends:
    """Where mailproxy sends its clients."""
    return Backends({"imap": store.imap_port, "pop3": store.pop3_port})


@pytest.fixture(scope="session")
def smtp_backend(folder: Path, store: Dovecot, backends: Backends) -> Iterator[None]:
    """A running Postfix, for tests that submit mail."""
    need(os.getuid() == 0, "root, for Postfix")
    directory = folder / "postfix"
    directory.mkdir()
    for user in USERS:
        store.maildir(user)
    with postfix.start(need_program("postfix"), directory, store, USERS) as port:
        backends.ports["smtp"] = port
        yield


@pytest.fixture(scope="session")
def proxy(folder: Path, backends: Backends) -> Iterator[Site]:
    """A running mailproxy."""
    directory = folder / "mailproxy"
    directory.mkdir()
    with site.start(directory, backends) as running:
        yield running
