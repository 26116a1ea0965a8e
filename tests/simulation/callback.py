"""A model of the callback's process and its guard, which are no part of the master's process.

They live in the world's own context: a paused master's guard kills on time, that of one
that crashed immediately.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.simulation.history import Ended, Started
from tests.simulation.published import SimPublisher
from tests.simulation.world import World
from tests.support.simloop import Clock, SimLoop

from kontrol.ensemble.canonical import canonical
from kontrol.master.callback import RunOutcome, RunRequest


@dataclass
class Child:
    """A callback's process, as seen by its guard. `deadline` in loop time."""

    run: int
    deadline: float
    outcome: "asyncio.Future[RunOutcome]"
    end: asyncio.TimerHandle | None = None
    guard: asyncio.TimerHandle | None = None


class SimRunner:
    """The callback of one master's process; implements `kontrol.master.leader.execution.Runner`."""

    def __init__(
        self,
        world: World,
        host: str,
        clock: "BootClock",
        fingerprint: str,
        *,
        asks: bool = True,
        publisher: SimPublisher | None = None,
    ) -> None:
        """`asks`: this version of the masters lets it ask to run again, and leave notes."""
        self._publisher = publisher
        self._asks = asks
        self._world = world
        self._host = host
        self._clock = clock
        self.current = fingerprint
        self._replaced = asyncio.Event()
        self._child: Child | None = None

    def fingerprint(self) -> str:
        """Return what tells this callback from another."""
        self._replaced.clear()
        return self.current

    def replace(self, fingerprint: str) -> None:
        """Put another callback in its place."""
        self.current = fingerprint
        self._replaced.set()

    async def changed(self) -> None:
        """Return when `replace` was called after `fingerprint`."""
        await self._replaced.wait()

    async def run(self, request: RunRequest, deadline: float) -> RunOutcome:
        """Run it, or have it killed at the deadline or on cancellation."""
        loop = self._world.loop
        child = Child(request.run, self._clock.loop_time(deadline), loop.create_future())
        self._child = child
        delay = self._world.rng.uniform(0.001, 0.05)
        child.end = self._later(delay, lambda: self._start(child, request))
        try:
            return await asyncio.shield(child.outcome)
        except asyncio.CancelledError:
            self._finish(child, ok=False, why="cancelled")
            raise

    def extend(self, deadline: float) -> None:
        """Move the deadline of the run under way."""
        child = self._child
        if child is not None and not child.outcome.done():
            child.deadline = max(child.deadline, self._clock.loop_time(deadline))
            self._watch(child)

    async def stop(self) -> None:
        """Ask it to end; it takes up to 5 s."""
        child = self._child
        if child is not None and not child.outcome.done():
            delay = self._world.rng.choice((0.01, 0.5, 5.0))
            self._later(delay, lambda: self._finish(child, ok=False, why="stopped"))
            await asyncio.wait([child.outcome])

    def kill(self) -> None:
        """What the guard does when its master is gone."""
        child = self._child
        if child is not None:
            self._later(0.01, lambda: self._finish(child, ok=False, why="its master is gone"))

    def _later(self, delay: float, what: Callable[[], None]) -> asyncio.TimerHandle:
        loop = self._world.loop
        return loop.call_later(delay, what, context=loop.context(""))

    def _start(self, child: Child, request: RunRequest) -> None:
        world, rng = self._world, self._world.rng
        if child.outcome.done():
            return
        if child.deadline <= world.loop.world:
            child.outcome.set_result(_outcome(ok=False, why="fenced before it started"))
            return
        pods, live = apart(request.pods)
        world.record(
            Started(
                world.loop.world, self._host, request.run, request.term, request.digest,
                pods, request.changes, request.state, request.spec, live,
            )
        )  # fmt: skip
        child.guard = None
        self._watch(child)
        fover = world.schedule.fover
        length = rng.choice((0.05, 0.5, fover / 2)) if not world.slow else rng.uniform(1, 4) * fover
        ok = not world.failing
        state = json.dumps({"run": request.run}).encode() if rng.random() < 0.7 else None
        asked = world.ask() if self._asks else (None, None)
        if self._publisher is not None:
            self._publisher.begin(request, length, lambda: not child.outcome.done())
        child.end = self._later(length, lambda: self._finish(child, ok=ok, state=state, left=asked))

    def _watch(self, child: Child) -> None:
        """Set the guard's timer, once the process runs."""
        if child.guard is not None:
            child.guard.cancel()
        left = max(0.0, child.deadline - self._world.loop.world)
        child.guard = self._later(left, lambda: self._finish(child, ok=False, why="fenced"))

    def _finish(
        self,
        child: Child,
        *,
        ok: bool,
        state: bytes | None = None,
        why: str = "",
        left: tuple[float | None, str | None] = (None, None),
    ) -> None:
        if child.outcome.done():
            return
        for timer in (child.end, child.guard):
            if timer is not None:
                timer.cancel()
        again, note = left if ok else (None, None)
        at = self._world.loop.world
        self._world.record(Ended(at, child.run, ok, state if ok else None, again, note))
        outcome = _outcome(ok=ok, state=state, why=why or "as the schedule has it")
        child.outcome.set_result(replace(outcome, again=again, note=note))


def apart(pods: bytes) -> tuple[bytes, tuple[tuple[str, float], ...]]:
    """Return the pods without their live facts, and of when these are, by the pod's key."""
    if b'"live"' not in pods:
        return pods, ()
    found = json.loads(pods)
    live = tuple((pod["key"], pod.pop("live")["at"]) for pod in found if "live" in pod)
    return canonical(found), live


def _outcome(*, ok: bool, state: bytes | None = None, why: str = "") -> RunOutcome:
    return RunOutcome(
        ok=ok, state=state if ok else None, why=why, status=0 if ok else 1, signal=None,
        stderr_tail="", seconds=0.0, fenced=why == "fenced",
    )  # fmt: skip


class BootClock:
    """A host's clock that goes on while it sleeps: another zero, and up to 5 percent off."""

    def __init__(self, loop: SimLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock

    def __call__(self) -> float:
        return self._clock.shows(self._loop.world)

    def loop_time(self, reading: float) -> float:
        """Return the world's time at which this clock shows `reading`."""
        return self._clock.when(reading)
