"""When the guard must signal the command that it owns, and why: pure, on a clock that it is told.

running ---- its end is asked for: stop, timeout, too much output ----> ending (SIGTERM)
running ---- its main process exits ----> killing (SIGKILL to what it left behind)
running, ending ---- deadline, grace over, kill ----> killing
killing ---- nothing is left ----> over, which the guard sees and reports

Invariants: it never goes back; from the deadline on, and from `kill` on, the answer is SIGKILL; a
SIGTERM is asked for once; the first reason stands, except that a deadline that passes while the
main process still runs is always told as "fenced".
"""

from signal import SIGKILL, SIGTERM, Signals


class KillSchedule:
    """One command's custody. Times are seconds of one clock; None is never."""

    def __init__(self, *, deadline: float | None, expiry: float | None, grace: float) -> None:
        self.reason: str | None = None  # why it was ended; None: it ended by itself
        self._deadline = deadline
        self._expiry = expiry
        self._grace = grace
        self._kill_at: float | None = None
        self._killing = False
        self._told = False
        self._main_exited = False

    @property
    def wake(self) -> float | None:
        """When `due` must be asked again at the latest."""
        if self._killing:
            return None
        expiry = self._expiry if self.reason is None else None
        times = [t for t in (self._deadline, expiry, self._kill_at) if t is not None]
        return min(times, default=None)

    def extend(self, deadline: float) -> None:
        """Move the deadline; one that has been acted on stays passed."""
        self._deadline = deadline

    def end(self, reason: str, now: float) -> None:
        """Ask it to end: SIGTERM, and SIGKILL when its grace is over."""
        if self.reason is None and not self._killing:
            self.reason = reason
            self._kill_at = now + self._grace

    def kill(self, reason: str) -> None:
        """Have it killed at once."""
        if self.reason is None and not self._main_exited:
            self.reason = reason
        self._killing = True

    def main_exited(self) -> None:
        """Note that the main process has exited; if nobody asked, the rest is killed at once."""
        self._main_exited = True
        if self.reason is None:
            self._killing = True

    def due(self, now: float) -> Signals | None:
        """Return the signal that all of the command's processes must be sent now, if any."""
        if self._deadline is not None and now >= self._deadline and not self._killing:
            if not self._main_exited:
                self.reason = "fenced"
            self._killing = True
        if self._expiry is not None and now >= self._expiry:
            self.end("timeout", now)
        if self._kill_at is not None and now >= self._kill_at:
            self._killing = True
        if self._killing:
            return SIGKILL
        if self.reason is not None and not self._told:
            self._told = True
            return SIGTERM
        return None
