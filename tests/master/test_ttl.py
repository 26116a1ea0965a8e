"""The tier's TTL is the leader's; when it changes, every pod gets such a lease, and none drops."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeVar

import pytest
from tests.master.reports import Reporter, Slow, born, reporting
from tests.master.support import KEYS, Stub, record, running
from tests.support.memory import MemoryCluster, MemoryStore, Reliable, Request, Txn, core
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Pod, parse_keepalive
from kontrol.master.master import Master
from kontrol.master.records.masters import Candidate
from kontrol.master.registry import queue
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Ambiguous, Put, Range

_Answer = TypeVar("_Answer")


def leases(cluster: MemoryCluster) -> set[int]:
    """The leases of the live pods."""
    return {kv.lease for kv in cluster.core.range(Range(KEYS.pods, prefix=True)).kvs}


async def lead_with(cluster: MemoryCluster, master: Master, ttl: float) -> None:
    """Let the leader's candidacy say that its TTL is `ttl`."""
    await asyncio.sleep(1)
    kv = master.election.candidates[0]
    told = replace(master.records.candidate(kv), ttl=ttl)
    await MemoryStore(cluster).txn([], [Put(kv.key, told.encode(), kv.lease)])
    await asyncio.sleep(1)
    assert master.ttl == ttl


def dropped(cluster: MemoryCluster) -> list[str]:
    """The keys of pods that were ever deleted."""
    events = cluster.core.history(1)
    return [e.kv.key for e in events if e.type == "delete" and e.kv.key.startswith(KEYS.pods)]


@pytest.mark.parametrize(("before", "after"), [(6.0, 24.0), (24.0, 6.0)])
@virtual
async def test_a_rolling_restart_with_another_ttl_drops_no_pod(before: float, after: float) -> None:
    cluster, callback = MemoryCluster(), Stub()
    masters: list[Master] = []
    pods = [Reporter(masters, number, before) for number in range(1, 9)]
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        masters.append(await first.enter_async_context(running(cluster, callback, ttl=before)))
        other = await second.enter_async_context(running(cluster, callback, id="m2", ttl=before))
        async with reporting(*pods[:4]):
            masters[:] = [other]
            async with reporting(*pods[4:]):
                await asyncio.sleep(before)
                ran, numbers = len(callback.runs), [p["seq"] for p in other.pods()]
                for stack, name in ((second, "m2"), (first, "m1")):
                    masters[:] = [one for one in masters if one.config.id != name]
                    await stack.aclose()
                    await asyncio.sleep(1)  # no master answers, or the other one does
                    master = await stack.enter_async_context(
                        running(cluster, callback, id=name, ttl=after)
                    )
                    masters.append(master)
                    await asyncio.sleep(before + after)
                assert dropped(cluster) == []
                assert {pod.told[-1] for pod in pods} == {after}
                assert [p["seq"] for p in masters[0].pods()] == numbers
                assert len(callback.runs) == ran
        # All are silent now, as if they had been killed.
        await asyncio.sleep(after + 2)
        assert born(cluster) == {}


@virtual
async def test_all_masters_go_by_the_leader_s_ttl() -> None:
    cluster = MemoryCluster()
    async with running(cluster, ttl=6.0) as one, running(cluster, id="m2", ttl=24.0) as two:
        await asyncio.sleep(1)
        assert [await master.ping(record(1)) for master in (two, one, two)] == [
            {"seq": 0, "ttl": 6.0, "leader": "m1", "live": True}
        ] * 3
        assert one.registry.outcomes + two.registry.outcomes == {"written": 1, "refreshed": 2}
        assert (one.ttl, two.ttl) == (6.0, 6.0)


