"""What operators ask of the leader, on the store model and virtual time."""

import asyncio
import json
from dataclasses import replace
from typing import Never

import pytest
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, alive, running
from tests.master.test_leading import value
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.client import Reliable
from tests.support.memory.requests import Request
from tests.support.simloop import virtual

from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.leader.requests import Answers, Pending, Requests
from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.master.records.masters import OperatorAnswer, OperatorRequest
from kontrol.master.records.records import Records
from kontrol.master.records.runs import no_state
from kontrol.store.protocol import KeyValue, Put, Unavailable


def view(master: Master, cluster: MemoryCluster) -> View:
    return View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")


@virtual
async def test_a_run_that_is_asked_for_starts_at_once_and_says_who_asked() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        assert len(callback.runs) == 1
        answer = await master.requests.ask("run", "ann", timeout=5)
        assert (answer["done"], answer["refused"], answer["run"]) == (True, False, 2)
        await asyncio.sleep(1)
        assert len(callback.runs) == 2
        entry = await view(master, cluster).run(2)
        assert entry is not None
        assert (entry["reason"], entry["by"], entry["ok"]) == ("asked", "ann", True)
        await asyncio.sleep(60)
        assert len(callback.runs) == 2


@virtual
async def test_a_request_that_is_gone_is_not_written_again_by_its_answer() -> None:
    cluster = MemoryCluster()
    async with running(cluster, Stub()) as master:
        await asyncio.sleep(5)
        assert master.election.term is not None
        lease = (await MemoryStore(cluster).grant(60)).id
        gone = KeyValue(f"{KEYS.requests}x", b"{}", 7, 7, lease=lease)
        pending = Pending(OperatorRequest("x", "run"), gone)
        await Answers(master.requests, master.election.term).answer(pending, OperatorAnswer("done"))
    assert await value(cluster, gone.key) is None


@virtual
async def test_a_run_that_is_asked_for_does_not_wait_for_the_damper() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, damper=30, damper_max=300) as master, alive(master, 1):
        await asyncio.sleep(1)
        assert not callback.runs
        await master.requests.ask("run", "ann", timeout=5)
        assert callback.runs[-1].changes == {"joined": ["p1"]}


@virtual
async def test_a_run_that_is_asked_for_does_not_wait_for_the_next_attempt() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: BAD)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(60)
        before = len(callback.runs)
        callback.outcome = lambda _: GOOD
        await master.requests.ask("run", "ann", timeout=5)
        assert len(callback.runs) == before + 1
        assert callback.runs[-1].request.attempt == before + 1


@virtual
async def test_any_master_takes_a_request() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as first, alive(first, 1):
        await asyncio.sleep(5)
        async with running(cluster, callback, id="m2") as second:
            answer = await second.requests.ask("run", "ann", timeout=5)
            assert (answer["done"], answer["run"]) == (True, 2)


@virtual
async def test_the_brake_holds_what_is_asked_for_until_it_is_released() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1, 2):
        assert "nothing" in str((await master.requests.ask("release", "a", timeout=5))["message"])
        async with alive(master, 3, 4, 5):
            await asyncio.sleep(10)
        await asyncio.sleep(CONFIG.ttl + 3)
        shown = await view(master, cluster).status()
        assert isinstance(shown["plan"], dict)
        assert (shown["plan"]["hold"], shown["plan"]["of"]) == ("brake", 5)
        assert "kontrol release" in json.dumps(shown["problems"])
        answer = await master.requests.ask("run", "ann", timeout=5)
        assert answer["refused"] is True
        assert "kontrol release" in str(answer["message"])
        assert len(callback.runs) == 1
        await master.requests.ask("release", "ann", timeout=5)
        await asyncio.sleep(0.1)
        assert callback.runs[-1].changes == {"lost": ["p3", "p4", "p5"]}


@virtual
async def test_a_request_during_a_run_is_done_after_it() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=20)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        answer = await master.requests.ask("run", "ann", timeout=5)
        assert (answer["done"], len(callback.runs)) == (False, 1)
        assert "not answered yet" in str(answer["message"])
        await asyncio.sleep(20)
        assert len(callback.runs) == 2


@virtual
async def test_a_request_that_is_not_answered_expires() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=200)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        await master.requests.ask("run", "ann", timeout=5)
        await asyncio.sleep(300)
        assert len(callback.runs) == 1
        assert not master.requests.pending("run")


