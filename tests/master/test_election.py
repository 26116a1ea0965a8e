"""Terms and candidacies one by one: what fences, what is proved, how the store is waited for."""

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise

import pytest
from tests.master.support import CONFIG, KEYS, Stub, running
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Grant, Request, Txn
from tests.support.simloop import virtual

from kontrol.master.term import Deposed, OwnedKey, Term
from kontrol.store.protocol import Ambiguous, Compare, Delete, KeyValue, Put, Range, Unavailable

KEY = KEYS.candidate(1)
PAUSES = [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]  # seconds, while the store does not answer


async def term_of(store: MemoryStore, clock: Callable[[], float] = lambda: 100.0) -> Term:
    """A term whose key is in the store."""
    revision = (await store.txn([], [Put(KEY, b"{}")])).header.revision
    return Term(store, KEY, 1, revision, fover=6.0, clock=clock)


async def candidacies(store: MemoryStore) -> list[KeyValue]:
    """The candidacies in the store, the oldest first."""
    kvs = (await store.range(Range(KEYS.candidates, prefix=True))).kvs
    return sorted(kvs, key=lambda kv: kv.create_revision)


class Failing(Faulty):
    """A network whose first requests of a kind fail; it notes when they were made."""

    def __init__(self, concerns: Callable[[Request], bool], error: Exception) -> None:
        super().__init__()
        self.times: list[float] = []

        def before(request: Request) -> Exception | None:
            if not concerns(request):
                return None
            self.times.append(asyncio.get_running_loop().time())
            return error if len(self.times) <= len(PAUSES) else None

        self.before = before

    @property
    def pauses(self) -> list[float]:
        """The times between the failures, and until the request that was answered."""
        times = self.times[: len(PAUSES) + 1]
        return [later - earlier for earlier, later in pairwise(times)]


@virtual
async def test_a_term_is_held_until_its_deadline() -> None:
    now = [100.0]
    term = await term_of(MemoryStore(MemoryCluster()), lambda: now[0])
    held = [term.held]  # before the first proof
    await term.prove()
    assert term.deadline == 104
    for now[0] in (100.0, 103.9, 104.0):
        held.append(term.held)
    assert held == [False, True, True, False]


@virtual
async def test_a_term_that_was_deposed_is_not_held_although_it_was_proved() -> None:
    term = await term_of(MemoryStore(MemoryCluster()))
    await term.prove()
    assert term.held
    term.depose("a reason")
    assert not term.held


@virtual
async def test_a_comparison_that_fails_is_no_end_of_the_term() -> None:
    store = MemoryStore(MemoryCluster())
    term = await term_of(store)
    answer = await term.write([Compare(KEYS.state, "mod", "=", 7)], [Put(KEYS.state, b"1")])
    assert not answer.succeeded
    assert not term.deposed
    assert (await store.range(Range(KEYS.state))).kvs == ()


@virtual
async def test_a_key_that_is_gone_or_was_made_again_ends_the_term() -> None:
    for again in (False, True):
        store = MemoryStore(MemoryCluster())
        term = await term_of(store)
        await store.txn([], [Delete(KEY)])
        if again:
            await store.txn([], [Put(KEY, b"{}")])
        with pytest.raises(Deposed, match="its key is gone"):
            await term.write([], [Put(KEYS.state, b"1")])
        assert term.deposed
        assert (await store.range(Range(KEYS.state))).kvs == ()


@virtual
async def test_a_write_that_is_insisted_on_is_tried_again_after_growing_pauses() -> None:
    network = Failing(writes, Ambiguous("lost"))
    cluster = MemoryCluster()
    term = await term_of(MemoryStore(cluster))
    fenced = Term(
        MemoryStore(cluster, network), KEY, 1, term.revision, fover=6.0, clock=lambda: 0.0
    )
    await fenced.insist([Put(KEYS.state, b"1")])
    assert network.pauses == pytest.approx(PAUSES)


@virtual
async def test_a_key_of_its_own_is_tried_again_after_growing_pauses() -> None:
    network = Failing(writes, Unavailable("no quorum"))
    cluster = MemoryCluster()
    term = await term_of(MemoryStore(cluster))
    store = MemoryStore(cluster, network)
    fenced = Term(store, KEY, 1, term.revision, fover=6.0, clock=lambda: 0.0)
    await OwnedKey(store, fenced, KEYS.plan).put(b"1")
    assert network.pauses == pytest.approx(PAUSES)


@virtual
async def test_a_key_of_its_own_is_written_by_one_request() -> None:
    cluster, network = MemoryCluster(), Faulty()
    term = await term_of(MemoryStore(cluster))
    store = MemoryStore(cluster, network)
    fenced = Term(store, KEY, 1, term.revision, fover=6.0, clock=lambda: 0.0)
    key = OwnedKey(store, fenced, KEYS.plan)
    await key.put(b"1")
    await key.put(b"2")
    assert len(network.requests) == 2


@virtual
async def test_a_key_of_its_own_is_written_over_whatever_is_found() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    key = OwnedKey(store, await term_of(store), KEYS.plan)
    await key.put(b"1")
    for change in (Put(KEYS.plan, b"x"), Delete(KEYS.plan), Put(KEYS.plan, b"y")):
        await store.txn([], [change])
        await key.put(b"2")
        assert key.value == b"2"
        assert (await store.range(Range(KEYS.plan))).kvs[0].value == b"2"


