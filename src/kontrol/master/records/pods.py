"""The records of pods: the live ones, and the seats that outlive them.

A *seat* is what outlives a pod's lease: which identity has a key's number, the last record seen
of it, and whether it *left* (the tombstone that tells left from lost).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.pod import Pod
from kontrol.master.records.fields import MOST, Damaged, Fields, Record

_SENDER = 256  # characters
_COUNTER = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Seat(Record):
    """The last identity to use a key.

    `nonce` is empty, and `n` None, where they are not known: no record is older than that. `idle`
    is when the sweep first found it unused, in Unix seconds by the leader's clock: for people. What
    counts is that it is set; how long ago that was, the revision tells (see `ages.py`). `sender` is
    who reported the record, as its connection told: for people.
    """

    id: str
    nonce: str
    n: int | None
    seq: int
    left: bool = False
    idle: float | None = None
    sender: str | None = None
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Seat":
        """Read what `encode` wrote. Raises `Damaged`."""
        return cls.of_fields(Fields.of(raw))

    @classmethod
    def of_fields(cls, found: Fields) -> "Seat":
        """Take a seat from its fields: without `id` and `seq` it is none. Raises `Damaged`."""
        return cls(
            id=found.text("id"),
            nonce=found.text("nonce", ""),
            n=found.maybe_number("n", most=2**63 - 1),
            seq=found.number("seq"),
            left=found.flag("left"),
            idle=found.maybe_seconds("idle"),
            sender=found.maybe_text("sender", most=_SENDER),
            more=found.more,
        )

    @classmethod
    def of(
        cls,
        pod: Pod,
        before: "Seat | None" = None,
        *,
        left: bool = False,
        sender: str | None = None,
    ) -> "Seat":
        """Return the seat of a pod as it is; of the same identity `before` it keeps `more`."""
        more = before.more if before is not None and before.id == pod.id else {}
        return cls(pod.id, pod.nonce, pod.n, pod.seq, left, sender=sender, more=more)


@dataclass(frozen=True, slots=True)
class Live:
    """A pod that the store holds: its record, revision and lease."""

    pod: Pod
    revision: int
    lease: int


def decode_counter(raw: bytes) -> int:
    """Read the next sequence number. Raises `Damaged`."""
    digits = raw.strip()
    if not _COUNTER.fullmatch(digits) or int(digits) > MOST:
        raise Damaged("the value", raw[:80], f"a whole number from 0 to {MOST}")
    return int(digits)
