"""The leader: runs the callback whenever it is due, once at a time, and books what came of it.

One loop: look at the situation, decide (`policy`), and wait for the time or the news that may
change the decision. Before the first decision a new leader makes sure of two things: that its
mirror shows at least what the store held when it won, so it never acts on an older list than its
predecessor did; and that a run which its predecessor left unended has been dead for long enough.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from kontrol.ensemble.brake import Brake
from kontrol.ensemble.difference import Changes, difference
from kontrol.master.election.election import Election
from kontrol.master.election.term import Term
from kontrol.master.leader import policy
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.execution import Asked, Execution, Runner, Snapshot
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.notice import Notice
from kontrol.master.leader.requests import Requests
from kontrol.master.leader.sweep import sweep
from kontrol.master.mirror.mirror import Mirror
from kontrol.master.records.masters import Answer, Request
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Ending
from kontrol.store.protocol import Ambiguous, Range, Store, Unavailable

log = logging.getLogger(__name__)

_SWEEP_EVERY = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class LeaderConfig:
    """Times in seconds; `brake` in percent of pods."""

    ttl: float
    fover: float
    brake: float


class Leader:
    """Leads while `lead` runs; `notice` tells what it is about to do, for people."""

    def __init__(
        self,
        store: Store,
        records: Records,
        mirror: Mirror,
        election: Election,
        requests: Requests,
        *,
        runner: Runner | None,
        config: LeaderConfig,
        counts: Counts,
        emit: Callable[[str], None],
        wall: Callable[[], str],
        rng: random.Random,
    ) -> None:
        """Without a `runner` nothing is ever run. `wall` tells the date and time, RFC 3339.

        `emit` hears of `lock_obtained`, `md5_changed` and `callback_invoked`.
        """
        self.notice = Notice(records.keys, wall)
        self._store = store
        self._records = records
        self._keys = records.keys
        self._mirror = mirror
        self._election = election
        self._requests = requests
        self._runner = runner
        self._config = config
        self._counts = counts
        self._emit = emit
        self._wall = wall
        self._rng = rng
        self._brake = Brake(config.brake, 2 * config.ttl)
        self._news = asyncio.Event()
        self._fingerprint = ""
        self._digest = ""
        election.on_change(self.wake)
        mirror.on_change(self.wake)
        requests.on_change(self.wake)

    def wake(self) -> None:
        """Tell that something changed that may change the decision."""
        self._news.set()

    async def lead(self, term: Term) -> None:
        """Lead until cancelled. Raises `Deposed`, `Outdated`, `StoreError`."""
        ledger = Ledger(self._store, self._records, term)
        await ledger.open(self._election.known)
        await self._election.announce(term)
        log.info("leader, in term %d", term.number)
        self._counts.terms += 1
        self._emit("lock_obtained")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep(term))
            group.create_task(self.notice.publish(term))
            if self._runner is None:
                await self._decline(term, ledger)
            else:
                self._fingerprint = self._runner.fingerprint()
                await self._catch_up()
                await self._bury(ledger)
                execution = Execution(
                    term,
                    ledger,
                    self._runner,
                    self._wall,
                    patience=self._config.fover / 3,
                    counts=self._counts,
                    emit=self._emit,
                )
                await self._loop(group, term, ledger, execution)

    async def _decline(self, term: Term, ledger: Ledger) -> None:
        """Answer operators, without a callback."""
        why = "KONTROL_CALLBACK is not set on the leader: there is nothing to run"
        while True:
            self._news.clear()
            await self._serve(term, ledger)
            for request in self._requests.pending("run"):
                await self._requests.answer(term, request, Answer(why, refused=True))
            await self._news.wait()

    async def _loop(
        self, group: asyncio.TaskGroup, term: Term, ledger: Ledger, execution: Execution
    ) -> None:
        loop = asyncio.get_running_loop()
        snapshot: Snapshot | None = None
        retry_at = loop.time()
        if ledger.running is not None:
            retry_at += policy.backoff(ledger.running.attempt, self._rng.random())
        while True:
            self._news.clear()
            await self._serve(term, ledger)
            asked = next(iter(self._requests.pending("run")), None)
            ripe = self._mirror.damper.ripe
            if asked is None and ripe is not None and ripe > loop.time():
                self.notice.tell(policy.Wait("ensemble", ripe, "damper"))
                await self._news_or(ripe)  # not worth a look, at any size
                continue
            if snapshot is None or snapshot.version != self._mirror.version:
                snapshot = await self._look(ledger)
                if snapshot is None:
                    await self._news.wait()
                    continue
            situation = self._situation(snapshot, ledger, retry_at, asked=asked is not None)
            plan = policy.decide(loop.time(), situation)
            lost, of = snapshot.changes.lost, len(ledger.applied.members)
            self.notice.tell(plan, lost, of)
            match plan:
                case policy.Idle():
                    await self._news.wait()
                case policy.Wait(_, until, hold) if asked is not None:
                    why = f"held by the {hold} for {until - loop.time():.0f} s more: {len(lost)} "
                    why += f"of {of} pods are lost"
                    why += "; if they are gone for good, `kontrol release`" * (hold == "brake")
                    await self._requests.answer(term, asked, Answer(why, refused=True))
                case policy.Wait(_, until, _):
                    await self._news_or(until)
                case policy.Run(reason, again):
                    attempt = ledger.running.attempt + 1 if again and ledger.running else 1
                    self._mirror.damper.taken()
                    operator = None if asked is None else self._asked(term, group, asked)
                    await execution.run(snapshot, self._fingerprint, attempt, reason, operator)
                    snapshot = None
                    retry_at = loop.time() + policy.backoff(attempt, self._rng.random())

    async def _serve(self, term: Term, ledger: Ledger) -> None:
        """Do what operators ask for besides runs."""
        for request in self._requests.pending("release", "rollback"):
            if request.kind == "release":
                released = self._brake.release()
                answer = Answer("the brake lets go" if released else "the brake holds nothing")
            else:
                answer = await self._roll_back(ledger, request)
            await self._requests.answer(term, request, answer)

    async def _roll_back(self, ledger: Ledger, request: Request) -> Answer:
        number = request.run or 0
        run = await ledger.put_back(number, self._wall(), request.by)
        if run is None:
            why = f"the state of run {number} is not kept: the last 20 are, see `kontrol runs`"
            return Answer(why, refused=True)
        return Answer(f"run {run} put the state of run {number} back", run=run)

    def _asked(self, term: Term, group: asyncio.TaskGroup, request: Request) -> Asked:
        def started(run: int) -> None:
            answer = Answer(f"run {run} has started", run=run)
            group.create_task(self._requests.answer(term, request, answer))

        return Asked(request.by, started)

    async def _catch_up(self) -> None:
        """Wait until the mirror shows at least what the store holds now."""
        await self._mirror.complete.wait()
        request = Range(self._keys.pods, prefix=True, keys_only=True)
        read = await self._store.range(request)
        while True:
            self._news.clear()
            if self._mirror.reached(read):
                return
            await self._news.wait()

    async def _bury(self, ledger: Ledger) -> None:
        """Wait out a run that another term left unended, and count it as a failed attempt."""
        running = ledger.running
        if running is None or running.ended:
            return
        log.warning(
            "run %d of term %d was not ended: waiting %g s, in which its processes die",
            running.run,
            running.term,
            self._config.fover,
        )
        await asyncio.sleep(self._config.fover)
        why = f"its leader, of term {running.term}, went away"
        await ledger.fail(0, Changes(), Ending(ok=False, why=why))

    async def _look(self, ledger: Ledger) -> Snapshot | None:
        """Take a snapshot, with what became of the missing; None if the mirror lags behind."""
        version, pods = self._mirror.version, tuple(self._mirror.ensemble)
        digest = self._mirror.ensemble.digest
        if digest != self._digest:
            self._digest = digest
            self._counts.digests += 1
            self._emit("md5_changed")
        left: set[int] | None = None
        try:
            left = await ledger.fates(pods)
        except (Unavailable, Ambiguous) as error:
            log.warning("waiting for the store, to tell left from lost: %s", error)
            await asyncio.sleep(min(1.0, self._config.fover / 10))
            self.wake()
        if left is None:
            return None
        return Snapshot(version, pods, digest, difference(ledger.applied.members, pods, left))

    def _situation(
        self, snapshot: Snapshot, ledger: Ledger, retry_at: float, *, asked: bool
    ) -> policy.Situation:
        now = asyncio.get_running_loop().time()
        applied, running = ledger.applied, ledger.running
        lost = len(snapshot.changes.lost)
        return policy.Situation(
            digest=snapshot.digest,
            fingerprint=self._fingerprint,
            applied_digest=applied.digest,
            applied_fingerprint=applied.fingerprint,
            failed=None if running is None else (running.digest, running.fingerprint, retry_at),
            peers=self._peers_have(applied.fingerprint),
            ripe=self._mirror.damper.ripe,
            gap=self._mirror.recovered + self._config.ttl if lost else None,
            brake=self._brake.consider(now, lost, len(applied.members)),
            asked=asked,
        )

    def _peers_have(self, fingerprint: str | None) -> bool:
        """Tell whether a live candidate still has this callback: a deploy is under way."""
        if fingerprint in (None, self._fingerprint):
            return False
        return any(
            self._records.candidate(kv).fingerprint == fingerprint
            for kv in self._election.candidates
        )

    async def _news_or(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _sweep(self, term: Term) -> None:
        while True:
            try:
                await sweep(self._store, self._records, term)
            except (Unavailable, Ambiguous) as error:
                log.debug("the seats are swept later: %s", error)
            await asyncio.sleep(_SWEEP_EVERY)
