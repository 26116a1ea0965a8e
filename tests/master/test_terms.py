"""What belongs to one term stays in it, whichever master leads before and after."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from tests.master.support import BAD, CONFIG, KEYS, Stub, alive, record, running
from tests.master.test_leading import ledger, value
from tests.master.test_registry import Faulty
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.master.records.fields import MOST
from kontrol.store.protocol import Put, Unavailable

_Answer = TypeVar("_Answer")


async def leads(master: Master) -> None:
    """Wait until `master` leads."""
    moved = asyncio.Event()
    master.election.on_change(moved.set)
    async with asyncio.timeout(2 * CONFIG.fover):
        while master.leader_id != master.config.id or master.election.term is None:
            await moved.wait()
            moved.clear()


@virtual
async def test_the_brake_of_a_former_term_is_forgotten() -> None:
    """A leader that held, was deposed, and leads again later holds a new loss again."""
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, damper=3.0) as one, alive(one, 1):
        async with alive(one, 2, 3, 4, 5, 6):
            await asyncio.sleep(5)
        async with running(cluster, callback, id="m2", damper=3.0) as two:
            await asyncio.sleep(CONFIG.ttl + 5)
            assert len(callback.runs) == 1  # held
            one.election.restart(0)
            await leads(two)
            async with alive(one, 2, 3, 4, 5, 6):
                await asyncio.sleep(3 * CONFIG.ttl - 1)  # no report is due in the moment of the end
            await asyncio.sleep(CONFIG.ttl + 2)
        await leads(one)
        await asyncio.sleep(8)
        assert len(callback.runs) == 1
        assert len(one.pods()) == 1
        await asyncio.sleep(2 * CONFIG.ttl)
        assert callback.runs[-1].changes == {"lost": ["p2", "p3", "p4", "p5", "p6"]}


@virtual
async def test_a_release_of_a_former_term_is_forgotten() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as one, alive(one, 1):
        async with alive(one, 2, 3, 4, 5, 6):
            await asyncio.sleep(5)
        async with running(cluster, callback, id="m2") as two:
            await asyncio.sleep(CONFIG.ttl + 3)
            callback.seconds = 60
            await one.requests.ask("release", "ann", timeout=5)
            await asyncio.sleep(0.1)
            assert len(callback.runs) == 2
            one.election.restart(0)
            await leads(two)
        await leads(one)
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(CONFIG.fover + 2 * CONFIG.ttl + 5)
        assert callback.runs[2].at - begun >= 2 * CONFIG.ttl


class Outage(Faulty):
    """A network that breaks off for `seconds` at the first request that `at` picks."""

    def __init__(self, at: Callable[[Request], bool], seconds: float) -> None:
        super().__init__()
        self.up = asyncio.Event()
        self.up.set()
        self.down = asyncio.Event()  # stays set
        self.ended = float("inf")
        self._at = at
        self._seconds = seconds

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        loop = asyncio.get_running_loop()
        if self.ended == float("inf") and self._at(request):
            self.ended = loop.time() + self._seconds
            self.up.clear()
            self.down.set()
            loop.call_at(self.ended, self.up.set)
        if not self.up.is_set():
            try:
                async with asyncio.timeout(6):
                    await self.up.wait()
            except TimeoutError:
                raise Unavailable("no answer") from None
        return await super().call(request, do)

    async def deliver(self) -> bool:
        broken = not self.up.is_set()
        await self.up.wait()
        return broken


def starts_after(count: int) -> Callable[[Request], bool]:
    """Pick the write that begins a run, when there were `count` before."""
    seen = 0

    def picks(request: Request) -> bool:
        nonlocal seen
        begins = isinstance(request, Txn) and any(
            isinstance(op, Put) and op.key == KEYS.running for op in request.then
        )
        seen += begins
        return begins and seen == count + 1

    return picks


@virtual
async def test_a_start_that_had_to_wait_for_etcd_is_decided_again() -> None:
    """Else a run starts right after an outage, and tells a pod lost that could not report."""
    cluster, callback = MemoryCluster(), Stub()
    network = Outage(starts_after(1), 8)
    async with (
        running(cluster, id="m2") as other,
        running(cluster, callback, network=network, fover=30) as master,
    ):
        # The one without a callback must not lead.
        other.election.restart(0)
        await leads(master)
        async with alive(other, 1, 2):
            async with alive(other, 3):
                await asyncio.sleep(5)
            assert len(callback.runs) == 1
            await asyncio.sleep(CONFIG.ttl + 8 + 2)
            assert network.ended < asyncio.get_running_loop().time()
            assert len(callback.runs) == 1
            assert await value(cluster, KEYS.running) is not None
            shown = await View(master, MemoryStore(cluster), wall=master_wall).status()
            assert shown["running"] is None  # withdrawn: nothing is owed to it
            await asyncio.sleep(2 * CONFIG.ttl)
    late = callback.runs[1]
    assert late.changes == {"lost": ["p3"]}
    assert late.at - network.ended >= CONFIG.ttl
    entries = await ledger(cluster)
    assert [(e["run"], e["ok"]) for e in entries] == [(1, True), (2, False), (3, True)]
    assert "not started" in str(entries[1]["why"])
    assert late.request.attempt == 1


@virtual
async def test_a_start_that_waited_is_withdrawn_if_nothing_is_due_any_more() -> None:
    cluster, callback = MemoryCluster(), Stub()
    network = Outage(starts_after(1), 8)
    async with (
        running(cluster, id="m2") as other,
        running(cluster, callback, network=network, fover=30) as master,
    ):
        other.election.restart(0)
        await leads(master)
        async with alive(other, 1):
            await asyncio.sleep(5)
            await other.ping(record(2))
            await asyncio.sleep(2)
            await other.ping(record(2, n=1, down=True))
            async with asyncio.timeout(60):
                await network.up.wait()
            await asyncio.sleep(30)
    assert len(callback.runs) == 1
    assert [e["ok"] for e in await ledger(cluster)] == [True, False]


@virtual
async def test_a_start_that_waited_goes_on_if_the_same_pods_are_still_lost() -> None:
    cluster, callback = MemoryCluster(), Stub()
    network = Outage(starts_after(1), CONFIG.ttl / 10)
    async with (
        running(cluster, id="m2") as other,
        running(cluster, callback, network=network, fover=30) as master,
    ):
        other.election.restart(0)
        await leads(master)
        async with alive(other, 1, 2, 4):
            async with alive(other, 3):
                await asyncio.sleep(5)
            await asyncio.sleep(2 * CONFIG.ttl)
    assert network.ended
    assert [run.changes for run in callback.runs][1:] == [{"lost": ["p3"]}]
    assert [e["ok"] for e in await ledger(cluster)] == [True, True]


@virtual
async def test_a_start_that_waited_is_withdrawn_if_a_lost_pod_is_back() -> None:
    """Though another change is still due, which a list of its own tells."""
    cluster, callback = MemoryCluster(), Stub()
    network = Outage(starts_after(1), CONFIG.ttl / 10)
    async with (
        running(cluster, id="m2") as other,
        running(cluster, callback, network=network, fover=30) as master,
    ):
        other.election.restart(0)
        await leads(master)
        async with alive(other, 1, 2, 4):
            async with alive(other, 3):
                await asyncio.sleep(5)
            changed = asyncio.Event()
            other.mirror.cache.listen(lambda _: changed.set())
            async with asyncio.timeout(2 * CONFIG.ttl):
                await changed.wait()  # p3 is lost
            await other.ping(record(5))
            async with asyncio.timeout(60):
                await network.down.wait()
            await other.ping(record(3))
            await asyncio.sleep(CONFIG.damper_max + 1)
    assert [e["ok"] for e in await ledger(cluster)] == [True, False, True]
    assert [run.changes for run in callback.runs][1:] == [{"joined": ["p5"]}]


def master_wall() -> str:
    return "2026-01-01T00:00:00.000+00:00"


@virtual
async def test_a_callback_replaced_in_place_runs_once_all_masters_have_it() -> None:
    cluster, mine, theirs = MemoryCluster(), Stub(), Stub()
    async with running(cluster, mine) as one, alive(one, 1):
        async with running(cluster, theirs, id="m2"):
            await asyncio.sleep(5)
            assert len(mine.runs) == 1
            mine.replace("f2")
            await asyncio.sleep(10)
            assert len(mine.runs) == 1
            shown = await View(one, MemoryStore(cluster), wall=master_wall).status()
            plan = shown["plan"]
            assert isinstance(plan, dict)
            assert (plan["hold"], plan["peers"]) == ("rollout", ["m2"])
            theirs.replace("f2")
            await asyncio.sleep(0.1)
            assert len(mine.runs) == 2
            assert mine.runs[1].changes == {}
            await asyncio.sleep(120)
            assert len(mine.runs) == 2
        assert theirs.runs == []


@virtual
async def test_a_callback_that_one_master_never_gets_runs_after_a_minute() -> None:
    cluster, mine, theirs = MemoryCluster(), Stub(), Stub()
    async with running(cluster, mine) as one, alive(one, 1), running(cluster, theirs, id="m2"):
        await asyncio.sleep(5)
        replaced = asyncio.get_running_loop().time()
        mine.replace("f2")
        await asyncio.sleep(90)
        assert len(mine.runs) == 2
        assert 60 <= mine.runs[1].at - replaced < 61


@virtual
async def test_a_successor_knows_that_the_callback_was_replaced() -> None:
    """The candidacies of standbys tell their present callback, not the one that they began with."""
    cluster, mine, theirs = MemoryCluster(), Stub(), Stub()
    async with running(cluster, theirs, id="m2") as two, alive(two, 1), running(cluster, mine):
        await asyncio.sleep(5)
        theirs.replace("f2")
        mine.replace("f2")
        await asyncio.sleep(0.1)
        assert [json.loads(kv.value)["fingerprint"] for kv in two.election.candidates] == [
            "f2",
            "f2",
        ]


@virtual
async def test_an_orphaned_run_is_waited_out_for_its_leader_s_own_time() -> None:
    cluster, callback = MemoryCluster(), Stub()
    orphan = {"run": 7, "term": 3, "attempt": 2, "digest": "d", "fingerprint": "f1",
              "started": "s", "ended": False, "why": "", "fover": 30.0}  # fmt: skip
    await MemoryStore(cluster).txn([], [Put(KEYS.running, json.dumps(orphan).encode())])
    start = asyncio.get_running_loop().time()
    async with running(cluster, callback, fover=6.0) as master, alive(master, 1):
        await asyncio.sleep(20)
        shown = await View(master, MemoryStore(cluster), wall=master_wall).status()
        assert isinstance(shown["plan"], dict)
        assert shown["plan"]["hold"] == "predecessor"
        await asyncio.sleep(30)
    assert callback.runs[0].at - start >= 30


@virtual
async def test_a_run_s_record_tells_its_leader_s_fail_over_time() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: BAD)
    async with running(cluster, callback, fover=7.5) as master, alive(master, 1):
        await asyncio.sleep(5)
        raw = await value(cluster, KEYS.running)
        assert raw is not None
        assert json.loads(raw)["fover"] == 7.5


@virtual
async def test_runs_are_not_told_twice_over_a_restore_with_a_raised_revision() -> None:
    """As `etcdutl snapshot restore --bump-revision` does: terms rise by it, runs do not."""
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
        await one.requests.ask("run", "ann", timeout=5)
        await asyncio.sleep(1)
        await one.requests.ask("rollback", "ann", run=1, timeout=5)
        before = len(callback.runs)
        raised = cluster.core.revision + 1_000_000_000
        cluster.restore(early)
        cluster.core.revision = cluster.core.compacted = raised
        await asyncio.sleep(30)
        await two.ping(record(3, nonce="b"))
        await asyncio.sleep(30)
        assert len(callback.runs) > before
    runs = [run.request.run for run in callback.runs]
    terms = [run.request.term for run in callback.runs]
    assert runs == sorted(set(runs))
    assert terms == sorted(terms)


@virtual
async def test_impossible_run_numbers_are_not_gone_on_from() -> None:
    """An operator or a bug wrote them; the last ones of twelve digits would end all numbering."""
    cluster, callback = MemoryCluster(), Stub()
    orphan = {"run": 99_999_999_999, "term": 1, "ended": False}
    await MemoryStore(cluster).txn(
        [],
        [
            Put(KEYS.last_run, b"99999999999"),
            Put(KEYS.running, json.dumps(orphan).encode()),
            Put(KEYS.run(99_999_999_998), b"{}"),
        ],
    )
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(CONFIG.fover + 5)
    assert [run.request.run for run in callback.runs] == [1]


@virtual
async def test_an_impossible_fail_over_time_is_waited_for_a_day_at_most() -> None:
    cluster = MemoryCluster()
    orphan = {"run": 7, "term": 1, "ended": False, "fover": 1e11}
    await MemoryStore(cluster).txn([], [Put(KEYS.running, json.dumps(orphan).encode())])
    async with running(cluster, Stub()) as master:
        await asyncio.sleep(2)
        plan = (await View(master, MemoryStore(cluster), wall=master_wall).status())["plan"]
        assert isinstance(plan, dict)
        assert plan["hold"] == "predecessor"
        left = plan["seconds"]
        assert isinstance(left, float)
        assert 24 * 3600 - 2 < left <= 24 * 3600


@virtual
async def test_a_restore_that_nothing_but_an_undone_write_tells_is_noticed() -> None:
    """Else the leader, whose candidacy is in the backup, goes on as if nothing was forgotten."""
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with running(cluster, callback, damper=4.0) as master, alive(master, 1):
        await asyncio.sleep(6)
        early = cluster.snapshot()
        async with alive(master, 2):
            await asyncio.sleep(8)
            assert [run.ids for run in callback.runs] == [["p1"], ["p1", "p2"]]
            raised = cluster.core.revision + 1_000_000_000
            cluster.restore(early)
            cluster.core.revision = cluster.core.compacted = raised
            await asyncio.sleep(2 * CONFIG.fover + 5)
            assert len(callback.runs) > 2
            raw = await value(cluster, KEYS.applied)
            assert raw is not None
            assert json.loads(raw)["digest"] == master.mirror.ensemble.digest
            assert json.loads(raw)["run"] == callback.runs[-1].request.run > 2


@virtual
async def test_an_impossible_term_is_not_gone_on_from() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        early = cluster.snapshot()
        store = MemoryStore(cluster)
        lease = (await store.grant(60)).id
        forged = json.dumps({"id": "x", "term": MOST + 1}).encode()
        await store.txn([], [Put(KEYS.candidate(lease), forged, lease)])
        await asyncio.sleep(1)
        cluster.restore(early, cluster=2)
        await asyncio.sleep(30)
        await master.ping(record(2))
        await asyncio.sleep(5)
    assert [run.request.term < MOST for run in callback.runs] == [True, True]


@virtual
async def test_numbers_above_a_restore_outlive_the_master_that_knew_them() -> None:
    """It led after the restore, ran nothing, and was restarted: only the store remembers."""
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        early = cluster.snapshot()
        async with alive(master, 2):
            await asyncio.sleep(5)
        await asyncio.sleep(CONFIG.ttl + 3)
        assert [run.request.run for run in callback.runs] == [1, 2, 3]
        cluster.restore(early)
        await asyncio.sleep(2 * CONFIG.fover)
        assert master.leader_id == "m1"
        assert len(callback.runs) == 3
    async with running(cluster, callback) as master, alive(master, 1, 3):
        await asyncio.sleep(2 * CONFIG.ttl)
    assert callback.runs[3].request.run > 3


@virtual
async def test_a_standby_remembers_the_term_that_a_leader_announced() -> None:
    """It campaigned before the leader raised the floor, so its own revision does not tell it."""
    cluster, callback = MemoryCluster(), Stub(seconds=0.01)
    async with AsyncExitStack() as all_masters:
        ends, masters = {}, {}
        for name in ("m1", "m2"):
            ends[name] = await all_masters.enter_async_context(AsyncExitStack())
            one = running(cluster, callback, id=name)
            masters[name] = await ends[name].enter_async_context(one)
        await masters["m1"].ping(record(1))
        await asyncio.sleep(3)
        early = cluster.snapshot()
        for n in range(50):
            await MemoryStore(cluster).txn([], [Put("other", b"%d" % n)])
        await masters["m1"].ping(record(1, n=1, payload=1))
        await asyncio.sleep(3)
        cluster.restore(early, cluster=2)
        await asyncio.sleep(20)
        leader = masters["m1"].leader_id
        assert leader is not None
        await masters[leader].ping(record(2))
        await asyncio.sleep(5)
        before = len(callback.runs)
        cluster.restore(early, cluster=3)
        await ends.pop(leader).aclose()  # the only one that led above the raised floor
        [left] = ends
        await masters[left].ping(record(3))
        await asyncio.sleep(30)
    terms = [run.request.term for run in callback.runs]
    assert len(terms) > before
    assert terms[before] > terms[before - 1]
