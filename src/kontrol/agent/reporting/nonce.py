"""The nonce of a keepalive: it names a process of the pod, and orders it after those before it.

It is the wall clock's nanoseconds when the process started, and 32 random bits, in hexadecimal of
fixed width. So it rises from start to start as long as the clock does. Where the clock was set back
between two starts, a tier that has never acknowledged the process refuses it as `Stale`, and its
message names the newest nonce that it knows. The process then adds to its nonce what the clock
lacks, its *skew*, and is past that one with the next keepalive.
"""

import re

SECOND = 1_000_000_000  # nanoseconds
LONGEST_SKEW = 2**31 * SECOND  # 68 years: no clock is wrong by more, whatever a master says

# What a master says: `_stale` in kontrol/master/registry/admission.py, and docs/rpc.rst.
_STALE = re.compile(
    r"record \S+ of pod \S+ is older than ([0-9a-f]{16})[0-9a-f]{8}/[0-9]{1,19}, ", re.ASCII
)
_LONGEST = 2000  # characters of a message that are looked at: the text is a peer's


def nonce(started: int, salt: int) -> str:
    """Return the nonce of a process started at `started`, in nanoseconds of the wall clock."""
    return f"{started:016x}{salt:08x}"


def skew_past(message: str, started: int, skew: int) -> int | None:
    """Return the skew with which a nonce is past the one that the message of `Stale` names.

    All in nanoseconds: `started` as for `nonce`, and `skew`, with which ours was refused. Where the
    message names no nonce of our form, or none that is newer than ours, the skew is doubled, from
    2 s on. None: `LONGEST_SKEW` is not enough.
    """
    found = _STALE.match(message[:_LONGEST])
    past = int(found[1], 16) + 1 - started if found else 0
    if past <= skew:
        past = 2 * skew or 2 * SECOND
    return past if past <= LONGEST_SKEW else None
