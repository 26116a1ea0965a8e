"""Two masters over records of the version before, of theirs, of the one after, and damaged ones.

Whatever is stored: no master ends, pods report and keep their numbers where they can be known, and
the callback runs.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Ran, Stub, alive, nonce, record, running
from tests.master.test_records import GARBAGE
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON, canonical
from kontrol.ensemble.pod import key_of
from kontrol.master.master import Master
from kontrol.master.operator.archive import export, restore
from kontrol.master.operator.view import View
from kontrol.master.records.records import Records
from kontrol.store.protocol import Delete, Put, Range

WALL = "2026-01-01T00:00:00+00:00"
POD = key_of("10.0.0.1")
GONE = key_of("10.0.0.9")
REQUEST = KEYS.requests + "00000000000000ff"
LATER: dict[str, JSON] = {"later": {"x": [1, "two"]}}

# What this version writes, and what of that a version may leave out.
WRITTEN: Mapping[str, Mapping[str, JSON]] = {
    KEYS.pod(POD): {
        "app": "app",
        "id": "p1",
        "ip": "10.0.0.1",
        "key": POD,
        "role": "r",
        "seq": 4,
        "nonce": nonce("a"),
        "n": 0,
        "payload": "",
    },
    KEYS.registration(POD): {"id": "p1", "nonce": nonce("a"), "n": 0, "seq": 4, "left": False},
    KEYS.registration(GONE): {
        "id": "p9",
        "nonce": nonce("a"),
        "n": 0,
        "seq": 2,
        "left": True,
        "idle": 1.5,
    },
    KEYS.archived_registration(GONE, 1): {
        "id": "p8",
        "nonce": nonce("a"),
        "n": 0,
        "seq": 1,
        "left": True,
    },
    KEYS.applied: {"run": 3, "digest": "d", "fingerprint": "f1", "pods": 1, "ttl": 9.0},
    KEYS.running: {
        "run": 4,
        "term": 2,
        "attempt": 1,
        "digest": "d",
        "fingerprint": "f1",
        "started": WALL,
        "ended": True,
        "why": "exit status 3",
        "reason": "ensemble",
        "by": "",
        "fover": 6.0,
    },
    KEYS.run(3): {"run": 3, "term": 2, "ok": True, "attempt": 1, "changes": {}},
    KEYS.meta: {"floor": 100, "version": 1},
    KEYS.candidate(0xFE): {"id": "m0", "address": "10.1.0.9", "fingerprint": "f1"},
    KEYS.plan: {"what": "idle", "reason": None, "hold": None, "at": WALL, "lost": [], "of": 1},
    KEYS.ages: {"cluster": 1, "watched": 5.0, "samples": [[0.0, 1]]},
    REQUEST: {"kind": "run", "by": "ann", "at": WALL, "run": None},
}
REQUIRED = {
    KEYS.pod(POD): {"app", "id", "ip", "key", "role", "seq"},
    KEYS.registration(POD): {"id", "seq"},
    KEYS.registration(GONE): {"id", "seq", "left"},
    KEYS.archived_registration(GONE, 1): {"id", "seq", "left"},
    KEYS.applied: {"run"},
    KEYS.running: {"run"},
    KEYS.run(3): {"run"},
    REQUEST: {"kind"},
}
OTHERS = {
    KEYS.counter: b"5",
    KEYS.last_run: b"4",
    KEYS.state: b'{"x":1}',
    KEYS.state_of(3): b'{"x":1}',
    f"{KEYS.members(3)}0000": json.dumps([[4, POD, "p1", "10.0.0.1", "r", "h"]]).encode(),
}
LEASED = (KEYS.pods, KEYS.candidates, KEYS.requests, KEYS.plan)


def earlier(key: str) -> bytes:
    """A record without the fields that a version may not know."""
    keep = REQUIRED.get(key, set())
    return canonical({name: value for name, value in WRITTEN[key].items() if name in keep})


def later(key: str) -> bytes:
    """A record with a field that only a later version knows."""
    return canonical({**WRITTEN[key], **LATER})


async def store_all(cluster: MemoryCluster, values: Mapping[str, bytes]) -> None:
    """Put records down, some under leases of their own, which expire soon."""
    store = MemoryStore(cluster)
    for key, value in values.items():
        lease = (await store.grant(9)).id if key.startswith(LEASED) else 0
        await store.txn([], [Put(key, value, lease)])


async def works(cluster: MemoryCluster, callback: Stub, one: Master, two: Master) -> Ran:
    """See that pods report to both masters, and that the callback runs; returns the last run."""
    async with alive(one, 1), alive(two, 2):
        await asyncio.sleep(40)
        assert callback.runs
        before = len(callback.runs)
        async with alive(one, 3):
            await asyncio.sleep(20)
        assert len(callback.runs) > before, "a change is seen"
        for master in (one, two):
            view = View(master, MemoryStore(cluster), wall=lambda: WALL)
            status: Any = await view.status()
            assert (status["etcd"]["ok"], status["ensemble"]["pods"]) == (True, 3)
            json.dumps([status, await view.state(), await view.runs(200), await view.run(3)])
    return callback.runs[before]


@virtual
@pytest.mark.parametrize("version", ["earlier", "this", "later"])
async def test_masters_work_with_the_records_of_versions(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    write: dict[str, Callable[[str], bytes]] = {
        "earlier": earlier,
        "this": lambda key: canonical(WRITTEN[key]),
        "later": later,
    }
    cluster = MemoryCluster()
    callback = Stub(outcome=lambda request: GOOD if request.run > 5 else BAD)
    await store_all(cluster, {**OTHERS, **{key: write[version](key) for key in WRITTEN}})
    async with running(cluster, callback) as one, running(cluster, callback, id="m2") as two:
        last = await works(cluster, callback, one, two)
        assert (await one.ping(record(1)))["seq"] == 4, "it kept its number"
        assert (await one.ping(record(9, nonce="b")))["seq"] == 2
        assert last.request.state == b'{"x":1}'
        assert last.request.run > 4
        if version != "earlier":
            assert last.request.term > 100
    assert not [line for line in caplog.messages if "damaged" in line]


async def kept(store: MemoryStore, key: str) -> dict[str, Any]:
    """Return a record, which still has the field that is not known."""
    found: dict[str, Any] = json.loads((await store.range(Range(key))).kvs[0].value)
    assert found["later"] == LATER["later"], key
    return found


@virtual
async def test_unknown_fields_survive_what_leaders_rewrite() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: BAD)
    stored = {**OTHERS, **{key: later(key) for key in WRITTEN if not key.startswith(LEASED)}}
    stored[KEYS.running] = canonical({**WRITTEN[KEYS.running], **LATER, "ended": False})
    await store_all(cluster, stored)
    store = MemoryStore(cluster)

    async with (
        running(cluster, callback, sweep_every=5.0) as one,
        running(cluster, callback, id="m2") as two,
    ):
        await asyncio.sleep(CONFIG.fover + 0.1)
        assert (await kept(store, KEYS.running))["ended"] is True
        await store.txn([], [Put(REQUEST, later(REQUEST), (await store.grant(60)).id)])
        await asyncio.sleep(10)
        assert (await kept(store, REQUEST))["answer"]["message"]
        assert "idle" in await kept(store, KEYS.archived_registration(GONE, 1))
        assert (await kept(store, KEYS.ages))["watched"] >= 5
        # The floor is raised.
        for master in (one, two):
            master.election.restart(10_000)
        await asyncio.sleep(30)
        assert (await kept(store, KEYS.meta))["floor"] > 10_000


@virtual
async def test_unknown_fields_survive_what_registries_rewrite() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    registrations = {key: later(key) for key in (KEYS.registration(POD), KEYS.registration(GONE))}
    await store_all(cluster, {KEYS.counter: b"5", **registrations})
    async with running(cluster), running(cluster, id="m2") as two:
        # A pod comes back, changes, leaves; another one does so and moves, and its key is taken.
        await two.ping(record(1, nonce="b"))
        assert (await kept(store, KEYS.registration(POD)))["nonce"] == nonce("b")
        await two.ping(record(1, nonce="b", n=1, payload=2))
        assert (await kept(store, KEYS.registration(POD)))["n"] == 1
        await two.ping(record(1, nonce="b", n=2, down=True))
        assert (await kept(store, KEYS.registration(POD)))["left"] is True
        await two.ping(record(9, nonce="b"))
        assert (await kept(store, KEYS.registration(GONE)))["left"] is False
        await two.ping(record(9, ip="10.0.0.10", nonce="b", n=1))
        assert (await kept(store, KEYS.registration(GONE)))["left"] is True
        fresh = (await store.range(Range(KEYS.registration(key_of("10.0.0.10"))))).kvs[0].value
        assert "later" not in json.loads(fresh), "it is a new record"
        await two.ping(record(7, ip="10.0.0.9", nonce="b"))
        assert (await kept(store, KEYS.archived_registration(GONE, 2)))["left"] is True


@virtual
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
async def test_masters_work_with_damage_everywhere(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, callback = MemoryCluster(), Stub()
    every = dict.fromkeys([*OTHERS, *WRITTEN], garbage)
    every |= {
        KEYS.runs + "x": garbage,
        KEYS.states + "x": garbage,
        KEYS.registrations + "x.y": garbage,
    }
    await store_all(cluster, every)
    async with running(cluster, callback) as one, running(cluster, callback, id="m2") as two:
        await works(cluster, callback, one, two)
        last = callback.runs[-1].request
        assert one.candidates[0].id == "m1"
    said = [line for line in caplog.messages if "is damaged" in line]
    keys = [line.split(" ")[2] for line in said]
    named = {key for key in every if key in keys}
    assert named >= {KEYS.pod(POD), KEYS.registration(POD), KEYS.running} or garbage in (
        b"{}",
        b"null",
    )
    assert max(map(keys.count, named)) <= 2, "once for each master"
    assert last.state in (None, garbage)
    assert last.run > 3


async def damage(cluster: MemoryCluster, *keys: str) -> None:
    await MemoryStore(cluster).txn([], [Put(key, b"?") for key in keys])


@virtual
@pytest.mark.parametrize("known", ["pods/", "seqs/", "applied/"])
@pytest.mark.parametrize("lost", ["damaged", "deleted"])
async def test_no_number_is_given_twice_when_the_counter_is_lost(known: str, lost: str) -> None:
    """The highest is that of a pod, of a registration, or of the acknowledged list."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    async with running(cluster, Stub()) as master, alive(master, 1, 2):
        await asyncio.sleep(3)
        for prefix in {"pods/", "seqs/", "applied/"} - {known}:
            for kv in (await store.range(Range(KEYS.root + prefix, prefix=True))).kvs:
                await store.txn([], [Put(kv.key, b"?", kv.lease)])
        gone = Put(KEYS.counter, b"?") if lost == "damaged" else Delete(KEYS.counter)
        await store.txn([], [gone])
        assert (await master.ping(record(3)))["seq"] == 2
        assert (await master.ping(record(4)))["seq"] == 3


