"""etcd's data and rules as a synchronous state machine: nothing here waits or reads a clock.

The whole past is one log of events in order of revision, the present a dictionary beside it. A
read of the past replays the log; a watch reads it from its start. Compaction at revision C drops
every event before C but the last put of each key that lived on: so a read at C and a watch from C
still work. (etcd before 3.4.34 and 3.5.16 drops deletions at C too, and a watch from C silently
misses them: etcd #18089. The model is a later one.)

Invariant: folding the log gives the present, and each live key with a lease is in the key set of
that one lease.

The rules follow etcd's `server/etcdserver/apply.go` (transactions), `server/storage/mvcc`
(revisions, compaction) and `server/lease/lessor.go` (leases) of release 3.5.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.support.memory.requests import Txn

from kontrol.store.protocol import (
    Compacted,
    Compare,
    Delete,
    Event,
    Header,
    KeyValue,
    Lease,
    LeaseGone,
    NoSpace,
    Op,
    Put,
    Range,
    RangeResult,
    Restored,
    TooLarge,
    TxnResult,
)

MAX_OPS = 128  # etcd --max-txn-ops
MAX_BYTES = 1536 * 1024  # etcd --max-request-bytes
MIN_TTL = 2  # ceil(1.5 election timeouts of 1 s): lessor.go, minLeaseTTL
TICK = 0.5  # seconds between two looks for expired leases: lessor.go, runLoop
REVOKED_PER_TICK = 500  # leaseRevokeRate / 2


@dataclass(slots=True)
class _Lease:
    ttl: int
    expiry: float
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a store held at one revision; leases as (id, ttl, keys)."""

    cluster: int
    revision: int
    compacted: int
    log: tuple[Event, ...]
    leases: tuple[tuple[int, int, frozenset[str]], ...]


def _revision(event: Event) -> int:
    return event.kv.mod_revision


def _fold(events: Iterable[Event]) -> dict[str, KeyValue]:
    """Return the keys that live after `events`."""
    live: dict[str, KeyValue] = {}
    for event in events:
        if event.type == "put":
            live[event.kv.key] = event.kv
        else:
            live.pop(event.kv.key, None)
    return live


