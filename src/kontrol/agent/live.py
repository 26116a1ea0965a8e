"""The file of live facts, read for each keepalive that carries them.

Facts are what is true now, so that what the file no longer says is not reported for long: unlike a
payload, the last valid content stays in force only for as long as the caller says, so that a file
that is read while it is written in place does no harm. After that, and where there never was valid
content, there are no facts. A problem is logged once, not with every read.
"""

import errno
import logging
from pathlib import Path

from kontrol.agent.payload import read_file
from kontrol.ensemble.canonical import NotJSON, canonical, parse
from kontrol.ensemble.live import LIVE_DEPTH, MAX_LIVE, NO_FACTS, parse_live

log = logging.getLogger(__name__)

_MAX_FILE = 4 * MAX_LIVE  # white space does not count for what is sent


class LiveFile:
    """The file at `path`. `error` says why its content is not in force, None if it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: str | None = None
        self._last = NO_FACTS
        self._read = float("-inf")

    def read(self, now: float, *, keep: float) -> str:
        """Return the facts as canonical JSON; `null` if there are none.

        `now` is in seconds of a monotonic clock, and `keep` for how many of them content stays in
        force that was valid.
        """
        try:
            content = read_file(self.path, _MAX_FILE, f"; a keepalive carries {MAX_LIVE}")
            facts = canonical(_parse(content))
            parse_live(facts)
        except OSError as error:
            absent = error.errno == errno.ENOENT
            reason = "there is no such file" if absent else error.strerror or str(error)
            self._wrong(reason, logging.INFO if absent else logging.WARNING)
        except NotJSON as error:
            self._wrong(str(error), logging.WARNING)
        else:
            if self.error is not None:
                log.info("live facts %s: in force", self.path)
            self.error = None
            self._last, self._read = facts.decode("utf-8"), now
        return self._last if now - self._read <= keep else NO_FACTS

    def _wrong(self, error: str, level: int) -> None:
        if error != self.error:
            log.log(level, "live facts %s: %s; they are not reported", self.path, error)
        self.error = error


def _parse(content: bytes) -> object:
    if not content.strip():
        raise NotJSON("empty")
    return parse(content, depth=LIVE_DEPTH)
