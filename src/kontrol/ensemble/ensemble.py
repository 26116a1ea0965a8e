"""The ordered ensemble: pods by key and by sequence number, with updates of O(change).

Invariant: no two pods share a key or a sequence number, and iteration is by ascending `seq`.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from kontrol.ensemble.pod import Pod


def digest_of(pods: Iterable[Pod]) -> str:
    """Return the digest of pods in order: MD5 of their canonical JSON, as colon-separated pairs.

    Not a matter of security: it tells a change, and the original's users know its form.
    """
    text = b"[" + b",".join(pod.canonical for pod in pods) + b"]"
    return hashlib.md5(text, usedforsecurity=False).digest().hex(":")


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
        """Return the pod with this key."""
        return self._by_key.get(key)

    def with_id(self, pod_id: str) -> list[Pod]:
        """Return the pods with this id: at most one, but while one replaces another."""
        return [self._by_key[key] for key in sorted(self._by_id.get(pod_id, ()))]

    def put(self, pod: Pod) -> Pod | None:
        """Add a pod, or replace the one with its key, which is returned."""
        before = self.remove(pod.key)
        self._by_key[pod.key] = pod
        self._by_id.setdefault(pod.id, set()).add(pod.key)
        insort(self._order, (pod.seq, pod.key))
        self._digest = None
        return before

    def remove(self, key: str) -> Pod | None:
        """Remove the pod with this key, which is returned."""
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
        """The digest of the pods as they are; computed once per change, when asked for."""
        if self._digest is None:
            self._digest = digest_of(self)
        return self._digest
