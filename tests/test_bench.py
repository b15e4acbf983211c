"""The benchmark: that it measures, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cases import CASES, select
from bench.helpers import Helper
from bench.load import MAX_FAILURES
from bench.measuring import Measurement
from bench.proxies import NGINX, Proxy
from bench.report import table, text
from bench.results import Results
from tests.process.site import children
from tests.processes import PATIENCE, Process, free_port, wait_for

CHECKOUT = Path(__file__).parent.parent
TINY = ["--rounds", "1", "--scale", "0.01", "--no-nginx"]


def bench(*arguments: str, files: str = "hard") -> subprocess.CompletedProcess[str]:
    """Run the benchmark to its end, with a limit on open files."""
    command = [sys.executable, "-m", "bench", *TINY, *arguments]
    return subprocess.run(
        ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *command],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def program(path: Path, start: str) -> Path:
    """A program that says its version, as nginx does, and is started in vain."""
    path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && exit 0\n{start}\n')
    path.chmod(0o755)
    return path


def test_a_case_of_each_kind_is_measured(tmp_path: Path) -> None:
    names = ["S1/smtp", "S3/up-32-tls", "S4/idle-1000", "S5/ping-1", "S6/config-10"]
    done = bench("--cases", ",".join(names), "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    rounds = json.loads((tmp_path / "figures.json").read_text())["rounds"]
    assert list(rounds) == names
    for case in select(names):
        (measured,) = rounds[case.name]["mailproxy"]
        assert measured["failures"] == 0
        assert set(measured["figures"]) == {row.key for row in case.rows}
        assert all(row.title in done.stdout for row in case.rows)


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    # A test run in the background ignores SIGINT, and so would what it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "bench", *TINY]
    command += ["--scale", "100", "--cases", "S1"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    benchmark = Process(command, tmp_path, environment)
    started: set[int] = set()

    def all_run() -> bool:
        """The fake servers, the clients, a master and two workers."""
        own = children(benchmark.popen.pid)
        started.update(own, *map(children, own))
        return len(started) >= 5

    wait_for(all_run, "all processes of a measurement", benchmark)
    benchmark.popen.send_signal(signal.SIGINT)
    assert benchmark.popen.wait(PATIENCE) == 128 + signal.SIGINT
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_clients_that_reach_nobody_give_up() -> None:
    plan = {"port": free_port(), "protocol": "imap", "tls": "no", "resume": False}
    with Helper("bench.load", json.dumps(plan)) as clients:
        for do, details in (
            ("log_in", {"seconds": PATIENCE, "at_once": 64}),
            ("open", {"count": 1000}),
        ):
            answer = clients.obey(do, **details)
            assert answer["count"] == 0
            assert MAX_FAILURES <= answer["failures"] < MAX_FAILURES + 64
            assert "Connection refused" in answer["first_failure"]


def test_a_target_that_does_not_start_is_shown_with_its_log(tmp_path: Path) -> None:
    broken = program(tmp_path / "broken", "echo it is too cold; exit 1")
    done = bench("--cases", "S1/imap", "--target", f"broken={broken}")
    assert done.returncode == 2
    assert f"broken does not start: {broken} -p " in done.stderr
    assert "it is too cold" in done.stderr


def test_a_target_must_be_one() -> None:
    done = bench("--cases", "S1/imap", "--target", "missing=/no/such/program")
    assert done.returncode == 2
    assert '"/no/such/program -V" does not work' in done.stderr


def test_too_few_descriptors_are_told() -> None:
    done = bench("--cases", "S1/imap,S6/config-1000", files="600")
    assert done.returncode == 2
    assert "1300 open files are needed, and 600 are allowed" in done.stderr
    assert "measure without S6/config-1000" in done.stderr


def test_an_unknown_case_is_told() -> None:
    done = bench("--cases", "S1/imap,S9")
    assert done.returncode == 2
    assert "there is no case S9; see --list" in done.stderr


def proxy(name: str) -> Proxy:
    """One that is only a name."""
    return Proxy(name=name, command=(name,), version="1.0", load_module="")


@pytest.fixture
def results() -> Results:
    """Two rounds of one case on three proxies."""
    made = Results(
        proxies=[proxy(name) for name in (NGINX, "mailproxy", "before")],
        cases=select(["S1/imap"]),
        workers=2,
        rounds=2,
    )
    figures = {NGINX: (90, 110), "mailproxy": (150, 250), "before": (300, 300)}
    for each in made.proxies:
        for figure in figures[each.name]:
            measurement = Measurement(figures={"cpu_us": figure})
            made.add(made.cases[0], each, measurement)
    return made


def test_the_table_has_medians_and_their_ratios_to_nginx(results: Results) -> None:
    head, _, row = table(results).splitlines()
    assert head.replace(" ", "") == "|what|unit|nginx|mailproxy|ratio|before|ratio|"
    assert row.split("|")[1].strip() == "IMAP login, 64 at a time"
    assert row.replace(" ", "").endswith("|CPUµs|100|200|2.00|300|3.00|")


def test_the_table_has_no_ratios_without_nginx(results: Results) -> None:
    head, _, row = table(replace(results, proxies=results.proxies[1:])).splitlines()
    assert head.replace(" ", "") == "|what|unit|mailproxy|before|"
    assert row.replace(" ", "").endswith("|CPUµs|200|300|")


def test_the_report_tells_noise_and_failed_sessions(results: Results) -> None:
    assert "lie up to 40% apart (S1/imap, mailproxy)" in text(results)
    assert "FAILED" not in text(results)
    lost = Measurement(figures={"cpu_us": 100.0}, failures=3, first_failure="closed")
    results.add(results.cases[0], results.proxies[0], lost)
    assert text(results).endswith("3 sessions FAILED: these figures are worth nothing.")


def test_cases_are_chosen_by_name_scenario_and_pattern() -> None:
    assert select([]) == [case for case in CASES if case.main]
    assert [case.name for case in select(["S5/*-tls", "S1/imap"])] == [
        "S1/imap",
        "S5/ping-1-tls",
        "S5/ping-200-tls",
    ]
    assert {case.name[:3] for case in select(["S1", "S6"])} == {"S1/", "S6/"}
