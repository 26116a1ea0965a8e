"""The guard's decisions, on a clock of the test's own."""

import signal

from hypothesis import given
from hypothesis import strategies as st

from kontrol.process.kill_schedule import KillSchedule

TIMES = st.floats(0, 100, allow_nan=False)


def schedule(
    deadline: float | None = None, expiry: float | None = None, grace: float = 5.0
) -> KillSchedule:
    return KillSchedule(deadline=deadline, expiry=expiry, grace=grace)


def test_nothing_is_due_while_it_runs() -> None:
    subject = schedule(deadline=10, expiry=20)
    assert subject.due(9.99) is None
    assert subject.wake == 10
    assert schedule().wake is None


def test_a_timeout_asks_then_kills() -> None:
    subject = schedule(expiry=10)
    assert subject.due(10) == signal.SIGTERM
    assert subject.due(10.1) is None
    assert subject.wake == 15
    assert subject.due(15) == signal.SIGKILL
    assert subject.reason == "timeout"


def test_a_stop_leaves_its_grace_to_those_that_outlive_the_main_process() -> None:
    subject = schedule()
    subject.end("stopped", 1)
    assert subject.due(1) == signal.SIGTERM
    subject.main_exited()
    assert subject.due(5.9) is None
    assert subject.due(6) == signal.SIGKILL
    assert subject.reason == "stopped"


def test_what_the_main_process_leaves_behind_is_killed_at_once() -> None:
    subject = schedule()
    subject.main_exited()
    assert subject.due(0) == signal.SIGKILL
    assert subject.reason is None


def test_the_deadline_kills_without_grace_and_is_the_reason() -> None:
    subject = schedule(deadline=3)
    subject.end("stopped", 1)
    assert subject.due(2) == signal.SIGTERM
    assert subject.due(3) == signal.SIGKILL
    assert subject.reason == "fenced"


def test_an_extension_moves_the_deadline_until_it_has_passed() -> None:
    subject = schedule(deadline=3)
    subject.extend(6)
    assert subject.due(5) is None
    assert subject.due(6) == signal.SIGKILL
    subject.extend(100)
    assert subject.due(7) == signal.SIGKILL


def test_the_deadline_does_not_rename_what_ended_by_itself() -> None:
    subject = schedule(deadline=3)
    subject.main_exited()
    assert subject.due(4) == signal.SIGKILL
    assert subject.reason is None


@given(
    deadline=st.none() | TIMES,
    expiry=st.none() | TIMES,
    grace=st.floats(0, 10),
    events=st.lists(st.tuples(TIMES, st.sampled_from(["end", "kill", "exit", "extend", "look"]))),
)
def test_it_never_goes_back_and_never_misses_a_deadline(
    deadline: float | None,
    expiry: float | None,
    grace: float,
    events: list[tuple[float, str]],
) -> None:
    subject = schedule(deadline, expiry, grace)
    killing, terms, reason = False, 0, None
    for now, event in sorted(events):
        if event == "end":
            subject.end("stopped", now)
        elif event == "kill":
            subject.kill("stopped")
        elif event == "exit":
            subject.main_exited()
        elif event == "extend" and deadline is not None:
            deadline = max(deadline, now + 1)
            subject.extend(deadline)
        due = subject.due(now)
        if killing or event == "kill" or (deadline is not None and now >= deadline):
            assert due == signal.SIGKILL
        killing = killing or due == signal.SIGKILL
        terms += due == signal.SIGTERM
        assert terms <= 1
        assert reason in {None, subject.reason} or subject.reason == "fenced"
        reason = subject.reason
        # Asked again when it said so, it never lets the deadline or a grace pass.
        wake = subject.wake
        assert killing or deadline is None or (wake is not None and wake <= deadline)
        assert killing or wake is None or wake > now or reason is None or grace == 0
