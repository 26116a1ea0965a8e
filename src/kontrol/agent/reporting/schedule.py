"""When the agent sends to one tier: pure arithmetic, in seconds, on the tier's TTL.

While the tier answers, a keepalive follows the last by TTL/3 at most, a little less at random so
that the agents of a tier do not move in step. An attempt lasts TTL/6 at most. After a failure the
delay is drawn evenly from 0 to a bound that doubles up to TTL/8 (full jitter).

Invariant: TTL/6 + TTL/8 < TTL/3. So an attempt begun just before a tier (or another of its
addresses) can answer again, and lost in silence, is followed by one that succeeds within TTL/3;
and a pod whose connection dies without a word right after an acknowledgement is heard again
within TTL/3 + TTL/3, before its TTL ends.
"""

from collections.abc import Callable

MIN_TTL = 1.0
MAX_TTL = 3600.0  # whatever a master says, it hears of us every 20 minutes
_MAX_ATTEMPT = 5.0
_DOUBLINGS = 4  # from the first bound, TTL/128, to TTL/8


class Schedule:
    """The delays for one tier. `uniform` returns numbers evenly spread over 0 to 1."""

    def __init__(self, ttl: float, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self.ttl = min(max(ttl, MIN_TTL), MAX_TTL)
        self.failures = 0

    @property
    def attempt(self) -> float:
        """Seconds that one attempt may last: looking up, connecting, sending, being answered."""
        return min(self.ttl / 6, _MAX_ATTEMPT)

    def acknowledged(self, ttl: object = None) -> float:
        """Take note of a success; return the seconds from its sending to the next.

        `ttl` is what the acknowledgement said, in seconds; anything but a number of at least 1 is
        passed over, since it would make the agent flood the tier.
        """
        self.failures = 0
        if isinstance(ttl, int | float) and ttl >= MIN_TTL and ttl is not True:
            self.ttl = min(float(ttl), MAX_TTL)
        return self.ttl / 3 * (0.8 + 0.2 * self._uniform())

    def failed(self) -> float:
        """Take note of a failure; return the seconds from now to the next attempt."""
        bound = self.ttl / 8 * 0.5 ** max(0, _DOUBLINGS - self.failures)
        self.failures += 1
        return bound * self._uniform()
