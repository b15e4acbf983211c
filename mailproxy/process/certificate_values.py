"""The arguments of the main directives about certificates."""

from __future__ import annotations

from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.tree import ConfigError, Directive
from mailproxy.conf.values import HOUR, c_string, parse_seconds

MIN_WATCH = 10
"""Seconds, at least, between two looks at the files."""
DAY = 24 * HOUR
DEFAULT_WARNINGS = (30 * DAY, 7 * DAY, DAY)


def _parse_watch(found: Directive, _: Reading) -> float:
    text = c_string(found.values[1])
    if text == "off":
        return 0.0
    try:
        seconds = parse_seconds(text)
    except ValueError:
        raise ValueError("invalid value") from None
    if seconds < MIN_WATCH:
        raise ValueError("invalid value")
    return float(seconds)


def _parse_warnings(found: Directive, _: Reading) -> tuple[float, ...]:
    if [word.value for word in found.args] == ["off"]:
        return ()
    times = []
    for word in found.args:
        try:
            times.append(float(parse_seconds(c_string(word.value))))
        except ValueError:
            raise ConfigError(
                f'invalid parameter "{word.value}"',
                word,
                "times are like 30d or 12h; or say: off",
            ) from None
    return tuple(times)


watch: Value[float] = Value(
    _parse_watch,
    "time | off",
    remedy=f"a time is like 1m, and at least {MIN_WATCH}s; or say: off",
    parameters=("off",),
)
"""Seconds; 0: off."""
warnings: Value[tuple[float, ...]] = Value(
    _parse_warnings, "time ... | off", most=None, parameters=("off",)
)
"""Seconds before the end of a certificate."""
