"""What a master has counted since it started, for metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Plain numbers, written by their owners on the loop, read by whoever reports them.

    Times in seconds; `last_run` and `last_success` are seconds since 1970.
    """

    runs_started: int = 0
    runs_acknowledged: int = 0
    runs_failed: int = 0
    run_seconds: float = 0.0
    last_run: float = 0.0
    last_success: float = 0.0
    terms: int = 0
    digests: int = 0
    held: str = ""
