"""Unused registrations age by the time that leaders have watched, whatever wall clocks say."""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.master.support import CONFIG, KEYS, alive, record, running
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.pod import key_of
from kontrol.master.leader.sweep import Sweep
from kontrol.master.master import Master
from kontrol.master.records.pods import Ages
from kontrol.master.records.records import Records
from kontrol.master.registry.quota import Bounds
from kontrol.master.term import Term
from kontrol.store.protocol import Ambiguous, Delete, Put, Range

_Answer = TypeVar("_Answer")

HOUR, DAY = 3600.0, 24 * 3600.0
EVERY, AGE = 60.0, 24 * 60.0  # a day in minutes, for masters that prove their term all the time
REGISTRATION = KEYS.registration(key_of("10.0.0.2"))


def off(skew: timedelta) -> Callable[[], str]:
    """A wall clock that is wrong by `skew`."""

    def wall() -> str:
        now = datetime(2026, 1, 1, tzinfo=UTC) + skew
        return (now + timedelta(seconds=asyncio.get_running_loop().time())).isoformat()

    return wall


def sweeping(
    cluster: MemoryCluster, id_: str, wall: Callable[[], str] | None = None
) -> AbstractAsyncContextManager[Master]:
    return running(cluster, id=id_, wall=wall or off(timedelta()), sweep_every=EVERY, sweep_age=AGE)


async def present(cluster: MemoryCluster, key: str = REGISTRATION) -> bool:
    return bool((await MemoryStore(cluster).range(Range(key))).kvs)


@virtual
@pytest.mark.parametrize("skew", [timedelta(days=2), timedelta(days=-2), -timedelta(days=30_000)])
async def test_a_leader_whose_wall_clock_is_wrong_sweeps_nothing_young(skew: timedelta) -> None:
    cluster, right = MemoryCluster(), timedelta()
    for id_, clock in (("m1", right), ("m2", skew), ("m3", right), ("m4", skew)):
        async with (
            running(cluster, wall=off(clock), id=id_, sweep_every=EVERY, sweep_age=AGE) as master,
            alive(master, 1),
        ):
            await master.ping(record(2, nonce=id_))
            await asyncio.sleep(5)
            await master.ping(record(2, nonce=id_, n=1, down=True))
            await asyncio.sleep(AGE / 2)
            assert await present(cluster), "it was used half a day ago"
    async with running(cluster) as master:
        assert (await master.ping(record(2, nonce="z")))["seq"] == 1, "it kept its number"


@virtual
async def test_a_registration_is_deleted_after_a_watched_day_over_leader_changes() -> None:
    cluster = MemoryCluster()
    async with sweeping(cluster, "m1") as master, alive(master, 1):
        await master.ping(record(2))
        await master.ping(record(2, n=1, down=True))
        await asyncio.sleep(AGE / 3)
        assert await present(cluster)
    await asyncio.sleep(10 * AGE)  # no leader watches
    for id_ in ("m2", "m3"):
        async with (
            sweeping(cluster, id_) as master,
            alive(master, 1),
        ):
            await asyncio.sleep(AGE / 3 - EVERY)
            assert await present(cluster), "no day was watched yet"
    async with (
        sweeping(cluster, "m4") as master,
        alive(master, 1),
    ):
        await asyncio.sleep(8 * EVERY)
        assert not await present(cluster)
        await asyncio.sleep(AGE + 4 * EVERY)
        assert await present(cluster, KEYS.registration(key_of("10.0.0.1"))), "its pod lives"


