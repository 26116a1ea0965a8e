"""Corners of leading and of taking keepalives, each of which once went wrong."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from tests.master.reports import Slow
from tests.master.support import CONFIG, KEYS, Stub, alive, record, running
from tests.master.test_registry import Faulty
from tests.master.test_ttl import lead_with
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request
from tests.support.simloop import virtual

from kontrol.master.master import Master
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Put, Range, Unavailable


async def repeated(master: Master, raw: str, every: float, told: Callable[[str], None]) -> None:
    """Report again and again; `told` hears what came of each report."""
    while True:
        try:
            await master.ping(raw)
            told("taken")
        except Refused as error:
            told(error.name)
        await asyncio.sleep(every)


@virtual
async def test_a_raised_ttl_makes_no_pod_count_as_unresponsive() -> None:
    """The lease of a pod that just reported has less left than half of the new TTL."""
    conflicting = (
        record(9, ip="10.0.0.1"),
        record(1, nonce="a"),
    )
    for raw in conflicting:
        cluster = MemoryCluster()
        mine: list[str] = []
        theirs: list[str] = []
        async with running(cluster, ttl=6.0) as master, asyncio.TaskGroup() as group:
            await master.ping(record(1, nonce="b"))
            tasks = [group.create_task(repeated(master, record(1, nonce="b"), 2, mine.append))]
            await asyncio.sleep(0.9)
            tasks += [group.create_task(repeated(master, raw, 0.75, theirs.append))]
            await asyncio.sleep(20)
            await lead_with(cluster, master, 24.0)
            await asyncio.sleep(10)
            for task in tasks:
                task.cancel()
        assert set(mine) == {"taken"}
        assert "taken" not in theirs


@virtual
async def test_a_candidate_without_a_lease_keeps_no_other_waiting() -> None:
    """Nothing would ever end it: an operator or a bug wrote it."""
    cluster, callback = MemoryCluster(), Stub()
    await MemoryStore(cluster).txn([], [Put(f"{KEYS.candidates}junk", b"junk")])
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(10)
        assert master.leader_id == "m1"
        assert len(callback.runs) == 1


@pytest.mark.parametrize("seconds", [3.0, 3.6, 4.2])
@virtual
async def test_round_trips_of_seconds_leave_a_leader_in_its_term(seconds: float) -> None:
    """The time to the next proof counts from when the last was sent, as its validity does."""
    cluster, callback = MemoryCluster(), Stub()
    network = Slow(seconds / 2)
    async with running(cluster, callback, network=network, ttl=25.0, fover=15.0) as master:
        await asyncio.sleep(300)
        assert master.counts.terms == 1


@virtual
async def test_who_deregisters_while_the_brake_holds_is_not_told_lost() -> None:
    """The pods are gone from the store already: only their registrations change."""
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master, alive(master, 1):
        async with alive(master, 2, 3, 4, 5, 6):
            await asyncio.sleep(5)
        await asyncio.sleep(CONFIG.ttl + 4)
        assert len(callback.runs) == 1
        for number in (2, 3, 4, 5, 6):
            await master.ping(record(number, n=1, down=True))
        await asyncio.sleep(3 * CONFIG.ttl)
        assert callback.runs[-1].changes == {"left": ["p2", "p3", "p4", "p5", "p6"]}


@virtual
async def test_a_rollback_that_cannot_be_read_ends_no_term() -> None:
    cluster, callback, network = MemoryCluster(), Stub(), Faulty()
    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await asyncio.sleep(5)
        lost = iter([True] * 3)

        def before(request: Request) -> Exception | None:
            reads = isinstance(request, Range) and request.key.startswith(KEYS.states)
            return Unavailable("lost") if reads and next(lost, False) else None

        network.before = before
        with contextlib.suppress(Unavailable):
            answer = await master.requests.ask("rollback", "ann", run=1, timeout=10)
            assert answer["done"] is True
        assert master.counts.terms == 1
