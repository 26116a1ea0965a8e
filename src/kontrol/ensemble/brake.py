"""The brake: hold the callback when so many pods are lost at once that the observer is suspect.

Lost pods are those of the acknowledged list that are absent without a farewell. Three or more of
them, and more than `percent` of that list, engage the brake. It lets go when enough have returned,
when `hold` seconds have passed since it engaged, or when an operator releases it.
"""

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
