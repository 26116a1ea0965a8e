"""Sums up, over all tests of a run, how often schedules reached what is rare, and prints it.

Tests tell it as a property, so that several workers may run them. A run of enough schedules that
never reached one of the branches fails.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest

PROPERTY = "rare branches"
SCHEDULES = "schedules"  # how many there were, among the counts
ENOUGH = 500  # schedules that must reach every branch, but for those that few reach
# About one schedule in 200 to 500.
FEW = (
    "late start",
    "late acknowledgement",
    "again restored",
    "published refused",
    "published unsure",
)  # about one schedule in 200 to 500


def table(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a line for each branch that is counted: how often it was reached."""
    for name, count in counts.items():
        yield f"{count:8}  {name}"


def never(counts: Mapping[str, int]) -> list[str]:
    """Return the branches that enough schedules should have reached, and did not."""
    enough = counts.get(SCHEDULES, 0) >= ENOUGH
    missing = [name for name, count in counts.items() if not count and enough]
    return [name for name in missing if not name.startswith(FEW)]


class Suite:
    """A plug-in of pytest, for the process that was started, not for its workers."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add what a test tells."""
        if report.when == "call":
            for name, counts in report.user_properties:
                if name == PROPERTY and isinstance(counts, dict):
                    self._counts.update(counts)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail if a branch was never reached."""
        if never(self._counts) and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the counts."""
        if not self._counts:
            return
        terminalreporter.section("how often schedules reached what is rare")
        for line in table(self._counts):
            terminalreporter.line(line)
        for name in never(self._counts):
            terminalreporter.line(f"never reached: {name}", red=True)
