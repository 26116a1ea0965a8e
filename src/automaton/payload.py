"""Files of JSON to be reported, for example by Kontrol's keepalives: the state, and live facts.

A reader sees the old content or the new, never a part: each is written to a file beside it, which
then replaces it. The payload is the state, the time since when the machine has been in it, and what
a probe printed. So a state that was left and entered again has another content, however soon;
entering a state from itself changes nothing.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kontrol_common.files import replace_file

_MAX = 64 * 1024  # bytes of a file that an earlier process may have written
_TICK = timedelta(milliseconds=1)  # the precision of written times


class ReportFile:
    """A file of JSON. A failure to write raises `OSError` and leaves the file as it was."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._written: str | None = None

    def put(self, content: Mapping[str, object]) -> None:
        """Write an object, unless it is what was written last."""
        text = json.dumps(content)
        if text == self._written:
            return
        replace_file(self._path, f"{text}\n".encode())
        self._written = text


class Payload(ReportFile):
    """The file of the payload."""

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

    def write(self, tag: str, since: str, facts: Mapping[str, object] | None = None) -> None:
        """Write that the machine has been in `tag` since `since`, and what a probe printed."""
        self.put({"state": tag, "since": since, **(facts or {})})


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
