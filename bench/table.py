"""Figures, and how they are printed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

HEAD = ("what", "measured", "limit, same run", "ratio", "goal", "the original")


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, the figure, the limit measured in the same run, the ancestor.

    `values` are the numbers of it, for programs, by names that end in their unit. `goal` is what
    the figure should be.
    """

    what: str
    figure: str
    limit: str = ""
    ratio: str = ""
    original: str = ""
    goal: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts in the order of `HEAD`."""
        return (self.what, self.figure, self.limit, self.ratio, self.goal, self.original)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(values: Sequence[float]) -> str:
    """Show seconds as p50 and p99 in ms, with how many there were."""
    p50, p99 = 1000 * statistics.median(values), 1000 * percentile(values, 0.99)
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms (n={len(values)})"


def quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the `values` of a row of seconds: p50 and p99 in ms."""
    return {
        f"{name}_p50_ms": 1000 * statistics.median(values),
        f"{name}_p99_ms": 1000 * percentile(values, 0.99),
    }


def columns(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the head and the rows, without the columns that are empty in all of them."""
    lines = [row.cells for row in rows]
    used = [number for number in range(len(HEAD)) if any(line[number] for line in lines)]
    return [tuple(line[number] for number in used) for line in (HEAD, *lines)]


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = columns(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}\n")
    for number, line in enumerate(table):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))
