"""What is wrong with a configuration: every mistake at once, each by name."""

from collections.abc import Iterable
from dataclasses import dataclass

_LONGEST = 80  # characters of a value that are enough to recognise it by


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong. `text` is the value given, None if there is none (or to hide it)."""

    name: str
    text: str | None
    expected: str

    def __str__(self) -> str:
        if self.text is None:
            return f"{self.name}: expected {self.expected}"
        shown = self.text if len(self.text) <= _LONGEST else self.text[: _LONGEST - 3] + "..."
        return f"{self.name}={shown!r}: expected {self.expected}"


class SettingsError(Exception):
    """The configuration cannot be used; `mistakes` lists everything that is wrong with it."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = "1 mistake" if count == 1 else f"{count} mistakes"
        super().__init__("\n  ".join([f"{head} in the settings:", *map(str, self.mistakes)]))
