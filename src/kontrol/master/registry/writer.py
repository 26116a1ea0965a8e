"""The writer: every keepalive that changes something, written in batches by one task.

A batch is decided on for a look at the store, and carried out by one transaction that compares all
that was looked at. If that fails, it looks and decides again: this settles lost answers and the
writes of other masters alike, because what is written already needs no more than a refresh.

It refreshes no lease: see `registry`. It goes on when no caller awaits the answer any more, so that
a slow store gets the change in the end; the next keepalive then finds it done.

Invariant: a keepalive is answered once; one that fails takes no other with it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kontrol.master.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import (
    Counter,
    Join,
    Leave,
    Nothing,
    Refuse,
    TxnBuilder,
    View,
    Write,
    decide,
    stored_bytes,
)
from kontrol.master.registry.leases import Leases
from kontrol.master.registry.queue import Entry, WriteQueue, Written
from kontrol.master.registry.quota import Addition, Planned, Quota
from kontrol.master.registry.senders import Senders, all_of
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import (
    Ambiguous,
    KeyValue,
    LeaseGone,
    NoSpace,
    Range,
    Store,
    StoreError,
    TooLarge,
    Unavailable,
)

log = logging.getLogger(__name__)

_TOGETHER = 2  # looks at the store for a whole batch, before each keepalive is tried alone
_ALONE = 8  # looks at the store before a keepalive is refused
_FULL_PAUSE = 0.2  # seconds between batches that a full store refuses, each with another alarm


class Writer:
    """Writes the keepalives in `queue` while `run` is running.

    `batches` counts batches, `batched` the keepalives in them, `seconds` the time for all of them.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        mirror: Mirror,
        *,
        queue: WriteQueue,
        leases: Leases,
        quota: Quota,
        senders: Senders,
        ttl: Callable[[], float],
    ) -> None:
        """`ttl` returns the tier's, in seconds."""
        self.batches = 0
        self.batched = 0
        self.seconds = 0.0
        self._store = store
        self._records = records
        self._keys = records.keys
        self._mirror = mirror
        self._queue = queue
        self._leases = leases
        self._quota = quota
        self._senders = senders
        self._ttl = ttl
        self._planned = Planned()

    async def run(self) -> None:
        """Write what waits until cancelled, then refuse the rest."""
        loop = asyncio.get_running_loop()
        batch: list[Entry] = []
        try:
            while True:
                batch = await self._queue.take(self._ttl())
                started = loop.time()
                full = await self._settle(batch)
                self.batches += 1
                self.batched += len(batch)
                self.seconds += loop.time() - started
                if full:
                    await asyncio.sleep(_FULL_PAUSE)
        finally:
            for entry in (*batch, *self._queue):
                entry.settle(Unavailable("this master is shutting down"))

    async def _settle(self, batch: list[Entry]) -> bool:
        """Answer every entry: together or, if that fails, one by one.

        Returns whether the store is full.
        """
        full = False
        parts = [batch] if len(batch) <= 1 else [batch, *([entry] for entry in batch)]
        for part in parts:
            if all(entry.answer.done() for entry in part):
                continue
            try:
                await self._write(part, alone=len(part) == 1)
            except TooLarge as error:
                if len(part) == 1:
                    why = f"it is too large for etcd: {error}"
                    part[0].settle(Refused("InvalidRecord", why))
            except StoreError as error:
                full |= isinstance(error, NoSpace)
                for entry in part:
                    entry.settle(error)
        return full

    async def _write(self, batch: list[Entry], *, alone: bool) -> None:
        """Look at the store, decide and commit until all are answered, or it was tried enough.

        Raises `NoSpace` for what is not written. What is written, although the store said that it
        is full, has its answer.
        """
        for _ in range(_ALONE if alone else _TOGETHER):
            counter = await self._decide(batch)
            try:
                if await self._commit(batch, counter):
                    return
            except NoSpace:
                await self._decide(batch)
                done = [e for e in batch if not isinstance(e.decision, Write | Join | Leave)]
                await self._commit(done, Counter())
                if len(done) < len(batch):
                    raise
                return
            except Ambiguous as error:
                log.debug("reading what became of %d keepalives: %s", len(batch), error)
            except LeaseGone:
                for entry in batch:
                    entry.lease = 0
        if alone:
            raise Ambiguous(f"its keys changed {_ALONE} times while it was being written")

    async def _decide(self, batch: list[Entry]) -> Counter:
        """Look at the store, and decide on every entry; returns the counter."""
        counter = await self._look(batch)
        for entry in batch:
            new_lease = self._needs_lease(entry)
            entry.decision = decide(entry.record, entry.view, new_lease=new_lease)
        refused = [e for e in batch if isinstance(e.decision, Refuse) and e.decision.otherwise]
        await all_of(map(self._senders.settle, refused))
        now = asyncio.get_running_loop().time()
        self._planned = Planned()
        for entry in batch:
            size = stored_bytes(entry.decision, self._mirror.highest + 1)
            addition = Addition(
                entry.record.id, size, entry.sender.address, entry.view, entry.decision
            )
            entry.decision = self._quota.judge(addition, self._planned, now) or entry.decision
        joins = [entry.decision for entry in batch if isinstance(entry.decision, Join)]
        return await self._counter(counter, needed=any(join.seq is None for join in joins))

    async def _look(self, batch: list[Entry]) -> Sequence[KeyValue]:
        """Read what the store has for each entry, its `view`; returns the counter's key."""
        keys, records = self._keys, self._records
        elsewhere = [self._mirror.elsewhere(entry.record) for entry in batch]
        ops = [Range(keys.counter)]
        for entry, others in zip(batch, elsewhere, strict=True):
            for key in (entry.record.key, *(other.pod.key for other in others)):
                ops += Range(keys.pod(key)), Range(keys.registration(key))
        answer = await self._store.txn([], ops)
        found = iter([answer.range(i).kvs for i in range(len(ops))])
        counter = next(found)
        for entry, others in zip(batch, elsewhere, strict=True):
            pods, registrations = next(found), next(found)
            pairs = [(next(found), next(found)) for _ in others]
            moved = (records.pod(kv) for kvs, _ in pairs for kv in kvs)
            theirs = (
                (kv.key.removeprefix(keys.registrations), records.registration(kv))
                for _, kvs in pairs
                for kv in kvs
            )
            entry.view = View(
                live=records.pod(pods[0]) if pods else None,
                live_revision=pods[0].mod_revision if pods else 0,
                registration=records.registration(registrations[0]) if registrations else None,
                registration_revision=registrations[0].mod_revision if registrations else 0,
                elsewhere=tuple(live for live in moved if live and live.pod.id == entry.record.id),
                registrations={key: each for key, each in theirs if each},
            )
        return counter

    async def _counter(self, found: Sequence[KeyValue], *, needed: bool) -> Counter:
        """Return the next number; where it cannot be read, count the numbers in use if `needed`."""
        number = self._records.counter(found[0]) if found else None
        revision = found[0].mod_revision if found else 0
        if number is not None or not needed:
            return Counter(number or 0, revision)
        keys = self._keys
        pods, registrations, chunks = [
            (await self._store.range(Range(prefix, prefix=True))).kvs
            for prefix in (keys.pods, keys.registrations, f"{keys.applied}/")
        ]
        return Counter(self._records.free_number(pods, registrations, chunks), revision)

    def _needs_lease(self, entry: Entry) -> bool:
        """Tell whether the live record's lease is known to be unfit."""
        live, refresh = entry.view.live, entry.refresh
        if live is None or refresh is None or refresh.lease != live.lease:
            return False
        return self._leases.unfit(refresh)

    async def _commit(self, batch: list[Entry], counter: Counter) -> bool:
        """Carry the decisions out in one transaction; False if the store has changed since."""
        joins = [e for e in batch if isinstance(e.decision, Join) and not e.lease]
        await all_of(map(self._grant, joins))
        txn = TxnBuilder(self._keys, counter)
        numbers = [
            txn.add(e.record, e.view, e.decision, e.lease, sender=str(e.sender) or None)
            for e in batch
        ]
        txn.close()
        if txn.clashes:  # two of them write one key: each then goes alone
            return False
        if txn.ops:
            wrote = await self._store.txn(txn.compares, txn.ops)
            if not wrote.succeeded:
                return False
            now = asyncio.get_running_loop().time()
            self._quota.wrote(self._planned, wrote.header.revision, now)
        for entry, number in zip(batch, numbers, strict=True):
            self._senders.wrote(entry)
            live = entry.view.live
            if isinstance(entry.decision, Join) and live and live.lease not in (0, entry.lease):
                self._leases.revoke(live.lease)  # its record has another one now
            entry.settle(_answer(entry, number))
        return True

    async def _grant(self, entry: Entry) -> None:
        entry.lease, entry.ttl = await self._leases.grant(entry.record)


def _answer(entry: Entry, number: int | None) -> Written | Refused:
    match entry.decision:
        case Refuse(name, message):
            return Refused(name, message)
        case Leave() | Nothing():
            return Written(number)
        case Join():
            return Written(number, entry.lease, entry.ttl)
        case _:
            live = entry.view.live
            return Written(number, live.lease if live else 0)
