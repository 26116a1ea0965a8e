"""The record of the layout itself: its version, and the floor of terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON
from kontrol.master.records.fields import MOST, Fields, Record
from kontrol.master.records.keys import SCHEMA


class Outdated(Exception):
    """The store's data were written by a later version of Kontrol."""


@dataclass(frozen=True, slots=True)
class Meta(Record):
    """The version of the data's layout, and the floor that is added to every term.

    A term is the creation revision of a key. Where the store went back to an earlier revision, the
    floor is raised, so that no term, nor any number of a run, is ever told twice.
    """

    floor: int = 0
    version: int = SCHEMA
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Meta":
        """Read what `encode` wrote. Raises `Outdated` for a later version, and `Damaged`.

        An absent floor is 0, an absent version the first.
        """
        found = Fields.of(raw)
        version = found.number("version", 1)
        if version > SCHEMA:  # before the rest, whose form the later version chose
            raise Outdated(
                f"the data in the store are of version {version}, and this master knows "
                f"versions up to {SCHEMA}: upgrade it"
            )
        return cls(found.number("floor", 0, most=2 * MOST), version, found.more)
