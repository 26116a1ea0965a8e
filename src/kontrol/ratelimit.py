"""Rate limits: buckets of tokens, pure arithmetic on the time.

A bucket holds up to `burst` tokens and gains `rate` of them per second. What is limited takes one;
without one it is refused. So a source that was quiet may do `burst` things at the same time, and
over any time of t seconds at most `burst + rate * t`.

Times are seconds of one monotonic clock, given by the caller.
"""

from collections import OrderedDict


class RateLimiter:
    """A bucket for each key, an address for example. The `keys` used last are remembered."""

    def __init__(self, rate: float, burst: float, keys: int = 1024) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._keys = keys
        # What is left, and when it was: the key used longest ago comes first. Its bucket is most
        # likely full again, and a full bucket need not be remembered.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def left(self, key: str, now: float) -> float:
        """Return how many tokens `key` has."""
        level, at = self._levels.get(key, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)

    def take(self, key: str, now: float, tokens: float = 1) -> None:
        """Take tokens from `key`, also more than it has: it then waits for longer."""
        self._levels[key] = self.left(key, now) - tokens, now
        self._levels.move_to_end(key)
        if len(self._levels) > self._keys:
            self._levels.popitem(last=False)

    def allow(self, key: str, now: float) -> bool:
        """Take a token from `key`; return whether there was one. A refusal takes nothing."""
        allowed = self.left(key, now) >= 1
        self.take(key, now, allowed)
        return allowed


class LogLimiter:
    """Lets `most` lines pass at a time, and as many per `period` seconds; counts the others."""

    def __init__(self, most: int, period: float) -> None:
        self._limiter = RateLimiter(most / period, most, keys=1)
        self._held = 0

    def admit(self, now: float) -> int | None:
        """Return how many were held back since the last that passed; None holds this one back."""
        if not self._limiter.allow("", now):
            self._held += 1
            return None
        held, self._held = self._held, 0
        return held
