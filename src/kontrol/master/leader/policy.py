"""Whether to run the callback, and when: a pure decision on what the leader knows.

A run is due if the ensemble, the desired state or the callback differs from what was last
acknowledged, if a run was started and not acknowledged, or at its time: when the last acknowledged
run asked to run again, or when KONTROL_EVERY has passed since. What may hold it, each until a time
of its own: the damper; the backoff after a failure; a rollout, while other masters still have the
acknowledged callback; the gap, since pods that could not report to any master are not lost; the
brake.

The damper does not hold urgent changes, nor a run for the desired state or at its time: that one
acts on what has changed so far. But it does hold the latter two while pods are lost, so that a mass
loss, whose pods are lost one by one, comes to the brake as a whole. A run that an operator asks for
starts immediately, due or not, unless the gap or the brake holds it.

`Chain` counts runs in a row that each seem to have led to the next, as with a callback that changes
what it watches.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

Reason = Literal["ensemble", "callback", "unacknowledged", "asked", "again", "schedule", "spec"]
TIMED: tuple[Reason, ...] = ("again", "schedule")  # due at a time, not because of a change
_UNDAMPED: tuple[Reason, ...] = (*TIMED, "spec")
Hold = Literal["damper", "retry", "rollout", "predecessor", "gap", "brake"]

_BACKOFF = 1.0  # seconds before the second attempt
_BACKOFF_MAX = 300.0
_ROLLOUT = 60.0  # seconds for which a new callback waits for masters that have the old one


@dataclass(frozen=True, slots=True)
class Situation:
    """What the leader knows. Times are in seconds of the loop's clock.

    `failed` is (digest, fingerprint, the time to retry at) of the run that is not acknowledged.
    `rollout`, `ripe` (the damper), `gap` and `brake` are the times until which each holds a run,
    None if it does not. `asked` says that an operator asked for a run. `again` is the time for
    which the last acknowledged run asked, `schedule` that of KONTROL_EVERY, None without. `urgent`
    says that a change is urgent, `lost` that pods are lost. `desired` says that the desired state
    differs from the acknowledged one; `spec` is its revision, and `failed_spec` the one that the
    failed run got.
    """

    digest: str
    fingerprint: str
    applied_digest: str
    applied_fingerprint: str | None
    failed: tuple[str, str, float] | None
    rollout: float | None
    ripe: float | None
    gap: float | None
    brake: float | None
    asked: bool = False
    again: float | None = None
    schedule: float | None = None
    urgent: bool = False
    lost: bool = False
    spec: int = 0
    failed_spec: int = 0
    desired: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is due; at the time `until`, a run will be for `reason`, if there is one."""

    reason: Reason | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A run is due, and held until `until` by `hold`, the last of what holds it."""

    reason: Reason
    until: float
    hold: Hold


@dataclass(frozen=True, slots=True)
class Run:
    """Run now. `retry`: another attempt at what failed, rather than something new."""

    reason: Reason
    retry: bool


def decide(now: float, s: Situation) -> Idle | Wait | Run:
    """Decide what to do at the time `now`."""
    failed = s.failed
    if failed is not None and (failed[:2] != (s.digest, s.fingerprint) or s.failed_spec != s.spec):
        failed = None
    reason: Reason | None = "asked" if s.asked else _due(now, s, retry=failed is not None)
    if reason is None:
        return Idle(*next_time(s))
    holds = _holds(s, reason, None if failed is None else failed[2])
    held = [hold for hold in holds if hold[0] > now]
    if held:
        until, hold = max(held)
        return Wait(reason, until, hold)
    return Run(reason, failed is not None)


def next_time(s: Situation) -> tuple[Reason | None, float | None]:
    """Return the next run that is due at its time, and that time; None if there is none."""
    times: list[tuple[float, Reason]] = []
    if s.again is not None:
        times.append((s.again, "again"))
    if s.schedule is not None:
        times.append((s.schedule, "schedule"))
    if not times:
        return None, None
    at, reason = min(times)
    return reason, at


def wake(now: float, plan: Idle | Wait, s: Situation) -> float | None:
    """Return the time at which to decide again although nothing has changed; None if never."""
    times = (plan.until, s.again, s.schedule)
    return min((time for time in times if time is not None and time > now), default=None)


def outdated(now: float, s: Situation) -> str:
    """Return why a run that was decided must not start now; empty if it may.

    For a decision whose first write had to wait. The damper and the backoff had passed by then, so
    only what keeps from acting on a wrong list is decided again.
    """
    if isinstance(decide(now, s), Idle):
        return "nothing is due any more"
    plan = decide(now, replace(s, asked=True))
    return f"the {plan.hold} holds it now" if isinstance(plan, Wait) else ""


class Rollout:
    """Notes since when the leader's callback differs from the acknowledged one; one per term."""

    def __init__(self) -> None:
        self._since: float | None = None

    def until(self, now: float, *, differs: bool, peers: bool) -> float | None:
        """Return the time until which a new callback waits; None if it does not.

        `differs`: the callback is not the acknowledged one. `peers`: a live candidate still has the
        acknowledged one.
        """
        if not differs:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        return self._since + _ROLLOUT if peers else None


