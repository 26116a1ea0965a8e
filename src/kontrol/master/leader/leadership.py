"""One term at work: runs the callback whenever it is due, one run at a time, and records each.

One loop: look at the situation, decide (`policy`), and wait for the time or the news that may
change the decision. Before the first decision a new leader makes sure of two things: that its
mirror shows at least what the store held when it won, so it never acts on an older list than its
predecessor did; and that a run which its predecessor left unended has been dead for long enough.

Invariant: nothing of a term is used in another one, even by the same process: between the two,
another master may have led.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kontrol.ensemble.ensemble import Changes, Member, difference, missing
from kontrol.ensemble.holds import Brake
from kontrol.master.election import Election
from kontrol.master.highwater import HighWater
from kontrol.master.leader import policy
from kontrol.master.leader.execution import (
    Asked,
    Counts,
    Decision,
    Execution,
    Runner,
    Snapshot,
)
from kontrol.master.leader.forget import Forgetting
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.policy import FOLLOWING, Chain
from kontrol.master.leader.publisher import PlanPublisher
from kontrol.master.leader.requests import Answers, Pending, Requests
from kontrol.master.leader.sweep import Sweep
from kontrol.master.mirror import Mirror
from kontrol.master.records.masters import OperatorAnswer
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Ending
from kontrol.master.term import OwnedKey, Term
from kontrol.store.protocol import Ambiguous, Range, RangeResult, Store, Unavailable

log = logging.getLogger(__name__)

_LONGEST_FOVER = 24 * 3600.0  # seconds, that KONTROL_FOVER can be
_ASKED_FOR = 200  # missing pods of which it is found out for people whether they left or are lost


@dataclass(frozen=True, slots=True)
class LeaderConfig:
    """Times in seconds; `brake` in percent of pods; `max_pods` is what the tier may have.

    A seat is swept that was not used for `sweep_age`, and that is looked at `sweep_every` so often.
    """

    ttl: float
    fover: float
    brake: float
    sweep_every: float = 3600.0
    sweep_age: float = 24 * 3600.0
    max_pods: int = 50_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What a term works with. All of it belongs to the process.

    Without a `runner` nothing is ever run. `fingerprint` tells the callback's, as last seen. `wall`
    tells the date and time, RFC 3339, and `clock` is the boot clock. `emit` hears of
    `lock_obtained`, `md5_changed` and `callback_invoked`.
    """

    store: Store
    records: Records
    mirror: Mirror
    election: Election
    requests: Requests
    highwater: HighWater
    runner: Runner | None
    fingerprint: Callable[[], str]
    config: LeaderConfig
    counts: Counts
    emit: Callable[[str], None]
    clock: Callable[[], float]
    wall: Callable[[], str]
    rng: random.Random


