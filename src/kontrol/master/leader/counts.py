"""What a master has counted since it started, for metrics."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Plain numbers, written on the loop by the parts of the leader, read for metrics.

    `clock` returns the seconds since 1970. `emit` is called with the name of each of the original's
    counters that moves: `lock_obtained`, `md5_changed`, `callback_invoked`.

    `run_seconds` is the sum of all runs' durations, `last_run_seconds` that of the last that ended.
    `last_run` (ended) and `last_success` are times of `clock`, 0 before the first. `running_since`
    is the loop time at which the run under way began, None without one. `following` is how many
    runs in a row seem to have led to the last one. `terms` counts terms won here, `digests` changes
    of the ensemble seen as the leader.
    """

    clock: Callable[[], float]
    emit: Callable[[str], None]
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

    def won(self) -> None:
        """Count a term that begins here."""
        self.terms += 1
        self.emit("lock_obtained")

    def changed(self) -> None:
        """Count a change of the ensemble's digest."""
        self.digests += 1
        self.emit("md5_changed")

    def started(self, *, following: int) -> None:
        """Count a run that starts, after `following` runs that seem to have led to it."""
        self.runs_started += 1
        self.following = following
        self.emit("callback_invoked")

    def ended(self, *, ok: bool, seconds: float) -> None:
        """Count a run whose end was recorded."""
        self.run_seconds += seconds
        self.last_run_seconds = seconds
        self.last_run = self.clock()
        if ok:
            self.runs_acknowledged += 1
            self.last_success = self.last_run
        else:
            self.runs_failed += 1
