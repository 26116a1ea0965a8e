"""The table of survivors that are explained: `survivors.toml`.

An entry gives a reason, and the mutants that it is for: their names, each with the code that is
changed, so that a name does not slide to another place unnoticed.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("survivors.toml")


@dataclass(frozen=True, slots=True)
class Explained:
    """A mutant that may survive: why, and of which code."""

    name: str
    before: str
    reason: str

    @property
    def file(self) -> str:
        """The part of the name that says where the file is."""
        return self.name.partition(":")[0]


def read(path: Path = TABLE) -> dict[str, Explained]:
    """Return the table by name. Raises `ValueError` for one that is explained twice."""
    table: dict[str, Explained] = {}
    for entry in tomllib.loads(path.read_text("utf-8")).get("explained", []):
        for name, before in entry["mutants"].items():
            if name in table:
                raise ValueError(f"{path} explains {name} twice: leave one of the entries")
            table[name] = Explained(name, before, entry["reason"])
    return table


def outdated(table: Mapping[str, Explained], code: Mapping[str, str]) -> Iterator[str]:
    """Say what is wrong with a table, given the code that each mutant changes, by its name."""
    for one in table.values():
        if one.name not in code:
            yield f"{one.name} is explained, and there is no such mutant: remove it"
        elif code[one.name] != one.before:
            yield (
                f"{one.name} is explained as a change of `{one.before}`, and is now one of "
                f"`{code[one.name]}`: explain that, or move the entry"
            )
