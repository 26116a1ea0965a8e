"""Keepalives that say nothing new, recognised by their bytes.

Whether a keepalive says anything new depends on its text, and on what the mirror shows at its key
and under its id. So when a text was found to say nothing new, its digest stands for that until the
mirror shows anything else there: the same text need not be read again. Which connection it comes
from makes no difference, as it makes none for a text that is read.

What an agent of ours sends for a record that the mirror shows is known in advance: the record's
JSON without the number. So when the agents of another master come, their texts are known here.

Live facts are no part of such a text, however often they change: see `kontrol.ensemble.live`.

Invariants: for each text that is known, the mirror shows the record that it was compared with,
under the lease that is known for it, and no other record of its id. There is at most one for each
pod of the mirror, whatever is reported and however long it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from kontrol.ensemble.pod import MAX_BYTES, MAX_COUNTER, NONCE, Pod, key_of
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.store.protocol import Event

# A keepalive with one of these is read in another way than a record is; names may be escaped.
_OTHERWISE = (b'"down"', b'"named"', b'"live"', b"\\u")
_DIGEST = 16  # bytes: another text with the digest of one that is known cannot be found


@dataclass(slots=True, eq=False)
class KnownText:
    """A text that says nothing new of the pod with this `key` and `id`.

    `waiting` counts the keepalives that wait for a refresh of `lease`. `live` is the text of the
    live facts that came with it last, which are valid.
    """

    digest: bytes
    key: str
    id: str
    seq: int
    lease: int
    nonce: str = ""
    waiting: int = 0
    live: bytes = b""


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
        """Return what is known of this text, which is without live facts."""
        return self._by_digest.get(_digest(text))

    def learn(self, text: bytes, live: Live) -> None:
        """Remember that this text says nothing new of this pod.

        The mirror shows the pod now, and no other record of its id.
        """
        self._learn(_digest(text), live)

    def _learn(self, digest: bytes, live: Live) -> None:
        pod = live.pod
        self._forget(pod.key)
        known = KnownText(digest, pod.key, pod.id, pod.seq, live.lease, pod.nonce)
        self._by_key[pod.key] = self._by_digest[digest] = known

    def _forget(self, key: str) -> None:
        known = self._by_key.pop(key, None)
        if known is not None:
            del self._by_digest[known.digest]

    def _changed(self, events: Sequence[Event]) -> None:
        """Forget what the mirror does not show any more; it has taken the events already."""
        for event in events:
            key = event.kv.key.removeprefix(self._pods)
            self._forget(key)
            live = self._mirror.live(key)
            if live is None:
                continue
            same_id = self._mirror.ensemble.with_id(live.pod.id)
            for other in same_id:
                self._forget(other.key)
            if len(same_id) == 1 and (text := text_of(event.kv.value, live.pod)) is not None:
                self._learn(_digest(text), live)


def text_of(stored: bytes, pod: Pod) -> bytes | None:
    """Return the text of which a `stored` record was made: that without the number.

    None if it is not certain that the text says nothing new of `pod`, which is what `stored` says:
    the record may be of another version, or of another client of etcd.
    """
    number = b',"seq":%d' % pod.seq
    if stored.count(b'"seq"') != 1 or stored.count(number) != 1:
        return None  # it may be one of the payload
    if any(word in stored for word in _OTHERWISE) or len(stored) > MAX_BYTES:
        return None
    if not (pod.nonce == "" or NONCE.match(pod.nonce)) or (pod.n or 0) > MAX_COUNTER:
        return None
    if pod.key != key_of(pod.ip):
        return None
    return stored.replace(number, b"")


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST).digest()
