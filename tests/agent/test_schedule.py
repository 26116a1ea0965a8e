"""The delays, as arithmetic."""

from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent.schedule import MAX_TTL, MIN_TTL, Schedule

ttls = st.floats(min_value=MIN_TTL, max_value=MAX_TTL)
shares = st.floats(min_value=0, max_value=1)
anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())


@given(ttls, shares)
def test_a_keepalive_follows_within_a_third_of_the_ttl(ttl: float, share: float) -> None:
    delay = Schedule(ttl, lambda: share).acknowledged()
    assert 0.8 * ttl / 3 - 1e-9 <= delay <= ttl / 3 + 1e-9


@given(ttls, shares, st.integers(min_value=1, max_value=2000))
def test_a_lost_attempt_and_its_delay_fit_in_a_third_of_the_ttl(
    ttl: float, share: float, failures: int
) -> None:
    schedule = Schedule(ttl, lambda: share)
    delays = [schedule.failed() for _ in range(failures)]
    assert schedule.attempt <= min(ttl / 6, 5.0)
    assert schedule.attempt + max(delays) < ttl / 3


@given(ttls, st.floats(min_value=0, max_value=1e6))
def test_a_keepalive_is_given_up_in_time_to_save_the_lease_or_after_a_ttl(
    ttl: float, since: float
) -> None:
    schedule = Schedule(ttl, lambda: 0.0)
    timeout = schedule.timeout(since)
    assert timeout == (ttl / 3 if since < ttl else ttl)
    if since <= ttl / 3:  # a connection that breaks after an acknowledgement
        assert since + timeout + schedule.attempt < ttl


def test_the_bound_doubles_up_to_an_eighth_of_the_ttl_and_a_success_resets_it() -> None:
    schedule = Schedule(64.0, lambda: 1.0)
    assert [schedule.failed() for _ in range(6)] == [0.5, 1, 2, 4, 8, 8]
    schedule.acknowledged()
    assert schedule.failed() == 0.5


def test_the_delay_after_a_failure_has_full_jitter() -> None:
    assert Schedule(64.0, lambda: 0.0).failed() == 0


@given(anything)
def test_no_answer_makes_the_agent_flood_the_tier_or_fall_silent(ttl: object) -> None:
    schedule = Schedule(25.0, lambda: 0.0)
    assert 0.8 * MIN_TTL / 3 <= schedule.acknowledged(ttl) <= MAX_TTL / 3
    assert schedule.attempt > 0


def test_the_masters_ttl_rules() -> None:
    schedule = Schedule(25.0, lambda: 1.0)
    assert schedule.acknowledged(6) == 2.0
    assert schedule.acknowledged(None) == 2.0
    assert schedule.attempt == 1.0
