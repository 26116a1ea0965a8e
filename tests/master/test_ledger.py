"""The ledger of a term that goes on writing after the store went back beneath it."""

import asyncio

import pytest
from tests.master.support import KEYS
from tests.support.simloop import virtual

from kontrol.ensemble.difference import Changes
from kontrol.ensemble.pod import Pod
from kontrol.master.election.term import Deposed, Term
from kontrol.master.highwater import HighWater
from kontrol.master.leader.ledger import Ledger
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Ending, Running
from kontrol.store.memory import MemoryCluster, MemoryStore
from kontrol.store.protocol import Put, Range

PODS = [Pod(seq=i, app="app", id=f"p{i}", ip=f"10.0.0.{i}", key=f"k{i}", role="r") for i in (1, 2)]
GOOD = Ending(ok=True, why="")


class Book:
    """A ledger, opened by the leader of a store's first term."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.store = MemoryStore(cluster)

    async def open(self) -> Ledger:
        lease = (await self.store.grant(60)).id
        key = KEYS.candidate(lease)
        put = await self.store.txn([], [Put(key, b"{}", lease)])
        clock = asyncio.get_running_loop().time
        term = Term(self.store, key, lease, put.header.revision, fover=3, clock=clock)
        records = Records(KEYS)
        ledger = Ledger(self.store, records, term)
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
    with pytest.raises(Deposed, match="the store went back"):
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
    with pytest.raises(Deposed, match="the store went back"):
        await ledger.commit(PODS, Changes(), GOOD, b'{"run":1}')
    assert KEYS.state not in await book.contents()
    assert KEYS.applied not in await book.contents()