@virtual
async def test_a_client_that_waits_long_learns_that_its_request_expired() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=200)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        answer = await master.requests.ask("run", "ann", timeout=150)
        assert (answer["done"], answer["refused"]) == (True, True)
        assert answer["message"] == "the request expired unanswered"


@virtual
async def test_a_successor_answers_what_its_predecessor_did_not() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=20)
    async with running(cluster, callback) as first, alive(first, 1):
        await asyncio.sleep(5)
        async with running(cluster, callback, id="m2") as second:
            asking = asyncio.create_task(second.requests.ask("run", "ann", timeout=50))
            await asyncio.sleep(1)
            first.election.restart(0)
            answer = await asking
            assert (answer["done"], answer["refused"]) == (True, False)


@virtual
async def test_without_a_callback_a_run_is_refused() -> None:
    cluster = MemoryCluster()
    async with running(cluster, None) as master:
        answer = await master.requests.ask("run", "ann", timeout=15)
        assert answer["refused"] is True
        assert "KONTROL_CALLBACK" in str(answer["message"])
        answer = await master.requests.ask("rollback", "ann", run=7, timeout=15)
        assert answer["refused"] is True


def counted(request: RunRequest) -> RunOutcome:
    """A good end of a run whose state counts the runs."""
    return replace(GOOD, state=json.dumps(json.loads(request.state or b"0") + 1).encode())


def bad(_request: RunRequest) -> RunOutcome:
    return BAD


@virtual
async def test_a_state_is_put_back_with_a_number_of_its_own() -> None:
    callback = Stub(outcome=counted)
    cluster = MemoryCluster()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        async with alive(master, 2):
            await asyncio.sleep(5)
            shown = view(master, cluster)
            assert await shown.state() == {"run": 2, "state": 2, "acknowledged": 2}
            answer = await master.requests.ask("rollback", "ann", run=1, timeout=5)
            assert (answer["refused"], answer["run"]) == (False, 3)
            assert await shown.state() == {"run": 3, "state": 1, "acknowledged": 2}
            entry = await shown.run(3)
            assert entry is not None
            assert (entry["reason"], entry["by"], entry["state_kept"]) == ("rollback", "ann", True)
            assert len(callback.runs) == 2
            refused = await master.requests.ask("rollback", "ann", run=77, timeout=5)
            assert refused["refused"] is True
            await master.requests.ask("run", "ann", timeout=5)
            await asyncio.sleep(1)
            assert callback.runs[-1].request.run == 4
            assert await shown.state() == {"run": 4, "state": 2, "acknowledged": 4}


@virtual
async def test_a_rollback_that_cannot_be_says_what_became_of_that_state() -> None:
    outcomes = [GOOD, GOOD, BAD] + [replace(GOOD, state=b"1")] * 30
    callback = Stub(seconds=0.01, outcome=lambda request: outcomes[request.run - 1])
    cluster = MemoryCluster()

    async def refused(run: int) -> str:
        answer = await master.requests.ask("rollback", "ann", run=run, timeout=5)
        assert answer["refused"] is True
        return str(answer["message"])

    async def run_until(number: int) -> None:
        while len(callback.runs) < number:
            await master.requests.ask("run", "ann", timeout=5)
            await asyncio.sleep(0.1)

    async with running(cluster, callback) as master, alive(master, 1):
        assert await view(master, cluster).state() == {"run": 0, "state": None, "acknowledged": 0}
        assert (await refused(1)).startswith("nothing ran yet; no state is stored: ")
        await asyncio.sleep(5)
        await run_until(2)
        assert await view(master, cluster).state() == {"run": 0, "state": None, "acknowledged": 2}
        none = "run 1 has no state: the callback had not printed one yet; no state is stored: "
        assert (await refused(1)).startswith(none)
        await run_until(5)
        assert (await refused(3)).startswith("run 3 failed, and a run that fails leaves no state; ")
        assert "the states after runs 4 to 5 can be restored" in await refused(3)
        assert (await refused(9)).startswith("there was no run 9: the last one is run 5; ")
        await run_until(30)
        none = "the state of run 4 is no longer kept; the states after "
        assert (await refused(4)).startswith(none)
        assert "runs 11 to 30" in await refused(4)
        answer = await view(master, cluster).ask("rollback", "ann", run=10**12)
        assert answer["refused"] is True
        assert str(answer["message"]).startswith("there was no run 1000000000000")


