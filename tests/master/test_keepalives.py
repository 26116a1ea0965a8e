"""Corners of keepalives: what they cost, what is acknowledged, and how one affects another."""

import asyncio
import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from tests.master.support import CONFIG, KEYS, record, running
from tests.master.test_refresh_first import Held, payloads, writes
from tests.support.memory import MemoryCluster, MemoryStore, Refresh, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Keepalive, key_of, parse_keepalive
from kontrol.master.mirror import Mirror
from kontrol.master.records.pods import Live
from kontrol.master.registry.admission import Decision, decide
from kontrol.master.registry.leases import Leases
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Put, Range, Store, TooLarge, Unavailable

_Answer = TypeVar("_Answer")

KEY = key_of("10.0.0.1")


@virtual
async def test_a_pod_that_joins_needs_no_refresh() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await asyncio.sleep(1.4)  # between two refreshes of the candidacy's lease
        network.requests.clear()
        await master.ping(record(1))
        assert network.count(Refresh) == 0
        assert network.count(Txn) == 2  # what is there, and the write


@virtual
async def test_a_keepalive_is_decided_once_and_its_other_records_are_looked_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided, looked_up = [], []
    elsewhere = Mirror.elsewhere

    def counted(*args: Any, **options: Any) -> Decision:  # noqa: ANN401 - those of `decide`
        decided.append(args)
        return decide(*args, **options)

    def looking(self: Mirror, keepalive: Keepalive) -> tuple[Live, ...]:
        looked_up.append(keepalive)
        return elsewhere(self, keepalive)

    monkeypatch.setattr("kontrol.master.registry.writer.decide", counted)
    monkeypatch.setattr(Mirror, "elsewhere", looking)
    async with running(MemoryCluster()) as master:
        for raw, times in (
            (record(1), 1),  # it joins
            (record(1), 0),  # nothing new
            (record(1, n=1, payload="new"), 1),
            (record(1), 1),  # stale
            (record(2, ip="10.0.0.1"), 1),  # in conflict
            (record(1, n=2, down=True), 1),
        ):
            decided.clear()
            looked_up.clear()
            with contextlib.suppress(Refused):
                await master.ping(raw)
            assert (len(decided), len(looked_up)) == (times, 1)
            await asyncio.sleep(0.1)


@virtual
async def test_a_deregistration_is_acknowledged_with_the_ttl_too() -> None:
    async with running(MemoryCluster()) as master:
        await master.ping(record(1))
        assert await master.ping(record(1, n=1, down=True)) == {
            "seq": 0,
            "ttl": CONFIG.ttl,
            "leader": "m1",
            "live": True,
        }
        assert (await master.ping(record(2, down=True)))["seq"] is None


@virtual
async def test_a_pod_that_joins_gets_the_ttl_of_the_lease_that_it_was_granted() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        granted = CONFIG.ttl

        def changes(request: Request) -> None:
            if writes(request):
                master.registry._ttl = lambda: 99.0

        network.after = changes
        assert (await master.ping(record(1)))["ttl"] == granted


@virtual
async def test_a_refusal_for_want_of_an_answer_says_so() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        network.holds = writes
        with pytest.raises(Refused, match="is not in etcd yet: no answer in time") as alive:
            await master.ping(record(1, n=1))
        assert alive.value.name == "NotWritten"
        with pytest.raises(Refused, match=r"no answer from etcd \(not in time\)") as joining:
            await master.ping(record(2))
        assert joining.value.name == "Unavailable"
        network.go.set()


@virtual
async def test_a_new_lease_is_refreshed_immediately_although_the_mirror_shows_the_old_one() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        network.delivers = False
        await asyncio.sleep(0.1)
        old = master.mirror.live(KEY)
        assert old is not None
        await MemoryStore(cluster).revoke(old.lease)
        assert (await master.ping(record(1)))["seq"] == 0
        new = cluster.core.range(Range(KEYS.pod(KEY))).kvs[0].lease
        assert new != old.lease
        for _ in range(3):
            assert master.mirror.live(KEY) == old
            network.requests.clear()
            assert (await master.ping(record(1)))["seq"] == 0
            first = network.requests[:2]
            assert {request.lease for request in first if isinstance(request, Refresh)} == {
                new,
                old.lease,
            }
            assert not any(map(writes, network.requests))


@virtual
async def test_one_that_is_too_large_takes_no_other_with_it() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(9))

        def refuse(request: Request) -> bool:
            if isinstance(request, Txn) and any(
                isinstance(op, Put) and b'"p2"' in op.value for op in request.then
            ):
                raise TooLarge("request is too large")
            return False

        network.holds = refuse
        answers = await asyncio.gather(
            *(master.ping(record(number)) for number in (1, 2, 3)), return_exceptions=True
        )
        assert isinstance(answers[1], Refused)
        assert answers[1].name == "InvalidRecord"
        assert "too large for etcd" in answers[1].message
        assert set(payloads(cluster)) == {"p1", "p3", "p9"}


