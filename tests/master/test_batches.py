"""Batches of keepalives that are written at the same time: what one must not do to another."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.master.reports import Reporter, born, reporting
from tests.master.support import KEYS, record, running
from tests.master.test_refresh_first import Held, payloads
from tests.support.memory import MemoryCluster, MemoryStore, Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.pod import Pod, parse_keepalive
from kontrol.master.master import Master
from kontrol.master.records.pods import Live, Registration
from kontrol.master.registry import queue, writer
from kontrol.master.registry.admission import Counter as Numbers
from kontrol.master.registry.admission import Decision, Join, Nothing, TxnBuilder
from kontrol.master.registry.queue import Entry
from kontrol.master.registry.quota import Bounds
from kontrol.rpc.errors import Refused
from kontrol.store.protocol import (
    Ambiguous,
    Delete,
    Denied,
    LeaseGone,
    NoSpace,
    Put,
    Range,
    TooLarge,
    Unavailable,
)

_Answer = TypeVar("_Answer")

TTL = 60.0


def pod(number: int, **changes: Any) -> str:  # noqa: ANN401 - any field of the record
    return record(number, ip=f"10.0.{number // 250}.{number % 250}", **changes)


def numbers(cluster: MemoryCluster) -> dict[str, int]:
    """The sequence numbers of the live pods by id."""
    found = cluster.core.range(Range(KEYS.pods, prefix=True)).kvs
    return {pod["id"]: pod["seq"] for kv in found if (pod := json.loads(kv.value))}


def of_pods(request: Request) -> bool:
    """Whether a request writes pods: the master itself writes other records."""
    return isinstance(request, Txn) and any(
        isinstance(op, Put | Delete) and op.key.startswith(KEYS.pods) for op in request.then
    )


def has(request: Request, text: str) -> bool:
    return isinstance(request, Txn) and any(
        isinstance(op, Put) and text.encode() in op.value for op in request.then
    )


class Latent(Held):
    """A network that takes 10 ms each way, and counts the writes under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: list[Request] = []
        self.most = 0

    async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
        pods = of_pods(request)
        if pods:
            self.under_way.append(request)
            self.most = max(self.most, len(self.under_way))
        try:
            await asyncio.sleep(0.01)
            answer = await super().call(request, do)
            await asyncio.sleep(0.01)
            return answer
        finally:
            if pods:
                self.under_way.remove(request)


async def all_at_once(master: Master, texts: list[str]) -> list[dict[str, Any] | BaseException]:
    answers = await asyncio.gather(*map(master.ping, texts), return_exceptions=True)
    return [dict(answer) if isinstance(answer, dict) else answer for answer in answers]


@virtual
async def test_changes_are_written_in_full_batches_several_at_a_time() -> None:
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=TTL) as master:
        await all_at_once(master, [pod(number) for number in range(500)])
        before, network.most = master.registry.writer.batches, 0
        network.requests.clear()
        await all_at_once(master, [pod(number, n=1, payload="new") for number in range(500)])
        assert set(payloads(cluster).values()) == {"new"}
        assert master.registry.writer.batches - before == 8
        assert [len(r.then) for r in network.requests if of_pods(r) and isinstance(r, Txn)] == [
            *[126] * 7,
            118,
        ]
        assert network.most == 4


@virtual
async def test_new_pods_are_written_in_full_batches_and_numbered_in_order() -> None:
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=TTL) as master:
        await master.ping(pod(0))
        network.requests.clear()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await all_at_once(master, [pod(number) for number in range(1, 501)])
        # A look and grants, of 20 ms; and 8 writes one after another, for they move the counter.
        assert loop.time() - begun == pytest.approx(0.2)
        assert numbers(cluster) == {f"p{number}": number for number in range(501)}
        assert network.most == 1
        assert master.registry.writer.batches == 1 + 8
        assert sum(of_pods(request) for request in network.requests) == 8, "each was done"


