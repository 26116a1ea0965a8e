"""The tables of benchmarks, from the JSON of their runs. No Sphinx in here: a test reads it too.

`python -m bench --json docs/figures` renews all of them.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "figures"
sys.path.append(str(FOLDER.parents[1]))

from bench.__main__ import BENCHES  # noqa: E402 - found through the line above
from bench.plot import fleet  # noqa: E402
from bench.table import Row, columns  # noqa: E402

Run = Mapping[str, Any]


def runs() -> Iterator[Run]:
    """Yield the runs that there are, in the order of the benchmarks."""
    for name in BENCHES:
        path = FOLDER / f"{name}.json"
        if path.exists():
            yield json.loads(path.read_text(encoding="utf-8"))


def render() -> str:
    """Return reStructuredText: a section for each run."""
    return "\n".join(line for run in runs() for line in section(run))


def section(run: Run) -> Iterator[str]:
    """Yield the lines of one run."""
    title, name = run["title"], run["bench"]
    yield from (title, "-" * len(title), "")
    yield from (f"``python -m bench {name}``: {BENCHES[name]}.", "")
    yield from (".. list-table::", "   :header-rows: 1", "")
    for line in columns([Row(**row) for row in run["rows"]]):
        for number, cell in enumerate(line):
            yield f"   {'* -' if number == 0 else '  -'} {_text(cell)}".rstrip()
    yield from ("", measured_on(run["environment"]), "")
    if name == "fleet":
        points = [row["values"] for row in run["rows"]]
        yield from (".. raw:: html", "")
        yield from (f"   {line}" for line in fleet(points).splitlines())
        yield ""


def measured_on(where: Mapping[str, Any]) -> str:
    """Return what a run was measured on, in a line."""
    return (
        f"{where['date'][:10]}: {where['cores']} cores of {where['cpu']},"
        f" {where['memory_gb']} GB, {where['system']} {where['kernel']}; Kontrol {where['git']},"
        f" Python {where['python']}, etcd {where['etcd']}. Load {where['load']:g}."
    )


def _text(cell: str) -> str:
    """Return a cell of a table as reStructuredText."""
    return cell.strip().replace("\\", "\\\\").replace("*", "\\*").replace("`", "``")
