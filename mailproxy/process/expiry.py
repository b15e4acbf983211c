"""When certificates end: what the log says of it, and how often.

A threshold is reached once; of several, only the tightest one that is reached counts. A
threshold that is more than a third of a certificate's whole life does not: one for six
days would be about to expire for all its life. One that has expired is an error each day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mailproxy.net.openssl.pairs import Leaf

DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_OVER = timedelta(0)
"""Stands for the threshold of a certificate that has expired."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A line about a certificate.

    Attributes:
      level: nginx's name of the log level.
      file: the certificate.
      text: the whole line.
      remedy: what to do about it, for people.
    """

    level: str
    file: str
    text: str
    remedy: str = "clients will refuse it then: renew it"


class Expiry:
    """Remembers what was said of which certificate.

    Args:
      thresholds: seconds before the end, of `ssl_certificate_warning`.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._thresholds = sorted(timedelta(seconds=each) for each in thresholds)
        self._said: dict[tuple[str, datetime], tuple[timedelta, int]] = {}

    def due(
        self, certificates: Iterable[tuple[str, Leaf]], now: datetime
    ) -> list[Remark]:
        """Return what is to be said now, and was not said before."""
        said: dict[tuple[str, datetime], tuple[timedelta, int]] = {}
        remarks: list[Remark] = []
        for file, leaf in certificates:
            if leaf.ends is None or (file, leaf.ends) in said:
                continue
            before = self._said.get((file, leaf.ends))
            reached = self._reached(leaf, leaf.ends, now)
            if reached is None:
                continue
            said[file, leaf.ends] = reached
            if before is None or reached < before:
                remarks.append(_remark(file, leaf, leaf.ends, now))
        self._said = said
        return remarks

    def _reached(
        self, leaf: Leaf, ends: datetime, now: datetime
    ) -> tuple[timedelta, int] | None:
        """Return the tightest threshold, and less for each day since the end."""
        left = ends - now
        if left < _OVER:
            return _OVER, left.days
        for threshold in self._thresholds:
            if left <= threshold:
                return None if _is_short(leaf, threshold) else (threshold, 0)
        return None


def _is_short(leaf: Leaf, threshold: timedelta) -> bool:
    """Return whether a threshold is more than a third of a certificate's life."""
    if leaf.begins is None or leaf.ends is None:
        return False
    # The last second is a part of it (RFC 5280, section 4.1.2.5).
    return 3 * threshold > leaf.ends - leaf.begins + _SECOND


def _remark(file: str, leaf: Leaf, ends: datetime, now: datetime) -> Remark:
    left = ends - now
    if left < _OVER:
        text = f'certificate "{file}" has expired on {ends.date()}'
        return Remark("error", file, text, "clients refuse it: renew it")
    names = f" ({leaf.names[0]}" if leaf.names else ""
    if len(leaf.names) > 1:
        names += f" and {len(leaf.names) - 1} more"
    names += ")" if names else ""
    text = f'certificate "{file}"{names} expires in {_span(left)}, on {ends.date()}'
    return Remark("error" if left <= DAY else "warn", file, text)


def _span(left: timedelta) -> str:
    if left > DAY:
        return _counted(left.days, "day")
    return _counted(left // _HOUR, "hour") if left >= _HOUR else "less than an hour"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
