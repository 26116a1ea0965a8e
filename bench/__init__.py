"""Benchmarks: `python -m bench --list`. Each prints a table; none decides a test.

A benchmark is a module with a `TITLE`, its `OPTIONS`, and `run`, which takes them by name and
returns rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bench.table import Row

Value = int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its default, what it is with `--quick`, and its help."""

    default: Value
    quick: Value
    help: str


class Bench(Protocol):
    """The module of a benchmark."""

    TITLE: str
    OPTIONS: Mapping[str, Option]

    async def run(self, **options: Any) -> list[Row]:  # noqa: ANN401 - each has its own
        """Measure."""
        ...
