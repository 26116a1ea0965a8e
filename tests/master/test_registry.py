"""Keepalives to the store, through the registry of real masters over the store model."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from tests.master.support import CONFIG, KEYS, Stub, alive, nonce, record, running
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Refresh, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.pod import MAX_COUNTER, Pod, parse_keepalive
from kontrol.master.master import Master
from kontrol.master.operator.view import View
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import Ambiguous, Put, Range, Unavailable

_Answer = TypeVar("_Answer")


async def stored(cluster: MemoryCluster, key: str) -> dict[str, object]:
    """The JSON at a key of the store."""
    found = await MemoryStore(cluster).range(Range(key))
    value: dict[str, object] = json.loads(found.kvs[0].value)
    return value


class Faulty:
    """A network that fails as `fault` says: None, or the error to raise, before or after."""

    def __init__(self) -> None:
        self.before: Callable[[Request], Exception | None] = lambda _: None
        self.after: Callable[[Request], Exception | None] = lambda _: None
        self.requests: list[Request] = []

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        self.requests.append(request)
        if (error := self.before(request)) is not None:
            raise error
        answer = do()
        if (error := self.after(request)) is not None:
            raise error
        return answer

    async def deliver(self) -> bool:
        return False


def writes(request: Request) -> bool:
    return isinstance(request, Txn) and request.writes


@virtual
async def test_an_acknowledged_pod_is_in_the_store_with_number_and_lease() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        assert (await master.ping(record(1)))["seq"] == 0
        ack = await master.ping(record(2))
    assert ack["seq"] == 1
    assert ack["ttl"] == CONFIG.ttl
    assert (await stored(cluster, KEYS.pod("blXcB")))["id"] == "p1"
    assert (await stored(cluster, KEYS.registration("blXcB")))["seq"] == 0


@virtual
async def test_an_unchanged_keepalive_writes_nothing() -> None:
    cluster, network = MemoryCluster(), Faulty()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await asyncio.sleep(1)
        before = cluster.core.revision
        network.requests.clear()
        assert (await master.ping(record(1)))["seq"] == 0
        assert [type(r) for r in network.requests] == [Refresh]
        assert cluster.core.revision == before


@virtual
async def test_a_change_of_a_known_pod_is_read_and_written_beside_one_refresh() -> None:
    cluster, network = MemoryCluster(), Faulty()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        network.requests.clear()
        await master.ping(record(1, n=1, payload="new"))
        assert sorted(type(r).__name__ for r in network.requests) == ["Refresh", "Txn", "Txn"]
        assert [writes(r) for r in network.requests if isinstance(r, Txn)] == [False, True]


@virtual
async def test_many_at_once_get_numbers_of_their_own() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2") as two:
        acks = await asyncio.gather(
            *(
                (one if n % 2 else two).ping(record(n, ip=f"10.0.{n // 250}.{n % 250}"))
                for n in range(600)
            )
        )
        assert len({ack["seq"] for ack in acks}) == 600
        await asyncio.sleep(0.1)
        assert [pod["id"] for pod in one.pods()] == [pod["id"] for pod in two.pods()]


@virtual
async def test_one_bad_record_does_not_fail_its_batch() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        results = await asyncio.gather(
            master.ping(record(2)),
            master.ping(record(9, ip="10.0.0.1")),  # another id at a live key
            master.ping(record(3)),
            return_exceptions=True,
        )
    assert isinstance(results[1], Refused)
    assert results[1].name == "Conflict"
    assert [r["seq"] for r in results if isinstance(r, dict)] == [1, 2]


@virtual
async def test_a_lost_answer_is_settled_by_reading() -> None:
    cluster, network = MemoryCluster(), Faulty()
    async with running(cluster, network=network) as master:
        lost = iter([Ambiguous("lost"), None, Ambiguous("lost")])
        network.after = lambda request: next(lost, None) if writes(request) else None
        assert (await master.ping(record(1)))["seq"] == 0
        assert (await master.ping(record(2)))["seq"] == 1
        assert (await master.ping(record(1, n=1, down=True)))["seq"] == 0
    assert (await stored(cluster, KEYS.registration("blXcB")))["left"] is True


@virtual
async def test_without_a_store_it_says_unavailable_and_recovers() -> None:
    cluster, network = MemoryCluster(), Faulty()
    async with running(cluster, network=network) as master:
        await master.ping(record(1))
        network.before = lambda _: Unavailable("no quorum")
        for text in (record(1), record(2), record(1, n=1, payload="x")):
            with pytest.raises(Refused, match="no quorum") as refused:
                await master.ping(text)
            assert refused.value.name == "Unavailable"
        network.before = lambda _: None
        assert (await master.ping(record(2)))["seq"] == 1


@virtual
async def test_a_pod_comes_back_after_an_outage_with_its_number() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await master.ping(record(2))
        await asyncio.sleep(2 * CONFIG.ttl)
        assert master.pods() == []
        assert (await master.ping(record(2)))["seq"] == 1


@virtual
async def test_an_unresponsive_incumbent_loses_its_key_to_one_that_retries() -> None:
    cluster = MemoryCluster()
    newcomer = record(9, ip="10.0.0.1")
    async with running(cluster) as master:
        await master.ping(record(1))
        for _ in range(2):  # retrying alone does not do
            with pytest.raises(Refused, match=r"p1 .*alive"):
                await master.ping(newcomer)
        await asyncio.sleep(CONFIG.ttl / 2 + 1)
        assert (await master.ping(newcomer))["seq"] == 1
        with pytest.raises(Refused, match="p9"):
            await master.ping(record(1))


@virtual
async def test_an_id_at_a_new_address_replaces_its_earlier_record() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2") as two:
        await one.ping(record(1))
        await asyncio.sleep(0.1)
        assert (await two.ping(record(1, ip="10.0.0.9", nonce="b")))["seq"] == 1
        await asyncio.sleep(0.1)
        assert [(p["ip"], p["seq"]) for p in one.pods()] == [("10.0.0.9", 1)]
        with pytest.raises(Refused, match="older") as refused:
            await one.ping(record(1))
        assert refused.value.name == "Stale"


@virtual
async def test_a_lease_that_is_gone_is_replaced_under_the_same_number() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1))
        await asyncio.sleep(0.1)
        live = master.mirror.live("blXcB")
        assert live is not None
        await MemoryStore(cluster).revoke(live.lease)
        assert (await master.ping(record(1)))["seq"] == 0
        await asyncio.sleep(0.1)
        assert [pod["seq"] for pod in master.pods()] == [0]


@virtual
async def test_a_damaged_record_in_the_store_does_not_stop_anything() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    await store.txn([], [Put(KEYS.pod("blXcB"), b"junk"), Put(KEYS.pod("other"), b"{}")])
    async with running(cluster) as master:
        assert (await master.ping(record(1)))["seq"] == 0
        await asyncio.sleep(0.1)
        assert [pod["id"] for pod in master.pods()] == ["p1"]


@virtual
async def test_the_store_emptied_under_us_is_filled_again() -> None:
    cluster = MemoryCluster()
    empty = cluster.snapshot()
    async with running(cluster) as master:
        await master.ping(record(1))
        cluster.restore(empty, cluster=2)
        await asyncio.sleep(1)
        assert master.pods() == []
        assert (await master.ping(record(1)))["seq"] == 0
        await asyncio.sleep(0.1)
        assert [pod["id"] for pod in master.pods()] == ["p1"]


async def report(master: Master, raw: str, *, every: float, within: float) -> float:
    """Report until it is accepted; returns the seconds that this took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(within):
        while True:
            with contextlib.suppress(Refused):
                await master.ping(raw)
                return loop.time() - begun
            await asyncio.sleep(every)


