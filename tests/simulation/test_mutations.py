"""The simulation can fail: take out one safeguard, and a schedule made for it breaks an invariant.

Each schedule passes with the safeguard in place.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.simulation.history import KEYS
from tests.simulation.schedule import Schedule, Step, draw
from tests.simulation.simulate import judge
from tests.support.memory.core import Core

from kontrol.master.term import Term
from kontrol.master.watchcache import WatchCache
from kontrol.store.protocol import Compare

pytestmark = pytest.mark.usefixtures("quiet")

SOUND = range(6)  # seeds with which each schedule passes
BROKEN = range(60)  # seeds of which one must show what is taken out

QUIET = Schedule(seed=0, masters=2, pods=3, ttl=10, fover=6, damper=0.5, steps=())
BOOT = (
    Step(0, "start", "m1"), Step(1, "start", "m2"),
    Step(0.5, "start", "p1"), Step(0.6, "start", "p2"), Step(0.7, "start", "p3"),
)  # fmt: skip

# The leader is paused in the middle of a long run; a successor starts its own.
PAUSED_LEADER = replace(
    QUIET,
    steps=(Step(0, "slow", lasting=200), *BOOT, *(Step(t, "pause", "m1", "", 70) for t in (4, 9))),
)

# All masters are away for longer than a TTL, and the pods report again as soon as they can.
NO_MASTERS = replace(
    QUIET, steps=(*BOOT, Step(30, "crash", "m1", "", 25), Step(30, "crash", "m2", "", 25))
)

# Leaders come and go while pods change all the time.
CHANGING_LEADERS = replace(
    QUIET,
    fover=3,
    steps=(
        *BOOT,
        *(Step(10 + 2.3 * i, "payload", f"p{i % 3 + 1}") for i in range(40)),
        *(Step(12 + 9 * i, "lossy", f"m{i % 2 + 1}", "etcd", 6) for i in range(10)),
        *(Step(15 + 9 * i, "pause", f"m{i % 2 + 1}", "", 4) for i in range(10)),
    ),
)

# A pod joins; the run for that is held up on its way to the store until there is another leader,
# who has nothing to do, because the pod has left.
HELD_START = replace(
    QUIET,
    pods=4,
    fover=3,
    damper=2,
    steps=(
        *BOOT,
        Step(15, "start", "p4"), Step(17.4, "leave", "p4"),
        Step(16.7, "stall", "m1", "etcd", 9),
    ),
)  # fmt: skip

# What begins a run comes late, again and again: after the run itself may be over.
LATE_STARTS = replace(
    QUIET,
    masters=1,
    fover=15,
    steps=(
        *(step for step in BOOT if step.who != "m2"),
        *(Step(8 + 13 * i, "lossy", "m1", "etcd", 5) for i in range(8)),
        *(Step(8 + 1.3 * i, "payload", f"p{i % 3 + 1}") for i in range(80)),
    ),
)

# Keepalives go through two masters, and what one of them writes comes late.
LATE_WRITES = replace(
    QUIET,
    steps=(
        *BOOT,
        *(Step(5 + 20 * i, "lossy", f"m{i % 2 + 1}", "etcd", 20) for i in range(5)),
        *(Step(6 + 0.7 * i, "payload", f"p{i % 3 + 1}") for i in range(100)),
    ),
)

# Pods join at one instant, through two masters.
CROWD = replace(
    QUIET,
    pods=12,
    steps=(*BOOT[:2], *(Step(8, "start", f"p{i}") for i in range(1, 13))),
)


def breaks(schedule: Schedule, invariant: str = "", seeds: range = BROKEN) -> bool:
    """Run a schedule with seeds until one breaks the invariant of that number, or any."""
    return any(
        text.startswith(f"invariant {invariant}")
        for seed in seeds
        for text in judge(replace(schedule, seed=seed))
    )


@pytest.mark.parametrize(
    "schedule",
    [PAUSED_LEADER, NO_MASTERS, CHANGING_LEADERS, HELD_START, LATE_WRITES, CROWD, LATE_STARTS],
)
def test_with_all_safeguards_the_schedules_pass(schedule: Schedule) -> None:
    assert not breaks(schedule, seeds=SOUND)


def ignore(monkeypatch: pytest.MonkeyPatch, concerns: Callable[[Compare], bool]) -> None:
    """Let the comparisons that `concerns` names hold whatever the store has."""
    real = Core._holds
    monkeypatch.setattr(Core, "_holds", lambda self, c: concerns(c) or real(self, c))


def test_without_the_proof_deadline_runs_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Term, "deadline", property(lambda _: float("inf")))
    assert breaks(PAUSED_LEADER, "1")


def test_without_the_gap_rule_the_silence_of_the_tier_is_told_as_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WatchCache, "recovered", property(lambda _: float("-inf")))
    assert breaks(NO_MASTERS, "6")


def test_without_the_leader_s_revision_comparisons_state_moves_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignore(monkeypatch, lambda c: c.key.startswith(KEYS.candidates) or c.key == KEYS.running)
    assert breaks(CHANGING_LEADERS, "4")


def test_without_the_fence_alone_a_deposed_leader_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    ignore(monkeypatch, lambda c: c.key.startswith(KEYS.candidates))
    assert breaks(HELD_START, "4")


def test_without_the_other_heads_compared_a_late_start_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignore(monkeypatch, lambda c: c.key in (KEYS.applied, KEYS.state))
    assert breaks(LATE_STARTS, seeds=range(300, 400))  # two of these show it


def test_without_the_record_s_revision_comparison_an_older_one_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignore(monkeypatch, lambda c: c.key.startswith((KEYS.pods, KEYS.registrations)))
    assert breaks(LATE_WRITES, "5")


def test_without_the_counter_s_comparison_pods_share_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignore(monkeypatch, lambda c: c.key == KEYS.counter)
    assert breaks(CROWD, "5")


def test_random_schedules_find_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WatchCache, "recovered", property(lambda _: float("-inf")))
    assert any(judge(draw(seed)) for seed in range(60))
