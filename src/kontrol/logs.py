"""The log: one event per line on a stream, as text or JSON, in UTC, without floods.

A line that is the same as an earlier one (same logger, level and text) is held back and counted: it
is written at most once in `PERIOD` seconds, with its count. Held-back lines are written when
another line is logged after the period, or when the log ends: nothing here has a clock of its own.

Invariant: one event is one line, whatever its text. It is escaped (`kontrol_common.text`), so that
text from elsewhere can neither forge an event nor steer a terminal.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TextIO

from kontrol_common.text import escaped

PERIOD = 60.0  # seconds
_MOST_KEYS = 1024  # different lines that are remembered at a time
_LONGEST = 16_384  # characters of one event
# Output of the callback and of hooks, and the audit: never held back; bounded where they are made.
_VERBATIM = frozenset({"kontrol.callback", "kontrol.hook", "kontrol.audit"})
_CHATTY = ("asyncio", "concurrent")  # libraries whose debug lines are of no use to users


class Event(NamedTuple):
    """The content of a record: a copy, since a record keeps its traceback's frames alive.

    `created` is in seconds since 1970, UTC; `text` is the message, with its traceback if any.
    """

    created: float
    level: str
    logger: str
    text: str


@dataclass(slots=True)
class _Window:
    since: float
    event: Event
    more: int = 0


class Repeats:
    """Decides which lines to hold back. Times are seconds of one monotonic clock."""

    def __init__(self, period: float = PERIOD, most: int = _MOST_KEYS) -> None:
        self.period = period
        self.most = most
        self._windows: dict[tuple[str, ...], _Window] = {}  # oldest first

    def admit(self, event: Event, now: float) -> bool:
        """Return whether to write `event` now; if not, it is counted."""
        key = event[1:]
        window = self._windows.get(key)
        if window is not None and now - window.since < self.period:
            window.more += 1
            window.event = event
            return False
        self._windows.pop(key, None)
        self._windows[key] = _Window(now, event)
        return True

    def due(self, now: float, *, final: bool = False) -> list[tuple[Event, int]]:
        """Return the last of each held-back line and how many there were, once its period is over.

        Those lines count as written now, and so are held back for another period. With `final`,
        or when too many different lines are remembered, periods end early.
        """
        held: list[tuple[Event, int]] = []
        for key, window in list(self._windows.items()):
            crowded = len(self._windows) > self.most
            if not (final or crowded or now - window.since >= self.period):
                break
            del self._windows[key]
            if window.more:
                held.append((window.event, window.more))
                if not (final or crowded):
                    self._windows[key] = _Window(now, window.event)
        return held


class LineHandler(logging.Handler):
    """Writes events to a stream. An error of the stream loses the line and nothing else."""

    def __init__(
        self,
        stream: TextIO,
        form: Literal["text", "json"],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._stream = stream
        self._line = as_json if form == "json" else as_text
        self._clock = clock
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record unless it is a repetition, after those whose period is over."""
        now, event = self._clock(), event_of(record)
        lines = [self._line(held, more) for held, more in self._repeats.due(now)]
        if event.logger in _VERBATIM or self._repeats.admit(event, now):
            lines.append(self._line(event, 0))
        self._write(lines)

    def close(self) -> None:
        """Write what is held back, and close."""
        self._write([self._line(*held) for held in self._repeats.due(self._clock(), final=True)])
        super().close()

    def _write(self, lines: list[str]) -> None:
        if not lines:
            return
        # OSError: the reader has gone. ValueError: the stream is closed.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write("".join(f"{line}\n" for line in lines))
            self._stream.flush()


def event_of(record: logging.LogRecord) -> Event:
    """Return the content of `record`, bounded in length."""
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}... ({len(text) - _LONGEST} more characters)"
    return Event(record.created, record.levelname, record.name, text)


def as_text(event: Event, more: int = 0) -> str:
    """Return `time LEVEL logger: message`; `more` is how many like it were held back."""
    text = f"{event.text}{f' (and {more} more like it)' if more else ''}"
    return escaped(f"{_time(event.created)} {event.level:<7} {event.logger}: {text}")


def as_json(event: Event, more: int = 0) -> str:
    """Return an object with `time`, `level`, `logger`, `message` and, if any, `more`."""
    fields: dict[str, str | int] = {
        "time": _time(event.created),
        "level": event.level.lower(),
        "logger": event.logger,
        "message": event.text,
    }
    if more:
        fields["more"] = more
    return json.dumps(fields)  # in ASCII: nothing in it can be taken for the end of a line


@contextlib.contextmanager
def log_to(
    stream: TextIO,
    form: Literal["text", "json"],
    *,
    debug: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Send all logging, and Python's warnings, to `stream` until the block ends."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handler = LineHandler(stream, form, clock)
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.NOTSET)
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()


def _time(created: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(created, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"
