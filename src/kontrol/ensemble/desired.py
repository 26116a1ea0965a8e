"""The desired state: what operators set for the callback, JSON values by key. Pure.

It is *set* and *unset* by key, and given to the callback as one JSON object. Values are compared in
their canonical form, so 1 and 1.0 differ, and the order of members does not matter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse

MAX_KEY = 64  # characters
MAX_KEYS = 256
MAX_VALUE = 64 * 1024  # bytes of canonical JSON
MAX_SPEC = 512 * 1024  # bytes of canonical JSON, keys included
MAX_DEPTH = 32  # arrays and objects within each other, in one value

_KEY = re.compile(rf"[0-9A-Za-z][0-9A-Za-z._-]{{0,{MAX_KEY - 1}}}\Z")
_MUST_BE_JSON = ("{", "[", '"')  # beginnings
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\Z")  # RFC 8259, section 6
_CONSTANTS = ("NaN", "Infinity", "-Infinity")  # which some readers take for numbers


class BadSetting(ValueError):
    """A change of the desired state that is refused: `name` is for programs, the text has the fix.

    Neither contains a value.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def check_key(key: object) -> str:
    """Return a key. Raises `BadSetting`."""
    if isinstance(key, str) and _KEY.match(key):
        return key
    raise BadSetting(
        "BadKey",
        f"the key is {key!r:.80}; expected 1 to {MAX_KEY} letters, digits and `. _ -`, beginning "
        "with a letter or a digit",
    )


def encode_value(value: JSON) -> bytes:
    """Return a value in canonical form. Raises `BadSetting` if it is too large or too deep."""
    try:
        raw = canonical(value)
        parse(raw, depth=MAX_DEPTH)
    except NotJSON as error:
        raise BadSetting("BadValue", f"the value is refused: {error}") from None
    if len(raw) > MAX_VALUE:
        raise BadSetting(
            "ValueTooLarge",
            f"the value is {len(raw)} bytes of JSON; expected at most {MAX_VALUE}. Keep what is "
            "larger elsewhere, and set where it is",
        )
    return raw


def value_of(text: str) -> JSON:
    """Return the value that a person means by `text`: what it is as JSON, or else the text.

    So `3` is a number, `true` a truth value, and `pod-1` a string. Raises `BadSetting` for what was
    meant as JSON and is not.
    """
    try:
        return parse(text, depth=MAX_DEPTH)
    except NotJSON as error:
        begun = text.lstrip().startswith(_MUST_BE_JSON)
        if begun or _NUMBER.match(text) or text.strip() in _CONSTANTS:
            raise BadSetting(
                "BadValue", f"the value is not JSON: {error}. To set it as a string, use --string"
            ) from None
    try:
        canonical(text)
    except NotJSON as error:
        raise BadSetting("BadValue", f"the value is not UTF-8 ({error})") from None
    return text


@dataclass(frozen=True, slots=True)
class Expected:
    """What a key must have for a change to be made: this value, canonical; None: no value."""

    value: bytes | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A key that was set or unset: by which client, and when (RFC 3339); empty if not known."""

    key: str
    by: str = ""
    at: str = ""


@dataclass(frozen=True, slots=True)
class SpecChanges:
    """The keys that were set to another value, and those that were unset, each in order of key."""

    set: tuple[Setting, ...] = ()
    unset: tuple[Setting, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.unset)

    def __len__(self) -> int:
        return len(self.set) + len(self.unset)

    def __str__(self) -> str:
        parts = [
            f"{did} {_names(some)}"
            for did, some in (("set", self.set), ("unset", self.unset))
            if some
        ]
        return ", ".join(parts) or "nothing changed"

    def public(self) -> dict[str, JSON]:
        """Return the JSON object that the callback gets as `CHANGES.spec`."""
        return {"set": [one.key for one in self.set], "unset": [one.key for one in self.unset]}


def _names(settings: Sequence[Setting], most: int = 5) -> str:
    shown = ", ".join(one.key for one in settings[:most])
    return shown if len(settings) <= most else f"{shown}, ..."


def document_of(values: Mapping[str, bytes]) -> bytes:
    """Return the JSON object of all values, which are canonical, in canonical form."""
    return b"{" + b",".join(b'"%s":%s' % (k.encode(), values[k]) for k in sorted(values)) + b"}"
