"""Damper and brake, on time given by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.holds import Brake, Damper


def test_it_waits_for_quiet() -> None:
    assert Damper(10, 60).ripe is None
    damper = Damper(10, 60)
    damper.changed(100)
    assert damper.ripe == 110
    damper.changed(105)
    assert damper.ripe == 115


def test_constant_change_does_not_starve_it() -> None:
    damper = Damper(10, 60)
    for now in range(100, 160, 5):
        damper.changed(now)
    assert damper.ripe == 160


def test_a_change_after_quiet_opens_a_new_burst() -> None:
    damper = Damper(10, 12)
    damper.changed(100)
    damper.changed(120)
    damper.changed(125)
    assert damper.ripe == 132


def test_a_change_at_the_end_of_the_quiet_period_is_of_the_same_burst() -> None:
    damper = Damper(10, 15)
    damper.changed(100)
    damper.changed(110)
    assert damper.ripe == 115


def test_changes_taken_are_gone() -> None:
    damper = Damper(10, 60)
    damper.changed(100)
    damper.taken(100)
    assert damper.ripe is None
    damper.taken(101)
    damper.changed(101)
    assert damper.ripe == 111


def test_changes_after_those_taken_wait_for_quiet() -> None:
    damper = Damper(10, 12)
    damper.changed(100)
    damper.changed(105)
    damper.taken(104)
    assert damper.ripe == 115
    damper.changed(114)
    assert damper.ripe == 116


def test_a_ceiling_below_the_quiet_period_is_refused() -> None:
    with pytest.raises(ValueError, match="ceiling"):
        Damper(10, 5)


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=30).map(sorted),
    st.floats(0, 20),
    st.floats(1, 5),
)
def test_it_is_never_ripe_before_quiet_or_after_the_ceiling(
    times: list[float], quiet: float, factor: float
) -> None:
    damper = Damper(quiet, quiet * factor)
    for now in times:
        damper.changed(now)
    assert damper.ripe is not None
    assert damper.ripe <= times[-1] + quiet
    burst = [times[-1]]
    for now in reversed(times[:-1]):
        if burst[0] - now > quiet:
            break
        burst.insert(0, now)
    assert damper.ripe == min(times[-1] + quiet, burst[0] + quiet * factor)


@pytest.mark.parametrize(
    ("lost", "of", "held"),
    [(0, 10, False), (2, 2, False), (3, 6, False), (3, 5, True), (5, 10, False), (6, 10, True)],
)
def test_it_engages_at_three_and_over_half(lost: int, of: int, *, held: bool) -> None:
    assert (Brake(50, 50).consider(0, lost, of) is not None) == held


def test_it_lets_go_after_its_time() -> None:
    brake = Brake(50, 50)
    assert brake.consider(100, 5, 5) == 150
    assert brake.consider(149, 5, 5) == 150
    assert brake.consider(150, 5, 5) is None
    assert brake.consider(151, 5, 5) is None


def test_it_is_released_when_they_return_and_engages_again() -> None:
    brake = Brake(50, 50)
    assert brake.consider(100, 5, 5) == 150
    assert brake.consider(110, 1, 5) is None
    assert brake.consider(120, 5, 5) == 170


def test_release_lasts_as_long_as_the_loss() -> None:
    brake = Brake(50, 50)
    assert not brake.release()
    assert brake.consider(100, 5, 5) == 150
    assert brake.release()
    assert brake.consider(101, 5, 5) is None
    assert brake.consider(102, 0, 5) is None
    assert brake.consider(103, 5, 5) == 153


def test_zero_turns_it_off() -> None:
    assert Brake(0, 50).consider(0, 9, 9) is None
