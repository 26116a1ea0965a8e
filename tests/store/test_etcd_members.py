"""Members that die, stall, or lose their quorum: who is asked next, and what is certain."""

import asyncio
from contextlib import suppress

import pytest
from tests.store.etcd_helpers import DEADLINE, QUICK, at_most, client, get, insist, now, put
from tests.support.etcd import EtcdCluster, free_port
from tests.support.proxy import Proxy

from kontrol.store.protocol import Ambiguous, Compare, Put, Range, Unavailable


async def test_a_killed_member_is_unavailable_until_it_is_back() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints, QUICK) as store:
        await put(store, "/k/a", b"1")
        await cluster.kill(0)
        with at_most(3), pytest.raises(Unavailable, match="cannot connect"):
            await get(store, "/k/a")
        with at_most(3), pytest.raises(Unavailable):  # certain, although it is a write
            await put(store, "/k/a", b"2")
        with at_most(3), pytest.raises(Unavailable):
            await store.grant(10)
        await cluster.start(0)
        assert await get(store, "/k/a") == b"1"


async def test_a_cluster_that_starts_late_is_waited_for() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        await cluster.kill(0)
        read = asyncio.create_task(get(store, "/k/a"))
        await cluster.start(0)
        assert await read is None


@pytest.mark.parametrize("leads", [True, False])
async def test_a_killed_member_is_left_for_another(leads: bool) -> None:
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        first = leader if leads else (leader + 1) % 3
        order = [cluster.endpoints[(first + i) % 3] for i in range(3)]
        async with client(order) as store:
            await put(store, "/k/a", b"1")
            await cluster.kill(first)
            with at_most(10 if leads else 2):  # an election of etcd's takes 1 to 2 s
                assert await get(store, "/k/a") == b"1"
                await put(store, "/k/a", b"2")
            # The last but one: no quorum, and a member that cannot know says so.
            await cluster.kill((first + 1) % 3)
            with at_most(7), pytest.raises((Unavailable, Ambiguous)):
                await put(store, "/k/a", b"3")
            with at_most(7), pytest.raises(Unavailable):
                await get(store, "/k/a")
            await cluster.start(first, ready=False)
            await insist(store, "/k/a", b"4")
            assert await get(store, "/k/a") == b"4"


@pytest.mark.parametrize("leads", [True, False])
async def test_a_stalled_member_is_left_for_another(leads: bool) -> None:
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        first = leader if leads else (leader + 1) % 3
        order = [cluster.endpoints[(first + i) % 3] for i in range(3)]
        async with client(order) as store:
            await put(store, "/k/a", b"1")
            cluster.stop(first)
            with at_most(4):
                assert await get(store, "/k/a") == b"1"
            with at_most(0.5):
                assert await get(store, "/k/a") == b"1"
                await put(store, "/k/a", b"2")
            cluster.cont(first)


async def test_a_write_at_a_stalled_member_is_ambiguous_and_the_next_is_not() -> None:
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        first = (leader + 1) % 3
        order = [cluster.endpoints[(first + i) % 3] for i in range(3)]
        async with client(order) as store:
            await put(store, "/k/a", b"1")
            cluster.stop(first)
            with at_most(4), pytest.raises(Ambiguous):
                await put(store, "/k/b")
            with at_most(0.5):
                await put(store, "/k/a", b"2")
            cluster.cont(first)


async def test_an_endpoint_without_a_listener_costs_a_write_nothing() -> None:
    async with EtcdCluster() as cluster:
        dead = f"127.0.0.1:{free_port()}"
        async with client([dead, *cluster.endpoints]) as store:
            with at_most(1):
                await put(store, "/k/a", b"1")
            assert await get(store, "/k/a") == b"1"


async def test_a_name_that_does_not_resolve_costs_a_write_nothing() -> None:
    async with (
        EtcdCluster() as cluster,
        client(["nowhere.invalid:2379", *cluster.endpoints]) as store,
    ):
        with at_most(3):
            await put(store, "/k/a", b"1")


async def test_a_connection_that_hangs_costs_a_write_its_bound() -> None:
    async with EtcdCluster() as cluster, Proxy(cluster.endpoints[0]) as proxy:
        proxy.dead()
        async with client([proxy.endpoint, *cluster.endpoints], QUICK) as store:
            with at_most(1):
                await put(store, "/k/a", b"1")


async def test_a_member_without_quorum_refuses_writes_for_certain() -> None:
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        follower = (leader + 1) % 3
        async with client([cluster.endpoints[follower]], QUICK) as store:
            await now(store)
            for i in range(3):
                if i != follower:
                    await cluster.kill(i)

            async def until_certain() -> None:
                while True:
                    with at_most(QUICK.timeout + 0.5), suppress(Ambiguous):
                        await put(store, "/k/a", b"1")

            # Until its election time-out the member waits for its leader, and so do we.
            for _ in range(2):
                with pytest.raises(Unavailable, match="no leader"):
                    await asyncio.wait_for(until_certain(), DEADLINE)
            await cluster.start(leader, ready=False)
            await insist(store, "/k/a", b"2")
            assert await get(store, "/k/a") == b"2"


async def test_a_transaction_that_only_compares_is_asked_again_elsewhere() -> None:
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        first = (leader + 1) % 3
        order = [cluster.endpoints[(first + i) % 3] for i in range(3)]
        async with client(order) as store:
            created = await put(store, "/k/a")
            cluster.stop(first)
            with at_most(4):
                proof = await store.txn([Compare("/k/a", "create", "=", created)], [Range("/k/a")])
            assert proof.succeeded
            cluster.cont(first)


async def test_calls_that_are_given_up_do_not_bring_a_member_down() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        for i in range(20):
            await store.txn([], [Put(f"/k/{i}/{j}", bytes(2000)) for j in range(100)])
        before = await now(store)
        reading = [Range("/k/", prefix=True), Range("/k/1", prefix=True)]
        for i in range(60):  # without the fix, etcd 3.5.1 died at the twentieth at the latest
            call = asyncio.create_task(store.txn([], reading))
            await asyncio.wait([call], timeout=i % 20 / 2000)
            call.cancel()
            await asyncio.wait([call])
        found = await store.txn([Compare("/k/none", "create", "=", 0)], reading)
        assert [found.range(i).count for i in range(2)] == [2000, 1100]
        assert len(found.results) == 2
        failed = await store.txn([Compare("/k/none", "create", ">", 0)], reading, reading[:1])
        assert not failed.succeeded
        assert len(failed.results) == 1
        assert (await now(store)).revision == before.revision
