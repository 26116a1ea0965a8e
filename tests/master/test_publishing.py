"""What runs publish: fenced by term and run, versions that only rise, and the record of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.support import BAD, CONFIG, GOOD, KEYS, Ran, Stub, alive, running
from tests.master.test_leading import ledger
from tests.master.test_registry import Faulty
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import canonical
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.records.fields import Damaged
from kontrol.master.records.published import (
    BELIEVED_VERSION,
    MOST_DOCUMENTS,
    PUBLISHED_LIMIT,
    NotPublished,
    Published,
    parse_document,
)
from kontrol.store.protocol import Ambiguous, Delete, Put, Range, Unavailable

Script = Callable[[RunRequest], Awaitable[RunOutcome]]


@dataclass
class Scripted(Stub):
    """A callback that does what a script has it do, until it is stopped."""

    script: Script | None = None

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        if self.script is None:
            return await super().run(request, deadline)
        ran = Ran(asyncio.get_running_loop().time(), request)
        self.runs.append(ran)
        self._stop.clear()
        script = asyncio.ensure_future(self.script(request))
        stop = asyncio.ensure_future(self._stop.wait())
        ends: list[asyncio.Future[Any]] = [script, stop]
        ran.ended = "killed"
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            outcome = script.result() if script.done() else replace(BAD, why="stopped")
            ran.ended = outcome.why
            return outcome
        finally:
            script.cancel()
            stop.cancel()
            await asyncio.wait(ends)


def publishes(**documents: Any) -> Script:  # noqa: ANN401 - any JSON
    """The first run publishes these, the further ones nothing."""
    left = iter([documents])

    async def script(request: RunRequest) -> RunOutcome:
        assert request.publish is not None
        for key, document in next(left, {}).items():
            await request.publish(key, document)
        return GOOD

    return script


async def stored(cluster: MemoryCluster) -> dict[str, Any]:
    found = (await MemoryStore(cluster).range(Range(KEYS.published))).kvs
    return dict(json.loads(found[0].value)) if found else {}


@virtual
async def test_what_a_run_publishes_is_committed_before_it_ends_and_stands_if_it_fails() -> None:
    cluster, seen = MemoryCluster(), list[dict[str, Any]]()

    async def script(request: RunRequest) -> RunOutcome:
        assert request.publish is not None
        if seen:
            return GOOD
        assert await request.publish("a", {"x": 1}) == 1
        assert await request.publish("b", [2]) == 2
        assert await request.publish("b", [2]) == 2  # it is there already
        seen.append(await stored(cluster))
        return BAD

    callback = Scripted(script=script)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(2)
        (now,) = seen
        assert (now["version"], now["documents"]) == (2, {"a": {"x": 1}, "b": [2]})
        assert now["runs"] == {"a": 1, "b": 1}
        entries = {entry["run"]: entry for entry in await ledger(cluster)}
        assert (entries[1]["ok"], entries[1]["published"]) == (False, 2)
        assert "published" not in entries[2]
        assert await stored(cluster) == now


@virtual
async def test_after_its_end_a_run_publishes_nothing_and_what_it_began_is_done_before() -> None:
    cluster, requests = MemoryCluster(), list[RunRequest]()
    begun = list["asyncio.Task[int]"]()

    async def script(request: RunRequest) -> RunOutcome:
        assert request.publish is not None
        requests.append(request)
        begun.extend(asyncio.create_task(request.publish(f"k{i}", i)) for i in range(5))
        begun[0].cancel()  # its client went away
        return GOOD

    async with running(cluster, Scripted(script=script)) as master, alive(master, 1):
        await asyncio.sleep(3)
        assert len(requests) == 1
        publish = requests[0].publish
        assert publish is not None
        with pytest.raises(NotPublished, match="run 1 has ended"):
            await publish("late", 1)
        assert (await stored(cluster))["documents"] == {f"k{i}": i for i in range(1, 5)}
        assert [task.result() for task in begun[1:]] == [1, 2, 3, 4]


@virtual
async def test_a_former_leader_publishes_nothing_and_its_run_is_killed() -> None:
    cluster, refused = MemoryCluster(), list[str]()

    async def script(request: RunRequest) -> RunOutcome:
        assert request.publish is not None
        await request.publish("a", 1)
        store = MemoryStore(cluster)
        kvs = (await store.range(Range(KEYS.candidates, prefix=True))).kvs
        await store.txn([], [Delete(kv.key) for kv in kvs])
        try:
            await request.publish("a", 2)
        except NotPublished as error:
            refused.append(str(error))
        await asyncio.sleep(100)
        return GOOD

    callback = Scripted(script=script)
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(3)
        assert [run.ended for run in callback.runs] == ["killed"]
        assert "does not lead any more: term" in refused[0]
        assert (await stored(cluster))["documents"] == {"a": 1}


@virtual
async def test_a_write_whose_answer_is_lost_is_one_version() -> None:
    cluster, network, lost = MemoryCluster(), Faulty(), iter([Ambiguous("lost")])

    def lose(request: Request) -> Exception | None:
        moves = isinstance(request, Txn) and any(
            isinstance(op, Put) and op.key == KEYS.published for op in request.then
        )
        return next(lost, None) if moves else None

    network.after = lose
    callback = Scripted(script=publishes(a=1, b=2))
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await asyncio.sleep(3)
        now = await stored(cluster)
        assert (now["version"], now["documents"]) == (2, {"a": 1, "b": 2})
        assert [run.ended for run in callback.runs] == ["exit status 0"]


@virtual
async def test_while_the_store_is_away_it_waits_and_at_the_end_of_the_master_it_does_not() -> None:
    cluster, network = MemoryCluster(), Faulty()

    def away(request: Request) -> Exception | None:
        moves = isinstance(request, Txn) and any(
            isinstance(op, Put) and op.key == KEYS.published for op in request.then
        )
        return Unavailable("no quorum") if moves else None

    network.before = away
    callback = Scripted(script=publishes(a=1))
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await asyncio.sleep(5)
        assert not await stored(cluster)
    assert not await stored(cluster)


@virtual
async def test_versions_rise_over_terms_and_over_a_restore_that_a_master_survived() -> None:
    cluster = MemoryCluster()
    first = Scripted(script=publishes(a=1, b=2))
    async with running(cluster, first) as master, alive(master, 1):
        await asyncio.sleep(3)
        early = cluster.snapshot()
    later = Scripted(script=publishes(c=3))
    async with running(cluster, later, id="m2") as master, alive(master, 1, 2):
        await asyncio.sleep(10)
        now = await stored(cluster)
        assert (now["version"], set(now["documents"])) == (3, set("abc"))
        cluster.restore(early)
        await asyncio.sleep(4 * CONFIG.fover)
        now = await stored(cluster)
        assert (now["version"], set(now["documents"])) == (4, set("ab"))
        assert master.publications.current.version == 4


@virtual
async def test_what_pods_say_that_they_have_raises_the_version_whichever_master_hears_it() -> None:
    cluster = MemoryCluster()
    callback = Scripted(script=publishes(a=1))
    async with (
        running(cluster, callback) as leader,
        running(cluster, Scripted(), id="m2") as other,
        alive(leader, 1),
    ):
        await asyncio.sleep(3)
        asking = asyncio.create_task(other.publications.later("c1", 17, '{"pod":"x"}'))
        forger = asyncio.create_task(other.publications.later("c2", BELIEVED_VERSION + 1))
        text = json.loads(await asking or b"")
        assert text == {"version": 18, "documents": {"a": 1}}
        await asyncio.sleep(60)
        assert (await stored(cluster))["version"] == 18
        assert other.candidates[1].published is None
        assert not forger.done()
        forger.cancel()


@virtual
async def test_a_run_that_takes_many_at_a_time_is_refused_more() -> None:
    cluster, refused = MemoryCluster(), list[object]()

    async def script(request: RunRequest) -> RunOutcome:
        assert request.publish is not None
        all_at_once = (request.publish(f"k{i}", i) for i in range(40))
        refused.extend(await asyncio.gather(*all_at_once, return_exceptions=True))
        return GOOD

    async with running(cluster, Scripted(script=script)) as master, alive(master, 1):
        await asyncio.sleep(3)
    assert sum(isinstance(one, NotPublished) for one in refused) == 24
    assert sum(isinstance(one, int) for one in refused) == 16


KEY = st.text("ab.:/-_0Z", min_size=1, max_size=128)
DOCUMENTS = st.dictionaries(KEY, st.none() | st.integers() | st.lists(st.text()), max_size=5)


@given(DOCUMENTS, KEY, st.integers() | st.text())
def test_a_document_replaces_the_one_of_its_key_and_equal_ones_nothing(
    documents: dict[str, Any], key: str, document: object
) -> None:
    published = Published(3, 7, "t", documents, dict.fromkeys(documents, 1))
    assert Published.decode(published.encode()) == published
    now = published.with_document(key, document, run=9)  # type: ignore[arg-type]
    if now is None:
        assert documents[key] == document
        return
    assert now.documents == {**documents, key: document}
    assert now.runs[key] == 9
    assert now.version == published.version
    assert now.with_document(key, document, run=10) is None  # type: ignore[arg-type]
    gone = now.without_document(key)
    assert gone is not None
    assert gone.without_document(key) is None
    assert gone.documents == {k: v for k, v in documents.items() if k != key}
    assert json.loads(now.text) == {"version": 3, "documents": dict(now.documents)}


@pytest.mark.parametrize("key", ["", "a b", "a\n", "é", "x" * 129, "a\0", '"', "a\\b"])
def test_bad_keys(key: str) -> None:
    with pytest.raises(NotPublished, match=r"the key is .*; expected 1 to 128 of the characters"):
        Published().with_document(key, 1, run=1)


def test_all_documents_together_are_bounded_in_bytes_and_number() -> None:
    half = "x" * (PUBLISHED_LIMIT // 2)
    one = Published().with_document("one", half, run=1)
    assert one is not None
    with pytest.raises(NotPublished, match=r"all documents together have 5243\d\d bytes"):
        one.with_document("two", half, run=1)
    room = PUBLISHED_LIMIT - len(one.text) - len(',"two":""')
    full = one.with_document("two", "x" * room, run=1)
    assert full is not None
    assert len(full.text) == PUBLISHED_LIMIT
    many = Published(documents={f"k{i}": i for i in range(MOST_DOCUMENTS)})
    assert many.with_document("k1", "new", run=1) is not None
    with pytest.raises(NotPublished, match=r"would be document 1001, over the limit of 1000"):
        many.with_document("more", 1, run=1)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"NaN", "not JSON"),
        (b'{"a":1,"a":2}', "twice"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b"[" * 100_000, "nested deeper"),
        (b"\xff", "not UTF-8"),
        (b'"\\ud800"', "lone surrogate"),
        (b'"' + b"x" * (10 << 20) + b'"', "has more than 524288 bytes, the limit for all"),
    ],
    ids=["empty", "cut", "NaN", "twice", "deep", "deeper", "bytes", "surrogate", "10 MB"],
)
def test_what_is_no_document_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(NotPublished, match=why):
        parse_document(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"{}", b"[]", b"7", b'{"version":0}', b'{"version":true}', b'{"version":1.5}',
        b'{"version":1,"documents":[]}', b'{"version":1,"runs":7}', b'{"version":-1}',
        canonical({"version": 2**62}), b"x" * (2 << 20),
    ],
)  # fmt: skip
def test_what_is_damaged_is_not_published(raw: bytes) -> None:
    with pytest.raises(Damaged):
        Published.decode(raw)
