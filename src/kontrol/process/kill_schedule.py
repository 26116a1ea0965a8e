"""The schedule by which the guard signals its command, and why. Pure: time is an argument.

running ---- an end is requested: stop, timeout, too much output ----> ending (SIGTERM)
running ---- the main process exits ----> killing (SIGKILL to the processes that it left)
running, ending ---- deadline, grace over, kill ----> killing
killing ---- nothing is left ----> over, which the guard sees and reports

Invariants: it never goes back; from the deadline on, and from `kill` on, the answer is SIGKILL;
SIGTERM is returned once; the first reason stays, except that a deadline which passes while the main
process runs is always reported as "fenced".
"""

from signal import SIGKILL, SIGTERM, Signals


class KillSchedule:
    """The schedule of one command. Times are seconds of one clock; None is never."""

    def __init__(self, *, deadline: float | None, expiry: float | None, grace: float) -> None:
        self.reason: str | None = None  # why it was ended; None: it ended by itself
        self._deadline = deadline
        self._expiry = expiry
        self._grace = grace
        self._kill_at: float | None = None
        self._killing = False
        self._terminated = False
        self._main_exited = False

    @property
    def wake(self) -> float | None:
        """The time by which `due` must be called again; None: no time."""
        if self._killing:
            return None
        expiry = self._expiry if self.reason is None else None
        times = [t for t in (self._deadline, expiry, self._kill_at) if t is not None]
        return min(times, default=None)

    def extend(self, deadline: float) -> None:
        """Move the deadline, without effect if it has passed and `due` has returned SIGKILL."""
        self._deadline = deadline

    def end(self, reason: str, now: float) -> None:
        """End it: SIGTERM, and SIGKILL when its grace is over."""
        if self.reason is None and not self._killing:
            self.reason = reason
            self._kill_at = now + self._grace

    def kill(self, reason: str) -> None:
        """Kill it immediately."""
        if self.reason is None and not self._main_exited:
            self.reason = reason
        self._killing = True

    def main_exited(self) -> None:
        """Note that the main process has exited; unless an end was requested, kill the rest."""
        self._main_exited = True
        if self.reason is None:
            self._killing = True

    def due(self, now: float) -> Signals | None:
        """Return the signal to send to all processes of the command now, if any."""
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
        if self.reason is not None and not self._terminated:
            self._terminated = True
            return SIGTERM
        return None
