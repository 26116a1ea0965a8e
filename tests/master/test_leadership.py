"""Corners of leading: what a term waits for, tells, and asks again, on the store model."""

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, alive, record, running
from tests.master.test_election import Deaf
from tests.master.test_late_writes import Replaying
from tests.master.test_leading import ledger
from tests.master.test_registry import Faulty
from tests.master.test_terms import Outage, starts_after
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.master.leader.policy import Idle, Wait
from kontrol.store.protocol import Delete, Denied, Put, Range, StoreError, Unavailable


def asks_for_fates(request: Request) -> bool:
    """Tell whether a request reads what became of pods."""
    return isinstance(request, Txn) and any(
        isinstance(op, Range) and op.key.startswith(f"{KEYS.registrations}") and "." in op.key
        for op in request.then
    )


@virtual
async def test_a_successor_goes_on_with_the_back_off() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: BAD)
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2") as two,
        alive(two, 1),
    ):
        await asyncio.sleep(40)
        attempts = len(callback.runs)
        assert attempts >= 5
        one.election.restart(0)  # it gives up, and campaigns again behind the other
        await asyncio.sleep(2)
        assert two.leader_id == "m2"
        await asyncio.sleep(2.0**attempts)
        later = [run.at for run in callback.runs[attempts - 1 :]]
        assert callback.runs[attempts].request.attempt == attempts + 1
        assert min(b - a for a, b in pairwise(later)) >= 0.8 * 2.0 ** (attempts - 1)


@virtual
async def test_what_became_of_pods_is_asked_again_when_the_store_does_not_say() -> None:
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await master.ping(record(2))
        await asyncio.sleep(3)
        failures = iter(3 * [Unavailable("no quorum")])
        network.before = lambda request: next(failures, None) if asks_for_fates(request) else None
        await asyncio.sleep(CONFIG.ttl + 5)
        assert next(failures, None) is None
        assert [run.changes for run in callback.runs[1:]] == [{"lost": ["p2"]}]


@virtual
async def test_a_run_whose_start_came_late_is_withdrawn_if_the_pods_are_not_known() -> None:
    cluster, callback = MemoryCluster(), Stub()
    network = Outage(starts_after(1), 2.0)
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await master.ping(record(2))
        await asyncio.sleep(3)
        await master.ping(record(2, n=1, down=True))

        def fails_once(request: Request) -> Exception | None:
            late = network.ended < asyncio.get_running_loop().time() + 0.1
            if not (late and asks_for_fates(request)):
                return None
            network.before = lambda _: None
            return Unavailable("no quorum")

        network.before = fails_once
        await asyncio.sleep(10)
        assert [run.changes for run in callback.runs[1:]] == [{"left": ["p2"]}]
        whys = [entry["why"] for entry in await ledger(cluster)]
        assert "not started: the pods changed meanwhile" in whys


@virtual
async def test_while_the_damper_waits_the_store_is_seldom_asked_what_became_of_pods() -> None:
    """For people alone, at most twice a second, whatever changes."""
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        for number in range(2, 8):
            await master.ping(record(number))
        await asyncio.sleep(3)
        network.requests.clear()
        for number in range(2, 8):
            await master.ping(record(number, n=1, down=True))
            await asyncio.sleep(CONFIG.damper / 10)
        assert 1 <= sum(map(asks_for_fates, network.requests)) <= 2
        await asyncio.sleep(3)
        assert any(map(asks_for_fates, network.requests))


@virtual
async def test_pods_that_were_told_a_longer_ttl_are_waited_for_as_long() -> None:
    cluster, callback = MemoryCluster(), Stub()
    longer = 3 * CONFIG.ttl
    async with running(cluster, callback, ttl=longer) as master, alive(master, 1, 2):
        await asyncio.sleep(5)
    await asyncio.sleep(10 * longer)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(longer - 1)
        assert len(callback.runs) == 1
        await asyncio.sleep(3)
        assert [run.changes for run in callback.runs[1:]] == [{"lost": ["p2"]}]


@virtual
async def test_a_list_without_a_ttl_is_waited_for_as_long_as_ones_own() -> None:
    cluster, callback = MemoryCluster(), Stub()
    store = MemoryStore(cluster)
    async with running(cluster, callback) as master, alive(master, 1, 2):
        await asyncio.sleep(5)
    head = json.loads((await store.range(Range(KEYS.applied))).kvs[0].value)
    del head["ttl"]  # as an earlier version writes it
    await store.txn([], [Put(KEYS.applied, json.dumps(head).encode())])
    await asyncio.sleep(10 * CONFIG.ttl)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(CONFIG.ttl - 1)
        assert len(callback.runs) == 1
        await asyncio.sleep(3)
        assert [run.changes for run in callback.runs[1:]] == [{"lost": ["p2"]}]