class Leadership:
    """Leads in one term while `run` runs."""

    def __init__(self, term: Term, parts: Parts, news: asyncio.Event) -> None:
        """`news` is set whenever something changed that may change the decision."""
        config = parts.config
        self._term = term
        self._parts = parts
        self._news = news
        self._ledger = Ledger(parts.store, parts.records, term, ttl=config.ttl)
        self._answers = Answers(parts.requests, term)
        self._forgetting = Forgetting(
            parts.store,
            parts.records,
            parts.mirror,
            term=term,
            ledger=self._ledger,
            answers=self._answers,
            wall=parts.wall,
        )
        self._publisher = PlanPublisher(
            OwnedKey(parts.store, term, parts.records.keys.plan, lease=term.lease),
            parts.wall,
            self._lost,
        )
        self._chain = Chain()
        self._brake = Brake(config.brake, 2 * config.ttl)
        self._rollout = policy.Rollout()
        self._sweep = Sweep(
            parts.store,
            parts.records,
            term,
            every=config.sweep_every,
            age=config.sweep_age,
            clock=parts.clock,
            wall=parts.wall,
            max_pods=config.max_pods,
            numbers=parts.mirror,
        )
        self._digest = ""
        self._retry_at = 0.0

    @property
    def plan(self) -> policy.Idle | policy.Wait | policy.Run:
        """What is about to be done."""
        return self._publisher.plan

    @property
    def waiting_since(self) -> float | None:
        """The loop time of the oldest change that no acknowledged run was for, None without any."""
        mirror, applied = self._parts.mirror, self._ledger.applied
        if mirror.ensemble.digest == applied.digest:
            return None
        revision = applied.revision if applied.run else 0
        return None if revision is None else mirror.history.after(revision, applied.digest)

    def changed(self) -> None:
        """Tell that something changed that people may be told of."""
        self._publisher.changed()

    async def run(self) -> None:
        """Lead until cancelled. Raises `Deposed`, `Outdated`, `StoreError`."""
        parts = self._parts
        await self._ledger.open(parts.highwater)
        await parts.election.announce(self._term)
        log.info("leader, in term %d", self._term.number)
        parts.counts.terms += 1
        parts.emit("lock_obtained")
        self._digest = self._ledger.applied.digest
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.publish())
            group.create_task(self._sweep.run())
            if parts.runner is None:
                await self._decline()
            else:
                await self._catch_up()
                await self._await_orphaned_run()
                await self._loop(group, parts.runner)

    async def _decline(self) -> None:
        """Answer operators, without a callback."""
        why = "KONTROL_CALLBACK is not set on the leader: there is nothing to run"
        while True:
            self._news.clear()
            await self._serve()
            for pending in self._answers.pending("run"):
                await self._answers.answer(pending, OperatorAnswer(why, refused=True))
            await self._news.wait()

    async def _loop(self, group: asyncio.TaskGroup, runner: Runner) -> None:
        """Run the callback whenever it is due."""
        loop = asyncio.get_running_loop()
        parts, ledger = self._parts, self._ledger
        execution = Execution(
            self._term,
            ledger,
            runner,
            parts.wall,
            fover=parts.config.fover,
            counts=parts.counts,
            emit=parts.emit,
            outdated=self._outdated,
        )
        self._retry_at = loop.time()
        if ledger.running is not None:
            self._retry_at += policy.backoff(ledger.running.attempt, parts.rng.random())
        while True:
            decision = await self._next_run(group)
            parts.mirror.damper.taken()
            ran = await execution.run(decision)
            self._chain.ended(loop.time())
            if ran:
                wait = policy.backoff(decision.attempt, parts.rng.random())
                self._retry_at = loop.time() + wait

    async def _next_run(self, group: asyncio.TaskGroup) -> Decision:
        """Wait until a run is due and nothing holds it."""
        loop = asyncio.get_running_loop()
        ledger, mirror = self._ledger, self._parts.mirror
        snapshot: Snapshot | None = None
        while True:
            self._news.clear()
            await self._serve()
            asked = next(iter(self._answers.pending("run")), None)
            ripe = mirror.damper.ripe
            if asked is None and ripe is not None and ripe > loop.time():
                self._publisher.tell(policy.Wait("ensemble", ripe, "damper"))
                await self._news_or(ripe)  # not worth a look, at any size
                continue
            if snapshot is None or snapshot.version != mirror.version:
                snapshot = await self._look()
                if snapshot is None:
                    await self._news.wait()
                    continue
            situation = self._situation(snapshot, asked=asked is not None)
            plan = policy.decide(loop.time(), situation)
            lost, of = snapshot.changes.lost, len(ledger.applied.members)
            self._publisher.tell(plan, lost, of, self._peers())
            match plan:
                case policy.Idle():
                    await self._news.wait()
                case policy.Wait(_, until, hold) if asked is not None:
                    why = f"held by the {hold} for {until - loop.time():.0f} s more: {len(lost)} "
                    why += f"of {of} pods are lost"
                    why += "; if they are gone for good, `kontrol release`" * (hold == "brake")
                    await self._answers.answer(asked, OperatorAnswer(why, refused=True))
                case policy.Wait(_, until, _):
                    await self._news_or(until)
                    snapshot = None  # who is missing may have deregistered meanwhile
                case policy.Run(reason, again):
                    failed = ledger.failed if again else None
                    return Decision(
                        snapshot,
                        situation.fingerprint,
                        failed.attempt + 1 if failed else 1,
                        reason,
                        None if asked is None else self._asked(group, asked),
                        loop.time(),
                        self._chain.length if again else self._follows(snapshot, reason),
                    )

    def _follows(self, snapshot: Snapshot, reason: policy.Reason) -> int:
        """Return how many runs in a row led to the one that is due now, and warn of many."""
        changes, newest = snapshot.changes, asyncio.get_running_loop().time()
        ids: set[str] = set()
        if reason == "ensemble":
            newest = self._parts.mirror.history.newest
            parts = (changes.joined, changes.left, changes.lost, changes.changed)
            ids = {member.id for part in parts for member in part}
        length = self._chain.follows(newest, ids)
        if length and not length % FOLLOWING:
            log.warning(
                "%d runs in a row were each caused by the run before, it seems: the callback must "
                "not change what it watches unless it has to",
                length,
            )
        return length

    async def _lost(self) -> tuple[Sequence[Member], int]:
        """Name the pods that were lost since the acknowledged run, of how many, for people."""
        applied, pods = self._ledger.applied.members, tuple(self._parts.mirror.ensemble)
        gone = missing(applied, pods)[:_ASKED_FOR]
        left = await self._ledger.fates(pods, _ASKED_FOR) if gone else set()
        lost = () if left is None else [member for member in gone if member.seq not in left]
        return lost, len(applied) if lost else 0

    async def _serve(self) -> None:
        """Do what operators ask for besides runs."""
        for pending in self._answers.pending("release", "rollback", "forget"):
            if pending.request.kind == "release":
                released = self._brake.release()
                told = "the brake is released" if released else "the brake holds nothing"
                await self._answers.answer(pending, OperatorAnswer(told))
            elif pending.request.kind == "rollback":
                await self._roll_back(pending)
            else:
                await self._forget(pending)

    async def _forget(self, pending: Pending) -> None:
        try:
            await self._forgetting.forget(pending)
        except (Unavailable, Ambiguous) as error:
            log.warning("waiting for the store, to forget a pod: %s", error)
            await self._pause()
            self._news.set()

    async def _roll_back(self, pending: Pending) -> None:
        number = pending.request.run or 0
        try:
            state = await self._ledger.kept(number)
            why = "" if state is not None else await self._ledger.why_not_kept(number)
        except (Unavailable, Ambiguous) as error:
            log.warning("waiting for the store, to read the state of run %d: %s", number, error)
            await self._pause()
            self._news.set()
            return
        if state is None:
            await self._answers.answer(pending, OperatorAnswer(why, refused=True))
            return

        def done(run: int) -> OperatorAnswer:
            return OperatorAnswer(f"run {run} put the state of run {number} back", run=run)

        run = await self._ledger.roll_back(
            number,
            state,
            started=self._parts.wall(),
            by=pending.request.by,
            answer=lambda run: self._answers.part(pending, done(run)),
        )
        expired = OperatorAnswer("it expired before it was done", refused=True)
        self._answers.answered(pending, expired if run is None else done(run))

    def _asked(self, group: asyncio.TaskGroup, pending: Pending) -> Asked:
        def started(run: int) -> None:
            answer = OperatorAnswer(f"run {run} has started", run=run)
            group.create_task(self._answers.answer(pending, answer))

        return Asked(pending.request.by, started)

    async def _catch_up(self) -> None:
        """Wait until the mirror shows at least what the store holds now."""
        mirror = self._parts.mirror
        await mirror.cache.complete.wait()
        read = await self._read_keys()
        while True:
            self._news.clear()
            if mirror.cache.reached(read):
                return
            await self._news.wait()

    async def _read_keys(self) -> RangeResult:
        """Read the keys of all pods, until the store answers."""
        request = Range(self._parts.records.keys.pods, prefix=True, keys_only=True)
        while True:
            try:
                return await self._parts.store.range(request)
            except Unavailable as error:
                log.warning("waiting for the store, to catch up with it: %s", error)
                await self._pause()

    async def _await_orphaned_run(self) -> None:
        """Wait out a run that another term left unended, and count it as a failed attempt.

        Its processes are killed within the fail-over time of the leader that started it, which is
        in the record.
        """
        running = self._ledger.running
        if running is None or running.ended:
            return
        fover = min(running.fover or self._parts.config.fover, _LONGEST_FOVER)
        log.warning(
            "run %d of term %d was not ended: waiting %g s for its processes to be killed",
            running.run,
            running.term,
            fover,
        )
        until = asyncio.get_running_loop().time() + fover
        self._publisher.tell(policy.Wait("unacknowledged", until, "predecessor"))
        await asyncio.sleep(fover)
        why = f"its leader, of term {running.term}, went away"
        await self._ledger.fail(0, Changes(), Ending(ok=False, why=why))

    async def _look(self) -> Snapshot | None:
        """Take a snapshot, with what became of the missing; None if the mirror lags behind."""
        mirror, ledger = self._parts.mirror, self._ledger
        version, pods = mirror.version, tuple(mirror.ensemble)
        revision = mirror.history.revision
        digest = mirror.ensemble.digest
        if digest != self._digest:
            self._digest = digest
            self._parts.counts.digests += 1
            self._parts.emit("md5_changed")
        left: set[int] | None = None
        try:
            left = await ledger.fates(pods)
        except (Unavailable, Ambiguous) as error:
            log.warning("waiting for the store, to tell left from lost: %s", error)
            await self._pause()
            self._news.set()
        if left is None:
            return None
        changes = difference(ledger.applied.members, pods, left)
        return Snapshot(version, revision, pods, digest, changes)

    def _situation(self, snapshot: Snapshot, *, asked: bool) -> policy.Situation:
        now = asyncio.get_running_loop().time()
        applied, failed = self._ledger.applied, self._ledger.failed
        fingerprint = self._parts.fingerprint()
        lost = len(snapshot.changes.lost)
        return policy.Situation(
            digest=snapshot.digest,
            fingerprint=fingerprint,
            applied_digest=applied.digest,
            applied_fingerprint=applied.fingerprint,
            failed=None if failed is None else (failed.digest, failed.fingerprint, self._retry_at),
            rollout=self._rollout.until(
                now,
                differs=applied.fingerprint not in (None, fingerprint),
                peers=bool(self._peers()),
            ),
            ripe=self._parts.mirror.damper.ripe,
            gap=self._gap(snapshot),
            brake=self._brake.consider(now, lost, len(applied.members)),
            asked=asked,
        )

    def _gap(self, snapshot: Snapshot) -> float | None:
        """Return until when pods that are missing may have been kept from reporting.

        Those that were told a longer TTL report as seldom as that.
        """
        if not snapshot.changes.lost:
            return None
        ttl = max(self._parts.config.ttl, self._ledger.applied.ttl or 0.0)
        return self._parts.mirror.cache.recovered + ttl

    def _peers(self) -> Sequence[str]:
        """Name the other masters that still have the acknowledged callback."""
        applied = self._ledger.applied.fingerprint
        if applied in (None, self._parts.fingerprint()):
            return ()
        others = self._parts.election.others(self._term)
        return tuple(each.id for each in others if each.fingerprint == applied)

    async def _outdated(self, decision: Decision) -> str:
        """Say why a run that was decided must not start any more; empty if it may."""
        now = asyncio.get_running_loop().time()
        gap = self._gap(decision.snapshot)
        if gap is not None and gap > now:
            return "etcd was silent, and the pods that seem lost may only have been cut off"
        if now - decision.at <= self._parts.config.ttl / 20:
            return ""
        await self._catch_up()  # the answer to the write may have overtaken the watch
        fresh = await self._look()
        if fresh is None:
            return "the pods changed meanwhile"
        lost = {member.seq for member in decision.snapshot.changes.lost}
        if not lost <= {member.seq for member in fresh.changes.lost}:
            return "pods that seemed lost are back, or deregistered"
        return policy.outdated(now, self._situation(fresh, asked=decision.asked is not None))

    async def _pause(self) -> None:
        """Wait a little before the store is asked again."""
        await asyncio.sleep(min(1.0, self._parts.config.fover / 10))

    async def _news_or(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._news.wait()
        except TimeoutError:
            pass
