"""Keepalives that wait to be written: which replaces which, and which go together."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Keepalive
from kontrol.master.registry import queue as module
from kontrol.master.registry.leases import LeaseRefresh
from kontrol.master.registry.queue import Entry, WriteQueue, Written
from kontrol.store.protocol import Unavailable

TTL = 8.0


def keepalive(number: int, n: int | None = 0, **changes: object) -> Keepalive:
    record = Keepalive("app", f"p{number}", f"10.0.0.{number}", f"k{number}", "r", nonce="a", n=n)
    return replace(record, **changes)  # type: ignore[arg-type]  # fields of it


def add(queue: WriteQueue, record: Keepalive, size: int = 10, *, urgent: bool = True) -> Entry:
    return queue.add(record, size, None, urgent=urgent)


def ids(batch: list[Entry]) -> list[str]:
    return [entry.record.id for entry in batch]


@virtual
async def test_a_later_report_of_a_process_takes_the_place_of_its_earlier_one() -> None:
    queue = WriteQueue()
    first = add(queue, keepalive(1, n=3))
    for n in (3, 4):  # the same again counts as well: it is still being reported
        await asyncio.sleep(1)
        assert add(queue, keepalive(1, n=n), 20 + n) is first
        assert (first.record.n, first.size) == (n, 20 + n)
        assert first.reported == asyncio.get_running_loop().time()
    assert len(queue) == 1


@virtual
async def test_an_earlier_report_that_comes_late_takes_no_place() -> None:
    queue = WriteQueue()
    first = add(queue, keepalive(1, n=3))
    late = add(queue, keepalive(1, n=2))
    assert late is not first
    assert first.record.n == 3
    assert len(queue) == 2


@virtual
async def test_without_a_counter_the_last_report_counts() -> None:
    queue = WriteQueue()
    first = add(queue, keepalive(1, n=None, payload="x"))
    assert add(queue, keepalive(1, n=None, payload="y")) is first
    assert first.record.payload == "y"
    assert add(queue, keepalive(1, n=2)) is first
    assert add(queue, keepalive(1, n=None)) is not first


@virtual
async def test_a_batch_has_at_most_sixty_three() -> None:
    queue = WriteQueue()
    for number in range(1, 140):
        add(queue, keepalive(number))
    assert [len(await queue.take(TTL)) for _ in range(3)] == [63, 63, 13]


@virtual
async def test_what_is_urgent_goes_first_and_the_rest_fills_the_batch() -> None:
    queue = WriteQueue()
    add(queue, keepalive(1), urgent=False)
    add(queue, keepalive(2))
    assert ids(await queue.take(TTL)) == ["p2", "p1"]


@virtual
async def test_a_batch_fills_while_another_one_is_under_way() -> None:
    loop, queue = asyncio.get_running_loop(), WriteQueue()
    add(queue, keepalive(1))
    first = await queue.take(TTL)
    begun = loop.time()
    add(queue, keepalive(2))
    filling = asyncio.create_task(queue.take(TTL))
    await asyncio.sleep(0.01)
    add(queue, keepalive(3))
    assert ids(await filling) == ["p2", "p3"]
    assert loop.time() - begun == pytest.approx(0.02), "it waits for no more than that"
    add(queue, keepalive(4))
    filling = asyncio.create_task(queue.take(TTL))
    await asyncio.sleep(0.01)
    for number in range(5, 67):
        add(queue, keepalive(number))
    assert len(await filling) == 63
    assert loop.time() - begun == pytest.approx(0.03), "it is full"
    add(queue, keepalive(1, n=1))
    queue.done(first)
    filling = asyncio.create_task(queue.take(TTL))
    await asyncio.sleep(0.01)
    assert not filling.done()
    filling.cancel()


@virtual
async def test_what_comes_once_nothing_is_under_way_is_taken_immediately() -> None:
    loop, queue = asyncio.get_running_loop(), WriteQueue()
    add(queue, keepalive(1))
    first = await queue.take(TTL)
    add(queue, keepalive(2))
    add(queue, keepalive(1, n=1))
    begun = loop.time()
    taking = asyncio.create_task(queue.take(TTL))
    await asyncio.sleep(0.005)
    queue.done(first)
    assert ids(await taking) == ["p2", "p1"]
    assert loop.time() - begun == pytest.approx(0.005)


@virtual
async def test_no_two_with_the_same_key_or_id_are_under_way() -> None:
    for second in (keepalive(2, key="k1"), keepalive(2, id="p1"), keepalive(1, nonce="b")):
        queue = WriteQueue()
        first, blocked, other = (add(queue, one) for one in (keepalive(1), second, keepalive(3)))
        batch = await queue.take(TTL)
        assert batch == [first, other]
        add(queue, keepalive(4))
        later = await queue.take(TTL)
        assert ids(later) == ["p4"]
        queue.done(batch)
        assert await queue.take(TTL) == [blocked]
        assert len(queue) == 0


@virtual
async def test_those_that_wait_for_one_key_delay_no_other_pod() -> None:
    queue = WriteQueue()
    for number in range(1, 2000):
        add(queue, keepalive(number, key="k1"))
    add(queue, keepalive(2000))
    assert ids(await queue.take(TTL)) == ["p1", "p2000"]


@virtual
async def test_what_is_urgent_passes_what_is_to_be_confirmed_for_the_same_pod() -> None:
    queue = WriteQueue()
    confirmed = add(queue, keepalive(1), urgent=False)
    changed = add(queue, keepalive(1, n=1))
    newer = add(queue, keepalive(1, nonce="b"))
    batches = []
    for _ in range(3):
        batches.append(await queue.take(TTL))
        queue.done(batches[-1])
    assert batches == [[changed], [newer], [confirmed]]


@virtual
async def test_one_that_became_ready_twice_is_taken_once() -> None:
    queue = WriteQueue()
    confirmed = add(queue, keepalive(1), urgent=False)
    add(queue, keepalive(1, n=1))
    for number in range(2, 64):
        add(queue, keepalive(number))
    assert list(queue).count(confirmed) == 1
    full = await queue.take(TTL)
    assert len(full) == 63
    assert list(queue) == [confirmed]
    queue.done(full)
    assert await queue.take(TTL) == [confirmed]
    assert len(queue) == 0


@virtual
async def test_the_time_to_fill_begins_with_the_first_of_a_batch() -> None:
    loop, queue = asyncio.get_running_loop(), WriteQueue()
    add(queue, keepalive(1))
    await queue.take(TTL)
    add(queue, keepalive(2))
    await asyncio.sleep(0.015)
    for number in range(3, 65):
        add(queue, keepalive(number))
    assert len(await queue.take(TTL)) == 63
    begun = loop.time()
    add(queue, keepalive(100))
    taking = asyncio.create_task(queue.take(TTL))
    await asyncio.sleep(0.015)
    add(queue, keepalive(101))
    assert ids(await taking) == ["p100", "p101"]
    assert loop.time() - begun == pytest.approx(0.02)
    add(queue, keepalive(102))
    begun = loop.time()
    assert ids(await queue.take(TTL)) == ["p102"]
    assert loop.time() - begun == pytest.approx(0.02)


@virtual
async def test_what_is_urgent_does_not_pass_what_is_being_written() -> None:
    queue = WriteQueue()
    add(queue, keepalive(1), urgent=False)
    batch = await queue.take(TTL)
    changed = add(queue, keepalive(1, n=1))
    add(queue, keepalive(2))
    assert ids(await queue.take(TTL)) == ["p2"]
    queue.done(batch)
    assert await queue.take(TTL) == [changed]


PODS = st.builds(
    lambda key, pod, nonce, down: keepalive(0, key=f"k{key}", id=f"p{pod}", nonce=nonce, down=down),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from("ab"),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PODS, st.booleans()),
        st.tuples(st.sampled_from(["take", "done"]), st.integers(0, 3), st.none()),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_comes_every_entry_is_taken_once_and_in_order_of_its_key_and_id(
    steps: list[tuple[str, Keepalive | int, bool | None]],
) -> None:
    @virtual
    async def scenario() -> None:
        queue = WriteQueue()
        added: dict[Entry, int] = {}  # and when each was put in its place
        taken: list[Entry] = []
        under_way: list[list[Entry]] = []

        async def take() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    batch = await queue.take(100 * TTL)
                    names = [lane for entry in batch for lane in entry.lanes]
                    busy = {lane for one in under_way for entry in one for lane in entry.lanes}
                    assert len(names) == len(set(names))
                    assert busy.isdisjoint(names)
                    waiting = set(queue)
                    for entry in batch:
                        for other in waiting:
                            touches = not set(entry.lanes).isdisjoint(other.lanes)
                            earlier = (not other.urgent, added[other]) < (
                                not entry.urgent,
                                added[entry],
                            )
                            assert not (touches and earlier)
                    under_way.append(batch)
                    taken.extend(batch)

        for what, which, urgent in steps:
            if isinstance(which, Keepalive):
                added.setdefault(add(queue, which, urgent=bool(urgent)), len(added))
            elif what == "take":
                await take()
            elif under_way:
                queue.done(under_way.pop(which % len(under_way)))
            assert len(queue) == len(list(queue)) == len(set(queue)) == len(added) - len(taken)
        while len(queue) or under_way:
            while under_way:
                queue.done(under_way.pop())
            if len(queue):
                before = len(taken)
                await take()
                assert len(taken) > before, "nothing goes on"
        assert sorted(map(id, taken)) == sorted(map(id, added))
        assert not queue._lanes
        assert not queue._entries

    scenario()


@virtual
async def test_a_batch_is_bounded_in_bytes_but_takes_one_of_any_size() -> None:
    half = module._BATCH_BYTES // 4  # each counts twice
    queue = WriteQueue()
    for number, size in enumerate((half, half, 1, 3 * half, 1, half, half + 1)):
        add(queue, keepalive(number), size)
    batches = [[entry.size for entry in await queue.take(TTL)] for _ in range(5)]
    assert batches == [[half, half], [1], [3 * half], [1, half], [half + 1]]


@virtual
async def test_what_was_not_reported_for_half_a_ttl_is_given_up() -> None:
    queue = WriteQueue()
    old = add(queue, keepalive(1))
    told_more = queue.add(keepalive(2), 10, LeaseRefresh(7, ttl=20), urgent=True)
    unanswered = queue.add(keepalive(3), 10, LeaseRefresh(8), urgent=True)
    await asyncio.sleep(TTL / 2)
    assert ids(await queue.take(TTL)) == ["p1", "p2", "p3"]  # just in time
    queue = WriteQueue()
    for entry in (old, told_more, unanswered):
        queue.add(entry.record, 10, entry.refresh, urgent=True)
    behind = queue.add(keepalive(3, nonce="b"), 10, None, urgent=True)
    await asyncio.sleep(TTL / 2 + 0.1)
    assert ids(await queue.take(TTL)) == ["p2"]
    assert isinstance(await behind.answer, Unavailable)
    assert len(queue) == 0


@virtual
async def test_more_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING", 2)
    queue = WriteQueue()
    add(queue, keepalive(1))
    add(queue, keepalive(2))
    with pytest.raises(Unavailable, match="2 keepalives wait"):
        add(queue, keepalive(3))
    add(queue, keepalive(2, n=1))  # it waits already


@virtual
async def test_an_entry_is_answered_once() -> None:
    queue = WriteQueue()
    entry = add(queue, keepalive(1))
    entry.settle(Written(7))
    entry.settle(Unavailable("later"))
    assert await entry.answer == Written(7)
