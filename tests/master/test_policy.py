"""When the callback runs: the leader's decision, as a pure function."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kontrol.master.leader.policy import (
    TIMED,
    Idle,
    Rollout,
    Run,
    Situation,
    Wait,
    backoff,
    decide,
    outdated,
    wake,
)

QUIET = Situation(
    digest="d",
    fingerprint="f",
    applied_digest="d",
    applied_fingerprint="f",
    failed=None,
    rollout=None,
    ripe=None,
    gap=None,
    brake=None,
)
CHANGED = replace(QUIET, digest="d2")


def test_what_was_acknowledged_is_not_run_again() -> None:
    assert decide(100, QUIET) == Idle()


def test_the_empty_ensemble_before_any_run_is_not_due() -> None:
    assert decide(100, replace(QUIET, applied_fingerprint=None)) == Idle()


def test_a_change_waits_for_the_damper_and_runs() -> None:
    assert decide(100, replace(CHANGED, ripe=110)) == Wait("ensemble", 110, "damper")
    assert decide(110, replace(CHANGED, ripe=110)) == Run("ensemble", retry=False)


def test_a_change_that_was_taken_and_is_still_due_runs_at_once() -> None:
    assert decide(100, CHANGED) == Run("ensemble", retry=False)


def test_a_new_callback_is_due() -> None:
    assert decide(100, replace(QUIET, fingerprint="f2")) == Run("callback", retry=False)


def test_a_new_callback_waits_for_the_end_of_the_deploy() -> None:
    waiting = replace(QUIET, fingerprint="f2", rollout=160)
    assert decide(100, waiting) == Wait("callback", 160, "rollout")
    assert decide(160, waiting) == Run("callback", retry=False)


def test_a_change_during_the_deploy_is_due_all_the_same() -> None:
    assert decide(100, replace(CHANGED, fingerprint="f2", rollout=160)) == Run(
        "ensemble", retry=False
    )


def test_a_new_callback_waits_for_others_a_minute_from_when_it_was_first_seen() -> None:
    rollout = Rollout()
    assert rollout.until(100, differs=True, peers=True) == 160
    assert rollout.until(130, differs=True, peers=True) == 160
    assert rollout.until(140, differs=True, peers=False) is None
    assert rollout.until(150, differs=False, peers=False) is None
    assert rollout.until(170, differs=True, peers=True) == 230


def test_a_decision_is_outdated_when_nothing_is_due_or_gap_or_brake_hold() -> None:
    assert outdated(100, QUIET) == "nothing is due any more"
    assert outdated(100, CHANGED) == ""
    assert outdated(100, replace(QUIET, asked=True)) == ""
    for held in (CHANGED, replace(QUIET, asked=True)):
        assert outdated(100, replace(held, brake=101)) == "the brake holds it now"
        assert outdated(100, replace(held, gap=101, ripe=500)) == "the gap holds it now"
        assert outdated(101, replace(held, brake=101, gap=100, ripe=500)) == ""


def test_a_failed_run_is_due_after_its_backoff() -> None:
    failed = replace(CHANGED, failed=("d2", "f", 130.0), ripe=105)
    assert decide(110, failed) == Wait("ensemble", 130, "retry")
    assert decide(130, failed) == Run("ensemble", retry=True)


def test_an_unacknowledged_run_is_due_although_the_ensemble_went_back() -> None:
    assert decide(100, replace(QUIET, failed=("d2", "f", 130.0))) == Run(
        "unacknowledged", retry=False
    )
    assert decide(100, replace(QUIET, failed=("d", "f", 130.0))) == Wait(
        "unacknowledged", 130, "retry"
    )


def test_a_new_change_does_not_wait_for_the_backoff() -> None:
    failed = replace(CHANGED, failed=("d1", "f", 400.0), ripe=105)
    assert decide(100, failed) == Wait("ensemble", 105, "damper")
    assert decide(105, failed) == Run("ensemble", retry=False)


def test_gap_and_brake_hold_and_the_longest_is_told() -> None:
    held = replace(CHANGED, ripe=101, gap=125, brake=150)
    assert decide(100, held) == Wait("ensemble", 150, "brake")
    assert decide(150, held) == Run("ensemble", retry=False)


def test_what_is_due_at_its_time_is_never_early_and_its_time_is_told() -> None:
    for s, reason in (
        (replace(QUIET, again=130), "again"),
        (replace(QUIET, schedule=130), "schedule"),
        (replace(QUIET, again=130, schedule=131), "again"),
        (replace(QUIET, again=131, schedule=130), "schedule"),
    ):
        plan = decide(129.9, s)
        assert plan == Idle(reason, 130)  # type: ignore[arg-type]  # one of both
        assert isinstance(plan, Idle)
        assert wake(129.9, plan, s) == 130
        assert decide(130, s) == Run(reason, retry=False)  # type: ignore[arg-type]
        assert outdated(130, s) == ""
        assert outdated(129.9, s) == "nothing is due any more"
    assert wake(100, Idle(), QUIET) is None


def test_a_run_at_its_time_does_not_wait_for_the_damper_unless_pods_are_lost() -> None:
    damped = replace(CHANGED, ripe=110, again=105)
    plan = decide(100, damped)
    assert plan == Wait("ensemble", 110, "damper")
    assert wake(100, plan, damped) == 105
    assert decide(105, damped) == Run("again", retry=False)
    lost = replace(damped, lost=True)
    assert decide(105, lost) == Wait("ensemble", 110, "damper")
    assert wake(105, plan, lost) == 110
    assert decide(110, lost) == Run("ensemble", retry=False)
    assert decide(110, damped) == Run("ensemble", retry=False)
    for urgent in (replace(lost, urgent=True), replace(damped, urgent=True)):
        assert decide(105, urgent) == Run("ensemble", retry=False)


def test_a_change_that_went_back_does_not_hold_a_run_at_its_time() -> None:
    assert decide(105, replace(QUIET, ripe=110, again=105)) == Run("again", retry=False)


def test_a_run_at_its_time_is_held_by_gap_and_brake() -> None:
    for hold in ("gap", "brake"):
        held = replace(CHANGED, again=105, **{hold: 120})  # type: ignore[arg-type]
        assert decide(105, held) == Wait("ensemble", 120, hold)
        held = replace(held, ripe=110)
        assert decide(105, held) == Wait("again", 120, hold)
        assert outdated(105, held) == f"the {hold} holds it now"


def test_a_run_at_its_time_does_not_wait_for_masters_with_another_callback() -> None:
    waiting = replace(QUIET, fingerprint="f2", rollout=160, again=130)
    plan = decide(100, waiting)
    assert plan == Wait("callback", 160, "rollout")
    assert wake(100, plan, waiting) == 130
    assert decide(130, waiting) == Run("again", retry=False)


def test_the_retry_of_a_failed_run_takes_the_place_of_runs_at_their_time() -> None:
    failed = replace(QUIET, failed=("d", "f", 130.0), again=90, schedule=95)
    assert decide(100, failed) == Wait("unacknowledged", 130, "retry")
    assert decide(130, failed) == Run("unacknowledged", retry=True)
    failed = replace(CHANGED, failed=("d2", "f", 130.0), again=90, ripe=105)
    assert decide(100, failed) == Wait("ensemble", 130, "retry")


def test_an_urgent_change_does_not_wait_for_the_damper_but_for_all_else() -> None:
    urgent = replace(CHANGED, ripe=110, urgent=True)
    assert decide(100, urgent) == Run("ensemble", retry=False)
    assert decide(100, replace(urgent, gap=120)) == Wait("ensemble", 120, "gap")
    assert decide(100, replace(urgent, brake=120)) == Wait("ensemble", 120, "brake")
    assert decide(100, replace(urgent, failed=("d2", "f", 130.0))) == Wait("ensemble", 130, "retry")
    assert decide(100, replace(urgent, failed=("d1", "f", 130.0))) == Run("ensemble", retry=False)


def test_a_change_of_the_desired_state_does_not_wait_for_the_damper_unless_pods_are_lost() -> None:
    spec = replace(QUIET, desired=True, spec=7, ripe=110)
    assert decide(100, spec) == Run("spec", retry=False)
    damped = replace(spec, digest="d2")
    assert decide(100, damped) == Run("spec", retry=False)
    assert decide(110, damped) == Run("ensemble", retry=False)
    assert decide(100, replace(damped, lost=True)) == Wait("ensemble", 110, "damper")
    assert decide(100, replace(damped, again=90, schedule=90)) == Run("spec", retry=False)
    assert decide(100, replace(spec, fingerprint="f2", rollout=160)) == Run("spec", retry=False)
    assert decide(100, replace(spec, gap=120)) == Wait("spec", 120, "gap")
    assert decide(100, replace(damped, brake=120)) == Wait("spec", 120, "brake")
    assert decide(100, replace(spec, asked=True)) == Run("asked", retry=False)


def test_a_failed_run_is_repeated_for_another_desired_state_without_its_backoff() -> None:
    failed = replace(QUIET, desired=True, spec=7, failed=("d", "f", 130.0), failed_spec=7, ripe=150)
    assert decide(100, failed) == Wait("unacknowledged", 130, "retry")
    assert decide(100, replace(failed, spec=8)) == Run("spec", retry=False)
    damped = replace(failed, digest="d2", failed=("d2", "f", 130.0))
    assert decide(100, damped) == Wait("ensemble", 130, "retry")
    assert decide(100, replace(damped, spec=8)) == Run("spec", retry=False)
    back = replace(failed, spec=8, desired=False, ripe=None)
    assert decide(100, back) == Run("unacknowledged", retry=False)


def test_a_request_of_an_operator_comes_before_a_run_at_its_time() -> None:
    asked = replace(QUIET, asked=True, again=90, ripe=120)
    assert decide(100, asked) == Run("asked", retry=False)


def test_backoff_doubles_from_one_second_to_five_minutes() -> None:
    assert [backoff(n, 0) for n in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert backoff(1, 1) == 0.8
    assert backoff(10_000, 0) == 300


TIMES = st.none() | st.floats(0, 200)


@given(
    st.builds(
        Situation,
        digest=st.sampled_from("ab"),
        fingerprint=st.sampled_from("fg"),
        applied_digest=st.sampled_from("ab"),
        applied_fingerprint=st.sampled_from([None, "f", "g"]),
        failed=st.none()
        | st.tuples(st.sampled_from("ab"), st.sampled_from("fg"), st.floats(0, 200)),
        rollout=TIMES,
        ripe=TIMES,
        gap=TIMES,
        brake=TIMES,
        again=TIMES,
        schedule=TIMES,
        urgent=st.booleans(),
        lost=st.booleans(),
    ),
    st.floats(0, 200),
)
def test_it_waits_only_for_the_future_and_runs_only_when_due(s: Situation, now: float) -> None:
    decision = decide(now, s)
    if isinstance(decision, Wait):
        assert decision.until > now
        assert isinstance(decide(decision.until, s), Run)
    times = [time for time in (s.again, s.schedule) if time is not None]
    if isinstance(decision, Run):
        changed = s.digest != s.applied_digest or s.failed is not None
        changed = changed or s.fingerprint != s.applied_fingerprint
        assert decision.reason in TIMED or changed
        if decision.reason in TIMED:
            at = s.again if decision.reason == "again" else s.schedule
            assert at is not None and at <= now  # noqa: PT018
        if decision.reason == "ensemble" and not decision.retry and not s.urgent:
            assert s.ripe is None or s.ripe <= now
        assert s.gap is None or s.gap <= now
        assert s.brake is None or s.brake <= now
    else:
        assert (wake(now, decision, s) or 201) > now
        assert all(wake(now, decision, s) <= time for time in times if time > now)  # type: ignore[operator]
    if s.digest != s.applied_digest or s.failed is not None:
        assert not isinstance(decision, Idle)
    if isinstance(decision, Idle):
        assert all(time > now for time in times)
        assert decision.until == min(times, default=None)
