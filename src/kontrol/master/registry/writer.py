"""The writer: every keepalive that changes something, written in batches.

A batch is decided on for a look at the store, and carried out by one transaction that compares all
that was looked at. If that fails, it looks and decides again: this settles lost answers and the
writes of other masters alike, because what is written already needs no more than a refresh.

Several batches are under way at the same time, none with a key or id of another. What all new pods
share is the counter of numbers: batches that give numbers look at the store at the same time, and
write one after another, in the order in which they were taken. Each goes on from the number that
the one before left.

It refreshes no lease: see `registry`. It goes on when no caller awaits the answer any more, so that
a slow store gets the change in the end; the next keepalive then finds it done.

Invariant: a keepalive is answered once; one that fails takes no other with it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from kontrol.master.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import (
    Counter,
    Join,
    Leave,
    Nothing,
    Refuse,
    TxnBuilder,
    Write,
    decide,
    keys_written,
    stored_bytes,
)
from kontrol.master.registry.leases import Leases
from kontrol.master.registry.look import OPERATIONS, Looks
from kontrol.master.registry.queue import Entry, WriteQueue, Written
from kontrol.master.registry.quota import Addition, Planned, Quota
from kontrol.master.registry.senders import Senders, all_of
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import (
    Ambiguous,
    KeyValue,
    LeaseGone,
    NoSpace,
    Store,
    StoreError,
    TooLarge,
    Unavailable,
)

log = logging.getLogger(__name__)

_UNDER_WAY = 4  # batches
_LOOKS = 8  # at the store, before each keepalive of a batch is tried alone, and then refused
_RESTLESS = 2  # times that the keys of one keepalive changed meanwhile, before it is tried alone
_ENDED = "this master is shutting down"
_FULL_PAUSE = 0.2  # seconds between batches that a full store refuses, each with another alarm


@dataclass(slots=True, eq=False)
class _Batch:
    """Entries that were taken together. `numbered` is set once none of them needs a number."""

    entries: list[Entry]
    numbered: asyncio.Event = field(default_factory=asyncio.Event)


class Writer:
    """Writes the keepalives in `queue` while `run` is running.

    `batches` counts batches, `batched` the keepalives in them, `seconds` the times of all of them.
    `wrote` is the loop time at which etcd last answered that it has written one.
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
        self.wrote = float("-inf")
        self._store = store
        self._looks = Looks(store, records, mirror)
        self._keys = records.keys
        self._mirror = mirror
        self._queue = queue
        self._leases = leases
        self._quota = quota
        self._senders = senders
        self._ttl = ttl
        self._under_way: list[_Batch] = []  # in the order in which they were taken
        self._counter = Counter()  # as this master wrote it last
        self._full = False

    async def run(self) -> None:
        """Write what waits until cancelled, then refuse the rest."""
        places = asyncio.Semaphore(_UNDER_WAY)

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await places.acquire()
                    if self._full:
                        await asyncio.sleep(_FULL_PAUSE)
                    batch = _Batch(await self._queue.take(self._ttl()))
                    self._under_way.append(batch)
                    task = group.create_task(self._carry_out(batch))
                    task.add_done_callback(partial(self._end, batch, places))
                    if self._full:  # one at a time, until one is written
                        await asyncio.wait([task])
        finally:
            for entry in self._queue:
                entry.settle(Unavailable(_ENDED))

    async def _carry_out(self, batch: _Batch) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self._settle(batch)
        self.batches += 1
        self.batched += len(batch.entries)
        self.seconds += loop.time() - started

    def _end(self, batch: _Batch, places: asyncio.Semaphore, _: object) -> None:
        places.release()
        for entry in batch.entries:  # of a batch that was cancelled, some have no answer
            entry.settle(Unavailable(_ENDED))
        batch.numbered.set()
        self._under_way.remove(batch)
        self._queue.done(batch.entries)

    async def _settle(self, batch: _Batch) -> None:
        """Answer every entry: together or, if that fails, in parts."""
        parts = [batch.entries]
        while parts:
            part = parts.pop()
            try:
                parts += [[entry] for entry in await self._write(part, batch)]
            except TooLarge as error:
                left = [entry for entry in part if not entry.answer.done()]
                half = len(left) // 2
                if half:
                    parts += left[half:], left[:half]
                else:
                    why = f"it is too large for etcd: {error}"
                    left[0].settle(Refused("InvalidRecord", why))
            except StoreError as error:
                for entry in part:
                    entry.settle(error)

    async def _write(self, entries: list[Entry], batch: _Batch) -> list[Entry]:
        """Look at the store, decide and commit until all are answered, or it was tried enough.

        Returns those that are to be tried alone, because others write what they would write. Raises
        `NoSpace` for what is not written. What is written, although the store said that it is full,
        has its answer.
        """
        several = len(entries) > 1
        apart: list[Entry] = []
        seen: dict[Entry, object] = {}
        changes: dict[Entry, int] = {}
        failures = 0
        while entries and failures < _LOOKS:
            some, found = await self._looks.look(entries)
            for entry in some:
                revisions = entry.view.revisions
                changes[entry] = changes.get(entry, 0) + (seen.get(entry, revisions) != revisions)
                seen[entry] = revisions
                if several and changes[entry] >= _RESTLESS:
                    apart.append(entry)
            some = [entry for entry in some if entry not in apart]
            try:
                done = await self._try(some, found, batch)
            except NoSpace:
                self._full = True
                await self._confirm(some)
                raise
            except Ambiguous as error:
                log.debug("reading what became of %d keepalives: %s", len(some), error)
                done = False
            except LeaseGone:
                for entry in some:
                    entry.lease = 0
                done = False
            failures += not done
            entries = [e for e in entries if not e.answer.done() and e not in apart]
        if entries and not several:
            raise Ambiguous(f"its keys changed {_LOOKS} times while it was being written")
        return apart + entries

    async def _confirm(self, entries: list[Entry]) -> None:
        """Answer those of which nothing is left to write, after the store said that it is full.

        The write that crosses the store's quota is done, and gets that answer.
        """
        some, _ = await self._looks.look(entries)
        with self._quota.plan() as planned:
            some = await self._decide(some, planned)
            done = [e for e in some if not isinstance(e.decision, Write | Join | Leave)]
            await self._commit(done, Counter(), planned)

    async def _try(self, entries: list[Entry], found: Sequence[KeyValue], batch: _Batch) -> bool:
        """Decide on a look at the store, and commit; False if the store has changed since.

        Entries for which one transaction has no room get no answer.
        """
        with self._quota.plan() as planned:
            some = await self._decide(entries, planned)
            numbers = any(isinstance(e.decision, Join) and e.decision.seq is None for e in some)
            counter = await self._looks.counter(found, needed=numbers)
            if numbers:
                await self._grant_leases(some)  # before its turn, which others wait for
                counter = await self._turn(batch, counter)
            elif len(some) == len(batch.entries):
                batch.numbered.set()
            return await self._commit(some, counter, planned)

    async def _decide(self, entries: list[Entry], planned: Planned) -> list[Entry]:
        """Decide on entries that were looked at; returns those for which a transaction has room."""
        for entry in entries:
            new_lease = self._needs_lease(entry)
            entry.decision = decide(entry.record, entry.view, new_lease=new_lease)
        refused = [e for e in entries if isinstance(e.decision, Refuse) and e.decision.otherwise]
        if refused:
            await all_of(map(self._senders.settle, refused))
        some = _fitting(entries)
        now = asyncio.get_running_loop().time()
        for entry in some:
            size = stored_bytes(entry.decision, self._mirror.highest + 1)
            addition = Addition(
                entry.record.id, size, entry.sender.address, entry.view, entry.decision
            )
            entry.decision = self._quota.judge(addition, planned, now) or entry.decision
        return some

    async def _turn(self, batch: _Batch, counter: Counter) -> Counter:
        """Wait until batches taken before have their numbers; returns the counter as it is then."""
        for earlier in self._under_way[: self._under_way.index(batch)]:
            await earlier.numbered.wait()
        return max(counter, self._counter, key=lambda each: each.revision)

    def _needs_lease(self, entry: Entry) -> bool:
        """Tell whether the live record's lease is known to be unfit."""
        live, refresh = entry.view.live, entry.refresh
        if live is None or refresh is None or refresh.lease != live.lease:
            return False
        return self._leases.unfit(refresh)

    async def _commit(self, entries: list[Entry], counter: Counter, planned: Planned) -> bool:
        """Carry the decisions out in one transaction; False if the store has changed since."""
        await self._grant_leases(entries)
        txn = TxnBuilder(self._keys, counter)
        numbers = [
            txn.add(e.record, e.view, e.decision, e.lease, sender=str(e.sender) or None)
            for e in entries
        ]
        txn.close()
        if txn.ops:
            self._counter = Counter() if txn.given else self._counter  # until it is certain
            wrote = await self._store.txn(txn.compares, txn.ops)
            if not wrote.succeeded:
                return False
            self._full = False
            revision = wrote.header.revision
            if txn.given:
                self._counter = Counter(counter.next + txn.given, revision)
            self.wrote = asyncio.get_running_loop().time()
            self._quota.wrote(planned, revision, self.wrote)
        for entry, number in zip(entries, numbers, strict=True):
            self._senders.wrote(entry)
            live = entry.view.live
            if isinstance(entry.decision, Join) and live and live.lease not in (0, entry.lease):
                self._leases.revoke(live.lease)  # its record has another one now
            entry.settle(_answer(entry, number))
        return True

    async def _grant_leases(self, entries: list[Entry]) -> None:
        joins = [e for e in entries if isinstance(e.decision, Join) and not e.lease]
        if joins:
            await all_of(map(self._grant, joins))

    async def _grant(self, entry: Entry) -> None:
        entry.lease, entry.ttl = await self._leases.grant(entry.record)


def _fitting(entries: list[Entry]) -> list[Entry]:
    """Return the first entries for which one transaction has room, and that write no key twice.

    There is at least one.
    """
    fitting: list[Entry] = []
    written: set[str] = set()
    operations = 1  # the counter
    for entry in entries:
        keys = keys_written(entry.record, entry.decision)
        operations += 2 * len(keys)
        operations += isinstance(entry.decision, Join) and entry.decision.archive is not None
        if fitting and (operations > OPERATIONS or not written.isdisjoint(keys)):
            break
        written.update(keys)
        fitting.append(entry)
    return fitting


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
