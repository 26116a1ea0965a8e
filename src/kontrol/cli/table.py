"""Text for people: tables and sentences that fit the terminal, and cannot control it.

A master's answer contains untrusted text: a pod's id, its payload, a callback's standard error.
`tame` makes a whole document harmless before any of it is laid out, so that no later line
of code has to remember to. Widths are columns of the terminal, not characters.
"""

import os
import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TextIO

from kontrol.ensemble.canonical import JSON
from kontrol_common.text import escaped

_LINES = frozenset({"stderr"})  # what is shown line by line
_LEAST = 10  # columns to which a column of text may shrink
_NAME = 24  # columns that the name of a field may take: a pod's may be of any length
_COLOURS = {"good": "32", "bad": "1;31", "warn": "33", "head": "1", "dim": "2"}


# A command in a text that takes `--master`, and has none.
_COMMAND = re.compile(
    r"`kontrol (?:status|pods|state|runs|explain|run-now|release|rollback|forget)\b"
    r"(?:(?! --master)[^`])*`"
)


class Cell(NamedTuple):
    """A text of the table in a colour."""

    text: str
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Console:
    """Where output goes. `width` and `height` are None if it is no terminal: then nothing is cut.

    `reach` are the options by which this command reaches its masters, as a shell takes them.
    """

    width: int | None = None
    height: int | None = None
    colours: bool = False
    reach: str = ""

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str], reach: str = "") -> "Console":
        """Look at a stream. Colours as in https://no-color.org, and not on a dumb terminal."""
        try:
            width, height = os.get_terminal_size(stream.fileno())
        except (OSError, ValueError):
            return cls(reach=reach)
        colours = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(width or 80, height or 24, colours, reach)

    def remedy(self, text: str) -> str:
        """Add `reach` to the commands in a text, so that they reach the same masters."""
        if not self.reach:
            return text
        return _COMMAND.sub(lambda found: f"{found[0][:-1]}{self.reach}`", text)

    def paint(self, text: str, colour: str) -> str:
        """Colour a text that is already padded."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[m" if self.colours and colour else text

    def wrap(self, text: str, indent: str = "") -> list[str]:
        """Break a sentence into lines; all but the first are indented."""
        if self.width is None:
            return [text]
        return textwrap.wrap(
            text, max(20, self.width), subsequent_indent=indent, break_on_hyphens=False
        )

    def fields(self, pairs: Iterable[tuple[str, str | Cell]]) -> list[str]:
        """Lay out names with a sentence each."""
        lines: list[str] = []
        rows = [(name, Cell(text) if isinstance(text, str) else text) for name, text in pairs]
        wide = min(_NAME, max((len(name) for name, _ in rows), default=0))
        for name, cell in rows:
            padded = f"{fit(name, wide):<{wide}}"
            first, *more = self.wrap(f"{padded}  {cell.text}", " " * (wide + 2)) or [padded]
            head, rest = first[: wide + 2], first[wide + 2 :]
            lines.append(self.paint(head, "dim") + self.paint(rest, cell.colour))
            lines += [self.paint(line, cell.colour) for line in more]
        return lines

    def table(
        self,
        head: Sequence[str],
        rows: Iterable[Sequence[str | Cell]],
        right: Collection[str] = (),
    ) -> list[str]:
        """Lay out rows under a head; columns named in `right` hold numbers, and are never cut.

        On a terminal the last columns give way first, and go where that is too little.
        """
        cells = [[Cell(c) if isinstance(c, str) else c for c in row] for row in rows]
        lines = [[Cell(name, "dim") for name in head], *cells]
        wide = [max(width(line[i].text) for line in lines) for i in range(len(head))]
        if self.width is not None:
            wide = _shrink(wide, [name in right for name in head], self.width)
        shown: list[str] = []
        for line in lines:
            parts = []
            for i, columns in enumerate(wide):
                text = fit(line[i].text, columns)
                pad = " " * (columns - width(text))
                last = i == len(wide) - 1
                text = pad + text if head[i] in right else text if last else text + pad
                parts.append(self.paint(text, line[i].colour))
            shown.append("  ".join(parts).rstrip(" "))
        return shown


def tame(value: JSON, name: str = "") -> JSON:
    """Return a document with every string `escaped`; one shown by lines becomes their list."""
    if isinstance(value, str):
        if name in _LINES:
            return [escaped(line.expandtabs()) for line in value.splitlines()]
        return escaped(value)
    if isinstance(value, list):
        return [tame(item, name) for item in value]
    if isinstance(value, dict):
        return {escaped(key): tame(item, key) for key, item in value.items()}
    return value


def width(text: str) -> int:
    """Return the columns that a text takes."""
    if text.isascii():
        return len(text)
    return sum(_columns(char) for char in text)


def fit(text: str, columns: int) -> str:
    """Cut a text to so many columns, with an ellipsis for what is missing."""
    if width(text) <= columns:
        return text
    taken, room = 0, columns - 1
    for i, char in enumerate(text):
        taken += _columns(char)
        if taken > room:
            return f"{text[:i]}…"
    return text


@lru_cache(4096)
def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):  # an accent that goes upon the one before
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _shrink(wide: Sequence[int], numbers: Sequence[bool], columns: int) -> list[int]:
    """Return the widths that fit into so many columns, two between each."""
    least = [w if n else min(w, _LEAST) for w, n in zip(wide, numbers, strict=True)]
    shown = len(wide)
    while shown > 1 and sum(least[:shown]) + 2 * (shown - 1) > columns:
        shown -= 1
    fitting = list(wide[:shown])
    for i in reversed(range(shown)):
        excess = max(0, sum(fitting) + 2 * (shown - 1) - columns)
        fitting[i] = max(least[i], fitting[i] - excess)
    return fitting