class Unaware(Reliable):
    """A network on which no candidate is read until `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        if isinstance(request, Range) and request.key == KEYS.candidates:
            await self.reads.wait()
        return await super().call(request, do)


@virtual
async def test_a_master_that_does_not_know_the_leader_yet_grants_no_lease() -> None:
    cluster, unaware = MemoryCluster(), Unaware()

    async def has_read_the_pods(master: Master) -> None:
        await master.mirror.cache.complete.wait()

    async with (
        running(cluster, ttl=6.0),
        running(cluster, id="m2", ttl=24.0, network=unaware, begun=has_read_the_pods) as two,
    ):
        with pytest.raises(Refused, match=r"Unavailable.*the TTL of the leader is not known yet"):
            await two.ping(record(1))
        unaware.reads.set()
        await two.answerable()
        assert (await two.ping(record(1)))["ttl"] == 6.0
        [lease] = leases(cluster)
        assert await MemoryStore(cluster).refresh(lease) == 6


@virtual
async def test_without_a_leader_the_last_one_s_ttl_stays() -> None:
    cluster = MemoryCluster()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(cluster, ttl=6.0))
        async with running(cluster, id="m2", ttl=24.0) as two:
            await asyncio.sleep(1)
            cluster.core.full = True
            two.election.restart(0)  # and cannot campaign again
            await asyncio.sleep(1)
            await stack.aclose()
            await asyncio.sleep(1)
            assert two.leader_id is None
            assert two.ttl == 6.0


@pytest.mark.parametrize("told", [None, 0.0, 1e9])
@virtual
async def test_a_leader_that_tells_no_ttl_or_an_odd_one_leaves_each_to_its_own(
    told: float | None,
) -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    lease = (await store.grant(60)).id
    await store.txn([], [Put(KEYS.candidate(lease), Candidate(id="m0", ttl=told).encode(), lease)])
    async with running(cluster, ttl=6.0) as one:
        await asyncio.sleep(1)
        assert await one.ping(record(1)) == {"seq": 0, "ttl": 6.0, "leader": "m0", "live": True}


@virtual
async def test_no_pod_gets_a_longer_ttl_than_its_lease_has() -> None:
    cluster = MemoryCluster()
    async with running(cluster, ttl=6.0) as master:
        await master.ping(record(1))
        await lead_with(cluster, master, 24.0)
        cluster.core.full = True  # no lease can be granted
        assert (await master.ping(record(1)))["ttl"] == 6
        cluster.core.full = False
        assert (await master.ping(record(1)))["ttl"] == 24
        assert dropped(cluster) == []


@virtual
async def test_a_lease_longer_than_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MIN_TTL", 12)  # of an etcd with a slow election
    cluster = MemoryCluster()
    async with running(cluster, ttl=6.0) as one, running(cluster, id="m2", ttl=6.0) as two:
        assert (await one.ping(record(1)))["ttl"] == 6.0
        await asyncio.sleep(1)
        first = leases(cluster)
        assert (await one.ping(record(1)))["ttl"] == 6.0
        assert leases(cluster) == first
        # One that has granted none does not know; it finds out once.
        for _ in range(2):
            assert (await two.ping(record(1)))["ttl"] == 6.0
            await asyncio.sleep(1)
        second = leases(cluster)
        assert second != first
        for master in (one, two, one):
            assert (await master.ping(record(1)))["ttl"] == 6.0
        assert leases(cluster) == second
        assert dropped(cluster) == []


@virtual
async def test_many_leases_are_replaced_at_the_writer_s_pace_and_all_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "BATCH", 4)
    cluster, network, callback = MemoryCluster(), Slow(), Stub()
    async with running(cluster, callback, network=network, ttl=24.0) as master:
        pods = [
            Reporter([master], number, 24.0, {"ip": f"10.0.{number // 250}.{number % 250}"})
            for number in range(1, 601)
        ]
        async with reporting(*pods):
            await asyncio.sleep(24)
            assert len(born(cluster)) == 600
            ran, before = len(callback.runs), leases(cluster)
            network.delay = 0.05
            await lead_with(cluster, master, 6.0)
            for _ in range(90):
                await asyncio.sleep(0.1)
                if len(master.registry.queue) > 400:
                    break
            else:
                raise AssertionError("they do not wait")
            # What is new does not wait for them.
            assert (await master.ping(record(1, n=1, payload="new", ip="10.0.0.1")))["seq"] == 0
            assert len(master.registry.queue) > 350
            pods[0].fields |= {"n": 1, "payload": "new"}
            await asyncio.sleep(36)
            assert {pod.told[-1] for pod in pods} == {6.0}
            assert leases(cluster).isdisjoint(before)
            assert dropped(cluster) == []
            assert [run.changes for run in callback.runs[ran:]] == [{"changed": ["p1"]}]


@virtual
async def test_a_change_and_a_longer_ttl_are_one_write() -> None:
    cluster = MemoryCluster()
    async with running(cluster, ttl=6.0) as master:
        await master.ping(record(1))
        await lead_with(cluster, master, 24.0)
        before = cluster.core.revision
        told = await master.ping(record(1, n=1, payload="new"))
        assert told == {"seq": 0, "ttl": 24.0, "leader": "m1", "live": True}
        assert cluster.core.revision == before + 1


@virtual
async def test_a_lease_is_shortened_only_when_the_pod_was_told_before() -> None:
    """The pod may rely on the TTL that it was told, until it is told another."""
    cluster = MemoryCluster()
    async with running(cluster, ttl=24.0) as master:
        for number in (1, 2):
            await master.ping(record(number))
        await lead_with(cluster, master, 6.0)
        first = leases(cluster)
        for text in (record(1), record(2, n=1, payload="new")):
            assert (await master.ping(text))["ttl"] == 6.0
        assert leases(cluster) == first
        await lead_with(cluster, master, 4.0)
        for text in (record(1), record(2, n=2, payload="newer")):
            assert (await master.ping(text))["ttl"] == 4.0
        assert leases(cluster) == first
        for text in (record(1), record(2, n=3, payload="newest")):
            assert (await master.ping(text))["ttl"] == 4.0
        assert leases(cluster).isdisjoint(first)
        assert dropped(cluster) == []


@virtual
async def test_a_lease_that_was_replaced_is_revoked() -> None:
    """A master that lags behind would refresh it, and tell the TTL that it had."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    async with running(cluster, ttl=25.0) as master:
        await master.ping(record(1))
        [first] = leases(cluster)
        await lead_with(cluster, master, 6.0)
        for _ in range(2):  # the pod must have been told before
            assert (await master.ping(record(1)))["ttl"] == 6.0
            await asyncio.sleep(1)
        [second] = leases(cluster)
        assert second != first
        assert await store.refresh(first) == 0
        assert await store.refresh(second) == 6
        assert dropped(cluster) == []


