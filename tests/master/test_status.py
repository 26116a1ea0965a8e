"""That the status tells the truth: what waits, hangs, is lost or goes round is not told as well."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, record, running
from tests.master.test_registry import Faulty
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.cli.operate.document import UntrustedJson
from kontrol.cli.operate.runs import now
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.leader.policy import FOLLOWING, SOON, Chain
from kontrol.master.master import Master
from kontrol.master.mirror import History
from kontrol.master.operator.metrics import METRICS
from kontrol.master.operator.story import due, plan_now, usual
from kontrol.master.operator.view import View
from kontrol.master.records.runs import Head, Running
from kontrol.metrics import render
from kontrol.store.protocol import Put, Unavailable

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def wall() -> str:
    return (EPOCH + timedelta(seconds=asyncio.get_running_loop().time())).isoformat()


def clock() -> str:
    return datetime.now(UTC).isoformat()


class Pods:
    """Pods that keep reporting to a master what was said of them last."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._records: dict[int, dict[str, Any]] = {}

    async def change(self, number: int, **fields: object) -> None:
        """Have a pod join, or report something else."""
        known = self._records.setdefault(number, {"n": 0})
        if "nonce" in fields:
            known.clear()
        self._records[number] = {**known, "n": known.get("n", 0) + 1, **fields}
        await self._report(number)

    async def leave(self, number: int) -> None:
        """Have a pod deregister."""
        fields = self._records.pop(number)
        await self._master.ping(record(number, **{**fields, "n": fields["n"] + 1, "down": True}))

    def lose(self, *numbers: int) -> None:
        """Have pods fall silent."""
        for number in numbers:
            del self._records[number]

    async def _report(self, number: int) -> None:
        await self._master.ping(record(number, **self._records[number]))

    async def report(self) -> None:
        """Report until cancelled."""
        while True:
            for number in list(self._records):
                if number in self._records:
                    await self._report(number)
            await asyncio.sleep(CONFIG.ttl / 3)


@asynccontextmanager
async def pods(master: Master, *numbers: int) -> AsyncIterator[Pods]:
    """Pods that live meanwhile; they have joined when the block begins."""
    made = Pods(master)
    for number in numbers:
        await made.change(number)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.report())
        yield made
        task.cancel()