@virtual
async def test_each_ensemble_that_the_leader_sees_is_counted_once() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as one, alive(one, 1):
        await asyncio.sleep(3)
        await one.ping(record(2))
        await asyncio.sleep(3)
        assert one.counts.digests == 2
        async with running(cluster, callback, id="m2") as two:
            one.election.restart(0)
            await asyncio.sleep(2)
            assert two.leader_id == "m2"
            assert two.counts.digests == 0


@virtual
async def test_when_runs_ended_is_counted_by_the_clock_that_was_given() -> None:
    """It was the machine's own, also in simulations."""
    cluster, at = MemoryCluster(), datetime(2026, 3, 1, tzinfo=UTC)
    async with running(cluster, Stub(), wall=at.isoformat) as master, alive(master, 1):
        await asyncio.sleep(3)
        assert master.counts.last_run == master.counts.last_success == at.timestamp()


@virtual
async def test_masters_with_the_same_callback_are_not_waited_for() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with (
        running(cluster, callback) as master,
        running(cluster, callback, id="m2"),
        alive(master, 1),
    ):
        await asyncio.sleep(5)
        plan = json.loads((await MemoryStore(cluster).range(Range(KEYS.plan))).kvs[0].value)
        assert (plan["what"], plan["peers"]) == ("idle", [])


@virtual
async def test_only_a_leader_has_a_plan() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as one, running(cluster, callback, id="m2") as two:
        await asyncio.sleep(1)
        await one.ping(record(1))
        await asyncio.sleep(CONFIG.damper / 2)
        assert isinstance(one.leader.plan, Wait)
        assert two.leader.plan == Idle()


@virtual
async def test_a_change_that_is_undone_does_not_wait_for_a_run() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, damper=5, damper_max=30) as master:
        await master.ping(record(1))
        await asyncio.sleep(6)
        assert master.leader.waiting_since is None
        changed = asyncio.get_running_loop().time()
        await master.ping(record(1, n=1, payload="other"))
        await asyncio.sleep(1)
        assert master.leader.waiting_since == pytest.approx(changed, abs=0.1)
        await master.ping(record(1, n=2))
        await asyncio.sleep(1)
        assert master.leader.waiting_since is None


@virtual
async def test_a_rollback_without_a_number_is_refused() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        answer = await master.requests.ask("rollback", "ann", timeout=5)
        assert answer["refused"]
        assert str(answer["message"]).startswith("run 0 is not in the ledger")
        assert master.leader_id == "m1"


@virtual
async def test_what_is_answered_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: replace(GOOD, state=b"1"))
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        await master.requests.ask("rollback", "ann", run=1, timeout=5)
    assert "request of ann (rollback): run 2 restored the state of run 1" in caplog.messages


@virtual
@pytest.mark.parametrize(
    ("error", "why"),
    [(Denied("no permission"), "no permission"), (Unavailable("no quorum"), "no answer in time")],
    ids=["that refuses", "that is away"],
)
async def test_a_leader_told_to_stop_does_not_wait_long_for_a_store(
    error: StoreError, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, network, slow = MemoryCluster(), Faulty(), Stub(seconds=60)
    loop = asyncio.get_running_loop()
    async with running(cluster, slow, network=network) as master, alive(master, 1):
        await asyncio.sleep(3)
        network.before = lambda _: error
        stopped = loop.time()
    assert loop.time() - stopped <= 2 * CONFIG.fover / 3
    assert slow.runs[0].ended == "stopped"
    assert f"run 1 was not recorded: {why}; the next leader will record it" in caplog.messages


@virtual
async def test_a_damaged_request_is_nobodys() -> None:
    cluster, callback = MemoryCluster(), Stub()
    await MemoryStore(cluster).txn([], [Put(f"{KEYS.requests}1", b"junk")])
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        answer = await master.requests.ask("run", "ann", timeout=5)
        assert answer["run"] == 2


@virtual
async def test_an_answer_is_told_although_its_request_is_gone_by_then() -> None:
    """A watch may deliver both at the same time."""
    cluster, callback, deaf = MemoryCluster(), Stub(), Deaf()
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2", network=deaf) as two,
        alive(one, 1),
        asyncio.TaskGroup() as group,
    ):
        await asyncio.sleep(3)
        deaf.hears.clear()
        asking = group.create_task(two.requests.ask("run", "ann", timeout=5))
        await asyncio.sleep(0.5)
        await MemoryStore(cluster).txn([], [Delete(KEYS.requests, prefix=True)])
        deaf.hears.set()
        answer = await asking
        assert (answer["done"], answer["run"]) == (True, 2)


@virtual
async def test_copies_of_what_the_sweep_wrote_that_arrive_late_change_nothing() -> None:
    cluster = MemoryCluster()
    network = Replaying(cluster)
    callback = Stub(outcome=lambda _: replace(GOOD, state=b"1"))
    async with (
        running(cluster, callback, network=network, sweep_every=60.0, sweep_age=300.0) as master,
        alive(master, 1),
    ):
        await master.ping(record(2))
        await master.ping(record(2, n=1, down=True))
        await asyncio.sleep(900)
        assert len(master.pods()) == 1
    assert network.changed == []
