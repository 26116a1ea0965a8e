"""How often an address may ask: a bucket of tokens for each, pure arithmetic on the time."""

_MOST = 1024  # addresses remembered


class Rate:
    """Lets each address ask `rate` times per second, and `burst` times at once after quiet."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._levels: dict[str, tuple[float, float]] = {}  # what is left, and when; oldest first

    def allow(self, address: str, now: float) -> bool:
        """Return whether `address` may ask at the time `now`, in seconds; if so, it has."""
        left, at = self._levels.pop(address, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._levels[address] = (left - allowed, now)
        if len(self._levels) > _MOST:  # whoever has been quiet the longest has most likely enough
            del self._levels[next(iter(self._levels))]
        return allowed
