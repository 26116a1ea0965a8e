"""The mirror: the live pods as the store has them, in memory on every master.

Built on a `WatchCache`, so it misses nothing. It also keeps the damper, on every master, so that a
new leader goes on where the old one was.

When changes came, so that people can be told how long one has been waiting. Pure.

A run is recorded with the revision that its pods were of; whatever came after it has not been acted
on. Every master keeps this on its own mirror and its own clock, so the answer outlives a leader and
needs no agreement between clocks.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from kontrol.ensemble.ensemble import Ensemble
from kontrol.ensemble.holds import Damper
from kontrol.ensemble.pod import Keepalive
from kontrol.master.records.pods import Live
from kontrol.master.records.records import Records
from kontrol.master.watchcache import OnRestore, WatchCache
from kontrol.store.protocol import Event, RangeResult, Store


class Mirror:
    """The ordered ensemble, its damper, and how much of both can be trusted.

    `version` rises with every change that the callback could see; `history` has their times.
    `left_out` are the keys of records that are no pods: they cannot be read, or have names that a
    callback must not see.
    `size` is the bytes of all records, `highest` the highest sequence number that was seen.
    """

    def __init__(self, store: Store, records: Records, *, ttl: float, damper: Damper) -> None:
        """`ttl` in seconds is the tier's; see `set_ttl`."""
        self.ensemble = Ensemble()
        self.damper = damper
        self.version = 0
        self.left_out: set[str] = set()
        self.history = History()
        self.size = 0
        self._sizes: dict[str, int] = {}
        self.highest = -1
        self._higher = asyncio.Event()
        self._records = records
        self._keys = keys = records.keys
        self._ttl = ttl
        self._follower = WatchCache(store, keys.pods, silence=ttl / 3)
        self._follower.listen(self._take)
        self._follower.on_restore(lambda _: self.history.clear())

    def set_ttl(self, ttl: float) -> None:
        """Go by another TTL, in seconds."""
        self._ttl = ttl
        self._follower.silence = ttl / 3

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await self._follower.run()

    @property
    def complete(self) -> asyncio.Event:
        """Set once everything was read for the first time."""
        return self._follower.complete

    @property
    def current(self) -> bool:
        """Whether the store confirmed within TTL/3 that nothing is missing here."""
        return self.complete.is_set() and self.age <= self._ttl / 3

    @property
    def age(self) -> float:
        """Seconds since the store last confirmed that nothing is missing; at first infinite."""
        return asyncio.get_running_loop().time() - self._follower.confirmed

    @property
    def revision(self) -> int:
        """The store's revision that this shows."""
        return self._follower.revision

    @property
    def restores(self) -> int:
        """How often the store was seen to go back."""
        return self._follower.restores

    @property
    def recovered(self) -> float:
        """The loop time at which this first was complete, or came back from an outage."""
        return self._follower.recovered

    def reached(self, read: RangeResult) -> bool:
        """Tell whether all that a read of the pods saw is known here."""
        return self._follower.reached(read)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change in the store, whether the callback could see it."""
        self._follower.listen(lambda _: listener())

    def on_restore(self, listener: OnRestore) -> None:
        """Call `listener` when the store went back, with the last revision known from before."""
        self._follower.on_restore(listener)

    def live(self, key: str) -> Live | None:
        """Return the pod with this key, with its revision and lease."""
        pod = self.ensemble.get(key)
        kv = self._follower.entries.get(self._keys.pod(key))
        return None if pod is None or kv is None else Live(pod, kv.mod_revision, kv.lease)

    def elsewhere(self, record: Keepalive) -> tuple[Live, ...]:
        """Return the live pods under the record's id at other keys: none, but when it moved.

        No more than two at once; the next keepalive sees to the rest.
        """
        pods = [pod for pod in self.ensemble.with_id(record.id) if pod.key != record.key]
        return tuple(live for pod in pods[:2] if (live := self.live(pod.key)) is not None)

    @property
    def records(self) -> int:
        """How many records there are, those that are left out among them."""
        return len(self._sizes)

    async def numbered(self, number: int) -> None:
        """Wait until a sequence number was seen that is as high."""
        while self.highest < number:
            await self._higher.wait()

    def size_of(self, key: str) -> int:
        """Return the bytes of the record with this key, 0 if there is none."""
        return self._sizes.get(key, 0)

    def _take(self, events: Sequence[Event]) -> None:
        changed = not self.version  # the first reading may be of what nobody acted on yet
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
            self.history.changed(self._follower.revision, now, digest)


_CLOSE = 0.25  # seconds; changes that begin within this are kept as one
_MOST = 4096  # entries: a quarter of an hour of constant change, and any time of rare changes


class History:
    """The times of changes, by the store's revision; times are of a clock of the caller."""

    def __init__(self) -> None:
        # Last revision, first time, and the digest after it where that is known, else "".
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

        `digest` is that of the pods after it. It is needed for a first reading, which shows what
        came at unknown times before, and is no change for whoever acted on exactly these pods.
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
        """Forget everything: the store went back, and counts its revisions anew."""
        self._entries.clear()
