"""A pod that reports stays alive however full or slow etcd is: its lease is refreshed first."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TypeVar

import pytest
from tests.master.reports import Reporter, Slow, born, reporting
from tests.master.support import CONFIG, KEYS, Stub, record, running
from tests.support.memory import MemoryCluster, MemoryStore, Refresh, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Pod, parse_keepalive
from kontrol.master.registry import queue
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import NoSpace, Put, Range, Unavailable

_Answer = TypeVar("_Answer")


class Held:
    """A network that holds what `holds` names until `go` is set, and counts what goes through.

    While not `delivers`, watches bring nothing. A request takes `delay` seconds.
    """

    def __init__(self) -> None:
        self.holds: Callable[[Request], bool] = lambda _: False
        self.after: Callable[[Request], None] = lambda _: None
        self.go = asyncio.Event()
        self.delivers = True
        self.delay = 0.0
        self.requests: list[Request] = []

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        self.requests.append(request)
        if self.holds(request):
            await self.go.wait()
        await asyncio.sleep(self.delay)
        answer = do()
        self.after(request)
        return answer

    async def deliver(self) -> bool:
        if not self.delivers:
            await asyncio.Event().wait()
        return False

    def count(self, kind: type) -> int:
        return sum(isinstance(request, kind) for request in self.requests)


def now() -> float:
    return asyncio.get_running_loop().time()


def writes(request: Request) -> bool:
    return isinstance(request, Txn) and request.writes


def payloads(cluster: MemoryCluster) -> dict[str, object]:
    found = cluster.core.range(Range(KEYS.pods, prefix=True)).kvs
    return {pod["id"]: pod["payload"] for kv in found if (pod := json.loads(kv.value))}


def pods_in(cluster: MemoryCluster) -> list[tuple[int, str, int]]:
    """The numbers and keys of all pods, and the revisions at which their records were created."""
    found = cluster.core.range(Range(KEYS.pods, prefix=True)).kvs
    return [
        (pod["seq"], pod["key"], kv.create_revision)
        for kv in found
        if (pod := json.loads(kv.value))
    ]


@virtual
async def test_a_pod_that_changes_while_etcd_is_full_lives_and_is_run_for_in_the_end() -> None:
    cluster, callback = MemoryCluster(), Stub()
    async with running(cluster, callback) as one, running(cluster, callback, id="m2") as two:
        pods = [Reporter([one], 1, CONFIG.ttl), Reporter([two], 2, CONFIG.ttl)]
        async with reporting(*pods):
            await asyncio.sleep(CONFIG.ttl)
            before = born(cluster)
            assert set(before) == {"p1", "p2"}
            cluster.core.full = True
            pods[0].fields = {"n": 1, "payload": "new"}
            await asyncio.sleep(3 * CONFIG.ttl)
            assert born(cluster) == before
            assert payloads(cluster) == {"p1": "", "p2": ""}
            assert pods[0].told[-1] == "NotWritten"
            assert pods[1].told[-1] == CONFIG.ttl
            with pytest.raises(
                Refused,
                match=r"^Unavailable: etcd is full: no pod can join.*; `kontrol status` on a",
            ):
                await one.ping(record(3))
            with pytest.raises(Refused, match=r"^NotWritten: pod p1 is alive: .* space exceeded"):
                await one.ping(record(1, n=1, payload="new"))
            cluster.core.full = False
            await asyncio.sleep(CONFIG.ttl)
            assert born(cluster) == before
            assert payloads(cluster) == {"p1": "new", "p2": ""}
            assert callback.runs[-1].changes == {"changed": ["p1"]}


@virtual
async def test_the_write_that_fills_etcd_is_acknowledged_for_it_was_done() -> None:
    cluster, network = MemoryCluster(), Held()

    def crosses(request: Request) -> None:
        if writes(request):
            cluster.core.full = True
            raise NoSpace("database space exceeded")

    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        network.after = crosses
        assert (await master.ping(record(1, n=1, payload="new")))["seq"] == 0
        assert cluster.core.full
        assert payloads(cluster) == {"p1": "new"}


@virtual
async def test_a_full_etcd_is_not_tried_more_than_a_few_times_a_second() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await asyncio.gather(*(master.ping(record(number)) for number in range(1, 101)))
        cluster.core.full = True
        network.requests.clear()
        for _ in range(10):
            await asyncio.gather(
                *(master.ping(record(number, n=1)) for number in range(1, 101)),
                return_exceptions=True,
            )
        assert master.registry.outcomes["NotWritten"] == 1000
        assert sum(map(writes, network.requests)) < 80


@pytest.mark.parametrize("ttl", [25.0, 10.0, 6.0])
@virtual
async def test_a_slow_etcd_drops_no_pod_and_gets_the_change_in_the_end(ttl: float) -> None:
    cluster, network, callback = MemoryCluster(), Slow(), Stub()
    async with running(cluster, callback, network=network, ttl=ttl) as master:
        pods = [Reporter([master], number, ttl) for number in range(1, 21)]
        async with reporting(*pods):
            await asyncio.sleep(ttl)
            before = born(cluster)
            network.delay = 1.75
            await asyncio.sleep(ttl)
            for number, pod in enumerate(pods):
                pod.fields = {"n": 1, "payload": f"new {number}"}
            await asyncio.sleep(60)
            assert born(cluster) == before
            assert set(payloads(cluster).values()) == {f"new {number}" for number in range(20)}


@virtual
async def test_a_pod_joins_a_slow_etcd_and_stays() -> None:
    cluster, network = MemoryCluster(), Slow()
    async with running(cluster, network=network, ttl=6.0) as master:
        network.delay = 1.75
        async with reporting(Reporter([master], 1, 6.0)):
            await asyncio.sleep(20)
            before = born(cluster)
            assert set(before) == {"p1"}
            await asyncio.sleep(60)
            assert born(cluster) == before


@virtual
async def test_a_refresh_goes_on_when_its_keepalive_has_given_up() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        before = born(cluster)
        await asyncio.sleep(CONFIG.ttl - 2)
        network.holds = lambda request: isinstance(request, Refresh)
        with pytest.raises(Refused, match="Unavailable"):
            await master.ping(record(1))
        network.go.set()
        await asyncio.sleep(CONFIG.ttl - 1)
        assert born(cluster) == before


@virtual
async def test_a_request_that_hangs_holds_no_other_pod_up() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        for number in (1, 2):
            await master.ping(record(number))
        network.holds = writes
        changing = asyncio.create_task(master.ping(record(1, n=1, payload="new")))
        await asyncio.sleep(0.1)
        assert (await master.ping(record(2)))["seq"] == 1
        with pytest.raises(Refused, match="NotWritten"):
            await changing
        network.go.set()
        await asyncio.sleep(0.1)  # it goes on by itself, and the next keepalive finds it done
        assert payloads(cluster) == {"p1": "new", "p2": ""}
        network.requests.clear()
        assert (await master.ping(record(1, n=1, payload="new")))["seq"] == 0
        assert not any(map(writes, network.requests))


@virtual
async def test_a_lease_is_refreshed_while_the_mirror_is_not_current() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        live = master.mirror.live("blXcB")
        assert live is not None
        network.delivers = False
        await asyncio.sleep(CONFIG.ttl * 2 / 3)
        assert not master.mirror.cache.current
        network.requests.clear()
        assert (await master.ping(record(1)))["seq"] == 0
        # It is sure of that only by reading; nothing is written.
        assert network.requests[0] == Refresh(live.lease)
        assert network.count(Txn) == 1
        assert not any(map(writes, network.requests))


@virtual
async def test_a_mirror_that_is_behind_is_no_reason_to_wait_less_for_an_etcd_that_answers() -> None:
    """A master that has too little CPU is behind, and slow: it would refuse all it could accept."""
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await master.ping(record(2))
        network.delivers = False
        await asyncio.sleep(CONFIG.ttl * 2 / 3)
        assert not master.mirror.cache.current
        network.delay = CONFIG.ttl / 30
        start = now()
        with pytest.raises(Refused, match="Unavailable"):  # for all it knows, etcd is away
            await master.ping(record(1))
        assert now() - start == pytest.approx(CONFIG.ttl / 20)
        assert (await master.ping(record(2)))["seq"] == 1
        assert now() - start > CONFIG.ttl / 10
        network.holds = lambda _: True
        await asyncio.sleep(1.1)
        start = now()
        with pytest.raises(Refused, match="Unavailable"):
            await master.ping(record(2))
        assert now() - start == pytest.approx(CONFIG.ttl / 20)


@virtual
async def test_an_older_process_or_a_deregistration_refreshes_nothing() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1, n=5))
        await asyncio.sleep(0.1)
        network.requests.clear()
        with pytest.raises(Refused, match="Stale"):
            await master.ping(record(1, n=4))
        await master.ping(record(1, n=6, down=True))
        assert network.count(Refresh) == 0


@virtual
async def test_a_pod_that_reports_stays_beside_a_newer_record_whose_sender_stops() -> None:
    """Two masters wrote one id at two addresses. The newer record's process ended soon after."""
    cluster, network = MemoryCluster(), Held()
    store, ttl = MemoryStore(cluster), CONFIG.ttl
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        newer = Pod.of(parse_keepalive(record(1, ip="10.0.0.9", nonce="b")), 5)
        lease = (await store.grant(int(ttl))).id
        await store.txn([], [Put(KEYS.pod(newer.key), newer.encode(), lease)])
        [(seq, key, created)] = [each for each in pods_in(cluster) if each[1] != newer.key]
        tries = 0
        async with asyncio.timeout(3 * ttl):
            while not tries or len(pods_in(cluster)) > 1:
                tries += 1
                with contextlib.suppress(Refused):
                    await master.ping(record(1))
                if tries < 7:
                    await store.refresh(lease)
                await asyncio.sleep(ttl / 8)
        assert pods_in(cluster) == [(seq, key, created)]
        assert (await store.remaining(lease))[0] > 0, "evicted after TTL/2, and not expired"


