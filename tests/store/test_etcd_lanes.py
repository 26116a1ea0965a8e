"""Batches of refreshes: whatever is given up, or comes in pieces, each gets its own answer."""

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.etcd_helpers import DEADLINE, QUICK, at_most, client, refresh
from tests.support.h2_server import H2Server, Served

from kontrol.store.etcd import leases
from kontrol.store.etcd.hpack import varint
from kontrol.store.etcd.leases import _Refresh, _ttl
from kontrol.store.etcd.messages import KEEP_ALIVE
from kontrol.store.protocol import StoreError, Unavailable

HEADER = {"cluster_id": 2**63 + 5, "member_id": 2**64 - 1, "revision": 10**9}


def answer(lease: int, ttl: int, header: dict[str, int] | None = None) -> bytes:
    message = KEEP_ALIVE.response(header=HEADER if header is None else header, ID=lease, TTL=ttl)
    data: bytes = message.SerializeToString()
    return data


def ttl_of(lease: int) -> int:
    """Return the TTL that the servers here give: no two neighbours have the same."""
    return lease % 1000 + 1


def seen(message: bytes) -> int:
    lease: int = KEEP_ALIVE.request.FromString(message).ID
    return lease


@given(st.integers(1, 2**62))
def test_a_lease_is_encoded_as_protobuf_does(lease: int) -> None:
    encoded = KEEP_ALIVE.request(ID=lease).SerializeToString()
    assert leases._FIELD + varint(lease) == encoded


async def _refresh_of(lease: int) -> _Refresh:
    return _Refresh(lease, varint(lease), 0.0, asyncio.get_running_loop().create_future())


@given(st.integers(1, 2**62), st.integers(-1, 2**40), st.booleans(), st.integers(1, 2**62))
def test_an_answer_is_read_as_protobuf_reads_it(
    lease: int, ttl: int, bare: bool, other: int
) -> None:
    asked = asyncio.run(_refresh_of(lease))
    header: dict[str, int] | None = {} if bare else None
    assert _ttl(answer(lease, ttl, header), asked, "m") == max(ttl, 0)
    assert _ttl(answer(other, ttl, header), asked, "m") == (max(ttl, 0) if other == lease else None)
    new_field = b"\x58\x07"  # of a later version
    assert _ttl(answer(lease, ttl, header) + new_field, asked, "m") == max(ttl, 0)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_answer_or_none(data: bytes) -> None:
    asked = asyncio.run(_refresh_of(300))
    found = _ttl(data, asked, "m")
    try:
        message = KEEP_ALIVE.response.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own
        assert found is None
    else:
        assert found == (max(message.TTL, 0) if message.ID == 300 else None)


async def serve(served: Served) -> None:
    """Answer refreshes in order, in pieces and in batches."""
    chance = random.Random(served.stream)
    while (message := await served.receive()) is not None:
        batch = [message]
        while chance.random() < 0.9 and not served.messages.empty():
            if (more := served.messages.get_nowait()) is None:
                return
            batch.append(more)
        data = b"".join(
            b"\0" + len(each).to_bytes(4, "big") + each
            for each in (answer(seen(m), ttl_of(seen(m))) for m in batch)
        )
        cut = chance.randrange(len(data))
        await served.send_raw(data[:cut])
        await asyncio.sleep(0)
        await served.send_raw(data[cut:])


PLAN = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), min_size=1, max_size=60)


@given(PLAN)
def test_refreshes_that_are_given_up_shift_no_answer(plan: list[tuple[int, int]]) -> None:
    """`plan` has leases, and after how many turns of the loop each is given up, 4 for never."""

    async def run() -> None:
        async with H2Server(serve) as server, client([server.endpoint]) as store:

            async def one(lease: int, turns: int) -> None:
                task = asyncio.create_task(refresh(store, lease))
                if turns < 4:
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        assert await task == ttl_of(lease)
                else:
                    assert await task == ttl_of(lease)

            async with asyncio.timeout(DEADLINE):
                await store.refresh(8)  # so that the others are sent without a wait
                await asyncio.gather(*(one(8 * lease, turns) for lease, turns in plan))

    asyncio.run(run())


async def test_refreshes_of_one_turn_leave_in_one_frame_for_each_stream() -> None:
    async with H2Server(serve) as server, client([server.endpoint]) as store:
        ids = [8 * i for i in range(1, 1001)]  # all of one stream
        assert await store.refresh(8) == ttl_of(8)
        [connection] = server.connections
        before = connection.received
        found = await asyncio.gather(*(store.refresh(lease) for lease in ids))
        assert found == list(map(ttl_of, ids))
        messages = sum(5 + len(KEEP_ALIVE.request(ID=i).SerializeToString()) for i in ids)
        assert connection.received - before - messages <= 3 * 9 + 2 * 13  # heads, and windows


