"""The simulation can fail: take out one safeguard, and a schedule made for it breaks an invariant.

Each schedule passes with the safeguard in place.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.simulation.history import KEYS
from tests.simulation.schedule import FOURTH, THIRD, Schedule, Step, draw
from tests.simulation.silence import SimHooks
from tests.simulation.simulate import judge
from tests.support.memory.core import Core

from kontrol.agent import silence
from kontrol.agent.hooks import HookRunner
from kontrol.ensemble.urgent import Urgent
from kontrol.master.highwater import HighWater
from kontrol.master.leader import policy
from kontrol.master.leader.execution import Decision
from kontrol.master.leader.ledger import Ledger
from kontrol.master.leader.observer import Observer
from kontrol.master.leader.policy import Situation
from kontrol.master.records.desired import Desired
from kontrol.master.records.records import Records
from kontrol.master.records.runs import Applied, Ending
from kontrol.master.term import Term
from kontrol.master.watchcache import WatchCache
from kontrol.process.command import Command, Outcome
from kontrol.store.protocol import Compare

pytestmark = pytest.mark.usefixtures("quiet")

SOUND = range(6)  # seeds with which each schedule passes
BROKEN = range(60)  # seeds of which one must show what is taken out
NEW_SOUND, NEW_BROKEN = range(THIRD, THIRD + 6), range(THIRD, THIRD + 60)  # pods have a state
HOOKS_SOUND, HOOKS_BROKEN = range(FOURTH, FOURTH + 6), range(FOURTH, FOURTH + 60)

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

# Pods are cut off, until they are lost, soon after they were acknowledged.
CUT_OFF = replace(
    QUIET,
    masters=1,
    steps=(
        *(step for step in BOOT if step.who != "m2"),
        *(Step(15 + 25 * i, "isolate", f"p{i % 3 + 1}", "", 20) for i in range(6)),
    ),
)

# Pods join at one instant, through two masters.
CROWD = replace(
    QUIET,
    pods=12,
    steps=(*BOOT[:2], *(Step(8, "start", f"p{i}") for i in range(1, 13))),
)


# Callbacks ask to run again, and leaders come and go.
ASKING = replace(
    QUIET,
    fover=3,
    every=20.0,
    asks=True,
    steps=(
        *BOOT,
        *(Step(10 + 17 * i, "payload", f"p{i % 3 + 1}") for i in range(5)),
        *(Step(15 + 25 * i, "crash", f"m{i % 2 + 1}", "", 6) for i in range(4)),
    ),
)

# A state changes and a pod leaves while the damper waits for long; others change, too.
URGENT = replace(
    QUIET,
    seed=THIRD,
    damper=30,
    urgent="left,payload.state",
    steps=(
        *BOOT,
        *(Step(45 + 4 * i, "payload", "p2") for i in range(4)),
        Step(80, "leave", "p3"), Step(95, "payload", "p1"),
    ),
)  # fmt: skip

# While the callback is busy with the first of many that are lost, the others are lost as well.
URGENT_LOSS = replace(
    QUIET,
    pods=8,
    urgent="lost",
    steps=(
        *BOOT,
        *(Step(1 + i / 10, "start", f"p{i}") for i in range(4, 9)),
        Step(20, "slow", lasting=15),
        *(Step(20, "crash", f"p{i}", "", 70) for i in range(2, 9)),
    ),
)

# Pods are lost while the damper waits for long, and runs come every so often.
LOST_AND_TIMED = replace(
    QUIET,
    damper=15,
    every=3.0,
    steps=(*BOOT, *(Step(30 + 13 * i, "crash", f"p{i}", "", 30) for i in (1, 2, 3))),
)


# Operators change the desired state, some at the same time, while leaders come and go.
DESIRED = replace(
    QUIET,
    fover=3,
    steps=(
        *BOOT,
        *(Step(10 + 7 * i, "want", f"m{i % 2 + 1}", f"a {i % 3}") for i in range(9)),
        *(Step(10 + 7 * i, "want", f"m{i % 2 + 1}", f"b {i} if {i - 1}") for i in range(1, 9)),
        *(Step(10 + 7 * i, "want", f"m{2 - i % 2}", f"b {i + 20} if {i - 1}") for i in range(9)),
        Step(9, "want", "m1", "b 0"),
        *(Step(15 + 25 * i, "crash", f"m{i % 2 + 1}", "", 6) for i in range(2)),
        *(Step(60 + i / 500, "want", "m1", f"c {i}") for i in range(30)),
        Step(60.03, "mute", "m1", "etcd", 1.5),
        Step(80, "want", "m2", "a 9"),
    ),
)  # fmt: skip

# Pods are lost one by one while the desired state changes all the time.
DESIRED_AND_LOST = replace(
    QUIET,
    damper=15,
    steps=(
        *BOOT,
        *(Step(30 + 13 * i, "crash", f"p{i}", "", 30) for i in (1, 2, 3)),
        *(Step(20 + i, "want", "m1", f"a {i}") for i in range(70)),
    ),
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
    [
        *(PAUSED_LEADER, NO_MASTERS, CHANGING_LEADERS, HELD_START, LATE_WRITES, CROWD, LATE_STARTS),
        *(ASKING, URGENT, URGENT_LOSS, LOST_AND_TIMED, DESIRED, DESIRED_AND_LOST),
    ],
)
def test_with_all_safeguards_the_schedules_pass(schedule: Schedule) -> None:
    assert not breaks(schedule, seeds=NEW_SOUND if schedule.seed else SOUND)


def test_with_all_safeguards_pods_that_are_cut_off_are_told() -> None:
    assert not breaks(CUT_OFF, seeds=HOOKS_SOUND)


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


def test_counting_from_the_start_of_the_process_a_run_is_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HighWater, "acknowledged", lambda _self, _run, _revision: 0.0)
    assert breaks(ASKING, "12 never early")


def test_without_the_record_a_successor_forgets_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Records.applied

    def forgetful(*given: Any) -> Applied | None:  # noqa: ANN401 - as it is called
        found = real(*given)
        return None if found is None else replace(found, again=None)

    monkeypatch.setattr(Records, "applied", forgetful)
    assert breaks(replace(ASKING, every=0.0), "10 nothing waits")


def test_what_a_failed_run_asked_for_is_not_committed_with_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Ledger.commit
    asked: list[float | None] = [None]

    async def late(self: Ledger, pods: Any, changes: Any, ending: Ending, *more: Any) -> None:  # noqa: ANN401
        asked.append(ending.again)
        await real(self, pods, changes, replace(ending, again=asked.pop(0)), *more)

    monkeypatch.setattr(Ledger, "commit", late)
    assert breaks(ASKING, "12 as it asked")


def test_if_nothing_is_urgent_what_should_be_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Urgent, "among", lambda *_: False)
    assert breaks(URGENT, "10 nothing waits", NEW_BROKEN)


def test_if_everything_is_urgent_what_is_not_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Urgent, "among", lambda *_: True)
    assert breaks(URGENT, "damper", NEW_BROKEN)


def deciding(monkeypatch: pytest.MonkeyPatch, edit: Callable[[Situation], Situation]) -> None:
    """Let the leader decide on an edited situation."""
    real = policy.decide
    monkeypatch.setattr(policy, "decide", lambda now, s: real(now, edit(s)))


def test_if_urgent_changes_pass_the_brake_a_mass_loss_is_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deciding(monkeypatch, lambda s: replace(s, gap=None, brake=None) if s.urgent else s)
    assert breaks(URGENT_LOSS, "10 the brake")


def test_if_urgent_changes_pass_the_gap_the_silence_of_the_tier_is_told_as_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deciding(monkeypatch, lambda s: replace(s, gap=None, brake=None) if s.urgent else s)

    async def never(_self: Observer, _decision: Decision) -> str:
        return ""

    monkeypatch.setattr(Observer, "outdated", never)  # it looks for a gap as well
    assert breaks(replace(NO_MASTERS, urgent="lost"), "6 gap")


def test_if_runs_at_their_time_pass_the_damper_they_tell_of_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deciding(monkeypatch, lambda s: replace(s, lost=False))
    assert breaks(LOST_AND_TIMED, "12 never early")


def test_a_hook_that_starts_when_the_ttl_is_over_comes_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "SHARE", 1.1)
    assert breaks(CUT_OFF, "14 told before lost", HOOKS_BROKEN)


def test_a_hook_that_may_take_half_the_ttl_is_not_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "BUDGET", 0.5)
    assert breaks(CUT_OFF, "14 told before lost", HOOKS_BROKEN)


def test_a_silent_hook_that_waits_for_another_comes_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = HookRunner.want
    monkeypatch.setattr(
        HookRunner, "want", lambda self, request: real(self, replace(request, urgent=False))
    )
    assert breaks(CUT_OFF, "14 told before lost", HOOKS_BROKEN)


def test_hooks_that_run_at_the_same_time_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimHooks.run

    async def detached(self: SimHooks, command: Command, **given: Any) -> Outcome:  # noqa: ANN401
        task = asyncio.ensure_future(real(self, command, **given))
        return await asyncio.shield(task)  # one that is ended for another runs on

    monkeypatch.setattr(SimHooks, "run", detached)
    assert breaks(CUT_OFF, "14 hooks in order", HOOKS_BROKEN)


def test_if_no_run_comes_for_it_the_desired_state_is_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deciding(monkeypatch, lambda s: replace(s, desired=False))
    assert breaks(DESIRED, "12 desired, seen by a run")


def test_without_the_marks_a_run_is_told_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Desired.since
    monkeypatch.setattr(Desired, "since", lambda self, _marks: real(self, {}))
    assert breaks(DESIRED)


def test_without_the_comparison_changes_that_race_are_made_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignore(monkeypatch, lambda c: c.key == KEYS.spec)
    assert breaks(DESIRED, "12 desired, made once")


def test_without_the_ids_a_change_whose_answer_is_lost_is_answered_as_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Desired, "logged", lambda _self, _id: False)
    assert breaks(DESIRED, "12 desired, made once")


def test_if_the_desired_state_passes_the_damper_its_runs_tell_of_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deciding(monkeypatch, lambda s: replace(s, lost=False))
    assert breaks(DESIRED_AND_LOST, "12 desired, seen by a run")


def test_random_schedules_find_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WatchCache, "recovered", property(lambda _: float("-inf")))
    assert any(judge(draw(seed)) for seed in range(60))
