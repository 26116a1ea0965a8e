"""One run of the callback: booked before it starts, run under the term's deadline, booked after.

However it is interrupted, the book tells the truth: a run whose leader is told to stop ends its
processes and is booked as ended; one whose term is over is killed, and its successor finds it
unended.

What a master has counted since it started, for metrics.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from kontrol.ensemble.canonical import canonical
from kontrol.ensemble.ensemble import Changes
from kontrol.ensemble.pod import Pod
from kontrol.master.callback import RunOutcome, RunRequest
from kontrol.master.leader.ledger import Ledger
from kontrol.master.records.runs import Ending, Running
from kontrol.master.term import Term
from kontrol.store.protocol import Ambiguous, StoreError, Unavailable

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What runs the callback: `kontrol.master.callback.Callback`, or a model of it."""

    def fingerprint(self) -> str:
        """Return what tells this callback from another."""
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
        """End the run under way: ask, wait a little, kill. `run` then returns."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The ensemble as one decision saw it; `version` is the mirror's, `revision` the store's."""

    version: int
    revision: int
    pods: tuple[Pod, ...]
    digest: str
    changes: Changes


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator's request for a run: who asked; `started` is called with the run's number."""

    by: str
    started: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """To run the callback with this `fingerprint` for `snapshot`; made at loop time `at`.

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
"""Says why a decision must not be carried out any more; empty if it may."""


@dataclass(slots=True)
class Counts:
    """Plain numbers, written by their owners on the loop, read by whoever reports them.

    `run_seconds` is the sum of all runs' durations, `last_run_seconds` that of the last that ended.
    `last_run` (ended) and `last_success` are in seconds since 1970, 0 before the first; `clock`
    tells that time. `running_since` is the loop time at which the run under way began, None if none
    is. `following` is how many runs in a row seem to have led to the last one. `terms` counts terms
    won here, `digests` changes of the ensemble seen as leader.
    """

    runs_started: int = 0
    runs_acknowledged: int = 0
    runs_failed: int = 0
    run_seconds: float = 0.0
    last_run_seconds: float = 0.0
    last_run: float = 0.0
    last_success: float = 0.0
    running_since: float | None = None
    following: int = 0
    terms: int = 0
    digests: int = 0
    clock: Callable[[], float] = time.time

    def started(self) -> None:
        """Count a run that starts."""
        self.runs_started += 1

    def ended(self, *, ok: bool, seconds: float) -> None:
        """Count a run that was booked."""
        self.run_seconds += seconds
        self.last_run_seconds = seconds
        self.last_run = self.clock()
        if ok:
            self.runs_acknowledged += 1
            self.last_success = self.last_run
        else:
            self.runs_failed += 1


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
        emit: Callable[[str], None],
        outdated: Outdated,
    ) -> None:
        """`fover`, in seconds, is recorded with each run, for a successor to wait out.

        A third of it is what the store gets to record a run's end while shutting down. `emit` hears
        of each start, as `callback_invoked`. `outdated` is asked once a start is recorded, which
        may take as long as etcd does.
        """
        self._term = term
        self._ledger = ledger
        self._runner = runner
        self._wall = wall
        self._fover = fover
        self._counts = counts
        self._emit = emit
        self._outdated = outdated

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
        )
        request = RunRequest(
            run=running.run,
            term=running.term,
            attempt=running.attempt,
            digest=running.digest,
            pods=b"[" + b",".join(pod.canonical for pod in snapshot.pods) + b"]",
            changes=canonical(snapshot.changes.public()),
            state=self._ledger.state,
        )
        await self._ledger.start(running)
        if why := await self._outdated(decision):
            log.warning("run %d is not started: %s", running.run, why)
            await self._ledger.withdraw(len(snapshot.pods), snapshot.changes, why)
            return False

        def started() -> None:
            log.info(
                "run %d (attempt %d, %s): %d pods; %s",
                running.run,
                running.attempt,
                running.reason,
                len(snapshot.pods),
                snapshot.changes,
            )
            self._counts.started()
            self._counts.following = running.follows
            self._emit("callback_invoked")
            if asked is not None:
                asked.started(running.run)

        outcome, stopped = await self._call(request, started)
        if not stopped:
            await self._book(snapshot, outcome)
            return True
        # Shutting down: book it if the store answers, and leave the rest to the successor.
        limit = asyncio.timeout(self._fover / 3)
        try:
            async with limit:
                await self._book(snapshot, outcome)
        except (StoreError, TimeoutError, asyncio.CancelledError) as error:
            # In a task that was cancelled, a time-out is told as that before Python 3.11.3.
            if isinstance(error, StoreError) or limit.expired():
                why = str(error) or "no answer in time"
                log.warning(
                    "run %d could not be booked: %s; the next leader will", running.run, why
                )
        raise asyncio.CancelledError

    async def _call(
        self, request: RunRequest, started: Callable[[], None]
    ) -> tuple[RunOutcome, bool]:
        """Run the callback; returns its outcome, and whether we were told to stop meanwhile.

        What is to be done at the start is done after it: the callback need not wait for that.

        If the term is over, nothing is returned: its processes are killed, and that is all.
        """
        run = asyncio.create_task(self._runner.run(request, self._term.deadline))
        forget = self._term.on_proof(self._runner.extend)
        try:
            await asyncio.sleep(0)
            self._counts.running_since = asyncio.get_running_loop().time()
            started()
            return await asyncio.shield(run), False
        except asyncio.CancelledError:
            if self._term.deposed:
                run.cancel()
                await asyncio.wait([run])
                log.warning(
                    "run %d was killed with the term; the next leader books it", request.run
                )
                raise
            await self._runner.stop()
            return await run, True
        finally:
            self._counts.running_since = None
            forget()

    async def _book(self, snapshot: Snapshot, outcome: RunOutcome) -> None:
        assert self._ledger.running is not None, "no run was started"  # noqa: S101
        number = self._ledger.running.run
        ending = Ending(
            ok=outcome.ok,
            why=outcome.why,
            seconds=outcome.seconds,
            status=outcome.status,
            signal=outcome.signal,
            stderr=outcome.stderr_tail,
        )
        if not ending.ok:
            await self._ledger.fail(len(snapshot.pods), snapshot.changes, ending)
            self._counts.ended(ok=False, seconds=ending.seconds)
            log.warning("run %d failed after %.3g s: %s", number, ending.seconds, ending.why)
            return
        await self._ledger.commit(snapshot.pods, snapshot.changes, ending, outcome.state)
        self._counts.ended(ok=True, seconds=ending.seconds)
        log.info("run %d acknowledged after %.3g s", number, ending.seconds)
        try:
            await self._ledger.trim()
        except (Unavailable, Ambiguous) as error:
            log.debug("old entries are left for the next run: %s", error)