@virtual
async def test_a_change_does_not_wait_for_a_batch_that_hangs() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        await all_at_once(master, [pod(number) for number in range(10)])
        network.holds = lambda request: has(request, '"p1"')
        hanging = asyncio.create_task(master.ping(pod(1, n=1)))
        await asyncio.sleep(0.1)
        begun = asyncio.get_running_loop().time()
        await master.ping(pod(2, n=1, payload="new"))
        assert asyncio.get_running_loop().time() - begun <= 0.03
        assert payloads(cluster)["p2"] == "new"
        # A new pod gets its number although an earlier batch needs none and hangs.
        assert (await master.ping(pod(99)))["seq"] == 10
        network.go.set()
        await hanging


@virtual
async def test_two_records_of_one_pod_are_written_one_after_the_other() -> None:
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=TTL) as master:
        await master.ping(pod(1))
        tries = []
        for n in range(1, 20):
            tries.append(asyncio.create_task(master.ping(pod(1, n=n, payload=n))))
            await asyncio.sleep(0.005)
            assert len(network.under_way) <= 1
        await asyncio.gather(*tries)
        assert payloads(cluster) == {"p1": 19}


@virtual
async def test_counters_of_two_masters_get_no_number_twice_and_try_no_pod_alone() -> None:
    cluster = MemoryCluster()
    one_s, two_s = Latent(), Latent()
    async with (
        running(cluster, network=one_s, ttl=TTL) as one,
        running(cluster, network=two_s, ttl=TTL, id="m2") as two,
    ):
        await asyncio.sleep(1)
        answers = await asyncio.gather(
            all_at_once(one, [pod(number) for number in range(250)]),
            all_at_once(two, [pod(number) for number in range(250, 500)]),
        )
        given = [answer["seq"] for some in answers for answer in some if isinstance(answer, dict)]
        assert sorted(given) == list(range(500))
        for network in (one_s, two_s):
            sizes = [len(r.then) for r in network.requests if of_pods(r) and isinstance(r, Txn)]
            assert min(sizes) > 100, "the batches stay together"


