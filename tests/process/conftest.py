"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.site import Site, adopt_orphans
from tests.processes import find_program, free_port, require_peers


@contextmanager
def _sites(directory: Path) -> Iterator[Callable[[str], Site]]:
    """Makes sites, each in a directory of its own."""
    sites: list[Site] = []

    def make(name: str) -> Site:
        place = directory / name
        place.mkdir()
        program = "nginx" if name == "nginx" else "mailproxy"
        sites.append(Site(place, free_port(), program))
        return sites[-1]

    # Workers run as nobody, who may not enter pytest's directories.
    for parent in (directory, directory.parent, directory.parent.parent):
        parent.chmod(0o755)
    adopt_orphans(on=True)
    yield make
    for site in sites:
        site.close()
    adopt_orphans(on=False)


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    """Makes sites for one test."""
    with _sites(tmp_path) as make:
        yield make


@pytest.fixture(scope="class")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose master lives as long as a whole class of tests."""
    with _sites(tmp_path_factory.mktemp("running")) as make:
        site = make("site")
        site.configure()
        site.start()
        yield site


@pytest.fixture
def site(make_site: Callable[[str], Site]) -> Site:
    """A place for a master, with an IMAP server on one port."""
    site = make_site("site")
    site.configure()
    return site


@pytest.fixture
def nginx_site(make_site: Callable[[str], Site]) -> Site:
    """The same for the real nginx."""
    if find_program("nginx") is None:
        if require_peers():
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed")
    site = make_site("nginx")
    site.install_nginx(site.program)
    site.configure()
    return site
