"""The leader: runs the callback whenever it is due, one run at a time, and records each.

One loop: look at the ensemble (`observer`), decide (`policy`), and wait for the time or the news
that may change the decision. Before its first decision a new leader makes sure that its mirror is
not behind its predecessor's, and that the processes of a run which its predecessor left unended are
gone.

Invariant: nothing of a term is used in another one, even by the same process: between the two,
another master may have led. So all that decides belongs to a `Leadership`, of one term. What the
`Leader` keeps for the life of the process decides nothing.
"""

import asyncio
import logging

from kontrol.ensemble.ensemble import Changes
from kontrol.master.leader import policy
from kontrol.master.leader.actions import OperatorActions
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.execution import CurrentCallback, Decision, Execution, Runner, Snapshot
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.observer import Observer
from kontrol.master.leader.parts import Host, LeaderConfig, News, Tier
from kontrol.master.leader.policy import FOLLOWING, Chain
from kontrol.master.leader.publisher import PlanPublisher
from kontrol.master.leader.sweep import Sweep
from kontrol.master.records.runs import Ending
from kontrol.master.term import OwnedKey, Term

log = logging.getLogger(__name__)

_LOOKS, _LOOKS_MAX = 4, 1.0  # the pause between looks: times what one takes, and seconds at most
_PUBLISHED_AGAIN = 10.0  # seconds at least between two times: what agents say may be wrong
_LONGEST_FOVER = 24 * 3600.0  # seconds, the longest that KONTROL_FOVER can be


class Leader:
    """Leads while `lead` runs; at other times it has no plan."""

    def __init__(
        self,
        tier: Tier,
        callback: CurrentCallback,
        config: LeaderConfig,
        *,
        counts: Counts,
        host: Host,
    ) -> None:
        """All of it belongs to the process. Without a callback's runner nothing is ever run."""
        self._tier = tier
        self._callback = callback
        self._config = config
        self._counts = counts
        self._host = host
        self._leadership: Leadership | None = None
        for followed in (tier.election, tier.requests, tier.desired, callback):
            followed.on_change(self.wake)
        tier.mirror.cache.listen(lambda _: self.wake())

    def wake(self) -> None:
        """Note that something changed that may change what the leader does."""
        if self._leadership is not None:
            self._leadership.wake()

    @property
    def plan(self) -> policy.Idle | policy.Wait | policy.Run:
        """What this master is about to do as the leader."""
        return policy.Idle() if self._leadership is None else self._leadership.plan

    @property
    def waiting_since(self) -> float | None:
        """The loop time of the oldest change that no run was acknowledged for, as the leader."""
        return None if self._leadership is None else self._leadership.waiting_since

    @property
    def note(self) -> str | None:
        """The note of the last acknowledged run, as the leader; None without."""
        return None if self._leadership is None else self._leadership.note

    async def lead(self, term: Term) -> None:
        """Lead until cancelled. Raises `Deposed`, `Outdated`, `StoreError`."""
        self._leadership = Leadership(
            term, self._tier, self._callback, self._config, counts=self._counts, host=self._host
        )
        try:
            await self._leadership.run()
        finally:
            self._leadership = None