class Core:
    """The data of one cluster. `now` is in seconds on any clock that never goes back.

    `on_commit` is called with the events of each revision, once, right after it is done.
    """

    def __init__(self, cluster: int, on_commit: Callable[[tuple[Event, ...]], None]) -> None:
        self.cluster = cluster
        self.revision = 1  # of an empty etcd; the first write gets 2
        self.compacted = 0
        self.full = False  # the NOSPACE alarm: puts and grants are refused
        self.crossing = False  # the next put or grant crosses the quota: done, refused, alarm
        self._on_commit = on_commit
        self._log: list[Event] = []
        self._live: dict[str, KeyValue] = {}
        self._leases: dict[int, _Lease] = {}
        self._granted = 0

    @property
    def header(self) -> Header:
        """The header of an answer given now."""
        return Header(self.cluster, self.revision)

    # Reads and transactions

    def range(self, request: Range) -> RangeResult:
        """Read the present or, with `revision`, the past."""
        self._check_revision(request)
        if request.revision:
            end = bisect.bisect_right(self._log, request.revision, key=_revision)
            keys = _fold(self._log[:end])
        else:
            keys = self._live
        order = sorted(_matching(request, keys), reverse=request.descending)
        kvs = [keys[key] for key in order]
        found = kvs[: request.limit or None]
        if request.keys_only:
            found = [replace(kv, value=b"") for kv in found]
        return RangeResult(self.header, tuple(found), len(found) < len(kvs), len(kvs))

    def _check_revision(self, request: Range) -> None:
        if request.revision > self.revision:
            raise Restored(
                f"revision {request.revision} is asked for and the store is at {self.revision}: "
                "it was restored; read everything again"
            )
        if 0 < request.revision < self.compacted:
            raise Compacted(self.compacted)

    def txn(self, request: Txn) -> TxnResult:
        """Do one branch whole, or raise and do nothing."""
        _check(request)
        if self.full and any(isinstance(op, Put) for op in (*request.then, *request.otherwise)):
            raise NoSpace("database space exceeded")
        succeeded = all(self._holds(compare) for compare in request.compares)
        branch = request.then if succeeded else request.otherwise
        # Before any of them is done, and first all puts: apply.go, Txn.
        for op in branch:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseGone(f"lease {op.lease} of key {op.key!r} is gone: grant another")
        for op in branch:
            if isinstance(op, Range):
                self._check_revision(op)
        revision = self.revision + 1
        events: list[Event] = []
        results = [self._do(op, revision, events) for op in branch]
        self._commit(events)
        if any(isinstance(op, Put) for op in branch):
            self._cross()
        header = self.header
        return TxnResult(
            header,
            succeeded,
            tuple(replace(r, header=header) if isinstance(r, RangeResult) else r for r in results),
        )

    def _holds(self, compare: Compare) -> bool:
        return compare.holds(self._live.get(compare.key))

    def _do(self, op: Op, revision: int, events: list[Event]) -> RangeResult | int | None:
        """Do one operation of a transaction; later ones see what it did."""
        match op:
            case Range():
                return self.range(op)
            case Put():
                old = self._live.get(op.key)
                created, version = (old.create_revision, old.version) if old else (revision, 0)
                kv = KeyValue(op.key, op.value, created, revision, version + 1, op.lease)
                self._detach(old)
                if op.lease:
                    self._leases[op.lease].keys.add(op.key)
                self._live[op.key] = kv
                events.append(Event("put", kv))
                return None
            case Delete():
                keys = sorted(_matching(op, self._live))
                for key in keys:
                    self._detach(self._live.pop(key))
                    events.append(Event("delete", KeyValue(key, b"", 0, revision, version=0)))
                return len(keys)

    def _cross(self) -> None:
        """Raise the alarm, and `NoSpace` for what is done, if this crosses the quota.

        etcd checks the quota before it does a write and reports it after (quotaApplierV3).
        """
        if self.crossing:
            self.crossing, self.full = False, True
            raise NoSpace("database space exceeded")

    def _detach(self, kv: KeyValue | None) -> None:
        if kv and kv.lease:
            self._leases[kv.lease].keys.discard(kv.key)

    def _commit(self, events: Sequence[Event]) -> None:
        if events:
            self.revision += 1
            self._log.extend(events)
            self._on_commit(tuple(events))

    # Leases

    def grant(self, ttl: int, now: float) -> Lease:
        """Create a lease; one shorter than `MIN_TTL` gets that."""
        if self.full:
            raise NoSpace("database space exceeded")
        self._granted += 1
        # An odd multiplier permutes 63 bits: distinct ids in no order, as etcd's, yet repeatable.
        # A restore changes the cluster, and no id comes again after it, as in etcd.
        lease = ((self.cluster << 40) + self._granted) * 0x9E3779B97F4A7C15 & (1 << 63) - 1
        ttl = max(ttl, MIN_TTL)
        self._leases[lease] = _Lease(ttl, now + ttl)
        self._cross()
        return Lease(lease, ttl)

    def refresh(self, lease: int, now: float) -> int:
        """Refresh a lease; one past its expiry is revoked instead, as etcd does."""
        held = self._leases.get(lease)
        if held is None:
            return 0
        if held.expiry <= now:
            self.revoke(lease)
            return 0
        held.expiry = now + held.ttl
        return held.ttl

    def remaining(self, lease: int, now: float) -> tuple[int, int]:
        """Return the whole seconds left, rounded down, and those granted."""
        held = self._leases.get(lease)
        return (max(0, math.floor(held.expiry - now)), held.ttl) if held else (0, 0)

    def revoke(self, lease: int) -> None:
        """End a lease and delete its keys, in one revision if it has any."""
        held = self._leases.get(lease)
        if held is None:
            return
        events: list[Event] = []
        for key in sorted(held.keys):
            self._do(Delete(key), self.revision + 1, events)
        del self._leases[lease]
        self._commit(events)

    def tick(self, now: float) -> None:
        """Look for expired leases, as etcd does every `TICK` seconds, and revoke them."""
        expired = [lease for lease, held in self._leases.items() if held.expiry <= now]
        for lease in sorted(expired, key=lambda lease: self._leases[lease].expiry)[
            :REVOKED_PER_TICK
        ]:
            self.revoke(lease)

    def next_expiry(self) -> float | None:
        """Return when the next lease is due to expire, if there is any."""
        return min((held.expiry for held in self._leases.values()), default=None)

    def change_leader(self, now: float) -> None:
        """Elect another etcd leader, which gives every lease its full time again."""
        for held in self._leases.values():
            held.expiry = now + held.ttl

    def alarms(self) -> tuple[str, ...]:
        """Return the alarms that stand."""
        return ("NOSPACE",) if self.full else ()

    # History

    def history(self, start: int) -> Iterator[Event]:
        """Return the events from revision `start` on. Raises `Compacted`."""
        if start < self.compacted:
            raise Compacted(self.compacted)
        return iter(self._log[bisect.bisect_left(self._log, start, key=_revision) :])

    def compact(self, revision: int) -> None:
        """Forget what happened before `revision`. Raises `Compacted` if it is forgotten already."""
        if revision > self.revision:
            raise ValueError(f"cannot compact at {revision}: the store is at {self.revision}")
        if revision <= self.compacted:
            raise Compacted(self.compacted)
        end = bisect.bisect_right(self._log, revision, key=_revision)
        alive = _fold(self._log[:end])
        kept = [
            e
            for e in self._log[:end]
            if alive.get(e.kv.key) is e.kv or e.kv.mod_revision == revision
        ]
        self._log[:end] = kept
        self.compacted = revision

    def snapshot(self) -> Snapshot:
        """Return all that is held."""
        leases = ((lease, h.ttl, frozenset(h.keys)) for lease, h in self._leases.items())
        return Snapshot(
            self.cluster, self.revision, self.compacted, tuple(self._log), tuple(leases)
        )

    def restore(
        self,
        snapshot: Snapshot,
        now: float,
        cluster: int = 0,
        *,
        bump: int = 0,
        mark_compacted: bool = False,
    ) -> None:
        """Become what `snapshot` was, under another cluster id if one is given.

        As `etcdutl snapshot restore` does: `bump` is its --bump-revision, which raises the revision
        and leaves those of the keys; --mark-compacted then compacts at the raised one.
        """
        self.cluster = cluster or snapshot.cluster
        self.revision = snapshot.revision + bump
        self.compacted = snapshot.compacted
        self._log = list(snapshot.log)
        self._live = _fold(self._log)
        self._leases = {
            lease: _Lease(ttl, now + ttl, set(keys)) for lease, ttl, keys in snapshot.leases
        }
        if mark_compacted:
            self.compact(self.revision)


def _matching(request: Range | Delete, keys: Iterable[str]) -> Iterator[str]:
    if request.prefix:
        return (key for key in keys if key.startswith(request.key))
    return iter((request.key,) if request.key in keys else ())


def _check(request: Txn) -> None:
    """Raise if etcd would refuse `request` before it looks at any data."""
    for part in (request.compares, request.then, request.otherwise):
        if len(part) > MAX_OPS:
            raise TooLarge(f"{len(part)} operations in a transaction, at most {MAX_OPS}: split it")
    size = sum(len(c.key) for c in request.compares)
    for branch in (request.then, request.otherwise):
        puts: set[str] = set()
        deletes = [op for op in branch if isinstance(op, Delete)]
        for op in branch:
            size += len(op.key.encode())
            if isinstance(op, Put):
                size += len(op.value)
                if op.key in puts or any(op.key in _matching(d, (op.key,)) for d in deletes):
                    raise ValueError(f"key {op.key!r} is written twice in one transaction")
                puts.add(op.key)
    if size > MAX_BYTES:
        raise TooLarge(f"a transaction of {size} bytes, at most {MAX_BYTES}: split it")
