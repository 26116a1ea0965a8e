"""An etcd whose round trips take longer than a member in good health is given."""

import asyncio

import pytest
from tests.store.etcd_helpers import DEADLINE, at_most, client, confirmation, get, insist, put
from tests.support.etcd import EtcdCluster
from tests.support.proxy import Proxy

from kontrol.store.etcd.stream import Pace
from kontrol.store.protocol import Ambiguous, Store, Unavailable

EACH_WAY = 1.75  # seconds


async def refreshed(store: Store, lease: int) -> int:
    """Refresh until there is an answer."""
    while True:
        try:
            return await store.refresh(lease)
        except Unavailable:
            continue


def test_bounds_grow_with_what_was_waited_in_vain_and_come_down_with_answers() -> None:
    pace = Pace(6.0)
    assert pace.timeout(1.5) == 1.5
    pace.timed_out(1.5)
    assert pace.timeout(1.5) == 3.0
    pace.timed_out(3.0)
    assert pace.timeout(1.5) == 6.0
    pace.timed_out(6.0)
    assert pace.timeout(1.5) == 6.0
    assert pace.timeout(9.0) == 9.0
    pace.answered(3.5)
    assert pace.timeout(1.5) == 6.0  # 7, and no call lasts that long
    for _ in range(3):
        pace.answered(0.01)
    assert pace.timeout(1.5) == 1.5


async def test_a_slow_store_is_read_written_refreshed_and_watched() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
    ):
        revision = await put(store, "/k/a", b"0")
        lease = (await store.grant(40)).id
        assert await store.refresh(lease) == 40
        async with store.watch("/k/", prefix=True, start=revision + 1) as watch:
            batches = aiter(watch)
            asked = asyncio.get_running_loop().time()
            await watch.confirm()
            await confirmation(batches, asked)
            proxy.delay = EACH_WAY
            async with asyncio.timeout(2 * DEADLINE), asyncio.TaskGroup() as group:
                group.create_task(insist(store, "/k/a", b"1"))
                group.create_task(refreshed(store, lease))
            # Its pace is known by now: no call times out any more.
            with at_most(2 * EACH_WAY + 1):
                found, left, _ = await asyncio.gather(
                    get(store, "/k/a"), store.refresh(lease), put(store, "/k/b")
                )
            assert (found, left) == (b"1", 40)
            asked = asyncio.get_running_loop().time()
            await watch.confirm()
            async with asyncio.timeout(DEADLINE):
                events = await confirmation(batches, asked)
                while events[-1].kv.key != "/k/b":
                    events += (await anext(batches)).events
            assert {e.kv.value for e in events if e.kv.key == "/k/a"} == {b"1"}


async def test_a_store_that_was_slow_is_left_as_quickly_as_before_once_it_is_not() -> None:
    async with (
        EtcdCluster() as cluster,
        Proxy(cluster.endpoints[0]) as proxy,
        client([proxy.endpoint]) as store,
    ):
        await put(store, "/k/a", b"0")
        proxy.delay = EACH_WAY
        await insist(store, "/k/a", b"1")
        proxy.delay = 0
        for _ in range(8):
            await get(store, "/k/a")
        proxy.dead()
        with at_most(3.5), pytest.raises(Ambiguous):
            await put(store, "/k/a", b"2")
