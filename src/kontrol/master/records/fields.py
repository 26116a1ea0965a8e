"""Reading the fields of a record from etcd. Pure.

A record may come from an earlier or a later version, from an operator or from a bug. A field that
is absent or null has its reader's default. A field of another type makes the whole record
`Damaged`. An unknown field is kept in `more`, so that a rewrite does not lose it.
"""

from collections.abc import Mapping
from dataclasses import fields

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse

MOST = 2**62  # of terms and numbers: far from the end of 64 bits
HIGHEST_RUN = 10**11  # of runs: their keys have twelve digits, and the next ones must fit too
BELIEVED_RUN = HIGHEST_RUN // 2  # a higher one is not true: the next numbers would run out
LONGEST = 24 * 3600.0  # seconds: the maximum of any setting
AGAIN_LEAST = 0.1  # seconds: the minimum after which a callback may ask to run again

_DEPTH = 100  # of arrays and objects within each other
_TEXT = 64 * 1024  # characters; the longest text is the standard error of a run
HIGHEST_SECONDS = 1e12


class Damaged(ValueError):
    """A record that cannot be read: which field, its value, and what was expected."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        shown = f"{value!r:.60}"
        super().__init__(f"{name} is {shown}; expected {expected}")


def read(raw: bytes, *, depth: int = _DEPTH) -> JSON:
    """Decode JSON. Raises `Damaged`."""
    try:
        return parse(raw, depth=depth)
    except NotJSON as error:
        raise Damaged("the value", raw[:80], f"JSON ({error})") from None


class Fields:
    """The fields of one record. Each look-up removes one; the unknown ones are left in `more`."""

    def __init__(self, value: JSON) -> None:
        """Raises `Damaged` if `value` is not an object."""
        if not isinstance(value, dict):
            raise Damaged("the value", value, "a JSON object")
        self.more: dict[str, JSON] = dict(value)

    @classmethod
    def of(cls, raw: bytes) -> "Fields":
        """Read a record. Raises `Damaged`."""
        return cls(read(raw))

    def object(self, name: str) -> "Fields | None":
        """Return an object, None if absent. Raises `Damaged`."""
        value = self.more.pop(name, None)
        return None if value is None else Fields(value)

    def text(self, name: str, default: str | None = None, *, most: int = _TEXT) -> str:
        """Return a text of at most `most` characters. Without a `default` it is required.

        Raises `Damaged`.
        """
        value = self.maybe_text(name, most=most)
        if value is None:
            value = default
        if value is None:
            raise Damaged(name, None, "a text")
        return value

    def number(
        self, name: str, default: int | None = None, *, least: int = 0, most: int = MOST
    ) -> int:
        """Return a whole number from `least` to `most`. Without a `default` it is required.

        Raises `Damaged`.
        """
        value = self.maybe_number(name, least=least, most=most)
        if value is None:
            value = default
        if value is None:
            raise Damaged(name, None, f"a whole number from {least}")
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value, False if absent. Raises `Damaged`."""
        value = self.more.pop(name, False)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise Damaged(name, value, "true or false")
        return value

    def maybe_text(self, name: str, *, most: int = _TEXT) -> str | None:
        """Return a text of at most `most` characters, None if absent. Raises `Damaged`."""
        value = self.more.pop(name, None)
        if value is not None and not (isinstance(value, str) and len(value) <= most):
            raise Damaged(name, value, f"a text of at most {most} characters")
        return value

    def maybe_number(self, name: str, *, least: int = 0, most: int = MOST) -> int | None:
        """Return a whole number from `least` to `most`, None if absent. Raises `Damaged`."""
        value = self.more.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise Damaged(name, value, f"a whole number from {least} to {most}")
        return value

    def maybe_seconds(self, name: str) -> float | None:
        """Return a number of seconds from 0, None if absent. Raises `Damaged`."""
        value = self.more.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Damaged(name, value, "a number of seconds")
        if not 0 <= value <= HIGHEST_SECONDS:
            raise Damaged(name, value, f"from 0 to {HIGHEST_SECONDS:g} seconds")
        return float(value)


class Record:
    """A dataclass that is stored as a JSON object: its fields, and the unknown ones in `more`."""

    __slots__ = ()

    more: Mapping[str, JSON]

    def known(self) -> dict[str, JSON]:
        """Return the known fields as JSON, without those that are None. They may be shown."""
        return {
            field.name: value
            for field in fields(self)  # type: ignore[arg-type]  # subclasses are dataclasses
            if field.name != "more" and (value := getattr(self, field.name)) is not None
        }

    def public(self) -> dict[str, JSON]:
        """Return all fields as JSON, including the unknown ones."""
        return {**self.more, **self.known()}

    def encode(self) -> bytes:
        """Return the record as stored."""
        return canonical(self.public())
