"""What every store must do, run against the model and against etcd: watches."""

import asyncio

import pytest
from tests.contract.conftest import Bed
from tests.contract.helpers import DEADLINE, now, put, settle, take

from kontrol.store.protocol import (
    Batch,
    Compacted,
    Delete,
    Event,
    KeyValue,
    Range,
    Restored,
)


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
