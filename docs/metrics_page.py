"""The metrics page's tables, from those in the code. No Sphinx in here: tests read them too."""

from collections.abc import Iterable, Sequence
from typing import Any

from kontrol.agent import health
from kontrol.master.operator import metrics
from kontrol.metrics import PROCESS, Metric
from kontrol.web.web import WEB

TABLES: tuple[tuple[str, Sequence[Metric[Any]]], ...] = (
    ("Every process", PROCESS),
    ("Agents", health.METRICS),
    ("Masters", metrics.METRICS),
    ("The REST endpoint", WEB),
)


def render(tables: Iterable[tuple[str, Sequence[Metric[Any]]]] = TABLES) -> str:
    """Return reStructuredText: a section for each table, an entry for each metric."""
    lines: list[str] = []
    for title, rows in tables:
        lines += [title, "-" * len(title), ""]
        for metric in rows:
            labels = ", ".join(f"``{name}``" for name in metric.labels)
            kind = f"*{metric.kind}*, by {labels}" if labels else f"*{metric.kind}*"
            text = metric.help.replace("`", "``")
            lines += [f"``{metric.name}``", f"   {kind}. {text}"]
            lines.append("")
    return "\n".join(lines)