def backoff(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after failed `attempt` (from 1); `jitter` is within 0 to 1.

    Doubles from 1 s to 5 min, less up to a fifth.
    """
    return float(min(_BACKOFF_MAX, _BACKOFF * 2.0 ** min(attempt - 1, 16))) * (1 - jitter / 5)


def _due(now: float, s: Situation, *, retry: bool) -> Reason | None:
    """Return why a run is due; `retry`: the one that failed last was for the same."""
    timed, at = next_time(s)
    if at is None or at > now:
        timed = None
    undamped: Reason | None = None if retry else "spec" if s.desired else timed
    if s.digest != s.applied_digest:
        damped = s.ripe is not None and s.ripe > now and not s.urgent
        return undamped if undamped is not None and damped and not s.lost else "ensemble"
    if s.failed is not None:
        return "spec" if undamped == "spec" else "unacknowledged"
    if undamped is None and s.applied_fingerprint not in (None, s.fingerprint):
        return "callback"
    return undamped


def _holds(s: Situation, reason: Reason, retry: float | None) -> Iterator[tuple[float, Hold]]:
    """Yield what may hold a run for `reason`, and until when; `retry`: one that failed."""
    if reason == "asked":
        pass
    elif retry is not None:
        yield retry, "retry"
    elif s.ripe is not None and not s.urgent and reason not in _UNDAMPED:
        yield s.ripe, "damper"
    if reason == "callback" and s.rollout is not None:
        yield s.rollout, "rollout"
    if s.gap is not None:
        yield s.gap, "gap"
    if s.brake is not None:
        yield s.brake, "brake"


SOON = 10.0  # seconds after a run in which its consequences are expected
FOLLOWING = 10  # runs in a row, each caused by the run before, that make a warning


class Chain:
    """Counts runs in a row, each caused by the run before; one per term.

    Why a pod changed cannot be known. What can be seen is that all changes that a run is due for
    came during the run before or soon after it, and were of pods that one of the last few runs was
    due for as well (a callback may cycle through pods). Once may be chance; ten times in a row is a
    callback that feeds itself, or pods that never rest. Times are in seconds of one clock, given by
    the caller.
    """

    def __init__(self) -> None:
        self._ended: float | None = None
        self._ids: deque[AbstractSet[str]] = deque(maxlen=FOLLOWING)  # of the last runs
        self.length = 0

    def follows(self, newest: float, ids: AbstractSet[str]) -> int:
        """Return how many runs in a row led to one that is about to start.

        `newest` is when the last change came that it is for. `ids` are the pods that changed, or
        the keys of the desired state; none if it is due for another reason.
        """
        caused = self._ended is not None and newest <= self._ended + SOON
        same = not ids or not any(self._ids) or any(ids & before for before in self._ids)
        self.length = self.length + 1 if caused and same else 0
        if not caused:
            self._ids.clear()
        self._ids.append(ids)
        return self.length

    def ended(self, now: float) -> None:
        """Note that a run has ended."""
        self._ended = now
