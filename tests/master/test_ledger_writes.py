"""A ledger write whose answer is lost is settled by reading; other writes are told from it.

And what a leader reads when it opens the ledger, and asks of the fate of pods.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.master.support import KEYS
from tests.master.test_election import PAUSES, Failing
from tests.master.test_ledger import GOOD, PODS, running
from tests.master.test_registry import Faulty, writes
from tests.support.memory import MemoryCluster, MemoryStore
from tests.support.memory.requests import Request, Txn
from tests.support.simloop import virtual

from kontrol.ensemble.ensemble import Changes, missing
from kontrol.master.highwater import HighWater
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.observer import find_left
from kontrol.master.records.fields import BELIEVED_RUN
from kontrol.master.records.pods import Registration
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Ending
from kontrol.master.term import Deposed, Term
from kontrol.store.protocol import Ambiguous, Compare, Delete, Op, Put, Range, Unavailable

BAD = Ending(ok=False, why="exit status 3")
HEADS = (KEYS.running, KEYS.applied, KEYS.state, KEYS.published)
ANSWER = KEYS.requests + "1"


class Book:
    """A ledger behind a network, and the store without it."""

    def __init__(
        self,
        ledger: Ledger,
        store: MemoryStore,
        network: Faulty,
        lease: int,
        highwater: HighWater,
    ) -> None:
        self.ledger = ledger
        self.highwater = highwater
        self.store = store
        self.network = network
        self.lease = lease

    @classmethod
    async def open(cls, cluster: MemoryCluster | None = None) -> "Book":
        """Open the ledger as the leader of a new term; run 1 is acknowledged, run 2 may start."""
        book = await cls.opened(cluster or MemoryCluster())
        await book.ledger.start(running(1))
        await book.ledger.commit(PODS, Changes(), GOOD, b'{"run":1}')
        return book

    @classmethod
    async def opened(cls, cluster: MemoryCluster, *, known: int = 0) -> "Book":
        """Open the ledger as it is; `known` is the highest run that this master saw."""
        store, network = MemoryStore(cluster), Faulty()
        lease = (await store.grant(600)).id
        key = KEYS.candidate(lease)
        put = await store.txn([], [Put(key, b"{}", lease)])
        clock = asyncio.get_running_loop().time
        client = MemoryStore(cluster, network)
        term = Term(client, key, lease, put.header.revision, fover=3, clock=clock)
        records = Records(KEYS)
        ledger = Ledger(client, records, term)
        highwater = HighWater(client, records, silence=1)
        highwater.run = known
        await ledger.open(highwater)
        return cls(ledger, store, network, lease, highwater)

    async def contents(self) -> dict[str, bytes]:
        """All that is in the store, but for candidacies."""
        kvs = (await self.store.range(Range(KEYS.root, prefix=True))).kvs
        return {kv.key: kv.value for kv in kvs if not kv.key.startswith(KEYS.candidates)}

    async def put(self, *ops: Op) -> None:
        """Write past the ledger."""
        await self.store.txn([], ops)

    async def ask(self) -> None:
        """Put a request down, under a lease."""
        await self.put(Put(ANSWER, b"asked", self.lease))

    def answer(self, run: int) -> tuple[Compare, Put]:
        """What answers the request."""
        return Compare(ANSWER, "version", "=", 1), Put(ANSWER, b"run %d" % run, self.lease)

    async def roll_back(self) -> int | None:
        """Put the state of run 1 back."""
        return await self.ledger.roll_back(
            1, b'{"run":1}', started="t", by="ann", answer=self.answer
        )


async def start(book: Book) -> None:
    await book.ledger.start(running(2))


async def commit(book: Book) -> None:
    await book.ledger.commit(PODS[:1], Changes(), GOOD, b'{"run":2}')


async def commit_without_state(book: Book) -> None:
    await book.ledger.commit(PODS[:1], Changes(), GOOD, None)


async def fail(book: Book) -> None:
    await book.ledger.fail(2, Changes(), BAD)


async def withdraw(book: Book) -> None:
    await book.ledger.withdraw(2, Changes(), "a reason")


async def publish(book: Book) -> None:
    now = book.ledger.published.with_document("a", [1], run=2)
    assert now is not None
    assert await book.ledger.publish(now, edited="t") == book.ledger.published.version


async def publish_again(book: Book) -> None:
    book.highwater.saw_version(17)
    await book.ledger.publish_again(edited="t")
    assert book.ledger.published.version == 18


async def roll_back(book: Book) -> None:
    await book.ask()
    assert await book.roll_back() == book.ledger.next_run - 1


Step = Callable[[Book], Awaitable[None]]
MOVES: list[list[Step]] = [
    [start],
    [start, commit],
    [start, commit_without_state],
    [start, fail],
    [start, withdraw],
    [start, publish],
    [start, publish, commit],
    [publish_again],
    [roll_back],
]
BY_NAME = pytest.mark.parametrize("steps", MOVES, ids=lambda steps: steps[-1].__name__)


def lose_once(after: list[Exception | None]) -> Callable[[Request], Exception | None]:
    """Lose the answers of writes as a list says, of those that move a head of the ledger."""
    left = iter(after)

    def lose(request: Request) -> Exception | None:
        moves = isinstance(request, Txn) and any(
            isinstance(op, Put | Delete) and op.key in HEADS for op in request.then
        )
        return next(left, None) if moves else None

    return lose


@BY_NAME
def test_a_move_whose_answer_is_lost_is_done_once(steps: list[Step]) -> None:
    @virtual
    async def test() -> None:
        smooth, rough = await Book.open(), await Book.open()
        for step in steps[:-1]:
            await step(smooth)
            await step(rough)
        rough.network.after = lose_once([Ambiguous("lost")])
        await steps[-1](smooth)
        await steps[-1](rough)
        assert await rough.contents() == await smooth.contents()
        assert rough.ledger.next_run == smooth.ledger.next_run
        assert rough.ledger.running == smooth.ledger.running
        await rough.ledger.start(running(9))  # it knows how its heads stand

    test()


@BY_NAME
def test_a_move_that_was_not_done_is_done_again(steps: list[Step]) -> None:
    @virtual
    async def test() -> None:
        smooth, rough = await Book.open(), await Book.open()
        for step in steps[:-1]:
            await step(smooth)
            await step(rough)
        rough.network.before = lose_once([Ambiguous("lost"), Unavailable("no quorum")])
        await steps[-1](smooth)
        await steps[-1](rough)
        assert await rough.contents() == await smooth.contents()
        await rough.ledger.start(running(9))

    test()


@virtual
async def test_a_move_that_is_answered_is_one_request() -> None:
    book = await Book.open()
    book.network.requests.clear()
    await start(book)
    assert len(book.network.requests) == 1


@virtual
async def test_a_move_is_tried_again_after_growing_pauses() -> None:
    cluster = MemoryCluster()
    book = await Book.open(cluster)
    failing = Failing(writes, Unavailable("no quorum"))
    book.network.before = failing.before
    await start(book)
    assert failing.pauses == pytest.approx(PAUSES)


async def meddled(step: Step, *others: list[Op], done: bool = False) -> tuple[Book, list[Op]]:
    """Take a step whose answer is lost; before it is settled others write, one after the other."""
    book = await Book.open()
    moved: list[Op] = []

    def lose(request: Request) -> Exception | None:
        if moved or not writes(request):
            return None
        assert isinstance(request, Txn)
        moved.extend(request.then)
        if done:
            book.store._core.txn(request)
        for ops in others:
            book.store._core.txn(Txn((), tuple(ops), ()))
        return Ambiguous("lost")

    if step is roll_back:
        await book.ask()
    book.network.before = lose
    with pytest.raises(Deposed, match="the store was restored"):
        await (book.roll_back() if step is roll_back else step(book))
    return book, moved


@virtual
async def test_what_another_wrote_is_not_taken_for_ones_own() -> None:
    other = running(2)
    await meddled(start, [Put(KEYS.last_run, b"2"), Put(KEYS.running, other.encode() + b" ")])


@virtual
async def test_the_same_written_piece_by_piece_is_not_ones_own() -> None:
    """One transaction is one revision."""
    await meddled(start, [Put(KEYS.last_run, b"2")], [Put(KEYS.running, running(2).encode())])


@virtual
async def test_the_same_state_without_the_entry_is_not_ones_own() -> None:
    await meddled(roll_back, [Put(KEYS.state, b'{"run":1}')])


@virtual
async def test_an_answer_that_says_something_else_is_not_ones_own() -> None:
    await meddled(roll_back, [Put(ANSWER, b"else", 0)], done=True)


@virtual
async def test_an_entry_that_is_missing_is_not_ones_own() -> None:
    await meddled(start, [Delete(KEYS.last_run)], done=True)


@virtual
async def test_a_head_that_moved_besides_is_not_ones_own() -> None:
    await meddled(start, [Put(KEYS.state, b'{"else":1}')], done=True)


@virtual
async def test_a_rollback_whose_request_expired_since_is_done() -> None:
    book = await Book.open()
    await book.ask()

    def lose(request: Request) -> Exception | None:
        if not writes(request):
            return None
        book.network.after = lambda _: None
        book.store._core.txn(Txn((), (Delete(ANSWER),), ()))
        return Ambiguous("lost")

    book.network.after = lose
    assert await book.roll_back() == 2
    assert (await book.contents())[KEYS.state_of(2)] == b'{"run":1}'


@virtual
async def test_a_rollback_whose_request_is_gone_is_not_done() -> None:
    book = await Book.open()
    before = await book.contents()
    assert await book.roll_back() is None
    assert await book.contents() == before
    await start(book)
    await commit(book)


@virtual
async def test_a_rollback_is_told_in_the_ledger_with_the_callback_that_stands() -> None:
    book = await Book.open()
    await roll_back(book)
    assert json.loads((await book.contents())[KEYS.run(2)])["fingerprint"] == "f"
    unused = await Book.opened(MemoryCluster())
    await unused.ask()
    assert await unused.roll_back() == 1
    assert json.loads((await unused.contents())[KEYS.run(1)])["fingerprint"] == ""


@virtual
async def test_a_start_that_is_withdrawn_leaves_the_failed_run_that_stood_before() -> None:
    book = await Book.open()
    await start(book)
    await fail(book)
    failed = book.ledger.running
    await book.ledger.start(running(3))
    assert book.ledger.failed == failed
    await withdraw(book)
    assert book.ledger.running == failed
    again = await Book.opened(book.store._cluster)
    assert again.ledger.running == failed
    assert again.ledger.next_run == 4


@virtual
async def test_a_run_that_was_withdrawn_is_not_due() -> None:
    book = await Book.open()
    await start(book)
    await withdraw(book)
    again = await Book.opened(book.store._cluster)
    assert again.ledger.running is None
    assert again.ledger.failed is None
    assert again.ledger.next_run == 3


@virtual
async def test_the_meta_record_is_written_by_the_first_leader_alone() -> None:
    cluster = MemoryCluster()
    for _ in range(2):
        book = await Book.opened(cluster)
        kvs = (await book.store.range(Range(KEYS.meta))).kvs
        assert [kv.version for kv in kvs] == [1]


@pytest.mark.parametrize(
    ("ops", "known", "following"),
    [
        ([], 0, 1),
        ([], 41, 42),
        ([Put(KEYS.last_run, b"41")], 0, 42),
        ([Put(KEYS.last_run, b"junk")], 0, 1),
        ([Put(KEYS.run(41), b"{}")], 0, 42),
        ([Put(KEYS.running, replace(running(41), ended=True).encode())], 0, 42),
        ([Put(KEYS.last_run, b"%d" % BELIEVED_RUN)], 0, BELIEVED_RUN + 1),
        ([Put(KEYS.last_run, b"%d" % (BELIEVED_RUN + 1))], 0, 1),
    ],
)
def test_the_next_run_is_above_all_that_there_were(
    ops: list[Op], known: int, following: int
) -> None:
    @virtual
    async def test() -> None:
        cluster = MemoryCluster()
        await MemoryStore(cluster).txn([], ops)
        book = await Book.opened(cluster, known=known)
        assert book.ledger.next_run == following

    test()


@virtual
async def test_what_a_new_leader_knows_of_the_last_run_is_stored_if_it_was_not() -> None:
    cluster = MemoryCluster()
    for known, value, version in ((41, b"41", 1), (41, b"41", 1), (40, b"41", 1), (42, b"42", 2)):
        book = await Book.opened(cluster, known=known)
        (kv,) = (await book.store.range(Range(KEYS.last_run))).kvs
        assert (kv.value, kv.version) == (value, version)


def registration(seq: int, *, left: bool) -> bytes:
    return Registration("p1", "a", 0, seq, left).encode()


@pytest.mark.parametrize(
    ("ops", "left"),
    [
        ([], set()),
        ([Put(KEYS.pod("k1"), PODS[0].encode())], None),
        ([Put(KEYS.pod("k1"), replace(PODS[0], seq=9).encode())], set()),
        ([Put(KEYS.pod("k1"), b"junk")], set()),
        ([Put(KEYS.registration("k1"), registration(1, left=True))], {1}),
        ([Put(KEYS.registration("k1"), registration(1, left=False))], set()),
        ([Put(KEYS.registration("k1"), registration(9, left=True))], set()),
        ([Put(KEYS.registration("k1"), b"junk")], set()),
        ([Put(KEYS.archived_registration("k1", 1), registration(1, left=True))], {1}),
        (
            [
                Put(KEYS.registration("k1"), b"junk"),
                Put(KEYS.archived_registration("k1", 1), registration(1, left=True)),
            ],
            {1},
        ),
    ],
)
def test_a_tombstone_tells_left_from_lost_and_a_live_record_that_one_is_late(
    ops: list[Op], left: set[int] | None
) -> None:
    @virtual
    async def test() -> None:
        book = await Book.open()
        await book.put(*ops)
        gone = missing(book.ledger.applied.members, PODS[1:])
        assert await find_left(book.store, Records(KEYS), gone) == left

    test()
