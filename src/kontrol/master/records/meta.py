"""The record of the layout itself: its version, and the floor of terms."""

import json
from dataclasses import asdict, dataclass

from kontrol.ensemble.canonical import canonical
from kontrol.master.records.keys import SCHEMA


class Outdated(Exception):
    """The store's data were written by a later version of Kontrol."""


@dataclass(frozen=True, slots=True)
class Meta:
    """The version of the data's layout, and the floor that is added to every term.

    A term is the creation revision of a key. Where the store went back to an earlier revision, the
    floor is raised, so that no term, nor any number of a run, is ever told twice.
    """

    floor: int = 0
    version: int = SCHEMA

    def encode(self) -> bytes:
        """Return the record as the store keeps it."""
        return canonical(asdict(self))

    @classmethod
    def decode(cls, raw: bytes) -> "Meta":
        """Read what `encode` wrote. Raises `Outdated` for a later version."""
        found = json.loads(raw)
        if found["version"] > SCHEMA:
            raise Outdated(
                f"the data in the store are of version {found['version']}, and this master knows "
                f"versions up to {SCHEMA}: upgrade it"
            )
        return cls(found["floor"], found["version"])
