"""The ledger: what was run, what was acknowledged, and the state, as the store keeps them.

A run begins with `running`, written before its process starts, and ends with one transaction:
either it is acknowledged (`state`, `applied`, its entry, and `running` removed) or it failed (its
entry, and `running` marked as ended, which keeps it due). A rollback moves `state`. While a run is
under way, it may move `published`.

Invariant: every write is fenced by the term, compares the revisions of all four heads (`running`,
`applied`, `state`, `published`) and moves at least one of them (`heads.py`). So no write takes
effect twice, however late a copy of it arrives, and none does after the store was restored.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kontrol.ensemble.ensemble import Changes, Member
from kontrol.ensemble.pod import Pod
from kontrol.ensemble.urgent import Urgent
from kontrol.master.highwater import HighWater
from kontrol.master.leader.heads import Heads
from kontrol.master.records.fields import BELIEVED_RUN
from kontrol.master.records.masters import Meta
from kontrol.master.records.pods import Facts
from kontrol.master.records.published import Published
from kontrol.master.records.records import Records
from kontrol.master.records.runs import (
    Applied,
    Ending,
    Head,
    Running,
    encode_entry,
    encode_members,
    no_state,
)
from kontrol.master.term import OwnedKey, Term
from kontrol.store.protocol import (
    Compare,
    Delete,
    KeyValue,
    Put,
    Range,
    Store,
)

log = logging.getLogger(__name__)

_STATES = 20
_RUNS = 200
_NEWEST = 20  # entries, of which some may be damaged


class Ledger:
    """The ledger, opened once per term. Nothing else writes it while the term lasts."""

    def __init__(
        self,
        store: Store,
        records: Records,
        term: Term,
        *,
        ttl: float | None = None,
        urgent: Urgent | None = None,
    ) -> None:
        """`ttl`, in seconds, is the tier's; it is recorded with each acknowledged run.

        So are, of its pods, the marks of what is `urgent`.
        """
        self.applied = Applied()
        self.running: Running | None = None
        self.state: bytes | None = None
        self.published = Published()
        self.next_run = 1
        self._store = store
        self._records = records
        self._keys = records.keys
        self._term = term
        self._ttl = ttl
        self._urgent = urgent or Urgent()
        self._before: Running | None = None  # what the run under way replaced
        keys = records.keys
        self._heads = Heads(store, term, (keys.running, keys.applied, keys.state, keys.published))

    async def open(self, highwater: HighWater) -> None:
        """Read the ledger, and give the term its number, above all that `highwater` saw.

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
                Range(keys.last_run),
                Range(keys.published),
            ],
        )
        found = [answer.range(i).kvs for i in range(9)]
        metas, applied, running, state, newest, chunks, candidates, last_run, published = found
        meta = records.meta(metas[0]) if metas else None
        if meta is None:
            highest = records.highest_term(running, newest, candidates)
            floor = max(0, highest + 1 - self._term.revision)
        else:
            floor = meta.floor
        step = max(0, highwater.term + 1 - (floor + self._term.revision))
        if step or meta is None:
            raised = replace(meta or Meta(), floor=floor + step)
            await self._put(keys.meta, metas, raised.encode())
        self._term.number = floor + step + self._term.revision
        highwater.saw_term(self._term.number)
        if applied:
            self.applied = records.applied(applied[0], chunks) or Applied()
        self.state = records.state(state[0]) if state else None
        self._heads.read([*applied, *running, *state, *published])
        self._highwater = highwater
        self.published = (records.published(published[0]) if published else None) or Published()
        unended = records.running(running[0]) if running else None
        numbers = [self.applied.run, highwater.run, *(keys.number(kv.key) or 0 for kv in newest)]
        stored = (records.last_run(last_run[0]) or 0) if last_run else 0
        numbers += [stored, unended.run if unended else 0]
        known = max(number for number in numbers if number <= BELIEVED_RUN)
        if unended is not None and not unended.run:  # its number cannot be read
            known += 1
            unended = replace(unended, run=known)
        # If the store was restored, there may have been runs that no living master has seen, fewer
        # than revisions: each run takes two or more.
        self.next_run = 1 + known + step
        if known + step > stored:  # the next leader may not know
            await self._put(keys.last_run, last_run, b"%d" % (known + step))
        self.running = None if unended is None or unended.withdrawn else unended
        self._term.expect(self._heads.expected)

    async def _put(self, key: str, read: Sequence[KeyValue], value: bytes) -> None:
        """Write a key that was `read`, until the store has answered."""
        revision = read[0].mod_revision if read else 0
        await OwnedKey(self._store, self._term, key, revision=revision).put(value)

    @property
    def acknowledged_at(self) -> int:
        """The store's revision at which the last run was acknowledged, 0 before the first."""
        return self._heads.revision(self._keys.applied)

    @property
    def failed(self) -> Running | None:
        """The run that failed and has not been repeated with success, unless it is under way."""
        under_way = self.running is not None and not self.running.ended
        return self._before if under_way else self.running

    async def start(self, running: Running) -> dict[str, Facts]:
        """Write that a run begins; only then may its process start.

        Returns the live facts that the store has then, by the pods' keys.
        """
        found = await self._heads.move_and_read(
            [
                Put(self._keys.last_run, b"%d" % running.run),
                Put(self._keys.running, running.encode()),
            ],
            Range(self._keys.live, prefix=True),
        )
        self._before, self.running = self.running, running
        self.next_run = running.run + 1
        return self._records.live_facts(found)

    async def commit(
        self,
        pods: Sequence[Pod],
        changes: Changes,
        ending: Ending,
        state: bytes | None,
        spec: Mapping[str, str] | None = None,
    ) -> None:
        """Acknowledge the run under way: it was for `pods`. With `state` None the state stays.

        `spec` are the marks of the desired state that it got; with None those of before stay.
        """
        running = self._under_way()
        members = tuple(Member.of(pod, self._urgent.mark(pod)) for pod in pods)
        chunks = list(encode_members(members))
        for i, chunk in enumerate(chunks):
            await self._term.insist([Put(f"{self._keys.members(running.run)}{i:04d}", chunk)])
        kept = self.state if state is None else state
        run = running.run
        head = Head(
            run,
            running.digest,
            running.fingerprint,
            len(members),
            self._ttl,
            running.revision,
            ending.again,
            ending.note,
            self.applied.spec if spec is None else spec or None,
        )
        ops: list[Put | Delete] = [
            Put(self._keys.applied, head.encode()),
            Put(self._keys.last_acknowledged, b"%d" % run),
            Put(self._keys.run(run), encode_entry(running, len(pods), changes, ending)),
            Delete(self._keys.running),
        ]
        if state is not None:
            ops.append(Put(self._keys.state, state))
        if kept is not None:
            ops.append(Put(self._keys.state_of(run), kept))
        await self._heads.move(ops)
        self.state = kept
        self.running = None
        self.applied = Applied.of(head, members)

    async def fail(self, pods: int, changes: Changes, ending: Ending) -> None:
        """Write that the run under way ended without success: it stays due."""
        ended = replace(self._under_way(), ended=True, why=ending.why)
        await self._heads.move(
            [
                Put(self._keys.running, ended.encode()),
                Put(self._keys.run(ended.run), encode_entry(ended, pods, changes, ending)),
            ]
        )
        self.running = ended

    async def withdraw(self, pods: int, changes: Changes, why: str) -> None:
        """Withdraw the run under way: its process was not started.

        `running` is again what it was before. The run keeps its number, and has an entry that says
        `why`. If there was nothing before, `running` is still rewritten and not deleted: an absent
        key would compare as it did before the start, so a late copy of that write would take
        effect.
        """
        running, before = self._under_way(), self._before
        now = before or replace(running, ended=True, withdrawn=True)
        ending = Ending(ok=False, why=f"not started: {why}")
        await self._heads.move(
            [
                Put(self._keys.running, now.encode()),
                Put(self._keys.run(running.run), encode_entry(running, pods, changes, ending)),
            ]
        )
        self.running = before

    async def publish(self, now: Published, *, edited: str) -> int:
        """Replace `published`, of which `now` is made; returns the version that it got.

        Only while a run is under way.
        """
        await self._publish(now, edited)
        return self.published.version

    async def publish_again(self, *, edited: str) -> bool:
        """Give what is published a version above all that were seen; return whether it needed one.

        The store may have been restored, while agents have a later version. They follow the store
        again with the next one only. Not while a run is under way.
        """
        if self.published.version >= self._highwater.version:
            return False
        await self._publish(self.published, edited)
        return True

    async def _publish(self, now: Published, edited: str) -> None:
        seen = max(self.published.version, self._highwater.version)
        now = replace(now, version=seen + 1, term=self._term.number, edited=edited)
        await self._heads.move([Put(self._keys.published, now.encode())])
        self._highwater.saw_version(now.version)
        self.published = now

    async def kept(self, number: int) -> bytes | None:
        """Return the state that run `number` left, if it is kept."""
        kvs = (await self._store.range(Range(self._keys.state_of(number)))).kvs
        return self._records.state(kvs[0]) if kvs else None

    async def why_not_kept(self, number: int) -> str:
        """Return why there is no state of run `number`, and the runs whose states are kept."""
        keys = self._keys
        answer = await self._store.txn(
            [],
            [
                Range(keys.run(number)),
                Range(keys.states, prefix=True, keys_only=True),
            ],
        )
        entries, states = answer.range(0).kvs, answer.range(1).kvs
        entry = self._records.entry(entries[0]) if entries else None
        kept = sorted(run for kv in states if (run := keys.number(kv.key)) is not None)
        return no_state(number, entry, kept, last=self.next_run - 1)

    async def roll_back(
        self,
        number: int,
        state: bytes,
        *,
        started: str,
        by: str,
        answer: Callable[[int], tuple[Compare, Put]],
    ) -> int | None:
        """Restore `state`, which run `number` left; returns the number of the rollback.

        A rollback is an entry of the ledger with a number of its own, though nothing ran: the state
        moves only with a number that is never used again. `answer` is called with that number, and
        returns a key to write and a condition for it. Both belong to the rollback's transaction, so
        a request is carried out once, whichever master leads next. Returns None if the condition
        does not hold, and nothing was written.
        """
        run = self.next_run
        why = f"the state of run {number} was restored"
        ops: list[Put | Delete] = [
            *self.entry(run, "rollback", by=by, started=started, why=why),
            Put(self._keys.state, state),
            Put(self._keys.state_of(run), state),
        ]
        condition, put = answer(run)
        self.next_run += 1
        if not await self._heads.move([*ops, put], [condition]):
            return None
        self.state = state
        return run

    def entry(self, run: int, reason: str, *, by: str, started: str, why: str) -> list[Put]:
        """Return what records, under the number `run`, that something was done and nothing ran."""
        applied = self.applied
        entry = Running(
            run=run,
            term=self._term.number,
            digest=applied.digest,
            fingerprint=applied.fingerprint or "",
            started=started,
            reason=reason,
            by=by,
        )
        ending = Ending(ok=True, why=why)
        return [
            Put(self._keys.last_run, b"%d" % run),
            Put(self._keys.run(run), encode_entry(entry, len(applied.members), Changes(), ending)),
        ]

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
            await self._term.insist(
                [Delete(key) for key in old[i : i + 100]], self._heads.compares()
            )

    def _under_way(self) -> Running:
        assert self.running is not None, "no run was started"  # noqa: S101
        return self.running
