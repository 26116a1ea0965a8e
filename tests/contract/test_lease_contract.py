"""What every store must do, run against the model and against etcd: leases."""

import asyncio

import pytest
from tests.contract.conftest import Bed
from tests.contract.helpers import DEADLINE, names, now, put, take

from kontrol.store.protocol import (
    Delete,
    LeaseGone,
    Put,
    Range,
)


async def test_a_lease_lasts_at_least_what_was_asked(bed: Bed) -> None:
    one, ten = await asyncio.gather(bed.store.grant(1), bed.store.grant(10))
    assert (one.ttl, ten.ttl) == (2, 10)
    assert 0 < one.id != ten.id > 0
    assert await bed.store.refresh(ten.id) == 10
    left, granted = await bed.store.remaining(ten.id)
    assert 8 <= left <= granted == 10
    await asyncio.gather(bed.store.revoke(one.id), bed.store.revoke(ten.id))


async def test_an_unknown_lease(bed: Bed) -> None:
    lease = (await bed.store.grant(60)).id
    await bed.store.revoke(lease)
    await bed.store.revoke(lease)
    assert await bed.store.refresh(lease) == 0
    assert await bed.store.remaining(lease) == (0, 0)
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