@virtual
async def test_a_process_that_reports_again_and_again_waits_in_one_place() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        network.holds = writes
        tries = []
        for n in range(1, 40):
            tries.append(asyncio.create_task(master.ping(record(1, n=n, payload=n))))
            await asyncio.sleep(0.01)
        assert len(master.registry.queue) == 1  # and one is being written
        network.go.set()
        assert {answer["seq"] for answer in await asyncio.gather(*tries)} == {0}
        assert payloads(cluster) == {"p1": 39}


@virtual
async def test_a_deregistration_is_not_overtaken_by_what_was_reported_before() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await master.ping(record(2))
        network.holds = writes
        blocking = asyncio.create_task(master.ping(record(2, n=1)))
        await asyncio.sleep(0.01)
        texts = [record(1, n=1), record(1, n=2, down=True), record(1, n=1), record(1, n=2)]
        asked = []
        for text in texts:
            asked.append(asyncio.create_task(master.ping(text)))
            await asyncio.sleep(0.01)
        network.go.set()
        await asyncio.gather(blocking, *asked, return_exceptions=True)
        assert set(payloads(cluster)) == {"p2"}


@virtual
async def test_what_is_not_reported_any_more_is_not_written() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        blocking = []
        for number in (2, 3, 4, 5):  # as many batches as may be under way
            await master.ping(record(number))
        network.holds = writes
        for number in (2, 3, 4, 5):
            blocking.append(asyncio.create_task(master.ping(record(number, n=1))))
            await asyncio.sleep(0.1)
        joining = asyncio.create_task(master.ping(record(1)))
        await asyncio.sleep(CONFIG.ttl / 2 + 0.1)
        network.go.set()
        await asyncio.gather(*blocking, joining, return_exceptions=True)
        await asyncio.sleep(1)
        assert set(payloads(cluster)) == {"p2", "p3", "p4", "p5"}


