"""Live facts: from keepalives to the callback, at a bounded cost, and never the cause of a run."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.master.support import CONFIG, KEYS, Stub, nonce, running
from tests.master.test_known import join, known, record
from tests.master.test_refresh_first import Held
from tests.support.memory import MemoryCluster, MemoryStore, Refresh, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.live import MAX_LIVE, attach
from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.master.registry.facts import LIVE_RATE, OVERHEAD
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Ambiguous, Put, Range

TTL = CONFIG.ttl
KEY = json.loads(record(1))["key"]


def telling(number: int, live: object, **changes: Any) -> str:  # noqa: ANN401 - any field
    """The keepalive of pod `number` with live facts, as an agent of ours sends it."""
    return attach(record(number, **changes), json.dumps(live, separators=(",", ":")))


def stored(cluster: MemoryCluster) -> dict[str, Any]:
    """The live facts in the store, by the pod's id."""
    found = cluster.core.range(Range(KEYS.live, prefix=True)).kvs
    records = [json.loads(kv.value) for kv in found]
    return {each["id"]: each["live"] for each in records}


async def shown(master: Master) -> dict[str, Any]:
    """The live facts of the pods that have some, by id."""
    pods = await master.pods_with_facts()
    return {str(pod["id"]): pod["live"] for pod in pods if "live" in pod}


def seen(callback: Stub) -> list[list[Any]]:
    """The live facts of the pods of each run."""
    return [[pod.get("live") for pod in json.loads(run.request.pods)] for run in callback.runs]


@virtual
async def test_facts_that_change_with_each_keepalive_cost_no_run_and_are_seen_by_the_next() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master:
        digests = set()
        for offset in range(60):
            await master.ping(telling(1, {"offset": offset}))
            await asyncio.sleep(TTL / 3)
            digests.add(master.mirror.ensemble.digest)
        assert len(callback.runs) == len(digests) == 1
        await master.ping(telling(1, {"offset": 60}, n=1, payload="new"))
        await asyncio.sleep(3)
        assert callback.runs[1].changes == {"changed": ["p1"]}
        assert seen(callback)[1] == [{"offset": 60}]
        assert callback.runs[1].request.digest == master.mirror.ensemble.digest


@virtual
async def test_facts_take_the_path_of_known_keepalives() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1))
        network.requests.clear()
        for offset in range(5):
            answer = await known(master, telling(1, offset))
            assert answer is not None
            assert answer["live"] is True
        others = [each for each in network.requests if not puts_facts(each)]
        assert [type(request) for request in others] == [Refresh] * 5
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": 4}
        writes = [request for request in network.requests if puts_facts(request)]
        assert len(writes) == 2, "what waits is replaced by what comes later"
        assert len(master.registry._known) == 1


@pytest.mark.parametrize("tail", ["1,", '1, "down":true', "[", "NaN", json.dumps("x" * MAX_LIVE)])
def test_a_known_text_with_invalid_facts_is_read(tail: str) -> None:
    @virtual
    async def check() -> None:
        async with running(MemoryCluster()) as master:
            await join(master, record(1))
            text = attach(record(1), tail)
            assert await known(master, text) is None
            if "down" in tail:
                await master.ping(text)
                await asyncio.sleep(1)
                assert master.pods() == []
                return
            with pytest.raises(Refused, match=r"live|JSON"):
                await master.ping(text)
            assert await known(master, text) is None
            assert [pod["id"] for pod in master.pods()] == ["p1"]

    check()


@virtual
async def test_the_leader_sees_what_another_master_is_told() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with (
        running(cluster, callback) as leader,
        running(cluster, callback, id="m2", address="10.1.0.2") as other,
    ):
        await leader.ping(telling(1, "here"))
        await other.ping(telling(2, "there"))
        await asyncio.sleep(1)
        assert await shown(leader) == await shown(other) == {"p1": "here", "p2": "there"}
        await asyncio.sleep(1)
        assert seen(callback) == [["here", "there"]]


@virtual
async def test_a_pod_without_facts_has_no_such_field() -> None:
    callback = Stub()
    async with running(MemoryCluster(), callback) as master:
        await master.ping(record(1))
        await asyncio.sleep(3)
        (pod,) = json.loads(callback.runs[0].request.pods)
        assert "live" not in pod
        assert await shown(master) == {}


