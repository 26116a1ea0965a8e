"""The records of pods: the live ones, and the seats that outlive them.

A *seat* is what outlives a pod's lease: which identity has a key's number, the last record seen
of it, and whether it *left* (the tombstone that tells left from lost).
"""

import json
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.pod import Pod


@dataclass(frozen=True, slots=True)
class Seat:
    """The last identity to use a key. `idle` is when the sweep first found it unused, Unix s."""

    id: str
    nonce: str
    n: int | None
    seq: int
    left: bool = False
    idle: float | None = None

    def encode(self) -> bytes:
        """Return the seat as the store keeps it."""
        record: dict[str, JSON] = {
            "id": self.id,
            "nonce": self.nonce,
            "n": self.n,
            "seq": self.seq,
            "left": self.left,
        }
        if self.idle is not None:
            record["idle"] = self.idle
        return canonical(record)

    @classmethod
    def decode(cls, raw: bytes) -> "Seat":
        """Read what `encode` wrote."""
        return cls(**json.loads(raw))

    @classmethod
    def of(cls, pod: Pod, *, left: bool = False) -> "Seat":
        """Return the seat of a pod as it is."""
        return cls(pod.id, pod.nonce, pod.n, pod.seq, left)


@dataclass(frozen=True, slots=True)
class Live:
    """A pod that the store holds: its record, revision and lease."""

    pod: Pod
    revision: int
    lease: int
