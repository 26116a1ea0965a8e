"""Watches against servers that behave as other releases of etcd do, and as none should."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.store.etcd_helpers import DEADLINE, at_most, client, confirmation, take
from tests.support.fake_etcd import FakeEtcd, canceled, changed, created, progress

from kontrol.store.etcd import watch as watch_module
from kontrol.store.etcd.messages import Wire
from kontrol.store.protocol import Compacted, Denied, Restored


async def test_a_progress_answer_that_overtakes_an_event_confirms_nothing() -> None:
    async def before_3_5_8(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        await anext(requests)
        yield created(1)
        await anext(requests)
        yield progress(5)
        await asyncio.sleep(0.1)  # the event is on its way
        yield changed(5)
        async for _ in requests:
            yield progress(5)

    async with FakeEtcd(before_3_5_8, revision=5) as etcd, client([etcd.endpoint]) as store:
        asked = asyncio.get_running_loop().time()
        async with store.watch("/k/", prefix=True, start=2) as watch:
            await watch.confirm()
            events = await confirmation(aiter(watch), asked)
    assert [e.kv.mod_revision for e in events] == [5]


async def test_progress_that_nothing_contradicts_confirms() -> None:
    async def answering(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        await anext(requests)
        yield created(1)
        async for _ in requests:
            yield progress(5)

    async with FakeEtcd(answering, revision=5) as etcd, client([etcd.endpoint]) as store:
        asked = asyncio.get_running_loop().time()
        async with store.watch("/k/", prefix=True, start=2) as watch:
            await watch.confirm()
            with at_most(2):
                assert await confirmation(aiter(watch), asked) == []


async def test_a_server_silent_about_a_start_in_the_future_is_not_asked() -> None:
    questioned = asyncio.Event()

    async def since_3_5_22(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        await anext(requests)
        yield created(1)
        async for _ in requests:
            questioned.set()  # and no answer

    async with FakeEtcd(since_3_5_22, revision=1) as etcd, client([etcd.endpoint]) as store:
        loop = asyncio.get_running_loop()
        async with store.watch("/k/", prefix=True, start=2) as watch:
            batches = aiter(watch)
            for _ in range(3):
                asked = loop.time()
                await watch.confirm()
                with at_most(1):
                    assert await confirmation(batches, asked) == []
    assert not questioned.is_set()


async def test_a_stream_that_answers_nothing_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch_module, "STALL", 0.4)
    streams = 0

    async def silent_at_first(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        nonlocal streams
        streams += 1
        await anext(requests)
        yield created(1)
        async for _ in requests:
            if streams == 3:
                yield changed(5)

    async with (
        FakeEtcd(silent_at_first, revision=5) as etcd,
        client([etcd.endpoint]) as store,
        store.watch("/k/", prefix=True, start=2) as watch,
    ):
        await take(aiter(watch), 1)
    assert streams == 3


async def test_events_from_before_the_start_are_dropped() -> None:
    async def repeating(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        first = await anext(requests)
        yield created(9)
        yield changed(4, 5)
        yield changed(5, 6)
        if first.create_request.start_revision == 5:
            return  # the stream ends, and is resumed
        yield changed(7)
        async for _ in requests:
            pass

    async with (
        FakeEtcd(repeating, revision=9) as etcd,
        client([etcd.endpoint]) as store,
        store.watch("/k/", prefix=True, start=5) as watch,
    ):
        events = await take(aiter(watch), 3)
    assert [e.kv.mod_revision for e in events] == [5, 6, 7]


async def test_a_stream_lost_between_fragments_is_resumed_before_the_first() -> None:
    starts: list[int] = []

    async def breaking(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        starts.append((await anext(requests)).create_request.start_revision)
        yield created(9)
        yield changed(5, 5, fragment=True)
        if len(starts) == 1:
            return
        yield changed(5)
        async for _ in requests:
            pass

    async with (
        FakeEtcd(breaking, revision=9) as etcd,
        client([etcd.endpoint]) as store,
        store.watch("/k/", prefix=True, start=2) as watch,
    ):
        async with asyncio.timeout(DEADLINE):
            batch = await anext(aiter(watch))
    assert [e.kv.mod_revision for e in batch.events] == [5, 5, 5]
    assert starts == [2, 2]


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (
            canceled("etcdserver: mvcc: required revision has been compacted", compacted=8),
            Compacted,
        ),
        (canceled("etcdserver: permission denied"), Denied),
        (canceled("rpc error: code = Unauthenticated: invalid auth token"), Denied),
    ],
)
async def test_a_refusal_that_calls_itself_created_too(
    refusal: Wire, error: type[Exception]
) -> None:
    async def refusing(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        await anext(requests)
        yield refusal
        async for _ in requests:
            pass

    async with (
        FakeEtcd(refusing, revision=9) as etcd,
        client([etcd.endpoint]) as store,
        store.watch("/k/", prefix=True, start=2) as watch,
    ):
        with pytest.raises(error):
            await take(aiter(watch), 1)


async def test_a_member_of_another_cluster_is_found_out_by_its_stream() -> None:
    async def other_store(requests: AsyncIterator[Wire]) -> AsyncIterator[Wire]:
        await anext(requests)
        message = created(9)
        message.header.cluster_id = 8
        yield message
        async for _ in requests:
            pass

    async with (
        FakeEtcd(other_store, revision=9) as etcd,
        client([etcd.endpoint]) as store,
        store.watch("/k/", prefix=True, start=2) as watch,
    ):
        with pytest.raises(Restored, match="cluster 8 and was 7"):
            await take(aiter(watch), 1)
