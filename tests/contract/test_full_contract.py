"""What every store must do when it is full, run against the model and against etcd."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.contract.conftest import etcd_store, memory_store
from tests.contract.helpers import DEADLINE
from tests.support.etcd import EtcdCluster
from tests.support.memory import MemoryCluster

from kontrol.store.protocol import Compare, NoSpace, Put, Range, Store

LEASE = 60


@pytest_asyncio.fixture(params=["memory", "etcd"])
async def full(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Store, int]]:
    """A full store with /k/a and /k/b, and a lease that was granted before."""
    if request.param == "memory":
        cluster = MemoryCluster()
        async with memory_store(cluster) as store:
            lease = (await store.grant(LEASE)).id
            await store.txn([], [Put("/k/a", b"1"), Put("/k/b", b"2", lease)])
            cluster.core.full = True
            yield store, lease
        return
    async with (
        EtcdCluster(options=("--quota-backend-bytes=65536",)) as etcd,
        etcd_store(etcd) as store,
    ):
        lease = (await store.grant(LEASE)).id
        await store.txn([], [Put("/k/a", b"1"), Put("/k/b", b"2", lease)])
        async with asyncio.timeout(DEADLINE):
            while not await store.alarms():
                try:
                    await store.txn([], [Put("/k/fill", b"." * 4096)])
                except NoSpace:
                    continue
        yield store, lease


async def test_it_names_the_alarm(full: tuple[Store, int]) -> None:
    store, _ = full
    assert await store.alarms() == ("NOSPACE",)


async def test_it_takes_neither_puts_nor_leases(full: tuple[Store, int]) -> None:
    store, lease = full
    with pytest.raises(NoSpace):
        await store.txn([], [Put("/k/a", b"3")])
    with pytest.raises(NoSpace):
        await store.txn([Compare("/k/a", "mod", "=", 0)], [Put("/k/a", b"3", lease)], [Range("/")])
    with pytest.raises(NoSpace):
        await store.grant(LEASE)
    assert (await store.range(Range("/k/a"))).kvs[0].value == b"1"


async def test_leases_are_refreshed(full: tuple[Store, int]) -> None:
    store, lease = full
    assert await store.refresh(lease) == LEASE


async def test_transactions_read(full: tuple[Store, int]) -> None:
    store, lease = full
    kv = (await store.range(Range("/k/b"))).kvs[0]
    asked = [Range("/k/", prefix=True, limit=2), Range("/k/none")]
    for compare, holds in (
        (Compare("/k/b", "create", "=", kv.create_revision), True),
        (Compare("/k/b", "lease", "=", lease), True),
        (Compare("/k/b", "version", ">", 1), False),
        (Compare("/k/none", "mod", "=", 0), True),
        (Compare("/k/none", "mod", "!=", 0), False),
    ):
        answer = await store.txn([compare], asked, [Range("/k/b")])
        assert answer.succeeded is holds
        assert answer.header.revision >= kv.mod_revision
        if holds:
            assert [found.value for found in answer.range(0).kvs] == [b"1", b"2"]
            assert answer.range(1).kvs == ()
        else:
            assert answer.range(0).kvs == (kv,)
    assert (await store.txn([], [])).succeeded
