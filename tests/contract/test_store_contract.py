"""What every store must do, run against the model and against etcd."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from tests.contract.conftest import Bed

from kontrol.store.protocol import (
    Batch,
    Compacted,
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseGone,
    Op,
    Put,
    Range,
    Restored,
    Store,
    TooLarge,
    TxnResult,
    Watch,
)

DEADLINE = 10.0  # seconds


async def put(bed: Bed, *names: str, lease: int = 0, value: bytes = b"") -> int:
    """Put keys in one transaction; return its revision."""
    ops = [Put(bed.key(name), value or name.encode(), lease) for name in names]
    return (await bed.store.txn([], ops)).header.revision


async def names(bed: Bed) -> list[str]:
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    return [kv.key.removeprefix(bed.prefix) for kv in found.kvs]


async def now(store: Store) -> int:
    return (await store.range(Range("/", limit=1))).header.revision


async def take(batches: AsyncIterator[Batch], count: int) -> list[Event]:
    """Receive until `count` events have come."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while len(events) < count:
            events.extend((await anext(batches)).events)
    return events


async def settle(watch: Watch, batches: AsyncIterator[Batch]) -> list[Event]:
    """Receive all events up to now."""
    asked = asyncio.get_running_loop().time()
    await watch.confirm()
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        while True:
            batch = await anext(batches)
            events.extend(batch.events)
            if batch.confirmed >= asked:
                return events


# Reading


async def test_an_absent_key(bed: Bed) -> None:
    found = await bed.store.range(Range(bed.key("none")))
    assert (found.kvs, found.more, found.count) == ((), False, 0)
    assert found.header.revision > 0
    assert found.header.cluster != 0


async def test_a_key_tells_its_history(bed: Bed) -> None:
    first = await put(bed, "a", value=b"1")
    second = await put(bed, "a", value=b"2")
    found = await bed.store.range(Range(bed.key("a")))
    assert found.kvs == (KeyValue(bed.key("a"), b"2", first, second, 2, 0),)
    assert second == first + 1
    assert found.header.revision >= second


async def test_values_are_bytes(bed: Bed) -> None:
    value = bytes(range(256))
    await bed.store.txn([], [Put(bed.key("all"), value), Put(bed.key("none"), b"")])
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    assert [kv.value for kv in found.kvs] == [value, b""]


async def test_a_prefix_is_read_in_order(bed: Bed) -> None:
    wanted = ["a", "a/1", "a/2", "aé", "a\U0001f600", "b"]
    for name in reversed(wanted):
        await put(bed, name)
    assert await names(bed) == wanted
    found = await bed.store.range(Range(bed.key("a"), prefix=True))
    assert [kv.key for kv in found.kvs] == [bed.key(name) for name in wanted[:-1]]
    assert (await bed.store.range(Range(bed.key("a")))).count == 1


async def test_a_limit_cuts_and_says_so(bed: Bed) -> None:
    await put(bed, "a", "b", "c")
    found = await bed.store.range(Range(bed.prefix, prefix=True, limit=2))
    assert [kv.key for kv in found.kvs] == [bed.key("a"), bed.key("b")]
    assert (found.more, found.count) == (True, 3)
    found = await bed.store.range(Range(bed.prefix, prefix=True, limit=3))
    assert (found.more, found.count) == (False, 3)


async def test_keys_only(bed: Bed) -> None:
    revision = await put(bed, "a")
    found = await bed.store.range(Range(bed.prefix, prefix=True, keys_only=True))
    assert found.kvs == (KeyValue(bed.key("a"), b"", revision, revision),)


async def test_the_newest_first(bed: Bed) -> None:
    for name in ("b", "c", "a", "b"):
        await put(bed, name)
    found = await bed.store.range(Range(bed.prefix, prefix=True, newest=True))
    assert [kv.key for kv in found.kvs] == [bed.key(name) for name in ("a", "c", "b")]
    found = await bed.store.range(Range(bed.prefix, prefix=True, newest=True, limit=1))
    assert ([kv.key for kv in found.kvs], found.more, found.count) == ([bed.key("a")], True, 3)


