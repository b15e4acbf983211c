"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.site import Site, adopt_orphans
from tests.processes import find_program, free_port, require_peers


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    """Makes sites, each in a directory of its own."""
    sites: list[Site] = []

    def make(name: str) -> Site:
        directory = tmp_path / name
        directory.mkdir()
        sites.append(
            Site(directory, free_port(), "nginx" if name == "nginx" else "mailproxy")
        )
        return sites[-1]

    # Workers run as nobody, who may not enter pytest's directories.
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    adopt_orphans(on=True)
    yield make
    for site in sites:
        site.close()
    adopt_orphans(on=False)


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