async def reached(condition: Callable[[], bool]) -> None:
    """Wait until a condition of real masters holds, which nothing tells."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def status(master: Master, cluster: MemoryCluster) -> dict[str, Any]:
    view = View(master, MemoryStore(cluster), wall=wall)
    shown: dict[str, Any] = json.loads(json.dumps(await view.status()))
    return shown


def kinds(shown: dict[str, Any]) -> list[str]:
    return [problem["kind"] for problem in shown["problems"]]


def metric(master: Master, name: str) -> float | None:
    lines = render(METRICS, master).splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


@virtual
async def test_a_hung_run_is_told_with_the_age_of_what_waits_behind_it() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.2)
    async with (
        running(cluster, callback, wall=wall) as one,
        running(cluster, callback, id="m2", wall=wall) as two,
        pods(one, 1, 2, 3) as some,
    ):
        await asyncio.sleep(5)
        assert kinds(await status(two, cluster)) == []
        assert metric(one, "kontrol_leader_oldest_change_seconds") is None
        callback.seconds = 1000.0
        await some.change(1, payload=1)
        await asyncio.sleep(CONFIG.damper + 4)
        assert kinds(await status(two, cluster)) == []  # it may just take a little longer
        await some.change(2, payload=1)
        await asyncio.sleep(20)
        await some.change(3, payload=1)
        await asyncio.sleep(20)
        for master in (one, two):
            shown = await status(master, cluster)
            [problem] = shown["problems"]
            assert problem["kind"] == "run-long"
            assert problem["what"] == (
                "changes have waited 40 s behind run 2, which usually takes 0.1 s; it has been "
                "under way for 44 s"
            )
            assert "KONTROL_CALLBACK_TIMEOUT" in problem["fix"]
            assert shown["plan"]["what"] == "run"
            assert shown["changes_waiting_seconds"] == pytest.approx(40, abs=0.5)
        assert metric(one, "kontrol_leader_run_age_seconds") == pytest.approx(44, abs=0.5)
        age = metric(one, "kontrol_leader_oldest_change_seconds")  # what the run is for, too
        assert age == pytest.approx(45, abs=0.5)
        assert metric(two, "kontrol_leader_oldest_change_seconds") is None
        await callback.stop()
        await asyncio.sleep(0.1)
        age = metric(one, "kontrol_leader_run_age_seconds")  # of the next one
        assert age is None or age < 1


@virtual
async def test_a_first_run_that_hangs_is_told_and_one_that_always_takes_long_is_not() -> None:
    cluster, took = MemoryCluster(), replace(GOOD, seconds=30.0)
    callback = Stub(seconds=30.0, outcome=lambda _: took)
    async with running(cluster, callback, wall=wall) as master, pods(master, 1) as some:
        await asyncio.sleep(15)
        [problem] = (await status(master, cluster))["problems"]
        assert problem["what"].startswith(
            "run 1 has been under way for 14 s, and no run has been acknowledged yet"
        )
        await asyncio.sleep(20)
        await some.change(1, payload=1)
        await asyncio.sleep(5)
        await some.change(1, payload=2)
        await asyncio.sleep(20)
        shown = await status(master, cluster)
        assert shown["running"]["run"] == 2
        assert shown["changes_waiting_seconds"] == pytest.approx(20, abs=0.5)
        assert shown["problems"] == []


@virtual
async def test_pods_that_are_lost_are_told_while_the_damper_waits_and_during_a_run() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with (
        running(cluster, callback, wall=wall, damper=5.0, damper_max=30.0, brake=0.0) as one,
        running(cluster, callback, id="m2", wall=wall, damper=5.0, damper_max=30.0) as two,
        pods(one, 1, 2, 3, 4, 5) as some,
    ):
        await asyncio.sleep(8)
        callback.seconds = 20.0
        some.lose(2, 3, 4)
        await asyncio.sleep(CONFIG.ttl - 2)
        await some.leave(5)  # not a problem
        await asyncio.sleep(3)
        shown = await status(two, cluster)
        assert shown["plan"]["hold"] == "damper"
        [problem] = shown["problems"]
        assert problem["kind"] == "pods-lost"
        assert problem["what"].startswith("3 of 5 pods are lost (#1 p2, #2 p3, #3 p4), and no run")
        assert problem["fix"].startswith("the callback runs in ")
        await asyncio.sleep(5)
        shown = await status(two, cluster)
        assert shown["plan"]["what"] == "run"
        assert kinds(shown) == ["pods-lost"]
        await asyncio.sleep(20)
        assert kinds(await status(two, cluster)) == []


@virtual
async def test_a_leader_that_falls_silent_is_told_within_seconds() -> None:
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()
    async with running(cluster, callback, network=network, wall=wall, fover=15.0) as one:
        await asyncio.sleep(1)
        async with running(cluster, callback, id="m2", wall=wall, fover=15.0) as two, pods(two, 1):
            await asyncio.sleep(20)
            for _ in range(20):
                shown = await status(two, cluster)
                assert (shown["leader"]["id"], kinds(shown)) == ("m1", [])
                assert shown["leader"]["last_seen_seconds"] <= 1
                await asyncio.sleep(0.13)
            network.before = lambda _: Unavailable("cut off")
            await asyncio.sleep(3.1)
            [problem] = (await status(two, cluster))["problems"]
            assert problem["kind"] == "leader-silent"
            assert problem["what"].startswith("the leader m1 has not reported for ")
            assert "not reported for 15 s" in problem["fix"]
            await asyncio.sleep(30)
            shown = await status(two, cluster)
            assert (shown["leader"]["id"], kinds(shown)) == ("m2", [])
            assert one.election.term is None


async def test_a_leader_that_was_just_killed_is_shown_immediately() -> None:
    """Its lease lasts for some seconds; its port is closed immediately."""
    with socket.socket() as gone, socket.create_server(("127.0.0.1", 0)) as own:
        gone.bind(("127.0.0.1", 0))  # nothing listens
        cluster = MemoryCluster()
        where: dict[str, Any] = {"address": "127.0.0.1", "wall": clock}
        dead, alive = gone.getsockname()[1], own.getsockname()[1]
        async with (
            running(cluster, Stub(), port=dead, **where) as one,
            running(cluster, Stub(), id="m2", port=alive, **where) as two,
        ):
            await reached(lambda: "term" in (two.leader_record or {}))
            [problem, *_] = (await status(two, cluster))["problems"]
            assert problem["kind"] == "leader-silent"
            assert "m1 refuses connections at 127.0.0.1: it ended" in problem["what"]
            assert "leader-silent" not in kinds(await status(one, cluster))  # it knows better


async def test_where_no_master_is_reached_at_its_address_refusals_mean_nothing() -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        cluster, port = MemoryCluster(), gone.getsockname()[1]
        where: dict[str, Any] = {"address": "127.0.0.1", "wall": clock, "port": port}
        async with (
            running(cluster, Stub(), **where),
            running(cluster, Stub(), id="m2", **where) as two,
        ):
            await reached(lambda: "term" in (two.leader_record or {}))
            assert "leader-silent" not in kinds(await status(two, cluster))


@virtual
async def test_a_run_that_was_cut_off_is_told_until_it_is_run_again() -> None:
    cluster, callback = MemoryCluster(), Stub()
    orphan = Running(run=7, term=3, digest="d", fingerprint="f1", started=wall(), fover=30.0)
    await MemoryStore(cluster).txn([], [Put(KEYS.running, orphan.encode())])
    async with running(cluster, callback, wall=wall) as master, pods(master, 1):
        await asyncio.sleep(5)
        shown = await status(master, cluster)
        assert kinds(shown) == ["run-cut-off"]
        assert shown["plan"]["hold"] == "predecessor"
        await asyncio.sleep(40)
        assert kinds(await status(master, cluster)) == []


@virtual
async def test_a_run_whose_leader_was_killed_is_no_longer_under_way() -> None:
    cluster, callback, network = MemoryCluster(), Stub(seconds=0.2), Faulty()
    async with running(cluster, callback, network=network, wall=wall, fover=15.0) as one:
        await asyncio.sleep(1)
        async with running(cluster, callback, id="m2", wall=wall, fover=15.0) as two, pods(two, 1):
            await asyncio.sleep(5)
            callback.seconds = 1000.0
            async with pods(two, 2):
                await asyncio.sleep(20)
                shown = await status(two, cluster)
                assert (shown["plan"]["what"], kinds(shown)) == ("run", ["run-long"])
                network.before = lambda _: Unavailable("killed")
                await asyncio.sleep(3.1)
                seen = set()
                while (shown := await status(two, cluster))["running"]["run"] == 2:
                    assert "run-long" not in kinds(shown)
                    seen.add((shown["leader"] or {}).get("id"))
                    if not shown["running"]["ended"]:
                        assert "age" not in shown["running"]
                        assert shown["plan"]["hold"] == "predecessor"
                        assert now(UntrustedJson.of(shown)).startswith("run 2 was cut off: ")
                    await asyncio.sleep(0.1)
                assert seen >= {"m1", "m2"}
                assert one.election.term is None


@virtual
async def test_a_callback_that_fails_is_told_until_it_ends_well() -> None:
    cluster = MemoryCluster()
    callback = Stub(seconds=0.2)
    async with running(cluster, callback, wall=wall) as master, pods(master, 1) as some:
        await asyncio.sleep(5)
        callback.seconds, callback.outcome = 1.0, lambda _: BAD
        await some.change(1, payload=1)
        await reached(lambda: len(callback.runs) == 2)
        assert kinds(await status(master, cluster)) == []
        await reached(lambda: callback.runs[1].ended != "")
        while len(callback.runs) < 5:
            await asyncio.sleep(0.1)
            shown = await status(master, cluster)
            [problem] = shown["problems"]
            assert problem["kind"] == "run-failed"
            assert problem["what"].endswith("exit status 3")
        callback.outcome = lambda _: GOOD
        await reached(lambda: callback.runs[-1].ended == GOOD.why)
        await asyncio.sleep(0.1)
        assert kinds(await status(master, cluster)) == []


@virtual
@pytest.mark.parametrize(
    "what",
    ["a payload", "two in turns", "a restart", "the desired state", "a run that is asked for"],
)
async def test_a_callback_that_feeds_itself_is_told(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, wall=wall) as master, pods(master, 1, 2) as some:

        async def feed(run: int) -> None:
            if what == "a payload":
                await some.change(2, payload=run)
            elif what == "two in turns":
                await some.change(1 + run % 2, payload=run)
            elif what == "a restart":
                await asyncio.sleep(4)  # it takes a while to come back
                await some.change(2, nonce=f"b{run:09d}")
            elif what == "the desired state":
                await master.desired.change("n", b"%d" % run, by="me", timeout=5)
            else:
                await master.requests.ask("run", "me", timeout=5)

        feeding = [True]
        tasks = set()

        def outcome(request: RunRequest) -> RunOutcome:
            if feeding[0]:
                tasks.add(asyncio.create_task(feed(request.run)))
            return GOOD

        callback.outcome = outcome
        while len(callback.runs) < FOLLOWING:
            await asyncio.sleep(0.5)
            assert kinds(await status(master, cluster)) == []
        await asyncio.sleep(20)
        assert len(callback.runs) > FOLLOWING + 2
        for _ in range(20):
            [problem] = (await status(master, cluster))["problems"]
            assert problem["kind"] == "feeds-itself"
            assert "runs in a row each seem to be caused by the run before" in problem["what"]
            await asyncio.sleep(0.1)
        length = metric(master, "kontrol_leader_runs_in_a_row")
        assert length is not None
        assert length >= FOLLOWING
        told = [line for line in caplog.messages if "runs in a row" in line]
        assert 1 <= len(told) <= len(callback.runs) / FOLLOWING
        feeding[0] = False
        await asyncio.sleep(SOON + 10)
        assert kinds(await status(master, cluster)) == []
        await asyncio.gather(*tasks)


@virtual
async def test_a_pod_after_the_other_that_joins_feeds_nothing() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=3.0)
    async with running(cluster, callback, wall=wall, damper=0.5) as master, pods(master, 1) as some:
        for number in range(2, 30):
            await asyncio.sleep(3)
            await some.change(number)
            assert "feeds-itself" not in kinds(await status(master, cluster))
        assert len(callback.runs) > FOLLOWING


@virtual
async def test_an_operator_who_sets_one_key_after_the_other_feeds_nothing() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, wall=wall) as master, pods(master, 1):
        for number in range(3 * FOLLOWING):
            await master.desired.change(f"key{number}", b"1", by="ann", timeout=5)
            await asyncio.sleep(1)
            assert "feeds-itself" not in kinds(await status(master, cluster))
        assert len(callback.runs) > FOLLOWING


def test_a_chain_is_of_changes_soon_after_the_run_before_and_of_the_same_pods() -> None:
    chain, a, b, c = Chain(), {"a"}, {"b"}, {"c"}
    assert chain.follows(0.0, a) == 0
    chain.ended(5.0)
    assert chain.follows(5.0 + SOON, a | b) == 1
    chain.ended(30.0)
    assert chain.follows(31.0, set()) == 2  # asked for, say
    chain.ended(40.0)
    assert chain.follows(41.0, b) == 3
    chain.ended(50.0)
    assert chain.follows(51.0, a) == 4  # in turn with the other
    chain.ended(52.0)
    assert chain.follows(53.0, c) == 0  # another pod
    chain.ended(60.0)
    assert chain.follows(60.1 + SOON, a) == 0  # too late
    chain.ended(70.0)
    assert chain.follows(71.0, c) == 0  # the pods of runs before the pause do not count


def test_a_change_soon_after_a_run_for_another_reason_counts_whatever_its_pods() -> None:
    chain = Chain()
    chain.follows(0.0, set())  # asked for, say
    chain.ended(5.0)
    assert chain.follows(6.0, {"a"}) == 1


@virtual
async def test_one_status_tells_one_story() -> None:
    """Whenever it is asked for, and whatever the leader has published by then."""
    cluster, callback = MemoryCluster(), Stub(seconds=0.4)
    async with (
        running(cluster, callback, wall=wall) as one,
        running(cluster, callback, id="m2", wall=wall) as two,
        pods(one, 1, 2) as some,
    ):
        await asyncio.sleep(5)
        seen = set()
        for i in range(200):
            if i % 37 == 0:
                await some.change(1, payload=i)
            for master in (one, two):
                shown = await status(master, cluster)
                plan, running_ = shown["plan"], shown["running"]
                what = plan["what"]
                seen.add((what, plan["hold"]))
                if running_ is not None:
                    assert what == "run"
                else:
                    assert (what == "idle") is shown["current"]
                assert plan["hold"] in (None, "damper")
                if plan["hold"] == "damper":
                    assert 0 < plan["seconds"] <= CONFIG.damper
            await asyncio.sleep(0.05)
        assert seen == {("idle", None), ("wait", "damper"), ("run", None)}


NOW = EPOCH
IDLE: dict[str, Any] = {
    "what": "idle",
    "reason": None,
    "hold": None,
    "seconds": None,
    "lost": [],
    "of": 0,
}
HEAD = Head(4, digest="d", fingerprint="f")


def plan(said: dict[str, Any] | None, **more: Any) -> tuple[Any, ...]:  # noqa: ANN401
    given: dict[str, Any] = {"under_way": False, "reason": None, "quiet": None, "now": NOW, **more}
    found = plan_now(said, given.pop("running", None), given.pop("applied", HEAD), **given)
    return tuple(found.get(name) for name in ("what", "reason", "hold", "seconds"))


def test_what_the_records_show_counts_more_than_a_plan_that_lags() -> None:
    waits = {**IDLE, "what": "wait", "reason": "ensemble", "hold": "damper", "seconds": 4.0}
    held = {**waits, "hold": "brake", "at": (NOW - timedelta(seconds=1)).isoformat()}
    run = Running(5, term=9, reason="ensemble")
    assert plan(None) == ("unknown", None, None, None)
    assert plan(waits) == ("idle", None, None, None)
    assert plan(held) == ("idle", None, None, None)
    assert plan({**waits, "what": "run", "hold": None}) == ("idle", None, None, None)
    assert plan({**waits, "reason": "asked"}) == ("run", "asked", None, None)
    assert plan(IDLE, reason="ensemble", quiet=2.04) == ("wait", "ensemble", "damper", 2.0)
    assert plan(IDLE, reason="ensemble", quiet=0.0) == ("run", "ensemble", None, None)
    assert plan(waits, reason="ensemble", quiet=1.0) == ("wait", "ensemble", "damper", 1.0)
    assert plan(held, reason="ensemble", quiet=1.0) == ("wait", "ensemble", "brake", 3.0)
    assert plan(waits, running=run, under_way=True, reason="ensemble", quiet=3.0)[0] == "run"
    behind = {**waits, "hold": "predecessor", "seconds": 3.0}
    assert plan(behind, running=run, reason="ensemble")[2:] == ("predecessor", 3.0)
    recorded = replace(run, ended=True)
    assert plan(behind, running=recorded, reason="unacknowledged")[:3] == (
        "run",
        "unacknowledged",
        None,
    )
    cut = plan(waits, running=run, reason="ensemble", quiet=3.0)
    assert cut == ("wait", "unacknowledged", "predecessor", None)
    assert plan(None, running=run) == cut  # no leader has published anything
    assert (
        plan(None, running=run, under_way=True)[0] == plan(None, running=recorded)[0] == "unknown"
    )


def test_the_next_run_that_needs_no_change_is_shown_while_nothing_is_due() -> None:
    at = (NOW - timedelta(seconds=1)).isoformat()
    said = {**IDLE, "reason": "again", "seconds": 5.0, "at": at, "acknowledged": 4}
    again = replace(HEAD, again=7.0)
    assert plan(said, applied=again) == ("idle", "again", None, 4.0)
    assert plan({**said, "reason": "schedule"}) == ("idle", "schedule", None, 4.0)
    # It was published for the run before; or nothing was, since the last was acknowledged.
    for late in ({**said, "acknowledged": 3}, {**said, "what": "run", "seconds": None}, IDLE | {}):
        assert plan({"acknowledged": 3, **late}, applied=again) == ("idle", "again", None, 7.0)
        assert plan({"acknowledged": 3, **late}) == ("idle", None, None, None)
    assert plan({**said, "acknowledged": 0}, applied=None) == ("idle", "again", None, 4.0)
    # The version before does not say which run it is about, and runs nothing at its time.
    assert plan({**IDLE, "acknowledged": None}, applied=again) == ("idle", None, None, None)
    found = plan_now(said, None, again, under_way=False, reason=None, quiet=None, now=NOW)
    assert found["until"] == (NOW + timedelta(seconds=4)).isoformat(timespec="milliseconds")
    assert found.keys() == {*IDLE, "until", "missing"}
    assert plan(said, reason="ensemble", quiet=2.0) == ("wait", "ensemble", "damper", 2.0)


def test_why_a_run_is_due() -> None:
    def why(applied: Head | None, running: Running | None = None, **more: object) -> str | None:
        given: dict[str, Any] = {"digest": "d", "none": "none", "fingerprint": "f", **more}
        return due(applied, running, **given)

    assert why(HEAD) is None
    assert why(HEAD, digest="e") == "ensemble"
    assert why(HEAD, desired=True) == why(None, digest="none", desired=True) == "spec"
    assert why(HEAD, desired=True, digest="e") == "ensemble"
    assert why(HEAD, desired=True, fingerprint="g") == "spec"
    assert why(HEAD, desired=True, fingerprint="") is None
    assert why(None) == "ensemble"
    assert why(None, digest="none") is None
    assert why(HEAD, fingerprint="g") == "callback"
    assert why(replace(HEAD, fingerprint=None), fingerprint="g") is None
    assert why(HEAD, Running(5, ended=True)) == "unacknowledged"
    assert why(HEAD, Running(5)) is None
    assert why(HEAD, fingerprint="", digest="e") is None  # there is no callback


def test_what_a_run_usually_takes() -> None:
    entries: list[dict[str, Any]] = [{"ok": True, "seconds": s} for s in (0.1, 0.2, 9.0)]
    others: list[dict[str, Any]] = [
        {"ok": False, "seconds": 50.0},
        {"ok": True, "seconds": 0.0, "reason": "rollback"},
    ]
    assert usual([*entries, *others, {"ok": True, "seconds": "junk"}]) == 0.2
    assert usual(others) is None


@virtual
async def test_a_change_has_not_waited_since_a_master_started() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.2)
    async with running(cluster, callback, wall=wall) as one, pods(one, 1, 2) as some:
        await asyncio.sleep(5)
        async with running(cluster, callback, id="m2", wall=wall) as two:
            await asyncio.sleep(100)
            await some.change(1, payload=1)
            for _ in range(int(CONFIG.damper / 0.25)):
                await asyncio.sleep(0.2)
                for master in (one, two):
                    shown = await status(master, cluster)
                    assert shown["problems"] == []
                    assert shown["changes_waiting_seconds"] == pytest.approx(
                        0, abs=CONFIG.damper + 0.5
                    )


def test_a_first_reading_is_no_change_for_a_run_that_acted_on_the_same_pods() -> None:
    history = History()
    history.changed(150, 1000.0, "as read")
    assert history.after(100, "other") == 1000.0
    assert history.after(100, "as read") is None
    history.changed(170, 1060.0)
    assert history.after(100, "as read") == 1060.0
    assert history.after(100, "other") == 1000.0
    assert history.after(170, "other") is None


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 2)), min_size=1, max_size=40))
def test_the_time_of_the_first_change_after_a_revision(steps: list[tuple[int, float]]) -> None:
    history, revision, now, known = History(), 0, 1000.0, list[tuple[int, float]]()
    for more, later in steps:
        revision, now = revision + more, now + later
        known.append((revision, now))
        history.changed(revision, now)
    assert history.revision == revision
    for after in range(revision + 1):
        exact = next((time for at, time in known if at > after), None)
        found = history.after(after)
        assert (found is None) is (exact is None)
        if found is not None and exact is not None:
            assert exact - 0.25 <= found <= exact  # those that come together count as one
    history.clear()
    assert history.after(0) is None


@virtual
async def test_a_leader_is_heard_from_the_beginning() -> None:
    cluster = MemoryCluster()
    async with running(cluster, Stub(), wall=wall, fover=15.0) as one:
        await asyncio.sleep(1)
        async with running(cluster, Stub(), id="m2", wall=wall, fover=15.0) as two:
            for _ in range(60):
                for master in (one, two):
                    assert kinds(await status(master, cluster)) == ["no-pods"]
                await asyncio.sleep(0.1)
