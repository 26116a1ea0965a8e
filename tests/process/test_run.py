"""What a run makes of output and reports, without processes."""

import asyncio

from kontrol.process.clock import boottime
from kontrol.process.command import Command
from kontrol.process.run import FENCE_TIMEOUT, REPORT_TIMEOUT, Run


class Limit:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def a_run(limit: Limit, deadline: float | None = None, timeout: float | None = None) -> Run:
    command = Command(("x",), {}, stdout_limit=10, timeout=timeout, grace=2.0)
    return Run(1, command, deadline, on_stderr=None, on_stdout=None, over_limit=limit)


async def test_what_is_read_after_the_end_counts_against_the_limit() -> None:
    limit = Limit()
    run = a_run(limit)
    run.report({"reason": "exited", "status": 0})
    run.take_stdout(b"0123456789")
    assert limit.calls == 0
    run.take_stdout(b"a")
    run.take_stdout(b"b")
    outcome = run.outcome()
    assert limit.calls == 1
    assert (outcome.reason, outcome.status, outcome.stdout) == ("too much output", 0, b"0123456789")


async def test_the_first_report_counts() -> None:
    run = a_run(Limit())
    run.report({"reason": "stopped"})
    run.report({"reason": "exited", "status": 0})
    assert run.outcome().reason == "stopped"


async def test_a_guard_that_died_after_the_deadline_fenced_its_command() -> None:
    late, early, free = (a_run(Limit(), d) for d in (boottime() - 1, boottime() + 60, None))
    for run in (late, early, free):
        run.guard_died()
    assert late.outcome().reason == "fenced"
    assert early.outcome().reason == free.outcome().reason == "guard died"


async def test_the_latest_end_is_the_earliest_of_its_bounds() -> None:
    loop = asyncio.get_running_loop()
    run = a_run(Limit(), timeout=20.0)
    begun = loop.time()
    latest = run.latest()
    assert latest is not None
    assert abs(latest - (begun + 20 + 2 + REPORT_TIMEOUT)) < 1
    run.stop_at = begun
    latest = run.latest()
    assert latest is not None
    assert abs(latest - (begun + 2 + REPORT_TIMEOUT)) < 1
    run.deadline = boottime() - 100
    run.sent_at = begun
    assert run.latest() == begun + FENCE_TIMEOUT
    assert a_run(Limit()).latest() is None


async def test_what_is_left_behind_is_named() -> None:
    run = a_run(Limit())
    run.report({"reason": "exited", "status": 0, "left": [12, 34]})
    assert (
        run.outcome().detail == "exit status 0; left behind, since they are of another user: 12, 34"
    )
