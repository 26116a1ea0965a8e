"""The desired state: who changes it when it is raced for, and which runs its changes make."""

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from itertools import pairwise
from typing import Any

import pytest
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Stub, alive, record, running
from tests.master.test_again import SLOW, changing, starts
from tests.master.test_late_writes import Replaying
from tests.master.test_leading import ledger, value
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.desired import MAX_KEYS, MAX_SPEC, MAX_VALUE, BadSetting, Expected
from kontrol.master.desired import NotAsExpected, Unreadable
from kontrol.master.master import Master
from kontrol.master.operator.archive import export, restore
from kontrol.master.operator.view import View
from kontrol.master.records.desired import Desired, Logged
from kontrol.master.records.records import Records
from kontrol.store.protocol import Ambiguous, Batch, Delete, Denied, NoSpace, Put, Unavailable

ABSENT = Expected(None)


async def put(master: Master, key: str, new: JSON, *, by: str = "anna", **more: Any) -> bool:  # noqa: ANN401
    return await master.desired.change(key, canonical(new), by=by, **{"timeout": 10.0, **more})


async def drop(master: Master, key: str, *, by: str = "ben", **more: Any) -> bool:  # noqa: ANN401
    return await master.desired.change(key, None, by=by, **{"timeout": 10.0, **more})


def given(callback: Stub) -> list[tuple[JSON, JSON]]:
    """The desired state of each run, and what changed of it."""
    return [
        (json.loads(run.request.spec or b"null"), json.loads(run.request.changes).get("spec"))
        for run in callback.runs
    ]


async def reasons(cluster: MemoryCluster) -> list[object]:
    return [entry["reason"] for entry in await ledger(cluster)]


@virtual
async def test_a_change_runs_the_callback_without_the_damper() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback, **SLOW) as master, changing(master, 1, 0) as change:
        await asyncio.sleep(40)
        await change(1)
        await asyncio.sleep(2)
        assert await put(master, "replicas", 3)
        await asyncio.sleep(1)
        assert given(callback) == [
            ({}, None),
            ({"replicas": 3}, {"set": ["replicas"], "unset": []}),
        ]
        assert callback.runs[1].changes["changed"] == ["p1"], "it takes along what the damper holds"
        assert await reasons(cluster) == ["ensemble", "spec"]
        assert await put(master, "replicas", 3) is False
        assert await put(master, "primary", "p1")
        assert await drop(master, "replicas")
        await asyncio.sleep(5)
        assert await drop(master, "replicas") is False
        await asyncio.sleep(60)
    assert given(callback)[2:] in (
        [({"primary": "p1"}, {"set": ["primary"], "unset": ["replicas"]})],
        [
            ({"primary": "p1", "replicas": 3}, {"set": ["primary"], "unset": []}),
            ({"primary": "p1"}, {"set": [], "unset": ["replicas"]}),
        ],
    )


@virtual
async def test_what_is_set_back_before_the_run_is_no_change() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=4)
    async with running(cluster, callback) as master, alive(master, 1):
        await put(master, "a", {"x": [1, 2], "y": None})
        await asyncio.sleep(10)
        runs = len(callback.runs)
        await master.ping(record(2))
        await asyncio.sleep(2)
        assert len(callback.runs) == runs + 1, "the next begins while this one is under way"
        await put(master, "a", 7)
        await put(master, "b", 8)
        await put(master, "a", {"y": None, "x": [1, 2]})
        await drop(master, "b")
        await asyncio.sleep(3)
        assert len(callback.runs) == runs + 1
        await master.ping(record(2, n=1, down=True))
        await asyncio.sleep(10)
    assert all(change is None for _, change in given(callback)[runs:])


@virtual
async def test_what_is_set_during_a_run_makes_another() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=4)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(2)
        assert len(callback.runs) == 1
        await put(master, "a", 1)
        await asyncio.sleep(8)
    assert given(callback) == [({}, None), ({"a": 1}, {"set": ["a"], "unset": []})]
    assert await reasons(cluster) == ["ensemble", "spec"]


