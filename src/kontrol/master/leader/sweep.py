"""The sweep: seats that nobody used for a day are forgotten, and their numbers with them.

A seat outlives its pod so that a pod which comes back finds its number. The first sweep that finds
it without a pod stamps it; it is deleted once that stamp is old. Age is time that leaders have
watched pass (`records/pods.py`): the leader adds what its own term has watched, and no wall clock
decides. All writes are fenced and compare that nothing moved: a pod that comes back keeps its seat,
and a write that is done late or twice changes nothing.

Seats are bounded too, or a stranger who reports ever new pods would fill the store within that day:
of more than twice the pods that a tier may have, those unused for the longest time are forgotten at
once, and the sweep comes early when many pods are new.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from kontrol.master.records.pods import Ages
from kontrol.master.records.records import Records
from kontrol.master.term import Term
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

_SEATS = 2  # per pod that the tier may have
_BATCH = 50  # seats in a transaction: of etcd's 128 operations and as many comparisons


class Numbers(Protocol):
    """Which sequence numbers pods have."""

    @property
    def highest(self) -> int:
        """The highest that was seen."""
        ...

    async def numbered(self, number: int) -> None:
        """Wait until one was seen that is as high."""
        ...


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
        max_pods: int = 50_000,
        numbers: Numbers | None = None,
    ) -> None:
        """`every` and `age` are in seconds, as is `clock`, which nobody may set.

        `max_pods` is what the tier may have, and `numbers` tells which were given. `wall` tells the
        date and time, RFC 3339, for those who read a stamp.
        """
        self._store = store
        self._records = records
        self._term = term
        self._every = every
        self._age = age
        self._clock = clock
        self._wall = wall
        self._max_pods = max_pods
        self._numbers = numbers
        self._began: tuple[float, float] | None = None  # by the clock, and seconds watched by then

    async def run(self) -> None:
        """Sweep until cancelled. Raises `Deposed` and `StoreError`."""
        while True:
            try:
                await self.sweep()
            except (Unavailable, Ambiguous) as error:
                log.debug("the seats are swept later: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._many()

    async def _many(self) -> None:
        """Wait until as many pods were numbered since now as the tier may have."""
        if self._numbers is None:
            await asyncio.Event().wait()
        else:
            await self._numbers.numbered(self._numbers.highest + self._max_pods)

    async def sweep(self) -> int:
        """Stamp and delete unused seats; returns how many were deleted.

        Raises `Deposed` and `StoreError`.
        """
        keys, records = self._records.keys, self._records
        answer = await self._store.txn(
            [],
            [
                Range(keys.pods, prefix=True, keys_only=True),
                Range(keys.registrations, prefix=True),
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
        unused: list[KeyValue] = []
        work: list[tuple[KeyValue, Op]] = []
        for kv in seats:
            seat = records.registration(kv)
            if seat is None or kv.key.removeprefix(keys.registrations) in live:
                continue
            unused.append(kv)
            if seat.idle is None:
                op: Op = Put(kv.key, replace(seat, idle=self._today()).encode())
            elif kv.mod_revision <= old:
                op = Delete(kv.key)
            else:
                continue
            work.append((kv, op))
        crowd = max(0, len(seats) - _SEATS * self._max_pods)
        surplus = sorted(unused, key=lambda kv: kv.mod_revision)[:crowd]
        if surplus:
            log.warning(
                "etcd keeps the numbers of %d pods, over %d times KONTROL_MAX_PODS: those of %d "
                "that have been away the longest are forgotten",
                len(seats),
                _SEATS,
                len(surplus),
            )
            keys_of = {kv.key for kv in surplus}
            work = [(kv, op) for kv, op in work if kv.key not in keys_of]
            work += [(kv, Delete(kv.key)) for kv in surplus]
        deleted = await self._write_all(work)
        if deleted > len(surplus):
            log.info("%d numbers of pods that were away for long are forgotten", deleted)
        return deleted

    async def _write_all(self, work: Sequence[tuple[KeyValue, Op]]) -> int:
        """Do the work on seats that did not move; returns how many were deleted."""
        deleted = 0
        for start in range(0, len(work), _BATCH):
            some = work[start : start + _BATCH]
            if await self._write(some):
                done = some
            elif len(some) > 1:
                done = [one for one in some if await self._write([one])]
            else:
                continue
            deleted += sum(isinstance(op, Delete) for _, op in done)
        return deleted

    async def _write(self, work: Sequence[tuple[KeyValue, Op]]) -> bool:
        """Write, if none of these seats moved."""
        unmoved = [Compare(kv.key, "mod", "=", kv.mod_revision) for kv, _ in work]
        return (await self._term.write(unmoved, [op for _, op in work])).succeeded

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
