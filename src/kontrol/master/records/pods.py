"""The records of pods: the live ones, the registrations that outlive them, and their ages. Pure.

A *registration* outlives a pod's lease. It holds which identity has a key's number, the order of
the last record seen of it, and whether it *left*: this tombstone distinguishes left from lost.

`Ages` says how old a registration is. No wall clock decides that: a single wrong one would make all
of them old. Age is counted in seconds that leaders have watched pass, each on a monotonic clock;
time without a leader does not count. A sample is the store's revision after so many seconds.

Invariant: a key last written at a revision up to `old(age)` has not changed for at least `age`
watched seconds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.live import MAX_LIVE
from kontrol.ensemble.pod import Pod
from kontrol.master.records.fields import HIGHEST_SECONDS, MOST, Damaged, Fields, Record

_SENDER = 256  # characters
_FACTS = 4 * MAX_LIVE  # bytes, with the names of the process, and what a later version adds
_COUNTER = re.compile(rb"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Registration(Record):
    """The last identity that used a key.

    `nonce` is empty and `n` is None where they are unknown: no record is older than that. `idle` is
    when the sweep first found it unused, in Unix seconds of the leader's clock, for people to see:
    only whether it is set decides, and its revision says how long ago that was (see `Ages`).
    `sender` is the text of the record's sender, for people to see.
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
    def decode(cls, raw: bytes) -> "Registration":
        """Read what `encode` wrote. Raises `Damaged`."""
        return cls.of_fields(Fields.of(raw))

    @classmethod
    def of_fields(cls, found: Fields) -> "Registration":
        """Make a registration of its fields. Raises `Damaged` without `id` or `seq`."""
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
        before: "Registration | None" = None,
        *,
        left: bool = False,
        sender: str | None = None,
    ) -> "Registration":
        """Return the registration of a pod. It keeps the `more` of the same identity's `before`."""
        more = before.more if before is not None and before.id == pod.id else {}
        return cls(pod.id, pod.nonce, pod.n, pod.seq, left, sender=sender, more=more)


@dataclass(frozen=True, slots=True)
class Live:
    """A pod in the store: its record, revision and lease."""

    pod: Pod
    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Facts(Record):
    """What the process `nonce` of the pod `id` reported last beside its record: its live facts.

    They are of no other process, so whatever is left of a former one is not shown.
    """

    id: str
    nonce: str
    live: JSON
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Facts":
        """Read what `encode` wrote. Raises `Damaged`."""
        if len(raw) > _FACTS:
            raise Damaged("the value", f"{len(raw)} bytes", f"at most {_FACTS}")
        found = Fields.of(raw)
        name, nonce = found.text("id"), found.text("nonce", "")
        return cls(name, nonce, found.more.pop("live", None), found.more)

    def of(self, pod: Pod) -> bool:
        """Tell whether they are of this pod's present process."""
        return self.live is not None and (self.id, self.nonce) == (pod.id, pod.nonce)

    def beside(self, pod: Pod) -> dict[str, JSON]:
        """Return what the callback and operators see of their pod."""
        return {**pod.public(), "live": self.live}


def decode_counter(raw: bytes) -> int:
    """Read the next sequence number. Raises `Damaged`."""
    digits = raw.strip()
    if not _COUNTER.fullmatch(digits) or int(digits) > MOST:
        raise Damaged("the value", raw[:80], f"a whole number from 0 to {MOST}")
    return int(digits)


_PARTS = 48  # of an age: samples are at least one part away from each other


@dataclass(frozen=True, slots=True)
class Ages(Record):
    """`watched` seconds in all, and `samples` of (seconds watched, revision), the oldest first.

    Revisions are those of one etcd cluster: `cluster` is its id, 0 if unknown.
    """

    cluster: int = 0
    watched: float = 0.0
    samples: tuple[tuple[float, int], ...] = ()
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Ages":
        """Read what `encode` wrote. Raises `Damaged`."""
        found = Fields.of(raw)
        watched = found.maybe_seconds("watched") or 0.0
        rows = found.more.pop("samples", None)
        if rows is None:
            rows = []
        if not isinstance(rows, list):
            raise Damaged("samples", rows, "a list of samples")
        cluster = found.number("cluster", 0, most=2**64)
        return cls(cluster, watched, tuple(_sample(row) for row in rows), found.more)

    def public(self) -> dict[str, JSON]:
        """Return it as JSON."""
        samples: list[JSON] = [[seconds, revision] for seconds, revision in self.samples]
        own: dict[str, JSON] = {"cluster": self.cluster, "watched": self.watched}
        return {**self.more, **own, "samples": samples}

    def within(self, cluster: int, revision: int) -> "Ages":
        """Return the part of this that is true of a cluster that is now at `revision`.

        A copy in another cluster, and a store that was restored, have other revisions.
        """
        true = [
            one
            for one in self.samples
            if cluster == self.cluster and one[0] <= self.watched and one[1] <= revision
        ]
        return replace(self, cluster=cluster, samples=tuple(true))

    def after(self, watched: float, revision: int, *, age: float) -> "Ages":
        """Return the ages after `watched` seconds in all, when the store is at `revision`.

        The samples that ages up to `age`, in seconds, need are kept: about fifty.
        """
        known = [one for one in self.samples if one[0] < watched]
        if not known or watched - known[-1][0] >= age / _PARTS:
            known.append((watched, revision))
        while len(known) > 1 and known[1][0] <= watched - age:
            del known[0]
        return replace(self, watched=watched, samples=tuple(known))

    def old(self, age: float) -> int:
        """Return the highest revision that is at least `age` watched seconds old, 0 if none is."""
        return max((r for seconds, r in self.samples if seconds <= self.watched - age), default=0)


def _sample(row: JSON) -> tuple[float, int]:
    match row:
        case [int() | float() as seconds, int() as revision]:
            flags = isinstance(seconds, bool) or isinstance(revision, bool)
            if not flags and 0 <= seconds <= HIGHEST_SECONDS:
                return float(seconds), revision
    raise Damaged("a sample", row, "seconds and a revision")
