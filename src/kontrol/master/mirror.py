"""The mirror: the live pods as the store has them, in memory on every master.

Each part answers for itself: `cache` is the copy of the store and how far it can be trusted, the
`damper` says when the changes have come to rest, and the `history` when they came. Every master
keeps all three, so a new leader goes on where the previous one was.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from kontrol.ensemble.ensemble import Ensemble
from kontrol.ensemble.holds import Damper
from kontrol.ensemble.pod import Keepalive
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import Event, Store

_CLOSE = 0.25  # seconds; changes that begin within this time are kept as one
_MOST = 4096  # entries: a quarter of an hour of constant change, and any time of rare changes


class History:
    """When changes came, so that people can see how long one has been waiting.

    A run is recorded with the store's revision of its pods: later changes have not been acted on.
    Every master notes them by its own clock, in seconds, so the answer outlives a leader and needs
    no agreement between clocks.
    """

    def __init__(self) -> None:
        # Last revision, first time, and the digest after it where it is known, else "".
        self._entries: deque[tuple[int, float, str]] = deque(maxlen=_MOST)

    @property
    def revision(self) -> int:
        """The revision of the newest change, 0 before the first."""
        return self._entries[-1][0] if self._entries else 0

    @property
    def newest(self) -> float:
        """The time at which the newest change began, minus infinity before the first."""
        return self._entries[-1][1] if self._entries else float("-inf")

    def changed(self, revision: int, now: float, digest: str = "") -> None:
        """Note a change that came with `revision` at the time `now`.

        `digest` is that of the pods after it. A first read needs it: what it shows came at unknown
        times before, and is no change to a run that was for exactly these pods.
        """
        if self._entries and now - self.newest < _CLOSE:
            now = self._entries.pop()[1]
        self._entries.append((revision, now, digest))

    def after(self, revision: int, digest: str = "") -> float | None:
        """Return the time of the first known change after `revision`, None if there was none.

        `digest` is that of the pods at `revision`, if known.
        """
        return next(
            (
                time
                for last, time, known in self._entries
                if last > revision and not (known and known == digest)
            ),
            None,
        )

    def clear(self) -> None:
        """Forget everything: the store was restored to an earlier revision."""
        self._entries.clear()


class Mirror:
    """The ordered ensemble of live pods.

    `version` rises with every change that the callback can see. `left_out` has the keys of records
    that are not shown as pods: they are damaged, or have names that a callback must not see.
    `size` is the bytes of all records, `highest` the highest sequence number seen, -1 at first.
    """

    def __init__(self, store: Store, records: Records, *, ttl: float, damper: Damper) -> None:
        """`ttl` is the tier's, in seconds; see `set_ttl`."""
        self.cache = WatchCache(store, records.keys.pods, silence=ttl / 3)
        self.damper = damper
        self.history = History()
        self.ensemble = Ensemble()
        self.version = 0
        self.left_out: set[str] = set()
        self.size = 0
        self.highest = -1
        self._sizes: dict[str, int] = {}
        self._higher = asyncio.Event()
        self._records = records
        self._keys = records.keys
        self.cache.listen(self._take)
        self.cache.on_restore(lambda _: self.history.clear())

    def set_ttl(self, ttl: float) -> None:
        """Use another TTL, in seconds: an outage is a third of it without a sign of the store."""
        self.cache.silence = ttl / 3

    def live(self, key: str) -> Live | None:
        """Return the pod with this key, with its revision and lease."""
        pod = self.ensemble.get(key)
        kv = self.cache.entries.get(self._keys.pod(key))
        return None if pod is None or kv is None else Live(pod, kv.mod_revision, kv.lease)

    def elsewhere(self, record: Keepalive) -> tuple[Live, ...]:
        """Return live pods with the record's id at other keys: none, unless the pod moved.

        At most two; the next keepalive handles the rest.
        """
        pods = [pod for pod in self.ensemble.with_id(record.id) if pod.key != record.key]
        return tuple(live for pod in pods[:2] if (live := self.live(pod.key)) is not None)

    @property
    def records(self) -> int:
        """The number of records, including those that are left out."""
        return len(self._sizes)

    async def numbered(self, number: int) -> None:
        """Wait until a sequence number of at least `number` was seen."""
        while self.highest < number:
            await self._higher.wait()

    def size_of(self, key: str) -> int:
        """Return the bytes of the record with this key, 0 if there is none."""
        return self._sizes.get(key, 0)

    def _take(self, events: Sequence[Event]) -> None:
        changed = not self.version  # what the first read shows may not have been acted on
        for event in events:
            key = event.kv.key.removeprefix(self._keys.pods)
            self.left_out.discard(key)
            self.size -= self._sizes.pop(key, 0)
            if event.type == "delete":
                changed |= self.ensemble.remove(key) is not None
                continue
            self._sizes[key] = len(event.kv.value)
            self.size += len(event.kv.value)
            live = self._records.pod(event.kv)
            if live is None:
                self.left_out.add(key)
                changed |= self.ensemble.remove(key) is not None
            else:
                if live.pod.seq > self.highest:
                    self.highest = live.pod.seq
                    self._higher.set()
                    self._higher.clear()
                before = self.ensemble.put(live.pod)
                changed |= before is None or before.canonical != live.pod.canonical
        if changed:
            self.version += 1
            now = asyncio.get_running_loop().time()
            self.damper.changed(now)
            first = not self.history.revision
            digest = self.ensemble.digest if first else ""
            self.history.changed(self.cache.revision, now, digest)