@virtual
async def test_terms_and_runs_rise_when_the_floor_is_damaged() -> None:
    cluster, callback = MemoryCluster(), Stub()
    for number, name in enumerate(("m1", "m2", "m3"), 1):
        async with running(cluster, callback, id=name) as master, alive(master, number):
            if number == 1:
                master.election.restart(10**6)
            await asyncio.sleep(20)
        await damage(cluster, KEYS.meta)
    requests = [ran.request for ran in callback.runs]
    assert len(requests) >= 3
    assert requests[0].term > 10**6
    assert len({request.term for request in requests}) == 3
    for before, after in pairwise(requests):
        assert (after.term, after.run) > (before.term, before.run)
        assert after.run > before.run
        assert after.term >= before.term


@virtual
async def test_a_damaged_running_record_is_waited_out_and_recorded_as_failed() -> None:
    cluster, callback = MemoryCluster(), Stub()
    loop = asyncio.get_running_loop()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
    await damage(cluster, KEYS.running)
    began = loop.time()
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(20)
        runs: Any = await View(master, MemoryStore(cluster), wall=lambda: WALL).runs(9)
    assert callback.runs[1].at - began >= CONFIG.fover
    assert [(run["run"], run["ok"]) for run in runs] == [(3, True), (2, False), (1, True)]
    assert callback.runs[1].request.run == 3


