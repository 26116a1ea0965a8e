import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.logs import Event, Repeats, as_json, as_text, event_of, log_to


def event(text: str, level: str = "INFO", logger: str = "kontrol") -> Event:
    return Event(1_700_000_000.0625, level, logger, text)


def shown(told: list[tuple[Event, int]]) -> list[tuple[str, int]]:
    return [(item.text, more) for item, more in told]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_repeated_line_comes_once_a_period() -> None:
    repeats = Repeats(60)
    assert repeats.admit(event("lost a"), 0)
    assert not repeats.admit(event("lost a"), 1)
    assert not repeats.admit(event("lost a"), 59.9)
    assert repeats.due(59.9) == []
    assert shown(repeats.due(60)) == [("lost a", 2)]
    assert not repeats.admit(event("lost a"), 61)  # the count was a line as well
    assert shown(repeats.due(120)) == [("lost a", 1)]
    assert repeats.due(180) == []
    assert repeats.admit(event("lost a"), 181)


@pytest.mark.parametrize(
    "other",
    [
        event("lost b"),
        event("lost  a"),
        event("lost a", level="ERROR"),
        event("lost a", logger="kontrol.master"),
    ],
)
def test_another_line_is_no_repetition(other: Event) -> None:
    repeats = Repeats()
    assert repeats.admit(event("lost a"), 0)
    assert repeats.admit(other, 0)


def test_what_is_held_back_is_told_at_the_end() -> None:
    repeats = Repeats()
    for second in range(3):
        repeats.admit(event("x"), second)
    assert shown(repeats.due(3, final=True)) == [("x", 2)]
    assert repeats.due(4, final=True) == []


def test_memory_is_bounded_and_counts_survive_that() -> None:
    repeats = Repeats(most=10)
    told = 0
    for number in range(100):
        for _ in range(2):
            repeats.admit(event(f"line {number}"), 0)
        told += sum(more for _, more in repeats.due(0))
        assert len(repeats._windows) <= 10
    told += sum(more for _, more in repeats.due(0, final=True))
    assert told == 100


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=60))
def test_no_line_is_lost_or_comes_too_often(steps: list[tuple[str, float]]) -> None:
    repeats, now, counted = Repeats(60), 0.0, 0
    last: dict[str, float] = {}

    def wrote(text: str) -> None:
        assert now - last.get(text, -60) >= 60
        last[text] = now

    for text, pause in steps:
        now += pause
        for held, more in repeats.due(now):
            wrote(held.text)
            counted += more
        if repeats.admit(event(text), now):
            wrote(text)
            counted += 1
    counted += sum(more for _, more in repeats.due(now, final=True))
    assert counted == len(steps)


def test_text() -> None:
    item = event("pod a joined", level="WARNING")
    assert as_text(item) == "2023-11-14T22:13:20.062Z WARNING kontrol: pod a joined"
    assert as_text(item, 3).endswith("pod a joined (and 3 more like it)")


def test_json() -> None:
    assert json.loads(as_json(event("pod é\n"), 2)) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "info",
        "logger": "kontrol",
        "message": "pod é\n",
        "more": 2,
    }


@pytest.mark.parametrize("form", [as_text, as_json])
@given(text=st.text(st.characters(), max_size=60))
def test_one_event_is_one_line_that_steers_no_terminal(
    form: Callable[[Event], str], text: str
) -> None:
    line = form(event(text))
    line.encode("utf-8")  # lone surrogates too
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x1f\x80-\x9f\u2028\u2029]", line)


def test_an_error_carries_its_traceback_in_one_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "failed %d", (1,), sys.exc_info())
    line = as_text(event_of(record))
    assert "a: failed 1\\nTraceback" in line
    assert line.endswith("ValueError: first\\nsecond")


def test_a_long_event_is_cut() -> None:
    line = as_text(event_of(logging.LogRecord("a", 20, "", 1, "x" * 100_000, None, None)))
    assert len(line) < 17_000
    assert line.endswith("(83616 more characters)")


def test_logging_goes_to_the_stream_and_is_put_back() -> None:
    stream, clock, log = io.StringIO(), Clock(), logging.getLogger("kontrol.test")
    before = logging.getLogger().handlers[:]
    with log_to(stream, "text", clock=clock):
        log.debug("not shown")
        for _ in range(3):
            log.info("again")
        clock.now += 60
        log.info("later")
        log.info("later")
    assert [line.partition(": ")[2] for line in stream.getvalue().splitlines()] == [
        "again",
        "again (and 2 more like it)",
        "later",
        "later (and 1 more like it)",
    ]
    assert logging.getLogger().handlers == before


def test_debug_shows_our_debug_lines_and_no_library_s() -> None:
    stream = io.StringIO()
    with log_to(stream, "json", debug=True):
        logging.getLogger("kontrol.test").debug("ours")
        logging.getLogger("asyncio").debug("theirs")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["ours"]


def test_warnings_of_python_are_logged() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with log_to(stream, "text"):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old" in stream.getvalue()


def test_a_stream_that_fails_does_no_harm() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with log_to(Gone(), "text"):
        logging.getLogger("kontrol.test").warning("lost")
