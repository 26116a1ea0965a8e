"""Figures, and how they are printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, the figure, the limit measured in the same run, the ancestor."""

    what: str
    figure: str
    limit: str = ""
    ratio: str = ""
    original: str = ""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float]) -> str:
    """Show seconds as p50 and p99 in ms, with how many there were."""
    p50, p99 = 1000 * statistics.median(values), 1000 * percentile(values, 0.99)
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (n={len(values)})"


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    head = Row("what", "measured", "limit, same run", "ratio", "the original")
    table = [[row.what, row.figure, row.limit, row.ratio, row.original] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    print(f"\n{title}\n")
    for number, line in enumerate(table):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))
