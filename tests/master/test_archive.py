"""Exports and imports: nothing damaged is restored, and no number is given twice."""

import asyncio
import json
from dataclasses import replace

import pytest
from tests.master.support import BAD, GOOD, KEYS, Stub, alive, record, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.master.operator.archive import ArchiveError, export, restore
from kontrol.master.operator.view import View
from kontrol.master.records.published import Published
from kontrol.master.records.records import Records
from kontrol.store.protocol import Put, Range

SAVED = replace(GOOD, state=b'{"x":1}')


async def lived(cluster: MemoryCluster, callback: Stub) -> dict[str, JSON]:
    """The export of a tier in which two pods lived and one of them left."""
    async with running(cluster, callback) as master, alive(master, 1):
        async with alive(master, 2):
            await asyncio.sleep(5)
        await master.ping(record(2, n=1, down=True))
        await asyncio.sleep(5)
    return json.loads(json.dumps(await export(MemoryStore(cluster), Records(KEYS))))  # type: ignore[no-any-return]


@virtual
async def test_a_tier_goes_on_in_another_store() -> None:
    old, new = MemoryCluster(), MemoryCluster()
    callback = Stub(outcome=lambda _: SAVED)
    document = await lived(old, callback)
    before = [run.request for run in callback.runs]
    said = await restore(MemoryStore(new), Records(KEYS), document)
    assert "2 entries" in said
    async with running(new, callback) as master, alive(master, 1):
        await asyncio.sleep(30)
        assert [request.run for request in before] == [1, 2]
        assert len(callback.runs) == 2, "what was acknowledged is not run again"
        assert await master.ping(record(3)) == {"seq": 2, "ttl": 9.0, "leader": "m1", "live": True}
        await asyncio.sleep(5)
        last = callback.runs[-1]
        assert (last.changes, last.request.run, last.request.state) == (
            {"joined": ["p3"]},
            3,
            b'{"x":1}',
        )
        assert last.request.term > before[-1].term


@virtual
async def test_an_export_of_nothing_can_be_imported() -> None:
    store = MemoryStore(MemoryCluster())
    document = await export(store, Records(KEYS))
    await restore(store, Records(KEYS), document)


@virtual
async def test_a_tier_that_is_used_is_not_replaced() -> None:
    callback = Stub(outcome=lambda _: SAVED)
    document = await lived(MemoryCluster(), callback)
    used = MemoryCluster()
    await lived(used, callback)
    with pytest.raises(ArchiveError, match=r"in use.*etcdctl del"):
        await restore(MemoryStore(used), Records(KEYS), document)
    fresh = MemoryCluster()
    async with running(fresh, callback):
        await asyncio.sleep(1)
        with pytest.raises(ArchiveError, match=r"masters are running \(m1\): stop"):
            await restore(MemoryStore(fresh), Records(KEYS), document)


@virtual
async def test_a_damaged_document_changes_nothing() -> None:
    document = await lived(MemoryCluster(), Stub(outcome=lambda _: SAVED))
    cluster = MemoryCluster()
    bad: list[JSON] = [None, [], {}, {"kontrol": 2}, {"kontrol": 1}]
    for name in ("term", "seq", "seats", "runs"):
        wrong: list[JSON] = [None, "x", [1]]
        bad += [{**document, name: value} for value in wrong]
    bad.append({**document, "seats": {"k": {"id": 1}}})
    bad.append({**document, "runs": {"x": {}}})
    bad.append({**document, "applied": {"run": 1, "members": [[1]]}})
    for one in bad:
        with pytest.raises(ArchiveError):
            await restore(MemoryStore(cluster), Records(KEYS), one)
    await restore(MemoryStore(cluster), Records(KEYS), document)


REGISTRATION: dict[str, JSON] = {"id": "a", "nonce": "n", "n": 1, "seq": 1}
APPLIED: dict[str, JSON] = {"run": 1, "digest": "d", "fingerprint": None, "members": []}


@virtual
@pytest.mark.parametrize(
    "part",
    [
        {"seq": -5},
        {"seq": True},
        {"term": 2**63},
        {"term": -1},
        {"seats": {"../k": REGISTRATION}},
        {"seats": {"k": {**REGISTRATION, "seq": "x"}}},
        {"seats": {"k": {**REGISTRATION, "left": "x"}}},
        {"runs": {"5": "hello"}},
        {"runs": {"5": {"run": 6}}},
        {"runs": {"5": {"run": 5, "stderr": "x" * 100_000}}},
        {"states": {"-5": 1}},
        {"states": {"5": "x" * 2_000_000}},
        {"states": []},
        {"state": "x" * 2_000_000},
        {"applied": [1]},
        {"applied": {"digest": "d", "members": []}},
        {"applied": {**APPLIED, "digest": 1}},
        {"applied": {**APPLIED, "members": [[1, 2, 3, 4, 5, 6]]}},
        {"applied": {**APPLIED, "members": [5]}},
    ],
    ids=lambda part: repr(part)[:60],
)
async def test_what_masters_could_not_read_is_not_put_there(part: dict[str, JSON]) -> None:
    """They would end, and end again: a record of the store is trusted to be one."""
    store = MemoryStore(MemoryCluster())
    whole: dict[str, JSON] = {
        "kontrol": 1,
        "term": 1,
        "seq": 3,
        "seats": {"k": REGISTRATION},
        "runs": {},
    }
    with pytest.raises(ArchiveError, match=r"^the document is damaged: \S.*; use another one$"):
        await restore(store, Records(KEYS), {**whole, **part})
    await restore(store, Records(KEYS), {**whole, "applied": APPLIED})


@virtual
async def test_the_last_run_of_an_import_is_the_last_run() -> None:
    """Entries that one transaction wrote are of one revision: only their numbers order them."""
    callback = Stub(outcome=lambda request: SAVED if request.run == 1 else BAD)
    old, new = MemoryCluster(), MemoryCluster()
    async with running(old, callback) as master, alive(master, 1):
        await asyncio.sleep(5)
        async with alive(master, 2):
            await asyncio.sleep(60)
    document = await export(MemoryStore(old), Records(KEYS))
    last = callback.runs[-1].request.run
    await restore(MemoryStore(new), Records(KEYS), document)
    async with running(new, callback) as master, alive(master, 1, 3):
        shown = await View(master, MemoryStore(new), wall=str).runs(200)
        assert [entry["run"] for entry in shown] == [*range(last, 0, -1)]
        await asyncio.sleep(20)
        assert callback.runs[-1].request.run > last, "no number of a run is told twice"


@virtual
async def test_what_is_published_is_restored_under_a_later_version() -> None:
    old, new = MemoryStore(MemoryCluster()), MemoryStore(MemoryCluster())
    published = Published(17, 7, "t", {"a": {"b": 1}}, {"a": 3})
    await old.txn([], [Put(KEYS.published, published.encode())])
    document = await export(old, Records(KEYS))
    await restore(new, Records(KEYS), document)
    (kv,) = (await new.range(Range(KEYS.published))).kvs
    assert Published.decode(kv.value) == replace(published, version=18)
    damaged: list[JSON] = [{}, [], {"version": 0}, {"version": 1, "documents": 7}]
    for one in damaged:
        fresh = MemoryStore(MemoryCluster())
        with pytest.raises(ArchiveError, match="damaged"):
            await restore(fresh, Records(KEYS), {**document, "published": one})