async def test_the_past_can_be_read(bed: Bed) -> None:
    first = await put(bed, "a", "b", value=b"1")
    second = await put(bed, "a", value=b"2")
    await bed.store.txn([], [Delete(bed.key("a"))])
    past = await bed.store.range(Range(bed.prefix, prefix=True, revision=second))
    assert [(kv.key, kv.value, kv.mod_revision) for kv in past.kvs] == [
        (bed.key("a"), b"2", second),
        (bed.key("b"), b"1", first),
    ]
    assert await names(bed) == ["b"]


async def test_the_compacted_past_cannot(bed: Bed) -> None:
    first = await put(bed, "a", value=b"1")
    second = await put(bed, "a", value=b"2")
    await put(bed, "a", value=b"3")
    await bed.compact(second)
    found = await bed.store.range(Range(bed.key("a"), revision=second))
    assert found.kvs[0].value == b"2"
    with pytest.raises(Compacted):
        await bed.store.range(Range(bed.key("a"), revision=first))


# Transactions


@pytest.mark.parametrize("target", ["create", "mod", "version", "lease"])
async def test_an_absent_key_compares_as_zero(bed: Bed, target: str) -> None:
    for op, operand, holds in [
        ("=", 0, True), ("=", 1, False), ("!=", 0, False), ("<", 1, True), (">", 0, False),
    ]:  # fmt: skip
        compare = Compare(bed.key("none"), target, op, operand)  # type: ignore[arg-type]
        assert (await bed.store.txn([compare], [])).succeeded is holds, compare


async def test_compares_on_a_key(bed: Bed) -> None:
    lease = (await bed.store.grant(60)).id
    created = await put(bed, "a")
    modified = await put(bed, "a", lease=lease)
    facts = {"create": created, "mod": modified, "version": 2, "lease": lease}
    for target, fact in facts.items():
        for op, operand, holds in [
            ("=", fact, True), ("=", fact + 1, False), ("!=", fact, False), ("!=", fact - 1, True),
            ("<", fact, False), ("<", fact + 1, True), (">", fact, False), (">", fact - 1, True),
        ]:  # fmt: skip
            compare = Compare(bed.key("a"), target, op, operand)  # type: ignore[arg-type]
            assert (await bed.store.txn([compare], [])).succeeded is holds, compare
    await bed.store.revoke(lease)


async def test_one_false_compare_takes_the_other_branch(bed: Bed) -> None:
    await put(bed, "a")
    compares = [Compare(bed.key("a"), "version", "=", 1), Compare(bed.key("b"), "version", "=", 1)]
    done = await bed.store.txn(compares, [Put(bed.key("x"), b"")], [Put(bed.key("y"), b"")])
    assert not done.succeeded
    assert done.results == (None,)
    assert await names(bed) == ["a", "y"]


async def test_operations_see_those_before_them(bed: Bed) -> None:
    await put(bed, "a", value=b"1")
    done = await bed.store.txn(
        [],
        [
            Range(bed.key("a")),
            Put(bed.key("a"), b"2"),
            Range(bed.key("a")),
            Delete(bed.key("b"), prefix=True),
            Put(bed.key("c"), b"3"),
            Delete(bed.key("none")),
            Range(bed.prefix, prefix=True),
        ],
    )
    assert done.range(0).kvs[0].value == b"1"
    assert done.results[1] is None
    assert done.range(2).kvs[0] == KeyValue(
        bed.key("a"), b"2", done.header.revision - 1, done.header.revision, 2
    )
    assert (done.results[3], done.results[5]) == (0, 0)
    assert [kv.key for kv in done.range(6).kvs] == [bed.key("a"), bed.key("c")]


async def test_a_delete_counts(bed: Bed) -> None:
    await put(bed, "a", "b/1", "b/2")
    done = await bed.store.txn(
        [], [Delete(bed.key("b/"), prefix=True), Delete(bed.key("b/1")), Delete(bed.key("a"))]
    )
    assert done.results == (2, 0, 1)
    assert await names(bed) == []


async def test_what_changes_nothing_makes_no_revision(bed: Bed) -> None:
    before = await put(bed, "a")
    done = await bed.store.txn([], [Delete(bed.key("none")), Range(bed.key("a"))])
    assert done.header.revision == before
    done = await bed.store.txn([], [])
    assert done.succeeded
    assert await now(bed.store) == before


