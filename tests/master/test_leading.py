"""Election, leader and ledger over the store model: what runs, when, with what, and who says so."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, alive, record, running
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.store.protocol import Ambiguous, Delete, Put, Range


async def ledger(cluster: MemoryCluster) -> list[dict[str, object]]:
    """The entries of the ledger, the oldest first."""
    found = await MemoryStore(cluster).range(Range(KEYS.runs, prefix=True))
    return [json.loads(kv.value) for kv in found.kvs]


async def value(cluster: MemoryCluster, key: str) -> bytes | None:
    kvs = (await MemoryStore(cluster).range(Range(key))).kvs
    return kvs[0].value if kvs else None


@virtual
async def test_changes_are_damped_and_run_once() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master:
        start = asyncio.get_running_loop().time()
        async with alive(master, 1, 2, 3):
            await asyncio.sleep(20)
    assert [(run.ids, run.changes) for run in callback.runs] == [
        (["p1", "p2", "p3"], {"joined": ["p1", "p2", "p3"]})
    ]
    assert callback.runs[0].at - start == CONFIG.damper


@virtual
async def test_left_is_told_from_lost_and_changed() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        for number in (2, 3, 4):
            await master.ping(record(number))
        await asyncio.sleep(3)
        await master.ping(record(3, n=1, down=True))
        await master.ping(record(2, n=1, payload="new"))
        await asyncio.sleep(3)
        assert callback.runs[-1].changes == {"left": ["p3"], "changed": ["p2"]}
        await asyncio.sleep(CONFIG.ttl + 3)
        assert [run.changes for run in callback.runs[2:]] == [{"lost": ["p4"]}, {"lost": ["p2"]}]


@virtual
async def test_state_goes_from_run_to_run_and_a_failure_keeps_it() -> None:
    cluster, callback = MemoryCluster(), Stub()
    outcomes = iter([replace(GOOD, state=b'{"a":1}'), replace(BAD, state=b"[]"), GOOD, GOOD])
    callback.outcome = lambda _: next(outcomes)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        await master.ping(record(2))
        await asyncio.sleep(6)
    assert [run.request.state for run in callback.runs[:3]] == [None, b'{"a":1}', b'{"a":1}']
    assert await value(cluster, KEYS.state_of(1)) == b'{"a":1}'


@virtual
async def test_a_failed_run_is_tried_again_after_a_growing_time_and_told_in_the_ledger() -> None:
    cluster, callback = MemoryCluster(), Stub()
    callback.outcome = lambda request: GOOD if request.attempt == 4 else BAD
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(30)
    assert [run.request.attempt for run in callback.runs] == [1, 2, 3, 4]
    assert [run.request.run for run in callback.runs] == [1, 2, 3, 4]
    times = [run.at for run in callback.runs]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 0.8 < pauses[0] < 1.2 < pauses[1] < 2.2 < pauses[2] < 4.2
    entries = await ledger(cluster)
    assert [(e["run"], e["ok"], e["why"]) for e in entries] == [
        (1, False, "exit status 3"),
        (2, False, "exit status 3"),
        (3, False, "exit status 3"),
        (4, True, "exit status 0"),
    ]
    assert entries[3]["changes"]["joined"] == {"count": 1, "first": ["#0 p1"]}  # type: ignore[index]
    assert await value(cluster, KEYS.running) is None


@virtual
async def test_a_new_change_does_not_wait_for_the_backoff_and_counts_from_one() -> None:
    cluster, callback = MemoryCluster(), Stub()
    callback.outcome = lambda _: BAD
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(10)
        before = len(callback.runs)
        callback.outcome = lambda _: GOOD
        await master.ping(record(2))
        await asyncio.sleep(1.1)
    assert [run.request.attempt for run in callback.runs[before:]] == [1]


@virtual
async def test_changes_during_a_run_are_due_when_it_ends() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=5)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(2)
        await master.ping(record(2))
        await asyncio.sleep(5)
        assert [run.ids for run in callback.runs] == [["p1"], ["p1", "p2"]]
        assert callback.runs[1].at - callback.runs[0].at < 5.1


@virtual
async def test_a_successor_repeats_nothing_and_goes_on_with_the_state() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, id="m2") as two, alive(two, 1):
        async with running(cluster, callback, id="m3"):
            await asyncio.sleep(5)
            assert [run.ids for run in callback.runs] == [["p1"]]
        assert two.leader_id == "m2"
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(30)
        assert len(callback.runs) == 1
        assert master.leader_id == "m1"


@virtual
async def test_a_leader_told_to_stop_ends_its_callback_books_it_and_resigns_at_once() -> None:
    cluster, slow, quick = MemoryCluster(), Stub(seconds=60), Stub()
    loop = asyncio.get_running_loop()
    async with running(cluster, slow) as one:
        await one.ping(record(1))
        await asyncio.sleep(2)
        assert len(slow.runs) == 1
        begun = loop.time()
    assert loop.time() == begun
    assert slow.runs[0].ended == "stopped"
    assert [entry["why"] for entry in await ledger(cluster)] == ["stopped"]
    async with running(cluster, quick, id="m2") as two, alive(two, 1):
        await asyncio.sleep(3)
    # No waiting for the fail-over: the run was recorded as ended, and is tried again.
    assert [run.request.attempt for run in quick.runs] == [2]


@virtual
async def test_a_run_left_unended_is_waited_out_and_counts_as_a_failed_attempt() -> None:
    cluster, callback = MemoryCluster(), Stub()
    running_record = (
        b'{"run":7,"term":3,"attempt":2,"digest":"d","fingerprint":"f1","started":"s",'
        b'"ended":false,"why":""}'
    )
    await MemoryStore(cluster).txn([], [Put(KEYS.running, running_record)])
    start = asyncio.get_running_loop().time()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(20)
    assert callback.runs[0].at - start >= CONFIG.fover
    assert callback.runs[0].request.run == 8
    assert (await ledger(cluster))[0]["why"] == "its leader, of term 3, went away"


@virtual
async def test_lost_answers_of_the_ledger_are_settled_by_reading() -> None:
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()
    count = 0

    def lose(request: object) -> Exception | None:
        nonlocal count
        if not writes(request):  # type: ignore[arg-type]
            return None
        count += 1
        return Ambiguous("lost") if count % 2 else None

    network.after = lose
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await asyncio.sleep(4)
        await master.ping(record(2))
        await asyncio.sleep(4)
    assert [run.ids for run in callback.runs] == [["p1"], ["p1", "p2"]]
    assert [entry["run"] for entry in await ledger(cluster)] == [1, 2]


@virtual
async def test_a_leader_whose_key_is_deleted_kills_its_callback_and_stands_again() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=60)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        assert len(callback.runs) == 1
        await MemoryStore(cluster).txn([], [Delete(KEYS.candidates, prefix=True)])
        await asyncio.sleep(2 * CONFIG.fover / 5 + 0.1)
        assert callback.runs[0].ended == "killed"
        callback.seconds = 0.1
        await asyncio.sleep(20)
        assert [run.request.attempt for run in callback.runs] == [1, 2]
        assert callback.runs[1].request.term > callback.runs[0].request.term


@virtual
async def test_a_master_told_to_stop_ends_although_its_term_ends_as_well() -> None:
    """A group of errors hid the cancellation: the master campaigned again, without end."""
    cluster, callback = MemoryCluster(), Stub(seconds=60)
    loop = asyncio.get_running_loop()
    async with running(cluster, callback) as master:
        await master.ping(record(1))
        await asyncio.sleep(3)
        assert len(callback.runs) == 1
        await MemoryStore(cluster).txn([], [Delete(KEYS.candidates, prefix=True)])
        begun = loop.time()
    assert loop.time() - begun < CONFIG.fover


@virtual
async def test_a_new_callback_waits_until_no_candidate_has_the_old_one() -> None:
    cluster, old, new = MemoryCluster(), Stub(), Stub(name="f2")
    async with running(cluster, old, id="m3") as three, alive(three, 1):
        await asyncio.sleep(3)
    async with running(cluster, new) as one, alive(one, 1):
        async with running(cluster, old, id="m2"):
            await asyncio.sleep(10)
            assert (len(old.runs), len(new.runs)) == (1, 0)
        await asyncio.sleep(0.1)
        assert len(new.runs) == 1
        assert new.runs[0].changes == {}


@virtual
async def test_a_sudden_loss_of_most_is_held_and_let_go_when_they_return() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1, 2):
        async with alive(master, 3, 4, 5):
            await asyncio.sleep(10)
        await asyncio.sleep(CONFIG.ttl + 5)
        assert len(callback.runs) == 1
        for number in (3, 4, 5):
            await master.ping(record(number))
        await asyncio.sleep(3)
        assert len(callback.runs) == 1


@virtual
async def test_the_brake_lets_go_after_twice_the_ttl_or_by_hand() -> None:
    for by_hand in (False, True):
        cluster, callback = MemoryCluster(), Stub()
        async with running(cluster, callback) as master, alive(master, 1, 2):
            async with alive(master, 3, 4, 5):
                await asyncio.sleep(10)
            await asyncio.sleep(CONFIG.ttl + 3)
            assert len(callback.runs) == 1
            if by_hand:
                await master.requests.ask("release", "ann", timeout=5)
                await asyncio.sleep(0.1)
            else:
                await asyncio.sleep(2 * CONFIG.ttl)
            assert callback.runs[-1].changes == {"lost": ["p3", "p4", "p5"]}


@virtual
async def test_that_most_pods_deregister_does_not_brake() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1, 2):
        async with alive(master, 3, 4, 5):
            await asyncio.sleep(10)
        for number in (3, 4, 5):
            await master.ping(record(number, n=1, down=True))
        await asyncio.sleep(3)
        assert callback.runs[-1].changes == {"left": ["p3", "p4", "p5"]}


@virtual
async def test_time_without_masters_is_nobodys_silence() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1, 2):
        await asyncio.sleep(5)
    await asyncio.sleep(10 * CONFIG.ttl)
    async with running(cluster, callback) as master:
        await asyncio.sleep(CONFIG.ttl / 3)
        async with alive(master, 1, 2):  # they were there all the time
            await asyncio.sleep(3 * CONFIG.ttl)
        assert len(callback.runs) == 1
    await asyncio.sleep(10 * CONFIG.ttl)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3 * CONFIG.ttl)
    assert callback.runs[-1].changes == {"lost": ["p2"]}


@virtual
async def test_without_a_callback_the_ensemble_is_kept_and_there_is_a_leader() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master, alive(master, 1):
        await asyncio.sleep(30)
        assert [pod["id"] for pod in master.pods()] == ["p1"]
        assert master.leader_id == "m1"


@virtual
async def test_a_master_older_than_the_data_does_not_lead() -> None:
    cluster, callback = MemoryCluster(), Stub()
    await MemoryStore(cluster).txn([], [Put(KEYS.meta, b'{"version":2,"floor":0}')])
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(30)
        assert master.leader_id is None
        assert callback.runs == []


@virtual
async def test_old_states_and_entries_are_dropped() -> None:
    cluster = MemoryCluster()
    callback = Stub(outcome=lambda _: replace(GOOD, state=b"1"), seconds=0.01)
    async with running(cluster, callback, damper=0.0) as master, alive(master, 1):
        for n in range(230):
            await master.ping(record(2, n=n, payload=n))
            await asyncio.sleep(0.1)
    entries = await ledger(cluster)
    assert len(entries) == 200
    assert entries[-1]["run"] == len(callback.runs)
    states = await MemoryStore(cluster).range(Range(KEYS.states, prefix=True))
    assert len(states.kvs) == 20
    chunks = await MemoryStore(cluster).range(Range(f"{KEYS.applied}/", prefix=True))
    assert len(chunks.kvs) == 1


@virtual
async def test_neither_term_nor_run_is_told_twice_when_the_store_goes_back() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2") as two,
        alive(one, 1),
    ):
        await asyncio.sleep(3)
        early = cluster.snapshot()
        for n in range(5):
            await two.ping(record(2, n=n, payload=n))
            await asyncio.sleep(3)
        before = list(callback.runs)
        for cluster_id in (2, 3):
            cluster.restore(early, cluster=cluster_id)
            await asyncio.sleep(3)
            await two.ping(record(3, nonce=f"b{cluster_id}"))
            await asyncio.sleep(20)
        assert len(callback.runs) > len(before)
    terms = [run.request.term for run in callback.runs]
    runs = [run.request.run for run in callback.runs]
    assert terms == sorted(terms)
    assert runs == sorted(set(runs))
    assert callback.runs[len(before)].request.term > before[-1].request.term


@virtual
async def test_runs_that_only_the_ledger_saw_are_not_told_twice_either() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2"),
        alive(one, 1),
    ):
        await asyncio.sleep(3)
        early = cluster.snapshot()
        callback.outcome = lambda _: BAD
        await one.ping(record(2))
        await asyncio.sleep(100)  # tried again and again: nothing that a standby follows
        callback.outcome = lambda _: GOOD
        cluster.restore(early, cluster=2)
        before = len(callback.runs)
        await one.ping(record(3))
        await asyncio.sleep(60)
    runs = [run.request.run for run in callback.runs]
    assert len(runs) > before
    assert runs == sorted(set(runs))
