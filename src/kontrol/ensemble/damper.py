"""The damper: wait for quiet before acting on changes, but never longer than a ceiling.

Changes that follow each other within `quiet` seconds are one burst. A burst is ripe `quiet`
seconds after its last change, and at the latest `ceiling` seconds after its first. (Serf calls
this coalescing: a quiescent period within a coalesce period.)
"""


class Damper:
    """Tells when to act. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, quiet: float, ceiling: float) -> None:
        if not 0 <= quiet <= ceiling:
            raise ValueError(
                f"damper of {quiet} s with a ceiling of {ceiling} s: the ceiling is less"
            )
        self.quiet = quiet
        self.ceiling = ceiling
        self._first: float | None = None
        self._last = 0.0

    def changed(self, now: float) -> None:
        """Note a change. One that comes after its predecessor's quiet period opens a new burst."""
        if self._first is None or now - self._last > self.quiet:
            self._first = now
        self._last = now

    def taken(self) -> None:
        """Note that the changes so far are being acted on."""
        self._first = None

    @property
    def ripe(self) -> float | None:
        """The time from which to act on the changes noted; None if there are none."""
        if self._first is None:
            return None
        return min(self._last + self.quiet, self._first + self.ceiling)