async def test_writes_of_a_transaction_share_its_revision(bed: Bed) -> None:
    revision = await put(bed, "a", "b")
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    assert {kv.mod_revision for kv in found.kvs} == {revision}


@pytest.mark.parametrize(
    "twice", [(Put("a", b"1"), Put("a", b"2")), (Put("a", b"1"), Delete("", prefix=True))]
)
async def test_no_key_is_written_twice(bed: Bed, twice: Sequence[Put | Delete]) -> None:
    await put(bed, "z")
    ops = [
        Put(bed.key(op.key), op.value) if isinstance(op, Put) else Delete(bed.prefix, prefix=True)
        for op in twice
    ]
    with pytest.raises(ValueError, match=r"twice|duplicate"):
        await bed.store.txn([], ops)
    assert await names(bed) == ["z"]


async def test_128_operations_and_no_more(bed: Bed) -> None:
    keys = [bed.key(f"{i:03}") for i in range(129)]
    compares = [Compare(key, "create", "=", 0) for key in keys]
    puts = [Put(key, b"") for key in keys]
    done = await bed.store.txn(compares[:128], puts[:128], puts[:128])
    assert done.succeeded
    assert len(await names(bed)) == 128
    arguments: list[tuple[list[Compare], list[Put], list[Put]]] = [
        (compares, [], []), ([], puts, []), ([], [], puts),
    ]  # fmt: skip
    for compare, then, otherwise in arguments:
        with pytest.raises(TooLarge):
            await bed.store.txn(compare, then, otherwise)
    assert len(await names(bed)) == 128


async def test_a_mebibyte_and_a_half(bed: Bed) -> None:
    await put(bed, "a", value=b"." * 1_500_000)
    with pytest.raises(TooLarge):
        await bed.store.txn([], [Put(bed.key(name), b"." * 800_000) for name in "bc"])
    assert await names(bed) == ["a"]
    found = await bed.store.range(Range(bed.key("a")))
    assert len(found.kvs[0].value) == 1_500_000


async def test_compare_and_set_lets_one_win(bed: Bed) -> None:
    key = bed.key("counter")
    await bed.store.txn([], [Put(key, b"0")])

    async def add(store: Store, times: int) -> None:
        while times:
            kv = (await store.range(Range(key))).kvs[0]
            value = str(int(kv.value) + 1).encode()
            compare = Compare(key, "mod", "=", kv.mod_revision)
            times -= (await store.txn([compare], [Put(key, value)])).succeeded

    async with bed.another() as other, asyncio.timeout(DEADLINE):
        await asyncio.gather(*(add(store, 10) for store in (bed.store, other) for _ in range(3)))
        assert (await other.range(Range(key))).kvs[0].value == b"60"


# Leases


async def test_a_lease_lasts_at_least_what_was_asked(bed: Bed) -> None:
    one, ten = await asyncio.gather(bed.store.grant(1), bed.store.grant(10))
    assert (one.ttl, ten.ttl) == (2, 10)
    assert 0 < one.id != ten.id > 0
    assert await bed.store.refresh(ten.id) == 10
    assert 8 <= await bed.store.remaining(ten.id) <= 10
    await asyncio.gather(bed.store.revoke(one.id), bed.store.revoke(ten.id))


async def test_an_unknown_lease(bed: Bed) -> None:
    lease = (await bed.store.grant(60)).id
    await bed.store.revoke(lease)
    await bed.store.revoke(lease)
    assert await bed.store.refresh(lease) == 0
    assert await bed.store.remaining(lease) == 0
    before = await now(bed.store)
    with pytest.raises(LeaseGone):
        await bed.store.txn([], [Put(bed.key("a"), b""), Put(bed.key("b"), b"", lease)])
    assert await names(bed) == []
    assert await now(bed.store) == before
    done = await bed.store.txn([], [], [Put(bed.key("b"), b"", lease)])
    assert done.succeeded  # the branch that is not taken is not looked at


