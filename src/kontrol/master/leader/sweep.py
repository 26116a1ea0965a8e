"""The sweep deletes registrations that were not used for a day, and with them their numbers.

A registration outlives its pod, so that a pod which returns has its number again. The first sweep
that finds it without a pod stamps it; a later one deletes it once that stamp is old. Age is time
that leaders have watched pass (`records/pods.py`): the leader adds what its own term has watched,
and no wall clock decides. All writes are fenced and compare that nothing moved: a pod that returns
keeps its registration, and a write that arrives late or twice changes nothing.

Their number is bounded too, so that a client that reports ever new pods cannot fill the store
within that day. Beyond twice the pods that a tier may have, those unused for the longest time are
deleted immediately, and a sweep comes early when many pods are new.
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

_REGISTRATIONS = 2  # per pod that the tier may have
_BATCH = 50  # registrations in a transaction: of etcd's 128 operations and as many comparisons


class Numbers(Protocol):
    """The sequence numbers that pods were given."""

    @property
    def highest(self) -> int:
        """The highest number seen."""
        ...

    async def numbered(self, number: int) -> None:
        """Wait until a number of at least `number` was seen."""
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
        numbers: Numbers,
        max_pods: int = 50_000,
    ) -> None:
        """`every` and `age` are in seconds, as is `clock`, a clock that cannot be set.

        `max_pods` is what the tier may have; `numbers` are those that its pods were given. `wall`
        returns the date and time, RFC 3339, which a stamp has for people to read.
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
                log.debug("old registrations are swept later: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._many()

    async def _many(self) -> None:
        """Wait until as many new pods got numbers as the tier may have."""
        await self._numbers.numbered(self._numbers.highest + self._max_pods)

    async def sweep(self) -> int:
        """Stamp and delete unused registrations; returns how many were deleted.

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
        if not self._term.held:  # the machine may have slept, without watching
            return 0
        pods, registrations, found = (answer.range(i).kvs for i in range(3))
        ages = await self._watch(found[0] if found else None, now, answer.header)
        old = ages.old(self._age)
        live = {kv.key.removeprefix(keys.pods) for kv in pods}
        unused: list[KeyValue] = []
        work: list[tuple[KeyValue, Op]] = []
        for kv in registrations:
            registration = records.registration(kv)
            if registration is None or kv.key.removeprefix(keys.registrations) in live:
                continue
            unused.append(kv)
            if registration.idle is None:
                op: Op = Put(kv.key, replace(registration, idle=self._today()).encode())
            elif kv.mod_revision <= old:
                op = Delete(kv.key)
            else:
                continue
            work.append((kv, op))
        excess = max(0, len(registrations) - _REGISTRATIONS * self._max_pods)
        surplus = sorted(unused, key=lambda kv: kv.mod_revision)[:excess]
        if surplus:
            log.warning(
                "etcd has registrations of %d pods, over %d times KONTROL_MAX_PODS: deleting those "
                "of the %d that have been away the longest, and their numbers",
                len(registrations),
                _REGISTRATIONS,
                len(surplus),
            )
            keys_of = {kv.key for kv in surplus}
            work = [(kv, op) for kv, op in work if kv.key not in keys_of]
            work += [(kv, Delete(kv.key)) for kv in surplus]
        deleted = await self._write_all(work)
        if deleted > len(surplus):
            log.info("deleted %d registrations of pods that were away for long", deleted)
        return deleted

    async def _write_all(self, work: Sequence[tuple[KeyValue, Op]]) -> int:
        """Do the work on registrations that did not move; returns how many were deleted."""
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
        """Write, if none of these registrations moved."""
        unmoved = [Compare(kv.key, "mod", "=", kv.mod_revision) for kv, _ in work]
        return (await self._term.write(unmoved, [op for _, op in work])).succeeded

    async def _watch(self, kv: KeyValue | None, now: float, header: Header) -> Ages:
        """Add the time that this term has watched; returns the ages as the store then has them."""
        known = Ages() if kv is None else self._records.ages(kv) or Ages()
        known = known.within(header.cluster, header.revision)
        if self._began is None:
            self._began = now, known.watched
        began, before = self._began
        # Counted from the start of the term, so that a lost answer adds nothing twice.
        watched = max(known.watched, before + now - began)
        ages = known.after(watched, header.revision, age=self._age)
        key = self._records.keys.ages
        unmoved = Compare(key, "mod", "=", 0 if kv is None else kv.mod_revision)
        answer = await self._term.write([unmoved], [Put(key, ages.encode())])
        return ages if answer.succeeded else known

    def _today(self) -> float:
        return max(0.0, datetime.fromisoformat(self._wall()).timestamp())
