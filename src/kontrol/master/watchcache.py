"""A prefix of the store, kept up to date in memory: read, then watch from that revision plus one.

Whatever interrupts the watch, listeners see one sequence of changes without a gap: after a
compaction or a restore everything is read again, and the difference is delivered as events.

Two times tell how far the copy can be trusted: when the store last confirmed that nothing is
missing (`confirmed`), and since when it has answered without an outage (`recovered`), because time
without a store says nothing about the pods.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from kontrol.store.protocol import (
    Batch,
    Compacted,
    Denied,
    Event,
    KeyValue,
    Range,
    RangeResult,
    Restored,
    Store,
    StoreError,
    Unavailable,
    Watch,
)

log = logging.getLogger(__name__)

_VERIFY = 300.0  # seconds between two checks whether the watch missed anything
_PAUSE = 0.05  # seconds before the next attempt; doubled up to 1 s while the store is away

Listener = Callable[[Sequence[Event]], None]
OnRestore = Callable[[int], None]


class _Missed(Exception):
    """The watch did not deliver all events."""


class WatchCache:
    """Follows one prefix. `entries` maps full keys to their values.

    `revision` is the store's that `entries` shows, and `confirmed` the loop time of the newest
    question to the store whose answer showed that nothing was missing; minus infinity before the
    first. `complete` is set once everything was read for the first time. `restores` counts restores
    of the store. `silence` is the time in seconds without an answer that counts as an outage; it
    may be set at any time.
    """

    def __init__(
        self, store: Store, prefix: str, *, silence: float, verify: float = _VERIFY
    ) -> None:
        """Every `verify` seconds the keys are compared with the store's.

        Some releases of etcd lose events around a compaction, and a restore can change history
        below a watch that goes on.
        """
        self.entries: dict[str, KeyValue] = {}
        self.revision = 0
        self.restores = 0
        self.confirmed = float("-inf")
        self.complete = asyncio.Event()
        self.silence = silence
        self._store = store
        self._prefix = prefix
        self._seen = float("-inf")
        self._recovered = float("-inf")
        self._listeners: list[Listener] = []
        self._on_restore: list[OnRestore] = []
        self._cluster = 0
        self._verify = verify
        # What to compare with once the store has confirmed; None: read everything again.
        self._check: tuple[float, RangeResult | None] | None = None
        self._asked = asyncio.Event()

    @property
    def age(self) -> float:
        """Seconds since the store last confirmed that nothing is missing; infinite at first."""
        return asyncio.get_running_loop().time() - self.confirmed

    @property
    def current(self) -> bool:
        """Whether the store confirmed within `silence` that nothing is missing."""
        return self.complete.is_set() and self.age <= self.silence

    @property
    def recovered(self) -> float:
        """The loop time since which the store had no outage: the present time during one.

        Minus infinity before `entries` is complete.
        """
        now = asyncio.get_running_loop().time()
        silent = self.complete.is_set() and now - self._seen > self.silence
        return now if silent else self._recovered

    def listen(self, listener: Listener) -> None:
        """Call `listener` after each change of `entries`."""
        self._listeners.append(listener)

    def on_restore(self, listener: OnRestore) -> None:
        """Call `listener` when the store was restored, with the last revision known before."""
        self._on_restore.append(listener)

    async def run(self) -> None:
        """Follow until cancelled; while the store is unreachable, try again and again."""
        delay = 0.0
        while True:
            try:
                await self._read()
                if delay:
                    log.info("%s: the store answers", self._prefix)
                delay = 0.0
                await self._watch()
            except Compacted as error:
                log.info("%s: %s", self._prefix, error)
            except _Missed as missed:
                log.warning("%s: %s: reading everything again", self._prefix, missed)
            except Restored as error:
                self._restored(str(error))
                await asyncio.sleep(_PAUSE)  # members of two clusters may answer in turn
            except (Unavailable, Denied) as error:
                log.warning("%s: no answer from the store: %s", self._prefix, error)
                delay = min(1.0, delay * 2 or _PAUSE)
                await asyncio.sleep(delay)

    def check(self, read: RangeResult | None = None) -> None:
        """Have everything read again if the store confirms more than `entries` shows.

        That is a read of this prefix; None where another cache learned of a restore, which a watch
        that goes on may not show.
        """
        self._check = asyncio.get_running_loop().time(), read
        self._asked.set()

    def reached(self, read: RangeResult) -> bool:
        """Tell whether `entries` has all keys of `read` at its revisions or newer ones."""
        revision = read.header.revision
        seen = {kv.key: kv.mod_revision for kv in read.kvs}
        for key, modified in seen.items():
            entry = self.entries.get(key)
            if entry is None and self.revision <= revision:
                return False
            if entry is not None and entry.mod_revision < modified:
                return False
        return all(
            key in seen or entry.create_revision > revision for key, entry in self.entries.items()
        )

    async def _read(self) -> None:
        sent = asyncio.get_running_loop().time()
        self._check = None
        read = await self._store.range(Range(self._prefix, prefix=True))
        found = {kv.key: kv for kv in read.kvs}
        if self._cluster and (
            read.header.cluster != self._cluster
            or read.header.revision < self.revision
            or self._undone(found)
        ):
            self._restored("another cluster, or revisions that were known are gone")
        self._cluster = read.header.cluster
        events = [
            Event("delete", KeyValue(key, b"", 0, read.header.revision))
            for key in self.entries.keys() - found.keys()
        ]
        # After a restore the same value may be written at the same revision under another lease.
        events += [Event("put", kv) for key, kv in found.items() if self.entries.get(key) != kv]
        self.revision = read.header.revision
        self._mark_seen()
        self.confirmed = sent
        self._apply(events)
        if not self.complete.is_set():
            self._recovered = asyncio.get_running_loop().time()
            self.complete.set()
            self._notify(())

    def _undone(self, found: Mapping[str, KeyValue]) -> bool:
        """Tell whether a known write is undone.

        A restore may keep the cluster's id and raise the revision above all earlier ones
        (`etcdutl snapshot restore --bump-revision`).
        """
        return any(
            key in found and found[key].mod_revision < known.mod_revision
            for key, known in self.entries.items()
        )

    async def _watch(self) -> None:
        async with self._store.watch(
            self._prefix, prefix=True, start=self.revision + 1, cluster=self._cluster
        ) as watch:
            confirming = asyncio.create_task(self._confirm(watch))
            try:
                async for batch in watch:
                    self._take(batch)
            finally:
                confirming.cancel()
                await asyncio.wait([confirming])

    async def _confirm(self, watch: Watch) -> None:
        """Have the store confirm the watch, and every `verify` seconds read the keys to check."""
        loop = asyncio.get_running_loop()
        verify_at = loop.time() + self._verify
        keys = Range(self._prefix, prefix=True, keys_only=True)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.silence / 3):
                    await self._asked.wait()
            self._asked.clear()
            if loop.time() >= verify_at:
                with contextlib.suppress(StoreError):
                    read = await self._store.range(keys)
                    self._check, verify_at = (loop.time(), read), loop.time() + self._verify
            await watch.confirm()

    def _restored(self, why: str) -> None:
        log.warning("%s: the store was restored (%s): reading everything again", self._prefix, why)
        for listener in self._on_restore:
            listener(self.revision)
        self.restores += 1
        self.revision = 0
        self._cluster = 0

    def _take(self, batch: Batch) -> None:
        self._mark_seen()
        self.confirmed = max(self.confirmed, batch.confirmed)
        if batch.events:
            self.revision = batch.events[-1].kv.mod_revision
            self._apply(batch.events)
        if self._check is not None and self.confirmed >= self._check[0]:
            (_, read), self._check = self._check, None
            if read is None:
                raise _Missed("the store was restored, by another watch")
            if not self.reached(read):
                raise _Missed("the watch missed events")

    def _mark_seen(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._seen > self.silence:
            self._recovered = now
        self._seen = now

    def _apply(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.type == "put":
                self.entries[event.kv.key] = event.kv
            else:
                self.entries.pop(event.kv.key, None)
        if events:
            self._notify(events)

    def _notify(self, events: Sequence[Event]) -> None:
        for listener in self._listeners:
            listener(events)


def share_restores(*caches: WatchCache) -> None:
    """Have all of them read everything again when one learns that the store was restored.

    A watch that goes on over a restore shows what the store writes from then on, and not what the
    restore undid, once the revision of the restored store is above the one that it waits for.
    """
    for cache in caches:
        cache.on_restore(partial(_check, [other for other in caches if other is not cache]))


def _check(caches: Sequence[WatchCache], _revision: int) -> None:
    for cache in caches:
        cache.check()
