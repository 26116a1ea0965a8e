"""No write of a master is done twice: copies of all of them arrive late, after every later one.

etcd may commit a proposal that it never answered, long after the client has tried again and gone
on. So whenever a master writes, every earlier transaction of its own is done once more; nothing may
change. (Chunks of an acknowledged list are written once, under the number of their run, and may
come back: the next run sweeps them.)
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tests.master.support import BAD, GOOD, KEYS, Stub, alive, record, running
from tests.master.test_leading import ledger, value
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.store.protocol import Ambiguous, LeaseGone, Put, Range

_Answer = TypeVar("_Answer")


class Replaying(Faulty):
    """After each write, does every earlier one again, and keeps what that changed."""

    def __init__(self, cluster: MemoryCluster) -> None:
        super().__init__()
        self.changed: list[tuple[Txn, dict[str, tuple[bytes | None, bytes | None]]]] = []
        self._core = cluster.core
        self._written: list[Txn] = []

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        answer = await super().call(request, do)
        if isinstance(request, Txn) and request.writes:
            self._written.append(request)
            for earlier in self._written:
                before = self._contents()
                try:
                    self._core.txn(earlier)
                except LeaseGone:
                    continue
                after = self._contents()
                if before != after:
                    keys = before.keys() | after.keys()
                    self.changed.append(
                        (
                            earlier,
                            {
                                key: (before.get(key), after.get(key))
                                for key in sorted(keys)
                                if before.get(key) != after.get(key)
                            },
                        )
                    )
        return answer

    def _contents(self) -> dict[str, bytes]:
        kvs = self._core.range(Range(KEYS.root, prefix=True)).kvs
        return {kv.key: kv.value for kv in kvs if not kv.key.startswith(f"{KEYS.applied}/")}


@virtual
async def test_copies_of_all_writes_that_arrive_late_change_nothing() -> None:
    cluster, callback = MemoryCluster(), Stub()
    network = Replaying(cluster)
    outcomes = iter([GOOD, BAD, BAD, GOOD, BAD])

    def outcome(request: RunRequest) -> RunOutcome:
        it = next(outcomes, GOOD)
        return replace(it, state=json.dumps({"run": request.run}).encode()) if it.ok else it

    callback.outcome = outcome
    async with running(cluster, callback, network=network) as master, alive(master, 1, 2):
        await asyncio.sleep(5)
        for n in range(4):
            await master.ping(record(3, n=n, payload=n))
            await asyncio.sleep(4)
        await master.requests.ask("rollback", "ann", run=1, timeout=5)
        await asyncio.sleep(2)
        await master.requests.ask("rollback", "ann", run=4, timeout=5)
        await master.ping(record(3, n=4, down=True))
        await asyncio.sleep(2)
        callback.replace("f2")
        await asyncio.sleep(3)
        await master.ping(record(4, ip="10.0.0.9"))
        await master.ping(record(4, ip="10.0.0.10", nonce="b"))
        await asyncio.sleep(15)
    assert len(callback.runs) > 6
    assert network.changed == []


@virtual
async def test_a_rollback_whose_answer_is_lost_is_done_once() -> None:
    cluster, network = MemoryCluster(), Faulty()
    callback = Stub(
        outcome=lambda request: replace(GOOD, state=json.dumps({"run": request.run}).encode())
    )
    lost = 0

    def lose(request: Request) -> Exception | None:
        nonlocal lost
        if lost or not writes(request):
            return None
        assert isinstance(request, Txn)
        if any(isinstance(op, Put) and op.key == KEYS.state_of(3) for op in request.then):
            lost += 1
            return Ambiguous("lost")
        return None

    async with running(cluster, callback, network=network) as master, alive(master, 1):
        await asyncio.sleep(3)
        await master.ping(record(2))
        await asyncio.sleep(3)
        network.after = lose
        answer = await master.requests.ask("rollback", "ann", run=1, timeout=5)
        assert (lost, answer["run"]) == (1, 3)
        await asyncio.sleep(5)
        assert await value(cluster, KEYS.state) == b'{"run": 1}'
    assert [e["run"] for e in await ledger(cluster) if e["reason"] == "rollback"] == [3]


@virtual
async def test_a_rollback_whose_leader_dies_before_the_answer_is_not_done_again() -> None:
    """The answer is in the same transaction: a successor finds the request answered."""
    cluster, network = MemoryCluster(), Faulty()
    callback = Stub(
        outcome=lambda request: replace(GOOD, state=json.dumps({"run": request.run}).encode())
    )
    async with (
        running(cluster, callback, id="m2") as two,
        alive(two, 1),
        running(cluster, callback, network=network) as one,
    ):
        two.election.restart(0)
        await asyncio.sleep(5)
        assert one.leader_id == "m1"
        await two.ping(record(2))
        await asyncio.sleep(3)

        def dies(request: Request) -> Exception | None:
            if writes(request):
                assert isinstance(request, Txn)
                if any(isinstance(op, Put) and op.key == KEYS.state for op in request.then):
                    one.election.restart(0)
                    return Ambiguous("lost")
            return None

        network.after = dies
        answer = await two.requests.ask("rollback", "ann", run=1, timeout=30)
        assert answer["refused"] is False
        await asyncio.sleep(30)
    assert len([e for e in await ledger(cluster) if e["reason"] == "rollback"]) == 1
