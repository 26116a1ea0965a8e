"""The schedule of keepalives to one tier, and the nonce that orders them: pure arithmetic.

*Schedule*, in seconds, on the tier's TTL. While the tier answers, the next keepalive follows after
at most TTL/3, a little less at random so that the agents of a tier do not send in step. An attempt
lasts at most TTL/6. After a failure the delay is random, from 0 to a bound that doubles up to TTL/8
(full jitter). An address whose answer is late is not tried again for TTL/3, which leaves the time
to save the pod's lease over a new connection; and once that cannot be saved, for a TTL.

Invariant: TTL/6 + TTL/8 < TTL/3. So an attempt that began just before a tier (or another of its
addresses) can answer again, and that times out, is followed by one that succeeds within TTL/3. And
a pod whose connection breaks without notice right after an acknowledgement is seen again within
TTL/3 + TTL/3, before its TTL ends.

*Nonce*. It names a process of the pod, and orders it after earlier ones: the wall clock's
nanoseconds when the process started, and 32 random bits, in hexadecimal of fixed width. So it rises
from start to start as long as the clock does. If the clock was set back between two starts, a tier
that has never acknowledged the process refuses it as `Stale`, and its message names the newest
nonce that it knows. The process then adds the difference, its *skew*, to its nonce, and exceeds
that one with the next keepalive.
"""

import re
from collections.abc import Callable

MIN_TTL = 1.0
MAX_TTL = 3600.0  # whatever a master says, a keepalive is sent every 20 minutes
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

    def timeout(self, since: float) -> float:
        """Return the seconds after which a keepalive without an answer is given up.

        `since` is how long before it the last one was sent that was acknowledged, in seconds.
        """
        return self.ttl / 3 if since < self.ttl else self.ttl

    def acknowledged(self, ttl: object = None) -> float:
        """Record a success; return the seconds from its sending to the next.

        `ttl` is what the acknowledgement said, in seconds; anything but a number of at least 1 is
        ignored, since it would make the agent flood the tier.
        """
        self.failures = 0
        if isinstance(ttl, int | float) and ttl >= MIN_TTL and ttl is not True:
            self.ttl = min(float(ttl), MAX_TTL)
        return self.ttl / 3 * (0.8 + 0.2 * self._uniform())

    def soon(self) -> float:
        """Return the seconds to a keepalive that follows one with which a connection began."""
        return self.ttl / 12 * self._uniform()

    def failed(self) -> float:
        """Record a failure; return the seconds from now to the next attempt."""
        bound = self.ttl / 8 * 0.5 ** max(0, _DOUBLINGS - self.failures)
        self.failures += 1
        return bound * self._uniform()


SECOND = 1_000_000_000  # nanoseconds
LONGEST_SKEW = 2**31 * SECOND  # 68 years: no clock is off by more, whatever a master says

# What a master says: `_stale` in kontrol/master/registry/admission.py, and docs/rpc.rst.
_STALE = re.compile(
    r"record \S+ of pod \S+ is older than ([0-9a-f]{16})[0-9a-f]{8}/[0-9]{1,19}, ", re.ASCII
)
_LONGEST = 2000  # characters of a message that are looked at: the text is a peer's


def nonce(started: int, salt: int) -> str:
    """Return the nonce of a process started at `started`, in nanoseconds of the wall clock."""
    return f"{started:016x}{salt:08x}"


def skew_past(message: str, started: int, skew: int) -> int | None:
    """Return the skew with which a nonce exceeds the one that the message of `Stale` names.

    All in nanoseconds: `started` as for `nonce`, and `skew`, with which ours was refused. Where the
    message names no nonce of our form, or none that is newer than ours, the skew is doubled, from
    2 s on. None: `LONGEST_SKEW` is not enough.
    """
    found = _STALE.match(message[:_LONGEST])
    past = int(found[1], 16) + 1 - started if found else 0
    if past <= skew:
        past = 2 * skew or 2 * SECOND
    return past if past <= LONGEST_SKEW else None
