"""Runs that need no change: as the last one asked, and as KONTROL_EVERY has it. And urgent ones."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, alive, record, running
from tests.master.test_leading import ledger, value
from tests.master.test_registry import Faulty
from tests.support.memory import MemoryCluster, MemoryStore, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.ensemble.urgent import parse_urgent
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.highwater import HighWater
from kontrol.master.leader.policy import Idle
from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Head
from kontrol.store.protocol import Delete, Put, Unavailable

_Answer = TypeVar("_Answer")
SLOW: dict[str, Any] = {"damper": 30.0, "damper_max": 120.0}


def asks(*seconds: float | None, note: str | None = None) -> Callable[[RunRequest], RunOutcome]:
    """The first runs ask to run again after so many seconds, the further ones do not."""
    left = iter(seconds)
    return lambda _: replace(GOOD, again=next(left, None), note=note)


@asynccontextmanager
async def changing(
    master: Master, number: int, payload: JSON
) -> AsyncIterator[Callable[[JSON], Awaitable[None]]]:
    """A pod that keeps reporting meanwhile; what is yielded changes its payload."""
    n = 0

    async def change(new: JSON) -> None:
        nonlocal n, payload
        n, payload = n + 1, new
        await master.ping(record(number, n=n, payload=payload))

    async def report() -> None:
        while True:
            await asyncio.sleep(CONFIG.ttl / 3)
            await master.ping(record(number, n=n, payload=payload))

    await change(payload)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(report())
        yield change
        task.cancel()


def starts(callback: Stub) -> list[float]:
    first = callback.runs[0].at
    return [round(run.at - first, 1) for run in callback.runs]


@virtual
async def test_a_run_that_asks_for_it_is_repeated_at_its_time_and_no_more() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.5, outcome=asks(5, 0.1))
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(30)
    # Counted from the commit, that is after the half second that the run takes.
    assert starts(callback) == [0.0, 5.5, 6.1]
    entries = await ledger(cluster)
    assert [(e["reason"], e.get("again")) for e in entries] == [
        ("ensemble", 5.0),
        ("again", 0.1),
        ("again", None),
    ]
    assert all(run.changes == {} for run in callback.runs[1:])
    assert all(e["follows"] == 0 for e in entries)


@virtual
async def test_any_acknowledged_run_replaces_what_was_asked_for() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=asks(10))
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        await master.ping(record(2))
        await asyncio.sleep(8)
        assert starts(callback) == [0.0, 5.0]
    assert (
        json.loads(await value(cluster, KEYS.applied) or b"").keys().isdisjoint({"again", "note"})
    )


@virtual
async def test_the_time_goes_on_over_a_change_of_leader() -> None:
    """A master that was there when the run was acknowledged counts from then."""
    cluster, one, two = MemoryCluster(), Stub(outcome=asks(20)), Stub()
    async with AsyncExitStack() as first:
        leader = await first.enter_async_context(running(cluster, one))
        await leader.ping(record(1))
        await asyncio.sleep(0.5)
        async with running(cluster, two, id="m2") as standby, alive(standby, 1):
            await asyncio.sleep(10)
            assert leader.leader_id == "m1"
            await first.aclose()
            await asyncio.sleep(30)
            assert standby.leader_id == "m2"
    assert len(one.runs) == len(two.runs) == 1
    assert two.runs[0].changes == {}
    assert 20 < two.runs[0].at - one.runs[0].at < 20.3


@virtual
async def test_when_a_run_was_acknowledged_is_known_until_the_next_one_is() -> None:
    store, loop = MemoryStore(MemoryCluster()), asyncio.get_running_loop()
    water = HighWater(store, Records(KEYS), silence=3.0)
    following = asyncio.create_task(water.cache.run())

    async def put(key: str, number: bytes) -> int:
        revision = (await store.txn([], [Put(key, number)])).header.revision
        await asyncio.sleep(10)
        return revision

    began = loop.time()
    fifth = await put(KEYS.last_acknowledged, b"5")
    await put(KEYS.last_run, b"6")  # begins, and is not acknowledged
    assert water.acknowledged(5, fifth) == pytest.approx(began, abs=0.1)
    sixth, now = fifth + 100, loop.time()
    assert water.acknowledged(6, sixth) == now  # as the leader has it from its own transaction
    await put(KEYS.last_acknowledged, b"5")  # what the watch brings late changes nothing
    assert water.acknowledged(6, sixth) == now
    assert water.acknowledged(6, sixth + 1) == loop.time()  # another one of that number
    following.cancel()


@virtual
async def test_a_master_that_comes_later_counts_from_when_it_read_it() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=asks(20))
    loop = asyncio.get_running_loop()
    async with running(cluster, callback) as one, alive(one, 1):
        await asyncio.sleep(15)
    began = loop.time()
    async with running(cluster, callback, id="m2") as two, alive(two, 1):
        await asyncio.sleep(40)
    assert len(callback.runs) == 2
    assert 20 <= callback.runs[1].at - began < 20.3


@virtual
async def test_what_another_version_left_is_counted_from_when_it_was_read() -> None:
    """The version before does not write which run was acknowledged; a later one may allow more."""
    for again, after in ((3.0, 3.0), (0.0, 0.1), (-0.0, 0.1)):
        cluster, callback = MemoryCluster(), Stub()
        async with running(cluster, callback) as one, alive(one, 1):
            await asyncio.sleep(3)
        store = MemoryStore(cluster)
        head = Head.decode(await value(cluster, KEYS.applied) or b"")
        await store.txn([], [Put(KEYS.applied, replace(head, again=again, note="why").encode())])
        async with running(cluster, callback, id="m2") as two, alive(two, 1):
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(10)
        assert len(callback.runs) == 2
        assert after - 1e-6 <= callback.runs[1].at - began < after + 0.2


@virtual
async def test_a_failed_run_keeps_what_was_asked_for_until_it_is_done() -> None:
    cluster, callback = MemoryCluster(), Stub()
    outcomes = iter([replace(GOOD, again=5.0, note="wait"), BAD, BAD])
    callback.outcome = lambda _: next(outcomes, GOOD)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(7)
        head = Head.decode(await value(cluster, KEYS.applied) or b"")
        assert (head.again, head.note) == (5.0, "wait")
        await asyncio.sleep(30)
    assert [run.request.attempt for run in callback.runs] == [1, 1, 2, 3]
    reasons = [entry["reason"] for entry in await ledger(cluster)]
    assert reasons == ["ensemble", "again", "unacknowledged", "unacknowledged"]


@virtual
async def test_the_schedule_runs_it_every_so_often_and_counts_from_each_run() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=1)
    async with running(cluster, callback, every=10.0) as master, alive(master, 1):
        await asyncio.sleep(25)
        async with alive(master, 2):
            await asyncio.sleep(15)
    assert starts(callback) == [0.0, 11.0, 22.0, 25.0, 36.0]
    reasons = [entry["reason"] for entry in await ledger(cluster)]
    assert reasons == ["ensemble", "schedule", "schedule", "ensemble", "schedule"]


@virtual
async def test_the_schedule_runs_it_for_no_pods_too() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, every=10.0):
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(15)
    assert [run.ids for run in callback.runs] == [[]]
    assert callback.runs[0].at - begun == pytest.approx(10, abs=0.1)


@virtual
async def test_a_run_at_its_time_takes_the_changes_along_but_not_losses() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=asks(5, 5))
    async with running(cluster, callback, damper=3.0, damper_max=9.0) as master, alive(master, 1):
        await asyncio.sleep(6.5)
        await master.ping(record(2))
        await asyncio.sleep(3)
        assert starts(callback) == [0.0, 5.1]
        assert callback.runs[1].changes == {"joined": ["p2"]}
        assert callback.runs[1].ids == ["p1", "p2"]
        # p2 is lost 9 s after it came; the run at its time waits for the damper.
        await asyncio.sleep(9)
    entries = await ledger(cluster)
    assert [entry["reason"] for entry in entries][:3] == ["ensemble", "again", "again"]
    assert callback.runs[-1].changes == {"lost": ["p2"]}
    assert entries[-1]["reason"] == "ensemble"


@virtual
async def test_runs_that_ask_for_the_next_are_no_callback_that_feeds_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=asks(*[1] * 100))
    async with running(cluster, callback, every=3.0) as master, alive(master, 1):
        for i in range(15):  # a pod that changes now and then, and not because of that
            await asyncio.sleep(5)
            await master.ping(record(2, n=i, payload=i))
    assert len(callback.runs) > 40
    assert "caused by the run before" not in caplog.text
    assert master.counts.following < 10


@virtual
async def test_the_note_and_the_time_are_told_until_the_next_acknowledged_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    cluster, callback = MemoryCluster(), Stub(outcome=asks(10, note="p1 does not answer"))
    async with running(cluster, callback) as master, alive(master, 1):
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")
        await asyncio.sleep(1.2)  # the run is acknowledged, and nothing published yet
        for elapsed in (0, 3):
            await asyncio.sleep(elapsed)
            status = await view.status()
            plan = status["plan"]
            assert isinstance(plan, dict)
            assert (plan["what"], plan["reason"], plan["hold"]) == ("idle", "again", None)
            assert "acknowledged" not in plan
            (problem,) = cast("list[dict[str, str]]", status["problems"])
            assert problem["kind"] == "note"
            assert problem["what"].endswith(" s: p1 does not answer")
            assert problem["what"].startswith("the callback runs again in ")
        assert master.leader.note == "p1 does not answer"
        callback.outcome = lambda _: GOOD
        await asyncio.sleep(10)
        assert master.leader.plan == Idle()
        status = await view.status()
        assert status["problems"] == []
    text = "run 1 acknowledged after 0.1 s; it runs again in 10 s; its note: p1 does not answer"
    assert text in caplog.messages
    entries = await ledger(cluster)
    assert [entry.get("note") for entry in entries] == ["p1 does not answer", None]


# Urgent changes


@virtual
async def test_an_urgent_change_does_not_wait_for_the_damper() -> None:
    cluster, callback = MemoryCluster(), Stub()
    urgent = parse_urgent("left,payload.state")
    loop = asyncio.get_running_loop()
    async with (
        running(cluster, callback, urgent=urgent, **SLOW) as master,
        alive(master, 1),
        changing(master, 2, {"state": "A", "load": 1}) as change,
    ):
        await asyncio.sleep(31)
        assert len(callback.runs) == 1
        await change({"state": "A", "load": 2})
        await asyncio.sleep(5)
        assert len(callback.runs) == 1  # the load is not urgent
        at = loop.time()
        await change({"state": "B", "load": 3})
        await asyncio.sleep(1)
        assert [run.changes for run in callback.runs[1:]] == [{"changed": ["p2"]}]
        assert callback.runs[1].at - at < 0.1
        await change({"state": "B", "load": 4})
        await asyncio.sleep(5)
        at = loop.time()
        await master.ping(record(3))
        await master.ping(record(3, n=1, down=True))  # it came and went: no change
        await asyncio.sleep(5)
        assert len(callback.runs) == 2
        await master.ping(record(1, n=5, down=True))
        await asyncio.sleep(1)
        assert [run.changes for run in callback.runs[2:]] == [{"left": ["p1"], "changed": ["p2"]}]
        assert callback.runs[2].at - at < 5.1


@virtual
async def test_an_urgent_change_is_seen_behind_one_that_is_not() -> None:
    """Also by a leader that comes after both, as its mirror did not see the pod change."""
    cluster, callback = MemoryCluster(), Stub()
    urgent = parse_urgent("payload.state")
    async with running(cluster, callback, urgent=urgent) as master, alive(master, 1):
        await master.ping(record(2, payload={"state": "A"}))
        await asyncio.sleep(3)
    async with running(cluster, None, id="m2") as master:
        await master.ping(record(2, n=1, payload={"state": "B"}))
        await master.ping(record(3))
    async with running(cluster, callback, urgent=urgent, id="m3", **SLOW) as master:
        await asyncio.sleep(1)
    assert [run.changes for run in callback.runs[1:]] == [{"joined": ["p3"], "changed": ["p2"]}]


@virtual
async def test_an_urgent_loss_is_held_by_the_brake() -> None:
    cluster, callback = MemoryCluster(), Stub()
    urgent = parse_urgent("lost,changed")
    async with (
        running(cluster, callback, urgent=urgent) as master,
        changing(master, 1, "") as change,
    ):
        for number in range(2, 9):  # they report together, and so they are lost together
            await master.ping(record(number))
        await asyncio.sleep(3)
        before = len(callback.runs)
        assert before
        await asyncio.sleep(CONFIG.ttl)
        await change("urgent")
        await asyncio.sleep(1)
        assert len(callback.runs) == before
        await asyncio.sleep(2 * CONFIG.ttl)
        assert len(callback.runs) == before + 1
        assert len(callback.runs[-1].changes["lost"]) == 7


@virtual
async def test_a_run_that_does_not_start_leaves_the_damper_as_it_was() -> None:
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()

    def starts_a_run(request: Request) -> Exception | None:
        ops = request.then if isinstance(request, Txn) else ()
        put = any(isinstance(op, Put) and op.key == KEYS.running for op in ops)
        return Unavailable("no quorum") if put else None

    network.before = starts_a_run
    async with (
        running(cluster, callback, network=network, every=6.0, **SLOW) as master,
        alive(master, 1),
    ):
        await asyncio.sleep(10)
        [kv] = master.election.candidates
        await MemoryStore(cluster).txn([], [Delete(kv.key)])
        await asyncio.sleep(0.1)
        network.before = lambda _: None
        await asyncio.sleep(5)
    assert [e["reason"] for e in await ledger(cluster)] == ["schedule"]
    assert callback.runs[0].changes == {"joined": ["p1"]}


class Slow(Faulty):
    """A network on which each call takes 30 ms."""

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        await asyncio.sleep(0.03)
        return await super().call(request, do)


@pytest.mark.parametrize("before", [0.7, 0.75, 0.8, 0.85, 0.9])
@virtual
async def test_what_falls_due_during_a_pause_between_looks_runs_then(before: float) -> None:
    cluster, callback, loop = MemoryCluster(), Stub(), asyncio.get_running_loop()
    async with (
        running(cluster, callback, network=Slow(), every=6.0) as master,
        alive(master, 1),
        alive(master, 2),
    ):
        await asyncio.sleep(20)
        # The run at its time does not tell what is lost; the damper lets it pass soon after.
        await asyncio.sleep(callback.runs[-1].at + 6 - before - loop.time())
        (key,) = (pod.key for pod in master.mirror.ensemble if pod.id == "p2")
        await MemoryStore(cluster).txn([], [Delete(KEYS.pod(key))])
        await asyncio.sleep(2)
    assert callback.runs[-1].changes == {"lost": ["p2"]}
