"""Lease refreshes over faults: all answered, in time, on a few streams."""

import asyncio
from contextlib import suppress

import pytest
from tests.store import etcd_helpers
from tests.store.etcd_helpers import DEADLINE, LONG, QUICK, at_most, client, get, now, put, take
from tests.support.etcd import EtcdCluster
from tests.support.proxy import Proxy

from kontrol.store.etcd import EtcdStore, leases
from kontrol.store.protocol import LeaseGone, Put, Unavailable

TTL = 60


async def granted(store: EtcdStore, count: int) -> list[int]:
    return [lease.id for lease in await asyncio.gather(*(store.grant(TTL) for _ in range(count)))]


async def refresh(store: EtcdStore, ids: list[int]) -> list[int]:
    return await asyncio.gather(*(store.refresh(lease) for lease in ids))


async def refreshed(store: EtcdStore, ids: list[int]) -> None:
    """Refresh these after a start, until each is confirmed.

    Before 3.5.3, etcd may deny a lease while it applies its log after a start (etcd #13675), for as
    long as that takes: who is told so asks again.
    """
    async with asyncio.timeout(DEADLINE):
        while ids:
            with suppress(Unavailable):
                told = zip(ids, await refresh(store, ids), strict=True)
                ids = [lease for lease, ttl in told if ttl != TTL]


async def test_many_leases_share_eight_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALL", DEADLINE)  # a busy machine may hold etcd up
    async with EtcdCluster() as cluster, client(cluster.endpoints, LONG) as store:
        ids = await granted(store, 2_000)
        before = await cluster.metric(0, "grpc_server_started_total", "LeaseKeepAlive")
        with at_most(8):
            assert await refresh(store, ids * 3) == [TTL] * 6_000
        after = await cluster.metric(0, "grpc_server_started_total", "LeaseKeepAlive")
        assert after - before == 8


async def test_refreshes_under_way_survive_a_restart() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        ids = await granted(store, 500)
        # Before 3.5.5, a cluster of one answers before its log is written (etcd #14370), and
        # SIGKILL loses the last leases. Once a later write is answered, they are in the log.
        await put(store, "/k/later")
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                answers = group.create_task(refresh(store, ids * 4))
                await cluster.kill(0)
                await cluster.start(0)
            denied = [i for i, ttl in zip(ids * 4, answers.result(), strict=True) if ttl != TTL]
            await refreshed(store, denied)


@pytest.mark.parametrize("leads", [True, False])
async def test_refreshes_leave_a_stalled_member(
    leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALL", 0.5)  # quicker than the pings of the connection
    async with EtcdCluster(3) as cluster:
        leader = await cluster.leader()
        first = leader if leads else (leader + 1) % 3
        async with client([cluster.endpoints[(first + i) % 3] for i in range(3)]) as store:
            ids = await granted(store, 100)
            assert await refresh(store, ids) == [TTL] * 100
            cluster.stop(first)
            with at_most(10 if leads else 5):
                assert await refresh(store, ids) == [TTL] * 100
            cluster.cont(first)


async def test_refreshes_without_quorum_end_in_time() -> None:
    async with EtcdCluster(3) as cluster, client(cluster.endpoints, QUICK) as store:
        ids = await granted(store, 20)
        await refresh(store, ids)
        await cluster.kill(1)
        await cluster.kill(2)
        await cluster.kill(0)
        await cluster.start(0, ready=False)
        with at_most(QUICK.timeout + 1), pytest.raises(Unavailable):
            await refresh(store, ids)
        await cluster.start(1, ready=False)
        await refreshed(store, ids)


async def test_a_refresh_given_up_by_its_caller_does_not_mix_up_the_others() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
    ):
        held = (await granted(store, 1))[0]
        # Of one lane, so that their answers come in a row.
        gone = [held + 8 * i for i in range(1, 5)]
        assert await store.refresh(held) == TTL  # so that the others are sent without a wait
        proxy.dead()
        tasks = [asyncio.create_task(etcd_helpers.refresh(store, lease)) for lease in [*gone, held]]
        await asyncio.sleep(0)
        for task in tasks[:3]:
            task.cancel()
        proxy.heal()
        assert await asyncio.gather(*tasks[3:]) == [0, TTL]


async def test_too_many_waiting_refreshes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_PENDING", 10)
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
    ):
        await now(store)
        proxy.dead()
        waiting = [asyncio.create_task(etcd_helpers.refresh(store, 8)) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="10 refreshes wait"):
            await store.refresh(8)
        proxy.heal()
        assert await asyncio.gather(*waiting) == [0] * 10


async def test_an_expired_lease_is_gone_in_every_way() -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        lease = await store.grant(2)
        written = await store.txn([], [Put("/k/a", b"", lease.id)])
        async with store.watch("/k/a", start=written.header.revision + 1) as watch:
            (event,) = await take(aiter(watch), 1)
        assert event.type == "delete"
        assert await get(store, "/k/a") is None
        assert await store.refresh(lease.id) == 0
        assert await store.remaining(lease.id) == (0, 0)
        with pytest.raises(LeaseGone):
            await store.txn([], [Put("/k/a", b"", lease.id)])
        await store.revoke(lease.id)
