"""JSON on whose meaning all readers agree: what Kontrol refuses beyond what `json` does.

Readers differ on which of two members with one name counts, and few know NaN. Pure.
"""

import json
from collections import Counter
from typing import Any


def loads(text: str) -> Any:  # noqa: ANN401 - as `json.loads`
    """Return the value of a JSON text.

    Raises `ValueError` if it is not JSON, or holds NaN, a number beyond the range of floats, or an
    object with a member twice; `RecursionError` if it is nested too deep to be read.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_distinct,
        )
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):  # advice for programmers follows
            raise ValueError("a number has too many digits") from None
        raise


def deeper(value: object, depth: int) -> bool:
    """Tell whether arrays and objects are nested deeper than `depth` levels."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not any(isinstance(item, dict | list) for item in level):
            return False
        level = inner
    return True


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
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
