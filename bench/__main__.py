"""CPU time and memory of mailproxy, beside nginx where that is installed.

Both get the same configuration and the same load, in turn, round by round. All that they
talk to is on this machine: clients, mail servers and an auth server of the benchmark's
own. What counts is the CPU time of all processes of a proxy for each login, command or
octet, and the ratio of the two says more than the figures.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import processes, proxies, report, surroundings
from bench.cases import CASES, Case, select
from bench.helpers import HelperError
from bench.measuring import measure
from bench.progress import Progress
from bench.proxies import NGINX, Proxy, ProxyError
from bench.results import Results
from bench.surroundings import Surroundings

SESSIONS_FAILED = 1
CANNOT = 2
"""Exit codes: figures that are worth nothing, and no figures."""


class CannotError(Exception):
    """Something is missing or wrong; the text says what."""


def main() -> int:
    """Run the benchmark; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    options = _options()
    if options.list:
        for case in CASES:
            print(f"{'*' if case.main else ' '} {case.name:22} {case.rows[0].title}")
        return 0
    try:
        return _run(options)
    except (CannotError, HelperError, ProxyError) as error:
        print(f"\n{error}", file=sys.stderr)
        return CANNOT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--cases",
        action="append",
        default=[],
        metavar="NAMES",
        help="cases or scenarios, as S1,S5/ping-200; see --list",
    )
    add("--list", action="store_true", help="show all cases, with * the usual ones")
    add("--rounds", type=_at_least_one, default=3, help="default: 3")
    add("--workers", type=_at_least_one, default=2, help="of each proxy; default: 2")
    add(
        "--target",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more proxy with nginx's command line, say of an older checkout",
    )
    add("--no-nginx", action="store_true", help="figures without ratios")
    add(
        "--scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="times, octets and idle sessions by so much; 0.1 for a quick look",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures of all rounds there",
    )
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("less than one")
    return number


def _run(options: argparse.Namespace) -> int:
    if lack := processes.missing():
        raise CannotError(lack)
    results = Results(
        proxies=_proxies(options),
        cases=_cases(options),
        workers=options.workers,
        rounds=options.rounds,
        scale=options.scale,
    )
    files = _allow_files(results.cases)
    with surroundings.prepared(workers=options.workers, files=files) as place:
        _measure_all(results, place)
    if options.json is not None:
        results.write(options.json)
    print(f"\n{report.text(results)}")
    return SESSIONS_FAILED if results.failures else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    patterns = [each for given in options.cases for each in given.split(",") if each]
    try:
        cases = select(patterns)
    except ValueError as error:
        raise CannotError(f"{error}; see --list") from None
    return [case.scaled(options.scale) for case in cases]


def _proxies(options: argparse.Namespace) -> list[Proxy]:
    """nginx first, where it is, then mailproxy, then the others."""
    found = [proxies.find_mailproxy()]
    for target in options.target:
        name, given, command = target.partition("=")
        if not given or name in (NGINX, *(each.name for each in found)):
            raise CannotError(f"--target {target}: wanted NAME=COMMAND, and a new NAME")
        found.append(proxies.find(name, command))
    nginx = "it was not wanted" if options.no_nginx else proxies.find_nginx()
    if isinstance(nginx, Proxy):
        return [nginx, *found]
    print(f"Without nginx, and so without ratios: {nginx}.", file=sys.stderr)
    return found


def _allow_files(cases: Sequence[Case]) -> int:
    """Have as many descriptors as the largest case needs; returns how many that are."""
    needed = max(case.files for case in cases)
    allowed = surroundings.raise_limit(needed)
    if allowed < needed:
        large = ", ".join(case.name for case in cases if case.files > allowed)
        raise CannotError(
            f"{needed} open files are needed, and {allowed} are allowed:"
            f" raise the limit (ulimit -Hn), or measure without {large}"
        )
    return needed


def _measure_all(results: Results, place: Surroundings) -> None:
    """Take the proxies in turn, round by round, case by case."""
    progress = Progress(results)
    for case in results.cases:
        for number in range(results.rounds):
            # The other way about in every second round, for what changes with time.
            for proxy in results.proxies[:: -1 if number % 2 else 1]:
                progress.begin(case, proxy, number)
                measurement = measure(place, proxy, case)
                progress.end(case, measurement)
                results.add(case, proxy, measurement)


if __name__ == "__main__":
    sys.exit(main())
