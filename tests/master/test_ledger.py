"""The ledger of a term that goes on writing after the store was restored."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest
from tests.master.support import KEYS
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.client import Network, Reliable
from tests.support.memory.requests import Request
from tests.support.simloop import virtual

from kontrol.ensemble.ensemble import Changes
from kontrol.ensemble.pod import Pod
from kontrol.master.highwater import HighWater
from kontrol.master.leader.ledger import Ledger
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Ending, Running
from kontrol.master.term import Deposed, Term
from kontrol.store.protocol import Put, Range

_Answer = TypeVar("_Answer")

PODS = [Pod(seq=i, app="app", id=f"p{i}", ip=f"10.0.0.{i}", key=f"k{i}", role="r") for i in (1, 2)]
GOOD = Ending(ok=True, why="")


class Slow(Reliable):
    """A network on which what is sent now takes `seconds`, and its answer `answer`."""

    seconds = 0.0
    answer = 0.0

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        answer = self.answer
        await asyncio.sleep(self.seconds)
        result = await super().call(request, do)
        await asyncio.sleep(answer)
        return result


class Book:
    """A ledger, opened by the leader of a store's first term."""

    term: Term

    def __init__(self, cluster: MemoryCluster, network: Network | None = None) -> None:
        self.store = MemoryStore(cluster, network)

    async def open(self) -> Ledger:
        lease = (await self.store.grant(60)).id
        key = KEYS.candidate(lease)
        put = await self.store.txn([], [Put(key, b"{}", lease)])
        clock = asyncio.get_running_loop().time
        self.term = Term(self.store, key, lease, put.header.revision, fover=3, clock=clock)
        records = Records(KEYS)
        ledger = Ledger(self.store, records, self.term)
        await ledger.open(HighWater(self.store, records, silence=1))
        return ledger

    async def contents(self) -> dict[str, bytes]:
        return {kv.key: kv.value for kv in (await self.store.range(Range("/", prefix=True))).kvs}


def running(number: int) -> Running:
    return Running(number, 1, 1, digest=f"d{number}", fingerprint="f", started=f"t{number}")


@virtual
async def test_a_store_that_went_back_is_not_written_to() -> None:
    cluster = MemoryCluster()
    book = Book(cluster)
    ledger = await book.open()
    await ledger.start(running(1))
    await ledger.commit(PODS, Changes(), GOOD, b'{"run":1}')
    early, before = cluster.snapshot(), await book.contents()
    await ledger.start(running(2))
    await ledger.commit(PODS[:1], Changes(), GOOD, b'{"run":2}')
    # The candidacy is in the snapshot: the fence by itself lets everything pass.
    cluster.restore(early, cluster=2)
    await ledger.trim()
    assert await book.contents() == before
    with pytest.raises(Deposed, match="the store was restored"):
        await ledger.start(running(3))
    assert await book.contents() == before


@virtual
async def test_a_run_that_the_store_forgot_is_not_acknowledged() -> None:
    cluster = MemoryCluster()
    book = Book(cluster)
    ledger = await book.open()
    early = cluster.snapshot()
    await ledger.start(running(1))
    cluster.restore(early, cluster=2)
    with pytest.raises(Deposed, match="the store was restored"):
        await ledger.commit(PODS, Changes(), GOOD, b'{"run":1}')
    assert KEYS.state not in await book.contents()
    assert KEYS.applied not in await book.contents()


@virtual
async def test_a_proof_finds_that_an_acknowledgement_is_undone() -> None:
    """By a restore that has the candidacy, and all that its followers look at."""
    cluster = MemoryCluster()
    book = Book(cluster)
    ledger = await book.open()
    await ledger.start(running(1))
    early = cluster.snapshot()
    await ledger.commit(PODS, Changes(), GOOD, None)
    await book.term.prove()
    cluster.restore(early, bump=1_000_000, mark_compacted=True)
    with pytest.raises(Deposed, match="the store was restored"):
        await book.term.prove()
    assert book.term.deposed


@virtual
async def test_a_proof_that_a_write_overtakes_stands() -> None:
    """The proof compares what was there when it was sent."""
    cluster = MemoryCluster()
    slow = Slow()
    book = Book(cluster, slow)
    ledger = await book.open()
    async with asyncio.TaskGroup() as group:
        slow.seconds = 1.0
        proof = group.create_task(book.term.prove())
        await asyncio.sleep(0.5)
        slow.seconds = 0.0
        await ledger.start(running(1))
        assert not proof.done()
    await book.term.prove()
    assert not book.term.deposed


@virtual
async def test_a_proof_during_a_write_compares_nothing_that_it_may_move() -> None:
    cluster = MemoryCluster()
    slow = Slow()
    book = Book(cluster, slow)
    ledger = await book.open()
    async with asyncio.TaskGroup() as group:
        slow.answer = 1.0
        start = group.create_task(ledger.start(running(1)))
        await asyncio.sleep(0.5)
        slow.answer = 0.0
        await book.term.prove()
        assert not start.done()
    assert not book.term.deposed
