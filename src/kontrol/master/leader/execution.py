"""One run of the callback: recorded before it starts, bounded by its term, recorded when it ends.

However it is interrupted, the ledger is right. If the leader shuts down, the callback is stopped
and the run is recorded as ended. If the term is over, the callback is killed, and the next leader
finds a run that was not ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import Changes
from kontrol.ensemble.pod import Pod
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.desired import Seen
from kontrol.master.leader.counts import Counts
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.publishing import RunPublisher
from kontrol.master.records.pods import Facts
from kontrol.master.records.runs import Ending, Running
from kontrol.master.term import Term
from kontrol.store.protocol import Ambiguous, StoreError, Unavailable

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs the callback: `kontrol.master.callback.Callback`, or a model of it."""

    def fingerprint(self) -> str:
        """Return a hash that differs for another callback."""
        ...

    async def changed(self) -> None:
        """Return when the fingerprint is another than `fingerprint` returned last."""
        ...

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        """Run it; it is killed when the boot clock reaches the deadline, which can be extended."""
        ...

    def extend(self, deadline: float) -> None:
        """Move the deadline of the run under way."""
        ...

    async def stop(self) -> None:
        """Stop the run under way: SIGTERM, some time, SIGKILL. `run` then returns."""
        ...


class CurrentCallback:
    """The callback that this master has, if any, and its fingerprint as last seen."""

    def __init__(self, runner: Runner | None) -> None:
        """Without a `runner` there is no callback, and the fingerprint is empty."""
        self.runner = runner
        self.fingerprint = "" if runner is None else runner.fingerprint()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the callback was replaced."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Notice when the callback is replaced, until cancelled; return if there is none."""
        while self.runner is not None:
            await self.runner.changed()
            now = self.runner.fingerprint()
            if now != self.fingerprint:
                log.info("the callback changed: its fingerprint is now %.16s", now)
                self.fingerprint = now
                for listener in self._listeners:
                    listener()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The ensemble as one decision saw it; `version` is the mirror's, `revision` the store's.

    `at` is the loop time at which it was taken. `urgent` says that one of the changes is urgent.
    `spec` is the desired state.
    """

    version: int
    revision: int
    at: float
    pods: tuple[Pod, ...]
    digest: str
    changes: Changes
    urgent: bool = False
    spec: Seen = field(default_factory=Seen)


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator's request for a run: who asked; `started` is called with the run's number."""

    by: str
    started: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision to run the callback with this `fingerprint` for `snapshot`, at loop time `at`.

    `follows` is how many runs in a row before it seem to have led to the next.
    """

    snapshot: Snapshot
    fingerprint: str
    attempt: int
    reason: str
    asked: Asked | None
    at: float
    follows: int = 0


Outdated = Callable[[Decision], Awaitable[str]]
"""Returns why a decision must not be carried out any more; empty if it may."""


class Execution:
    """Runs the callback under one term."""

    def __init__(
        self,
        term: Term,
        ledger: Ledger,
        runner: Runner,
        wall: Callable[[], str],
        *,
        fover: float,
        counts: Counts,
        outdated: Outdated,
        taken: Callable[[float], None],
    ) -> None:
        """`wall` returns the date and time, RFC 3339.

        `fover`, in seconds, is recorded with each run, for a successor to wait out. While shutting
        down, the store has a third of it to record a run's end. `outdated` is asked once a start is
        recorded, which may take as long as etcd does. `taken` is called when the callback starts,
        with the loop time until which it is given the changes.
        """
        self._term = term
        self._ledger = ledger
        self._runner = runner
        self._wall = wall
        self._fover = fover
        self._counts = counts
        self._outdated = outdated
        self._taken = taken

    async def run(self, decision: Decision) -> bool:
        """Run the callback once, and record how it ended.

        False if the decision was outdated once the start was recorded: then the run is withdrawn.
        Raises `Deposed` and `StoreError`; on cancellation the callback is ended first.
        """
        snapshot, asked = decision.snapshot, decision.asked
        running = Running(
            run=self._ledger.next_run,
            term=self._term.number,
            attempt=decision.attempt,
            digest=snapshot.digest,
            fingerprint=decision.fingerprint,
            started=self._wall(),
            reason=decision.reason,
            by=asked.by if asked else "",
            fover=self._fover,
            revision=snapshot.revision,
            follows=decision.follows,
            spec=snapshot.spec.revision or None,
        )
        facts = await self._ledger.start(running)
        if why := await self._outdated(decision):
            log.warning("run %d is not started: %s", running.run, why)
            await self._ledger.withdraw(len(snapshot.pods), snapshot.changes, why)
            return False
        publisher = RunPublisher(self._ledger, running.run, self._wall)
        request = RunRequest(
            run=running.run,
            term=running.term,
            attempt=running.attempt,
            digest=running.digest,
            pods=b"[" + b",".join(_shown(pod, facts) for pod in snapshot.pods) + b"]",
            changes=canonical(snapshot.changes.public()),
            state=self._ledger.state,
            spec=snapshot.spec.document,
            publish=publisher.publish,
        )

        def started() -> None:
            log.info(
                "run %d (attempt %d, %s): %d pods; %s",
                running.run,
                running.attempt,
                running.reason,
                len(snapshot.pods),
                snapshot.changes,
            )
            self._taken(snapshot.at)
            self._counts.started(following=running.follows)
            if asked is not None:
                asked.started(running.run)

        try:
            outcome, stopped = await self._call(request, publisher, started)
            if stopped:
                await self._record_in_time(snapshot, outcome, publisher)
                raise asyncio.CancelledError
            await publisher.end()
            await self._record(snapshot, outcome, publisher.version)
        finally:
            await publisher.abandon()
        return True

    async def _record_in_time(
        self, snapshot: Snapshot, outcome: RunOutcome, publisher: RunPublisher
    ) -> None:
        """Record a run's end while shutting down, if the store answers."""
        assert self._ledger.running is not None, "no run was started"  # noqa: S101
        number = self._ledger.running.run
        limit = asyncio.timeout(self._fover / 3)
        try:
            async with limit:
                await publisher.end()
                await self._record(snapshot, outcome, publisher.version)
        except (StoreError, TimeoutError, asyncio.CancelledError) as error:
            # Before Python 3.11.3 a timeout in a cancelled task raises CancelledError.
            if isinstance(error, StoreError) or limit.expired():
                why = str(error) or "no answer in time"
                log.warning(
                    "run %d was not recorded: %s; the next leader will record it", number, why
                )

    async def _call(
        self, request: RunRequest, publisher: RunPublisher, started: Callable[[], None]
    ) -> tuple[RunOutcome, bool]:
        """Run the callback; returns its outcome, and whether this was cancelled meanwhile.

        `started` is called after the start, so the callback does not wait for it. If the term is
        over, the processes are killed, and CancelledError is raised.
        """
        run = asyncio.create_task(self._runner.run(request, self._term.deadline))
        forget = self._term.on_proof(self._runner.extend)
        try:
            await asyncio.sleep(0)
            self._counts.running_since = asyncio.get_running_loop().time()
            started()
            ends: list[asyncio.Future[Any]] = [run, publisher.deposed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if publisher.deposed.done():
                await self._kill(run, request.run)
                raise publisher.deposed.result()
            return run.result(), False
        except asyncio.CancelledError:
            if self._term.deposed:
                await self._kill(run, request.run)
                raise
            await self._runner.stop()
            return await run, True
        finally:
            self._counts.running_since = None
            forget()

    async def _kill(self, run: asyncio.Task[RunOutcome], number: int) -> None:
        run.cancel()
        await asyncio.wait([run])
        log.warning("run %d was killed with the term; the next leader will record it", number)

    async def _record(self, snapshot: Snapshot, outcome: RunOutcome, published: int | None) -> None:
        assert self._ledger.running is not None, "no run was started"  # noqa: S101
        number = self._ledger.running.run
        ending = Ending(
            ok=outcome.ok,
            why=outcome.why,
            seconds=outcome.seconds,
            status=outcome.status,
            signal=outcome.signal,
            stderr=outcome.stderr_tail,
            again=outcome.again,
            note=outcome.note,
            published=published,
        )
        if not ending.ok:
            await self._ledger.fail(len(snapshot.pods), snapshot.changes, ending)
            self._counts.ended(ok=False, seconds=ending.seconds)
            log.warning("run %d failed after %.3g s: %s", number, ending.seconds, ending.why)
            return
        spec = None if snapshot.spec.desired is None else snapshot.spec.desired.marks
        await self._ledger.commit(snapshot.pods, snapshot.changes, ending, outcome.state, spec)
        self._counts.ended(ok=True, seconds=ending.seconds)
        again = "" if ending.again is None else f"; it runs again in {ending.again:g} s"
        note = "" if ending.note is None else f"; its note: {ending.note}"
        log.info("run %d acknowledged after %.3g s%s%s", number, ending.seconds, again, note)
        try:
            await self._ledger.trim()
        except (Unavailable, Ambiguous) as error:
            log.debug("old entries are left for the next run: %s", error)


def _shown(pod: Pod, facts: Mapping[str, Facts]) -> bytes:
    """Return a pod as the callback sees it: with its live facts, if it has any."""
    found = facts.get(pod.key)
    return pod.canonical if found is None or not found.of(pod) else canonical(found.beside(pod))
