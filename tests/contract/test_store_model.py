"""The model against etcd: the same random program gives the same answers on both.

Revisions are told relative to the program's start, leases by the order of their grants. Left out
is what etcd leaves open: deletions at the very revision of a compaction, and time (the leases
outlive the program).
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.contract.conftest import etcd_store
from tests.support.etcd import EtcdCluster
from tests.support.memory import MemoryCluster, MemoryStore

from kontrol.store.protocol import (
    Compacted,
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseGone,
    Op,
    Put,
    Range,
    RangeResult,
    Store,
)

NAMES = ("a", "a/1", "a/2", "b")
FOREVER = 3600  # seconds
DEADLINE = 30.0
EVERYTHING = 1_000_000  # revisions back


@dataclass(frozen=True)
class Grant:
    """Create the next lease."""


@dataclass(frozen=True)
class Revoke:
    lease: int


@dataclass(frozen=True)
class Refresh:
    lease: int


@dataclass(frozen=True)
class Transaction:
    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    otherwise: tuple[Op, ...]


@dataclass(frozen=True)
class Replay:
    """Watch a prefix from a revision back in time, up to now."""

    prefix: str
    back: int


@dataclass(frozen=True)
class Compact:
    back: int


Step = Grant | Revoke | Refresh | Transaction | Replay | Compact

names = st.sampled_from(NAMES)
prefixes = st.sampled_from(("", *NAMES))
leases = st.sampled_from((0, 1, 2, 0, 1, 2, 0, 1, 2, 9))  # 0 is none; others count grants
backs = st.integers(0, 4)
ranges = st.builds(
    Range,
    prefixes,
    prefix=st.booleans(),
    limit=st.integers(0, 3),
    revision=st.just(0) | st.integers(1, 4),  # 0 now, else this much back
    keys_only=st.booleans(),
    descending=st.booleans(),
)
puts = st.builds(Put, names, st.binary(max_size=3), leases)
deletes = st.builds(Delete, names, prefix=st.booleans())
compares = st.builds(
    Compare,
    names,
    st.sampled_from(("create", "mod", "version", "lease")),
    st.sampled_from(("=", "!=", "<", ">")),
    st.integers(0, 4),
)
everything = st.builds(Range, st.just(""), prefix=st.just(value=True), descending=st.booleans())
ops: st.SearchStrategy[Op] = st.one_of(puts, puts, deletes, ranges, everything)
branches = st.one_of(
    ops.map(lambda op: (op,)),
    st.lists(ops, max_size=4, unique_by=lambda op: op.key).map(tuple),
    st.lists(ops, max_size=4).map(tuple),
)
transactions = st.builds(Transaction, st.lists(compares, max_size=2).map(tuple), branches, branches)
unconditional = st.builds(Transaction, st.just(()), branches, st.just(()))
steps: st.SearchStrategy[Step] = st.one_of(
    transactions,
    unconditional,
    unconditional,
    st.builds(Grant),
    st.builds(Revoke, leases.filter(bool)),
    st.builds(Refresh, leases.filter(bool)),
    st.builds(Replay, prefixes, backs),
    st.builds(Compact, backs),
)


LOOK: list[Step] = [
    Transaction((), (Range("", prefix=True), Range("", prefix=True, descending=True)), ()),
    Replay("", EVERYTHING),
]


class Interpreter:
    """Runs steps on one store and tells the answers in terms that two stores share."""

    def __init__(self, store: Store, compact: Callable[[int], Awaitable[object]]) -> None:
        self._store = store
        self._compact = compact
        self._prefix = f"/model/{uuid.uuid4().hex}/"
        self._leases: list[int] = []
        self._base = 0
        self._revision = 0
        self._compacted = 0

    async def run(self, program: list[Step]) -> list[object]:
        await self._put_base()
        # Without a first compaction the base would tell the two stores apart.
        await self._compact(self._base)
        self._compacted = self._base
        for _ in range(2):
            await self._step(Grant())
        return [await self._step(step) for step in program]

    async def _put_base(self) -> None:
        done = await self._store.txn([], [Put(self._prefix[:-1], b"")])
        self._base = self._revision = done.header.revision

    async def _step(self, step: Step) -> object:
        match step:
            case Grant():
                lease = await self._store.grant(FOREVER)
                self._leases.append(lease.id)
                return lease.ttl
            case Revoke(lease):
                await self._store.revoke(self._lease(lease))
                self._revision = (await self._store.range(Range(self._prefix))).header.revision
                return self._relative(self._revision)
            case Refresh(lease):
                return await self._store.refresh(self._lease(lease))
            case Transaction():
                return await self._transact(step)
            case Replay(prefix, back):
                start = self._back(back)
                if (start <= self._compacted and back == EVERYTHING) or start == self._compacted:
                    start = self._compacted + 1
                return await self._replay(self._prefix + prefix, start)
            case Compact(back):
                revision = self._back(back)
                if revision > self._compacted:
                    await self._compact(revision)
                    self._compacted = revision
                return self._relative(revision)

    async def _transact(self, step: Transaction) -> object:
        try:
            done = await self._store.txn(
                [self._compare(compare) for compare in step.compares],
                [self._op(op) for op in step.then],
                [self._op(op) for op in step.otherwise],
            )
        except (Compacted, LeaseGone, ValueError) as error:
            return type(error)
        self._revision = done.header.revision
        results = [
            (tuple(map(self._kv, r.kvs)), r.more, r.count) if isinstance(r, RangeResult) else r
            for r in done.results
        ]
        return self._relative(done.header.revision), done.succeeded, results

    async def _replay(self, prefix: str, start: int) -> object:
        loop = asyncio.get_running_loop()
        events: list[Event] = []
        async with (
            self._store.watch(prefix, prefix=True, start=start) as watch,
            asyncio.timeout(DEADLINE),
        ):
            asked = loop.time()
            await watch.confirm()
            try:
                async for batch in watch:
                    events += batch.events
                    if batch.confirmed >= asked:
                        break
            except Compacted as error:
                return "compacted", self._relative(error.revision)
        return [(event.type, self._kv(event.kv)) for event in events]

    def _back(self, back: int) -> int:
        return max(self._base, self._revision - back)

    def _relative(self, revision: int) -> int:
        return revision and revision - self._base

    def _lease(self, number: int) -> int:
        """The id of the lease granted as `number`; one that never was, if there is none."""
        return self._leases[number - 1] if 0 < number <= len(self._leases) else 4711 * number

    def _compare(self, compare: Compare) -> Compare:
        operand = compare.operand
        if compare.target == "lease":  # ids are random: which is greater says nothing
            equal = compare.op in ("=", "<")
            compare = replace(compare, op="=" if equal else "!=")
            operand = self._lease(operand)
        elif compare.target in ("create", "mod") and operand:
            operand = self._back(operand - 1)
        return replace(compare, key=self._prefix + compare.key, operand=operand)

    def _op(self, op: Op) -> Op:
        key = self._prefix + op.key
        match op:
            case Range():
                return replace(op, key=key, revision=op.revision and self._back(op.revision - 1))
            case Put():
                return replace(op, key=key, lease=self._lease(op.lease))
            case Delete():
                return replace(op, key=key)

    def _kv(self, kv: KeyValue) -> KeyValue:
        return replace(
            kv,
            key=kv.key.removeprefix(self._prefix),
            create_revision=self._relative(kv.create_revision),
            mod_revision=self._relative(kv.mod_revision),
            lease=kv.lease and self._leases.index(kv.lease) + 1,
        )


async def on_model(program: list[Step]) -> list[object]:
    cluster = MemoryCluster()

    async def compact(revision: int) -> None:
        cluster.compact(revision)

    return await Interpreter(MemoryStore(cluster), compact).run(program)


@pytest.mark.timeout(300)  # to shrink a failure takes a while
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(program=st.lists(steps, min_size=5, max_size=20))
@example(
    [
        Transaction((), (Put("a", b""),), ()),
        Compact(0),
        Transaction((), (Range("", revision=2), Put("a", b"", 9)), ()),
    ]
)
async def test_the_model_answers_as_etcd(etcd: EtcdCluster, program: list[Step]) -> None:
    async with etcd_store(etcd) as store:
        real = Interpreter(store, lambda revision: etcd.ctl("compaction", str(revision)))
        assert await on_model(program + LOOK) == await real.run(program + LOOK)


@settings(max_examples=100, deadline=None)
@given(program=st.lists(steps, max_size=30))
async def test_history_is_what_reads_of_the_past_see(program: list[Step]) -> None:
    """Folding a watch from the oldest revision that is left gives every state since."""
    cluster = MemoryCluster()

    async def compact(revision: int) -> None:
        cluster.compact(revision)

    await Interpreter(MemoryStore(cluster), compact).run(program)
    core = cluster.core
    state = {kv.key: kv for kv in core.range(Range("", prefix=True, revision=core.compacted)).kvs}
    for revision in range(core.compacted + 1, core.revision + 1):
        changes = [e for e in core.history(core.compacted + 1) if e.kv.mod_revision == revision]
        assert changes, "every revision changed something"
        for event in changes:
            if event.type == "put":
                state[event.kv.key] = event.kv
            else:
                del state[event.kv.key]
        seen = core.range(Range("", prefix=True, revision=revision)).kvs
        assert {kv.key: kv for kv in seen} == state
    assert core.range(Range("", prefix=True)).kvs == tuple(state[key] for key in sorted(state))
