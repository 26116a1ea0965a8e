"""A master's answers, read without trusting them: no missing or odd field raises an error."""

from datetime import datetime

from kontrol.cli.table import tame
from kontrol.ensemble.canonical import JSON


class UntrustedJson:
    """A JSON object whose strings are `tame`. Every look-up has an answer of the type asked for."""

    def __init__(self, value: JSON) -> None:
        self.fields = value if isinstance(value, dict) else {}

    @classmethod
    def of(cls, value: JSON) -> "UntrustedJson":
        """Escape all strings of a document, and wrap it."""
        return cls(tame(value))

    def __bool__(self) -> bool:
        return bool(self.fields)

    def __contains__(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def text(self, name: str, otherwise: str = "") -> str:
        """Return a text or a number as text."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return otherwise
        return str(value) or otherwise

    def number(self, name: str, earlier: str = "") -> float | None:
        """Return a number, None if it is none or out of any range.

        `earlier` is the name that a master of the version before gives it.
        """
        value = self.fields.get(name, self.fields.get(earlier))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return value if abs(value) < 1e15 else None

    def count(self, name: str) -> int:
        """Return a whole number, 0 if it is none."""
        return int(self.number(name) or 0)

    def true(self, name: str) -> bool:
        """Return whether it is true."""
        return self.fields.get(name) is True

    def object(self, name: str) -> "UntrustedJson":
        """Return an object, empty if it is none."""
        return UntrustedJson(self.fields.get(name))

    def objects(self, name: str) -> "list[UntrustedJson]":
        """Return the objects of a list."""
        return [UntrustedJson(item) for item in self._list(name) if isinstance(item, dict)]

    def texts(self, name: str) -> list[str]:
        """Return the texts of a list."""
        return [item for item in self._list(name) if isinstance(item, str)]

    def time(self, name: str) -> datetime | None:
        """Return a date and time with its zone, None if it is none."""
        try:
            found = datetime.fromisoformat(self.text(name))
        except ValueError:
            return None
        return found if found.tzinfo is not None else None

    def _list(self, name: str) -> list[JSON]:
        value = self.fields.get(name)
        return value if isinstance(value, list) else []


def lasting(seconds: float) -> str:
    """Return a duration as text, in a fitting unit."""
    if seconds < 1:
        return f"{1000 * max(0.0, seconds):.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def ago(then: datetime | None, now: datetime | None) -> str:
    """Return how long ago `then` was, by the masters' clocks; empty if unknown."""
    return f"{lasting((now - then).total_seconds())} ago" if then and now else ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
