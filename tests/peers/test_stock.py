"""The configuration of a Debian machine, with a mail block."""

import subprocess

from tests.peers.site import Site
from tests.processes import mailproxy_command


def test_the_configuration_is_good(proxy: Site) -> None:
    command = [*mailproxy_command(proxy.process.directory), "-t"]
    tested = subprocess.run(command, capture_output=True, text=True, timeout=30)
    lines = [
        line for line in tested.stderr.splitlines() if line.startswith("mailproxy: ")
    ]
    assert tested.returncode == 0, tested.stderr
    assert "test is successful" in lines[-1]
    warnings = [line for line in lines if "[warn]" in line]
    assert len(warnings) == 1, warnings
    assert '"http"' in warnings[0]


def test_nothing_went_wrong(proxy: Site) -> None:
    log = (proxy.process.directory / "log/error.log").read_text()
    bad = [
        line
        for line in log.splitlines()
        if "[info]" not in line and "[notice]" not in line
    ]
    assert bad == []