async def test_a_revoked_lease_takes_its_keys_along(bed: Bed) -> None:
    lease = (await bed.store.grant(60)).id
    revision = await put(bed, "b", "a", lease=lease)
    await put(bed, "c")
    async with bed.store.watch(bed.prefix, prefix=True, start=revision + 2) as watch:
        await bed.store.revoke(lease)
        events = await take(aiter(watch), 2)
    gone = revision + 2
    assert [(e.type, e.kv.key, e.kv.mod_revision) for e in events] == [
        ("delete", bed.key("a"), gone),
        ("delete", bed.key("b"), gone),
    ]
    assert await names(bed) == ["c"]


async def test_a_lease_without_keys_makes_no_revision(bed: Bed) -> None:
    before = await now(bed.store)
    await bed.store.revoke((await bed.store.grant(60)).id)
    assert await now(bed.store) == before


async def test_a_key_has_one_lease_at_a_time(bed: Bed) -> None:
    old, new = await asyncio.gather(bed.store.grant(60), bed.store.grant(60))
    await put(bed, "moved", "freed", "gone", lease=old.id)
    await put(bed, "moved", lease=new.id)
    await put(bed, "freed")
    await bed.store.txn([], [Delete(bed.key("gone"))])
    await put(bed, "gone")
    found = await bed.store.range(Range(bed.prefix, prefix=True))
    assert {kv.key.removeprefix(bed.prefix): kv.lease for kv in found.kvs} == {
        "moved": new.id,
        "freed": 0,
        "gone": 0,
    }
    await bed.store.revoke(old.id)
    assert await names(bed) == ["freed", "gone", "moved"]
    await bed.store.revoke(new.id)
    assert await names(bed) == ["freed", "gone"]


async def test_a_silent_lease_expires(bed: Bed) -> None:
    loop = asyncio.get_running_loop()
    lease = (await bed.store.grant(2)).id
    revision = await put(bed, "a", "b", lease=lease)
    async with bed.store.watch(bed.prefix, prefix=True, start=revision + 1) as watch:
        await asyncio.sleep(1)
        sent = loop.time()
        assert await bed.store.refresh(lease) == 2
        events = await take(aiter(watch), 2)
        took = loop.time() - sent
    assert 2 <= took < 2 + 0.5 + 1, "expired leases are looked for every 0.5 s"
    assert [e.kv.key for e in events] == [bed.key("a"), bed.key("b")]
    assert {e.kv.mod_revision for e in events} == {events[0].kv.mod_revision}
    assert await bed.store.refresh(lease) == 0
    with pytest.raises(LeaseGone):
        await put(bed, "a", lease=lease)


async def test_many_leases_are_refreshed_at_once(bed: Bed) -> None:
    leases = await asyncio.gather(*(bed.store.grant(60 + i) for i in range(100)))
    async with asyncio.timeout(DEADLINE):
        answers = await asyncio.gather(*(bed.store.refresh(lease.id) for lease in leases))
    assert answers == [60 + i for i in range(100)]
    await asyncio.gather(*(bed.store.revoke(lease.id) for lease in leases))


# Watches


async def test_a_watch_replays_the_past_and_goes_on(bed: Bed) -> None:
    first = await put(bed, "a", value=b"1")
    await put(bed, "b")
    await bed.store.txn([], [Delete(bed.key("a"))])
    async with bed.store.watch(bed.key("a"), start=first) as watch:
        batches = aiter(watch)
        events = await take(batches, 2)
        last = await put(bed, "a", value=b"2")
        events += await take(batches, 1)
    assert events == [
        Event("put", KeyValue(bed.key("a"), b"1", first, first)),
        Event("delete", KeyValue(bed.key("a"), b"", 0, first + 2, 0)),
        Event("put", KeyValue(bed.key("a"), b"2", last, last)),
    ]


async def test_a_watch_starts_where_it_is_told(bed: Bed) -> None:
    await put(bed, "a")
    second = await put(bed, "a")
    async with bed.store.watch(bed.prefix, prefix=True, start=second) as watch:
        events = await settle(watch, aiter(watch))
    assert [e.kv.mod_revision for e in events] == [second]


