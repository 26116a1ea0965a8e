"""What a leader knows before it decides: the pods, what became of missing ones, what holds a run.

An `Observer` looks through the mirror, which may be behind the store. Before a term's first
decision it makes sure that the mirror shows at least what the store held when the term was won, so
that no leader acts on an older list than its predecessor did.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from kontrol.ensemble.ensemble import Member, difference, missing
from kontrol.ensemble.holds import Brake
from kontrol.master.leader import policy
from kontrol.master.leader.execution import CurrentCallback, Decision, Snapshot
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.parts import LeaderConfig, News, Tier
from kontrol.master.records.records import Records
from kontrol.master.term import Term
from kontrol.store.protocol import Ambiguous, Range, RangeResult, Store, Unavailable

log = logging.getLogger(__name__)

_MOST_NAMED = 200  # missing pods that are looked up, to publish whether they left or are lost
_BATCH = 40  # pods that one transaction looks up: three ranges each, of 128 operations


class Observer:
    """Looks at the ensemble for one term, and keeps what may hold a run: brake, gap, rollout.

    `retry_at` is the loop time at which a run that failed is due again.
    """

    def __init__(
        self,
        term: Term,
        tier: Tier,
        ledger: Ledger,
        *,
        config: LeaderConfig,
        callback: CurrentCallback,
        news: News,
    ) -> None:
        """`news` is set when a look that could not be finished is worth another try."""
        self.brake = Brake(config.brake, 2 * config.ttl)
        self.retry_at = 0.0
        self._term = term
        self._tier = tier
        self._mirror = tier.mirror
        self._ledger = ledger
        self._ttl = config.ttl
        self._every = config.every
        self._urgent = config.urgent
        self._callback = callback
        self._news = news
        self._rollout = policy.Rollout()

    @property
    def waiting_since(self) -> float | None:
        """The loop time of the oldest change that no acknowledged run was for, None without any."""
        mirror, applied = self._mirror, self._ledger.applied
        if mirror.ensemble.digest == applied.digest:
            return None
        revision = applied.revision if applied.run else 0
        return None if revision is None else mirror.history.after(revision, applied.digest)

    async def catch_up(self) -> None:
        """Wait until this master knows at least what the store holds now: pods, desired state."""
        keys = self._tier.records.keys
        followed = {keys.pods: self._mirror.cache, keys.spec: self._tier.desired.cache}
        for cache in followed.values():
            await cache.complete.wait()
        read = {prefix: await self._read_keys(prefix) for prefix in followed}
        for prefix, cache in followed.items():
            cache.check(read[prefix])  # a watch that goes on over a restore may never show it
        while True:
            self._news.clear()
            if all(cache.reached(read[prefix]) for prefix, cache in followed.items()):
                return
            await self._news.wait()

    async def _read_keys(self, prefix: str) -> RangeResult:
        """Read the keys below a prefix, again until the store answers."""
        request = Range(prefix, prefix=True, keys_only=True)
        while True:
            try:
                return await self._tier.store.range(request)
            except Unavailable as error:
                await self._news.retry("read what there is now", error)

    async def look(self) -> Snapshot | None:
        """Take a snapshot, with what became of missing pods; None if the mirror lags behind."""
        mirror, ledger = self._mirror, self._ledger
        version, pods = mirror.version, tuple(mirror.ensemble)
        at = asyncio.get_running_loop().time()
        spec = self._tier.desired.seen
        revision = mirror.history.revision
        digest = mirror.ensemble.digest
        left: set[int] | None = None
        try:
            left = await self._find_left(missing(ledger.applied.members, pods))
        except (Unavailable, Ambiguous) as error:
            await self._news.retry("find out which missing pods left", error)
        if left is None:
            return None
        applied = ledger.applied.members
        changes = replace(difference(applied, pods, left), spec=spec.since(ledger.applied.spec))
        urgent = self._urgent.among(changes, applied, {pod.seq: pod for pod in pods})
        return Snapshot(version, revision, at, pods, digest, changes, urgent, spec)

    async def lost(self) -> tuple[Sequence[Member], int]:
        """Return the pods lost since the acknowledged run, and how many it was for; to publish.

        Raises `Unavailable` and `Ambiguous`.
        """
        applied, pods = self._ledger.applied.members, tuple(self._mirror.ensemble)
        gone = missing(applied, pods)[:_MOST_NAMED]
        left = await self._find_left(gone)
        lost = () if left is None else [member for member in gone if member.seq not in left]
        return lost, len(applied) if lost else 0

    async def _find_left(self, gone: Sequence[Member]) -> set[int] | None:
        return await find_left(self._tier.store, self._tier.records, gone)

    def may_pass_damper(self, now: float) -> bool:
        """Tell whether a run may be due now for which the damper does not wait."""
        if self._urgent or self._tier.desired.seen.since(self._ledger.applied.spec):
            return True
        return any(time is not None and time <= now for time in self.times())

    def times(self) -> tuple[float | None, float | None]:
        """Return when the next run is due as the last acknowledged one asked, and by the schedule.

        In seconds of the loop's clock; a master that saw the acknowledgement counts from then.
        """
        applied, ledger = self._ledger.applied, self._ledger
        since = self._tier.highwater.acknowledged(applied.run, ledger.acknowledged_at)
        again, every = applied.again, self._every
        return None if again is None else since + again, None if every is None else since + every

    def situation(self, snapshot: Snapshot, *, asked: bool) -> policy.Situation:
        """Return what to decide on now; `asked` says that an operator asked for a run."""
        now = asyncio.get_running_loop().time()
        applied, failed = self._ledger.applied, self._ledger.failed
        fingerprint = self._callback.fingerprint
        lost = len(snapshot.changes.lost)
        again, schedule = self.times()
        return policy.Situation(
            digest=snapshot.digest,
            fingerprint=fingerprint,
            applied_digest=applied.digest,
            applied_fingerprint=applied.fingerprint,
            failed=None if failed is None else (failed.digest, failed.fingerprint, self.retry_at),
            rollout=self._rollout.until(
                now,
                differs=applied.fingerprint not in (None, fingerprint),
                peers=bool(self.peers()),
            ),
            ripe=self._mirror.damper.ripe,
            gap=self._gap(snapshot),
            brake=self.brake.consider(now, lost, len(applied.members)),
            asked=asked,
            again=again,
            schedule=schedule,
            urgent=snapshot.urgent,
            lost=bool(lost),
            spec=snapshot.spec.revision,
            failed_spec=0 if failed is None else failed.spec or 0,
            desired=bool(snapshot.changes.spec),
        )

    def _gap(self, snapshot: Snapshot) -> float | None:
        """Return the loop time until which missing pods may have been unable to report.

        Pods that were given a longer TTL report less often.
        """
        if not snapshot.changes.lost:
            return None
        ttl = max(self._ttl, self._ledger.applied.ttl or 0.0)
        return self._mirror.cache.recovered + ttl

    def peers(self) -> Sequence[str]:
        """Return the ids of other masters that still have the acknowledged callback."""
        applied = self._ledger.applied.fingerprint
        if applied in (None, self._callback.fingerprint):
            return ()
        others = self._tier.election.others(self._term)
        return tuple(each.id for each in others if each.fingerprint == applied)

    async def outdated(self, decision: Decision) -> str:
        """Return why a run that was decided must not start any more; empty if it may."""
        now = asyncio.get_running_loop().time()
        gap = self._gap(decision.snapshot)
        if gap is not None and gap > now:
            return "etcd did not answer, and the pods that seem lost may only have been cut off"
        if now - decision.at <= self._ttl / 20:
            return ""
        await self.catch_up()  # the answer to the write may have overtaken the watch
        newest = await self.look()
        if newest is None:
            return "the pods changed meanwhile"
        lost = {member.seq for member in decision.snapshot.changes.lost}
        if not lost <= {member.seq for member in newest.changes.lost}:
            return "pods that seemed lost are back, or deregistered"
        return policy.outdated(now, self.situation(newest, asked=decision.asked is not None))


async def find_left(store: Store, records: Records, gone: Sequence[Member]) -> set[int] | None:
    """Return which of the pods that are `gone` left, by `seq`; the others are lost.

    Returns None if one of them is alive in the store: the mirror is about to show it. Raises
    `Unavailable` and `Ambiguous`.
    """
    keys, left = records.keys, set[int]()
    for start in range(0, len(gone), _BATCH):
        some = gone[start : start + _BATCH]
        answer = await store.txn(
            [],
            [
                op
                for member in some
                for op in (
                    Range(keys.pod(member.key)),
                    Range(keys.registration(member.key)),
                    Range(keys.archived_registration(member.key, member.seq)),
                )
            ],
        )
        for i, member in enumerate(some):
            live = [records.pod(kv) for kv in answer.range(3 * i).kvs]
            if any(there and there.pod.seq == member.seq for there in live):
                return None
            kvs = answer.range(3 * i + 1).kvs + answer.range(3 * i + 2).kvs
            found = (records.registration(kv) for kv in kvs)
            if any(one and one.seq == member.seq and one.left for one in found):
                left.add(member.seq)
    return left