@virtual
async def test_one_whose_keys_others_write_all_the_time_is_tried_alone() -> None:
    cluster, network = MemoryCluster(), Held()
    store = MemoryStore(cluster)
    async with running(cluster, network=network, ttl=TTL) as master:
        await all_at_once(master, [pod(number) for number in range(20)])
        [key] = [kv.key for kv in cluster.core.range(Range(KEYS.pods, prefix=True)).kvs][:1]
        disturbed = json.loads(cluster.core.range(Range(key)).kvs[0].value)["id"]
        number = int(disturbed[1:])
        sizes: list[int] = []

        async def disturb() -> None:
            kv = cluster.core.range(Range(KEYS.registration(key.removeprefix(KEYS.pods)))).kvs[0]
            await store.txn([], [Put(kv.key, kv.value)])

        class Disturbing(Held):
            async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
                if of_pods(request) and isinstance(request, Txn):
                    sizes.append(len(request.then) // 2)
                    if has(request, f'"{disturbed}"'):
                        await disturb()
                return do()

        master.registry.writer._store._network = Disturbing()  # type: ignore[attr-defined]
        answers = await all_at_once(master, [pod(i, n=1, payload="new") for i in range(20)])
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(refused) == 1
        assert "NotWritten" in str(refused[0])
        assert "changed 8 times" in str(refused[0])
        assert answers.index(refused[0]) == number
        # Together three times, and then the others without it.
        assert sizes == [20, 20, 19, *[1] * 8]


@virtual
async def test_a_counter_that_moves_all_the_time_leaves_each_a_try_of_its_own() -> None:
    cluster, network = MemoryCluster(), Held()
    store = MemoryStore(cluster)
    async with running(cluster, network=network, ttl=TTL) as master:
        await master.ping(pod(0))
        sizes: list[int] = []

        class Disturbing(Held):
            async def call(self, request: Request, do: Callable[[], _Answer]) -> _Answer:
                if of_pods(request) and isinstance(request, Txn):
                    sizes.append(len(request.then) // 2)
                    if len(sizes) <= 8:
                        await store.txn([], [Put(KEYS.counter, str(10 * len(sizes)).encode())])
                return do()

        master.registry.writer._store._network = Disturbing()  # type: ignore[attr-defined]
        answers = await all_at_once(master, [pod(number) for number in (1, 2, 3)])
        assert sizes == [3] * 8 + [1] * 3
        given = [answer["seq"] for answer in answers if isinstance(answer, dict)]
        assert sorted(given) == [80, 81, 82]


@virtual
async def test_one_that_comes_back_under_its_number_waits_for_no_other_number() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        await master.ping(pod(1))
        await asyncio.sleep(TTL + 2)
        network.holds = lambda request: has(request, '"p2"')
        hanging = asyncio.create_task(master.ping(pod(2)))
        await asyncio.sleep(0.1)
        assert (await master.ping(pod(1)))["seq"] == 0
        assert not hanging.done()
        network.go.set()
        assert (await hanging)["seq"] == 1


@virtual
async def test_halves_find_the_one_that_is_too_large() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        await all_at_once(master, [pod(number) for number in range(63)])
        network.requests.clear()

        def refuse(request: Request) -> bool:
            if has(request, '"p40"'):
                raise TooLarge("request is too large")
            return False

        network.holds = refuse
        answers = await all_at_once(master, [pod(i, n=1, payload="new") for i in range(63)])
        assert [i for i, answer in enumerate(answers) if isinstance(answer, Refused)] == [40]
        assert "InvalidRecord" in str(answers[40])
        assert sum(map(of_pods, network.requests)) <= 13


@pytest.mark.parametrize("error", [NoSpace, Denied, Unavailable])
@virtual
async def test_an_error_of_the_store_is_that_of_what_would_have_been_written_only(
    error: type[Exception],
) -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        await all_at_once(master, [pod(number) for number in range(4)])

        def refuse(request: Request) -> bool:
            if of_pods(request):
                raise error("so it is")
            return False

        network.holds = refuse
        answers = await all_at_once(
            master,
            [
                pod(0, n=1),
                pod(1),  # nothing new
                record(9, ip="10.0.0.2"),  # a conflict
                pod(77, down=True),  # nothing to deregister
                pod(3, n=1),
            ],
        )
        names = [a.name if isinstance(a, Refused) else "" for a in answers]
        assert (names[0], names[1], names[4]) == ("NotWritten", "", "NotWritten")
        if error is NoSpace:
            assert names[2:4] == ["Conflict", ""]
        network.holds = lambda _: False
        await asyncio.sleep(1)
        assert isinstance((await all_at_once(master, [pod(0, n=2)]))[0], dict)


@virtual
async def test_lost_answers_of_batches_that_were_done_are_settled_by_reading() -> None:
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=TTL) as master:
        await asyncio.sleep(1)
        lost = count()

        def lose(request: Request) -> None:
            if of_pods(request) and next(lost) % 2 == 0:
                raise Ambiguous("the answer was lost")

        network.after = lose
        answers = await all_at_once(master, [pod(number) for number in range(300)])
        given = [answer["seq"] for answer in answers if isinstance(answer, dict)]
        assert given == list(range(300))
        assert numbers(cluster) == {f"p{number}": number for number in range(300)}
        before = cluster.core.revision
        answers = await all_at_once(master, [pod(i, n=1, payload="new") for i in range(300)])
        assert all(isinstance(answer, dict) for answer in answers)
        assert cluster.core.revision == before + 5, "nothing was written twice"


@virtual
async def test_a_lease_that_is_gone_before_it_is_used_is_granted_again() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        gone = iter([LeaseGone("it expired")])

        def refuse(request: Request) -> bool:
            if of_pods(request) and (error := next(gone, None)) is not None:
                raise error
            return False

        network.holds = refuse
        answers = await all_at_once(master, [pod(number) for number in range(3)])
        assert [answer["seq"] for answer in answers if isinstance(answer, dict)] == [0, 1, 2]


@virtual
async def test_the_numbers_go_on_after_a_write_that_failed_and_after_a_restore() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        early = cluster.snapshot()
        await all_at_once(master, [pod(number) for number in range(3)])
        # Another master gives numbers meanwhile.
        await MemoryStore(cluster).txn([], [Put(KEYS.counter, b"9")])
        assert (await master.ping(pod(10)))["seq"] == 9
        assert (await master.ping(pod(11)))["seq"] == 10
        await all_at_once(master, [pod(3, n=n) for n in range(30)])
        cluster.restore(early)
        await asyncio.sleep(TTL / 2)
        assert [(await master.ping(pod(number)))["seq"] for number in (10, 11)] == [0, 1]


@virtual
async def test_a_bound_holds_for_batches_that_are_under_way_together() -> None:
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=TTL, bounds=Bounds(pods=150)) as master:
        await asyncio.sleep(1)
        answers = await all_at_once(master, [pod(number) for number in range(400)])
        names = Counter(a.name if isinstance(a, Refused) else "" for a in answers)
        assert names == {"": 150, "TooManyPods": 250}
        assert len(numbers(cluster)) == 150


