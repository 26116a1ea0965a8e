"""Runs in a row that each led to the next: a callback that changes what it watches. Pure.

Nobody can know why a pod changed. What can be seen is that all changes that a run is due for came
during the run before, or soon after it, and were of pods that one of the last few runs was due for
as well: callbacks take turns with pods, too. Once may be chance; ten times in a row is a callback
that feeds itself, or pods that never rest.
"""

from collections import deque
from collections.abc import Set as AbstractSet

SOON = 10.0  # seconds after a run in which its consequences are expected
FOLLOWING = 10  # runs in a row, each caused by the run before, of which people are warned


class Chain:
    """Counts them, for one term. Times are seconds of one clock, given by the caller."""

    def __init__(self) -> None:
        self._ended: float | None = None
        self._ids: deque[AbstractSet[str]] = deque(maxlen=FOLLOWING)  # of the last runs
        self.length = 0

    def follows(self, newest: float, ids: AbstractSet[str]) -> int:
        """Return how many runs in a row, before one that is about to start, led to it.

        `newest` is when the last change came that it is for; `ids` are the pods that changed, none
        if it is due for another reason.
        """
        caused = self._ended is not None and newest <= self._ended + SOON
        same = not ids or not any(self._ids) or any(ids & before for before in self._ids)
        self.length = self.length + 1 if caused and same else 0
        if not caused:
            self._ids.clear()
        self._ids.append(ids)
        return self.length

    def ended(self, now: float) -> None:
        """Note that a run has ended."""
        self._ended = now