@virtual
async def test_a_key_of_its_own_whose_answer_was_lost_is_written_once() -> None:
    cluster, network = MemoryCluster(), Faulty()
    term = await term_of(MemoryStore(cluster))
    store = MemoryStore(cluster, network)
    fenced = Term(store, KEY, 1, term.revision, fover=6.0, clock=lambda: 0.0)
    answers = iter([Ambiguous("lost")])
    network.after = lambda request: next(answers, None) if writes(request) else None
    key = OwnedKey(store, fenced, KEYS.plan)
    await key.put(b"1")
    assert key.value == b"1"
    assert (await store.range(Range(KEYS.plan))).kvs[0].version == 1
    await key.put(b"2")
    assert (await store.range(Range(KEYS.plan))).kvs[0].version == 2


@virtual
async def test_a_master_stands_again_after_growing_pauses_while_the_store_fails() -> None:
    network = Failing(lambda request: isinstance(request, Grant), Unavailable("no quorum"))
    async with running(MemoryCluster(), network=network) as master:
        await asyncio.sleep(30)
        assert master.leader_id == "m1"
    assert network.pauses == pytest.approx(PAUSES)


@virtual
async def test_a_candidacy_whose_answer_was_lost_leads_under_the_revision_it_got() -> None:
    cluster, network = MemoryCluster(), Faulty()
    lost = iter([Ambiguous("lost"), Ambiguous("lost")])

    def lose(request: Request) -> Exception | None:
        stands = isinstance(request, Txn) and any(
            isinstance(op, Put) and op.key.startswith(KEYS.candidates) for op in request.then
        )
        return next(lost, None) if stands else None

    network.after = lose
    async with running(cluster, network=network) as master:
        await asyncio.sleep(1)
        assert master.election.term is not None
        kvs = (await MemoryStore(cluster).range(Range(KEYS.candidates, prefix=True))).kvs
        assert [kv.create_revision for kv in kvs] == [master.election.term.revision]


@virtual
async def test_the_margin_is_what_is_left_of_the_last_proof() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2") as two:
        await asyncio.sleep(10)
        assert two.election.margin is None
        margin = one.election.margin
        assert margin is not None
        assert CONFIG.fover * (2 / 3 - 1 / 5) <= margin <= CONFIG.fover * 2 / 3


@virtual
async def test_a_candidate_says_once_which_master_it_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    cluster = MemoryCluster()
    async with running(cluster), running(cluster, id="m2"):
        await asyncio.sleep(1)
        for number in range(3, 6):
            async with running(cluster, id=f"m{number}"):
                await asyncio.sleep(1)
    lines = [line for line in caplog.messages if line.startswith("candidate, behind")]
    assert len(lines) == 4
    assert all(line.startswith("candidate, behind m1 ") for line in lines)


class Deaf(Faulty):
    """A network on which watches fall silent when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hears = asyncio.Event()
        self.hears.set()

    async def deliver(self) -> bool:
        await self.hears.wait()
        return False


@virtual
async def test_a_candidate_whose_lease_is_gone_campaigns_again_although_no_watch_says_so() -> None:
    cluster, deaf = MemoryCluster(), Deaf()
    async with running(cluster), running(cluster, Stub(), id="m2", network=deaf) as two:
        await asyncio.sleep(1)
        kv = next(kv for kv in two.election.candidates if b'"m2"' in kv.value)
        deaf.hears.clear()
        await MemoryStore(cluster).revoke(kv.lease)
        await asyncio.sleep(CONFIG.fover / 5 + 0.1)
        kvs = await candidacies(MemoryStore(cluster))
        assert [b'"m2"' in kv.value for kv in kvs] == [False, True]
        deaf.hears.set()


@virtual
async def test_a_candidate_whose_key_is_deleted_campaigns_again_before_its_lease_ends() -> None:
    cluster = MemoryCluster()
    store = MemoryStore(cluster)
    async with running(cluster), running(cluster, Stub(), id="m2") as two:
        await asyncio.sleep(1)
        kv = next(kv for kv in two.election.candidates if b'"m2"' in kv.value)
        await store.txn([], [Delete(kv.key)])
        await asyncio.sleep(1)
        kvs = await candidacies(store)
        assert [b'"m2"' in kv.value for kv in kvs] == [False, True]
        assert kvs[1].key != kv.key


@virtual
async def test_a_leader_is_one_until_its_deadline_though_the_store_is_silent() -> None:
    """The first proof that fails does not depose it; the deadline does, and not later."""
    cluster, network = MemoryCluster(), Faulty()
    loop = asyncio.get_running_loop()
    async with running(cluster, network=network) as master:
        await asyncio.sleep(10)
        term = master.election.term
        assert term is not None
        network.before = lambda _: Unavailable("no quorum")
        await asyncio.sleep(term.deadline - loop.time() - 0.5)
        assert term.held
        assert master.election.term is term
        await asyncio.sleep(0.5 + CONFIG.fover / 30)
        assert term.deposed
        assert master.election.term is None


@virtual
async def test_a_leader_that_cannot_prove_for_a_while_stays_one() -> None:
    network = Faulty()
    async with running(MemoryCluster(), network=network) as master:
        await asyncio.sleep(10)
        term = master.election.term
        network.before = lambda _: Unavailable("no quorum")
        await asyncio.sleep(CONFIG.fover / 3)
        network.before = lambda _: None
        await asyncio.sleep(CONFIG.fover)
        assert term is not None
        assert term.held
        assert master.election.term is term


@virtual
async def test_the_others_are_all_candidates_but_oneself() -> None:
    cluster = MemoryCluster()
    async with running(cluster) as one, running(cluster, id="m2"), running(cluster, id="m3"):
        await asyncio.sleep(1)
        term = one.election.term
        assert term is not None
        assert [other.id for other in one.election.others(term)] == ["m2", "m3"]
