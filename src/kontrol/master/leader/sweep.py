"""The sweep: seats that nobody used for a day are forgotten, and their numbers with them.

A seat outlives its pod so that a pod which comes back finds its number. The first sweep that finds
it without a pod stamps it; it is deleted once that stamp is old. Age is time that leaders have
watched pass (`records/ages.py`): the leader adds what its own term has watched, and no wall clock
decides. All writes are fenced and compare that nothing moved: a pod that comes back keeps its seat,
and a write that is done late or twice changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from kontrol.master.election.term import Term
from kontrol.master.records.ages import Ages
from kontrol.master.records.records import Records
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Delete,
    Header,
    KeyValue,
    Op,
    Put,
    Range,
    Store,
    Unavailable,
)

log = logging.getLogger(__name__)


class Sweep:
    """Sweeps in one term while `run` runs."""

    def __init__(
        self,
        store: Store,
        records: Records,
        term: Term,
        *,
        every: float,
        age: float,
        clock: Callable[[], float],
        wall: Callable[[], str],
    ) -> None:
        """`every` and `age` are in seconds, as is `clock`, which nobody may set.

        `wall` tells the date and time, RFC 3339, for those who read a stamp.
        """
        self._store = store
        self._records = records
        self._term = term
        self._every = every
        self._age = age
        self._clock = clock
        self._wall = wall
        self._began: tuple[float, float] | None = None  # by the clock, and seconds watched by then

    async def run(self) -> None:
        """Sweep until cancelled. Raises `Deposed` and `StoreError`."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, Ambiguous) as error:
                log.debug("the seats are swept later: %s", error)
            await asyncio.sleep(self._every)

    async def sweep(self) -> int:
        """Stamp and delete unused seats; returns how many were deleted.

        Raises `Deposed` and `StoreError`.
        """
        keys, records = self._records.keys, self._records
        answer = await self._store.txn(
            [],
            [
                Range(keys.pods, prefix=True, keys_only=True),
                Range(keys.seats, prefix=True),
                Range(keys.ages),
            ],
        )
        now = self._clock()  # after the read: what it saw is older
        if not self._term.held:  # the machine may have slept, and nobody watched
            return 0
        pods, seats, found = (answer.range(i).kvs for i in range(3))
        ages = await self._watch(found[0] if found else None, now, answer.header)
        old = ages.old(self._age)
        live = {kv.key.removeprefix(keys.pods) for kv in pods}
        deleted = 0
        for kv in seats:
            seat = records.seat(kv)
            if seat is None or kv.key.removeprefix(keys.seats) in live:
                continue
            if seat.idle is None:
                op: Op = Put(kv.key, replace(seat, idle=self._today()).encode())
            elif kv.mod_revision <= old:
                op = Delete(kv.key)
            else:
                continue
            answer = await self._term.write([Compare(kv.key, "mod", "=", kv.mod_revision)], [op])
            deleted += answer.succeeded and isinstance(op, Delete)
        if deleted:
            log.info("%d numbers of pods that were away for long are forgotten", deleted)
        return deleted

    async def _watch(self, kv: KeyValue | None, now: float, header: Header) -> Ages:
        """Add what this term has watched; returns the ages, as the store then has them."""
        known = Ages() if kv is None else self._records.ages(kv) or Ages()
        known = known.within(header.cluster, header.revision)
        if self._began is None:
            self._began = now, known.watched
        began, before = self._began
        # From the start of the term: an answer that was lost adds nothing twice.
        watched = max(known.watched, before + now - began)
        ages = known.after(watched, header.revision, age=self._age)
        key = self._records.keys.ages
        unmoved = Compare(key, "mod", "=", 0 if kv is None else kv.mod_revision)
        answer = await self._term.write([unmoved], [Put(key, ages.encode())])
        return ages if answer.succeeded else known

    def _today(self) -> float:
        return max(0.0, datetime.fromisoformat(self._wall()).timestamp())
