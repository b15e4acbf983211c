"""What the benchmark says in the end."""

from __future__ import annotations

from bench.proxies import NGINX
from bench.results import Results


def text(results: Results) -> str:
    """The conditions, the table, and what is to be known about it."""
    conditions = [f"{key}: {value}" for key, value in results.conditions().items()]
    parts = ["\n".join(conditions), table(results), noise(results)]
    if results.failures:
        parts.append(
            f"{results.failures} sessions FAILED: these figures are worth nothing."
        )
    return "\n\n".join(parts)


def table(results: Results) -> str:
    """The medians of the rounds as a Markdown table, beside nginx if it took part."""
    nginx = next((each for each in results.proxies if each.name == NGINX), None)
    head = ["what", "unit"]
    for proxy in results.proxies:
        head += [proxy.name] if nginx in (None, proxy) else [proxy.name, "ratio"]
    lines = [head]
    for case, row in results.rows():
        cells = [row.title, row.unit]
        for proxy in results.proxies:
            median = results.median(case, row, proxy)
            cells.append(show(median))
            if nginx not in (None, proxy):
                cells.append(_ratio(median, results.median(case, row, nginx)))
        lines.append(cells)
    return _markdown(lines)


def noise(results: Results) -> str:
    """How far the rounds of one figure lie apart, at most."""
    if results.rounds == 1:
        return "One round says little: what else the machine does is in it."
    widest, where = 0.0, ""
    for case, row in results.rows():
        for proxy in results.proxies:
            figures = results.figures(case, row, proxy)
            spread = (max(figures) - min(figures)) / (abs(max(figures, key=abs)) or 1)
            if spread >= widest:
                widest, where = spread, f"{case.name}, {proxy.name}"
    return f"The rounds of a figure lie up to {widest:.0%} apart ({where})."


def show(figure: float) -> str:
    """A figure with three digits or more."""
    digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2
    return f"{figure:,.{digits}f}"


def _ratio(figure: float, base: float) -> str:
    return f"{figure / base:.2f}" if base > 0 else "-"


def _markdown(lines: list[list[str]]) -> str:
    """Lines of cells as a table; all but the first two columns are figures."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths[:2]]
    rule += ["-" * (width - 1) + ":" for width in widths[2:]]
    shown = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = [
            cell.rjust(width) if place >= 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        shown.append(f"| {' | '.join(cells)} |")
    return "\n".join(shown)
