"""How a case is measured: one proxy, freshly started, one figure for each row.

The load runs for a moment before it counts, so that what is made at the first use is
made. What counts is the CPU time of the proxy's whole tree of processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bench import processes
from bench.cases import Case, Kind
from bench.configuration import LISTENERS, for_sessions, host_of, with_many_servers
from bench.helpers import Helper
from bench.load import Plan
from bench.loop import KIB, MIB
from bench.proxies import Place, Proxy
from bench.surroundings import Surroundings

WARM_UP = {"seconds": 0.3, "at_once": 8}
"""The load that does not count."""
SETTLE = 0.5
"""Seconds after which sessions count as idle."""
AFTERWARDS = 0.05
"""Seconds that a proxy has to finish what the load does not wait for."""
BUSY = 0.01
"""The share of idle sessions that say something in a second."""
GIB = 1024 * MIB

Figures = dict[str, float]
"""By the keys of a case's rows."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What came out of one measurement."""

    figures: Figures
    failures: int = 0
    """Sessions that went wrong."""
    first_failure: str = ""
    resumed: float = 0.0
    """The share of logins, from 0 to 1, whose TLS session was a resumed one."""


class Sessions:
    """The clients of a measurement, and who serves them.

    Args:
      root: the proxy's master.

    Attributes:
      count, resumed: of the last order's result.
      failures, first_failure: of all.
    """

    def __init__(self, clients: Helper, root: int) -> None:
        self.root = root
        self.count = self.resumed = self.failures = 0
        self.first_failure = ""
        self._clients = clients

    def obey(self, do: str, **details: object) -> float:
        """Have the clients do something; returns the proxy's CPU seconds for it.

        Raises:
          NothingDoneError: not even one of them could.
        """
        before = processes.cpu_seconds(self.root)
        answer = self._clients.obey(do, **details)
        time.sleep(AFTERWARDS)
        used = processes.cpu_seconds(self.root) - before
        self.count, self.resumed = answer["count"], answer["resumed"]
        self.failures += answer["failures"]
        self.first_failure = self.first_failure or answer["first_failure"]
        if not self.count:
            raise NothingDoneError(self.first_failure)
        return used


class NothingDoneError(Exception):
    """No session did what it should; the text is what the first one met."""


def measure(surroundings: Surroundings, proxy: Proxy, case: Case) -> Measurement:
    """Measure one case once.

    Raises:
      ProxyError: the proxy does not start, or serves nobody.
    """
    directory = surroundings.directory / "proxy"
    if case.kind is Kind.CONFIGURATION:
        text = with_many_servers(surroundings, proxy.load_module, case.sessions)
        return _measure_start(Place(proxy, directory, text), surroundings, case)
    text = for_sessions(surroundings, proxy.load_module)
    place = Place(proxy, directory, text)
    plan = Plan(
        port=surroundings.ports[case.listener],
        protocol=LISTENERS[case.listener].protocol,
        tls=case.tls,
        resume=case.resume,
    )
    with (
        place.started("127.0.0.1", surroundings.ports["imap"]) as started,
        Helper("bench.load", json.dumps(asdict(plan))) as clients,
    ):
        sessions = Sessions(clients, started.pid)
        try:
            figures = _MEASURED[case.kind](sessions, case)
        except NothingDoneError as error:
            raise place.error(f"served nobody in {case.name}: {error}") from None
    return Measurement(
        figures=figures,
        failures=sessions.failures,
        first_failure=sessions.first_failure,
        resumed=sessions.resumed / sessions.count,
    )


def _measure_start(place: Place, surroundings: Surroundings, case: Case) -> Measurement:
    took = place.test()
    last = host_of(case.sessions - 1)
    with place.started(last, surroundings.ports["many"]) as started:
        return Measurement(
            figures={"test_ms": took * 1e3, "start_ms": started.seconds * 1e3}
        )


def _login(sessions: Sessions, case: Case) -> Figures:
    sessions.obey("log_in", **WARM_UP)
    used = sessions.obey("log_in", seconds=case.seconds, at_once=case.sessions)
    return {"cpu_us": used / sessions.count * 1e6}


def _ping(sessions: Sessions, case: Case) -> Figures:
    sessions.obey("open", count=case.sessions)
    if case.sessions > 1:
        used = sessions.obey("ping", seconds=case.seconds)
    else:
        # Else it depends most on which CPUs the scheduler picks.
        with processes.one_cpu(os.getpid()):
            used = sessions.obey("ping", seconds=case.seconds)
    return {"cpu_us": used / sessions.count * 1e6}


def _idle(sessions: Sessions, case: Case) -> Figures:
    sessions.obey("log_in", **WARM_UP)
    before = processes.memory(sessions.root)
    sessions.obey("open", count=case.sessions)
    time.sleep(SETTLE)
    kib = (processes.memory(sessions.root) - before) / sessions.count / KIB
    used = sessions.obey("ping_some", share=BUSY, seconds=case.seconds)
    cpu_us = used / sessions.count * 1e6
    sessions.obey("ping_all")
    return {"kib": kib, "cpu_us": cpu_us}


def _bulk(sessions: Sessions, case: Case) -> Figures:
    sessions.obey("open", count=case.sessions)
    used = sessions.obey("transfer", direction=case.direction, size=case.size)
    return {"cpu_s_gib": used / sessions.count * GIB}


_MEASURED: dict[Kind, Callable[[Sessions, Case], Figures]] = {
    Kind.LOGIN: _login,
    Kind.PING: _ping,
    Kind.IDLE: _idle,
    Kind.BULK: _bulk,
}
