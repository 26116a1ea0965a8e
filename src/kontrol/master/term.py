"""A term: one leadership, its fence in the store, and until when it may act outside of the store.

Every write of a leader compares the creation revision of its candidacy, so a deposed leader writes
nothing. What it does outside the store is bounded by *proofs*: linearizable transactions that find
its key in place. Two thirds of the fail-over time after the last proof was sent, it no longer
leads, whatever it believes. (A lease keepalive proves nothing: etcd's leader answers it alone, and
may itself be deposed.)

Invariant: between the sending of a proof and its deadline, no other leader acts that waits one
fail-over time after it won.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Op,
    Put,
    Range,
    Store,
    TxnResult,
    Unavailable,
)

log = logging.getLogger(__name__)

_DEADLINE = 2 / 3  # of the fail-over time


class Deposed(Exception):
    """Leadership is lost; nothing more may be done under this term."""


class Term:
    """One leadership: its number, its fence, and until when it may act.

    `revision` is the candidacy's creation revision, which fences. `number` is the term's for
    everything outside the store: the revision plus a floor that the ledger keeps, so that it rises
    even if the store is restored to an earlier revision. `deadline` is in seconds of the boot
    clock, which goes on while the machine sleeps.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        lease: int,
        revision: int,
        *,
        fover: float,
        clock: Callable[[], float],
    ) -> None:
        self.key = key
        self.lease = lease
        self.revision = revision
        self.number = revision
        self.deposed = False
        self._store = store
        self._span = fover * _DEADLINE
        self._clock = clock
        self._proved = float("-inf")
        self._listeners: list[Callable[[float], None]] = []
        self._expected: Callable[[], Sequence[Compare]] = tuple

    @property
    def deadline(self) -> float:
        """The time, on the boot clock, until which the leader may act by its last proof."""
        return self._proved + self._span

    @property
    def held(self) -> bool:
        """Whether the leader may act now."""
        return not self.deposed and self._clock() < self.deadline

    def on_proof(self, listener: Callable[[float], None]) -> Callable[[], None]:
        """Call `listener` with each new deadline; returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def fence(self) -> Compare:
        """The comparison that every write of this term must carry."""
        return Compare(self.key, "create", "=", self.revision)

    async def write(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        """Write under the fence. Raises `Deposed` if the term is over, and `StoreError`.

        `succeeded` is False if another comparison failed. A write that is tried again, or whose
        answer was lost, must move a key that it compares. Otherwise a late copy of it would take
        effect after later writes of the same term, which pass the fence.
        """
        answer = await self._store.txn([self.fence, *compares], then, [Range(self.key)])
        if not answer.succeeded:
            key = answer.range(0).kvs
            if not key or key[0].create_revision != self.revision:
                raise self.depose("its key is gone")
        return answer

    def depose(self, why: str) -> Deposed:
        """End the term here; returns what to raise."""
        self.deposed = True
        return Deposed(f"term {self.number} ended: {why}")

    async def insist(self, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> None:
        """Write under the fence, again until the store has answered.

        For writes that may arrive late and twice: deletions of keys that are not written again,
        keys that are written once, and what moves one of `compares`. If one of these does not hold,
        nothing is written. Raises as `write`, except for outages.
        """
        delay = 0.0
        while True:
            try:
                await self.write(compares, ops)
                return
            except (Ambiguous, Unavailable) as error:
                log.warning("term %d waits for the store: %s", self.number, error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    def expect(self, expected: Callable[[], Sequence[Compare]]) -> None:
        """Have each proof compare what the term wrote as well: `expected` returns what must hold.

        A restore can undo what the term wrote and keep its candidacy, if the snapshot has it.
        """
        self._expected = expected

    async def prove(self) -> None:
        """Ask the store whether this term still holds. Raises `Deposed` and `StoreError`."""
        sent, expected = self._clock(), self._expected()
        answer = await self.write(expected, [Range(self.key, keys_only=True)])
        if not answer.succeeded and self._expected() == expected:  # nothing was written meanwhile
            raise self.depose("what it wrote is undone: the store was restored")
        self._proved = max(self._proved, sent)
        for listener in self._listeners:
            listener(self.deadline)


class OwnedKey:
    """A key that one term writes again and again, by one task at a time: the last value stays.

    Each write compares the revision of the one before. So a copy of an earlier write that arrives
    late (etcd may still commit what it never answered) changes nothing. If anything else changed
    the key, that is overwritten. `value` is what was written last, None before that.
    """

    def __init__(
        self,
        store: Store,
        term: Term,
        key: str,
        *,
        value: bytes | None = None,
        revision: int = 0,
        lease: int = 0,
    ) -> None:
        """`revision` is the key's modification revision as last read, 0 if it is absent."""
        self.value = value
        self._store = store
        self._term = term
        self._key = key
        self._revision = revision
        self._lease = lease

    async def put(self, value: bytes) -> None:
        """Write `value`, until the store has answered. Raises `Deposed` and `StoreError`."""
        delay = 0.0
        while True:
            try:
                if await self._try(value):
                    return
            except (Ambiguous, Unavailable) as error:
                log.warning("term %d waits for the store: %s", self._term.number, error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    async def _try(self, value: bytes) -> bool:
        unmoved = Compare(self._key, "mod", "=", self._revision)
        answer = await self._term.write([unmoved], [Put(self._key, value, self._lease)])
        if answer.succeeded:
            self._revision = answer.header.revision
        else:
            found = (await self._store.range(Range(self._key))).kvs
            self._revision = found[0].mod_revision if found else 0
            if not found or found[0].value != value:
                return False
        self.value = value
        return True