@virtual
async def test_a_crowd_that_joins_waits_for_its_turn_and_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More pods than can be written in the time for which an agent waits."""
    monkeypatch.setattr(queue, "BATCH", 4)  # 200 a second
    cluster, network = MemoryCluster(), Latent()
    async with running(cluster, network=network, ttl=25.0) as master:
        await asyncio.sleep(1)
        agents = [
            Reporter([master], number, 25.0, {"ip": f"10.0.{number // 250}.{number % 250}"})
            for number in range(1500)
        ]
        begun = asyncio.get_running_loop().time()
        async with reporting(*agents):
            for _ in range(200):
                await asyncio.sleep(0.1)
                if len(numbers(cluster)) == 1500:
                    break
            took = asyncio.get_running_loop().time() - begun
            before = born(cluster)
            assert len(before) == 1500
            await asyncio.sleep(25)
            assert born(cluster) == before, "none was lost"
        assert took == pytest.approx(1500 / 200, rel=0.2)
        told = Counter(str(one) for agent in agents for one in agent.told)
        assert told.keys() == {"25.0", "NotWritten"}
        assert max(Counter(map(str, agent.told))["NotWritten"] for agent in agents) <= 3
        assert sorted(numbers(cluster).values()) == list(range(1500)), "each was written once"


@virtual
async def test_a_pod_that_waits_for_its_turn_is_told_so_while_etcd_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "_WAITING", 1)
    monkeypatch.setattr(writer, "_UNDER_WAY", 1)
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=25.0) as master:
        await asyncio.sleep(1)
        network.holds = lambda request: has(request, '"p1"')
        first = asyncio.create_task(master.ping(pod(1)))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(master.ping(pod(2)))
        await asyncio.sleep(0.1)
        # Nothing was written lately: another master may do better.
        with pytest.raises(Refused, match=r"Unavailable: .*1 keepalives wait"):
            await master.ping(pod(3))
        await asyncio.sleep(2)
        network.holds = lambda request: has(request, '"p2"')
        network.go.set()
        network.go = asyncio.Event()
        await first
        await asyncio.sleep(0.1)
        third = asyncio.create_task(master.ping(pod(3)))
        await asyncio.sleep(0.1)
        with pytest.raises(Refused, match="NotWritten: pod p4 is not in etcd yet: 1 keepalives"):
            await master.ping(pod(4))
        with pytest.raises(Refused, match="NotWritten: pod p2 is not in etcd yet"):
            await second
        with pytest.raises(Refused, match=r"Unavailable: .*\(not in time\)"):
            await third
        network.go.set()


@virtual
async def test_what_is_under_way_when_the_master_stops_is_refused() -> None:
    cluster, network = MemoryCluster(), Held()
    async with running(cluster, network=network, ttl=TTL) as master:
        network.holds = of_pods
        tries = [asyncio.create_task(master.ping(pod(number))) for number in range(400)]
        await asyncio.sleep(0.1)
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert all("shutting down" in str(answer) for answer in answers)
    assert not master.registry.writer._under_way
    assert len(master.registry.queue) == 400 - 4 * queue.BATCH


@virtual
async def test_a_batch_that_is_cancelled_before_it_begins_is_refused() -> None:
    cluster = MemoryCluster()
    async with running(cluster, ttl=TTL) as master:
        entry = master.registry.queue.add(parse_keepalive(pod(1)), 100, None, urgent=True)
        batch, places = writer._Batch(await master.registry.queue.take(TTL)), asyncio.Semaphore(0)
        master.registry.writer._under_way.append(batch)
        task = asyncio.create_task(master.registry.writer._carry_out(batch))
        task.add_done_callback(partial(master.registry.writer._end, batch, places))
        task.cancel()
        await asyncio.wait([task])
        assert isinstance(await entry.answer, Unavailable)
        assert not places.locked()


def entry(number: int, decision: Decision) -> Entry:
    keepalive = parse_keepalive(pod(number))
    name = (keepalive.key, keepalive.id, keepalive.nonce, True)
    nothing: Any = None  # no loop runs
    return Entry(name, keepalive, 10, None, 0.0, nothing, decision=decision)


DECISIONS = st.lists(
    st.tuples(
        st.integers(0, 60),
        st.sampled_from(["join", "nothing", "archive"]),
        st.lists(st.integers(0, 60), max_size=2, unique=True),
    ),
    min_size=1,
    max_size=90,
)


@given(DECISIONS)
def test_a_transaction_gets_what_it_has_room_for(
    decisions: list[tuple[int, str, list[int]]],
) -> None:
    """The first ones, as many as there is room for, and no key twice: etcd refuses that."""
    entries = []
    for number, kind, moved in decisions:
        keepalive = parse_keepalive(pod(number))
        others = [
            Live(Pod.of(parse_keepalive(pod(other)), 1), 1, 1) for other in moved if other != number
        ]
        archive = Registration("p0", "", None, 1, left=True) if kind == "archive" else None
        join = Join(keepalive, None, tuple(others), archive)
        entries.append(entry(number, Nothing() if kind == "nothing" else join))

    def built(some: list[Entry]) -> TxnBuilder:
        txn = TxnBuilder(KEYS, Numbers(1, 1))
        for each in some:
            txn.add(each.record, each.view, each.decision, 1)
        txn.close()
        return txn

    def fits(txn: TxnBuilder) -> bool:
        keys = [op.key for op in txn.ops]
        return len(keys) == len(set(keys)) and len(keys) <= 128 and len(txn.compares) <= 128

    some = writer._fitting(entries)
    assert some == entries[: len(some)]
    assert len(some) >= 1
    assert fits(built(some))
    if len(some) < len(entries):
        one_more = built(entries[: len(some) + 1])
        # The counter's place is kept, whether or not it moves.
        assert not fits(one_more) or len(one_more.ops) == 128


@pytest.mark.parametrize(("archives", "fit"), [(0, 63), (1, 63), (2, 62), (40, 43)])
def test_a_transaction_is_filled_to_the_last_operation(archives: int, fit: int) -> None:
    gone = Registration("p0", "", None, 1, left=True)
    entries = [
        entry(number, Join(parse_keepalive(pod(number)), None, (), archive))
        for number in range(70)
        for archive in [gone if number < archives else None]
    ]
    assert len(writer._fitting(entries)) == fit