@virtual
async def test_a_forged_nonce_locks_no_process_out_once_its_sender_stops() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        seq = (await master.ping(record(1, nonce="b")))["seq"]
        await master.ping(record(1, nonce="zzzz", n=MAX_COUNTER))
        with pytest.raises(Refused, match="Stale"):
            await master.ping(record(1, nonce="b"))
        took = await report(
            master, record(1, nonce="b", n=1), every=CONFIG.ttl / 10, within=CONFIG.ttl
        )
        assert took >= CONFIG.ttl / 2 - 1
        ack = await master.ping(record(1, nonce="b", n=2))
    assert ack["seq"] == seq


@virtual
async def test_of_two_processes_with_one_identity_the_one_that_lives_is_accepted() -> None:
    """The one with the higher nonce ended; its registration must not keep the other out."""
    cluster = MemoryCluster()
    async with running(cluster) as master:
        seq = (await master.ping(record(1, nonce="b")))["seq"]
        await master.ping(record(1, nonce="c"))
        await asyncio.sleep(2 * CONFIG.ttl)
        assert master.pods() == []
        await report(master, record(1, nonce="b", n=1), every=0.9, within=CONFIG.ttl)
        assert [(pod["seq"], pod["nonce"]) for pod in master.pods()] == [(seq, nonce("b"))]


