"""How people write numbers: one rule for settings, options and arguments.

ASCII digits, with a point before a fraction: `25`, `0.5`. `int` and `float` accept more (signs,
exponents, `25_0`, the digits of every script, `nan`), so a slip would become another number.
"""

import re

_WHOLE = re.compile(r"[0-9]{1,19}\Z")
_DECIMAL = re.compile(r"[0-9]{1,18}(\.[0-9]{1,30})?\Z")


def whole(text: str, least: int, most: int) -> int:
    """Return the whole number in `text`. Raises `ValueError` unless it is in the range."""
    if not _WHOLE.match(text) or not least <= int(text) <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, in digits 0-9")
    return int(text)


def decimal(text: str) -> float:
    """Return the number in `text`, 0 or more. Raises `ValueError`."""
    if not _DECIMAL.match(text):
        raise ValueError("expected a number in digits 0-9, as 25 or 0.5")
    return float(text)
