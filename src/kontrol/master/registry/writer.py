"""The writer: every keepalive that changes something, written in batches by one task.

A batch is decided on what the store holds and written in one transaction that compares all that
was decided on. If the comparison fails, it reads and decides again: that settles lost answers and
other masters' writes alike, because what is already written decides to a refresh.

It refreshes no lease: see `registry`. It goes on when nobody awaits the answer any more, so that a
slow store gets the change in the end; the next keepalive then finds it done.

Invariant: a keepalive is answered once; one that fails takes no other with it.
"""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TypeVar

from kontrol.ensemble.pod import Keepalive, Pod
from kontrol.master.mirror import Mirror
from kontrol.master.records.records import Records
from kontrol.master.registry.admission import (
    Counter,
    Decision,
    Join,
    Leave,
    Nothing,
    Refuse,
    TxnBuilder,
    View,
    Write,
    decide,
)
from kontrol.master.registry.conflicts import NOBODY, Claim, Conflicts, Flips, Sender
from kontrol.master.registry.leases import LeaseRefresh, Leases
from kontrol.master.registry.quota import Asked, Bounds, Planned, Quota
from kontrol.master.registry.waiting import Asking, Entry, Waiting, Written
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

_T = TypeVar("_T")

_ROUNDS = 8  # of deciding anew before a keepalive is told to come again
_UNSEEN = 30.0  # seconds for the mirror to show the pod under a lease that was granted
_FULL_PAUSE = 0.2  # seconds between batches that a full store refuses, each with an alarm anew