class Clock:
    """A boot clock that a test sets, and a term that is always proved by it."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class NoNumbers:
    """A tier in which no pod gets a number."""

    highest = 0

    async def numbered(self, number: int) -> None:
        await asyncio.Event().wait()


class Swept:
    """A store with the registration of a pod that is gone, and terms that sweep it."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.network = Faulty()
        self.clock = Clock()
        self.store = MemoryStore(self.cluster, self.network)

    async def prepare(self) -> None:
        async with running(self.cluster, sweep_every=1e9) as master:
            await asyncio.sleep(1)
            await master.ping(record(2))
            await master.ping(record(2, n=1, down=True))

    async def term(self, *, age: float = DAY) -> Sweep:
        lease = (await self.store.grant(10**6)).id
        key = KEYS.candidate(lease)
        put = await self.store.txn([], [Put(key, b"{}", lease)])
        revision = put.header.revision
        self.proved = Term(
            self.store, key, lease, revision, fover=CONFIG.fover, clock=lambda: self.clock.now
        )
        await self.proved.prove()
        return Sweep(
            self.store,
            Records(KEYS),
            self.proved,
            every=HOUR,
            age=age,
            clock=self.clock,
            wall=off(timedelta()),
            numbers=NoNumbers(),
        )

    async def after(self, sweep: Sweep, seconds: float) -> int:
        self.clock.now += seconds
        await self.proved.prove()
        return await sweep.sweep()

    async def ages(self) -> Ages:
        kvs = (await MemoryStore(self.cluster).range(Range(KEYS.ages))).kvs
        return Ages.decode(kvs[0].value)


@virtual
async def test_a_registration_is_stamped_once_and_deleted_a_day_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    swept = Swept()
    await swept.prepare()
    sweep = await swept.term()
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert [await swept.after(sweep, HOUR) for _ in range(25)] == [0] * 25
    assert caplog.messages == []
    assert await swept.after(sweep, HOUR) == 1
    assert not await present(swept.cluster)
    assert caplog.messages == ["deleted 1 registrations of pods that were away for long"]


@virtual
async def test_time_in_which_the_term_was_not_proved_does_not_count() -> None:
    """The machine slept, and woke up as a leader who does not know yet that it is none."""
    swept = Swept()
    await swept.prepare()
    sweep = await swept.term()
    await sweep.sweep()
    swept.clock.now += 3 * DAY
    assert await sweep.sweep() == 0
    assert (await swept.ages()).watched == 0


@virtual
async def test_an_answer_that_is_lost_adds_no_time_twice() -> None:
    swept = Swept()
    await swept.prepare()
    sweep = await swept.term()
    await sweep.sweep()

    def lose(request: Request) -> Exception | None:
        assert isinstance(request, Txn)
        ours = any(isinstance(op, Put) and op.key == KEYS.ages for op in request.then)
        return Ambiguous("lost") if ours else None

    for late in (True, False):
        for _ in range(3):
            setattr(swept.network, "after" if late else "before", lose)
            with pytest.raises(Ambiguous):
                await swept.after(sweep, HOUR)
            setattr(swept.network, "after" if late else "before", lambda _: None)
    await swept.after(sweep, HOUR)
    assert (await swept.ages()).watched == 7 * HOUR


@virtual
async def test_a_pod_that_comes_back_while_its_registration_is_swept_keeps_it() -> None:
    swept = Swept()
    await swept.prepare()
    sweep = await swept.term()
    for _ in range(25):
        await swept.after(sweep, HOUR)
    before = await MemoryStore(swept.cluster).range(Range(REGISTRATION))

    def returns(request: Request) -> Exception | None:
        if writes(request):  # the first after the reading: of the ages
            swept.network.before = lambda _: None
            core = swept.cluster.core
            core.txn(Txn((), (Put(REGISTRATION, before.kvs[0].value),), ()))
        return None

    swept.network.before = returns
    assert await swept.after(sweep, HOUR) == 0
    assert await present(swept.cluster)


@virtual
async def test_a_store_that_went_back_deletes_nothing_younger_than_a_day() -> None:
    swept = Swept()
    await swept.prepare()
    snapshot = swept.cluster.snapshot()
    sweep = await swept.term()
    for _ in range(24):
        await swept.after(sweep, HOUR)
    swept.cluster.restore(snapshot, cluster=2)
    sweep = await swept.term()
    assert [await swept.after(sweep, HOUR) for _ in range(25)] == [0] * 25
    assert await swept.after(sweep, HOUR) == 1


def test_samples_of_another_store_are_not_taken() -> None:
    ages = Ages.decode(Ages(2**64 - 1, 100.0, ((0.0, 5), (50.0, 70))).encode())
    assert ages.within(2**64 - 1, 70).samples == ((0.0, 5), (50.0, 70))
    assert ages.within(2**64 - 1, 69).samples == ((0.0, 5),)
    assert ages.within(3, 70).samples == ()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sweep"), st.floats(0, 3 * HOUR)),
        st.tuples(st.just("write"), st.integers(1, 1000)),
        st.tuples(st.just("restore"), st.integers(0, 100)),
        st.tuples(st.just("copy"), st.floats(0.01, 2)),
    ),
    max_size=80,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from([HOUR, DAY]))
