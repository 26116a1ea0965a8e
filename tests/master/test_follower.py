"""A followed prefix is what the store has, whatever its watch delivers."""

import asyncio

import pytest
from tests.master.support import Stub, alive, record, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.master.watchcache import WatchCache, share_restores
from kontrol.store.protocol import Delete, Event, Put, Range


class Forgetful(MemoryCluster):
    """A cluster whose watches are told nothing while `deaf`."""

    deaf = False

    def publish(self, events: tuple[Event, ...]) -> None:
        if not self.deaf:
            super().publish(events)


@virtual
async def test_events_that_the_watch_did_not_deliver_are_found() -> None:
    """Put, changed and deleted; then all goes on."""
    cluster = Forgetful()
    store = MemoryStore(cluster)
    for key in "abc":
        await store.txn([], [Put(f"/x/{key}", b"1")])
    follower = WatchCache(store, "/x/", silence=3, verify=60)
    changes: list[str] = []
    follower.listen(lambda events: changes.extend(f"{e.type} {e.kv.key}" for e in events))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await follower.complete.wait()
        changes.clear()
        for op in (Put("/x/d", b"1"), Put("/x/a", b"2"), Delete("/x/b")):
            cluster.deaf = True
            await store.txn([], [op])
            cluster.deaf = False
            await asyncio.sleep(50)
            assert changes == []
            await asyncio.sleep(15)
            kind = "delete" if isinstance(op, Delete) else "put"
            assert changes == [f"{kind} {op.key}"]
            changes.clear()
            assert follower.restores == 0
        await store.txn([], [Put("/x/e", b"1")])
        await asyncio.sleep(1)
        assert changes == ["put /x/e"]
        task.cancel()


@virtual
async def test_what_a_read_shows_and_the_watch_does_not_is_found_within_the_silence() -> None:
    cluster = Forgetful()
    store = MemoryStore(cluster)
    follower = WatchCache(store, "/x/", silence=3)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await follower.complete.wait()
        cluster.deaf = True
        await store.txn([], [Put("/x/a", b"1")])
        cluster.deaf = False
        await asyncio.sleep(10)
        assert follower.entries == {}
        follower.check(await store.range(Range("/x/", prefix=True)))
        await asyncio.sleep(1.1)
        assert list(follower.entries) == ["/x/a"]
        task.cancel()


@virtual
async def test_a_new_leader_finds_what_its_watch_missed_before_its_first_run() -> None:
    cluster, callback = Forgetful(), Stub()
    async with running(cluster, callback) as master:
        await master.ping(record(1))
        await asyncio.sleep(5)
        cluster.deaf = True
        await asyncio.sleep(7)  # its lease expires
        cluster.deaf = False
        master.election.restart(0)
        await asyncio.sleep(40)
    assert [run.ids for run in callback.runs] == [["p1"], []]


@pytest.mark.parametrize("shared", [True, False])
@virtual
async def test_a_restore_that_one_watch_shows_is_one_for_all(shared: bool) -> None:
    """The other goes on, since the restored store is past the revision that it waits for."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    await store.txn([], [Put("/x/a", b"1")])
    early = cluster.snapshot()
    await store.txn([], [Delete("/x/a")])
    one, other = (WatchCache(store, prefix, silence=3) for prefix in ("/x/", "/y/"))
    if shared:
        share_restores(one, other)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in (one, other)]
        await one.complete.wait()
        for number in range(9):
            await store.txn([], [Put("/y/a", b"%d" % number)])
        await asyncio.sleep(0)
        cluster.restore(early)
        for _ in range(3):
            await store.txn([], [Put("/elsewhere", b"")])
        await asyncio.sleep(4)
        assert other.restores == 1
        assert ("/x/a" in one.entries) == shared
        for task in tasks:
            task.cancel()


@virtual
async def test_nothing_is_read_again_while_nothing_is_missed() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    follower = WatchCache(store, "/x/", silence=3, verify=5)
    told = 0

    def count(_: object) -> None:
        nonlocal told
        told += 1

    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await follower.complete.wait()
        told = 0
        for n in range(400):
            await store.txn([], [Put(f"/x/{n % 7}", b"%d" % n) if n % 3 else Delete(f"/x/{n % 7}")])
            await asyncio.sleep(0.37)
        revision = follower.revision
        before = told
        await asyncio.sleep(60)
        assert (told, follower.revision) == (before, revision)
        task.cancel()


@virtual
async def test_no_candidate_waits_for_one_that_a_restore_removed() -> None:
    """History changes below a watch that goes on: the backup is of a later revision."""
    cluster, callback = MemoryCluster(), Stub()
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2") as two,
        alive(one, 1),
    ):
        await asyncio.sleep(3)
        store = MemoryStore(cluster)
        early = cluster.snapshot()
        for _ in range(50):
            await store.txn([], [Put("/elsewhere", b"")])
        later = cluster.snapshot()
        cluster.restore(early)
        await asyncio.sleep(10)
        one.election.restart(0)
        two.election.restart(0)
        await asyncio.sleep(10)  # both have candidacies that the next restore knows nothing of
        cluster.restore(later)
        await asyncio.sleep(90)
        assert one.election.candidates
        assert callback.runs
        async with alive(one, 2):
            await asyncio.sleep(20)
            assert callback.runs[-1].ids == ["p1", "p2"]


@virtual
async def test_a_key_that_a_restore_wrote_again_under_another_lease() -> None:
    """At the same revision, and with the same value, as before the restore."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    leases = [(await store.grant(60)).id for _ in range(2)]
    early = cluster.snapshot()
    await store.txn([], [Put("/x/a", b"1", leases[0])])
    follower = WatchCache(store, "/x/", silence=3)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run())
        await follower.complete.wait()
        assert follower.entries["/x/a"].lease == leases[0]
        await store.txn([], [Put("/elsewhere", b"1")])
        await asyncio.sleep(5)  # the watch hears of that revision
        cluster.restore(early)
        await store.txn([], [Put("/x/a", b"1", leases[1])])
        await asyncio.sleep(30)
        assert follower.entries["/x/a"].lease == leases[1]
        task.cancel()


@virtual
async def test_no_lease_has_the_id_of_one_from_before_a_restore() -> None:
    cluster = MemoryCluster()
    store, early, ids = MemoryStore(cluster), cluster.snapshot(), list[int]()
    for number in (2, 1, 3, 2):
        cluster.restore(early, cluster=number)
        ids += [(await store.grant(60)).id for _ in range(5)]
    assert len(set(ids)) == len(ids)
