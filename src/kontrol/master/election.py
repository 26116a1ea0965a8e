"""Election: candidates campaign, the oldest leads, and keeps proving that it does.

As in etcd's concurrency package, a candidate is a key under a lease, the oldest key leads, and its
creation revision is the *term*. A candidate leads when its predecessor's key is gone. It gives up
when its own key is gone, when its lease expires, or when the store was restored to an earlier
revision.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from kontrol.errors import leaves
from kontrol.master.highwater import HighWater
from kontrol.master.records.fields import MOST
from kontrol.master.records.masters import Candidate, Outdated
from kontrol.master.records.records import Records
from kontrol.master.term import Deposed, OwnedKey, Term
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Event,
    KeyValue,
    NoSpace,
    Put,
    Range,
    Store,
    StoreError,
)

log = logging.getLogger(__name__)

# Of the fail-over time: two proofs may be lost before the deadline at two thirds.
_PROOF_EVERY = 1 / 5

# Seconds at most between two refreshes of the lease. Any client can ask etcd for what is left of
# it, and so find that a leader has just gone. A refresh costs no write.
_REFRESH_EVERY = 0.5

# Revisions that a store may have had beyond the last that this master saw. It watches pods and
# candidates, and a run that is tried again and again writes neither. Years of that are fewer.
_UNSEEN = 1_000_000

# Times the fail-over time: how often the candidates are read again, since others wait for one that
# is gone and still remembered.
_VERIFY = 5

Lead = Callable[[Term], Awaitable[None]]


class Candidacy:
    """The key that makes this master a candidate, and describes it to all others."""

    def __init__(self, key: OwnedKey, candidate: Callable[[], Candidate]) -> None:
        self._key = key
        self._candidate = candidate
        self._number: int | None = None
        self._writing = asyncio.Lock()

    async def announce(self, number: int) -> None:
        """Announce that it leads, in the term of this number. Raises as `OwnedKey.put`."""
        self._number = number
        await self.update()

    async def update(self) -> None:
        """Write it again if the description changed. Raises as `OwnedKey.put`."""
        async with self._writing:
            value = replace(self._candidate(), term=self._number).encode()
            if value != self._key.value:
                await self._key.put(value)


class Election:
    """Campaigns for leadership, and runs what it is given while this master leads."""

    def __init__(
        self,
        store: Store,
        records: Records,
        *,
        fover: float,
        candidate: Callable[[], Candidate],
        highwater: HighWater,
        clock: Callable[[], float],
    ) -> None:
        """`fover` in seconds; `candidate` describes this master; `clock` is the boot clock."""
        self.term: Term | None = None
        self.proofs = 0
        self._store = store
        self._records = records
        self._keys = keys = records.keys
        self._fover = fover
        self._candidate = candidate
        self._highwater = highwater
        self._clock = clock
        self.cache = WatchCache(store, keys.candidates, silence=fover / 3, verify=_VERIFY * fover)
        self.cache.listen(self._take)
        self.cache.on_restore(self.restart)
        self._floor = 0
        self._moved = asyncio.Event()
        self._again = asyncio.Event()
        self._described = asyncio.Event()
        self._candidacy: Candidacy | None = None

    @property
    def followed(self) -> asyncio.Event:
        """Set once the candidates are known."""
        return self.cache.complete

    @property
    def candidates(self) -> list[KeyValue]:
        """The live candidates, the leader first.

        A key without a lease is not a candidate: it would never expire.
        """
        living = (kv for kv in self.cache.entries.values() if kv.lease)
        return sorted(living, key=lambda kv: kv.create_revision)

    @property
    def margin(self) -> float | None:
        """Seconds for which the last proof still holds; None while this master does not lead."""
        return None if self.term is None else self.term.deadline - self._clock()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the candidates change."""
        self.cache.listen(lambda _: listener())

    def restart(self, revision: int) -> None:
        """Give up, and campaign again: the store was restored, and had `revision` before."""
        self._highwater.saw_term(self._floor + revision + _UNSEEN)
        self._again.set()

    def described(self) -> None:
        """Note that this master's description changed: its candidacy is rewritten."""
        self._described.set()

    async def announce(self, term: Term) -> None:
        """Announce in the candidacy that this master leads, in the term of which number."""
        assert self._candidacy is not None, "not a candidate"  # noqa: S101
        self._saw_floor(term.number - term.revision)
        await self._candidacy.announce(term.number)

    def others(self, term: Term) -> list[Candidate]:
        """Return the other live candidates, the oldest first."""
        return [self._records.candidate(kv) for kv in self.candidates if kv.key != term.key]

    async def follow(self) -> None:
        """Keep the list of candidates up to date, until cancelled."""
        await self.cache.run()

    async def run(self, lead: Lead) -> None:
        """Campaign and lead, again and again, until cancelled; then resign.

        `lead` is cancelled when the term ends, and may finish in its clean-up what it must: the
        term says whether it is `deposed`, and is still being proved if it is not.
        """
        delay = 0.0
        while True:
            try:
                await self._campaign(lead)
                delay = 0.0
            except* Deposed as group:
                for error in leaves(group):
                    log.warning("%s; campaigning again", error)
            except* StoreError as group:
                for error in leaves(group):
                    log.warning("cannot campaign while etcd fails: %s", error)
            except* Outdated as group:
                for error in leaves(group):
                    log.error("does not campaign: %s", error)
                await asyncio.sleep(self._fover)
            # A group of errors hides that we were cancelled meanwhile (Python before 3.13).
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            term = None if event.type == "delete" else self._records.candidate(event.kv).term
            if term is not None and term <= MOST:
                self._saw_floor(term - event.kv.create_revision)
        self._moved.set()

    def _saw_floor(self, floor: int) -> None:
        # A leader may raise it after it was read here, and a restore may lower it in the store.
        self._floor = max(self._floor, floor)

    async def _campaign(self, lead: Lead) -> None:
        meta = (await self._store.range(Range(self._keys.meta))).kvs
        known = self._records.meta(meta[0]) if meta else None
        self._saw_floor(known.floor if known else 0)
        lease = (await self._store.grant(math.ceil(self._fover))).id
        try:
            async with asyncio.TaskGroup() as group:
                self._again.clear()
                keeping = group.create_task(self._keep(lease))
                watching = group.create_task(self._leave_on_restore())
                term, self._candidacy = await self._enter(lease)
                describing = group.create_task(self._describe(self._candidacy))
                await self._wait(term)
                await term.prove()
                self.proofs += 1
                proving = group.create_task(self._prove(term))
                self.term = term
                try:
                    await lead(term)
                finally:
                    self.term = self._candidacy = None
                    for task in (keeping, watching, describing, proving):
                        task.cancel()
        finally:
            await self._resign(lease)

    async def _enter(self, lease: int) -> tuple[Term, Candidacy]:
        """Create the candidacy; the revision of its creation is the term, should it win."""
        key = self._keys.candidate(lease)
        absent = Compare(key, "create", "=", 0)
        value = self._candidate().encode()
        while True:
            try:
                answer = await self._store.txn([absent], [Put(key, value, lease)], [Range(key)])
            except NoSpace:
                raise
            except Ambiguous:
                await asyncio.sleep(self._fover / 30)
                continue  # if the first put took effect, the second reads its key
            if answer.succeeded:
                revision = answer.header.revision
            else:
                revision = answer.range(0).kvs[0].create_revision
            term = Term(self._store, key, lease, revision, fover=self._fover, clock=self._clock)
            owned = OwnedKey(self._store, term, key, value=value, revision=revision, lease=lease)
            return term, Candidacy(owned, self._candidate)

    async def _describe(self, candidacy: Candidacy) -> None:
        """Keep the candidacy's description up to date, until cancelled."""
        while True:
            await candidacy.update()
            await self._described.wait()
            self._described.clear()

    async def _wait(self, term: Term) -> None:
        """Wait until every older candidate is gone. Raises `Deposed` if this one goes first."""
        waiting_for = ""
        while True:
            self._moved.clear()
            if self.cache.revision >= term.revision:
                candidates = self.candidates
                if not any(kv.key == term.key for kv in candidates):
                    raise Deposed("the candidacy ended: its key is gone")
                if candidates[0].key == term.key:
                    return
                if candidates[0].key != waiting_for:
                    waiting_for = candidates[0].key
                    leader = self._records.candidate(candidates[0]).id
                    log.info("candidate, behind %s (as number %d)", leader, term.revision)
            await self._moved.wait()

    async def _keep(self, lease: int) -> None:
        """Refresh the lease. Raises `Deposed` once it is gone, but not if the store is away."""
        while True:
            await asyncio.sleep(min(self._fover / 5, _REFRESH_EVERY))
            try:
                if await self._store.refresh(lease) <= 0:
                    raise self._deposed("its lease expired")
            except StoreError as error:
                log.warning("the candidacy's lease was not refreshed: %s", error)

    async def _prove(self, term: Term) -> None:
        """Prove the term again and again. Raises `Deposed` when it cannot be relied on."""
        loop = asyncio.get_running_loop()
        pause = 0.0  # the first proof may have taken long
        while True:
            await asyncio.sleep(pause)
            sent = loop.time()
            try:
                async with asyncio.timeout(max(0.0, term.deadline - self._clock())):
                    await term.prove()
                self.proofs += 1
                # A proof counts from when it was sent, and so does the time to the next one.
                pause = max(0.0, sent + self._fover * _PROOF_EVERY - loop.time())
            except Deposed:
                raise
            except (StoreError, TimeoutError) as error:
                if not term.held:
                    raise self._deposed("etcd did not confirm it in time") from error
                why = str(error) or "no answer in time"
                log.warning("term %d is not confirmed by etcd: %s", term.number, why)
                pause = self._fover / 30

    async def _leave_on_restore(self) -> None:
        await self._again.wait()
        raise self._deposed("the store was restored")

    def _deposed(self, why: str) -> Deposed:
        if self.term is None:
            return Deposed(f"the candidacy ended: {why}")
        return self.term.depose(why)

    async def _resign(self, lease: int) -> None:
        """End the candidacy, so that a successor need not wait for the lease to expire."""
        try:
            async with asyncio.timeout(min(2.0, self._fover / 3)):
                await self._store.revoke(lease)
        except (StoreError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            log.info("the candidacy is left to expire, within %g s: %s", self._fover, why)
