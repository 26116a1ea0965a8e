"""When the callback runs: the leader's decision, as a pure function."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kontrol.master.leader.policy import (
    Idle,
    Rollout,
    Run,
    Situation,
    Wait,
    backoff,
    decide,
    outdated,
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
    assert decide(110, replace(CHANGED, ripe=110)) == Run("ensemble", again=False)


def test_a_change_that_was_taken_and_is_still_due_runs_at_once() -> None:
    assert decide(100, CHANGED) == Run("ensemble", again=False)


def test_a_new_callback_is_due() -> None:
    assert decide(100, replace(QUIET, fingerprint="f2")) == Run("callback", again=False)


def test_a_new_callback_waits_for_the_end_of_the_deploy() -> None:
    waiting = replace(QUIET, fingerprint="f2", rollout=160)
    assert decide(100, waiting) == Wait("callback", 160, "rollout")
    assert decide(160, waiting) == Run("callback", again=False)


def test_a_change_during_the_deploy_is_due_all_the_same() -> None:
    assert decide(100, replace(CHANGED, fingerprint="f2", rollout=160)) == Run(
        "ensemble", again=False
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
    assert decide(130, failed) == Run("ensemble", again=True)


def test_an_unacknowledged_run_is_due_although_the_ensemble_went_back() -> None:
    assert decide(100, replace(QUIET, failed=("d2", "f", 130.0))) == Run(
        "unacknowledged", again=False
    )
    assert decide(100, replace(QUIET, failed=("d", "f", 130.0))) == Wait(
        "unacknowledged", 130, "retry"
    )


def test_a_new_change_does_not_wait_for_the_backoff() -> None:
    failed = replace(CHANGED, failed=("d1", "f", 400.0), ripe=105)
    assert decide(100, failed) == Wait("ensemble", 105, "damper")
    assert decide(105, failed) == Run("ensemble", again=False)


def test_gap_and_brake_hold_and_the_longest_is_told() -> None:
    held = replace(CHANGED, ripe=101, gap=125, brake=150)
    assert decide(100, held) == Wait("ensemble", 150, "brake")
    assert decide(150, held) == Run("ensemble", again=False)


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
    ),
    st.floats(0, 200),
)
def test_it_waits_only_for_the_future_and_runs_only_when_due(s: Situation, now: float) -> None:
    decision = decide(now, s)
    if isinstance(decision, Wait):
        assert decision.until > now
        assert isinstance(decide(decision.until, s), Run)
    if isinstance(decision, Run):
        assert s.digest != s.applied_digest or s.failed or s.fingerprint != s.applied_fingerprint
        assert s.gap is None or s.gap <= now
        assert s.brake is None or s.brake <= now
    if s.digest != s.applied_digest or s.failed is not None:
        assert not isinstance(decision, Idle)
