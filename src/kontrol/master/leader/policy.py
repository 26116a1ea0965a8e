"""Whether to run the callback, and when: a pure decision on what the leader knows.

Why it may be due: the ensemble or the callback differ from what was last acknowledged, or a run
was started and not acknowledged. What may hold it, each until a time of its own: the damper, the
back-off after a failure, a rollout (other masters still have the acknowledged callback), the gap
(time without masters or etcd is nobody's silence), the brake. An operator who asks for a run gets
it at once, due or not, unless the gap or the brake hold it.

Runs in a row that each led to the next: a callback that changes what it watches. Pure.

Nobody can know why a pod changed. What can be seen is that all changes that a run is due for came
during the run before, or soon after it, and were of pods that one of the last few runs was due for
as well: callbacks take turns with pods, too. Once may be chance; ten times in a row is a callback
that feeds itself, or pods that never rest.
"""

from collections import deque
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Literal

Reason = Literal["ensemble", "callback", "unacknowledged", "asked"]
Hold = Literal["damper", "retry", "rollout", "predecessor", "gap", "brake"]

_BACKOFF = 1.0  # seconds before the second attempt
_BACKOFF_MAX = 300.0
_ROLLOUT = 60.0  # seconds for which a new callback waits for masters that have the old one


@dataclass(frozen=True, slots=True)
class Situation:
    """What the leader knows. Times are seconds of the loop's clock; None: not held by that.

    `failed` is (digest, fingerprint, the time to retry at) of the run that is not acknowledged.
    `rollout` is until when a new callback waits for masters that have the acknowledged one;
    `asked` says that an operator wants a run.
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


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is due."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A run is due, and held until `until` by `hold`, the last of what holds it."""

    reason: Reason
    until: float
    hold: Hold


@dataclass(frozen=True, slots=True)
class Run:
    """Run now. `again`: another attempt at what failed, rather than something new."""

    reason: Reason
    again: bool


def decide(now: float, s: Situation) -> Idle | Wait | Run:
    """Judge the situation at the time `now`."""
    reason: Reason | None = "asked" if s.asked else _due(s)
    if reason is None:
        return Idle()
    failed = s.failed
    if failed is not None and failed[:2] != (s.digest, s.fingerprint):
        failed = None
    holds: list[tuple[float, Hold]] = []
    if s.asked:
        pass
    elif failed is not None:
        holds.append((failed[2], "retry"))
    elif s.ripe is not None:
        holds.append((s.ripe, "damper"))
    if reason == "callback" and s.rollout is not None:
        holds.append((s.rollout, "rollout"))
    if s.gap is not None:
        holds.append((s.gap, "gap"))
    if s.brake is not None:
        holds.append((s.brake, "brake"))
    held = [hold for hold in holds if hold[0] > now]
    if held:
        until, hold = max(held)
        return Wait(reason, until, hold)
    return Run(reason, failed is not None)


def outdated(now: float, s: Situation) -> str:
    """Say why a run that was decided must not start now; empty if it may.

    For a decision whose first write had to wait: the damper and the back-off were waited out then,
    what holds against acting on a wrong list is judged again.
    """
    if not s.asked and _due(s) is None:
        return "nothing is due any more"
    plan = decide(now, replace(s, asked=True))
    return f"the {plan.hold} holds it now" if isinstance(plan, Wait) else ""


class Rollout:
    """Since when the leader's callback differs from the acknowledged one. One per term."""

    def __init__(self) -> None:
        self._since: float | None = None

    def until(self, now: float, *, differs: bool, peers: bool) -> float | None:
        """Return the time until which the new callback waits; None if it does not.

        `differs`: from the acknowledged callback, which a live candidate still has if `peers`.
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


def _due(s: Situation) -> Reason | None:
    if s.digest != s.applied_digest:
        return "ensemble"
    if s.failed is not None:
        return "unacknowledged"
    if s.applied_fingerprint not in (None, s.fingerprint):
        return "callback"
    return None


SOON = 10.0  # seconds after a run in which its consequences are expected
FOLLOWING = 10  # runs in a row, each caused by the run before, of which people are warned


class Chain:
    """Counts them, for one term. Times are seconds of one clock, given by the caller."""

    def __init__(self) -> None:
        self._ended: float | None = None
        self._ids: deque[AbstractSet[str]] = deque(maxlen=FOLLOWING)  # of the last runs
        self.length = 0

    def follows(self, newest: float, ids: AbstractSet[str]) -> int:
        """Return how many runs in a row, before one that is about to start, led to it.

        `newest` is when the last change came that it is for; `ids` are the pods that changed, none
        if it is due for another reason.
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
