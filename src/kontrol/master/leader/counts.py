"""What a master has counted since it started, for metrics."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Plain numbers, written by their owners on the loop, read by whoever reports them.

    `run_seconds` is the sum of all runs' durations, `last_run_seconds` that of the last that ended.
    `last_run` (ended) and `last_success` are in seconds since 1970, 0 before the first; `clock`
    tells that time. `running_since` is the loop time at which the run under way began, None if none
    is. `following` is how many runs in a row seem to have led to the last one. `terms` counts terms
    won here, `digests` changes of the ensemble seen as leader.
    """

    runs_started: int = 0
    runs_acknowledged: int = 0
    runs_failed: int = 0
    run_seconds: float = 0.0
    last_run_seconds: float = 0.0
    last_run: float = 0.0
    last_success: float = 0.0
    running_since: float | None = None
    following: int = 0
    terms: int = 0
    digests: int = 0
    clock: Callable[[], float] = time.time

    def started(self) -> None:
        """Count a run that starts."""
        self.runs_started += 1

    def ended(self, *, ok: bool, seconds: float) -> None:
        """Count a run that was booked."""
        self.run_seconds += seconds
        self.last_run_seconds = seconds
        self.last_run = self.clock()
        if ok:
            self.runs_acknowledged += 1
            self.last_success = self.last_run
        else:
            self.runs_failed += 1
