"""The writer: every keepalive that changes something, written in batches by one task.

A batch is decided on what the store holds and written in one transaction that compares all that
was decided on. If the comparison fails, it reads and decides again: that settles lost answers and
other masters' writes alike, because what is already written decides to a refresh. The first round
trusts the mirror where all it needs is there; nothing is ever refused on the mirror's word.

Invariant: a keepalive is answered once; one that fails takes no other with it.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

from kontrol.ensemble.pod import Keepalive
from kontrol.master.mirror.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import Decision, Join, Nothing, Refuse, View, Write, decide
from kontrol.master.registry.plan import Counter, Plan
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import (
    Ambiguous,
    KeyValue,
    LeaseGone,
    Range,
    Store,
    StoreError,
    TooLarge,
)

log = logging.getLogger(__name__)

_BATCH = 16  # keepalives; one is at most 3 + 2 * 2 operations, and a transaction takes 128
_BATCH_BYTES = 900 * 1024  # of records; a request may be 1.5 MiB
_ROUNDS = 8  # of deciding anew before a keepalive is told to come again
_WAITING = 20_000  # keepalives that may wait


@dataclass(slots=True, eq=False)
class _Entry:
    """A keepalive that waits to be written, and its answer: its `seq`, or a refusal."""

    record: Keepalive
    size: int
    answer: "asyncio.Future[int | None]"
    view: View = field(default_factory=View)
    decision: Decision = field(default_factory=Nothing)
    lease: int = 0
    lease_gone: bool = False

    def refuse(self, name: str, message: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Refused(name, message))

    def fail(self, error: StoreError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Writer:
    """Writes keepalives while `run` is running.

    `batches` counts batches, `batched` the keepalives in them, `seconds` what they took in all.
    """

    def __init__(self, store: Store, records: Records, mirror: Mirror, *, ttl: float) -> None:
        """`ttl` in seconds is the time of the leases that it grants."""
        self.batches = 0
        self.batched = 0
        self.seconds = 0.0
        self._store = store
        self._records = records
        self._keys = records.keys
        self._mirror = mirror
        self._ttl = ttl
        self._queue: deque[_Entry] = deque()
        self._work = asyncio.Event()
        self._asked: dict[tuple[str, str], float] = {}

    @property
    def waiting(self) -> int:
        """How many keepalives wait to be written."""
        return len(self._queue)

    async def write(self, record: Keepalive, size: int) -> int | None:
        """Write one keepalive of `size` bytes; returns its `seq`, None if it has none.

        Raises `Refused` and `StoreError`.
        """
        if len(self._queue) >= _WAITING:
            raise Refused("Unavailable", f"{_WAITING} keepalives wait to be written; try again")
        entry = _Entry(record, size, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._work.set()
        return await entry.answer

    async def run(self) -> None:
        """Write what waits, until cancelled; then refuse the rest."""
        loop = asyncio.get_running_loop()
        batch: list[_Entry] = []
        try:
            while True:
                await self._work.wait()
                started = loop.time()
                batch = self._next()
                await self._settle(batch)
                self.batches += 1
                self.batched += len(batch)
                self.seconds += loop.time() - started
        finally:
            for entry in (*batch, *self._queue):
                entry.refuse("Unavailable", "this master is shutting down; try another")

    def _next(self) -> list[_Entry]:
        """Take entries in order, as long as no two touch the same key or id."""
        batch: list[_Entry] = []
        touched: set[tuple[str, str]] = set()
        size = 0
        while self._queue and len(batch) < _BATCH:
            entry = self._queue[0]
            record = entry.record
            names = {("id", record.id), ("key", record.key)}
            names |= {("key", other.pod.key) for other in self._mirror.elsewhere(record)}
            size += 2 * entry.size
            if batch and (touched & names or size > _BATCH_BYTES):
                break
            touched |= names
            self._queue.popleft()
            if not entry.answer.done():  # its caller may have gone away
                batch.append(entry)
        if not self._queue:
            self._work.clear()
        return batch

    async def _settle(self, batch: list[_Entry]) -> None:
        """Answer every entry: together, then, if that goes wrong, one by one."""
        parts = [batch] if len(batch) <= 1 else [batch, *([entry] for entry in batch)]
        for part in parts:
            if all(entry.answer.done() for entry in part):
                continue
            try:
                await self._write(part, last=len(part) == 1)
            except TooLarge as error:
                if len(part) == 1:
                    part[0].refuse("InvalidRecord", f"it is too large for etcd: {error}")
            except StoreError as error:
                for entry in part:
                    entry.fail(error)

    async def _write(self, batch: list[_Entry], *, last: bool) -> None:
        """Decide and write until all are answered, or, unless `last`, twice without success."""
        counter = await self._look(batch)
        for _ in range(_ROUNDS if last else 2):
            try:
                if await self._try(batch, counter):
                    return
            except Ambiguous as error:
                log.debug("reading what became of %d keepalives: %s", len(batch), error)
            except LeaseGone:
                for entry in batch:
                    entry.lease = 0
            batch = [entry for entry in batch if not entry.answer.done()]
            counter = await self._read(batch)
        if last and batch:
            raise Ambiguous(f"its keys changed {_ROUNDS} times while it was being written")

    async def _look(self, batch: list[_Entry]) -> Counter:
        """Decide on the mirror if that will do, which saves changes of known pods a reading."""
        for entry in batch:
            live = self._mirror.live(entry.record.key)
            entry.view = View(live=live, elsewhere=self._mirror.elsewhere(entry.record))
            entry.decision = decide(entry.record, entry.view)
        if self._mirror.current and all(isinstance(e.decision, Write) for e in batch):
            return Counter()
        return await self._read(batch)

    async def _read(self, batch: list[_Entry]) -> Counter:
        """Read what the decisions stand on, and decide; returns the counter."""
        records = self._records
        ops: list[Range] = [Range(self._keys.counter)]
        counts = []
        for entry in batch:
            elsewhere = self._mirror.elsewhere(entry.record)
            counts.append(len(elsewhere))
            ops += [
                Range(self._keys.pod(entry.record.key)),
                Range(self._keys.seat(entry.record.key)),
                *(Range(self._keys.pod(other.pod.key)) for other in elsewhere),
            ]
        answer = await self._store.txn([], ops)
        found = [answer.range(i).kvs for i in range(len(ops))]
        at = 1
        for entry, count in zip(batch, counts, strict=True):
            pods, seats, *others = found[at : at + 2 + count]
            at += 2 + count
            elsewhere = tuple(live for kvs in others for kv in kvs if (live := records.pod(kv)))
            entry.view = View(
                live=records.pod(pods[0]) if pods else None,
                live_revision=pods[0].mod_revision if pods else 0,
                seat=records.seat(seats[0]) if seats else None,
                seat_revision=seats[0].mod_revision if seats else 0,
                elsewhere=tuple(live for live in elsewhere if live.pod.id == entry.record.id),
            )
            silent = await self._silent(entry)
            entry.decision = decide(
                entry.record, entry.view, incumbent_silent=silent, lease_gone=entry.lease_gone
            )
        return await self._counter(found[0])

    async def _counter(self, found: Sequence[KeyValue]) -> Counter:
        """Return the next number; where it cannot be read, count the numbers in use."""
        number = self._records.counter(found[0]) if found else None
        revision = found[0].mod_revision if found else 0
        if number is not None:
            return Counter(number, revision)
        keys = self._keys
        pods, seats, chunks = [
            (await self._store.range(Range(prefix, prefix=True))).kvs
            for prefix in (keys.pods, keys.seats, f"{keys.applied}/")
        ]
        return Counter(self._records.free_number(pods, seats, chunks), revision)

    async def _silent(self, entry: _Entry) -> bool:
        """Tell whether another identity's pod at the key may be put out.

        It may after TTL/2 without a refresh, if the newcomer asked before within the last TTL.
        """
        live, record = entry.view.live, entry.record
        if live is None or live.pod.id == record.id or record.down:
            return False
        now = asyncio.get_running_loop().time()
        self._asked = {who: at for who, at in self._asked.items() if now - at <= self._ttl}
        before = (record.key, record.id) in self._asked
        self._asked[record.key, record.id] = now
        return before and await self._store.remaining(live.lease) <= self._ttl / 2

    async def _try(self, batch: list[_Entry], counter: Counter) -> bool:
        """Carry the decisions out in one transaction; False if the store had moved on."""
        joins = [e for e in batch if isinstance(e.decision, Join) and not e.lease]
        await _all(self._grant(entry) for entry in joins)
        plan = Plan(self._keys, counter)
        numbers = [plan.add(e.record, e.view, e.decision, e.lease) for e in batch]
        plan.close()
        if plan.clashes:  # an id moved since the batch was made: each then goes alone
            return False
        if plan.ops and not (await self._store.txn(plan.compares, plan.ops)).succeeded:
            return False
        await _all(
            self._finish(entry, number) for entry, number in zip(batch, numbers, strict=True)
        )
        return all(entry.answer.done() for entry in batch)

    async def _grant(self, entry: _Entry) -> None:
        """Give it a lease of its own; one that comes to no use expires by itself."""
        entry.lease = (await self._store.grant(math.ceil(self._ttl))).id

    async def _finish(self, entry: _Entry, number: int | None) -> None:
        """Answer an entry that is written, unless its pod's lease turns out to be gone."""
        if isinstance(entry.decision, Refuse):
            entry.refuse(entry.decision.name, entry.decision.message)
            return
        if not isinstance(entry.decision, Join) and not entry.record.down:
            live = entry.view.live
            if live is None or await self._store.refresh(live.lease) <= 0:
                entry.lease_gone = True
                return
        if not entry.answer.done():
            entry.answer.set_result(number)


async def _all(calls: Iterable[Coroutine[None, None, None]]) -> None:
    """Await calls that run at once; when all have ended, raise the first error."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
