"""What a master sends to agents: the latest, once, to each that asks, within bounds."""

import asyncio
import json
from binascii import crc32
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.master.support import KEYS, alive, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.simloop import virtual

from kontrol.ensemble.canonical import JSON
from kontrol.master import publications as subject
from kontrol.master.highwater import HighWater
from kontrol.master.operator.metrics import METRICS
from kontrol.master.operator.view import View
from kontrol.master.publications import Publications
from kontrol.master.records.published import Published
from kontrol.master.records.records import Records
from kontrol.metrics import render
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Delete, Put, Range


class Board:
    """What is published, and who asks for it."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        records = Records(KEYS)
        self.highwater = HighWater(store, records, silence=9)
        self.publications = Publications(store, records, self.highwater, silence=9)

    async def publish(self, version: int, **documents: JSON) -> None:
        value = Published(version=version, documents=documents).encode()
        await self.store.txn([], [Put(KEYS.published, value)])
        await asyncio.sleep(0.1)

    def ahead(self) -> int | None:
        return self.publications.ahead

    def ask(self, name: str, have: object, about: object = None) -> "asyncio.Task[bytes | None]":
        return asyncio.create_task(self.publications.later(name, have, about))


@asynccontextmanager
async def board() -> AsyncIterator[Board]:
    it = Board(MemoryStore(MemoryCluster()))
    task = asyncio.create_task(it.publications.cache.run())
    await it.publications.cache.complete.wait()
    try:
        yield it
    finally:
        task.cancel()


def sent(task: "asyncio.Task[bytes | None]") -> Any:  # noqa: ANN401 - JSON
    return json.loads(task.result() or b"null")


@virtual
async def test_an_agent_that_asks_gets_the_latest_once_there_is_one() -> None:
    async with board() as it:
        first = it.ask("c1", 0)
        await asyncio.sleep(100)
        assert not first.done()
        await it.publish(3, a=1)
        assert sent(first) == {"version": 3, "documents": {"a": 1}}
        for version in range(4, 9):  # it is slow, and asks for none of these
            await it.publish(version, a=version)
        assert sent(await settled(it.ask("c1", 3)))["version"] == 8
        last = it.ask("c1", 8)
        await it.publish(7, a="late")
        assert not last.done()
        await it.publish(9, a=9)
        assert sent(last)["version"] == 9


async def settled(task: "asyncio.Task[bytes | None]") -> "asyncio.Task[bytes | None]":
    await asyncio.wait([task], timeout=1)
    return task


@virtual
async def test_one_call_of_each_connection_waits_and_none_is_left_behind() -> None:
    async with board() as it:
        first = it.ask("c1", 0, '{"pod":"abc","error":"no space"}')
        await asyncio.sleep(1)
        with pytest.raises(Refused, match="one at a time"):
            await it.publications.later("c1", 0)
        (receiver,) = it.publications.receivers()
        assert (receiver.pod, receiver.version, receiver.error) == ("abc", 0, "no space")
        first.cancel()
        await asyncio.sleep(0)
        assert not list(it.publications.receivers())
        second = it.ask("c2", 0)
        await it.publish(1, a=1)
        assert sent(second)
        assert list(it.publications.receivers())
        await asyncio.sleep(200)  # its connection ended, or it asks no more
        assert not list(it.publications.receivers())


@pytest.mark.parametrize("have", [-1, 1.0, True, "1", None, 2**60, [], {}])
def test_what_is_no_version_is_refused(have: object) -> None:
    @virtual
    async def test() -> None:
        async with board() as it:
            with pytest.raises(Refused, match="expected a number from 0"):
                await it.publications.later("c1", have)

    test()


@pytest.mark.parametrize("about", ["{", '{"pod":7,"error":[]}', 7, '{"pod":"a b"}', "[" * 9, "7"])
def test_whatever_an_agent_says_of_itself_is_safe(about: object) -> None:
    @virtual
    async def test() -> None:
        async with board() as it:
            await it.publish(1, a=1)
            try:
                assert await it.publications.later("c1", 0, about)
            except Refused as error:
                assert "not JSON" in str(error)
            for receiver in it.publications.receivers():
                assert (receiver.pod, receiver.error) == ("", None)

    test()


@virtual
async def test_what_agents_have_not_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST_IN_FLIGHT", 3000)
    async with board() as it:
        asking = {f"c{i}": it.ask(f"c{i}", 0) for i in range(10)}
        await it.publish(1, a="x" * 950)
        assert sum(task.done() for task in asking.values()) == 3
        confirmed = [name for name, task in asking.items() if task.done()]
        waiting = [it.ask(name, 1) for name in confirmed]
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in asking.values()) == 6
        asking["c9"].cancel()
        await asyncio.sleep(6)  # the others have not asked: then they are not waited for
        assert sum(task.done() for task in asking.values()) == 10
        assert not any(task.done() for task in waiting)
        await asyncio.sleep(200)
        await it.publish(2, a="x" * 5000)  # larger than what may be in flight: one at a time
        assert sum(task.done() for task in waiting) == 1
        await asyncio.sleep(11)
        assert sum(task.done() for task in waiting) == 3


@virtual
async def test_with_too_many_that_ask_the_others_get_what_there_is_and_do_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "MOST_WAITING", 2)
    async with board() as it:
        waiting = [it.ask(f"c{i}", 0) for i in range(2)]
        await asyncio.sleep(0)
        assert await it.publications.later("c3", 0) is None
        await it.publish(1, a=1)
        assert all(sent(task) for task in waiting)
        waiting = [it.ask(f"c{i}", 1) for i in range(2)]
        await asyncio.sleep(0)
        assert await it.publications.later("c3", 0) is not None
        assert await it.publications.later("c3", 1) is None
        waiting[0].cancel()
        await asyncio.sleep(0)
        third = it.ask("c3", 1)
        await it.publish(2, a=2)
        assert sent(third)["version"] == 2


@virtual
async def test_what_those_that_cannot_wait_are_sent_is_bounded_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "MOST_WAITING", 1)
    monkeypatch.setattr(subject, "MOST_IN_FLIGHT", 3000)
    async with board() as it:
        await it.publish(1, a="x" * 950)
        waiting = it.ask("c0", 1)
        await asyncio.sleep(0)
        for _ in range(2):
            asked = [await it.publications.later("flood", 0) for _ in range(20)]
            assert len([text for text in asked if text is not None]) == 3
            await asyncio.sleep(6)
        assert not waiting.done()
        await it.publish(2, a=2)
        assert sent(waiting)["version"] == 2


@virtual
async def test_agents_that_say_they_have_an_impossible_version_are_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with board() as it:
        asking = [it.ask(f"c{i}", 2**51 + i, json.dumps({"pod": f"p{i}"})) for i in range(9)]
        await asyncio.sleep(10)
        assert it.ahead() is None
        assert not any(task.done() for task in asking)
    lines = {record.getMessage() for record in caplog.records}  # equal ones are written once
    assert len(lines) == 1
    assert "ignored" in lines.pop()


@virtual
async def test_agents_that_do_not_take_the_latest_are_named_until_they_do() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master, alive(master, 1):
        key = master.pods()[0]["key"]
        store = MemoryStore(cluster)
        view = View(master, store, wall=lambda: "2026-01-01T00:00:00Z")

        async def put(version: int) -> None:
            value = Published(version=version).encode()
            await store.txn([], [Put(KEYS.published, value)])

        async def problems() -> list[str]:
            found: Any = (await view.status())["problems"]
            return [one["what"] for one in found if one["kind"] == "published-behind"]

        await put(16)
        about = json.dumps({"pod": key, "error": "No space left on device"})
        assert await master.publications.later("c1", 0)
        others = asyncio.create_task(master.publications.later("c2", 16))
        await put(17)
        assert await others
        more = asyncio.create_task(master.publications.later("c2", 17))
        assert await master.publications.later("c1", 16, about)
        assert not await problems()
        await asyncio.sleep(11)
        (what,) = await problems()
        assert what == (
            "1 of the pods that follow what is published do not have version 17: p1 has 16 "
            "(No space left on device)"
        )
        await asyncio.sleep(10)
        kvs = (await store.range(Range(KEYS.notices, prefix=True))).kvs
        assert [json.loads(kv.value)["problems"][0]["kind"] for kv in kvs] == ["published-behind"]
        shown = render(METRICS, master)
        assert "kontrol_master_published_version 17" in shown
        assert 'kontrol_master_published_pods{version="latest"} 1' in shown
        assert 'kontrol_master_published_pods{version="behind"} 1' in shown
        last = asyncio.create_task(master.publications.later("c1", 17, about))
        await asyncio.sleep(60)
        assert not await problems()
        assert not (await store.range(Range(KEYS.notices, prefix=True))).kvs
        last.cancel()
        more.cancel()


@virtual
async def test_a_version_that_is_another_one_since_a_restore_is_noted() -> None:
    async with board() as it:
        await it.publish(5, a=1)
        text = await it.publications.later("c1", 0) or b""
        same = it.ask("c1", 5, json.dumps({"pod": "x", "sum": crc32(text)}))
        await asyncio.sleep(10)
        assert it.ahead() is None
        other = it.ask("c2", 5, json.dumps({"pod": "y", "sum": crc32(text) - 1}))
        await asyncio.sleep(10)
        assert it.ahead() == 6
        await it.publish(7, a=1)
        assert sent(same)["version"] == sent(other)["version"] == 7
        assert it.ahead() is None


@virtual
async def test_the_same_version_is_not_sent_again_and_again() -> None:
    async with board() as it:
        await it.publish(1, a=1)
        began = asyncio.get_running_loop().time()
        for _ in range(5):
            assert await it.publications.later("c1", 0)
        assert asyncio.get_running_loop().time() - began >= 4


@virtual
async def test_a_version_that_a_pod_has_and_etcd_does_not_is_noted_unless_this_is_just_behind() -> (
    None
):
    async with board() as it:
        asking = it.ask("c1", 5)
        await asyncio.sleep(1)
        await it.publish(5, a=5)
        await asyncio.sleep(10)
        assert it.ahead() is None
        other = it.ask("c2", 9)
        await asyncio.sleep(10)
        assert it.ahead() == 9
        await it.store.txn([], [Delete(KEYS.published)])
        await asyncio.sleep(1)
        assert it.publications.current.version == 0
        await it.publish(10, a=1)
        assert it.ahead() is None
        assert sent(asking)["version"] == sent(other)["version"] == 10