@virtual
async def test_a_full_store_is_tried_five_times_a_second() -> None:
    """Each attempt raises another alarm. Batches that are under way already are attempts too."""
    cluster, network = MemoryCluster(), Held()
    loop = asyncio.get_running_loop()
    times = []

    def note(request: Request) -> bool:
        if writes(request):
            times.append(loop.time())
        return False

    pods = [(number, f"10.0.{number // 250}.{number % 250}") for number in range(1, 401)]
    async with running(cluster, network=network, ttl=60.0) as master:
        await asyncio.gather(*(master.ping(record(number, ip=ip)) for number, ip in pods))
        cluster.core.full = True
        network.holds = note
        begun = loop.time()
        changes = [asyncio.create_task(master.ping(record(n, n=1, ip=ip))) for n, ip in pods]
        await asyncio.wait(changes)
        assert all(isinstance(change.exception(), Refused) for change in changes)
        at_once = times.count(begun)
        assert 1 <= at_once <= 4
        assert [later - earlier for earlier, later in pairwise(times[at_once - 1 :])] == (
            pytest.approx([0.2] * (7 - at_once))
        )
        cluster.core.full = False
        times.clear()
        await asyncio.gather(*(master.ping(record(number, n=2, ip=ip)) for number, ip in pods))
        begun = loop.time()
        await asyncio.gather(*(master.ping(record(number, n=3, ip=ip)) for number, ip in pods))
        assert loop.time() - begun < 0.1, "there is no pause any more"


def leases_of(store: Store) -> Leases:
    """Leases of a tier whose TTL is known, 60 s."""
    return Leases(store, ttl=lambda: 60.0, ttl_known=lambda: True)


@virtual
async def test_refreshes_end_with_their_owner() -> None:
    cluster, network = MemoryCluster(), Held()
    store = MemoryStore(cluster, network)
    lease = (await MemoryStore(cluster).grant(60)).id
    leases = leases_of(store)
    owner = asyncio.create_task(leases.run())
    await asyncio.sleep(0)
    assert await leases.refresh(lease).answer() == 60
    network.holds = lambda _: True
    hanging = leases.refresh(lease)
    await asyncio.sleep(0)
    owner.cancel()
    with pytest.raises(Unavailable, match="shutting down"):
        await hanging.answer()
    with pytest.raises(asyncio.CancelledError):
        await owner
    with pytest.raises(Unavailable, match="shutting down"):
        leases.refresh(lease)


@virtual
async def test_a_granted_lease_is_known_until_the_mirror_shows_it_or_for_thirty_seconds() -> None:
    leases, pod = leases_of(MemoryStore(MemoryCluster())), parse_keepalive(record(1))
    lease, ttl = await leases.grant(pod)
    assert ttl == 60.0
    assert [leases.granted(pod.key, pod.id, shown) for shown in (0, lease + 1)] == [lease, lease]
    assert leases.granted(pod.key, "p2", 0) == 0
    assert [leases.granted(pod.key, pod.id, shown) for shown in (lease, 0)] == [0, 0], (
        "it was shown"
    )
    lease, _ = await leases.grant(pod)
    await asyncio.sleep(29.9)
    assert leases.granted(pod.key, pod.id, 0) == lease
    await asyncio.sleep(0.2)
    assert leases.granted(pod.key, pod.id, 0) == 0


class Clinging(Held):
    """A network whose requests take a second to be given up."""

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        try:
            return await super().call(request, do)
        finally:
            await asyncio.sleep(1)


@virtual
async def test_the_owner_of_refreshes_waits_until_they_have_ended() -> None:
    network = Clinging()
    network.holds = lambda _: True
    leases = leases_of(MemoryStore(MemoryCluster(), network))
    owner = asyncio.create_task(leases.run())
    await asyncio.sleep(0)
    hanging = leases.refresh(7)
    await asyncio.sleep(0)
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert hanging.under_way is not None
    assert hanging.under_way.done()


@virtual
async def test_the_owner_of_no_refresh_ends_at_once() -> None:
    leases = leases_of(MemoryStore(MemoryCluster()))
    owner = asyncio.create_task(leases.run())
    await asyncio.sleep(0)
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner


@virtual
async def test_a_refresh_that_fails_says_why_and_makes_room_for_the_next() -> None:
    cluster, network = MemoryCluster(), Held()
    lease = (await MemoryStore(cluster).grant(60)).id
    leases = leases_of(MemoryStore(cluster, network))

    def fail(_: Request) -> bool:
        raise Unavailable("no quorum")

    network.holds = fail
    for _ in range(3):
        with pytest.raises(Unavailable, match="no quorum"):
            await leases.refresh(lease).answer()
    network.holds = lambda _: False
    assert await leases.refresh(lease).answer() == 60
    await MemoryStore(cluster).revoke(lease)
    assert await leases.refresh(lease).answer() == 0
    assert leases._under_way == {}
