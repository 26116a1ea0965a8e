"""The damper: wait for quiet before acting on changes, but never longer than a ceiling.

Changes that follow each other within `quiet` seconds are one burst. A burst is ripe `quiet`
seconds after its last change, and at the latest `ceiling` seconds after its first. (Serf calls
this coalescing: a quiescent period within a coalesce period.)

The brake: hold the callback when so many pods are lost at once that the observer is suspect.

Lost pods are those of the acknowledged list that are absent without a farewell. Three or more of
them, and more than `percent` of that list, engage the brake. It lets go when enough have returned,
when `hold` seconds have passed since it engaged, or when an operator releases it.
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


_FEWEST = 3  # below this a share of the list says nothing: one of two is 50 %


class Brake:
    """Tells until when to hold. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, percent: float, hold: float) -> None:
        self.percent = percent
        self.hold = hold
        self._since: float | None = None
        self._released = False

    def consider(self, now: float, lost: int, of: int) -> float | None:
        """Judge `lost` pods out of `of`; returns the time to hold until, None to go on."""
        if not (self.percent and lost >= _FEWEST and lost * 100 > self.percent * of):
            self._since, self._released = None, False
            return None
        if self._since is None:
            self._since = now
        until = self._since + self.hold
        return None if self._released or now >= until else until

    def release(self) -> bool:
        """Let go for as long as the present loss lasts; returns whether the brake was engaged."""
        self._released = self._since is not None
        return self._released
