"""Keepalives that say nothing new, recognised by their bytes.

Whether a keepalive says anything new depends on its text, and on what the mirror shows at its key
and under its id. So when a text was found to say nothing new, its digest stands for that until the
mirror shows anything else there: the same text need not be read again. Which connection it comes
from makes no difference, as it makes none for a text that is read.

Invariants: for each text that is known, the mirror shows the record that it was compared with,
under the lease that is known for it, and no other record of its id. There is at most one for each
pod of the mirror, whatever is reported and however long it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from kontrol.ensemble.pod import Keepalive
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.store.protocol import Event

_DIGEST = 16  # bytes: another text with the digest of one that is known cannot be found


@dataclass(slots=True, eq=False)
class KnownText:
    """A text that says nothing new of the pod with this `key` and `id`.

    `waiting` counts the keepalives that wait for a refresh of `lease`.
    """

    digest: bytes
    key: str
    id: str
    seq: int
    lease: int
    waiting: int = 0


class KnownTexts:
    """The texts that are known, each by its digest."""

    def __init__(self, mirror: Mirror, pods: str) -> None:
        """`pods` is what the keys of pods in the store begin with."""
        self._mirror = mirror
        self._pods = pods
        self._by_digest: dict[bytes, KnownText] = {}
        self._by_key: dict[str, KnownText] = {}
        mirror.cache.listen(self._changed)

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, text: bytes) -> KnownText | None:
        """Return what is known of this text."""
        return self._by_digest.get(_digest(text))

    def learn(self, text: bytes, record: Keepalive, live: Live) -> None:
        """Remember that `text`, which is `record`, says nothing new of this pod.

        The mirror shows the pod now, and no other record of its id.
        """
        self._forget(record.key)
        known = KnownText(_digest(text), record.key, record.id, live.pod.seq, live.lease)
        self._by_key[record.key] = self._by_digest[known.digest] = known

    def _forget(self, key: str) -> None:
        known = self._by_key.pop(key, None)
        if known is not None:
            del self._by_digest[known.digest]

    def _changed(self, events: Sequence[Event]) -> None:
        """Forget what the mirror does not show any more; it has taken the events already."""
        for event in events:
            key = event.kv.key.removeprefix(self._pods)
            self._forget(key)
            pod = self._mirror.ensemble.get(key)
            if pod is not None:
                for other in self._mirror.ensemble.with_id(pod.id):
                    self._forget(other.key)


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST).digest()