@virtual
async def test_more_than_may_wait_get_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_WAITING", 3)
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        for number in range(1, 12):
            await master.ping(record(number))
        network.holds = writes
        tries = []
        for number in range(1, 12):
            tries.append(asyncio.create_task(master.ping(record(number, n=1))))
            await asyncio.sleep(0.03)
        network.go.set()
        answers = await asyncio.gather(*tries, return_exceptions=True)
    # Four are under way, and three wait.
    assert [isinstance(answer, dict) for answer in answers] == [True] * 7 + [False] * 4
    assert all("3 keepalives wait" in str(answer) for answer in answers[7:])


@virtual
async def test_no_more_than_two_refreshes_of_a_lease_are_under_way() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        network.holds = lambda request: isinstance(request, Refresh)
        network.requests.clear()
        tries = [asyncio.create_task(master.ping(record(1))) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert network.count(Refresh) == 2
        network.go.set()
        assert all(answer["seq"] == 0 for answer in await asyncio.gather(*tries))


@virtual
async def test_without_etcd_a_known_pod_is_unavailable() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))

        def fail(_request: Request) -> bool:
            raise Unavailable("no quorum")

        network.holds = fail
        for text in (record(1), record(1, n=1), record(2)):
            with pytest.raises(Refused, match="Unavailable: this master has no answer"):
                await master.ping(text)


@virtual
async def test_an_acknowledgement_by_a_refresh_that_began_before_says_how_long_before() -> None:
    cluster, network = MemoryCluster(), Held()
    now = asyncio.get_running_loop().time
    async with running(cluster, network=network) as master:
        first = await master.ping(record(1))
        assert "age" not in first
        network.holds = lambda request: isinstance(request, Refresh)
        for _ in range(2):
            with pytest.raises(Refused, match=r"^Unavailable"):
                await master.ping(record(1))
        began = now()  # at the latest, the second refresh: its keepalive has timed out
        await asyncio.sleep(0.1)
        sent, refreshes = now(), network.count(Refresh)
        third = asyncio.ensure_future(master.ping(record(1)))
        await asyncio.sleep(0.1)
        assert network.count(Refresh) == refreshes  # it began none of its own
        network.go.set()
        age = (await third)["age"]
        assert isinstance(age, float)
        assert sent - age < began - 0.5
        network.holds = lambda _: False
        assert "age" not in await master.ping(record(1))