class Leadership:
    """Leads in one term while `run` runs."""

    def __init__(
        self,
        term: Term,
        tier: Tier,
        callback: CurrentCallback,
        config: LeaderConfig,
        *,
        counts: Counts,
        host: Host,
    ) -> None:
        """The term owns what is made here, and shares what it is given with later terms."""
        store, records = tier.store, tier.records
        self._term = term
        self._tier = tier
        self._callback = callback
        self._config = config
        self._counts = counts
        self._host = host
        self._news = News(pause=min(1.0, config.fover / 10))
        self._ledger = Ledger(store, records, term, ttl=config.ttl, urgent=config.urgent)
        self._observer = Observer(
            term, tier, self._ledger, config=config, callback=callback, news=self._news
        )
        self._actions = OperatorActions(
            term,
            tier,
            self._ledger,
            brake=self._observer.brake,
            wall=host.wall,
            news=self._news,
        )
        self._publisher = PlanPublisher(
            OwnedKey(store, term, records.keys.plan, lease=term.lease),
            host.wall,
            self._observer.lost,
            lambda: self._ledger.applied.run,
        )
        self._sweep = Sweep(
            store,
            records,
            term,
            every=config.sweep_every,
            age=config.sweep_age,
            clock=host.clock,
            wall=host.wall,
            numbers=tier.mirror,
            max_pods=config.max_pods,
        )
        self._chain = Chain()
        self._published_again = float("-inf")
        self._digest = ""

    @property
    def plan(self) -> policy.Idle | policy.Wait | policy.Run:
        """What is about to be done."""
        return self._publisher.plan

    @property
    def waiting_since(self) -> float | None:
        """The loop time of the oldest change that no acknowledged run was for, None without any."""
        return self._observer.waiting_since

    @property
    def note(self) -> str | None:
        """The note of the last acknowledged run."""
        return self._ledger.applied.note

    def wake(self) -> None:
        """Note that something changed that may change the decision, or which pods are lost."""
        self._news.set()
        self._publisher.changed()

    async def run(self) -> None:
        """Lead until cancelled. Raises `Deposed`, `Outdated`, `StoreError`."""
        await self._ledger.open(self._tier.highwater)
        await self._tier.election.announce(self._term)
        log.info("leader, in term %d", self._term.number)
        self._counts.won()
        self._digest = self._ledger.applied.digest
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publisher.publish())
            group.create_task(self._sweep.run())
            if self._callback.runner is None:
                await self._actions.decline()
            else:
                await self._publish_again()
                await self._observer.catch_up()
                await self._await_orphaned_run()
                await self._loop(group, self._callback.runner)

    async def _await_orphaned_run(self) -> None:
        """Wait until a run that another term left unended is dead; count it as a failed attempt.

        Its processes are killed within the fail-over time of the leader that started it, which is
        in the record.
        """
        running = self._ledger.running
        if running is None or running.ended:
            return
        fover = min(running.fover or self._config.fover, _LONGEST_FOVER)
        log.warning(
            "run %d of term %d was not ended: waiting %g s for its processes to be killed",
            running.run,
            running.term,
            fover,
        )
        until = asyncio.get_running_loop().time() + fover
        self._publisher.update(policy.Wait("unacknowledged", until, "predecessor"))
        await asyncio.sleep(fover)
        why = f"its leader, of term {running.term}, went away"
        await self._ledger.fail(0, Changes(), Ending(ok=False, why=why))

    async def _loop(self, group: asyncio.TaskGroup, runner: Runner) -> None:
        """Run the callback whenever it is due."""
        loop = asyncio.get_running_loop()
        execution = Execution(
            self._term,
            self._ledger,
            runner,
            self._host.wall,
            fover=self._config.fover,
            counts=self._counts,
            outdated=self._observer.outdated,
            taken=self._tier.mirror.damper.taken,
        )
        failed = self._ledger.running
        self._observer.retry_at = loop.time() + (self._backoff(failed.attempt) if failed else 0.0)
        while True:
            decision = await self._next_run(group)
            ran = await execution.run(decision)
            if decision.reason not in policy.TIMED:
                self._chain.ended(loop.time())
            if ran:
                self._observer.retry_at = loop.time() + self._backoff(decision.attempt)

    def _backoff(self, attempt: int) -> float:
        return policy.backoff(attempt, self._host.rng.random())

    async def _next_run(self, group: asyncio.TaskGroup) -> Decision:
        """Wait until a run is due and nothing holds it."""
        loop = asyncio.get_running_loop()
        observer, mirror, news = self._observer, self._tier.mirror, self._news
        snapshot: Snapshot | None = None
        while True:
            news.clear()
            await self._actions.serve()
            await self._publish_again()
            asked, now = self._actions.run, loop.time()
            ripe = mirror.damper.ripe
            damped = asked is None and ripe is not None and ripe > now
            if damped and ripe is not None and not observer.may_pass_damper(now):
                self._publisher.update(policy.Wait("ensemble", ripe, "damper"))
                times = (time for time in (ripe, *observer.times()) if time is not None)
                await news.wait_until(min(times))  # not worth a look, at any size
                continue
            spec = self._tier.desired.seen
            old = snapshot is None or snapshot.version != mirror.version
            if snapshot is None or old or snapshot.spec is not spec:
                snapshot = await observer.look()
                if snapshot is None:
                    await news.wait()
                    continue
                self._saw(snapshot.digest)
            situation = observer.situation(snapshot, asked=asked is not None)
            decided = loop.time()
            plan = policy.decide(decided, situation)
            lost, of = snapshot.changes.lost, len(self._ledger.applied.members)
            self._publisher.update(plan, lost, of, observer.peers())
            match plan:
                case policy.Wait() if asked is not None:
                    await self._actions.refuse(asked, plan, len(lost), of)
                case policy.Run(reason, retry):
                    failed = self._ledger.failed if retry else None
                    return Decision(
                        snapshot,
                        situation.fingerprint,
                        failed.attempt + 1 if failed else 1,
                        reason,
                        None if asked is None else self._actions.asked(asked, group),
                        loop.time(),
                        self._chain.length if retry else self._follows(snapshot, reason),
                    )
                case policy.Idle() | policy.Wait():
                    # Of the time of the decision: what falls due meanwhile is due immediately.
                    until = policy.wake(decided, plan, situation)
                    if damped:  # looks are not free, and changes may come one after the other
                        await asyncio.sleep(min(_LOOKS_MAX, _LOOKS * (loop.time() - now)))
                    await news.wait_until(until)
                    if isinstance(plan, policy.Wait):
                        snapshot = None  # missing pods may have deregistered meanwhile

    async def _publish_again(self) -> None:
        """Give what is published a later version if agents have a later one; see `Ledger`."""
        loop, highwater = asyncio.get_running_loop(), self._tier.highwater
        for other in self._tier.election.others(self._term):
            highwater.saw_version(other.published or 0)
        if self._ledger.published.version >= highwater.version:
            return
        again = self._published_again + _PUBLISHED_AGAIN
        if loop.time() < again:
            loop.call_at(again, self._news.set)
            return
        self._published_again = loop.time()
        before = self._ledger.published.version
        await self._ledger.publish_again(edited=self._host.wall())
        log.warning(
            "what is published has version %d now, after %d: later ones were known to a master or "
            "a pod, so the store was restored",
            self._ledger.published.version,
            before,
        )

    def _saw(self, digest: str) -> None:
        if digest != self._digest:
            self._digest = digest
            self._counts.changed()

    def _follows(self, snapshot: Snapshot, reason: policy.Reason) -> int:
        """Return how many runs in a row led to the one that is due now; log a warning of many."""
        if reason in policy.TIMED:
            return 0
        changes, newest = snapshot.changes, asyncio.get_running_loop().time()
        ids: set[str] = set()
        if reason == "ensemble":
            newest = self._tier.mirror.history.newest
            parts = (changes.joined, changes.left, changes.lost, changes.changed)
            ids = {member.id for part in parts for member in part}
        elif reason == "spec":  # an operator may set one key after the other
            ids = {f"key {one.key}" for one in (*changes.spec.set, *changes.spec.unset)}
        length = self._chain.follows(newest, ids)
        if length and not length % FOLLOWING:
            log.warning(
                "%d runs in a row were each caused by the run before, it seems: the callback must "
                "not change what it watches unless it has to",
                length,
            )
        return length