def test_no_revision_is_called_old_before_it_was_watched_for_that_long(
    steps: list[tuple[str, float]], age: float
) -> None:
    """Whatever the order of leaders, of restores and of copies into another cluster."""
    cluster, revision, watched = 1, 10, 0.0
    since = [(0, 0.0)]  # from which watched second on each revision has been there
    kept = [(revision, Ages(), tuple(since))]  # the store, after each change of the record
    for kind, amount in steps:
        ages = kept[-1][1]
        if kind == "sweep":
            watched += amount
            since.append((revision, watched))
            ages = ages.within(cluster, revision)
            ages = ages.after(ages.watched + amount, revision, age=age)
            old = Ages.decode(ages.encode()).within(cluster, revision).old(age)
            assert old <= max((r for r, at in since if at <= watched - age), default=0)
            assert len(ages.samples) <= 51
            assert all(one < two for one, two in pairwise(ages.samples))
            revision += 1
            kept.append((revision, ages, tuple(since)))
        elif kind == "write":
            revision += int(amount)
            since.append((revision, watched))
        elif kind == "restore":
            del kept[len(kept) - int(amount) % len(kept) or None :]
            revision, _, before = kept[-1]
            since = list(before)
        else:
            cluster, revision = cluster + 1, int(revision * amount)
            since = [(revision, watched)]
            kept = [(revision, ages, tuple(since))]


def test_what_was_watched_for_long_enough_becomes_old() -> None:
    ages = Ages()
    for hour in range(49):
        ages = ages.after(hour * HOUR, 100 * hour, age=DAY)
        assert ages.old(DAY) == max(0, 100 * (hour - 24))
    assert len(ages.samples) == 25


@virtual
async def test_the_registrations_of_ghosts_are_bounded_and_the_oldest_go_first() -> None:
    """A client reports ever new pods, each once; their registrations would stay for a day."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    bounds = Bounds(pods=30)
    async with running(cluster, bounds=bounds) as master, alive(master, 1, 2):
        worst = 0
        for number in range(3, 250):
            await master.ping(record(number))
            await asyncio.sleep(CONFIG.ttl / 20)
            count = (
                await store.range(Range(KEYS.registrations, prefix=True, keys_only=True))
            ).count
            worst = max(worst, count)
        assert worst <= 3 * bounds.pods + 2, "twice, and as many until it is noticed"
        assert {pod["id"] for pod in master.pods()} >= {"p1", "p2", "p249"}
        registrations = (await store.range(Range(KEYS.registrations, prefix=True))).kvs
        numbers = sorted(json.loads(kv.value)["seq"] for kv in registrations)
        assert numbers[:2] == [0, 1], "those who live keep theirs"
        assert numbers[-1] == 248
        assert numbers[2] > 100, "the oldest went"


@virtual
async def test_a_registration_that_moves_while_it_is_swept_is_left_and_the_others_go() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as other:
        for number in range(1, 9):
            await other.ping(record(number))
        await asyncio.sleep(2 * CONFIG.ttl)

        async def back() -> None:
            await other.ping(record(3))

        class Meddling(Faulty):
            async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
                deletes = isinstance(request, Txn) and any(
                    isinstance(op, Delete) for op in request.then
                )
                if deletes and not other.mirror.live(key_of("10.0.0.3")):
                    await back()
                return await super().call(request, do)

        cluster_store = MemoryStore(cluster, Meddling())
        lease = await cluster_store.grant(10**6)
        key = KEYS.candidate(lease.id)
        put = await cluster_store.txn([], [Put(key, b"{}", lease.id)])
        loop = asyncio.get_running_loop()
        term = Term(cluster_store, key, lease.id, put.header.revision, fover=600.0, clock=loop.time)
        await term.prove()
        sweep = Sweep(
            cluster_store,
            Records(KEYS),
            term,
            every=1,
            age=1,
            clock=loop.time,
            wall=off(timedelta()),
            numbers=NoNumbers(),
            max_pods=1,
        )
        assert await sweep.sweep() == 5, "six of eight are too many, and one of these is back"
        assert await present(cluster, KEYS.registration(key_of("10.0.0.3")))
