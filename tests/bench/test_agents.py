"""What the crowd counts, and that its policy is that of a real agent."""

from bench.agents import REFUSALS, Histogram, Tally, record
from hypothesis import given
from hypothesis import strategies as st

from kontrol.agent import connection
from kontrol.ensemble.pod import parse_keepalive


def test_the_refusals_are_those_of_a_real_agent() -> None:
    assert connection._REFUSALS == REFUSALS


def test_each_agent_has_an_identity_of_its_own() -> None:
    pods = [parse_keepalive(record(number)) for number in range(0, 70_000, 70)]
    assert len({pod.id for pod in pods}) == len({pod.key for pod in pods}) == len(pods)


@given(st.lists(st.floats(1e-6, 1000), min_size=1), st.floats(0, 1))
def test_a_percentile_is_off_by_a_bucket_at_most(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    found = histogram.percentile(share)
    most = ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    assert ordered[0] / 1.05 <= found <= most * 1.05


def test_the_peak_is_the_busiest_second() -> None:
    tally = Tally()
    tally.bins.update({100: 5, 105: 5, 109: 1, 110: 7, 200: 3})
    assert tally.peak() == 13
    assert Tally().peak() == 0
