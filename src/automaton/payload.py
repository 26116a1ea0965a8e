"""Keeps the current state in a file, as JSON, to be reported, for example by Kontrol's keepalives.

A reader sees the old content or the new, never a part: each is written to a file beside it, which
then replaces it. The content is the state and the time since when the machine has been in it. So a
state that was left and entered again has another content, however soon; entering a state from
itself changes nothing.
"""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

_MAX = 4096  # bytes of a file that an earlier process may have written
_TICK = timedelta(milliseconds=1)  # the precision of written times


class Payload:
    """The file. A failure to write raises `OSError` and leaves the file as it was."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._written: tuple[str, str] | None = None

    def since(self) -> str | None:
        """Return the time in the file that an earlier process left; None if there is none."""
        try:
            if not self._path.is_file():  # a FIFO would block
                return None
            with self._path.open("rb") as file:
                content = json.loads(file.read(_MAX))
        except (OSError, ValueError, RecursionError):
            return None
        since = content.get("since") if isinstance(content, dict) else None
        return since if isinstance(since, str) else None

    def write(self, tag: str, since: str) -> None:
        """Write that the machine has been in state `tag` since `since`."""
        if (tag, since) == self._written:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            content = json.dumps({"state": tag, "since": since})
            beside.write_text(content + "\n", encoding="utf-8")
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)
        self._written = (tag, since)


def timestamp(now: datetime) -> str:
    """Return an aware time as RFC 3339 in UTC, to the millisecond."""
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def timestamp_after(before: str | None, now: datetime) -> str:
    """Return the time of a change, `now`, but never the same as that of the change before.

    If the clock stands still, or was set back by less than a second, it is one millisecond after
    `before`. A `before` that is not a time is ignored.
    """
    try:
        last = datetime.fromisoformat(before or "")
    except ValueError:
        return timestamp(now)
    if last.tzinfo is not None and -_TICK < last - now < timedelta(seconds=1):
        now = last + _TICK
    return timestamp(now)
