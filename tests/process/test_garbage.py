"""When Python looks for garbage: not while a configuration is loaded."""

from __future__ import annotations

import subprocess
import sys

from tests.process.site import Site
from tests.processes import PATIENCE

WATCHED = """
import gc
from mailproxy import __main__
from mailproxy.process import configuration, start

def load(loader, text):
    print("loading", gc.isenabled())
    return read(loader, text)

def lead(*_):
    print("leading", gc.isenabled(), gc.get_freeze_count() > 10_000)
    return 0

read, configuration.Loader._load = configuration.Loader._load, load
start._lead = lead
code = __main__.main()
print("ending", code, gc.get_freeze_count() > 10_000)
"""


def run(site: Site, *arguments: str) -> list[str]:
    """Start, or test the configuration; returns when the collector was on."""
    _, *words = site.command("-g", "daemon off;", *arguments)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_start_has_the_collector_on_once_the_configuration_is_loaded(
    site: Site,
) -> None:
    site.configure()
    found = run(site)
    assert found == ["loading False", "leading True True", "ending 0 True"]


def test_a_test_of_the_configuration_never_looks_for_garbage(site: Site) -> None:
    site.configure()
    assert run(site, "-t") == ["loading False", "ending 0 True"]