class Losing(Reliable):
    """A network that loses the answer to the next write of a pod, and calls `meanwhile` then."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile
        self.armed = False

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        answer = await super().call(request, do)
        ops = request.then if isinstance(request, Txn) and request.writes else ()
        if self.armed and any(op.key.startswith(KEYS.pods) for op in ops):
            self.armed = False
            await self._meanwhile()
            raise Ambiguous("the answer was lost")
        return answer


@virtual
async def test_the_lease_of_a_join_that_is_done_again_is_not_revoked() -> None:
    """Its answer was lost, and an older record of the pod has appeared at another address."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    mine = parse_keepalive(record(1, nonce="b"))
    older = parse_keepalive(record(1, ip="10.0.0.9", nonce="a"))

    async def appears() -> None:
        lease = (await store.grant(60)).id
        await store.txn([], [Put(KEYS.pod(older.key), Pod.of(older, 9).encode(), lease)])
        await asyncio.sleep(1)

    network = Losing(appears)
    async with running(cluster, ttl=25.0, network=network) as master:
        await asyncio.sleep(1)
        network.armed = True
        await master.registry.ping(record(1, nonce="b"))
        await asyncio.sleep(3)
        assert dropped(cluster) == [KEYS.pod(older.key)]
        assert [pod["key"] for pod in master.pods()] == [mine.key]