@virtual
async def test_a_change_survives_the_leader() -> None:
    """Before its run, and during it; the next leader knows what the last acknowledged run got."""
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as leader, alive(leader, 1):
        await put(leader, "a", 1)
        await put(leader, "b", 1)
        await asyncio.sleep(20)
    async with running(cluster, None, id="m3") as other:  # it has no callback
        await put(other, "b", 2)
        await drop(other, "a")
    n = len(callback.runs)
    async with running(cluster, callback, id="m2") as successor, alive(successor, 1):
        await asyncio.sleep(30)
        assert given(callback)[n:] == [({"b": 2}, {"set": ["b"], "unset": ["a"]})]
        entry = (await ledger(cluster))[-1]
        assert entry["changes"] == {
            **{kind: {"count": 0, "first": []} for kind in ("joined", "left", "lost", "changed")},
            "spec": {
                "count": 2,
                "first": ["b", "a"],
                "by": [
                    {"key": "b", "did": "set", "by": "anna", "at": "2026-01-01T00:00:00.000+00:00"},
                    {
                        "key": "a",
                        "did": "unset",
                        "by": "ben",
                        "at": "2026-01-01T00:00:00.000+00:00",
                    },
                ],
            },
        }


@virtual
async def test_a_successor_does_not_act_on_an_older_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its watch may be behind: it waits for what the store has before it decides anything."""
    cluster, one, two = MemoryCluster(), Stub(), Stub()
    async with AsyncExitStack() as first:
        leader = await first.enter_async_context(running(cluster, one))
        await leader.ping(record(1))
        async with running(cluster, two, id="m2") as second, alive(second, 1):
            await asyncio.sleep(5)
            cache, late = second.desired.cache, list[Batch]()
            take = cache._take
            monkeypatch.setattr(cache, "_take", late.append)
            await put(leader, "a", 1)
            await asyncio.sleep(0.5)
            assert given(one)[-1][0] == {"a": 1}
            await first.aclose()
            await asyncio.sleep(5)
            assert second.leader_id == "m2"
            assert given(two) == [], "what it knows is older than what was acknowledged"
            monkeypatch.setattr(cache, "_take", take)
            for batch in late:
                take(batch)
            await asyncio.sleep(5)
            assert given(two) == []
            await put(second, "a", 2)
            await asyncio.sleep(5)
    assert given(two) == [({"a": 2}, {"set": ["a"], "unset": []})]


@virtual
async def test_brake_and_gap_hold_it_and_losses_are_not_taken_apart() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        async with alive(master, 2, 3, 4):
            await asyncio.sleep(5)
        n = len(callback.runs)
        for _ in range(12):  # over the TTL, in which they are lost
            await asyncio.sleep(1)
            await put(master, "a", asyncio.get_running_loop().time())
        await asyncio.sleep(2)
        plan = master.leader.plan
        assert getattr(plan, "hold", None) == "brake"
        assert all(not run.changes.get("lost") for run in callback.runs[n:])
        await asyncio.sleep(30)
    assert {"lost": ["p2", "p3", "p4"]} in [run.changes for run in callback.runs[n:]]


@virtual
async def test_a_change_makes_a_run_that_failed_due_immediately() -> None:
    cluster = MemoryCluster()
    callback = Stub(outcome=lambda request: GOOD if b"good" in (request.spec or b"") else BAD)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(100)
        attempts = len(callback.runs)
        wait = callback.runs[-1].at - callback.runs[-2].at
        assert wait > 20, "the backoff has grown"
        await put(master, "mode", "good")
        await asyncio.sleep(0.5)
        assert len(callback.runs) == attempts + 1
        assert callback.runs[-1].request.attempt == 1
        await asyncio.sleep(100)
    assert len(callback.runs) == attempts + 1
    assert (await ledger(cluster))[-1]["ok"]


@virtual
async def test_the_retry_of_a_run_for_it_waits_as_any_other() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        callback.outcome = lambda _: BAD
        await put(master, "a", 1)
        await asyncio.sleep(20)
        failed = starts(callback)[1:]
        assert [round(b - a, 0) for a, b in pairwise(failed)] == [1, 2, 4, 7]
    async with running(cluster, callback, id="m2") as master, alive(master, 1):
        await asyncio.sleep(9)
        assert callback.runs[-1].request.attempt <= 6, "a successor goes on with the backoff"
        callback.outcome = lambda _: GOOD
        await asyncio.sleep(60)
    assert given(callback)[-1] == ({"a": 1}, {"set": ["a"], "unset": []})


@virtual
async def test_of_two_that_expect_the_same_one_wins() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2") as two:
        for expected, before in ((ABSENT, 0), (Expected(b"0"), 1)):
            del before
            results = await asyncio.gather(
                *(
                    put(master, "a", 0 if expected is ABSENT else i, expected=expected)
                    for i, master in enumerate((one, two, one, two), 1)
                ),
                return_exceptions=True,
            )
            assert results.count(True) == 1, results
            assert sum(isinstance(each, NotAsExpected) for each in results) == 3
        with pytest.raises(NotAsExpected, match="'b' is not set"):
            await drop(one, "b", expected=Expected(b"1"))
        with pytest.raises(NotAsExpected, match="another value") as error:
            await put(one, "a", 5, expected=Expected(b'"4"'))
        assert "4" not in str(error.value).replace("'a'", "")
        await asyncio.gather(*(put(one, f"k{i}", i) for i in range(20)))
        seen = (await two.desired.read()).desired
        assert seen is not None
        assert len(seen.values) == 21, "changes of other keys are made on top of each other"


@virtual
@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_change_whose_answer_is_lost_is_made_once(lost: str) -> None:
    cluster, network, times = MemoryCluster(), Faulty(), 2

    def fault(request: object) -> Exception | None:
        nonlocal times
        if times and writes(request) and KEYS.spec in puts(request):  # type: ignore[arg-type]
            times -= 1
            return Ambiguous("the answer is lost")
        return None

    async with running(cluster, network=network) as one, running(cluster, id="m2") as two:
        setattr(network, lost, fault)
        first = asyncio.create_task(put(one, "a", 1, expected=ABSENT))
        await asyncio.sleep(0)
        with pytest.raises(NotAsExpected) if lost == "after" else nullcontext():
            await put(two, "a", 2, expected=ABSENT)
        if lost == "after":
            assert await put(two, "a", 3)
            assert await first, "its own change is known by its id, though it is gone again"
        else:
            with pytest.raises(NotAsExpected):
                await first
        await asyncio.sleep(5)
        assert json.loads(await value(cluster, KEYS.spec) or b"")["values"]["a"]["value"] in (2, 3)


def puts(request: Any) -> Sequence[str]:  # noqa: ANN401
    return [op.key for op in (*request.then, *request.otherwise) if isinstance(op, Put)]


@virtual
async def test_without_an_answer_it_says_that_it_may_have_been_made() -> None:
    cluster, network = MemoryCluster(), Faulty()
    async with running(cluster, network=network) as master:
        network.after = lambda r: Ambiguous("lost") if _sets(r) else None
        network.before = lambda r: (
            Unavailable("gone") if not _sets(r) and any(map(_sets, network.requests)) else None
        )
        with pytest.raises(Ambiguous, match="may have been made"):
            await put(master, "a", 1, timeout=3.0)
        network.before = lambda _: Unavailable("gone")
        with pytest.raises(Unavailable):
            await put(master, "b", 1)
        network.requests.clear()
        network.before = lambda r: (
            Denied("no") if not _sets(r) and any(map(_sets, network.requests)) else None
        )
        with pytest.raises(Ambiguous, match="may have been made"):
            await put(master, "c", 1)
        network.before = lambda r: Denied("no") if _sets(r) else None
        with pytest.raises(Denied):
            await put(master, "d", 1)


def _sets(request: object) -> bool:
    return writes(request) and KEYS.spec in puts(request)  # type: ignore[arg-type]


@virtual
async def test_a_full_store_is_said_so_and_the_write_that_crosses_is_made() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00+00:00")
        cluster.core.crossing = True
        assert await put(master, "a", 1)
        with pytest.raises(NoSpace):
            await put(master, "b", 2)
        with pytest.raises(NoSpace, match="compact"):
            await view.set_spec("b", b"2", "anna")
        assert await put(master, "a", 1) is False
        cluster.core.full = False
        assert (await view.set_spec("b", b"2", "anna"))["done"]


@virtual
async def test_late_copies_change_nothing() -> None:
    cluster = MemoryCluster()
    network = Replaying(cluster)
    async with running(cluster, network=network) as master:
        for i in range(3):
            await put(master, "a", i)
            await put(master, "b", i)
            await drop(master, "a")
    assert network.changed == []


@virtual
async def test_the_limits_are_refused_by_name() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00+00:00")
        big = canonical("x" * (MAX_VALUE - 2))
        answer: dict[str, JSON] = {}
        for i in range(8):
            answer = await view.set_spec(f"k{i}", big, "anna")
            assert answer["done"] == (i < 7), "the keys count, too"
        assert answer["refused"] == "SpecTooLarge"
        assert str(MAX_SPEC) in str(answer["message"])
        assert await drop(master, "k0")
        for i in range(MAX_KEYS - 6):
            await put(master, f"s{i}", i)
        with pytest.raises(BadSetting, match=str(MAX_KEYS)) as error:
            await put(master, "one-more", 1)
        assert error.value.name == "TooManyKeys"
        assert await put(master, "s0", 7), "one that is set can be changed"


@virtual
async def test_no_log_has_a_value(caplog: pytest.LogCaptureFixture) -> None:
    cluster, callback, secret = MemoryCluster(), Stub(), "s3cr3t-value"
    caplog.set_level(logging.DEBUG)
    async with running(cluster, callback) as master, alive(master, 1):
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00+00:00")
        await put(master, "password", secret)
        with pytest.raises(NotAsExpected):
            await put(master, "password", "y", expected=Expected(canonical("x")))
        await asyncio.sleep(5)
        assert given(callback)[-1][0] == {"password": secret}
        raw = await value(cluster, KEYS.spec)
        assert raw is not None
        for damaged in (raw[:-9], raw.replace(b'"by":"anna"', b'"by":["anna"]', 1)):
            await MemoryStore(cluster).txn([], [Put(KEYS.spec, damaged)])
            await asyncio.sleep(2)
        status = json.dumps(await view.status())
    assert "anna set 'password'" in caplog.text
    assert "is damaged" in caplog.text
    assert secret not in caplog.text
    assert secret not in status
    assert '"spec": {"password"' not in status, "a hash of a short value tells it"
    assert not any(secret in json.dumps(entry) for entry in await ledger(cluster))


@virtual
async def test_a_damaged_record_is_not_an_empty_state() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        await put(master, "a", 1)
        await asyncio.sleep(5)
        n, good = len(callback.runs), await value(cluster, KEYS.spec)
        for damaged in (
            b"",
            b"[]",
            b'{"values":7}',
            b'{"values":{"a":{}}}',
            b'{"values":{"/":{"value":1}}}',
        ):
            await MemoryStore(cluster).txn([], [Put(KEYS.spec, damaged)])
            await asyncio.sleep(3)
            with pytest.raises(Unreadable, match="damaged"):
                await put(master, "b", 1)
        assert len(callback.runs) == n, "nothing is known to have changed"
        async with alive(master, 2):
            await asyncio.sleep(3)
            assert callback.runs[-1].request.spec is None
            await MemoryStore(cluster).txn([], [Put(KEYS.spec, good or b"")])
            await asyncio.sleep(5)
            assert len(callback.runs) == n + 1, "it is again as the last run but one had it"
            await MemoryStore(cluster).txn([], [Delete(KEYS.spec)])
            await asyncio.sleep(5)
    assert given(callback)[-1] == ({}, {"set": [], "unset": ["a"]})


@virtual
async def test_an_export_has_it() -> None:
    old, new, callback = MemoryCluster(), MemoryCluster(), Stub()
    async with running(old, callback) as master, alive(master, 1):
        await put(master, "a", {"x": 1})
        await asyncio.sleep(5)
    document = json.loads(json.dumps(await export(MemoryStore(old), Records(KEYS))))
    await restore(MemoryStore(new), Records(KEYS), document)
    n = len(callback.runs)
    async with running(new, callback) as master, alive(master, 1):
        seen = (await master.desired.read()).desired
        assert seen is not None
        assert seen.document == b'{"a":{"x":1}}'
        await asyncio.sleep(30)
        assert len(callback.runs) == n, "what was acknowledged is not run again"
        await put(master, "a", 2)
        await asyncio.sleep(5)
    assert given(callback)[n:] == [({"a": 2}, {"set": ["a"], "unset": []})]


@virtual
async def test_status_says_that_it_is_due() -> None:
    cluster, callback = MemoryCluster(), Stub(seconds=0.1)
    async with running(cluster, callback) as master, alive(master, 1):
        async with alive(master, 2, 3, 4):
            await asyncio.sleep(5)
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00+00:00")
        await put(master, "a", 1)
        plan = (await view.status())["plan"]
        assert isinstance(plan, dict)
        assert (plan["what"], plan["reason"]) == ("run", "spec")


def test_the_log_is_bounded_and_unknown_fields_stay() -> None:
    state = Desired()
    for i in range(200):
        state = state.set(b"%d" % i, Logged(f"{i}", "a", "anna", ""))
    assert len(state.log) == 64
    raw = json.loads(state.encode())
    raw["x_next"] = {"y": 1}
    raw["values"]["a"]["x_next"] = [1]
    raw["log"] += [7, {"id": []}]
    read = Desired.decode(canonical(raw))
    again = json.loads(read.set(b"7", Logged("n", "a", "ben", "")).encode())
    assert again["x_next"] == {"y": 1}
    assert again["values"]["a"] == {"value": 7, "by": "ben", "at": "", "x_next": [1]}
    assert again["log"][-1]["id"] == "n"
    assert CONFIG.damper == 1.0
