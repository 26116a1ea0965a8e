"""The ledger: what was run, what was acknowledged, and the state, as the store keeps them.

A run begins with `running`, written before its process starts, and ends with one transaction:
either it is acknowledged (`state`, `applied`, its entry, and `running` removed) or it failed (its
entry, and `running` marked as ended, which keeps it due). Everything is written under the fence of
a term, and compares the revisions of `running` and `applied`; so, under one term, whoever finds
them moved to what he wrote knows that the write whose answer was lost was done, and whoever finds
anything else knows that the store went back, and writes nothing more.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kontrol.ensemble.difference import Changes, Member, missing
from kontrol.ensemble.pod import Pod
from kontrol.master.election.term import Term
from kontrol.master.records.fields import MOST_RUN
from kontrol.master.records.meta import Meta
from kontrol.master.records.records import Records
from kontrol.master.records.runs import (
    Applied,
    Ending,
    Head,
    Running,
    encode_entry,
    encode_members,
)
from kontrol.store.protocol import (
    Ambiguous,
    Compare,
    Delete,
    Op,
    Put,
    Range,
    Store,
    Unavailable,
)

log = logging.getLogger(__name__)

_STATES = 20
_RUNS = 200
_NEWEST = 20  # entries, of which some may be damaged
_ASK = 40  # members whose fate one transaction asks for: three ranges each, of 128 operations


class Ledger:
    """The leader's book. Opened once per term; nobody else writes while the term stands."""

    def __init__(self, store: Store, records: Records, term: Term) -> None:
        self.applied = Applied()
        self.running: Running | None = None
        self.state: bytes | None = None
        self.next_run = 1
        self._store = store
        self._records = records
        self._keys = records.keys
        self._term = term
        self._running_revision = 0  # 0: absent
        self._applied_revision = 0

    async def open(self, known: int) -> None:
        """Read the book, and give the term its number, above `known`.

        Raises `Outdated`, `Deposed`, and `StoreError`.
        """
        keys, records = self._keys, self._records
        answer = await self._term.write(
            [],
            [
                Range(keys.meta),
                Range(keys.applied),
                Range(keys.running),
                Range(keys.state),
                Range(keys.runs, prefix=True, descending=True, limit=_NEWEST),
                Range(f"{keys.applied}/", prefix=True),
                Range(keys.candidates, prefix=True),
            ],
        )
        found = [answer.range(i).kvs for i in range(7)]
        metas, applied, running, state, newest, chunks, candidates = found
        meta = records.meta(metas[0]) if metas else None
        unended = records.running(running[0]) if running else Running()
        if meta is None:
            told = records.highest_term(running, newest, candidates)
            floor = max(0, told + 1 - self._term.revision)
        else:
            floor = meta.floor
        # Every run takes two writes or more, so the same step takes us past all numbers of runs.
        step = max(0, known + 1 - (floor + self._term.revision))
        if step or meta is None:
            raised = replace(meta or Meta(), floor=floor + step)
            await self._term.insist([Put(keys.meta, raised.encode())])
        self._term.number = floor + step + self._term.revision
        if applied:
            self.applied = records.applied(applied[0], chunks) or Applied()
            self._applied_revision = applied[0].mod_revision
        self.state = records.state(state[0]) if state else None
        numbers = [keys.number(kv.key) or 0 for kv in newest]
        last = max([number for number in numbers if number <= MOST_RUN], default=0)
        self.next_run = 1 + max(last, unended.run, self.applied.run) + step
        if running:
            self._running_revision = running[0].mod_revision
            if not unended.run:  # its number cannot be read; no run's is above that of a term
                unended = replace(unended, run=max(self.next_run, self._term.number))
                self.next_run = unended.run + 1
            self.running = unended

    async def start(self, running: Running) -> None:
        """Write that a run begins; only then may its process start."""
        await self._move([Put(self._keys.running, running.encode())])
        self.running = running
        self.next_run = running.run + 1

    async def commit(
        self, pods: Sequence[Pod], changes: Changes, ending: Ending, state: bytes | None
    ) -> None:
        """Acknowledge the run under way: it was for `pods`; `state` None keeps the state."""
        running = self._under_way()
        members = tuple(Member.of(pod) for pod in pods)
        chunks = list(encode_members(members))
        for i, chunk in enumerate(chunks):
            await self._term.insist([Put(f"{self._keys.members(running.run)}{i:04d}", chunk)])
        kept = self.state if state is None else state
        head = Head(running.run, running.digest, running.fingerprint, len(members))
        ops: list[Op] = [
            Put(self._keys.applied, head.encode()),
            Put(self._keys.run(running.run), encode_entry(running, len(pods), changes, ending)),
            Delete(self._keys.running),
        ]
        if state is not None:
            ops.append(Put(self._keys.state, state))
        if kept is not None:
            ops.append(Put(self._keys.state_of(running.run), kept))
        await self._move(ops)
        self.state = kept
        self.running = None
        self.applied = Applied(running.run, running.digest, running.fingerprint, members)

    async def fail(self, pods: int, changes: Changes, ending: Ending) -> None:
        """Write that the run under way ended without success: it stays due."""
        ended = replace(self._under_way(), ended=True, why=ending.why)
        await self._move(
            [
                Put(self._keys.running, ended.encode()),
                Put(self._keys.run(ended.run), encode_entry(ended, pods, changes, ending)),
            ]
        )
        self.running = ended

    async def put_back(self, number: int, started: str, by: str) -> int | None:
        """Make the state that run `number` left the state again; returns the run that this is.

        None if that state is not kept. It is a run of its own in the book, though nothing ran: the
        state moves only with a number that is never used again.
        """
        kept = (await self._store.range(Range(self._keys.state_of(number)))).kvs
        state = self._records.state(kept[0]) if kept else None
        if state is None:
            return None
        booked = Running(
            run=self.next_run,
            term=self._term.number,
            attempt=1,
            digest=self.applied.digest,
            fingerprint=self.applied.fingerprint or "",
            started=started,
            reason="rollback",
            by=by,
        )
        ending = Ending(ok=True, why=f"the state of run {number} was put back")
        entry = encode_entry(booked, len(self.applied.members), Changes(), ending)
        ops: list[Op] = [
            Put(self._keys.state, state),
            Put(self._keys.state_of(booked.run), state),
            Put(self._keys.run(booked.run), entry),
        ]
        if self.running is not None:  # a failed one, which stays due
            ops.append(Put(self._keys.running, self.running.encode()))
        await self._move(ops)
        self.state = state
        self.next_run = booked.run + 1
        return booked.run

    async def trim(self) -> None:
        """Drop what is beyond the last 20 states, 200 entries, and the last run's pods."""
        keys = self._keys
        listed = await self._term.write(
            [],
            [
                Range(keys.states, prefix=True, keys_only=True),
                Range(keys.runs, prefix=True, keys_only=True),
                Range(f"{keys.applied}/", prefix=True, keys_only=True),
            ],
        )
        states, runs, chunks = ([kv.key for kv in listed.range(i).kvs] for i in range(3))
        mine = keys.members(self.applied.run)
        old = [*states[:-_STATES], *runs[:-_RUNS]]
        old += [key for key in chunks if not key.startswith(mine)]
        for i in range(0, len(old), 100):
            await self._term.insist([Delete(key) for key in old[i : i + 100]], [self._as_applied()])

    async def fates(self, pods: Iterable[Pod]) -> set[int] | None:
        """Tell which pods of the acknowledged list left, by `seq`; the other missing are lost.

        None if one of the missing lives again in the store: `pods` is out of date, and what is
        awaited will come.
        """
        left: set[int] = set()
        gone = missing(self.applied.members, pods)
        for start in range(0, len(gone), _ASK):
            some = gone[start : start + _ASK]
            answer = await self._store.txn(
                [],
                [
                    op
                    for member in some
                    for op in (
                        Range(self._keys.pod(member.key)),
                        Range(self._keys.seat(member.key)),
                        Range(self._keys.old_seat(member.key, member.seq)),
                    )
                ],
            )
            for i, member in enumerate(some):
                live = [self._records.pod(kv) for kv in answer.range(3 * i).kvs]
                if any(there and there.pod.seq == member.seq for there in live):
                    return None
                seats = answer.range(3 * i + 1).kvs + answer.range(3 * i + 2).kvs
                tombstones = (self._records.seat(kv) for kv in seats)
                if any(seat and seat.seq == member.seq and seat.left for seat in tombstones):
                    left.add(member.seq)
        return left

    def _under_way(self) -> Running:
        assert self.running is not None, "no run was started"  # noqa: S101
        return self.running

    def _as_applied(self) -> Compare:
        """Compare the last acknowledged run with ours: a store that went back has another.

        The fence alone does not tell: the candidacy that it compares may be in a snapshot.
        """
        return Compare(self._keys.applied, "mod", "=", self._applied_revision)

    async def _move(self, ops: Sequence[Op]) -> None:
        """Write what moves `running`, once, whatever becomes of the answers."""
        keys = self._keys
        unmoved = Compare(keys.running, "mod", "=", self._running_revision)
        values = {op.key: op.value for op in ops if isinstance(op, Put)}
        delay = 0.0
        while True:
            try:
                answer = await self._term.write([unmoved, self._as_applied()], ops)
                if not answer.succeeded:
                    await self._settle(values)
                    return
                revision = answer.header.revision
                self._running_revision = revision if keys.running in values else 0
                if keys.applied in values:
                    self._applied_revision = revision
                return
            except (Ambiguous, Unavailable) as error:
                log.warning("the ledger waits for the store: %s", error)
            delay = min(1.0, delay * 2 or 0.05)
            await asyncio.sleep(delay)

    async def _settle(self, values: Mapping[str, bytes]) -> None:
        """Make sure that it was an earlier try of ours that moved it. Raises `Deposed`."""
        keys = self._keys
        found = await self._store.txn([], [Range(keys.running), Range(keys.applied)])
        running, applied = (found.range(i).kvs for i in range(2))
        ours = (running[0].value if running else None) == values.get(keys.running)
        revision = applied[0].mod_revision if applied else 0
        if keys.applied in values:
            ours = ours and bool(applied) and applied[0].value == values[keys.applied]
        else:
            ours = ours and revision == self._applied_revision
        if not ours:
            raise self._term.depose("the ledger is not as it was left: the store went back")
        self._running_revision = running[0].mod_revision if running else 0
        self._applied_revision = revision
