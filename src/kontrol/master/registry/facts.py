"""Live facts on their way to the leader: each in a key of its own, under its pod's lease.

A pod reports to any one master, and the leader needs what all of them report. Facts may change with
every keepalive, so they are not written as they come: what waits is replaced by what comes later,
and a master writes so many bytes in a second and no more, those that have waited the longest first.
In etcd, which keeps the history of an hour or more, this bounds their share, however many pods
there are and however often they report.

Nothing waits for these writes, and what fails is dropped: the next keepalive brings newer facts.

Invariant: facts that a pod goes on reporting here are written, or were within the last `_AGAIN`
TTLs. (What is unchanged is written again then: another master's write may have come late.)
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.live import NO_FACTS, parse_live
from kontrol.master.records.keys import Keys
from kontrol.master.records.pods import Facts
from kontrol.store.protocol import Delete, LeaseGone, Put, Store, StoreError

log = logging.getLogger(__name__)

LIVE_RATE = 32 * 1024  # bytes per second, `OVERHEAD` for each pod included
OVERHEAD = 256  # bytes that etcd keeps of each write besides its value
_BATCH = 100  # pods
_BATCH_BYTES = 256 * 1024
_PAUSE = 0.25  # seconds between batches, in which more facts come
_FAILED = 2.0  # seconds after a batch that failed
_AGAIN = 10  # TTLs
_NONE = NO_FACTS.encode()


@dataclass(frozen=True, slots=True)
class Reported:
    """The live facts `text`, as a process of a pod reported them; `lease` is the pod's."""

    id: str
    nonce: str
    lease: int
    text: bytes

    def value(self) -> JSON:
        """Return the facts, None if there are none any more."""
        return parse_live(self.text)


class FactsWriter:
    """Writes what is reported, while `run` is running. `written` counts the pods of all batches."""

    def __init__(self, store: Store, keys: Keys, *, ttl: Callable[[], float]) -> None:
        """`ttl` returns the tier's, in seconds."""
        self.written = 0
        self._store = store
        self._keys = keys
        self._ttl = ttl
        self._waiting: dict[str, Reported] = {}  # by key, the longest waiting first
        # By key, with the loop time at which they were taken to be written, the first first.
        self._written: OrderedDict[str, tuple[Reported, float]] = OrderedDict()
        self._some = asyncio.Event()

    def report(self, key: str, reported: Reported) -> None:
        """Have the facts of an accepted keepalive written, unless they are already.

        Its agent has another connection if it says nothing of them (`text` is empty). Then it may
        have reported others to another master meanwhile.
        """
        if not reported.text:
            self._written.pop(key, None)
            return
        before, at = self._written.get(key, (None, 0.0))
        if before == reported and asyncio.get_running_loop().time() - at < _AGAIN * self._ttl():
            self._waiting.pop(key, None)
            return
        self._waiting[key] = reported  # a key that waits keeps its place
        self._some.set()

    def forget(self) -> None:
        """Write everything again that is reported from now on: the store was restored."""
        self._written.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            batch, size = self._take()
            pause = max(_PAUSE, size / LIVE_RATE)
            try:
                await self._write(batch)
            except StoreError as error:
                log.debug("the live facts of %d pods are not written: %s", len(batch), error)
                for key in batch:
                    self._written.pop(key, None)
                pause = max(pause, _FAILED)
            else:
                self.written += len(batch)
            await asyncio.sleep(pause)
            if not self._waiting:
                self._some.clear()

    def _take(self) -> tuple[dict[str, Reported], int]:
        """Take what is to be written next; returns it by key, and its size in bytes."""
        now = asyncio.get_running_loop().time()
        batch: dict[str, Reported] = {}
        size = 0
        for key, reported in self._waiting.items():
            size += len(reported.text) + OVERHEAD
            batch[key] = reported
            if len(batch) == _BATCH or size >= _BATCH_BYTES:
                break
        for key, reported in batch.items():
            del self._waiting[key]
            self._written[key] = reported, now
            self._written.move_to_end(key)
        while self._written:
            key, (_, at) = next(iter(self._written.items()))
            if now - at < _AGAIN * self._ttl():
                break
            del self._written[key]
        return batch, size

    async def _write(self, batch: dict[str, Reported]) -> None:
        """Write them together, or one by one if one of the leases is gone. Raises `StoreError`."""
        ops = {key: self._op(key, reported) for key, reported in batch.items()}
        try:
            await self._store.txn([], list(ops.values()))
        except LeaseGone:
            for key, op in ops.items():
                try:
                    await self._store.txn([], [op])
                except LeaseGone:
                    self._written.pop(key, None)

    def _op(self, key: str, reported: Reported) -> Put | Delete:
        if reported.text == _NONE:
            return Delete(self._keys.live_facts(key))
        facts = Facts(reported.id, reported.nonce, reported.value())
        return Put(self._keys.live_facts(key), facts.encode(), reported.lease)
