"""Answers that are lost on the way: what was done is said exactly, or said to be unknown."""

import asyncio

import pytest
from tests.store.etcd_helpers import DEADLINE, QUICK, at_most, client, get, put, take
from tests.support.etcd import EtcdCluster
from tests.support.proxy import Proxy

from kontrol.store.protocol import Ambiguous, NoSpace, Put, Unavailable


async def test_a_write_whose_connection_breaks_is_ambiguous_and_was_done() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
        client(cluster.endpoints) as witness,
    ):
        start = await put(store, "/k/a", b"1") + 1
        async with witness.watch("/k/a", start=start) as watch:
            proxy.deaf()
            write = asyncio.create_task(put(store, "/k/a", b"2"))
            # Seen from outside: what was swallowed first need not be the answer.
            [event] = await take(aiter(watch), 1)
        proxy.cut()
        with at_most(0.5), pytest.raises(Ambiguous):
            await write
        assert event.kv.value == b"2"


async def test_a_write_without_an_answer_is_ambiguous_in_time() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints], QUICK) as store,
    ):
        await put(store, "/k/a", b"1")
        proxy.deaf()
        with at_most(QUICK.attempt_timeout + 0.5), pytest.raises(Ambiguous, match=proxy.endpoint):
            await put(store, "/k/a", b"2")
        with at_most(0.5):
            assert await get(store, "/k/a") == b"2"


async def test_an_ambiguous_write_is_never_sent_again() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints], QUICK) as store,
    ):
        revision = await put(store, "/k/a")
        proxy.deaf()
        with pytest.raises(Ambiguous):
            await put(store, "/k/a")
        # Had it been sent again, the version would be 3.
        assert await put(store, "/k/b") == revision + 2


async def test_a_grant_whose_answer_is_lost_makes_one_lease() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints], QUICK) as store,
    ):
        await put(store, "/k/a")
        proxy.deaf()
        lease = await store.grant(40)
        assert lease.ttl == 40
        assert f"{lease.id:016x}" in (listed := await cluster.ctl("lease", "list"))
        assert "found 1 leases" in listed


async def test_a_revocation_whose_answer_is_lost_is_repeated() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints], QUICK) as store,
    ):
        lease = await store.grant(40)
        await store.txn([], [Put("/k/a", b"", lease.id)])
        proxy.deaf()
        await store.revoke(lease.id)
        assert await get(store, "/k/a") is None


async def test_a_refresh_whose_answer_is_lost_is_repeated() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint, *cluster.endpoints]) as store,
    ):
        leases = [await store.grant(40) for _ in range(20)]
        proxy.deaf()
        refreshes = [store.refresh(lease.id) for lease in leases]
        await proxy.swallowed()
        proxy.cut()
        with at_most(1):
            assert await asyncio.gather(*refreshes) == [40] * 20


async def test_a_refresh_without_an_answer_ends_in_time() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint], QUICK) as store,
    ):
        lease = await store.grant(40)
        assert await store.refresh(lease.id) == 40
        proxy.dead()
        with at_most(QUICK.timeout + 0.5), pytest.raises(Unavailable):
            await store.refresh(lease.id)
        proxy.heal()
        assert await store.refresh(lease.id) == 40
        # Answers to those who gave up do not go to those who came after.
        assert await store.refresh(lease.id + 1) == 0


async def test_a_full_store_is_told_apart_for_etcd_says_so_to_what_it_did() -> None:
    async with (
        EtcdCluster(options=("--quota-backend-bytes=65536",)) as cluster,
        client(cluster.endpoints) as store,
    ):
        lease = await store.grant(40)

        async def fill() -> None:
            while True:  # etcd looks at its size when it commits, every 100 ms
                await put(store, "/k/a", b"." * 4096)

        with pytest.raises(NoSpace, match="space exceeded"):
            await asyncio.wait_for(fill(), DEADLINE)
        assert await get(store, "/k/a") == b"." * 4096
        # A grant is refused too; what needs no space goes on.
        with at_most(1), pytest.raises(NoSpace, match="space exceeded"):
            await store.grant(40)
        assert await store.refresh(lease.id) == 40
