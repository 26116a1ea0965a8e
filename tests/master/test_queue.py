"""Keepalives that wait to be written: which replaces which, and which go together."""

import asyncio
from dataclasses import replace

import pytest
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
async def test_a_batch_has_at_most_sixteen() -> None:
    queue = WriteQueue()
    for number in range(1, 40):
        add(queue, keepalive(number))
    assert [len(await queue.take(TTL)) for _ in range(3)] == [16, 16, 7]


@virtual
async def test_what_is_urgent_goes_first_and_the_rest_fills_the_batch() -> None:
    queue = WriteQueue()
    add(queue, keepalive(1), urgent=False)
    add(queue, keepalive(2))
    assert ids(await queue.take(TTL)) == ["p2", "p1"]


@virtual
async def test_no_two_of_a_batch_have_the_same_key_or_id() -> None:
    for second in (keepalive(2, key="k1"), keepalive(2, id="p1"), keepalive(1, nonce="b")):
        queue = WriteQueue()
        add(queue, keepalive(1))
        add(queue, second)
        add(queue, keepalive(3))
        assert [len(await queue.take(TTL)) for _ in range(2)] == [1, 2]


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
    for entry in (old, told_more, unanswered):
        queue.add(entry.record, 10, entry.refresh, urgent=True)
    await asyncio.sleep(TTL / 2 + 0.1)
    assert ids(await queue.take(TTL)) == ["p2"]


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
