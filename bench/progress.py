"""What the benchmark says on standard error while it runs."""

from __future__ import annotations

import sys
import time

from bench.cases import Case
from bench.measuring import Measurement
from bench.proxies import Proxy
from bench.report import show
from bench.results import Results


class Progress:
    """Says what is measured, what came out, and how long the rest will take."""

    def __init__(self, results: Results) -> None:
        self._rounds = results.rounds
        once = sum(case.estimate for case in results.cases)
        self._planned = once * len(results.proxies) * results.rounds
        self._done = 0.0
        self._began = time.monotonic()
        self._case_width = max(len(case.name) for case in results.cases)
        self._proxy_width = max(len(proxy.name) for proxy in results.proxies)

    def begin(self, case: Case, proxy: Proxy, number: int) -> None:
        """One measurement begins; `number` is the round's, from 0."""
        which = f"round {number + 1} of {self._rounds}"
        name, program = case.name.ljust(self._case_width), proxy.name
        self._say(f"{name}  {which}  {program.ljust(self._proxy_width)}  ", end="")

    def end(self, case: Case, measurement: Measurement) -> None:
        """It has ended."""
        said = [f"{show(measurement.figures[row.key])} {row.unit}" for row in case.rows]
        if case.resume:
            said.append(f"{measurement.resumed:.0%} resumed")
        if measurement.failures:
            said.append(f"{measurement.failures} FAILED: {measurement.first_failure}")
        self._done += case.estimate
        spent = time.monotonic() - self._began
        left = round(spent / self._done * (self._planned - self._done))
        self._say(f"{', '.join(said):30}  {left // 60}:{left % 60:02} left")

    @staticmethod
    def _say(text: str, end: str = "\n") -> None:
        print(text, end=end, file=sys.stderr, flush=True)