class Writer:
    """Writes keepalives while `run` is running.

    `batches` counts batches, `batched` the keepalives in them, `seconds` what they took in all.
    """

    def __init__(
        self,
        store: Store,
        records: Records,
        mirror: Mirror,
        leases: Leases,
        *,
        ttl: Callable[[], float],
        bounds: Bounds,
    ) -> None:
        """`ttl` tells the tier's, in seconds."""
        self.batches = 0
        self.batched = 0
        self.seconds = 0.0
        self._store = store
        self._records = records
        self._keys = records.keys
        self._mirror = mirror
        self._leases = leases
        self._ttl = ttl
        self._waiting = Waiting()
        self._asking = Asking()
        self.news = asyncio.Event()  # set when a sender was refused again, or writes in turn
        self.conflicts = Conflicts()
        self.flips = Flips()
        self.quota = Quota(bounds, mirror)
        self._planned = Planned()
        self._granted: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many keepalives wait to be written."""
        return len(self._waiting)

    def granted(self, record: Keepalive) -> int:
        """Return the lease that was granted to this identity lately; 0 for none."""
        lease, at = self._granted.get((record.key, record.id), (0, 0.0))
        return lease if asyncio.get_running_loop().time() - at < _UNSEEN else 0

    def shown(self, record: Keepalive) -> None:
        """Forget that lease: the mirror shows it."""
        self._granted.pop((record.key, record.id), None)

    async def write(
        self,
        record: Keepalive,
        size: int,
        refresh: LeaseRefresh | None,
        *,
        urgent: bool,
        sender: Sender = NOBODY,
    ) -> Written:
        """Write one keepalive of `size` bytes, before those that are not `urgent`.

        If `refresh` tells that the pod's lease is unfit, it gets a new one. Raises `Refused` and
        `StoreError`.
        """
        entry = self._waiting.add(record, size, refresh, urgent=urgent, sender=sender)
        answer = await asyncio.shield(entry.answer)
        if isinstance(answer, Written):
            return answer
        raise answer

    async def run(self) -> None:
        """Write what waits, until cancelled; then refuse the rest."""
        loop = asyncio.get_running_loop()
        batch: list[Entry] = []
        try:
            while True:
                batch = await self._waiting.take(self._ttl())
                started = loop.time()
                full = await self._settle(batch)
                self.batches += 1
                self.batched += len(batch)
                self.seconds += loop.time() - started
                if full:
                    await asyncio.sleep(_FULL_PAUSE)
        finally:
            for entry in (*batch, *self._waiting):
                entry.settle(Unavailable("this master is shutting down"))

    async def _settle(self, batch: list[Entry]) -> bool:
        """Answer every entry: together, then, if that goes wrong, one by one.

        Returns whether the store is full.
        """
        full = False
        parts = [batch] if len(batch) <= 1 else [batch, *([entry] for entry in batch)]
        for part in parts:
            if all(entry.answer.done() for entry in part):
                continue
            try:
                await self._write(part, last=len(part) == 1)
            except TooLarge as error:
                if len(part) == 1:
                    why = f"it is too large for etcd: {error}"
                    part[0].settle(Refused("InvalidRecord", why))
            except StoreError as error:
                full |= isinstance(error, NoSpace)
                for entry in part:
                    entry.settle(error)
        return full

    async def _write(self, batch: list[Entry], *, last: bool) -> None:
        """Decide and write until all are answered, or, unless `last`, twice without success.

        Raises `NoSpace` for what is not written; whatever is, although the store said so, has its
        answer.
        """
        for _ in range(_ROUNDS if last else 2):
            counter = await self._read(batch)
            try:
                if await self._try(batch, counter):
                    return
            except NoSpace:
                await self._read(batch)
                if [entry for entry in batch if self._in_vain(entry)]:
                    raise
                return
            except Ambiguous as error:
                log.debug("reading what became of %d keepalives: %s", len(batch), error)
            except LeaseGone:
                for entry in batch:
                    entry.lease = 0
        if last:
            raise Ambiguous(f"its keys changed {_ROUNDS} times while it was being written")

    async def _read(self, batch: list[Entry]) -> Counter:
        """Read what the decisions stand on, and decide; returns the counter."""
        records = self._records
        ops: list[Range] = [Range(self._keys.counter)]
        counts = []
        for entry in batch:
            elsewhere = self._mirror.elsewhere(entry.record)
            counts.append(len(elsewhere))
            ops += [
                Range(self._keys.pod(entry.record.key)),
                Range(self._keys.registration(entry.record.key)),
                *(Range(self._keys.pod(other.pod.key)) for other in elsewhere),
                *(Range(self._keys.registration(other.pod.key)) for other in elsewhere),
            ]
        answer = await self._store.txn([], ops)
        found = [answer.range(i).kvs for i in range(len(ops))]
        at = 1
        for entry, count in zip(batch, counts, strict=True):
            pods, registrations, *others = found[at : at + 2 + 2 * count]
            at += 2 + 2 * count
            moved = [live for kvs in others[:count] for kv in kvs if (live := records.pod(kv))]
            kept = [(kv, records.registration(kv)) for kvs in others[count:] for kv in kvs]
            entry.view = View(
                live=records.pod(pods[0]) if pods else None,
                live_revision=pods[0].mod_revision if pods else 0,
                registration=records.registration(registrations[0]) if registrations else None,
                registration_revision=registrations[0].mod_revision if registrations else 0,
                elsewhere=tuple(live for live in moved if live.pod.id == entry.record.id),
                registrations={
                    kv.key.removeprefix(self._keys.registrations): registration
                    for kv, registration in kept
                    if registration
                },
            )
        for entry in batch:
            entry.decision = self._decide(entry, unheard=False)
        refused = [entry for entry in batch if self._in_the_way(entry)]
        for entry, is_so in zip(refused, await _all(map(self._unheard, refused)), strict=True):
            if is_so:
                entry.decision = self._decide(entry, unheard=True)
        self._bound(batch)
        joins = (entry.decision for entry in batch if isinstance(entry.decision, Join))
        return await self._counter(found[0], needed=any(join.seq is None for join in joins))

    def _bound(self, batch: list[Entry]) -> None:
        """Refuse what would store too much."""
        now = asyncio.get_running_loop().time()
        self._planned = Planned()
        for entry in batch:
            asked = Asked(
                entry.record.id,
                self._stored(entry),
                entry.sender.address,
                entry.view,
                entry.decision,
            )
            refusal = self.quota.judge(asked, self._planned, now)
            if refusal is not None:
                entry.decision = refusal
                self.news.set()

    def _stored(self, entry: Entry) -> int:
        """Return the bytes that the store would have of an entry: more than was sent, or fewer."""
        match entry.decision:
            case Write(pod):
                return len(pod.encode())
            case Join(record, seq):
                number = self._mirror.highest + 1 if seq is None else seq
                return len(Pod.of(record, number).encode())
            case _:
                return 0

    def _needs_lease(self, entry: Entry) -> bool:
        """Tell whether the live record's lease is known to be unfit."""
        live, refresh = entry.view.live, entry.refresh
        if live is None or refresh is None or refresh.lease != live.lease:
            return False
        return self._leases.unfit(refresh)

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

    def _decide(self, entry: Entry, *, unheard: bool) -> Decision:
        needs = self._needs_lease(entry)
        return decide(entry.record, entry.view, unheard=unheard, new_lease=needs)

    @staticmethod
    def _in_the_way(entry: Entry) -> bool:
        """Tell whether a keepalive is refused for what others reported."""
        refusal = entry.decision
        return (
            isinstance(refusal, Refuse)
            and refusal.name in ("Conflict", "Stale")
            and not entry.record.down
        )

    async def _unheard(self, entry: Entry) -> bool:
        """Tell whether a keepalive that was refused may replace what stands in its way.

        It may if its sender keeps asking, and none of those records was refreshed for TTL/2.
        """
        record, view, ttl = entry.record, entry.view, self._ttl()
        who = (record.key, record.id, record.nonce)
        if not self._asking.asks(who, asyncio.get_running_loop().time(), ttl):
            return False
        leases = [live.lease for live in (view.live, *view.elsewhere) if live is not None]
        found = await _all(self._store.remaining(lease) for lease in leases)
        # Whole seconds, cut; and where the tier's TTL changed, the pod reports by the longer one.
        if all(
            not granted or granted - left - 1 >= max(granted, ttl) / 2 for left, granted in found
        ):
            return True
        ages = [float(granted - left) if granted else math.inf for left, granted in found]
        self._conflict(entry, min(ages))
        return False

    def _conflict(self, entry: Entry, heard: float) -> None:
        """Note who has what this sender asks for, `heard` that many seconds ago."""
        record, view, refusal = entry.record, entry.view, entry.decision
        assert isinstance(refusal, Refuse)  # noqa: S101 - see `_in_the_way`
        live = view.live
        if view.elsewhere and (live is None or refusal.name == "Stale"):
            live = view.elsewhere[0]
        assert live is not None  # noqa: S101 - one of them was heard
        self.news.set()
        pod = live.pod
        registration = (
            view.registration if pod.key == record.key else view.registrations.get(pod.key)
        )
        by = (
            registration.sender if registration is not None and registration.id == pod.id else None
        ) or ""
        self.conflicts.note(
            _claim(record, str(entry.sender)),
            Claim(pod.id, pod.key, pod.ip, pod.nonce, pod.n, by, heard),
            refusal.name,
            asyncio.get_running_loop().time(),
            self._ttl(),
        )

    def _wrote(self, entry: Entry) -> None:
        """Note who wrote what."""
        record, decision = entry.record, entry.decision
        if not isinstance(decision, Refuse):
            self.conflicts.over(record.key, record.id, record.nonce)
        mark: object
        match decision:
            case Write(pod, live):
                twin = (live.pod.nonce, live.pod.n) == (record.nonce, record.n)
                content = pod.hash if twin or record.n is None else ""
                mark = record.key, record.nonce, content
            case Join():
                content = "" if record.n is not None else Pod.of(record, 0).hash
                mark = record.key, record.nonce, content
            case Leave():
                mark = record.key, record.nonce, "left"
            case _:
                return
        now = asyncio.get_running_loop().time()
        claim = _claim(record, str(entry.sender))
        if self.flips.wrote(claim, mark, entry.sender, now, self._ttl()):
            self.news.set()

    async def _try(self, batch: list[Entry], counter: Counter) -> bool:
        """Carry the decisions out in one transaction; False if the store had moved on."""
        joins = [e for e in batch if isinstance(e.decision, Join) and not e.lease]
        await _all(map(self._grant, joins))
        plan = TxnBuilder(self._keys, counter)
        numbers = [
            plan.add(e.record, e.view, e.decision, e.lease, sender=str(e.sender) or None)
            for e in batch
        ]
        plan.close()
        if plan.clashes:  # two of them touch one key: each then goes alone
            return False
        if plan.ops:
            wrote = await self._store.txn(plan.compares, plan.ops)
            if not wrote.succeeded:
                return False
            now = asyncio.get_running_loop().time()
            self.quota.wrote(self._planned, wrote.header.revision, now)
        for entry, number in zip(batch, numbers, strict=True):
            self._wrote(entry)
            live = entry.view.live
            if isinstance(entry.decision, Join) and live is not None and live.lease:
                self._leases.revoke(live.lease)  # its record has another one now
            entry.settle(_outcome(entry, number))
        return True

    def _in_vain(self, entry: Entry) -> bool:
        """Tell whether an entry still needs a write; answer it if not."""
        plan = TxnBuilder(self._keys, Counter())
        number = plan.add(entry.record, entry.view, entry.decision, entry.lease)
        if not plan.ops:
            entry.settle(_outcome(entry, number))
        return bool(plan.ops)

    async def _grant(self, entry: Entry) -> None:
        """Give it a lease of its own; one that comes to no use expires by itself."""
        now = asyncio.get_running_loop().time()
        entry.lease, entry.ttl = await self._leases.grant()
        identity = (entry.record.key, entry.record.id)
        self._granted[identity] = entry.lease, now
        self._granted.move_to_end(identity)
        while now - next(iter(self._granted.values()))[1] >= _UNSEEN:
            self._granted.popitem(last=False)


def _claim(record: Keepalive, sender: str) -> Claim:
    return Claim(record.id, record.key, record.ip, record.nonce, record.n, sender)


def _outcome(entry: Entry, number: int | None) -> Written | Refused:
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


async def _all(calls: Iterable[Coroutine[None, None, _T]]) -> list[_T]:
    """Await calls that run at once; when all have ended, return what they did, or raise."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
