"""When changes came, so that people can be told how long one has been waiting. Pure.

A run is recorded with the revision that its pods were of; whatever came after it has not been acted
on. Every master keeps this on its own mirror and its own clock, so the answer outlives a leader and
needs no agreement between clocks.
"""

from collections import deque

_CLOSE = 0.25  # seconds; changes that begin within this are kept as one
_MOST = 4096  # entries: a quarter of an hour of constant change, and any time of rare changes


class History:
    """The times of changes, by the store's revision; times are of a clock of the caller."""

    def __init__(self) -> None:
        # Last revision, first time, and the digest after it where that is known, else "".
        self._entries: deque[tuple[int, float, str]] = deque(maxlen=_MOST)

    @property
    def revision(self) -> int:
        """The revision of the newest change, 0 before the first."""
        return self._entries[-1][0] if self._entries else 0

    @property
    def newest(self) -> float:
        """The time at which the newest change began, minus infinity before the first."""
        return self._entries[-1][1] if self._entries else float("-inf")

    def changed(self, revision: int, now: float, digest: str = "") -> None:
        """Note a change that came with `revision` at the time `now`.

        `digest` is that of the pods after it. It is needed for a first reading, which shows what
        came at unknown times before, and is no change for whoever acted on exactly these pods.
        """
        if self._entries and now - self.newest < _CLOSE:
            now = self._entries.pop()[1]
        self._entries.append((revision, now, digest))

    def after(self, revision: int, digest: str = "") -> float | None:
        """Return the time of the first known change after `revision`, None if there was none.

        `digest` is that of the pods at `revision`, if known.
        """
        return next(
            (
                time
                for last, time, known in self._entries
                if last > revision and not (known and known == digest)
            ),
            None,
        )

    def clear(self) -> None:
        """Forget everything: the store went back, and counts its revisions anew."""
        self._entries.clear()
