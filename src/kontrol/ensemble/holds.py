"""The damper, which waits until changes have come to rest, and the brake, for a mass loss.

**Damper**: changes that follow each other within `quiet` seconds are one burst. The callback runs
`quiet` seconds after the last change of a burst, and at most `ceiling` seconds after its first.
(Serf calls this coalescing: a quiescent period within a coalesce period.)

**Brake**: when many pods are lost together, the observer is the suspect, so the callback is held.
Lost pods are those of the acknowledged list that are absent and did not deregister. Three or more
of them, and more than `percent` of that list, engage the brake. It is released when enough of them
have returned, when `hold` seconds have passed since it engaged, or by an operator.
"""


class Damper:
    """Says when to act on changes. Times are seconds of the caller's monotonic clock."""

    def __init__(self, quiet: float, ceiling: float) -> None:
        if not 0 <= quiet <= ceiling:
            raise ValueError(
                f"the damper is {quiet} s and its ceiling {ceiling} s; expected a ceiling that is "
                "not less than the damper, and a damper from 0"
            )
        self.quiet = quiet
        self.ceiling = ceiling
        self._first: float | None = None
        self._last = 0.0

    def changed(self, now: float) -> None:
        """Note a change. One after the quiet period of the change before it begins a new burst."""
        if self._first is None or now - self._last > self.quiet:
            self._first = now
        self._last = now

    def taken(self, until: float) -> None:
        """Note that the changes until then are acted on. Later ones are a burst that began then."""
        if self._first is not None:
            self._first = max(self._first, until) if self._last > until else None

    @property
    def ripe(self) -> float | None:
        """The time from which to act on the changes, None if there are none."""
        if self._first is None:
            return None
        return min(self._last + self.quiet, self._first + self.ceiling)


_FEWEST = 3  # fewer are no mass loss, whatever their share: one pod of two is 50 %


class Brake:
    """Says until when to hold. Times are seconds of the caller's monotonic clock."""

    def __init__(self, percent: float, hold: float) -> None:
        self.percent = percent
        self.hold = hold
        self._since: float | None = None
        self._released = False

    def consider(self, now: float, lost: int, of: int) -> float | None:
        """Return the time until which to hold for `lost` pods out of `of`, None to go on."""
        if not (self.percent and lost >= _FEWEST and lost * 100 > self.percent * of):
            self._since, self._released = None, False
            return None
        if self._since is None:
            self._since = now
        until = self._since + self.hold
        return None if self._released or now >= until else until

    def release(self) -> bool:
        """Release the brake for as long as this loss lasts; returns whether it was engaged."""
        self._released = self._since is not None
        return self._released