@virtual
async def test_a_damaged_state_is_kept_and_not_handed_out() -> None:
    cluster, callback = MemoryCluster(), Stub(outcome=lambda _: replace(GOOD, state=b'{"x":1}'))
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        assert await master.state() == {"x": 1}
    await damage(cluster, KEYS.state, KEYS.state_of(1))
    callback.outcome = lambda _: GOOD  # nothing on standard output keeps the state
    async with running(cluster, callback) as master, alive(master, 1, 2):
        await asyncio.sleep(5)
        assert callback.runs[-1].request.state is None
        assert await master.state() is None
        kept = (await MemoryStore(cluster).range(Range(KEYS.state))).kvs
        assert kept[0].value == b"?"
        answer = await master.requests.ask("rollback", "ann", run=1, timeout=5)
        assert answer["refused"] is True, "it is no state to go back to"


@virtual
async def test_a_later_layout_keeps_masters_from_leading_and_pods_report() -> None:
    cluster, callback = MemoryCluster(), Stub()
    await store_all(cluster, {KEYS.meta: b'{"version":2,"floor":{"of":"another form"}}'})
    async with (
        running(cluster, callback) as one,
        running(cluster, callback, id="m2") as two,
        alive(one, 1),
        alive(two, 2),
    ):
        await asyncio.sleep(30)
        assert len(one.pods()) == 2
        assert one.leader_id is None
        assert not callback.runs


