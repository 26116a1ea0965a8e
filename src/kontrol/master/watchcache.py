"""A prefix of the store, kept up to date in memory: read, then watch from that revision plus one.

Whatever interrupts the watch, the owner sees one gapless sequence of changes: after a compaction
or a restore everything is read again, and the difference is told as events. Two questions matter
to the owner besides: how long ago the store last confirmed that nothing is missing (`confirmed`),
and since when it has been in touch without a long silence (`recovered`), because the time without
a store says nothing about the pods.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

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

_VERIFY = 300.0  # seconds between two looks whether the watch missed anything
_PAUSE = 0.05  # seconds before another try; doubled up to a second while the store is away

Listener = Callable[[Sequence[Event]], None]
OnRestore = Callable[[int], None]


class _Missed(Exception):
    """The watch did not deliver all events."""


class WatchCache:
    """Follows one prefix. `entries` maps full keys to their values; listeners hear each change."""

    def __init__(
        self, store: Store, prefix: str, *, silence: float, verify: float = _VERIFY
    ) -> None:
        """`silence` is the time in seconds without a sign of life that counts as an outage.

        It may be set anew at any time. Every `verify` seconds the keys are compared with the
        store's: releases of etcd can lose events around a compaction, and a restore can change
        history beneath a watch that goes on.
        """
        self.entries: dict[str, KeyValue] = {}
        self.revision = 0
        self.restores = 0  # of the store, that were noticed
        self.confirmed = float("-inf")
        self.complete = asyncio.Event()
        self._store = store
        self._prefix = prefix
        self.silence = silence
        self._heard = float("-inf")
        self._recovered = float("-inf")
        self._listeners: list[Listener] = []
        self._on_restore: list[OnRestore] = []
        self._cluster = 0
        self._verify = verify
        self._check: tuple[float, RangeResult] | None = None  # what to compare, once confirmed

    @property
    def recovered(self) -> float:
        """The loop time since which the store was never silent for long; now, if it is silent.

        Minus infinity before `entries` is complete.
        """
        now = asyncio.get_running_loop().time()
        silent = self.complete.is_set() and now - self._heard > self.silence
        return now if silent else self._recovered

    def listen(self, listener: Listener) -> None:
        """Call `listener` after each change of `entries`."""
        self._listeners.append(listener)

    def on_restore(self, listener: OnRestore) -> None:
        """Call `listener` when the store went back, with the last revision known from before."""
        self._on_restore.append(listener)

    async def run(self) -> None:
        """Follow until cancelled; an unreachable store is waited for."""
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
            except _Missed:
                log.warning("%s: the watch missed events: reading everything again", self._prefix)
            except Restored as error:
                self._went_back(str(error))
                await asyncio.sleep(_PAUSE)  # members of two clusters may answer in turn
            except (Unavailable, Denied) as error:
                log.warning("%s: no answer from the store: %s", self._prefix, error)
                delay = min(1.0, delay * 2 or _PAUSE)
                await asyncio.sleep(delay)

    def reached(self, read: RangeResult) -> bool:
        """Tell whether all that `read` saw is known here, or newer; values are not looked at."""
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
        asked = asyncio.get_running_loop().time()
        read = await self._store.range(Range(self._prefix, prefix=True))
        found = {kv.key: kv for kv in read.kvs}
        if self._cluster and (
            read.header.cluster != self._cluster
            or read.header.revision < self.revision
            or self._undone(found)
        ):
            self._went_back("another cluster, or revisions that were known are gone")
        self._cluster = read.header.cluster
        events = [
            Event("delete", KeyValue(key, b"", 0, read.header.revision))
            for key in self.entries.keys() - found.keys()
        ]
        # After a restore the same value may be written at the same revision under another lease.
        events += [Event("put", kv) for key, kv in found.items() if self.entries.get(key) != kv]
        self.revision = read.header.revision
        self._hear()
        self.confirmed = asked
        self._apply(events)
        if not self.complete.is_set():
            self._recovered = asyncio.get_running_loop().time()
            self.complete.set()
            self._tell(())

    def _undone(self, found: Mapping[str, KeyValue]) -> bool:
        """Tell whether a write that is known here is undone.

        A restore may keep the cluster's id, and raise the revision above all that was
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
            asking = asyncio.create_task(self._ask(watch))
            try:
                async for batch in watch:
                    self._take(batch)
            finally:
                asking.cancel()
                await asyncio.wait([asking])

    async def _ask(self, watch: Watch) -> None:
        """Ask for signs of life, and from time to time for what there is to be known."""
        loop = asyncio.get_running_loop()
        self._check, verify_at = None, loop.time() + self._verify
        keys = Range(self._prefix, prefix=True, keys_only=True)
        while True:
            await asyncio.sleep(self.silence / 3)
            if loop.time() >= verify_at:
                with contextlib.suppress(StoreError):
                    read = await self._store.range(keys)
                    self._check, verify_at = (loop.time(), read), loop.time() + self._verify
            await watch.confirm()

    def _went_back(self, why: str) -> None:
        log.warning("%s: the store was restored (%s): reading everything again", self._prefix, why)
        for listener in self._on_restore:
            listener(self.revision)
        self.restores += 1
        self.revision = 0
        self._cluster = 0

    def _take(self, batch: Batch) -> None:
        self._hear()
        self.confirmed = max(self.confirmed, batch.confirmed)
        if batch.events:
            self.revision = batch.events[-1].kv.mod_revision
            self._apply(batch.events)
        if self._check is not None and self.confirmed >= self._check[0]:
            (_, read), self._check = self._check, None
            if not self.reached(read):
                raise _Missed

    def _hear(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._heard > self.silence:
            self._recovered = now
        self._heard = now

    def _apply(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.type == "put":
                self.entries[event.kv.key] = event.kv
            else:
                self.entries.pop(event.kv.key, None)
        if events:
            self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        for listener in self._listeners:
            listener(events)
