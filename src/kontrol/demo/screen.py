"""What the demonstration shows: narration in one colour, the callback's own words in another."""

import os
import time
from collections.abc import Callable
from typing import TextIO

_STYLES = {"step": "1;36", "note": "2", "+": "32", "~": "33", "-": "31", "run": "1", "good": "1;32"}


class Screen:
    """Writes lines; in colour on a terminal only. Times are seconds since its making."""

    def __init__(self, stream: TextIO, *, colour: bool | None = None) -> None:
        self._stream = stream
        self._colour = stream.isatty() if colour is None else colour
        self._start = time.monotonic()
        self._listener: Callable[[], object] = lambda: None
        self.left = False

    def when_left(self, listener: Callable[[], object]) -> None:
        """Call `listener` once nobody reads any more, as in `kontrol demo | head`."""
        self._listener = listener

    def step(self, text: str) -> None:
        """Tell what is about to be done."""
        self._line("\n" + self._style("step", f"{self._clock()}  {text}"))

    def note(self, text: str) -> None:
        """Tell what was seen to happen."""
        self._line(self._style("note", f"         {text}"))

    def good(self, text: str) -> None:
        """Tell that it came out as it should."""
        self._line(self._style("good", f"         {text}"))

    def callback(self, line: str) -> None:
        """Show a line of the callback's."""
        style = "run" if line.startswith("run ") else line[:1]
        self._line(f"           | {self._style(style, line)}")

    def _clock(self) -> str:
        return f"{time.monotonic() - self._start:6.1f}s"

    def _style(self, style: str, text: str) -> str:
        code = _STYLES.get(style)
        return f"\033[{code}m{text}\033[0m" if self._colour and code else text

    def _line(self, text: str) -> None:
        if self.left:
            return
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:
            self.left = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            self._listener()
