"""All measurements of a run, and the conditions under which they were made."""

from __future__ import annotations

import datetime
import json
import os
import platform
import ssl
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.cases import Case, Row
from bench.measuring import Measurement
from bench.proxies import Proxy


@dataclass(frozen=True, kw_only=True)
class Results:
    """A run; `made` grows while it lasts."""

    proxies: Sequence[Proxy]
    cases: Sequence[Case]
    workers: int
    rounds: int
    scale: float = 1.0
    """By how much `cases` are smaller or larger than they are called."""
    made: dict[tuple[str, str], list[Measurement]] = field(default_factory=dict)
    """By the names of case and proxy, round by round."""

    def add(self, case: Case, proxy: Proxy, measurement: Measurement) -> None:
        """Take in the measurement of one more round."""
        self.made.setdefault((case.name, proxy.name), []).append(measurement)

    def rows(self) -> Iterator[tuple[Case, Row]]:
        """All rows of all cases."""
        for case in self.cases:
            for row in case.rows:
                yield case, row

    def figures(self, case: Case, row: Row, proxy: Proxy) -> list[float]:
        """A figure in all rounds."""
        return [each.figures[row.key] for each in self.made[case.name, proxy.name]]

    def median(self, case: Case, row: Row, proxy: Proxy) -> float:
        """A figure, as it is shown."""
        return statistics.median(self.figures(case, row, proxy))

    @property
    def failures(self) -> int:
        """Sessions that went wrong, in all measurements."""
        return sum(each.failures for many in self.made.values() for each in many)

    def conditions(self) -> dict[str, str]:
        """When, where and with what the run is made."""
        versions = [f"{each.name} is {each.version}" for each in self.proxies]
        now = datetime.datetime.now().astimezone()
        return {
            "date": now.isoformat(sep=" ", timespec="minutes"),
            "machine": f"{os.cpu_count()} CPUs ({_model()}), Linux {platform.release()}",
            "python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
            "proxies": f"{', '.join(versions)}; {self.workers} workers each",
            "figures": f"medians of {self.rounds} rounds, scale {self.scale:g}",
        }

    def write(self, path: Path) -> None:
        """Write everything as JSON: `conditions`, and the rounds by case and proxy."""
        rounds: dict[str, dict[str, list[object]]] = {}
        for (case, proxy), measurements in self.made.items():
            made = [asdict(each) for each in measurements]
            rounds.setdefault(case, {})[proxy] = list(made)
        document = json.dumps({**self.conditions(), "rounds": rounds}, indent=1)
        path.write_text(document + "\n", encoding="utf-8")


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()
