"""The ordered ensemble, its digest, and its difference from the pods of an acknowledged run.

Invariants: no two pods share a key or a sequence number, and they are in ascending order of `seq`.
A sequence number always belongs to one identity: pods with the same `seq` are the same pod.

An update costs as much as the change, not as the ensemble; the digest is computed when it is used.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.desired import SpecChanges
from kontrol.ensemble.pod import Pod


def digest_of(pods: Iterable[Pod]) -> str:
    """Return the digest of pods in order: MD5 of their canonical JSON, as colon-separated pairs.

    It detects changes, and is no protection. Users of the original know its form.
    """
    from hashlib import md5  # only masters hash; the settings import this module everywhere

    text = b"[" + b",".join(pod.canonical for pod in pods) + b"]"
    return md5(text, usedforsecurity=False).digest().hex(":")


class Ensemble:
    """The live pods. Iterating yields them in order of `seq`."""

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self._by_key: dict[str, Pod] = {}
        self._by_id: dict[str, set[str]] = {}
        self._order: list[tuple[int, str]] = []
        self._digest: str | None = None
        for pod in pods:
            self.put(pod)

    def __iter__(self) -> Iterator[Pod]:
        return (self._by_key[key] for _, key in self._order)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str) -> Pod | None:
        """Return the pod with this key, None if there is none."""
        return self._by_key.get(key)

    def with_id(self, pod_id: str) -> list[Pod]:
        """Return the pods with this id: at most one, except while one replaces another."""
        return [self._by_key[key] for key in sorted(self._by_id.get(pod_id, ()))]

    def put(self, pod: Pod) -> Pod | None:
        """Add a pod, or replace the one with its key; returns the replaced one."""
        before = self.remove(pod.key)
        self._by_key[pod.key] = pod
        self._by_id.setdefault(pod.id, set()).add(pod.key)
        insort(self._order, (pod.seq, pod.key))
        self._digest = None
        return before

    def remove(self, key: str) -> Pod | None:
        """Remove and return the pod with this key, None if there is none."""
        pod = self._by_key.pop(key, None)
        if pod is None:
            return None
        del self._order[bisect_left(self._order, (pod.seq, key))]
        keys = self._by_id[pod.id]
        keys.discard(key)
        if not keys:
            del self._by_id[pod.id]
        self._digest = None
        return pod

    @property
    def digest(self) -> str:
        """The digest of the present pods; computed once per change, when it is used."""
        if self._digest is None:
            self._digest = digest_of(self)
        return self._digest


@dataclass(frozen=True, slots=True)
class Member:
    """A pod as an acknowledged run saw it; `hash` changes with anything the callback sees.

    `mark` is that of `urgent.Urgent`; empty if there is none.
    """

    seq: int
    key: str
    id: str
    ip: str
    role: str
    hash: str
    mark: str = ""

    @classmethod
    def of(cls, pod: Pod, mark: str = "") -> "Member":
        """Return what is kept of a pod."""
        return cls(pod.seq, pod.key, pod.id, pod.ip, pod.role, pod.hash, mark)

    def public(self) -> dict[str, JSON]:
        """Return what the callback gets of a pod that changed."""
        return {
            "seq": self.seq,
            "key": self.key,
            "id": self.id,
            "ip": self.ip,
            "role": self.role,
        }


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference, each part in order of `seq`. `left` deregistered, `lost` did not.

    `spec` is that of the desired state.
    """

    joined: tuple[Member, ...] = ()
    left: tuple[Member, ...] = ()
    lost: tuple[Member, ...] = ()
    changed: tuple[Member, ...] = ()
    spec: SpecChanges = field(default_factory=SpecChanges)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self.lost or self.changed or self.spec)

    def __str__(self) -> str:
        kinds = {
            "joined": self.joined,
            "left": self.left,
            "lost": self.lost,
            "changed": self.changed,
        }
        parts = [f"{len(some)} {kind} ({names(some)})" for kind, some in kinds.items() if some]
        parts += [str(self.spec)] if self.spec else []
        return ", ".join(parts) or "nothing changed"

    def public(self) -> dict[str, JSON]:
        """Return the JSON object that the callback gets as `CHANGES`.

        It has `spec` only if the desired state changed: so all else in it are lists of pods for
        those who set none.
        """
        return {**self.of_pods(), "spec": self.spec.public()} if self.spec else self.of_pods()

    def of_pods(self) -> dict[str, JSON]:
        """Return the part of it that is about pods."""
        return {
            "joined": [member.public() for member in self.joined],
            "left": [member.public() for member in self.left],
            "lost": [member.public() for member in self.lost],
            "changed": [member.public() for member in self.changed],
        }


def names(members: Sequence[Member], most: int = 5) -> str:
    """Return the numbers and ids of the first `most` members, for a line of the log."""
    shown = ", ".join(f"#{member.seq} {member.id}" for member in members[:most])
    return shown if len(members) <= most else f"{shown}, ..."


def missing(applied: Iterable[Member], pods: Iterable[Pod]) -> list[Member]:
    """Return the members that are not among the live pods, in order of `seq`."""
    alive = {pod.seq for pod in pods}
    return sorted((m for m in applied if m.seq not in alive), key=lambda member: member.seq)


def difference(applied: Iterable[Member], pods: Iterable[Pod], left: AbstractSet[int]) -> Changes:
    """Compare the acknowledged pods with the live ones; `left` has the `seq` of those that left."""
    before = {member.seq: member for member in applied}
    now = {pod.seq: Member.of(pod) for pod in pods}
    gone = [before[seq] for seq in sorted(before.keys() - now.keys())]
    return Changes(
        joined=tuple(now[seq] for seq in sorted(now.keys() - before.keys())),
        left=tuple(member for member in gone if member.seq in left),
        lost=tuple(member for member in gone if member.seq not in left),
        changed=tuple(
            now[seq]
            for seq in sorted(now.keys() & before.keys())
            if now[seq].hash != before[seq].hash
        ),
    )
