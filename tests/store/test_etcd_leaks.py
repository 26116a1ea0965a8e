"""What is opened is closed: tasks, descriptors, and streams on etcd's side too."""

import asyncio
import gc
from pathlib import Path

import pytest
from tests.store.etcd_helpers import DEADLINE, client, now, put, refresh, take
from tests.support.etcd import EtcdCluster

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.protocol import Ambiguous, Compacted, Range, Unavailable, Watch


async def settled(cluster: EtcdCluster, name: str) -> None:
    """Wait until a gauge of the member's is back at 0; it tells only those who ask."""
    async with asyncio.timeout(DEADLINE):
        while await cluster.metric(0, name):
            pass


async def idle(before: set[asyncio.Task[object]]) -> None:
    """Wait until no task is left but those of `before`."""
    async with asyncio.timeout(DEADLINE):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def use(cluster: EtcdCluster) -> None:
    async with client(cluster.endpoints) as store:
        start = await put(store, "/k/a") + 1
        lease = await store.grant(10)
        await store.refresh(lease.id)
        async with store.watch("/k/a", start=start) as watch:
            await put(store, "/k/a")
            await take(aiter(watch), 1)
        await store.revoke(lease.id)


async def test_a_closed_store_leaves_nothing() -> None:
    async with EtcdCluster() as cluster:
        before = asyncio.all_tasks()
        await use(cluster)
        await idle(before)
        gc.collect()
        opened = descriptors()
        for _ in range(20):
            await use(cluster)
        await idle(before)
        gc.collect()
        assert descriptors() == opened


async def test_streams_that_a_member_ended_leave_no_task() -> None:
    async with EtcdCluster() as cluster:
        before = asyncio.all_tasks()
        async with client(cluster.endpoints) as store:
            start = await put(store, "/k/a") + 1
            await store.refresh((await store.grant(10)).id)
            async with store.watch("/k/a", start=start) as watch:
                await cluster.kill(0)
                await cluster.start(0)
                await put(store, "/k/a")
                await take(aiter(watch), 1)
        await idle(before)


async def test_closed_watches_leave_no_stream_at_etcd() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        before = asyncio.all_tasks()
        for i in range(50):
            async with store.watch("/k/a", start=start + i) as watch:
                await put(store, "/k/a")
                await take(aiter(watch), 1)
        await idle(before)
        await settled(cluster, "etcd_debugging_mvcc_watch_stream_total")
        await settled(cluster, "etcd_debugging_mvcc_watcher_total")


async def test_refused_watches_leave_no_stream_at_etcd() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        last = 0
        for _ in range(3):
            last = await put(store, "/k/a")
        await cluster.ctl("compaction", str(last))
        async with store.watch("/k/a", start=2) as watch:
            with pytest.raises(Compacted):
                await anext(aiter(watch))
            await settled(cluster, "etcd_debugging_mvcc_watch_stream_total")


async def test_a_watch_closed_before_it_was_connected() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        before = asyncio.all_tasks()
        for _ in range(20):
            async with store.watch("/k/a", start=2):
                pass
            async with store.watch("/k/a", start=2):
                await asyncio.sleep(0)
        await idle(before)


async def test_close_ends_what_is_under_way() -> None:
    async with EtcdCluster(3) as cluster:
        store = EtcdStore(EtcdConfig(tuple(cluster.endpoints)))
        start = (await now(store)).revision + 1
        lease = (await store.grant(10)).id
        await store.refresh(lease)
        for i in range(3):
            cluster.stop(i)
        before = asyncio.all_tasks()
        async with store.watch("/k/a", start=start) as watch:
            following = asyncio.create_task(_drain(watch))
            refreshing = asyncio.create_task(refresh(store, lease))
            reading = asyncio.create_task(now(store))
            writing = asyncio.create_task(put(store, "/k/a"))
            await asyncio.wait({reading, writing, refreshing, following}, timeout=0.2)
            async with asyncio.timeout(2):
                await store.close()
                await following
                with pytest.raises(Unavailable):
                    await refreshing
                with pytest.raises(Unavailable):
                    await reading
                with pytest.raises(Ambiguous):
                    await writing
        for i in range(3):
            cluster.cont(i)
        with pytest.raises(Unavailable, match="closed"):
            await store.range(Range("/k/a"))
        with pytest.raises(Unavailable, match="closed"):
            await store.refresh(lease)
        await store.close()
        await idle(before)


async def _drain(watch: Watch) -> None:
    async for _ in watch:
        pass