async def test_a_watch_delivers_whole_revisions(bed: Bed) -> None:
    start = await now(bed.store) + 1
    big = b"." * 9_000
    for _ in range(3):
        await put(bed, *(f"{i:03}" for i in range(100)), value=big)
    async with bed.store.watch(bed.prefix, prefix=True, start=start) as watch:
        batches = aiter(watch)
        seen: list[int] = []
        async with asyncio.timeout(DEADLINE):
            while len(seen) < 300:
                batch = (await anext(batches)).events
                assert not {e.kv.mod_revision for e in batch} & set(seen)
                seen += [e.kv.mod_revision for e in batch]
    assert seen == [start] * 100 + [start + 1] * 100 + [start + 2] * 100


async def test_a_watch_confirms(bed: Bed) -> None:
    loop = asyncio.get_running_loop()
    start = await now(bed.store) + 1
    async with bed.store.watch(bed.prefix, prefix=True, start=start) as watch:
        batches = aiter(watch)
        assert await settle(watch, batches) == []
        await put(bed, "a")
        await put(bed, "b")
        events = await settle(watch, batches)
        assert [e.kv.key for e in events] == [bed.key("a"), bed.key("b")]
        await put(bed, "c")
        async with asyncio.timeout(DEADLINE):
            batch = await anext(batches)
        assert batch.confirmed <= loop.time()


async def test_watches_are_independent(bed: Bed) -> None:
    start = await now(bed.store) + 1
    async with bed.store.watch(bed.key("a"), start=start) as one:
        async with bed.store.watch(bed.key("a"), start=start) as two:
            await put(bed, "a")
            await take(aiter(two), 1)
        async with bed.another() as other, other.watch(bed.key("a"), start=start + 1) as three:
            await put(bed, "a")
            assert len(await take(aiter(one), 2)) == 2
            assert len(await take(aiter(three), 1)) == 1


async def test_a_watch_of_the_compacted_past_raises(bed: Bed) -> None:
    first = await put(bed, "a")
    await put(bed, "a")
    third = await put(bed, "a")
    await bed.compact(third)
    async with bed.store.watch(bed.key("a"), start=first) as watch:
        with pytest.raises(Compacted) as caught:
            await take(aiter(watch), 1)
    assert caught.value.revision == third
    async with bed.store.watch(bed.key("a"), start=third) as watch:
        assert [e.kv.mod_revision for e in await take(aiter(watch), 1)] == [third]


async def test_compaction_leaves_an_open_watch_alone(bed: Bed) -> None:
    start = await now(bed.store) + 1
    async with bed.store.watch(bed.prefix, prefix=True, start=start) as watch:
        batches = aiter(watch)
        await settle(watch, batches)
        await put(bed, "a")
        await bed.compact(await put(bed, "a"))
        await put(bed, "a")
        assert len(await take(batches, 3)) == 3


async def test_a_watch_of_another_cluster_raises(bed: Bed) -> None:
    header = (await bed.store.range(Range(bed.key("a")))).header
    start = header.revision + 1
    async with bed.store.watch(bed.key("a"), start=start, cluster=header.cluster) as watch:
        assert await settle(watch, aiter(watch)) == []
    async with bed.store.watch(bed.key("a"), start=start, cluster=header.cluster ^ 2) as watch:
        with pytest.raises(Restored):
            await take(aiter(watch), 1)


async def test_a_watch_of_the_future_raises(bed: Bed) -> None:
    start = await now(bed.store) + 1000
    async with bed.store.watch(bed.key("a"), start=start) as watch:
        with pytest.raises(Restored):
            await take(aiter(watch), 1)


async def test_closing_the_store_ends_its_watches(bed: Bed) -> None:
    start = await now(bed.store) + 1
    async with bed.another() as other, other.watch(bed.key("a"), start=start) as watch:
        batches = aiter(watch)
        await settle(watch, batches)

        async def rest() -> list[Batch]:
            return [batch async for batch in batches]

        reader = asyncio.create_task(rest())
        await other.close()
        async with asyncio.timeout(DEADLINE):
            assert await reader == []


async def test_a_result_that_is_no_range_says_so(bed: Bed) -> None:
    ops: list[Op] = [Put(bed.key("a"), b"")]
    done: TxnResult = await bed.store.txn([], ops)
    with pytest.raises(AssertionError, match="no range"):
        done.range(0)