@virtual
async def test_an_export_leaves_out_what_is_damaged_and_keeps_what_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = MemoryCluster()
    stored = {**OTHERS, **{key: later(key) for key in WRITTEN if not key.startswith(LEASED)}}
    rows = json.dumps([[4, POD, "p1", "10.0.0.1", "r", "h", "later"]]).encode()
    await store_all(cluster, {**stored, f"{KEYS.members(3)}0000": rows})
    await damage(
        cluster, KEYS.run(2), KEYS.registration("x"), KEYS.state_of(2), KEYS.registrations + "x y"
    )
    document = await export(MemoryStore(cluster), Records(KEYS))
    assert "4 damaged records are not in the export" in caplog.messages
    caplog.clear()
    fresh = MemoryCluster()
    await restore(MemoryStore(fresh), Records(KEYS), json.loads(json.dumps(document)))
    store = MemoryStore(fresh)
    for key in (KEYS.registration(GONE), KEYS.applied, KEYS.run(3)):
        await kept(store, key)
    assert (await store.range(Range(f"{KEYS.members(3)}0000"))).kvs[0].value == canonical(
        json.loads(rows)
    )
    callback = Stub()
    async with running(fresh, callback) as master, alive(master, 1):
        assert (await master.ping(record(1)))["seq"] == 4
        await asyncio.sleep(20)
        assert callback.runs[-1].request.state == b'{"x":1}'
    assert not [line for line in caplog.messages if "damaged" in line]


@virtual
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
async def test_an_export_of_damage_alone_can_be_imported(garbage: bytes) -> None:
    cluster, fresh = MemoryCluster(), MemoryCluster()
    await store_all(cluster, dict.fromkeys([*OTHERS, *WRITTEN], garbage))
    document = await export(MemoryStore(cluster), Records(KEYS))
    await restore(MemoryStore(fresh), Records(KEYS), json.loads(json.dumps(document)))
