"""What the benchmark of Redis makes of the writes that its clients saw."""

import pytest
from bench.redis import FailOver, rows
from bench.redis_writes import PERIOD, Write, both_writable, longest_pause


def writes(server: str, *times: float) -> list[Write]:
    return [
        Write(server, f"{server}-{at}", at - 0.001, at + 0.001, acknowledged=True) for at in times
    ]


def every(begin: float, end: float) -> list[float]:
    return [begin + PERIOD * number for number in range(round((end - begin) / PERIOD) + 1)]


def test_one_after_the_other_is_not_both() -> None:
    assert both_writable(writes("a", *every(0, 1)) + writes("b", *every(1.001, 2))) == 0
    assert both_writable([]) == 0


def test_an_overlap_counts_from_the_first_answer_to_the_last_request() -> None:
    seen = writes("a", *every(0, 1.5)) + writes("b", *every(1, 2))
    assert both_writable(seen) == pytest.approx(0.498)


def test_one_write_of_a_server_that_wakes_up_counts() -> None:
    seen = writes("a", *every(0, 1), 1.5) + writes("b", *every(1.1, 2))
    assert both_writable(seen) == pytest.approx(PERIOD)


def test_the_longest_pause_begins_with_the_fault_or_a_write() -> None:
    seen = writes("a", 0, 1, 1.5) + writes("b", 4)
    assert longest_pause(seen, 0.5) == pytest.approx(2.5, abs=0.01)
    assert longest_pause(seen, 1.9) == pytest.approx(2.1, abs=0.01)


def test_the_table_sets_both_side_by_side() -> None:
    ours = [FailOver(2.5, 2.0, 0.0, 100, 0), FailOver(3.5, 3.0, 0.0, 100, 0)]
    theirs = [FailOver(4.0, 4.0, 0.5, 100, 7)]
    first, pause, both, lost = rows({"kill": ours}, {"kill": theirs})
    assert first.figure == "new primary after 3.00 s (2.50-3.50)"
    assert (first.limit, first.ratio) == ("Sentinel 4.00 s (4.00-4.00)", "0.75")
    assert pause.ratio == "0.62"
    assert (both.figure, both.limit) == ("0.00 s", "0.50 s")
    assert lost.what == "acknowledged writes lost in 2 fail-overs"
    assert (lost.figure, lost.limit) == ("0 of 200", "7 of 100")
    assert first.values["sentinel_most_seconds"] == 4.0