@virtual
async def test_facts_are_gone_when_the_agent_says_so() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await join(master, telling(1, 1))
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": 1}
        await master.ping(record(1))
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": 1}, "a keepalive without says nothing of them"
        await master.ping(telling(1, None))
        await asyncio.sleep(1)
        assert stored(cluster) == {}


@virtual
async def test_facts_go_with_their_pod() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await join(master, telling(1, 1))
        await asyncio.sleep(TTL + 3)
        assert master.pods() == []
        assert stored(cluster) == {}


@virtual
async def test_facts_of_a_former_process_and_of_another_pod_are_not_shown() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await join(master, telling(1, "old"))
        await asyncio.sleep(1)
        await master.ping(record(1, nonce="b"))
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": "old"}
        assert await shown(master) == {}
        await master.ping(telling(1, "new", nonce="b"))
        await asyncio.sleep(1)
        assert await shown(master) == {"p1": "new"}
        await master.ping(record(1, nonce="b", n=1, down=True))
        await master.ping(record(1, id="p9", nonce="c"))
        await asyncio.sleep(1)
        assert [pod["id"] for pod in master.pods()] == ["p9"]
        assert await shown(master) == {}


@virtual
async def test_a_pod_that_comes_back_from_another_master_is_written_again() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2", address="10.1.0.2") as two:
        await join(one, telling(1, "A"))
        await asyncio.sleep(1)
        await two.ping(record(1))
        await two.ping(telling(1, "B"))
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": "B"}
        await one.ping(record(1))  # the first of a connection is without
        await one.ping(telling(1, "A"))
        await asyncio.sleep(1)
        assert stored(cluster) == {"p1": "A"}


@virtual
async def test_unchanged_facts_are_written_seldom() -> None:
    """But now and then: the late write of another master may have replaced them."""
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, telling(1, "A"))
        await asyncio.sleep(1)
        kv = cluster.core.range(Range(KEYS.live_facts(KEY))).kvs[0]
        cluster.core.txn(Txn((), (Put(kv.key, b'{"id":"p1","live":"late"}', kv.lease),)))
        network.requests.clear()
        for _ in range(33):
            await master.ping(telling(1, "A"))
            await asyncio.sleep(TTL / 3)
        assert len([each for each in network.requests if puts_facts(each)]) == 1
        assert stored(cluster) == {"p1": "A"}


def puts_facts(request: Request) -> bool:
    return isinstance(request, Txn) and any(
        isinstance(op, Put) and op.key.startswith(KEYS.live) for op in request.then
    )


@virtual
async def test_many_pods_are_written_in_turn_at_a_bounded_rate() -> None:
    cluster, network, pods = MemoryCluster(), Held(), 400
    async with running(cluster, network=network) as master:
        texts = [record(0, id=f"p{i}", ip=f"10.1.{i // 250}.{i % 250 + 1}") for i in range(pods)]
        await asyncio.gather(*(master.ping(text) for text in texts))
        await asyncio.sleep(1)
        network.requests.clear()
        facts = "x" * 300
        began = asyncio.get_running_loop().time()
        for turn in range(12):
            for text in texts:
                await master.ping(attach(text, json.dumps(f"{turn}{facts}")))
            await asyncio.sleep(TTL / 3)
        seconds = asyncio.get_running_loop().time() - began
        writes = [
            op
            for each in network.requests
            if isinstance(each, Txn)
            for op in each.then
            if isinstance(op, Put) and op.key.startswith(KEYS.live)
        ]
        size = sum(len(op.value) for op in writes)
        assert size <= LIVE_RATE * seconds + 256 * 1024
        assert len(writes) >= 0.8 * seconds * LIVE_RATE / (OVERHEAD + 306)
        counts = [sum(op.key == key for op in writes) for key in {op.key for op in writes}]
        assert len(counts) == pods, "none is left out"
        assert max(counts) <= 2 * min(counts), "each has its turn"


