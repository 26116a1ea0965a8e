"""What a restore from a snapshot leaves behind: the model does as etcd."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from tests.contract.conftest import etcd_store, memory_store
from tests.contract.helpers import take
from tests.support.etcd import EtcdCluster
from tests.support.memory import MemoryCluster

from kontrol.store.protocol import Compacted, NoSpace, Put, Range, Restored, Store

LEASE = 60
Restore = Callable[[], Awaitable[None]]


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def restorable(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Store, int, Restore]]:
    """A store with /k/a under a lease and /k/b, and what restores it to just that, id included."""
    if request.param == "memory":
        cluster = MemoryCluster()
        async with memory_store(cluster) as store:
            lease = await fill(store)
            snapshot = cluster.snapshot()

            async def go_back() -> None:
                cluster.restore(snapshot)

            yield store, lease, go_back
        return
    async with EtcdCluster() as etcd, etcd_store(etcd) as store:
        lease = await fill(store)
        saved = await etcd.snapshot()
        yield store, lease, lambda: etcd.restore(saved, same_cluster=True)


async def fill(store: Store) -> int:
    lease = (await store.grant(LEASE)).id
    await store.txn([], [Put("/k/a", b"1", lease)])
    await store.txn([], [Put("/k/b", b"2")])
    return lease


async def test_keys_revisions_and_leases_are_those_of_the_snapshot(
    restorable: tuple[Store, int, Restore],
) -> None:
    store, lease, restore = restorable
    before = await store.range(Range("/k/", prefix=True))
    await store.txn([], [Put("/k/b", b"3"), Put("/k/c", b"3")])
    later = (await store.grant(LEASE)).id
    await restore()
    after = await store.range(Range("/k/", prefix=True))
    assert after.kvs == before.kvs
    assert after.header == before.header
    assert await store.refresh(lease) == LEASE
    assert await store.refresh(later) == 0
    await store.revoke(lease)
    assert [kv.key for kv in (await store.range(Range("/k/", prefix=True))).kvs] == ["/k/b"]


async def test_a_watch_from_before_raises(restorable: tuple[Store, int, Restore]) -> None:
    store, _, restore = restorable
    await store.txn([], [Put("/k/b", b"3")])
    done = await store.txn([], [Put("/k/b", b"4")])
    async with store.watch("/k/", prefix=True, start=done.header.revision + 1) as watch:
        await restore()
        with pytest.raises(Restored):
            await take(aiter(watch), 1)


async def test_a_watch_that_was_confirmed_later_raises_though_nothing_of_it_changed(
    restorable: tuple[Store, int, Restore],
) -> None:
    store, _, restore = restorable
    first = (await store.range(Range("/k/", prefix=True))).header.revision + 1
    async with store.watch("/k/", prefix=True, start=first) as watch:
        for value in (b"1", b"2", b"3"):
            await store.txn([], [Put("/other", value)])
        asked = asyncio.get_running_loop().time()
        await watch.confirm()
        async with asyncio.timeout(10):
            async for batch in watch:
                if batch.confirmed >= asked:
                    break
        await restore()
        with pytest.raises(Restored):
            await take(aiter(watch), 1)


# What the etcd that the tests bring cannot do yet: --bump-revision (3.6), --mark-compacted.


async def test_a_raised_revision_leaves_those_of_the_keys() -> None:
    cluster = MemoryCluster()
    async with memory_store(cluster) as store:
        await fill(store)
        before = await store.range(Range("/k/", prefix=True))
        snapshot = cluster.snapshot()
        await store.txn([], [Put("/k/b", b"3"), Put("/k/c", b"3")])
        cluster.restore(snapshot, bump=1000)
        after = await store.range(Range("/k/", prefix=True))
        assert after.kvs == before.kvs
        assert after.header.revision == before.header.revision + 1000
        done = await store.txn([], [Put("/k/b", b"5")])
        assert done.header.revision == after.header.revision + 1


async def test_a_watch_passes_over_a_raised_revision_unless_it_is_compacted() -> None:
    for marked in (False, True):
        cluster = MemoryCluster()
        async with memory_store(cluster) as store:
            await fill(store)
            snapshot = cluster.snapshot()
            done = await store.txn([], [Put("/k/b", b"3")])
            async with store.watch("/k/", prefix=True, start=done.header.revision + 1) as watch:
                cluster.restore(snapshot, bump=1000, mark_compacted=marked)
                await store.txn([], [Put("/k/b", b"4")])
                if marked:
                    with pytest.raises(Compacted) as caught:
                        await take(aiter(watch), 1)
                    assert caught.value.revision == snapshot.revision + 1000
                else:
                    assert [event.kv.value for event in await take(aiter(watch), 1)] == [b"4"]


# What crosses the quota is one write, at a moment that a test of etcd cannot choose.


async def test_the_write_that_crosses_the_quota_is_done_and_refused() -> None:
    cluster = MemoryCluster()
    async with memory_store(cluster) as store:
        cluster.core.crossing = True
        await store.range(Range("/k/a"))
        assert await store.alarms() == ()
        with pytest.raises(NoSpace):
            await store.txn([], [Put("/k/a", b"1")])
        assert (await store.range(Range("/k/a"))).kvs[0].value == b"1"
        assert await store.alarms() == ("NOSPACE",)
        with pytest.raises(NoSpace):
            await store.txn([], [Put("/k/a", b"2")])
        assert (await store.range(Range("/k/a"))).kvs[0].value == b"1"
