"""JSON in one form, so that equal values have equal bytes.

Keys are sorted, there is no white space, and no escape that JSON does not require; UTF-8. Digests
and hashes are of this form. A change of it would change every digest, so a golden test freezes it.
"""

import json
from collections import Counter
from typing import TypeAlias

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class NotJSON(ValueError):
    """A text that is not the strict JSON that Kontrol accepts; the message says where and why."""


def canonical(value: object) -> bytes:
    """Encode a JSON value. Raises `NotJSON` for NaN, infinities, lone surrogates, other types."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotJSON(f"a string holds a lone surrogate, {error.object[error.start]!r}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJSON(str(error)) from None


def parse(text: str | bytes, *, depth: int) -> JSON:
    """Decode strict JSON, at most `depth` levels deep.

    Raises `NotJSON` if the text is not JSON or not UTF-8, is too deep, or holds NaN, an infinite
    number, a lone surrogate, or an object with a member twice: readers disagree on which counts.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value: JSON = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_distinct,
        )
        if "\\u" in text:  # the only way to a lone surrogate in text that decoded as UTF-8
            canonical(value)
    except UnicodeDecodeError as error:
        raise NotJSON(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise NotJSON(f"nested deeper than {depth} levels") from None
    except json.JSONDecodeError as error:
        raise NotJSON(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):  # advice for programmers follows
            error = ValueError("a number has too many digits")
        raise NotJSON(str(error)) from None
    # Few brackets cannot nest deeper than the limit: this is enough for most records.
    if text.count("[") + text.count("{") > depth and _deeper(value, depth):
        raise NotJSON(f"nested deeper than {depth} levels")
    return value


def _refuse_constant(name: str) -> JSON:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, JSON]]) -> JSON:
    members = dict(pairs)
    if len(members) < len(pairs):
        times = Counter(name for name, _ in pairs)  # in one pass: there may be very many
        twice = next(name for name in members if times[name] > 1)
        raise ValueError(f"the member {twice!r:.80} is there twice: keep one")
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is beyond the range of a number")
    return number


def _deeper(value: JSON, depth: int) -> bool:
    level: list[JSON] = [value]
    for _ in range(depth + 1):
        inner: list[JSON] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not any(isinstance(item, dict | list) for item in level):
            return False
        level = inner
    return True