def test_a_run_that_is_not_in_the_ledger_has_no_state() -> None:
    assert no_state(5, None, [3, 7], last=9).startswith("run 5 is not in the ledger, and has no ")


@virtual
async def test_a_failed_run_stays_due_over_a_rollback() -> None:
    outcomes = [counted, bad, bad]
    cluster, callback = MemoryCluster(), Stub()

    def next_outcome(request: RunRequest) -> RunOutcome:
        return (outcomes.pop(0) if outcomes else counted)(request)

    callback.outcome = next_outcome
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        async with alive(master, 2):
            await asyncio.sleep(1.2)
            answer = await master.requests.ask("rollback", "ann", run=1, timeout=5)
            assert answer["refused"] is False
            await asyncio.sleep(30)
            shown = await view(master, cluster).status()
            assert shown["running"] is None
            assert shown["current"] is True
            runs = [run.request.run for run in callback.runs]
            assert runs == sorted(set(runs))


@virtual
async def test_the_status_tells_the_whole_situation() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=3)
    async with running(cluster, callback) as master, alive(master, 1, 2):
        shown = view(master, cluster)
        first = await shown.status()
        assert (first["current"], first["applied"]) == (False, None)
        await asyncio.sleep(3)
        during = await shown.status()
        assert isinstance(during["running"], dict)
        assert isinstance(during["plan"], dict)
        assert (during["running"]["run"], during["plan"]["what"]) == (1, "run")
        await asyncio.sleep(10)
        after = await shown.status()
        assert after["problems"] == []
        assert (after["current"], after["running"]) == (True, None)
        assert isinstance(after["ensemble"], dict)
        assert after["ensemble"]["roles"] == {"r": 2}
        assert len(await shown.runs(10)) == 1
        assert json.dumps(after)
        counts = shown.counts
        assert (counts.runs_started, counts.runs_acknowledged, counts.terms) == (1, 1, 1)
        assert all(check["ok"] for check in shown.ready())


class Silent(Reliable):
    """A network over which no answer comes."""

    async def call(self, request: Request, do: object) -> Never:
        await asyncio.sleep(3600)
        raise AssertionError


@virtual
async def test_the_status_without_a_store_says_so() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        silent = MemoryStore(cluster, Silent())
        shown = await View(master, silent, wall=lambda: "2026-01-01T00:00:00Z").status()
        assert "etcd" in json.dumps(shown["problems"])
        assert isinstance(shown["ensemble"], dict)
        assert shown["ensemble"]["pods"] == 1


@virtual
async def test_a_request_without_a_store_soon_fails() -> None:
    cluster, callback = MemoryCluster(), Stub()
    loop = asyncio.get_running_loop()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        shown = View(master, MemoryStore(cluster, Silent()), wall=lambda: "2026-01-01T00:00:00Z")
        for asked in (shown.runs(1), shown.run(1), shown.state(), shown.ask("run", "ann")):
            begun = loop.time()
            with pytest.raises(Unavailable, match=r"no answer within"):
                await asked
            assert loop.time() - begun <= 3
        assert len(callback.runs) == 1


@virtual
async def test_a_leader_that_stands_again_leads_no_more() -> None:
    """Its earlier candidacy stands until its lease expires, and may be the first of all."""
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        first = master.election.candidates[0]
        store = MemoryStore(cluster)
        lease = (await store.grant(60)).id
        await store.txn([], [Put(f"{first.key}0", first.value, lease)])
        await asyncio.sleep(1)
        said = (await view(master, cluster).status())["problems"]
        assert "m1 restarted or lost its term" in json.dumps(said)


@virtual
async def test_a_request_that_the_store_does_not_take_is_said_to_be_none() -> None:
    cluster = MemoryCluster()
    loop = asyncio.get_running_loop()
    requests = Requests(
        MemoryStore(cluster, Silent()),
        Records(KEYS),
        silence=2,
        wall=lambda: "2026-01-01T00:00:00Z",
    )
    began = loop.time()
    with pytest.raises(Unavailable, match="nothing was requested"):
        await requests.ask("run", "ann", timeout=10)
    assert loop.time() - began <= 3