@virtual
async def test_a_lease_that_is_gone_takes_no_other_facts_with_it() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await join(master, record(1), record(2))
        await asyncio.sleep(1)
        network.holds = puts_facts
        await known(master, telling(1, 1))
        await known(master, telling(2, 2))
        lease = cluster.core.range(Range(KEYS.pod(KEY))).kvs[0].lease
        cluster.core.revoke(lease)
        network.go.set()
        await asyncio.sleep(2)
        assert stored(cluster) == {"p2": 2}
        assert [pod["id"] for pod in master.pods()] == ["p2"]


@virtual
async def test_a_store_that_is_away_or_full_delays_no_keepalive_for_facts() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await join(master, telling(1, 1))
        await asyncio.sleep(1)
        cluster.core.full = True
        for offset in range(20):
            assert await known(master, telling(1, offset)) is not None
            await asyncio.sleep(TTL / 3)
        assert stored(cluster) == {"p1": 1}
        cluster.core.full = False
        await known(master, telling(1, "again"))
        await asyncio.sleep(4)
        assert stored(cluster) == {"p1": "again"}


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"7", b'{"id":5,"live":1}', b'{"live":1}', b"x" * 1_000_000,
     b'{"id":"p1","nonce":"' + nonce("a").encode() + b'"}'],
)  # fmt: skip
def test_damaged_facts_in_the_store_are_no_facts(value: bytes) -> None:
    @virtual
    async def check() -> None:
        cluster, callback = MemoryCluster(), Stub()
        async with running(cluster, callback) as master:
            await master.ping(record(1))
            cluster.core.txn(Txn((), (Put(KEYS.live_facts(KEY), value),)))
            await asyncio.sleep(3)
            assert seen(callback) == [[None]]
            assert await shown(master) == {}

    check()


@virtual
async def test_a_later_versions_fields_do_no_harm() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as master:
        await master.ping(record(1))
        value = json.dumps({"id": "p1", "nonce": nonce("a"), "live": 1, "beyond": 2}).encode()
        cluster.core.txn(Txn((), (Put(KEYS.live_facts(KEY), value),)))
        await asyncio.sleep(3)
        assert seen(callback) == [[1]]


@virtual
async def test_operators_see_them() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        view = View(master, MemoryStore(cluster), wall=lambda: "2026-01-01T00:00:00.000+00:00")
        await join(master, telling(1, {"lag": 3}), record(2))
        await asyncio.sleep(1)
        assert [pod.get("live") for pod in await view.pods(live=True)] == [{"lag": 3}, None]
        assert [pod.get("live") for pod in await view.pods(live=False)] == [None, None]
        status = await view.status()
        assert isinstance(status["ensemble"], dict)
        assert (status["ensemble"]["pods"], status["ensemble"]["live"]) == (2, 1)


@virtual
async def test_a_run_whose_start_has_no_answer_gets_them_all_the_same() -> None:
    cluster, callback = MemoryCluster(), Stub()
    lost = Lost(
        lambda request: (
            isinstance(request, Txn)
            and any(isinstance(op, Put) and op.key == KEYS.running for op in request.then)
        )
    )
    async with running(cluster, callback, network=lost) as master:
        await master.ping(telling(1, "x"))
        await asyncio.sleep(8)
        assert lost.times == 1
        assert seen(callback) == [["x"]]


class Lost(Held):
    """A network on which the first answer to some kind of request is lost."""

    def __init__(self, kind: Callable[[Request], bool]) -> None:
        super().__init__()
        self.kind = kind
        self.times = 0

    async def call(self, request: Request, do: Callable[[], Any]) -> Any:  # noqa: ANN401
        answer = await super().call(request, do)
        if self.kind(request) and not self.times:
            self.times += 1
            raise Ambiguous("its answer is lost")
        return answer


@virtual
async def test_pods_are_shown_without_them_while_the_store_is_away() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster) as master:
        view = View(
            master, MemoryStore(cluster, network), wall=lambda: "2026-01-01T00:00:00.000+00:00"
        )
        master._store = MemoryStore(cluster, network)
        await join(master, telling(1, 1))
        await asyncio.sleep(1)
        network.holds = lambda _: True
        assert [(p["id"], p.get("live")) for p in await view.pods(live=True)] == [("p1", None)]
