"""Watches over lost connections, members and history: every event once, or an error."""

import asyncio
import math
from collections.abc import Sequence

import pytest
from tests.store.etcd_helpers import (
    DEADLINE,
    QUICK,
    at_most,
    client,
    confirmation,
    insist,
    now,
    put,
    take,
)
from tests.support.etcd import EtcdCluster
from tests.support.proxy import Proxy

from kontrol.store.etcd import watch as watch_module
from kontrol.store.protocol import Compacted, Delete, Event, Put, Restored


def values(events: Sequence[Event]) -> list[int]:
    return [int(event.kv.value) for event in events]


async def test_thousands_of_events_over_a_restart_are_neither_lost_nor_doubled() -> None:
    count = 3000
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:

        async def write() -> None:
            for i in range(count):
                await insist(store, "/k/a", str(i).encode())

        start = (await now(store)).revision + 1
        async with (
            client(cluster.endpoints) as other,
            other.watch("/k/", prefix=True, start=start) as watch,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(write())
            batches = aiter(watch)
            events = await take(batches, 700)
            await cluster.kill(0)
            await cluster.start(0)
            events += await take(batches, 1700 - len(events))
            await cluster.terminate(0)
            await cluster.start(0)
            while int(events[-1].kv.value) != count - 1:
                events += await take(batches, 1)
        revisions = [event.kv.mod_revision for event in events]
        # A write repeated after an ambiguous answer may make two events: compare with the truth.
        assert revisions == list(range(start, start + len(revisions)))
        assert sorted(set(values(events))) == list(range(count))


async def test_events_go_on_while_members_die_in_turn() -> None:
    async with EtcdCluster(3) as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        writing = True

        async def write() -> None:
            i = 0
            while writing:
                await insist(store, "/k/a", str(i := i + 1).encode())

        async with (
            client(cluster.endpoints) as other,
            other.watch("/k/a", start=start) as watch,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(write())
            batches = aiter(watch)
            events = await take(batches, 50)
            for i in range(3):
                await cluster.kill(i)
                events += await take(batches, 50)
                await cluster.start(i)
                events += await take(batches, 50)
            writing = False
        revisions = [event.kv.mod_revision for event in events]
        assert revisions == list(range(start, start + len(revisions)))


@pytest.mark.parametrize("probe", ["quick", "default"])
async def test_a_watch_leaves_a_stalled_member(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if probe == "quick":  # quicker than the pings of the connection
        for name in ("PROBE", "PROBE_ATTEMPT", "STALL"):
            monkeypatch.setattr(watch_module, name, 0.4)
    bound = 2 if probe == "quick" else 4
    async with EtcdCluster(3) as cluster:
        follower = ((await cluster.leader()) + 1) % 3
        order = [cluster.endpoints[(follower + i) % 3] for i in range(3)]
        async with client(order) as store, client(order[1:]) as writer:
            start = (await now(store)).revision + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                batches = aiter(watch)
                await put(writer, "/k/a", b"1")
                assert values(await take(batches, 1)) == [1]
                cluster.stop(follower)
                await put(writer, "/k/a", b"2")
                with at_most(bound):
                    assert values(await take(batches, 1)) == [2]
                await put(writer, "/k/a", b"3")
                assert values(await take(batches, 1)) == [3]
                cluster.cont(follower)


async def test_a_watch_leaves_a_member_that_dies() -> None:
    async with EtcdCluster(3) as cluster:
        follower = ((await cluster.leader()) + 1) % 3
        order = [cluster.endpoints[(follower + i) % 3] for i in range(3)]
        async with client(order) as store, client(order[1:]) as writer:
            start = (await now(store)).revision + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                batches = aiter(watch)
                await put(writer, "/k/a", b"1")
                await take(batches, 1)
                await cluster.kill(follower)
                await put(writer, "/k/a", b"2")
                with at_most(0.5):
                    assert values(await take(batches, 1)) == [2]


async def test_a_watch_waits_for_a_lost_quorum() -> None:
    async with EtcdCluster(3) as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            await put(store, "/k/a", b"1")
            await take(batches, 1)
            await cluster.kill(1)
            await cluster.kill(2)
            asked = asyncio.get_running_loop().time()
            await watch.confirm()
            answer = asyncio.create_task(confirmation(batches, asked))
            done, _ = await asyncio.wait({answer}, timeout=2)
            assert not done  # no member could know whether it is behind
            await cluster.start(1, ready=False)
            assert await answer == []
            await insist(store, "/k/a", b"2")
            assert set(values(await take(batches, 1))) == {2}


async def test_a_watch_behind_a_partition_is_not_confirmed_before_it_has_caught_up() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint], QUICK) as store,
        client(cluster.endpoints) as writer,
    ):
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            await put(writer, "/k/a", b"1")
            await take(batches, 1)
            proxy.dead()
            await put(writer, "/k/a", b"2")
            asked = asyncio.get_running_loop().time()
            await watch.confirm()
            answer = asyncio.create_task(confirmation(batches, asked))
            done, _ = await asyncio.wait({answer}, timeout=3)
            assert not done
            proxy.heal()
            assert values(await answer) == [2]