async def test_those_that_were_given_up_are_not_sent_again() -> None:
    came: list[list[int]] = []
    got, end = asyncio.Event(), asyncio.Event()

    async def break_once(served: Served) -> None:
        came.append([])
        while (message := await served.receive()) is not None:
            lease = seen(message)
            came[-1].append(lease)
            if len(came) > 1:
                await served.send(answer(lease, ttl_of(lease)))
            elif lease == 24:
                got.set()
                await end.wait()
                served.end(14, "etcdserver: no leader")

    async with H2Server(break_once) as server, client([server.endpoint]) as store:
        tasks = [asyncio.create_task(refresh(store, 8 * i)) for i in range(1, 4)]
        await got.wait()
        tasks[1].cancel()
        await asyncio.wait(tasks[1:2])
        end.set()
        answers = await asyncio.gather(tasks[0], tasks[2])
        assert answers[0] == ttl_of(8)
        assert answers[1] == ttl_of(24)
    assert came == [[8, 16, 24], [8, 24]]


async def test_a_lane_whose_task_has_ended_begins_again() -> None:
    async with H2Server(serve) as server, client([server.endpoint]) as store:
        assert await store.refresh(8) == ttl_of(8)
        task = store._keepalives._lanes[0]._task
        assert task is not None
        task.cancel()  # as an error that no one foresaw would end it
        await asyncio.wait({task})
        assert await store.refresh(8) == ttl_of(8)


async def test_an_answer_for_another_lease_ends_the_stream_and_all_are_sent_again() -> None:
    streams = 0

    async def confuse(served: Served) -> None:
        nonlocal streams
        streams += 1
        first = streams == 1
        while (message := await served.receive()) is not None:
            lease = seen(message)
            await served.send(answer(lease + 8 * (first and lease == 24), ttl_of(lease)))

    async with H2Server(confuse) as server, client([server.endpoint]) as store:
        found = await asyncio.gather(*(store.refresh(8 * i) for i in range(1, 6)))
        assert found == [ttl_of(8 * i) for i in range(1, 6)]
    assert streams == 2


async def test_an_answer_that_was_not_asked_for_ends_the_stream() -> None:
    streams = 0

    async def generous(served: Served) -> None:
        nonlocal streams
        streams += 1
        while (message := await served.receive()) is not None:
            twice = [answer(seen(message), 5)] * (2 if streams == 1 else 1)
            await served.send(*twice)

    async with H2Server(generous) as server, client([server.endpoint]) as store:
        for _ in range(5):
            assert await store.refresh(8) == 5
            await asyncio.sleep(0.15)  # longer than the pause before another stream
    assert streams == 2


@pytest.mark.parametrize(
    "end",
    [(14, "etcdserver: no leader"), (13, "broken"), (16, "etcdserver: invalid auth token")],
)
async def test_a_stream_that_fails_fails_no_refresh_while_there_is_time(
    end: tuple[int, str],
) -> None:
    failures = 0

    async def failing(served: Served) -> None:
        nonlocal failures
        if failures < 2:
            failures += 1
            await served.receive()
            served.end(*end)
        else:
            await serve(served)

    async with H2Server(failing) as server, client([server.endpoint]) as store:
        if end[0] == 16:  # we have no user: this is no token that expired
            with pytest.raises(StoreError, match="set a user"):
                await store.refresh(8)
        else:
            assert await store.refresh(8) == ttl_of(8)


async def test_a_refusal_ends_the_refreshes_that_wait_with_its_error() -> None:
    async def refuse(served: Served) -> None:
        await served.receive()
        served.end(12, "unknown service")

    async with H2Server(refuse) as server, client([server.endpoint]) as store:
        found = await asyncio.gather(
            *(store.refresh(8 * i) for i in range(1, 4)), return_exceptions=True
        )
    assert [type(each) for each in found] == [StoreError] * 3
    assert "unknown service" in str(found[0])


async def test_refreshes_are_bounded_while_a_member_reads_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "MAX_PENDING", 5_000)

    async def deaf(served: Served) -> None:
        await asyncio.Event().wait()

    async with H2Server(deaf) as server, client([server.endpoint], QUICK) as store:
        with at_most(QUICK.timeout + 1):
            found = await asyncio.gather(
                *(refresh(store, 8 * i) for i in range(1, 7_001)), return_exceptions=True
            )
    assert all(isinstance(each, Unavailable) for each in found)
    assert sum("refreshes wait for etcd already" in str(each) for each in found) == 2_000
