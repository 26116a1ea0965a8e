"""Rate limits: how much passes in any time, and what is remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ratelimit import LogLimiter, RateLimiter


@given(
    st.integers(1, 20),
    st.floats(0.1, 10),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 30)), max_size=100),
)
def test_no_key_gets_more_than_a_burst_and_its_rate(
    burst: int, rate: float, asked: list[tuple[str, float]]
) -> None:
    limiter, now = RateLimiter(rate, burst), 0.0
    done: list[tuple[str, float]] = []
    for key, passed in asked:
        now += passed
        if limiter.allow(key, now):
            done.append((key, now))
    for key, begin in done:
        for other, end in done:
            if other == key and end >= begin:
                within = [at for one, at in done if one == key and begin <= at <= end]
                assert len(within) <= burst + rate * (end - begin) + 1e-6
    for key in "abc":
        passed_through = sum(one == key for one, _ in done)
        wanted = sum(one == key for one, _ in asked)
        assert passed_through >= min(burst, wanted), "a whole burst passes"


def test_a_refusal_costs_nothing_and_a_debt_is_waited_for() -> None:
    limiter = RateLimiter(1.0, 2)
    assert [limiter.allow("a", now) for now in (0, 0, 0.5, 0.9, 1.0, 1.0)] == [1, 1, 0, 0, 1, 0]
    limiter.take("b", 0.0, 5)
    assert limiter.left("b", 0.0) == -3
    assert [limiter.allow("b", now) for now in (3.0, 3.9, 4.0)] == [False, False, True]
    assert limiter.left("new", 100.0) == 2


def test_the_keys_that_are_used_are_remembered_and_no_more() -> None:
    limiter = RateLimiter(0.001, 1, keys=100)
    assert limiter.allow("flood", 0.0)
    for i in range(10_000):
        assert limiter.allow(f"address {i}", i / 1000)
        if not i % 50:
            assert not limiter.allow("flood", i / 1000), "a refusal keeps it among the remembered"
    assert len(limiter._levels) == 100


@pytest.mark.parametrize(
    ("most", "times", "passed"),
    [
        (1, (0, 1, 59, 60, 61), [0, None, None, 2, None]),
        (2, (0, 1, 2, 29, 32, 62, 63, 64), [0, 0, None, None, 2, 0, None, None]),
    ],
)
def test_a_log_limiter_says_how_many_lines_it_held_back(
    most: int, times: tuple[float, ...], passed: list[int | None]
) -> None:
    limiter = LogLimiter(most, 60.0)
    assert [limiter.admit(now) for now in times] == passed
    assert limiter.admit(500) == passed[::-1].index(next(p for p in passed[::-1] if p is not None))