async def test_a_silent_stream_is_not_confirmed_by_a_member_that_answers() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints]) as store,
        client(cluster.endpoints) as writer,
    ):
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            await put(writer, "/k/a", b"1")
            await take(batches, 1)
            proxy.dead()
            await put(writer, "/k/a", b"2")
            asked = asyncio.get_running_loop().time()
            await watch.confirm()
            with at_most(4):
                assert values(await confirmation(batches, asked)) == [2]


async def test_a_watch_is_confirmed_though_only_other_keys_change() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        loop = asyncio.get_running_loop()
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            for i in range(5):
                await put(store, "/other", str(i).encode())
                asked = loop.time()
                await watch.confirm()
                with at_most(2):
                    assert await confirmation(batches, asked) == []


async def test_a_busy_watch_is_confirmed_by_its_events() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        loop = asyncio.get_running_loop()
        writing = True

        async def write() -> None:
            while writing:
                await put(store, "/k/a")

        async with (
            store.watch("/k/", prefix=True, start=start) as watch,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(write())
            batches = aiter(watch)
            await take(batches, 10)
            for _ in range(5):
                asked = loop.time()
                await watch.confirm()
                with at_most(1):
                    await confirmation(batches, asked)
            writing = False


async def test_a_confirmation_is_not_claimed_before_it_is_known() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        await put(store, "/k/a", b"1")
        await put(store, "/k/a", b"2")
        async with store.watch("/k/", prefix=True, start=2) as watch:
            batch = await anext(aiter(watch))
        assert batch.confirmed == -math.inf


async def test_compaction_while_the_watch_was_cut_off_raises() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
        client(cluster.endpoints) as writer,
    ):
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            await put(writer, "/k/a", b"1")
            await take(batches, 1)
            proxy.dead()
            proxy.cut()
            last = 0
            for i in range(5):
                last = await put(writer, "/k/a", str(i).encode())
            await cluster.ctl("compaction", str(last))
            proxy.heal()
            with pytest.raises(Compacted) as caught:
                await take(batches, 1)
            assert caught.value.revision == last
            with pytest.raises(Compacted):  # and goes on saying so
                await anext(batches)


async def test_a_restore_into_another_cluster_raises() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        await put(store, "/k/a", b"1")
        snapshot = await cluster.snapshot()
        header = await now(store)
        async with store.watch(
            "/k/", prefix=True, start=header.revision + 1, cluster=header.cluster
        ) as watch:
            batches = aiter(watch)
            await watch.confirm()
            await anext(batches)
            await cluster.restore(snapshot)
            with pytest.raises(Restored, match="cluster"):
                await take(batches, 1)
        assert (await now(store)).cluster != header.cluster


async def test_a_restore_to_a_lower_revision_raises() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        await put(store, "/k/a", b"1")
        snapshot = await cluster.snapshot()
        await put(store, "/k/a", b"2")
        await put(store, "/k/a", b"3")
        header = await now(store)
        async with store.watch("/k/", prefix=True, start=header.revision - 1) as watch:
            batches = aiter(watch)
            assert values(await take(batches, 2)) == [2, 3]
            await cluster.restore(snapshot, same_cluster=True)
            with pytest.raises(Restored, match="restored"):
                await take(batches, 1)


async def test_a_big_revision_comes_in_one_batch() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        for _ in range(6):
            await store.txn([], [Put(f"/k/{i}", b"." * 120_000) for i in range(10)])
        await store.txn([], [Delete("/k/", prefix=True)])
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            seen: list[int] = []
            async with asyncio.timeout(DEADLINE):
                while len(seen) < 70:
                    revisions = [e.kv.mod_revision for e in (await anext(batches)).events]
                    assert not set(revisions) & set(seen)
                    seen += revisions
        assert seen == [start + i for i in range(7) for _ in range(10)]


async def test_a_slow_consumer_holds_the_server_back_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "MAX_QUEUED", 3)
    async with (
        EtcdCluster() as cluster,
        client(cluster.endpoints) as store,
        client(cluster.endpoints) as writer,
    ):
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            assert isinstance(watch, watch_module.EtcdWatch)
            batches = aiter(watch)
            # Long enough that a probe finds the watch behind and silent, several times.
            loop = asyncio.get_running_loop()
            until = loop.time() + 4
            last = 0
            while loop.time() < until:
                last = await put(writer, "/k/a")
                assert len(watch._batches) <= 4  # the three, and an answer to a probe
            events = await take(batches, last - start + 1)
        assert [e.kv.mod_revision for e in events] == list(range(start, last + 1))
        assert await cluster.metric(0, "grpc_server_started_total", '"Watch"') == 1


async def test_an_iteration_cut_short_loses_nothing() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        start = (await now(store)).revision + 1
        async with store.watch("/k/", prefix=True, start=start) as watch:
            batches = aiter(watch)
            seen: list[int] = []
            for i in range(100):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await anext(batches)
                await put(store, "/k/a", str(i).encode())
                seen += values(await take(batches, 1))
        assert seen == list(range(100))


async def test_a_watch_opened_without_etcd_starts_when_etcd_does() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints, QUICK) as store:
        await put(store, "/k/a", b"1")
        start = (await now(store)).revision + 1
        await cluster.kill(0)
        async with store.watch("/k/", prefix=True, start=start) as watch:
            await cluster.start(0)
            await put(store, "/k/a", b"2")
            assert values(await take(aiter(watch), 1)) == [2]
