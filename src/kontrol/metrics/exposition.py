"""Metrics in Prometheus' text format, version 0.0.4, from tables.

A row says what a metric is and how to read it from its source; the pages of the documentation are
made from the same rows. Names follow Prometheus' conventions: the unit at the end, in base units;
`_total` for what only rises.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

S = TypeVar("S")

Values = tuple[str, ...]
"""The values of a metric's labels, in the order of their names."""

Total = tuple[int, float]
"""What a summary tells: how many there were, and their sum."""


@dataclass(frozen=True)
class Metric(Generic[S]):
    """One metric of a source `S`.

    `read` returns a number, or None if there is none to tell now; with `labels`, pairs of their
    values and a number. A summary's numbers are `Total`s: it has no quantiles.
    """

    name: str
    kind: Literal["counter", "gauge", "summary"]
    help: str
    read: Callable[[S], "float | Total | Iterable[tuple[Values, float | Total]] | None"]
    labels: tuple[str, ...] = ()


def render(metrics: Iterable[Metric[S]], source: S) -> str:
    """Return the metrics of `source`, each with its help and type, in the order of the table."""
    return "".join(_family(metric, source) for metric in metrics)


def _family(metric: Metric[S], source: S) -> str:
    lines = [
        f"# HELP {metric.name} {_escape(metric.help)}\n",
        f"# TYPE {metric.name} {metric.kind}\n",
    ]
    for values, value in _samples(metric, source):
        pairs = zip(metric.labels, values, strict=True)
        inner = ",".join(f'{name}="{_quote(text)}"' for name, text in pairs)
        labels = f"{{{inner}}}" if inner else ""
        if isinstance(value, tuple):
            count, total = value
            lines.append(f"{metric.name}_sum{labels} {_number(total)}\n")
            lines.append(f"{metric.name}_count{labels} {count}\n")
        else:
            lines.append(f"{metric.name}{labels} {_number(value)}\n")
    return "".join(lines)


def _samples(metric: Metric[S], source: S) -> Iterable[tuple[Values, float | Total]]:
    found = metric.read(source)
    if found is None:
        return ()
    if isinstance(found, int | float):
        return (((), found),)
    if isinstance(found, tuple):
        return (((), found),)
    return found


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(+value)  # of True, 1


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quote(text: str) -> str:
    return _escape(text).replace('"', r"\"")