@virtual
async def test_a_lower_nonce_is_refused_while_the_higher_one_is_seen() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master, alive(master, 1):
        for _ in range(40):
            with pytest.raises(Refused, match="Stale"):
                await master.ping(record(1, nonce="A"))
            await asyncio.sleep(CONFIG.ttl / 10)


@virtual
async def test_a_late_duplicate_replaces_no_pod() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as master:
        await master.ping(record(1, nonce="b", n=3))
        await asyncio.sleep(CONFIG.ttl * 0.6)
        for _ in range(2):
            with pytest.raises(Refused, match="Stale"):
                await master.ping(record(1, nonce="b", n=2))
            await asyncio.sleep(CONFIG.ttl / 3)


@virtual
async def test_a_forged_record_from_before_orders_nothing() -> None:
    """It may be in the store, of a version that accepted any nonce, while its sender goes on."""
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    lease = await store.grant(60)
    for fields in ({"nonce": "zzzz", "n": 0}, {"nonce": "f" * 24, "n": 2**63 - 1}):
        forged = {**json.loads(record(1)), **fields}
        pod = Pod.of(replace(parse_keepalive(record(1)), **fields), 4)  # type: ignore[arg-type]
        registration = {"id": "p1", "seq": 4, **fields}
        await store.txn(
            [],
            [
                Put(KEYS.pod(pod.key), pod.encode(), lease.id),
                Put(KEYS.registration(pod.key), json.dumps(registration).encode()),
            ],
        )
        async with running(cluster) as master:
            assert forged["id"] == pod.id
            assert master.pods()[0]["nonce"] == fields["nonce"]
            assert (await master.ping(record(1)))["seq"] == 4


@virtual
async def test_a_stored_pod_with_a_bad_name_is_left_out_and_named() -> None:
    """A former version accepted any name. No callback sees it, and the next report replaces it."""
    cluster, callback = MemoryCluster(), Stub()
    store = MemoryStore(cluster)
    lease = await store.grant(60)
    pod = Pod.of(replace(parse_keepalive(record(2)), id="$(reboot)"), 1)
    await store.txn([], [Put(KEYS.pod(pod.key), pod.encode(), lease.id)])
    async with running(cluster, callback) as master, alive(master, 1):
        await asyncio.sleep(CONFIG.ttl)
        assert [run.ids for run in callback.runs] == [["p1"]]
        view = View(master, store, wall=lambda: "2026-01-01T00:00:00.000+00:00")
        told = str((await view.status())["problems"])
        assert "1 records of pods" in told
        assert pod.key in told
        assert "reboot" not in told
        await master.ping(record(2))
        await asyncio.sleep(CONFIG.ttl / 3)
        assert [each["id"] for each in master.pods()] == ["p1", "p2"]
        assert not master.mirror.left_out
